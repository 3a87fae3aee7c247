"""What every source gives: utterances, and the rows it could not turn into one."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SPLITS = ("train", "dev", "test")


@dataclass(frozen=True, eq=False)
class Waveform:
    """Mono samples in memory: float32 (N,), nominally within -1 and 1, and their rate in Hz."""

    samples: NDArray[np.float32]
    sampling_rate_hz: int


Audio = Path | Callable[[], Waveform]
"""A file to decode, or a function that makes the samples when they are wanted.

Sources are read more than once (for splits and leaks before any audio is touched), so making the samples
is put off until the row is packed: `functools.partial(speak, sentence, voice)`.
"""


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """One spoken sentence and what is known about it; `None` where a source does not say."""

    id: str
    audio: Audio
    text: str
    speaker: str | None = None
    language: str | None = None
    split: str | None = None
    """One of SPLITS; None leaves the choice to `splits`."""
    start_s: float | None = None
    """Where the utterance begins in its audio, in seconds; None is the beginning."""
    end_s: float | None = None
    """Where it ends, in seconds; None is the end."""
    licence: str | None = None
    translation: str | None = None
    intent: str | None = None
    answer: str | None = None
    source: str
    """The corpus it comes from, as reports name it."""


@dataclass(frozen=True)
class Dropped:
    """A source row that is not packed: `reason` is what it is counted under, `detail` is for the reader."""

    id: str
    reason: str
    detail: str


Row = Utterance | Dropped


class Unusable(ValueError):
    """A fault of one row, which is dropped for it; `reason` is what it is counted under."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
