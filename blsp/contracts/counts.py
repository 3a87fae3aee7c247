"""What the stages say of their rows, as tables to judge: one row a source, one row a behaviour."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from blsp.data.drops import DROPPED, read_drops
from blsp.data.shards import CONTINUATIONS_DIR, CORPUS_DIR
from blsp.errors import BlspError
from blsp.files import read_json

ALL_SOURCES = "all sources"
COUNTED = {"rows", "rows_not_asked", "dropped"}  # of a behaviour, in reports/continuations.json


def read_report(path: str | Path, stage: str) -> dict[str, Any]:
    """The report that a stage left. Raises BlspError where it is missing."""
    try:
        report: dict[str, Any] = read_json(path)
    except FileNotFoundError:
        raise BlspError(f"{path}: no such file; run `blsp {stage}` first") from None
    return report


def preparation(report: dict[str, Any], rows_packed: int, corpus_dir: str | Path = CORPUS_DIR) -> pd.DataFrame:
    """What became of the rows of each source, and last of all sources: what reports/corpus.json says of them.

    `dropped` and `listed` are the counts by reason that the report has, and those of the list of dropped rows;
    `rows_packed`, of all sources alone, are the rows of the packed corpus.
    """
    listed: dict[str, Counter[str]] = {}
    for row in read_drops(Path(corpus_dir) / DROPPED):
        listed.setdefault(row["source"], Counter())[row["reason"]] += 1
    rows = []
    for source in report["sources"]:
        name = source["path"] or source["name"]
        rows.append(_source_row(name, source, listed.pop(name, Counter())))
    # What is listed under no source of the report counts against all of them.
    everything = sum(listed.values(), Counter())
    for source in report["sources"]:
        everything += Counter(source["dropped"])
    rows.append(_source_row(ALL_SOURCES, report, everything) | {"rows_packed": rows_packed})
    return pd.DataFrame(rows)


def _source_row(name: str, counts: dict[str, Any], listed: Counter[str]) -> dict[str, Any]:
    rows_in, rows_dropped = counts["rows_in"], sum(counts["dropped"].values())
    return {
        "source": name,
        "rows_in": rows_in,
        "rows_kept": counts["rows_kept"],
        "rows_dropped": rows_dropped,
        "rows_accounted": counts["rows_kept"] + rows_dropped,
        "drop_share": rows_dropped / rows_in if rows_in else 0.0,
        "dropped": _shown(counts["dropped"], rows_in),
        "listed": _shown(listed, rows_in),
    }


def answers(
    report: dict[str, Any], corpus: pd.DataFrame, behaviours: Sequence[str], dropped: Mapping[str, Counter[str]]
) -> pd.DataFrame:
    """What became of each utterance under each behaviour: what reports/continuations.json says of them.

    `corpus` has a column by behaviour, true where an utterance has a row; `dropped` are the counts by reason of the
    list of dropped answers.
    """
    rows = []
    for name in behaviours:
        counts = report["behaviours"].get(name)
        if counts is None or not counts.keys() >= COUNTED:
            found = "knows no" if counts is None else f"has no {', '.join(sorted(COUNTED - counts.keys()))} of the"
            raise BlspError(
                f"reports/continuations.json {found} behaviour {name!r} of continuations.behaviours; run "
                "`blsp continuations` again"
            )
        rows_dropped = sum(counts["dropped"].values())
        asked = counts["rows"] + rows_dropped
        rows.append(
            {
                "behaviour": name,
                "utterances": len(corpus),
                "rows_not_asked": counts["rows_not_asked"],
                "rows_in": asked,
                "rows_kept": counts["rows"],
                "rows_found": int(corpus[name].sum()),
                "rows_dropped": rows_dropped,
                "rows_accounted": asked + counts["rows_not_asked"],
                "largest_drop_share": max(counts["dropped"].values(), default=0) / max(asked, 1),
                "dropped": _shown(counts["dropped"], asked),
                "listed": _shown(dropped.get(name, {}), asked),
            }
        )
    return pd.DataFrame(rows)


def read_dropped_answers(
    continuations_dir: str | Path = CONTINUATIONS_DIR,
) -> tuple[dict[str, Counter[str]], dict[str, list[str]]]:
    """By behaviour, the dropped answers by reason, and the ids of their utterances."""
    reasons: dict[str, Counter[str]] = {}
    ids: dict[str, list[str]] = {}
    for row in read_drops(Path(continuations_dir) / DROPPED):
        reasons.setdefault(row["behaviour"], Counter())[row["reason"]] += 1
        ids.setdefault(row["behaviour"], []).append(row["id"])
    return reasons, ids


def _shown(reasons: Mapping[str, int], rows: int) -> str:
    """`loop 12 (0.12%), refusal 3 (0.03%)`, or `nothing`."""
    shown = (f"{reason} {count:,} ({count / max(rows, 1):.2%})" for reason, count in sorted(reasons.items()) if count)
    return ", ".join(shown) or "nothing"
