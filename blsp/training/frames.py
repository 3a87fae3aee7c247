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
    """The encoder frames of these utterances, in one file of fixed places; processes may share it.

    `key` names all that the frames depend on: encoder, audio and how it is encoded. An utterance counts as present
    when its checksum holds, so that a writer killed at any moment leaves nothing that is taken for whole.
    """

    def __init__(
        self, folder: str | Path, key: Sequence[object], ids: Sequence[str], frame_counts: np.ndarray, width: int
    ) -> None:
        self.rows = {id_: row for row, id_ in enumerate(ids)}
        name = hashlib.sha256(repr([*key, *ids, frame_counts.tolist(), width]).encode()).hexdigest()[:24]
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

    def get(self, id_: str) -> torch.Tensor | None:
        """The frames (S, E) of the utterance, None where they are not there yet, or never will be."""
        if id_ not in self.rows:
            return None
        values, expected = self._frames[self._place(id_)], int(self._checksums[self.rows[id_]])
        if expected == 0 or expected != _checksum(values):
            return None
        return torch.from_numpy(np.array(values)).view(-1, self.width)

    def put(self, id_: str, frames: torch.Tensor) -> None:
        """Nothing; the frames (S, E) are kept, if the utterance is one of those told at the start."""
        if id_ in self.rows:
            values = frames.float().cpu().numpy().reshape(-1)
            self._frames[self._place(id_)] = values
            self._checksums[self.rows[id_]] = _checksum(values)

    def _place(self, id_: str) -> slice:
        row = self.rows[id_]
        return slice(self.starts[row] * self.width, self.starts[row + 1] * self.width)


def _checksum(values: np.ndarray) -> int:
    return zlib.crc32(values.tobytes()) or 1  # 0 says that nothing is there


def _file(path: Path, dtype: type, length: int) -> np.memmap:
    """A file of `length` numbers mapped into memory; sparse, so that it takes what was written."""
    with path.open("ab") as stream:
        stream.truncate(length * np.dtype(dtype).itemsize)
    return np.memmap(path, dtype, "r+", shape=(length,))
