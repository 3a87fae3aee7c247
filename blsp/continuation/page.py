"""The report page of the `continuations` stage: counts, and random rows to read and to listen to, in one HTML file."""

import tarfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from blsp import pages
from blsp.data.audio import decode
from blsp.data.drops import DROPPED, read_drops
from blsp.data.records import SPLITS
from blsp.data.shards import CONTINUATIONS_DIR, Shard, iter_shards, read_field
from blsp.errors import BlspError
from blsp.sampling import sample

if TYPE_CHECKING:
    from lhotse import MonoCut

PAGE = "reports/continuations.html"
SAMPLES = 16  # in all: were each 30 s long, the page would still be below 4 MB
DROPPED_A_REASON = 5


def write_page(report: Mapping[str, Any], path: str | Path = PAGE) -> None:
    """Nothing; afterwards `path` shows what reports/continuations.json says, with random rows kept and dropped.

    The same data give the same page. Memory does not grow with the corpus. Raises BlspError where a shard, a field or
    an utterance's audio cannot be read.
    """
    shards = [shard for split in SPLITS for shard in iter_shards(split)]
    behaviours = report["behaviours"]
    kept = sample(
        _rows(shards, behaviours),
        max(SAMPLES // len(behaviours), 1),
        group=lambda found: found[0],
        name=lambda found: (found[0], found[2]["id"]),
    )
    drops = Path(CONTINUATIONS_DIR) / DROPPED
    dropped = sample(
        read_drops(drops) if drops.exists() else (),
        DROPPED_A_REASON,
        group=lambda row: (row["behaviour"], row["reason"]),
        name=lambda row: (row["behaviour"], row["id"]),
    )
    wanted = {row["id"] for found in kept.values() for _, _, row in found}
    wanted |= {row["id"] for found in dropped.values() for row in found}
    cuts = {cut.id: cut for shard in shards for cut in shard.cuts() if cut.id in wanted}
    contents = {
        "report": report,
        "samples": {
            name: [_shown(shard, row, cuts[row["id"]]) for _, shard, row in kept.get(name, [])] for name in behaviours
        },
        "dropped": [
            {"behaviour": behaviour, "reason": reason, "rows": [(row, cuts.get(row["id"])) for row in rows]}
            for (behaviour, reason), rows in sorted(dropped.items())
        ],
    }
    pages.write_page(path, "blsp.continuation", "continuations.html.j2", contents)


def _rows(shards: Iterable[Shard], behaviours: Iterable[str]) -> Iterator[tuple[str, Shard, dict[str, Any]]]:
    """All that was written: the behaviour, the shard, the field's value."""
    for shard in shards:
        for behaviour in behaviours:
            for row in read_field(shard, behaviour).values():
                yield behaviour, shard, row


def _shown(shard: Shard, row: Mapping[str, Any], cut: "MonoCut") -> dict[str, Any]:
    """What the page shows of a row."""
    return {
        "row": row,
        "split": shard.split,
        "speaker": cut.supervisions[0].speaker,
        "duration_s": cut.duration,
        "audio": pages.audio_address(*_samples(shard, cut.id)),
    }


def _samples(shard: Shard, id_: str) -> tuple[NDArray[np.float32], int]:
    """The utterance's samples (N,) and their rate in Hz."""
    try:
        with tarfile.open(shard.recording_path, "r:") as tar:
            member = tar.extractfile(f"{id_}.flac")
            assert member is not None
            return decode(member.read())
    except (OSError, KeyError, tarfile.TarError) as error:
        raise BlspError(
            f"{shard.recording_path}: the audio of {id_} cannot be read ({error}); run `blsp corpus` again"
        ) from None
