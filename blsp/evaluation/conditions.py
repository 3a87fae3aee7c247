"""What is done to test audio to see how much it bears: noise, tempo, the telephone, voices of another kind.

A condition is a function from samples, float32 mono (N,), their rate in Hz and the item's id to other samples. An item
gets the same noise in every system and run, and the same at each level of it: only its loudness differs.
"""

import hashlib
import io
import random
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from blsp.data.audio import resample
from blsp.data.quality import FRAME_S, QUIET_DB
from blsp.errors import BlspError
from blsp.evaluation.answers import CLEAN
from blsp.params import Condition, Miniature, Params

Samples = NDArray[np.float32]
Alter = Callable[[Samples, int, str], Samples]

PEAK = 0.99  # what is louder is made softer as a whole, which leaves the signal-to-noise ratio as it is
TELEPHONE_HZ = 8_000
TELEPHONE_BAND_HZ = (300, 3_400)
TELEPHONE_TAPS = 511  # 60 dB down at 100 and 3,600 Hz
# A voice's lowest period is about 12 ms; the library's own 120 ms, made for music, smear what is between two sounds.
STRETCH_BLOCK_S, STRETCH_HOP_S = 0.04, 0.01


def conditions(params: Params, clips: Sequence[Samples]) -> dict[str, Alter]:
    """The conditions of `evaluate.conditions` by name, `clean` before them.

    `clips` are the test split's, all of them: noise has their long-term spectrum. Only the miniature's sentences can
    be spoken anew: for another corpus effect_voices are left out, which is said.
    """
    alter: dict[str, Alter] = {CLEAN: lambda samples, rate_hz, id_: samples}
    is_miniature = {source.name for source in params.corpus.sources} == {"miniature"}
    for name, condition in params.evaluate.conditions.items():
        if condition.kind == "effect_voices" and not is_miniature:
            print(f"evaluate: the corpus is not the miniature alone; the condition {name} is left out")
            continue
        alter[name] = _condition(condition, params.miniature, clips)
    return alter


def _condition(condition: Condition, miniature: Miniature, clips: Sequence[Samples]) -> Alter:
    if condition.tempo is not None:
        return partial(with_tempo, tempo=condition.tempo)
    if condition.kind == "telephone":
        return telephone
    if condition.kind == "effect_voices":
        return _with_effect_voices(miniature)
    assert condition.snr_db is not None
    spectrum = np.ones(1) if condition.kind == "white_noise" else long_term_spectrum(clips)
    return partial(with_noise, snr_db=condition.snr_db, spectrum=spectrum)


def with_noise(samples: Samples, rate_hz: int, id_: str, snr_db: float, spectrum: NDArray[np.float64]) -> Samples:
    """The samples (N,) in stationary noise of this power spectrum (any number of bins from 0 Hz to half the rate).

    The ratio is of the speech where there is some (frames of 25 ms within 40 dB of the loudest) to the noise.
    """
    seed = int.from_bytes(hashlib.sha256(id_.encode()).digest()[:8])
    bins = np.fft.rfft(np.random.default_rng(seed).standard_normal(len(samples)))
    power = np.interp(np.linspace(0, 1, len(bins)), np.linspace(0, 1, len(spectrum)), spectrum)
    noise = np.fft.irfft(bins * np.sqrt(power), len(samples))
    wanted = speech_power(samples, rate_hz) / 10 ** (snr_db / 10)
    return _unclipped(samples + noise * np.sqrt(wanted / np.square(noise).mean()))


def with_tempo(samples: Samples, rate_hz: int, id_: str, tempo: float) -> Samples:
    """The samples `tempo` times as fast, (N / tempo,), at the same pitch (Signalsmith Stretch)."""
    from python_stretch import Signalsmith

    stretch = Signalsmith.Stretch(0)
    stretch.configure(1, round(STRETCH_BLOCK_S * rate_hz), round(STRETCH_HOP_S * rate_hz))
    stretch.setTimeFactor(tempo)
    return _unclipped(np.asarray(stretch.process(samples[None]))[0])


def telephone(samples: Samples, rate_hz: int, id_: str) -> Samples:
    """The samples (N,) as a telephone carries them: 300 to 3,400 Hz, at 8 kHz, in the 8 bits of G.711 (mu-law)."""
    import soundfile
    from scipy.signal import fftconvolve, firwin

    band = firwin(TELEPHONE_TAPS, TELEPHONE_BAND_HZ, pass_zero=False, fs=TELEPHONE_HZ)
    narrow = fftconvolve(resample(samples, rate_hz, TELEPHONE_HZ), band, mode="same")
    line = io.BytesIO()
    soundfile.write(line, _unclipped(narrow), TELEPHONE_HZ, format="WAV", subtype="ULAW")
    line.seek(0)
    heard, _ = soundfile.read(line, dtype="float32")
    return _unclipped(resample(heard, TELEPHONE_HZ, rate_hz)[: len(samples)])


def long_term_spectrum(clips: Sequence[Samples]) -> NDArray[np.float64]:
    """The mean power spectrum of all clips together, from 0 Hz to half their rate; every sample counts alike."""
    from scipy.signal import welch

    _, power = welch(np.concatenate(clips), nperseg=512)
    return power


def speech_power(samples: Samples, rate_hz: int) -> float:
    """The mean square of the samples where somebody speaks: in frames of 25 ms within 40 dB of the loudest."""
    length = min(round(FRAME_S * rate_hz), len(samples))
    frames = samples[: len(samples) // length * length].reshape(-1, length)
    power = np.square(frames, dtype=np.float64).mean(axis=1)
    return float(power[power > power.max() * 10 ** (QUIET_DB / 10)].mean())


def _with_effect_voices(settings: Miniature) -> Alter:
    """The miniature's test sentences, spoken anew by voices that neither training nor testing otherwise has."""
    from blsp.miniature.corpus import ESPEAK_LANGUAGES, utterances
    from blsp.miniature.synthesis import EXCLUDED_VOICES, SAMPLING_RATE_HZ, Prosody, speak

    spoken = {utterance.id: utterance for utterance in utterances(settings) if utterance.split == "test"}

    def alter(samples: Samples, rate_hz: int, id_: str) -> Samples:
        if id_ not in spoken:
            raise BlspError(f"{id_} is no test sentence of the miniature, so effect_voices cannot speak it anew")
        rng = random.Random(f"effect-voices-{id_}")
        voice = rng.choice(EXCLUDED_VOICES)
        prosody = Prosody(voice, rng.randint(165, 205), rng.randint(35, 65), rng.randint(35, 65))
        language = ESPEAK_LANGUAGES[spoken[id_].language or "en"]
        return resample(speak(spoken[id_].text, language, prosody).samples, SAMPLING_RATE_HZ, rate_hz)

    return alter


def _unclipped(samples: NDArray[np.floating]) -> Samples:
    peak = float(np.abs(samples).max(initial=0))
    return np.asarray(samples * (PEAK / peak) if peak > PEAK else samples, dtype=np.float32)
