"""What every source gives: utterances, and the rows it could not turn into one."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Union

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from cloudpathlib import S3Path

SPLITS = ("train", "dev", "test")
SPLIT_WORDS = dict.fromkeys(("train", "training"), "train")
SPLIT_WORDS |= dict.fromkeys(("dev", "devel", "development", "val", "valid", "validation"), "dev")
SPLIT_WORDS |= dict.fromkeys(("test", "testing"), "test")


@dataclass(frozen=True, eq=False)
class Waveform:
    """Mono samples in memory: float32 (N,), nominally within -1 and 1, and their rate in Hz."""

    samples: NDArray[np.float32]
    sampling_rate_hz: int


Audio = Union[Path, "S3Path", bytes, Callable[[], Waveform]]
"""A file to decode, here or in S3, its contents, or a function that makes the samples when they are wanted.

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
    ignored: tuple[str, ...] = ()
    """What else its source says of it, by keys that mean nothing here."""


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
        # A row may hold a path or a text of any length, and reports list every row.
        super().__init__(detail if len(detail) <= 1000 else f"{detail[:500]} … {detail[-500:]}")
        self.reason = reason


def quoted(text: str) -> str:
    """The text in quotation marks, for a message: of a long one the beginning."""
    return repr(text if len(text) <= 200 else f"{text[:200]}…")


def is_id(id_: str) -> bool:
    """Whether an utterance can have this id: Shar keeps the audio in a tar under it, and compares what comes back."""
    path = PurePosixPath(f"{id_}.flac")
    return (
        len(id_) <= 200
        and id_.isprintable()
        and not path.is_absolute()
        and ".." not in path.parts
        and str(path.parent / path.stem) == id_
    )


def split_named(name: str) -> str | None:
    """The one of SPLITS that the name of a folder, file or split says: `train-clean-100`, `cuts_valid.jsonl`."""
    words = re.split(r"[\W_\d]+", name.lower())
    return next((SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS), None)
