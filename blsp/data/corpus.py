"""The stage `corpus`: from the sources to packed shards, and a report in which every row is accounted for.

The sources are read three times, their audio only the last: to give speakers their splits, to gather the held-out
sentences, to pack. What sounds like another row is known only then: the shards that hold such rows are packed again.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from blsp import files
from blsp.data import fingerprints, shards, sources, splits, text
from blsp.data.packing import TALLY, ShardRows, Tally, pack_shard, shard_name
from blsp.data.records import SPLITS, Dropped, Row, Unusable, Utterance
from blsp.errors import BlspError
from blsp.executor import run_each
from blsp.params import Corpus, Execution, Params
from blsp.staging import NotWhole, Staging, staging_of

REPORT = "reports/corpus.json"
Source = Callable[[], Iterator[Row]]


def run(params: Params) -> None:
    """Nothing; afterwards data/corpus holds the shards and reports/corpus.json says what became of each row.

    A run that was killed keeps its finished shards: run again, it does the rest.
    Raises BlspError where nothing is left to train or to test on; both are then as they were.
    """
    report = pack(_source(params), params.corpus, params.execution)
    files.write_json(REPORT, report)
    print(_summary(report))


def pack(
    source: Source, settings: Corpus, execution: Execution, corpus_dir: str | Path = shards.CORPUS_DIR
) -> dict[str, Any]:
    """The report, as in reports/corpus.json; `corpus_dir` then holds the kept rows by split, in the source's order.

    `source` gives the same rows each time it is called.
    """
    staging = staging_of(execution).at("corpus", _key(settings))
    speakers = splits.assign_speakers(source(), settings.dev_share, settings.test_share)
    held_out = splits.HeldOutSentences()
    rows_in = 0
    for row in _worded(source(), settings):
        rows_in += 1
        if isinstance(row, Utterance):
            held_out.add(row.text, speakers.of(row))

    def pack_all(unwanted: dict[str, Dropped]) -> "_Packed":
        packed = _Packed()
        planned = _planned(_worded(source(), settings), speakers, held_out, unwanted, settings.shard_size, packed)
        with tqdm(total=rows_in, desc="corpus", unit=" rows", mininterval=0.5) as progress:
            for tally in run_each(partial(pack_shard, settings=settings, staging=staging), planned, execution):
                _check_staged(tally, staging)
                packed.add(tally)
                progress.update(packed.rows_seen - progress.n)
        return packed

    packed = pack_all({})
    if unwanted := _heard_before(packed.tallies):
        packed = pack_all(unwanted)
    report = _report(rows_in, packed, settings)
    _refuse_empty(report)
    with files.replace_dir(corpus_dir) as folder:
        for split in SPLITS:
            kept = [tally for tally in packed.in_split(split) if tally.rows]
            (folder / split).mkdir()
            for number, tally in enumerate(kept):
                _fetch(tally, staging.at(shard_name(split, tally.number)), folder / split, number)
    staging.clear()
    return report


def _key(settings: Corpus) -> str:
    """A digest of what decides, beside the rows, what a shard holds: settings, and the code of this package."""
    code = [path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.glob("*.py"))]
    what = json.dumps([settings.model_dump(exclude={"sources"}), code], sort_keys=True)
    return hashlib.sha256(what.encode()).hexdigest()[:24]


def _check_staged(tally: Tally, staging: Staging) -> None:
    """Nothing. Raises BlspError where a worker put the shard elsewhere."""
    if staging.at(shard_name(tally.split, tally.number)).contents(TALLY) is None:
        raise BlspError(
            f"{staging}: a worker stored {shard_name(tally.split, tally.number)} there, but the run itself does not "
            f"find it; set execution.staging to a place in S3, or {files.SCRATCH_VARIABLE} to a folder that all share"
        )


def _fetch(tally: Tally, staging: Staging, folder: Path, number: int) -> None:
    """Nothing; the shard is in `folder` under its final number.

    Raises BlspError where a file is not what was stored: its shard is then done again by the next run.
    """
    for name, stored in tally.files.items():
        final = folder / name.replace("000000", f"{number:06d}")
        try:
            whole = staging.fetch(name, final) == stored
        except NotWhole:
            whole = False
        if not whole:
            staging.remove(TALLY)
            raise BlspError(
                f"{staging}/{name}: was cut, altered or removed since it was stored; run it again: its shard is done "
                "again, the others are kept"
            )


def _source(params: Params) -> Source:
    def rows() -> Iterator[Row]:
        for source in params.corpus.sources:
            yield from sources.rows(source, params.miniature)

    return rows


@dataclass
class _Packed:
    """What became of the rows: the tallies of the shards, and what was dropped before any audio was read."""

    tallies: list[Tally] = field(default_factory=list)
    dropped: list[tuple[int, Dropped]] = field(default_factory=list)

    def add(self, tally: Tally) -> None:
        self.tallies.append(tally)
        self.dropped += tally.dropped

    def in_split(self, split: str) -> list[Tally]:
        """The split's tallies in its shards' order."""
        return sorted((t for t in self.tallies if t.split == split), key=lambda tally: tally.number)

    @property
    def rows_seen(self) -> int:
        return len(self.dropped) + sum(tally.rows for tally in self.tallies)


def _planned(
    rows: Iterable[Row],
    speakers: splits.SpeakerSplits,
    held_out: splits.HeldOutSentences,
    unwanted: dict[str, Dropped],
    shard_size: int,
    packed: _Packed,
) -> Iterator[ShardRows]:
    """The shards to be, as soon as their rows are known; rows that get into none go to `packed.dropped`."""
    waiting: dict[str, list[tuple[int, Utterance]]] = {split: [] for split in SPLITS}
    numbers = dict.fromkeys(SPLITS, 0)

    def shard(split: str) -> ShardRows:
        places, utterances = zip(*waiting[split], strict=True)
        of_these = {row.id: unwanted[row.id] for row in utterances if row.id in unwanted}
        local = (row.audio for row in utterances if isinstance(row.audio, Path))
        witness = next((path for path in local if path.exists()), None)
        made = ShardRows(split, numbers[split], utterances, places, of_these, witness)
        waiting[split], numbers[split] = [], numbers[split] + 1
        return made

    for place, row in enumerate(rows):
        if isinstance(row, Utterance):
            split = speakers.of(row)
            if other := held_out.elsewhere(row.text, split):
                detail = f"{row.text!r}, {split} here, is also in {other}"
                packed.dropped.append((place, Dropped(row.id, "sentence_in_other_split", detail)))
                continue
            waiting[split].append((place, row))
            if len(waiting[split]) == shard_size:
                yield shard(split)
        else:
            packed.dropped.append((place, row))
    for split in SPLITS:
        if waiting[split]:
            yield shard(split)


def _heard_before(tallies: Iterable[Tally]) -> dict[str, Dropped]:
    """The rows, by id, whose audio is another row's: the very samples, or alike in a split that is held out further."""
    prints = {split: [one for tally in tallies if tally.split == split for one in tally.prints] for split in SPLITS}
    unwanted: dict[str, Dropped] = {}
    further: list[fingerprints.Print] = []
    for split in splits.HELD_OUT_FIRST:
        for one, other in fingerprints.alike(prints[split], further):
            detail = f"sounds like {other.id}, which is held out further; {split} here"
            unwanted[one.id] = Dropped(one.id, "audio_in_other_split", detail)
        for one, other in fingerprints.repeated(prints[split]):
            unwanted.setdefault(one.id, Dropped(one.id, "duplicate_audio", f"the same recording as {other.id}"))
        further += prints[split]
    return unwanted


def _worded(rows: Iterator[Row], settings: Corpus) -> Iterator[Row]:
    """The rows in order, their transcripts normalised; those without words and repeated ids as Dropped."""
    seen: set[str] = set()
    for row in rows:
        if isinstance(row, Utterance):
            if row.id in seen:
                row = Dropped(row.id, "duplicate_id", "an earlier row has this id; give each its own, or none")
            else:
                seen.add(row.id)
                try:
                    row = replace(row, text=text.normalise(row.text, settings.normalizer))
                except Unusable as fault:
                    row = Dropped(row.id, fault.reason, str(fault))
        yield row


def _report(rows_in: int, packed: _Packed, settings: Corpus) -> dict[str, Any]:
    """The contents of reports/corpus.json. Raises RuntimeError where a row is unaccounted for."""
    rows_kept = sum(tally.rows for tally in packed.tallies)
    if rows_in != rows_kept + len(packed.dropped):
        raise RuntimeError(
            f"{rows_in} rows in, but {rows_kept} kept and {len(packed.dropped)} dropped: "
            "the source changed while it was read, or rows were lost here"
        )
    dropped = [row for _, row in sorted(packed.dropped, key=lambda pair: pair[0])]
    return {
        "source": ", ".join(source.path or source.name for source in settings.sources),
        "normalizer": settings.normalizer,
        "rows_in": rows_in,
        "rows_kept": rows_kept,
        "dropped": dict(Counter(row.reason for row in dropped)),
        "dropped_rows": [asdict(row) for row in dropped],
        "splits": {
            split: {
                "rows": sum(tally.rows for tally in packed.in_split(split)),
                "hours": round(sum(tally.seconds for tally in packed.in_split(split)) / 3600, 6),
                "speakers": len({speaker for tally in packed.in_split(split) for speaker in tally.speakers}),
            }
            for split in SPLITS
        },
    }


def _refuse_empty(report: dict[str, Any]) -> None:
    empty = [split for split in ("train", "test") if not report["splits"][split]["rows"]]
    if not empty:
        return
    lines = [
        f"corpus: of {report['rows_in']} rows of {report['source']}, none is left for {' and '.join(empty)}.",
        "Name `split` in the rows, or give at least three speakers, or mend what was dropped"
        + (":" if report["dropped"] else " (nothing was)."),
    ]
    for reason, count in sorted(report["dropped"].items()):
        first = next(row for row in report["dropped_rows"] if row["reason"] == reason)
        lines.append(f"  {reason}: {count}, first {first['id']}: {first['detail']}")
    raise BlspError("\n".join(lines))


def _summary(report: dict[str, Any]) -> str:
    lines = [f"{'split':24}{'rows':>10}{'hours':>10}{'speakers':>10}"]
    for split, figures in report["splits"].items():
        lines.append(f"{split:24}{figures['rows']:>10,}{figures['hours']:>10.2f}{figures['speakers']:>10,}")
    lines.append(f"{'dropped':24}{report['rows_in'] - report['rows_kept']:>10,}   of {report['rows_in']:,}")
    lines += [f"  {reason:22}{count:>10,}" for reason, count in sorted(report["dropped"].items())]
    return "\n".join(lines)
