"""One split in memory as columns: where each utterance's audio lies, what was said, what the LLM wrote.

Training picks utterances in an order of its own, and reads the audio of each straight from its place in the
shard. A row takes some hundred bytes, so a million rows fit beside the models.
"""

import hashlib
import io
import json
import math
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from blsp.data.shards import CONTINUATIONS_DIR, CORPUS_DIR, Shard, iter_shards, read_field
from blsp.errors import BlspError
from blsp.files import sha256_of
from blsp.prompts import Prompt
from blsp.training.examples import Example

_SPOKEN = {"id": pa.string(), "transcript": pa.string(), "num_samples": pa.int64()}
_PLACE = {"shard": pa.int32(), "offset": pa.int64(), "size": pa.int64()}
_WRITTEN = {
    "transcript": pa.string(),
    "instruction": pa.string(),
    "style": pa.string(),  # JSON of Prompt.style; null: the default
    "token_ids": pa.list_(pa.int32()),
    "kept_ids": pa.list_(pa.list_(pa.int32())),
    "kept_logprobs": pa.list_(pa.list_(pa.float32())),
    "kept_temperature": pa.float64(),
}


@dataclass(frozen=True, eq=False)
class SplitIndex:
    """The utterances of one split, in the shards' order: a column a behaviour, null where it was not written."""

    table: pa.Table
    recordings: tuple[Path, ...]
    behaviours: tuple[str, ...]

    def __len__(self) -> int:
        return self.table.num_rows

    def part(self, share: float) -> "SplitIndex":
        """This share of the utterances, rounded up, chosen by their ids alone: a smaller part lies in a larger one."""
        if share == 1:
            return self
        keys = [hashlib.sha256(id_.encode()).digest() for id_ in self.table["id"].to_pylist()]
        chosen = np.zeros(len(self), dtype=bool)
        chosen[sorted(range(len(self)), key=keys.__getitem__)[: math.ceil(share * len(self))]] = True
        return replace(self, table=self.table.filter(pa.array(chosen)))

    @property
    def num_samples(self) -> np.ndarray:
        """Samples of each utterance's audio, (rows,)."""
        return self.table["num_samples"].to_numpy()

    def response_tokens(self, behaviour: str) -> np.ndarray:
        """Tokens that the LLM wrote for each utterance, (rows,); 0 where it wrote nothing."""
        lengths = pc.list_value_length(pc.struct_field(self.table[behaviour], "token_ids"))
        return pc.fill_null(lengths, 0).to_numpy().astype(np.int64)

    def prompts(self, behaviour: str) -> list[Prompt | None]:
        """In what the LLM was asked for each utterance; None where it wrote nothing."""
        return [written and _prompt(*written) for written in self._asked(behaviour)]

    def different_prompts(self) -> list[Prompt]:
        """All different prompts that the LLM was asked in."""
        asked = {one for name in self.behaviours for one in self._asked(name) if one is not None}
        return [_prompt(*one) for one in sorted(asked, key=repr)]

    def kept_temperatures(self) -> set[float | None]:
        """The temperatures at which the teacher's distribution was stored, None where it was not."""
        written = (self.table[name].filter(self.table[name].is_valid()) for name in self.behaviours)
        return {t for column in written for t in pc.struct_field(column, "kept_temperature").unique().to_pylist()}

    def example(self, row: int, behaviour: str) -> Example:
        """One utterance with what the LLM wrote for it; its audio is read when it is asked for."""
        written = self.table[behaviour][row].as_py()
        return Example(
            id=self.table["id"][row].as_py(),
            num_samples=self.table["num_samples"][row].as_py(),
            load_samples=lambda: self.load_samples(row),
            transcript=written["transcript"],
            prompt=_prompt(written["instruction"], written["style"]),
            response_ids=written["token_ids"],
            kept_ids=written["kept_ids"],
            kept_logprobs=written["kept_logprobs"],
        )

    def load_samples(self, row: int) -> np.ndarray:
        """The utterance's audio, float32 mono (N,). Raises BlspError where the shard does not hold it."""
        import soundfile

        path, (offset, size) = self.recordings[self._at("shard", row)], (self._at("offset", row), self._at("size", row))
        try:
            with path.open("rb") as stream:
                stream.seek(offset)
                samples, _ = soundfile.read(io.BytesIO(stream.read(size)), dtype="float32")
        except (OSError, RuntimeError) as error:
            raise BlspError(
                f"{path}: the audio of {self._at('id', row)} cannot be read ({error}); run `blsp corpus` again"
            ) from None
        if samples.shape != (self._at("num_samples", row),):
            raise BlspError(
                f"{path}: the audio of {self._at('id', row)} has {samples.shape} samples, its description says "
                f"{self._at('num_samples', row)}; run `blsp corpus` again"
            )
        return samples

    def _asked(self, behaviour: str) -> list[tuple[str, str | None] | None]:
        """The instruction and style of each utterance; None where the LLM wrote nothing."""
        written = self.table[behaviour]
        columns = (pc.struct_field(written, name).to_pylist() for name in ("instruction", "style"))
        return [None if one[0] is None else one for one in zip(*columns, strict=True)]

    def _at(self, column: str, row: int) -> Any:
        return self.table[column][row].as_py()

    def audio_digest(self) -> str:
        """A SHA-256 of the audio: of the shards' recordings, in order."""
        return hashlib.sha256("".join(map(sha256_of, self.recordings)).encode()).hexdigest()

    def digest(self) -> str:
        """A SHA-256 of all that is indexed; the audio itself counts by its place and size in the shards."""
        sha256 = hashlib.sha256()
        for column in self.table.columns:
            for chunk in column.chunks:
                for buffer in filter(None, chunk.buffers()):
                    sha256.update(buffer)
        return sha256.hexdigest()


def load_index(
    split: str,
    behaviours: Sequence[str],
    corpus_dir: str | Path = CORPUS_DIR,
    continuations_dir: str | Path = CONTINUATIONS_DIR,
) -> SplitIndex:
    """The index of a split, empty where the corpus has none of it.

    Raises BlspError where the corpus or a field is missing, or what belongs together does not match.
    """
    schema = pa.schema({**_SPOKEN, **_PLACE, **{name: pa.struct(_WRITTEN) for name in behaviours}})
    recordings, batches = [], []
    for shard in iter_shards(split, corpus_dir):
        recordings.append(shard.recording_path)
        places = _audio_places(shard.recording_path)
        written = {name: read_field(shard, name, continuations_dir) for name in behaviours}
        rows = [
            {
                "id": row["id"],
                "transcript": row["supervisions"][0]["text"],
                "num_samples": row["recording"]["num_samples"],
                "shard": len(recordings) - 1,
                **_place(places, row["id"], shard),
                **{name: _written(rows.get(row["id"])) for name, rows in written.items()},
            }
            for row in shard.rows()
        ]
        batches.append(pa.RecordBatch.from_pylist(rows, schema=schema))
    return SplitIndex(pa.Table.from_batches(batches, schema=schema), tuple(recordings), tuple(behaviours))


def _written(row: dict[str, Any] | None) -> dict[str, Any] | None:
    """A field's row as the index has it."""
    return row and {**row, "style": json.dumps(row["style"]) if row.get("style") else None}


@lru_cache(maxsize=4096)
def _prompt(instruction: str, style: str | None) -> Prompt:
    return Prompt.of(instruction, json.loads(style) if style else None)


def _audio_places(recording_path: Path) -> dict[str, tuple[int, int]]:
    """The offset and size in bytes of each recording in a shard's tar."""
    try:
        with tarfile.open(recording_path, "r:") as tar:
            members = [member for member in tar if not member.name.endswith(".json")]
    except (OSError, tarfile.TarError) as error:
        raise BlspError(f"{recording_path}: not a readable shard ({error}); run `blsp corpus` again") from None
    return {member.name.rpartition(".")[0]: (member.offset_data, member.size) for member in members}


def _place(places: dict[str, tuple[int, int]], cut_id: str, shard: Shard) -> dict[str, int]:
    if cut_id not in places:
        raise BlspError(f"{shard.recording_path}: no audio of {cut_id}, which {shard.cuts_path} names; pack it again")
    offset, size = places[cut_id]
    return {"offset": offset, "size": size}
