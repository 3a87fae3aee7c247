"""Frames of the frozen encoder, kept on disk: a corpus that is seen more than once is encoded once.

Axes: R utterances of the split, S encoder frames of one, E encoder width.
"""

import hashlib
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch


class FrameCache:
    """The encoder frames of a split's utterances, in one file of fixed places; processes may share it.

    `key` names all that the frames depend on: encoder, audio and how it is encoded. A row counts as present when
    its checksum holds, so that a writer killed at any moment leaves nothing that is taken for whole.
    """

    def __init__(self, folder: str | Path, key: Sequence[object], frame_counts: np.ndarray, width: int) -> None:
        name = hashlib.sha256(repr([*key, frame_counts.tolist(), width]).encode()).hexdigest()[:24]
        place = Path(folder) / name
        place.mkdir(parents=True, exist_ok=True)
        self.width = width
        self.starts = np.concatenate([[0], np.cumsum(frame_counts)])
        self._frames = _file(place / "frames.f32", np.float32, int(self.starts[-1]) * width)
        self._checksums = _file(place / "checksums.u32", np.uint32, len(frame_counts))

    @staticmethod
    def bytes_needed(frame_counts: np.ndarray, width: int) -> int:
        """What the cache of such utterances takes on disk."""
        return int(frame_counts.sum()) * width * 4 + len(frame_counts) * 4

    def get(self, row: int) -> torch.Tensor | None:
        """The frames (S, E) of the utterance, None where they are not there yet."""
        start, end = self.starts[row] * self.width, self.starts[row + 1] * self.width
        values = self._frames[start:end]
        expected = int(self._checksums[row])
        if expected == 0 or expected != _checksum(values):
            return None
        return torch.from_numpy(np.array(values)).view(-1, self.width)

    def put(self, row: int, frames: torch.Tensor) -> None:
        """Nothing; the frames (S, E) are kept. They are of the length that was told at the start."""
        values = frames.float().cpu().numpy().reshape(-1)
        start, end = self.starts[row] * self.width, self.starts[row + 1] * self.width
        self._frames[start:end] = values
        self._checksums[row] = _checksum(values)


def _checksum(values: np.ndarray) -> int:
    return zlib.crc32(values.tobytes()) or 1  # 0 says that nothing is there


def _file(path: Path, dtype: type, length: int) -> np.memmap:
    """A file of `length` numbers mapped into memory; sparse, so that it takes what was written."""
    with path.open("ab") as stream:
        stream.truncate(length * np.dtype(dtype).itemsize)
    return np.memmap(path, dtype, "r+", shape=(length,))
