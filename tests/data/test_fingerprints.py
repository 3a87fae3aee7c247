"""The same sound is found, however it was stored; other sounds are not."""

import io
from itertools import combinations

import numpy as np
import pytest
import soundfile

from blsp.data import audio
from blsp.data.fingerprints import LARGEST_DISTANCE, alike, print_of, repeated
from blsp.miniature.synthesis import SAMPLING_RATE_HZ, random_prosody, speak

RATE_HZ = 16_000
TEXTS = ["Turn on the light in the kitchen, please.", "Turn on the light in the bedroom, please.", "What is the time?"]


def spoken(text, seed, rate_hz=RATE_HZ):
    import random

    samples = speak(text, "en-us", random_prosody("train", random.Random(seed))).samples
    return audio.resample(samples, SAMPLING_RATE_HZ, rate_hz)


def stored(samples, rate_hz=RATE_HZ, **how):
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate_hz, **how)
    found, rate = audio.decode(stream.getvalue())
    return audio.resample(found, rate, RATE_HZ)


def distance(one, other):
    return np.bitwise_count(np.frombuffer(one.bits, np.uint8) ^ np.frombuffer(other.bits, np.uint8)).sum()


@pytest.mark.parametrize("how", [{"format": "MP3"}, {"format": "OGG"}, {"format": "OGG", "subtype": "OPUS"}])
@pytest.mark.parametrize("gain", [1.0, 0.2])
def test_a_codec_and_another_loudness_leave_the_sound_alike(how, gain):
    samples = spoken(TEXTS[0], 1)
    original, copy = print_of("a", samples, RATE_HZ), print_of("b", stored(gain * samples, **how), RATE_HZ)
    assert list(alike([copy], [original])) == [(copy, original)]
    assert list(repeated([original, copy])) == []


def test_the_telephone_band_leaves_the_sound_alike():
    samples = spoken(TEXTS[0], 2)
    narrow = audio.resample(audio.resample(samples, RATE_HZ, 8_000), 8_000, RATE_HZ)[: samples.size]
    assert list(alike([print_of("b", narrow, RATE_HZ)], [print_of("a", samples, RATE_HZ)]))


def test_like_sentences_of_one_voice_are_not_alike():
    prints = [print_of(f"{text} {seed}", spoken(text, seed), RATE_HZ) for text in TEXTS for seed in range(4)]
    others = [pair for pair in combinations(prints, 2) if pair[0].id[:-1] != pair[1].id[:-1]]
    assert min(distance(*pair) for pair in others) > 1.5 * LARGEST_DISTANCE
    assert list(alike(prints[:4], prints[4:])) == []


def test_a_recording_is_found_again_though_a_codec_rounds_otherwise():
    samples = spoken(TEXTS[0], 1)
    one, two = (print_of(name, stored(samples, format=name), RATE_HZ) for name in ("WAV", "FLAC"))
    other = print_of("other", spoken(TEXTS[1], 1), RATE_HZ)
    assert list(repeated([one, other, two])) == [(two, one)]
    german = print_of("de", samples, RATE_HZ, translation="Mach das Licht an.")
    assert list(repeated([one, german])) == []
    assert list(repeated([])) == list(alike([one], [])) == []


def test_a_clip_shorter_than_a_window_has_a_print():
    assert len(print_of("a", np.ones(10, np.float32), RATE_HZ).bits) == 32
