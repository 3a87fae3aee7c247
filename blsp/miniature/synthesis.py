"""Speech of the miniature: espeak-ng through ctypes, from the library and voices that espeakng-loader carries."""

import ctypes
import functools
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from blsp.errors import BlspError

SAMPLING_RATE_HZ = 16_000

# Voice variants of espeak-ng. Variants that are one voice in several settings (steph, iven, klatt, ...) are
# kept in one split, so that a voice of dev or test was not heard in training under another name.
TEST_VOICES = ("f2", "m3", "m7", "linda", "david", "Andrea", "travis", "steph", "steph2", "steph3")
DEV_VOICES = ("f4", "m5", "belinda", "quincy")
# Whispers, robots and other special effects: speech that no recogniser of this size should spend itself on.
EXCLUDED_VOICES = (
    *("whisper", "whisperf", "croak", "fast", "Demonic", "UniRobot", "anikaRobot", "AnxiousAndy", "Tweaky", "Alicia"),
    *("Marco", "robosoft", *(f"robosoft{number}" for number in range(2, 9)), "RicishayMax2", "RicishayMax3"),
)

_SYNCHRONOUS = 2
_CHARS_UTF8 = 1
_RATE, _PITCH, _RANGE = 1, 3, 4
_LIST_END, _WORD = 0, 1


class _Event(ctypes.Structure):
    """espeak_EVENT of speak_lib.h."""

    _fields_: ClassVar = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position_ms", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    ]


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


@dataclass(frozen=True)
class Prosody:
    """How a sentence is spoken: the espeak-ng variant, words a minute, and pitch and its range (0 to 99)."""

    voice: str
    rate_wpm: int
    pitch: int
    pitch_range: int


def voices_of(split: str) -> tuple[str, ...]:
    """The voice variants of one split (train, dev, test), sorted; no variant is in two splits."""
    if split == "test":
        return tuple(sorted(TEST_VOICES))
    if split == "dev":
        return tuple(sorted(DEV_VOICES))
    import espeakng_loader

    folder = Path(espeakng_loader.get_data_path()) / "voices" / "!v"
    held_out = {*TEST_VOICES, *DEV_VOICES, *EXCLUDED_VOICES}
    return tuple(sorted(file.name for file in folder.iterdir() if file.name not in held_out and " " not in file.name))


def random_prosody(split: str, rng: random.Random) -> Prosody:
    """A voice of the split with a random rate, pitch and pitch range."""
    return Prosody(rng.choice(voices_of(split)), rng.randint(165, 205), rng.randint(35, 65), rng.randint(35, 65))


@dataclass(frozen=True, eq=False)
class Speech:
    """Spoken text: float32 mono samples (N,) at SAMPLING_RATE_HZ, and when each word begins, in seconds."""

    samples: np.ndarray
    words: tuple[tuple[str, float], ...]


def speak(text: str, language: str, prosody: Prosody) -> Speech:
    """The spoken text, peak 0.5, with a short silence at both ends.

    espeak-ng keeps the phase of its oscillators from one text to the next: the same texts in the same order give
    the same samples in every process. Raises BlspError where it has no such voice or says nothing.
    """
    return _synthesizer().speak(text, language, prosody)


@functools.cache
def _synthesizer() -> "_Synthesizer":
    return _Synthesizer()


class _Synthesizer:
    """espeak-ng, started once a process: the library holds one global state, for one thread."""

    def __init__(self) -> None:
        import espeakng_loader
        from scipy.signal import firwin

        self._library: Any = ctypes.CDLL(espeakng_loader.get_library_path())
        data_folder = str(espeakng_loader.get_data_path()).encode()
        self._rate_hz = self._library.espeak_Initialize(_SYNCHRONOUS, 0, data_folder, 0)
        if self._rate_hz <= 0:
            raise BlspError(f"espeak-ng did not start from {data_folder.decode()}; reinstall espeakng-loader")
        longest = max(SAMPLING_RATE_HZ, self._rate_hz) // math.gcd(SAMPLING_RATE_HZ, self._rate_hz)
        self._low_pass = firwin(20 * longest + 1, 1 / longest, window=("kaiser", 5.0))  # resample_poly's own, made once
        self._chunks: list[np.ndarray] = []
        self._words: list[tuple[int, int, int]] = []
        self._callback = _CALLBACK(self._collect)  # kept: ctypes frees a callback nobody holds
        self._library.espeak_SetSynthCallback(self._callback)

    def _collect(self, samples: Any, count: int, events: Any) -> int:
        if samples and count > 0:
            self._chunks.append(np.ctypeslib.as_array(samples, shape=(count,)).copy())
        index = 0
        while events[index].type != _LIST_END:
            if events[index].type == _WORD:
                event = events[index]
                self._words.append((event.text_position - 1, event.length, event.audio_position_ms))
            index += 1
        return 0

    def speak(self, text: str, language: str, prosody: Prosody) -> Speech:
        from scipy.signal import resample_poly

        library, name = self._library, f"{language}+{prosody.voice}"
        library.espeak_ng_SetRandSeed(ctypes.c_long(1))  # of breath and noise; espeak-ng seeds it with the time
        if library.espeak_SetVoiceByName(name.encode()) != 0:
            raise BlspError(f"espeak-ng has no voice {name!r}")
        library.espeak_SetParameter(_RATE, prosody.rate_wpm, 0)
        library.espeak_SetParameter(_PITCH, prosody.pitch, 0)
        library.espeak_SetParameter(_RANGE, prosody.pitch_range, 0)
        self._chunks.clear()
        self._words.clear()
        encoded = text.encode("utf-8")
        library.espeak_Synth(encoded, len(encoded) + 1, 0, 0, 0, _CHARS_UTF8, None, None)
        library.espeak_Synchronize()
        if not self._chunks:
            raise BlspError(f"espeak-ng said nothing for {text!r} with voice {name!r}")
        samples = np.concatenate(self._chunks).astype(np.float32)
        samples = resample_poly(samples, SAMPLING_RATE_HZ, self._rate_hz, window=self._low_pass).astype(np.float32)
        samples /= 2 * np.abs(samples).max() + 1e-9
        first, last = _loud(samples)
        words = []
        end = 0
        for at, length, ms in self._words:
            if at >= end:  # German "25" is announced again where its 5 has been said
                words.append((text[at : at + length], max(ms / 1000 - first / SAMPLING_RATE_HZ, 0.0)))
                end = at + length
        return Speech(samples[first:last], tuple(words))


def _loud(samples: np.ndarray, floor: float = 0.005, margin: int = SAMPLING_RATE_HZ // 20) -> tuple[int, int]:
    """Where the sound begins and ends, with a margin of 50 ms on both sides."""
    loud = np.flatnonzero(np.abs(samples) > floor)
    return max(int(loud[0]) - margin, 0), int(loud[-1]) + margin
