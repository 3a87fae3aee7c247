"""The miniature's Whisper: what its encoder is taught at each frame."""

import torch

from blsp.miniature.speech_model import HOP, _word_at_each_frame
from blsp.miniature.synthesis import Prosody, Speech, speak


def test_each_frame_has_the_word_at_its_middle():
    # Five frames of 40 ms, their middles at 20, 60, 100, 140 and 180 ms; the ninth mel frame fills half of the last.
    speech = Speech(samples=None, words=(("stop", 0.03), ("it", 0.09), ("stop", 0.15)))
    assert _word_at_each_frame(speech, ["it", "stop"], mel_frames=9).tolist() == [0, 2, 1, 1, 2]
    assert _word_at_each_frame(speech, ["it", "stop"], mel_frames=4).tolist() == [0, 2]


def test_a_word_that_begins_after_the_audio_is_at_no_frame():
    speech = Speech(samples=None, words=(("stop", 0.0), ("it", 0.5)))
    assert _word_at_each_frame(speech, ["it", "stop"], mel_frames=6).tolist() == [2, 2, 2]


def test_spoken_words_follow_each_other_to_the_end():
    speech = speak("start a timer of 50 minutes", "en-us", Prosody("f2", 180, 50, 50))
    said = [word for word, _ in speech.words]
    numbers = _word_at_each_frame(speech, sorted(said), mel_frames=-(-len(speech.samples) // HOP))
    assert [sorted(said)[number - 1] for number in torch.unique_consecutive(numbers)] == said
    # A frame lasts 40 ms: each word has as many as it is long.
    starts = [start_s for _, start_s in speech.words]
    first = {word: numbers.tolist().index(sorted(said).index(word) + 1) for word in said}
    assert all(abs((first[word] + 0.5) * 0.04 - start_s) <= 0.04 for word, start_s in zip(said, starts, strict=True))
