"""The stage `corpus`: from a source to packed shards, and a report in which every row is accounted for.

The source is read three times, its audio only the last: to give speakers their splits, to gather the held-out
sentences, to pack.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from blsp import files
from blsp.data import audio, shards, sources, splits, text
from blsp.data.records import SPLITS, Dropped, Row, Unusable, Utterance
from blsp.errors import BlspError
from blsp.params import Corpus, Params

REPORT = "reports/corpus.json"
Source = Callable[[], Iterator[Row]]


def run(params: Params) -> None:
    """Nothing; afterwards data/corpus holds the shards and reports/corpus.json says what became of each row.

    Raises BlspError where nothing is left to train or to test on; both are then as they were.
    """
    report = pack(_source(params), params.corpus)
    files.write_json(REPORT, report)
    print(_summary(report))


def pack(source: Source, settings: Corpus, corpus_dir: str | Path = shards.CORPUS_DIR) -> dict[str, Any]:
    """The report, as in reports/corpus.json; `corpus_dir` then holds the kept rows, in the source's order.

    `source` gives the same rows each time it is called.
    """
    speakers = splits.assign_speakers(source(), settings.dev_share, settings.test_share)
    held_out = splits.HeldOutSentences()
    rows_in = 0
    for row in _worded(source(), settings):
        rows_in += 1
        if isinstance(row, Utterance):
            held_out.add(row.text, speakers.of(row))
    tally = _Tally()
    with files.replace_dir(corpus_dir) as folder, contextlib.ExitStack() as stack:
        writers = {split: shards.ShardWriter(folder / split, settings.shard_size) for split in SPLITS}
        for writer in writers.values():
            stack.enter_context(writer)
        for row in tqdm(_worded(source(), settings), "corpus", total=rows_in, unit=" rows", mininterval=0.5):
            if isinstance(row, Dropped):
                tally.drop(row)
                continue
            split = speakers.of(row)
            try:
                _refuse_leak(row, split, held_out)
                samples = _samples(row, settings)
            except Unusable as fault:
                tally.drop(Dropped(row.id, fault.reason, str(fault)))
                continue
            cut = shards.make_cut(row, split, samples.size, settings.sampling_rate_hz)
            writers[split].write(cut, shards.encode_flac(samples, settings.sampling_rate_hz))
            tally.keep(row, split, samples.size / settings.sampling_rate_hz)
        report = tally.report(rows_in, settings)
        _refuse_empty(report)
    return report


def _source(params: Params) -> Source:
    def rows() -> Iterator[Row]:
        for source in params.corpus.sources:
            yield from sources.rows(source, params.miniature)

    return rows


def _worded(rows: Iterator[Row], settings: Corpus) -> Iterator[Row]:
    """The rows in order, their transcripts normalised; those without words and repeated ids as Dropped."""
    seen: set[str] = set()
    for row in rows:
        if isinstance(row, Utterance):
            if row.id in seen:
                row = Dropped(
                    row.id, "duplicate_id", "an earlier row has this id; give each its own, or none"
                )
            else:
                seen.add(row.id)
                try:
                    row = replace(row, text=text.normalise(row.text, settings.normalizer))
                except Unusable as fault:
                    row = Dropped(row.id, fault.reason, str(fault))
        yield row


def _refuse_leak(utterance: Utterance, split: str, held_out: splits.HeldOutSentences) -> None:
    other = held_out.elsewhere(utterance.text, split)
    if other:
        raise Unusable("sentence_in_other_split", f"{utterance.text!r}, {split} here, is also in {other}")


def _samples(utterance: Utterance, settings: Corpus) -> NDArray[np.float32]:
    """The samples (N,) at the corpus's rate, of a plausible length. Raises Unusable."""
    samples = audio.load(utterance, settings.sampling_rate_hz, settings.max_duration_s)
    duration_s = samples.size / settings.sampling_rate_hz
    if duration_s < settings.min_duration_s:
        raise Unusable("too_short", f"{duration_s:.2f} s, less than {settings.min_duration_s:g} s")
    if duration_s > settings.max_duration_s:
        raise Unusable("too_long", f"{duration_s:.2f} s, more than {settings.max_duration_s:g} s")
    chars_per_s = len(utterance.text) / duration_s
    found = f"{chars_per_s:.1f} characters/s, {utterance.text!r} in {duration_s:.2f} s"
    if chars_per_s < settings.min_chars_per_s:
        raise Unusable("too_few_chars_per_s", f"{found}; less than {settings.min_chars_per_s:g}")
    if chars_per_s > settings.max_chars_per_s:
        raise Unusable("too_many_chars_per_s", f"{found}; more than {settings.max_chars_per_s:g}")
    return samples


class _Tally:
    """Counts what became of each row."""

    def __init__(self) -> None:
        self.dropped: list[Dropped] = []
        self.rows = dict.fromkeys(SPLITS, 0)
        self.seconds = dict.fromkeys(SPLITS, 0.0)
        self.speakers: dict[str, set[str]] = {split: set() for split in SPLITS}

    def drop(self, row: Dropped) -> None:
        self.dropped.append(row)

    def keep(self, utterance: Utterance, split: str, duration_s: float) -> None:
        self.rows[split] += 1
        self.seconds[split] += duration_s
        if utterance.speaker:
            self.speakers[split].add(utterance.speaker)

    def report(self, rows_in: int, settings: Corpus) -> dict[str, Any]:
        """The contents of reports/corpus.json. Raises RuntimeError where a row is unaccounted for."""
        rows_kept = sum(self.rows.values())
        if rows_in != rows_kept + len(self.dropped):
            raise RuntimeError(
                f"{rows_in} rows in, but {rows_kept} kept and {len(self.dropped)} dropped: "
                "the source changed while it was read, or rows were lost here"
            )
        return {
            "source": ", ".join(source.path or source.name for source in settings.sources),
            "normalizer": settings.normalizer,
            "rows_in": rows_in,
            "rows_kept": rows_kept,
            "dropped": dict(Counter(row.reason for row in self.dropped)),
            "dropped_rows": [asdict(row) for row in self.dropped],
            "splits": {
                split: {
                    "rows": self.rows[split],
                    "hours": round(self.seconds[split] / 3600, 6),
                    "speakers": len(self.speakers[split]),
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
