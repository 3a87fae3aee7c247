"""The same recording, found again: in another split, in another format, under another name.

A fingerprint is made of how the balance of neighbouring bands changes with time (Haitsma and Kalker 2002), over the
whole utterance, so that loudness and lossy codecs change few of its bits. (N samples)
"""

import functools
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from blsp.data.bands import WORDS, Bands

BANDS, PIECES = 9, 33  # neighbours of each give 8 x 32 bits
LOWEST_HZ, HIGHEST_HZ = 200, 3600  # what a telephone and every codec lets through
WINDOW_S = 0.064
# Of 256 bits. Seen on espeak-ng's voices: up to 32 between codecs, from 50 between like sentences of one voice.
LARGEST_DISTANCE = 32
LENGTH_TOLERANCE_S = 0.1  # codecs add some milliseconds
# Of one recording, but for the last bit of its samples.
SAME_DISTANCE, SAME_TOLERANCE_S = 4, 0.001


@dataclass(frozen=True)
class Print:
    """What an utterance sounds like: 32 bytes that are alike for alike sound, and its length.

    `translation` tells rows apart that give one recording several references.
    """

    id: str
    bits: bytes
    duration_s: float
    translation: str | None = None

    def as_list(self) -> list[Any]:
        """For JSON."""
        return [self.id, self.bits.hex(), self.duration_s, self.translation]

    @classmethod
    def from_list(cls, found: list[Any]) -> Self:
        """From what as_list gave."""
        id_, bits, *others = found
        return cls(id_, bytes.fromhex(bits), *others)


def print_of(id_: str, samples: NDArray[np.float32], sampling_rate_hz: int, translation: str | None = None) -> Print:
    """The print of an utterance's samples, float32 (N,)."""
    length = round(WINDOW_S * sampling_rate_hz)
    # Four windows in each of PIECES parts of the utterance, from its beginning to its end.
    starts = np.linspace(0, max(samples.size - length, 0), 4 * PIECES).round().astype(int)
    padded = np.pad(samples, (0, max(length - samples.size, 0)))
    frames = np.lib.stride_tricks.sliding_window_view(padded, length)[starts] * np.hanning(length)
    power = np.square(np.abs(np.fft.rfft(frames, axis=1)))
    bands = np.log(power @ _band_filters(length, sampling_rate_hz) + 1e-12).reshape(PIECES, 4, BANDS).mean(axis=1)
    balance = np.diff(bands, axis=1)
    bits = np.packbits(np.diff(balance, axis=0) > 0).tobytes()
    return Print(id_, bits, samples.size / sampling_rate_hz, translation)


@functools.lru_cache(maxsize=4)
def _band_filters(length: int, sampling_rate_hz: int) -> NDArray[np.float64]:
    """Which bins (rfft of the window) belong to which of BANDS, evenly spaced in octaves."""
    edges = np.geomspace(LOWEST_HZ, min(HIGHEST_HZ, sampling_rate_hz / 2), BANDS + 1)
    bins = np.fft.rfftfreq(length, 1 / sampling_rate_hz)[:, None]
    return ((bins >= edges[:-1]) & (bins < edges[1:])).astype(float)


class Prints:
    """Many prints as columns, in the order in which they came: some eighty bytes each."""

    def __init__(self, prints: Iterable[Print] = ()) -> None:
        self._ids: list[pa.Array] = []
        self._bits: list[NDArray[np.uint64]] = []
        self._durations_s: list[NDArray[np.float64]] = []
        self._translations: list[NDArray[np.uint64]] = []
        self.extend(prints)

    def extend(self, prints: Iterable[Print]) -> None:
        """Nothing; the prints come after those that are there."""
        new = list(prints)
        self._ids.append(pa.array([one.id for one in new], pa.string()))
        self._bits.append(np.frombuffer(b"".join(one.bits for one in new), dtype=np.uint64).reshape(-1, WORDS))
        self._durations_s.append(np.array([one.duration_s for one in new], dtype=np.float64))
        self._translations.append(np.array([_digest(one.translation) for one in new], dtype=np.uint64))

    def join(self, others: Self) -> None:
        """Nothing; the other prints come after those that are there."""
        for name, column in vars(self).items():
            column += vars(others)[name]

    def __len__(self) -> int:
        return sum(map(len, self._durations_s))

    def ids(self, rows: NDArray[np.int64]) -> list[str]:
        """The ids of these rows."""
        found: list[str] = pa.chunked_array(self._ids).take(pa.array(rows)).to_pylist()
        return found

    @property
    def bits(self) -> NDArray[np.uint64]:
        """What each sounds like, (N, WORDS)."""
        return np.concatenate(self._bits)

    @property
    def durations_s(self) -> NDArray[np.float64]:
        """How long each is, (N,)."""
        return np.concatenate(self._durations_s)

    @property
    def translations(self) -> NDArray[np.uint64]:
        """A number for each that is the same where the translation is, (N,)."""
        return np.concatenate(self._translations)


def _digest(text: str | None) -> int:
    return 0 if text is None else int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def repeated(prints: Prints) -> Iterator[tuple[str, str]]:
    """The id of each that is the same recording as one before it, with the same translation, and of the first such."""
    bits, durations_s, translations = prints.bits, prints.durations_s, prints.translations
    # Exact copies need no search: all have what the first of them has.
    first, copy_of = _distinct(bits, durations_s, translations)
    earliest = first.copy()
    index = Bands(bits[first], durations_s[first], SAME_DISTANCE, SAME_TOLERANCE_S)
    for one, other in index.near(bits[first], durations_s[first]):
        same = (translations[first[one]] == translations[first[other]]) & (other < one)
        np.minimum.at(earliest, one[same], first[other[same]])
    found = earliest[copy_of]
    rows = np.flatnonzero(found < np.arange(len(prints)))
    yield from zip(prints.ids(rows), prints.ids(found[rows]), strict=True)


def alike(prints: Prints, held_out: Prints) -> Iterator[tuple[str, str]]:
    """The id of each that sounds like one that is held out, and of the first such."""
    others, _ = _distinct(held_out.bits, held_out.durations_s)
    own, copy_of = _distinct(prints.bits, prints.durations_s)
    nobody = len(held_out)
    earliest = np.full(len(own), nobody)
    index = Bands(held_out.bits[others], held_out.durations_s[others], LARGEST_DISTANCE, LENGTH_TOLERANCE_S)
    for one, other in index.near(prints.bits[own], prints.durations_s[own]):
        np.minimum.at(earliest, one, others[other])
    found = earliest[copy_of]
    rows = np.flatnonzero(found < nobody)
    yield from zip(prints.ids(rows), held_out.ids(found[rows]), strict=True)


def _distinct(*columns: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows (M,) that are the first with their values, in order, and for each row (N,) which of them it equals."""
    together = np.column_stack([column.view(np.uint64) for column in columns])
    rows = np.ascontiguousarray(together).view(np.dtype((np.void, 8 * together.shape[1]))).ravel()
    _, first, copy_of = np.unique(rows, return_index=True, return_inverse=True)
    order = np.argsort(first)
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    return first[order], places[copy_of]
