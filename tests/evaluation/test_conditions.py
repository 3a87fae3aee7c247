"""What is done to test audio: as loud, as long and as narrow as it says, the same for an item every time."""

import numpy as np
import pytest
from scipy.signal import welch

from blsp.errors import BlspError
from blsp.evaluation.conditions import conditions, long_term_spectrum, speech_power, telephone, with_noise, with_tempo
from blsp.miniature.corpus import utterances
from blsp.params import Condition, Source, load_params
from tests.trained import PARAMS

RATE_HZ = 16_000


def tones(*tones_hz: float, seconds: float = 2.0) -> np.ndarray:
    time = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
    return (0.1 * sum(np.sin(2 * np.pi * hz * time) for hz in tones_hz)).astype(np.float32)


def decibel(power: float) -> float:
    return 10 * np.log10(power)


def level_db(samples: np.ndarray, hz: float) -> float:
    frequencies, power = welch(samples, RATE_HZ, nperseg=4096)
    return decibel(power[np.abs(frequencies - hz).argmin()])


def strongest_hz(samples: np.ndarray) -> float:
    frequencies, power = welch(samples, RATE_HZ, nperseg=4096)
    return frequencies[power.argmax()]


@pytest.mark.parametrize("snr_db", [20, 0, -5])
def test_noise_is_as_loud_as_it_says(snr_db):
    speech = tones(300, 1000)
    noise = with_noise(speech, RATE_HZ, "u1", snr_db, np.ones(1)) - speech
    assert decibel(np.square(speech).mean() / np.square(noise).mean()) == pytest.approx(snr_db, abs=0.01)


def test_silence_does_not_make_noise_softer():
    speech, silence = tones(300), np.zeros(RATE_HZ, np.float32)
    assert speech_power(np.concatenate([silence, speech, silence]), RATE_HZ) == pytest.approx(
        np.square(speech).mean(), rel=0.01
    )


def test_an_item_has_the_same_noise_at_every_level_and_every_item_its_own():
    speech = tones(300)
    loud, soft = (with_noise(speech, RATE_HZ, "u1", snr_db, np.ones(1)) - speech for snr_db in (10, 20))
    np.testing.assert_allclose(loud, soft * 10**0.5, atol=1e-5)
    other = with_noise(speech, RATE_HZ, "u2", 20, np.ones(1)) - speech
    assert abs(np.corrcoef(soft, other)[0, 1]) < 0.05


def test_speech_noise_has_the_clips_own_spectrum():
    rng = np.random.default_rng(1)
    clips = [(tones(500, 3000) + 1e-3 * rng.standard_normal(2 * RATE_HZ)).astype(np.float32) for _ in range(3)]
    noise = with_noise(clips[0], RATE_HZ, "u1", 0, long_term_spectrum(clips)) - clips[0]
    for hz in (500, 3000):
        assert level_db(noise, hz) > level_db(noise, 1500) + 20


def test_what_would_clip_is_made_softer_as_a_whole():
    speech = tones(300) * 9
    noisy = with_noise(speech, RATE_HZ, "u1", 0, np.ones(1))
    assert np.abs(noisy).max() == pytest.approx(0.99, abs=1e-6)
    wanted = np.dot(noisy, speech) / np.dot(speech, speech) * speech
    assert decibel(np.square(wanted).mean() / np.square(noisy - wanted).mean()) == pytest.approx(0, abs=0.3)


@pytest.mark.parametrize("tempo", [0.8, 1.25])
def test_tempo_changes_the_length_and_not_the_pitch(tempo):
    speech = tones(220)
    changed = with_tempo(speech, RATE_HZ, "u1", tempo)
    assert changed.dtype == np.float32
    assert len(changed) == pytest.approx(len(speech) / tempo, abs=1)
    assert strongest_hz(changed) == pytest.approx(strongest_hz(speech), abs=4)
    np.testing.assert_array_equal(changed, with_tempo(speech, RATE_HZ, "u1", tempo))


def test_a_telephone_lets_its_band_pass_alone():
    speech = tones(100, 1000, 3800, 6000)
    heard = telephone(speech, RATE_HZ, "u1")
    assert heard.shape == speech.shape and heard.dtype == np.float32
    assert level_db(heard, 1000) == pytest.approx(level_db(speech, 1000), abs=0.5)
    for hz in (100, 3800, 6000):
        assert level_db(heard, hz) < level_db(speech, hz) - 35


def test_a_telephone_counts_in_eight_bits():
    narrow = tones(1000)
    heard = telephone(narrow, RATE_HZ, "u1")[4000:-4000]
    difference = heard - narrow[4000:-4000]
    assert -45 < decibel(np.square(difference).mean() / np.square(narrow).mean()) < -30  # G.711: about 38 dB


def test_conditions_are_those_of_the_params_with_clean_before_them():
    params = load_params(PARAMS)
    clip = tones(300, 1000)
    named = conditions(params, [clip])
    assert list(named) == ["clean", *params.evaluate.conditions]
    np.testing.assert_array_equal(named["clean"](clip, RATE_HZ, "u1"), clip)
    noise = named["noise_0db"](clip, RATE_HZ, "u1") - clip
    assert decibel(np.square(clip).mean() / np.square(noise).mean()) == pytest.approx(0, abs=0.01)
    assert len(named["fast"](clip, RATE_HZ, "u1")) == pytest.approx(len(clip) / 1.25, abs=1)


def test_effect_voices_say_the_same_sentence_otherwise():
    params = load_params(PARAMS)
    settings = params.miniature.model_copy(update={"train_utterances": 1, "dev_utterances": 1, "test_utterances": 3})
    evaluate = params.evaluate.model_copy(update={"conditions": {"far": Condition(kind="effect_voices")}})
    far = conditions(params.model_copy(update={"miniature": settings, "evaluate": evaluate}), [])["far"]
    spoken = [utterance for utterance in utterances(settings) if utterance.split == "test"]
    samples = spoken[0].audio().samples
    anew = far(samples, RATE_HZ, spoken[0].id)
    assert 0.5 < len(anew) / len(samples) < 2 and len(anew) != len(samples)
    assert np.abs(anew).max() == pytest.approx(0.5, abs=0.01)
    with pytest.raises(BlspError, match="u1 is no test sentence of the miniature"):
        far(samples, RATE_HZ, "u1")


def test_effect_voices_are_left_out_of_other_corpora(capsys):
    params = load_params(PARAMS)
    corpus = params.corpus.model_copy(update={"sources": [Source(name="librispeech", path="LibriSpeech")]})
    assert "effect_voices" not in conditions(params.model_copy(update={"corpus": corpus}), [tones(300)])
    assert "the condition effect_voices is left out" in capsys.readouterr().out
