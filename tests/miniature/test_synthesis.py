"""espeak-ng: real speech, the same every time, in the voice that was asked for."""

import numpy as np
import pytest

from blsp.errors import BlspError
from blsp.miniature.synthesis import SAMPLING_RATE_HZ, Prosody, speak


def test_speech_is_heard_and_repeats_itself():
    voice = Prosody("f2", 180, 50, 50)
    first, other, again = (
        speak(text, "en-us", voice) for text in ("turn on the fan", "play some jazz music", "turn on the fan")
    )
    assert first.dtype == np.float32 and np.array_equal(first, again)
    assert 0.5 < len(first) / SAMPLING_RATE_HZ < 3 and np.abs(first).max() == pytest.approx(0.5, abs=0.01)
    assert len(other) != len(first)


def test_voice_and_rate_change_the_sound():
    slow, fast = (speak("turn on the fan", "en-us", Prosody("f2", rate, 50, 50)) for rate in (140, 240))
    low = speak("turn on the fan", "en-us", Prosody("m3", 140, 50, 50))
    assert len(slow) > 1.2 * len(fast)
    assert len(low) != len(slow) or not np.allclose(low, slow)


def test_a_voice_that_does_not_exist_is_refused():
    with pytest.raises(BlspError, match=r"no voice 'xx-none\+f2'"):
        speak("hello", "xx-none", Prosody("f2", 180, 50, 50))
