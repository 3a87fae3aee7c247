"""Frames of the frozen encoder, kept on disk: a corpus that is seen more than once is encoded once.

Axes: R utterances of the split, S encoder frames of one, E encoder width.
"""

import contextlib
import hashlib
import os
import shutil
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from tqdm import tqdm

from blsp.errors import BlspError
from blsp.model.modeling import BlspForConditionalGeneration
from blsp.model.processing import BlspProcessor
from blsp.training.switches import processes_per_machine

BATCH_FRAMES = 8192  # encoder frames encoded at once, padding counted


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
        self.place = Path(folder) / name
        self.place.mkdir(parents=True, exist_ok=True)
        self.place.touch()  # when it was last wanted
        self.width, self.frame_counts = width, frame_counts
        self.starts = np.concatenate([[0], np.cumsum(frame_counts)])
        self._frames = _file(self.place / "frames.f32", np.float32, int(self.starts[-1]) * width)
        self._checksums = _file(self.place / "checksums.u32", np.uint32, len(frame_counts))

    @staticmethod
    def bytes_needed(frame_counts: np.ndarray, width: int) -> int:
        """What the cache of such utterances takes on disk."""
        return int(frame_counts.sum()) * width * 4 + len(frame_counts) * 4

    def get(self, id_: str) -> torch.Tensor | None:
        """The frames (S, E) of the utterance, None where they are not there yet, or never will be."""
        row = self.rows.get(id_)
        values = None if row is None else self._values(row)
        return None if values is None else torch.from_numpy(values).view(-1, self.width)

    def put(self, row: int, frames: torch.Tensor) -> None:
        """Nothing; the frames (S, E) of this row are kept."""
        values = frames.float().cpu().numpy().reshape(-1)
        self._frames[self._place(row)] = values
        self._checksums[row] = _checksum(values)

    def fill(
        self, model: BlspForConditionalGeneration, processor: BlspProcessor, load_samples: Callable[[int], np.ndarray]
    ) -> None:
        """Nothing; every utterance's frames are there. The processes of a machine share the work.

        Batches are the same whatever is there already and however many processes there are: the last bits of a
        frame depend on the batch it was encoded in, and the frames of an utterance are to be the same ever after.
        """
        state = PartialState()
        order = np.argsort(self.frame_counts, kind="stable")
        batches = _batches(order, self.frame_counts, BATCH_FRAMES)
        mine = batches[state.local_process_index :: processes_per_machine()]
        stale = [batch for batch in mine if any(self._values(row) is None for row in batch)]
        for batch in tqdm(
            stale, desc="encode", unit="batch", mininterval=2, disable=not (stale and state.is_main_process)
        ):
            frames, counts = model.encode_audio(**processor.features([load_samples(row) for row in batch]))
            for row, clip, count in zip(batch, frames, counts.tolist(), strict=True):
                self.put(row, clip[:count])
        state.wait_for_everyone()

    def make_room(self, limit_bytes: float) -> None:
        """Nothing; other caches of the folder are removed, the longest unwanted first, until all are in the limit."""
        if not PartialState().is_local_main_process:
            return
        caches: dict[Path, tuple[float, int]] = {}  # when last wanted, bytes
        for place in self.place.parent.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another training may be making room too
                caches[place] = place.stat().st_mtime, sum(file.stat().st_size for file in place.iterdir())
        for place in sorted(caches.keys() - {self.place}, key=caches.__getitem__):
            if sum(size for _, size in caches.values()) > limit_bytes:
                shutil.rmtree(place, ignore_errors=True)
                del caches[place]

    def _values(self, row: int) -> np.ndarray | None:
        """The numbers of this row, read once; None where they are not there, or not whole."""
        if not (expected := int(self._checksums[row])):
            return None
        values = np.array(self._frames[self._place(row)])
        return values if _checksum(values) == expected else None

    def _place(self, row: int) -> slice:
        return slice(self.starts[row] * self.width, self.starts[row + 1] * self.width)


def _batches(order: np.ndarray, frame_counts: np.ndarray, budget: int) -> list[list[int]]:
    """The rows in this order, shortest first, cut where their padded frames would be more than the budget."""
    batches: list[list[int]] = []
    for row in order.tolist():
        if not batches or (len(batches[-1]) + 1) * frame_counts[row] > budget:
            batches.append([])
        batches[-1].append(row)
    return batches


def _checksum(values: np.ndarray) -> int:
    return zlib.crc32(values.data) or 1  # 0 says that nothing is there


def _file(path: Path, dtype: type, length: int) -> np.memmap:
    """A file of `length` numbers mapped into memory, with room taken for all: a write that found none would kill us.

    Raises BlspError where there is no room.
    """
    length_bytes = length * np.dtype(dtype).itemsize
    try:
        with path.open("ab") as stream:
            os.posix_fallocate(stream.fileno(), 0, length_bytes)
    except OSError as error:
        raise BlspError(
            f"{path}: no room for encoder frames of {length_bytes / 2**30:.2f} GiB ({error.strerror}); make room, set "
            "BLSP_SCRATCH to a folder that has some, or train.encoder_cache_gib to 0"
        ) from None
    return np.memmap(path, dtype, "r+", shape=(length,))
