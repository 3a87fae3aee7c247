"""The report page of the `continuations` stage: counts, and random rows to read and to listen to, in one HTML file."""

import base64
import hashlib
import heapq
import io
import tarfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from blsp.data.audio import decode, resample
from blsp.data.drops import DROPPED, read_drops
from blsp.data.records import SPLITS
from blsp.data.shards import CONTINUATIONS_DIR, Shard, iter_shards, read_field
from blsp.errors import BlspError
from blsp.files import write_text

if TYPE_CHECKING:
    from lhotse import MonoCut

PAGE = "reports/continuations.html"
SAMPLES = 16  # in all: were each 30 s long, the page would still be below 4 MB
DROPPED_A_REASON = 5
AUDIO_HZ = 16_000

_Item = TypeVar("_Item")
_Group = TypeVar("_Group")


def write_page(report: Mapping[str, Any], path: str | Path = PAGE) -> None:
    """Nothing; afterwards `path` shows what reports/continuations.json says, with random rows kept and dropped.

    The same data give the same page. Memory does not grow with the corpus. Raises BlspError where a shard, a field or
    an utterance's audio cannot be read.
    """
    import jinja2

    shards = [shard for split in SPLITS for shard in iter_shards(split)]
    behaviours = report["behaviours"]
    kept = _sample(
        _rows(shards, behaviours),
        max(SAMPLES // len(behaviours), 1),
        group=lambda found: found[0],
        name=lambda found: (found[0], found[2]["id"]),
    )
    drops = Path(CONTINUATIONS_DIR) / DROPPED
    dropped = _sample(
        read_drops(drops) if drops.exists() else (),
        DROPPED_A_REASON,
        group=lambda row: (row["behaviour"], row["reason"]),
        name=lambda row: (row["behaviour"], row["id"]),
    )
    wanted = {row["id"] for found in kept.values() for _, _, row in found}
    wanted |= {row["id"] for found in dropped.values() for row in found}
    cuts = {cut.id: cut for shard in shards for cut in shard.cuts() if cut.id in wanted}
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("blsp.continuation", "templates"),
        autoescape=True,  # transcripts are anybody's text, and so is what an LLM writes
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
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
    write_text(path, environment.get_template("page.html.j2").render(contents))


def _rows(shards: Iterable[Shard], behaviours: Iterable[str]) -> Iterator[tuple[str, Shard, dict[str, Any]]]:
    """All that was written: the behaviour, the shard, the field's value."""
    for shard in shards:
        for behaviour in behaviours:
            for row in read_field(shard, behaviour).values():
                yield behaviour, shard, row


def _sample(
    items: Iterable[_Item], size: int, group: Callable[[_Item], _Group], name: Callable[[_Item], tuple[str, str]]
) -> dict[_Group, list[_Item]]:
    """Up to `size` random items of each group, always the same of items of the same names, whatever their order."""
    heaps: dict[_Group, list[tuple[int, int, _Item]]] = defaultdict(list)
    for number, item in zip(count(), items, strict=False):
        draw = hashlib.sha256("\0".join(("sample", *name(item))).encode()).digest()
        heap = heaps[group(item)]
        heapq.heappush(heap, (-int.from_bytes(draw[:8]), number, item))
        if len(heap) > size:
            heapq.heappop(heap)
    return {key: [item for *_, item in sorted(heap, reverse=True)] for key, heap in heaps.items()}


def _shown(shard: Shard, row: Mapping[str, Any], cut: "MonoCut") -> dict[str, Any]:
    """What the page shows of a row."""
    return {
        "row": row,
        "split": shard.split,
        "speaker": cut.supervisions[0].speaker,
        "duration_s": cut.duration,
        "audio": f"data:audio/mpeg;base64,{base64.b64encode(_mp3(shard, cut.id)).decode()}",
    }


def _mp3(shard: Shard, id_: str) -> bytes:
    """The utterance's audio as every browser plays it: a quarter of the FLAC's size, the same bytes each time."""
    import soundfile

    try:
        with tarfile.open(shard.recording_path, "r:") as tar:
            member = tar.extractfile(f"{id_}.flac")
            assert member is not None
            samples, rate_hz = decode(member.read())
    except (OSError, KeyError, tarfile.TarError) as error:
        raise BlspError(
            f"{shard.recording_path}: the audio of {id_} cannot be read ({error}); run `blsp corpus` again"
        ) from None
    stream = io.BytesIO()
    soundfile.write(stream, resample(samples, rate_hz, AUDIO_HZ), AUDIO_HZ, format="MP3")
    return stream.getvalue()
