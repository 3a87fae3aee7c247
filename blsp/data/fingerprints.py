"""The same recording, found again: in another split, in another format, under another name.

A fingerprint is made of how the balance of neighbouring bands changes with time (Haitsma and Kalker 2002), over the
whole utterance, so that loudness and lossy codecs change few of its bits. (N samples)
"""

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

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
    """Prints in the order in which they came, to be searched by sound."""

    def __init__(self, prints: Sequence[Print]) -> None:
        self.order = sorted(range(len(prints)), key=lambda at: prints[at].duration_s)
        self.prints = [prints[at] for at in self.order]
        self.durations = np.array([one.duration_s for one in self.prints])
        self.bits = np.frombuffer(b"".join(one.bits for one in self.prints), dtype=np.uint64).reshape(-1, 4)

    def like(self, one: Print, distance: int, tolerance_s: float) -> list[Print]:
        """Those that differ from `one` in so many bits and so much length at most, as they came."""
        begin, end = np.searchsorted(self.durations, [one.duration_s - tolerance_s, one.duration_s + tolerance_s])
        apart = np.bitwise_count(self.bits[begin:end] ^ np.frombuffer(one.bits, dtype=np.uint64)).sum(axis=1)
        near = begin + np.flatnonzero(apart <= distance)
        return [self.prints[at] for at in sorted(near.tolist(), key=self.order.__getitem__)]


def repeated(prints: Sequence[Print]) -> Iterator[tuple[Print, Print]]:
    """Each that is the same recording as one before it, with the same translation, and the first such."""
    others = Prints(prints)
    for one in prints:
        same = others.like(one, SAME_DISTANCE, SAME_TOLERANCE_S)
        first = next((other for other in same if other.translation == one.translation), one)
        if first is not one:
            yield one, first


def alike(prints: Iterable[Print], held_out: Sequence[Print]) -> Iterator[tuple[Print, Print]]:
    """Each that sounds like one that is held out, and that one."""
    others = Prints(held_out)
    for one in prints:
        for other in others.like(one, LARGEST_DISTANCE, LENGTH_TOLERANCE_S)[:1]:
            yield one, other
