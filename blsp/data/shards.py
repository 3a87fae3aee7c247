"""The packed corpus on disk: lhotse Shar shards, byte for byte the same for the same input.

    data/corpus/test/recording.000000.tar                FLAC and its description, in the order of the cuts
    data/corpus/test/cuts.000000.jsonl.gz                one row a cut; written last, so it means complete
    data/continuations/test/repetition.000000.jsonl.gz   one more field: {"cut_id": ..., "repetition": {...}}

lhotse's own writers put the time of day into gzip headers and write under final names, so the writing is done
here; the reading is lhotse's. (N samples)
"""

import gzip
import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from blsp.data.records import Utterance
from blsp.errors import BlspError

if TYPE_CHECKING:
    from lhotse import CutSet, MonoCut

CORPUS_DIR = "data/corpus"
CONTINUATIONS_DIR = "data/continuations"


def make_cut(utterance: Utterance, split: str, num_samples: int, sampling_rate_hz: int) -> "MonoCut":
    """An utterance's metadata, its text final, its audio the placeholder that Shar fills on reading."""
    from lhotse import AudioSource, MonoCut, Recording, SupervisionSegment

    duration_s = num_samples / sampling_rate_hz
    custom: dict[str, Any] = {"split": split, "licence": utterance.licence, "source": utterance.source}
    for key in ("translation", "intent", "answer"):
        if getattr(utterance, key) is not None:
            custom[key] = getattr(utterance, key)
    return MonoCut(
        id=utterance.id,
        start=0,
        duration=duration_s,
        channel=0,
        recording=Recording(
            id=utterance.id,
            sources=[AudioSource(type="shar", channels=[0], source="")],
            sampling_rate=sampling_rate_hz,
            num_samples=num_samples,
            duration=duration_s,
            channel_ids=[0],
        ),
        supervisions=[
            SupervisionSegment(
                id=utterance.id,
                recording_id=utterance.id,
                start=0,
                duration=duration_s,
                channel=0,
                text=utterance.text,
                language=utterance.language,
                speaker=utterance.speaker,
            )
        ],
        custom=custom,
    )


def encode_flac(samples: NDArray[np.float32], sampling_rate_hz: int) -> bytes:
    """A FLAC file of 16 bits a sample; samples (N,) beyond -1 and 1 are clipped."""
    import soundfile

    stream = io.BytesIO()
    soundfile.write(stream, samples, sampling_rate_hz, format="FLAC", subtype="PCM_16")
    return stream.getvalue()


class ShardWriter:
    """Writes cuts and their audio as consecutive shards of `shard_size` into one split's folder.

    A shard grows under a temporary name and gets its final names when it is full, or when the block ends
    well. If the block raises, what was begun is removed.
    """

    def __init__(self, folder: str | Path, shard_size: int) -> None:
        self.folder = Path(folder)
        self.shard_size = shard_size
        self.number = 0
        self._cuts: list[dict[str, Any]] = []
        self._tar: tarfile.TarFile | None = None

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._finish()
        elif self._tar is not None:
            self._tar.close()
            self._temporary.unlink()

    @property
    def _temporary(self) -> Path:
        return self.folder / f".recording.{self.number:06d}.tar.tmp"

    def write(self, cut: "MonoCut", flac: bytes) -> None:
        """Nothing; the cut and its audio are in the shard that is open."""
        if self._tar is None:
            self._tar = tarfile.TarFile(self._temporary, "w")
        metadata = json.dumps(cut.recording.to_dict()) + "\n"
        for name, content in ((f"{cut.id}.flac", flac), (f"{cut.id}.json", metadata.encode())):
            member = tarfile.TarInfo(name)  # its time is 0 and its owner root: nothing of this machine
            member.size = len(content)
            self._tar.addfile(member, io.BytesIO(content))
        self._cuts.append(cut.to_dict())
        if len(self._cuts) == self.shard_size:
            self._finish()

    def _finish(self) -> None:
        if self._tar is None:
            return
        self._tar.close()
        os.replace(self._temporary, self.folder / f"recording.{self.number:06d}.tar")
        write_jsonl_gz(self.folder / f"cuts.{self.number:06d}.jsonl.gz", self._cuts)
        self._tar, self._cuts, self.number = None, [], self.number + 1


def write_jsonl_gz(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Nothing; afterwards `path` holds the rows, or what it held before if anything failed."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with (
            temporary.open("wb") as raw,
            gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as stream,
        ):
            for row in rows:
                stream.write((json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@dataclass(frozen=True)
class Shard:
    """One shard of one split."""

    split: str
    number: int
    cuts_path: Path
    recording_path: Path

    def cuts(self) -> "Iterator[MonoCut]":
        """The shard's cuts in order, metadata only: their audio cannot be loaded."""
        from lhotse.serialization import deserialize_item

        yield from map(deserialize_item, self.rows())

    def __len__(self) -> int:
        """How many cuts it has, counted without reading them."""
        with gzip.open(self.cuts_path) as stream:
            return sum(1 for _ in stream)

    def rows(self) -> Iterator[dict[str, Any]]:
        """The shard's cuts in order, as plain values: a quarter of the time."""
        return read_jsonl_gz(self.cuts_path)

    def field_path(self, behaviour: str, continuations_dir: str | Path = CONTINUATIONS_DIR) -> Path:
        """Where a behaviour's field of this shard is, whether it exists or not."""
        return Path(continuations_dir) / self.split / f"{behaviour}.{self.number:06d}.jsonl.gz"


def iter_shards(split: str, corpus_dir: str | Path = CORPUS_DIR) -> Iterator[Shard]:
    """The split's shards in order; none where the corpus has no such utterance.

    Raises BlspError where there is no corpus, or audio is missing.
    """
    folder = Path(corpus_dir) / split
    if not Path(corpus_dir).is_dir():
        raise BlspError(f"{corpus_dir}: no such folder; run `blsp corpus` first")
    for number, path in enumerate(sorted(folder.glob("cuts.*.jsonl.gz"))):
        shard = Shard(split, number, path, folder / f"recording.{number:06d}.tar")
        expected = f"cuts.{number:06d}.jsonl.gz"
        if path.name != expected or not shard.recording_path.exists():
            missing = folder / expected if path.name != expected else shard.recording_path
            raise BlspError(f"{missing}: missing beside {path}; run `blsp corpus` again")
        yield shard


def write_field(
    shard: Shard,
    behaviour: str,
    rows: Mapping[str, Mapping[str, Any]],
    continuations_dir: str | Path = CONTINUATIONS_DIR,
) -> Path:
    """The path of the field's file for this shard, whole, one row a cut in the shard's order.

    `rows` maps a cut's id to the field's value; a cut that it lacks gets Shar's placeholder, a row without
    the field. Raises BlspError for ids that are not in the shard.
    """
    path = shard.field_path(behaviour, continuations_dir)
    ids = [row["id"] for row in read_jsonl_gz(shard.cuts_path)]
    strangers = sorted(rows.keys() - set(ids))
    if strangers:
        raise BlspError(
            f"{path}: {len(strangers)} rows have no cut in {shard.cuts_path}, the first is {strangers[0]!r}"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    fields = ({behaviour: rows[id_]} if id_ in rows else {} for id_ in ids)
    write_jsonl_gz(path, ({"cut_id": id_, **field} for id_, field in zip(ids, fields, strict=True)))
    return path


def read_field(
    shard: Shard, behaviour: str, continuations_dir: str | Path = CONTINUATIONS_DIR
) -> dict[str, dict[str, Any]]:
    """The values of a behaviour's field by cut id, in the shard's order, placeholders left out.

    Raises BlspError where the field is missing or belongs to other cuts.
    """
    path = shard.field_path(behaviour, continuations_dir)
    if not path.exists():
        raise BlspError(f"{path}: no such file; run `blsp continuations` first")
    rows = list(read_jsonl_gz(path))
    ids = [row["id"] for row in read_jsonl_gz(shard.cuts_path)]
    if [row["cut_id"] for row in rows] != ids:
        raise BlspError(
            f"{path}: its {len(rows)} rows are not the {len(ids)} cuts of {shard.cuts_path}; "
            "run `blsp continuations` again"
        )
    return {row["cut_id"]: row[behaviour] for row in rows if behaviour in row}


def load_cuts(
    split: str,
    behaviours: Sequence[str] = (),
    corpus_dir: str | Path = CORPUS_DIR,
    continuations_dir: str | Path = CONTINUATIONS_DIR,
) -> "CutSet":
    """The split's cuts with their audio, read lazily, shard by shard, in order; as often as one iterates.

    Each behaviour's value is the cut's attribute of that name, absent where the field holds a placeholder
    (ask `cut.has_custom(behaviour)`). Empty where the corpus has no such utterance. Raises BlspError where
    the corpus or a field is missing, or the two do not match: lhotse would stop at the shorter in silence.
    """
    from lhotse import CutSet

    shards = list(iter_shards(split, corpus_dir))
    if not shards:
        return CutSet.from_cuts([])
    fields = {"cuts": [s.cuts_path for s in shards], "recording": [s.recording_path for s in shards]}
    for behaviour in behaviours:
        for shard in shards:
            read_field(shard, behaviour, continuations_dir)
        fields[behaviour] = [s.field_path(behaviour, continuations_dir) for s in shards]
    return CutSet.from_shar(fields=fields)


def read_jsonl_gz(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of such a file, one at a time."""
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        for line in stream:
            yield json.loads(line)
