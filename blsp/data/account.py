"""What became of each row: kept in a shard, or dropped for a reason. Every one is counted, by its source."""

import heapq
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np

from blsp.data.drops import write_drops
from blsp.data.fingerprints import Prints
from blsp.data.packing import Tally
from blsp.data.records import SPLITS, Dropped
from blsp.params import Source
from blsp.staging import Contents

EXAMPLES = 3  # of each reason, in the report
_UNREAD = "unread"  # dropped before any audio was read


class Account:
    """Gathers tallies and drops while shards are packed; dropped rows wait in temporary files, not in memory."""

    def __init__(self, sources: Sequence[Source], rows_in: Sequence[int]) -> None:
        self.sources, self.rows_in = sources, rows_in
        self.rows_seen = 0
        self.prints = {split: Prints() for split in SPLITS}
        self.shards: dict[str, list[tuple[int, dict[str, Contents]]]] = {split: [] for split in SPLITS}
        """The shards that hold rows: their numbers, and their files as they are staged."""
        self._ends = np.cumsum(rows_in)
        self._kept = np.zeros(len(rows_in), dtype=np.int64)
        self._rows = dict.fromkeys(SPLITS, 0)
        self._seconds = dict.fromkeys(SPLITS, 0.0)
        self._speakers: dict[str, set[str]] = {split: set() for split in SPLITS}
        # Closed by close().
        self._waiting = {lane: TemporaryFile("w+", encoding="utf-8") for lane in (_UNREAD, *SPLITS)}  # noqa: SIM115

    def drop(self, place: int, row: Dropped) -> None:
        """Nothing; the row, at its place in the sources, is counted. Called in their order."""
        self._wait(_UNREAD, [(place, row)])

    def add(self, tally: Tally) -> None:
        """Nothing; the shard's rows are counted. Called in the order of a split's shards."""
        split = tally.split
        self._wait(split, tally.dropped)
        self.rows_seen += tally.rows
        self._kept += np.bincount(self._source_of(tally.places), minlength=len(self._kept))
        self._rows[split] += tally.rows
        self._seconds[split] += tally.seconds
        self._speakers[split].update(tally.speakers)
        self.prints[split].extend(tally.prints)
        if tally.rows:
            self.shards[split].append((tally.number, tally.files))

    def settle(self, path: Path) -> dict[str, Any]:
        """The counts for reports/corpus.json; `path` then lists the dropped rows in the sources' order.

        Raises RuntimeError where a row is unaccounted for.
        """
        dropped = [Counter[str]() for _ in self.sources]
        examples: dict[str, list[dict[str, str]]] = {}

        def rows() -> Iterator[dict[str, str]]:
            for place, id_, reason, detail in self._waited():
                number = int(self._source_of([place])[0])
                dropped[number][reason] += 1
                row = {"id": id_, "source": source_name(self.sources[number]), "reason": reason, "detail": detail}
                shown = examples.setdefault(reason, [])
                if len(shown) < EXAMPLES:
                    shown.append({key: value for key, value in row.items() if key != "reason"})
                yield row

        write_drops(path, rows())
        self.close()
        for source, rows_in, kept, reasons in zip(self.sources, self.rows_in, self._kept, dropped, strict=True):
            if rows_in != kept + reasons.total():
                raise RuntimeError(
                    f"{source_name(source)}: {rows_in} rows in, but {kept} kept and {reasons.total()} dropped: it "
                    "changed while it was read, or rows were lost here"
                )
        sources = [
            {
                "name": source.name,
                "path": source.path,
                "rows_in": rows_in,
                "rows_kept": int(kept),
                "dropped": dict(reasons),
            }
            for source, rows_in, kept, reasons in zip(self.sources, self.rows_in, self._kept, dropped, strict=True)
        ]
        return {
            "rows_in": sum(self.rows_in),
            "rows_kept": int(self._kept.sum()),
            "dropped": dict(sum(dropped, Counter())),
            "sources": sources,
            "examples": examples,
            "splits": {
                split: {
                    "rows": self._rows[split],
                    "hours": round(self._seconds[split] / 3600, 6),
                    "speakers": len(self._speakers[split]),
                }
                for split in SPLITS
            },
        }

    def _source_of(self, places: Sequence[int]) -> np.ndarray:
        # A place beyond all ends is a row that was not there before: it makes the last source's counts disagree.
        return np.searchsorted(self._ends, places, side="right").clip(max=len(self._ends) - 1)

    def close(self) -> None:
        """Nothing; the dropped rows that wait are forgotten."""
        for stream in self._waiting.values():
            stream.close()

    def _wait(self, lane: str, rows: Iterable[tuple[int, Dropped]]) -> None:
        for place, row in rows:
            self._waiting[lane].write(json.dumps([place, row.id, row.reason, row.detail]) + "\n")
            self.rows_seen += 1

    def _waited(self) -> Iterator[tuple[int, str, str, str]]:
        """The dropped rows with their places, in order: so are those of each lane."""
        for stream in self._waiting.values():
            stream.seek(0)
        yield from heapq.merge(*(map(json.loads, stream) for stream in self._waiting.values()))


def source_name(source: Source) -> str:
    """What reports call it."""
    return source.path or source.name
