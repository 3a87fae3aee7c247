"""espeak-ng: real speech, the same in every process, in the voice that was asked for."""

import subprocess
import sys

import numpy as np
import pytest

from blsp.errors import BlspError
from blsp.miniature.synthesis import SAMPLING_RATE_HZ, Prosody, speak


def test_speech_is_heard():
    voice = Prosody("f2", 180, 50, 50)
    first, other = (speak(text, "en-us", voice).samples for text in ("turn on the fan", "play some jazz music"))
    assert first.dtype == np.float32 and len(other) != len(first)
    assert 0.5 < len(first) / SAMPLING_RATE_HZ < 3 and np.abs(first).max() == pytest.approx(0.5, abs=0.01)


def test_two_processes_speak_the_same_samples():
    code = (
        "import hashlib; from blsp.miniature.synthesis import Prosody, speak;"
        "print([hashlib.sha256(speak('turn on the fan', 'en-us', Prosody(v, 180, 50, 50)).samples).hexdigest()"
        " for v in ('f2', 'm3', 'klatt2')])"
    )
    said = [subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout for _ in range(2)]
    assert said[0] == said[1] != b""


def test_words_are_told_with_their_times():
    speech = speak("start a timer of 50 minutes", "en-us", Prosody("f2", 180, 50, 50))
    assert [word for word, _ in speech.words] == ["start", "a", "timer", "of", "50", "minutes"]
    times = [start_s for _, start_s in speech.words]
    assert times == sorted(times) and times[0] == 0 and 0.8 < times[-1] < len(speech.samples) / SAMPLING_RATE_HZ


def test_a_german_number_is_one_word():
    speech = speak("starte eine uhr von 25 minuten für nudeln", "de", Prosody("f2", 180, 50, 50))
    said = [word for word, _ in speech.words]
    assert said == ["starte", "eine", "uhr", "von", "25", "minuten", "für", "nudeln"]


def test_voice_and_rate_change_the_sound():
    slow, fast = (speak("turn on the fan", "en-us", Prosody("f2", rate, 50, 50)).samples for rate in (140, 240))
    low = speak("turn on the fan", "en-us", Prosody("m3", 140, 50, 50)).samples
    assert len(slow) > 1.2 * len(fast)
    assert len(low) != len(slow) or not np.allclose(low, slow)


def test_a_voice_that_does_not_exist_is_refused():
    with pytest.raises(BlspError, match=r"no voice 'xx-none\+f2'"):
        speak("hello", "xx-none", Prosody("f2", 180, 50, 50))
