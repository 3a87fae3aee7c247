"""The same sound is found, however it was stored; other sounds are not."""

import io
from itertools import combinations

import numpy as np
import pytest
import soundfile

from blsp.data import audio
from blsp.data.fingerprints import LARGEST_DISTANCE, Print, Prints, alike, print_of, repeated
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
    assert list(alike(Prints([copy]), Prints([original]))) == [("b", "a")]
    assert list(repeated(Prints([original, copy]))) == []


def test_the_telephone_band_leaves_the_sound_alike():
    samples = spoken(TEXTS[0], 2)
    narrow = audio.resample(audio.resample(samples, RATE_HZ, 8_000), 8_000, RATE_HZ)[: samples.size]
    assert list(alike(Prints([print_of("b", narrow, RATE_HZ)]), Prints([print_of("a", samples, RATE_HZ)])))


def test_like_sentences_of_one_voice_are_not_alike():
    prints = [print_of(f"{text} {seed}", spoken(text, seed), RATE_HZ) for text in TEXTS for seed in range(4)]
    others = [pair for pair in combinations(prints, 2) if pair[0].id[:-1] != pair[1].id[:-1]]
    assert min(distance(*pair) for pair in others) > 1.5 * LARGEST_DISTANCE
    assert list(alike(Prints(prints[:4]), Prints(prints[4:]))) == []


def test_a_recording_is_found_again_though_a_codec_rounds_otherwise():
    samples = spoken(TEXTS[0], 1)
    one, two = (print_of(name, stored(samples, format=name), RATE_HZ) for name in ("WAV", "FLAC"))
    other = print_of("other", spoken(TEXTS[1], 1), RATE_HZ)
    assert list(repeated(Prints([one, other, two]))) == [("FLAC", "WAV")]
    german = print_of("de", samples, RATE_HZ, translation="Mach das Licht an.")
    assert list(repeated(Prints([one, german]))) == []
    assert list(repeated(Prints())) == list(alike(Prints([one]), Prints())) == []


def test_a_clip_shorter_than_a_window_has_a_print():
    assert len(print_of("a", np.ones(10, np.float32), RATE_HZ).bits) == 32


def test_of_many_those_are_found_that_comparing_each_with_each_finds():
    rng = np.random.default_rng(1)
    bits = rng.integers(0, 256, (600, 32), dtype=np.uint8)
    # Every third is a copy of one before it with up to 40 bits flipped, of another translation or length now and then.
    prints = []
    for number in range(600):
        if number % 3 == 2:
            bits[number] = bits[number - 1 - number % 7]
            flipped = np.unpackbits(bits[number])
            flipped[rng.choice(256, rng.choice([0, 2, 4, 5, 31, 32, 33]), replace=False)] ^= 1
            bits[number] = np.packbits(flipped)
        length_s = [2.0, 2.0005, 2.09, 2.2][rng.integers(4)]
        prints.append(Print(str(number), bits[number].tobytes(), length_s, [None, "hallo"][number % 5 == 0]))

    def near(one, other, bits, tolerance_s):
        return distance(one, other) <= bits and abs(one.duration_s - other.duration_s) <= tolerance_s

    same = {
        one.id: next(o.id for o in prints[:at] if near(one, o, 4, 0.001) and o.translation == one.translation)
        for at, one in enumerate(prints)
        if any(near(one, o, 4, 0.001) and o.translation == one.translation for o in prints[:at])
    }
    assert len(same) > 20 and dict(repeated(Prints(prints))) == same
    held_out, rest = prints[::2], prints[1::2]
    heard = {
        one.id: next(other.id for other in held_out if near(one, other, 32, 0.1))
        for one in rest
        if any(near(one, other, 32, 0.1) for other in held_out)
    }
    assert len(heard) > 20 and dict(alike(Prints(rest), Prints(held_out))) == heard
    joined = Prints(held_out[:100])
    joined.join(Prints(held_out[100:]))
    assert len(joined) == 300 and dict(alike(Prints(rest), joined)) == heard
