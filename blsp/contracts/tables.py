"""The packed corpus and its continuations as tables, one row a thing to judge. Audio is never decoded.

Columns ending in `_splits` and `missing_continuations` are there so that a rule over several rows becomes a
rule over one column, which Great Expectations can judge and show.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from blsp.data.records import SPLITS
from blsp.data.shards import CONTINUATIONS_DIR, CORPUS_DIR, iter_shards, read_field
from blsp.data.text import sentence_key
from blsp.errors import BlspError
from blsp.files import read_json

CORPUS_COLUMNS = (
    "id",
    "split",
    "text",
    "sentence",
    "speaker",
    "language",
    "duration_s",
    "sampling_rate_hz",
    "chars_per_s",
    "licence",
)
CONTINUATION_COLUMNS = (
    "id",
    "split",
    "behaviour",
    "transcript",
    "text",
    "finish_reason",
    "n_tokens",
    "is_copy",
    "corpus_text",
)


def read_report(path: str | Path, stage: str) -> dict[str, Any]:
    """The report that a stage left. Raises BlspError where it is missing."""
    try:
        report: dict[str, Any] = read_json(path)
    except FileNotFoundError:
        raise BlspError(f"{path}: no such file; run `blsp {stage}` first") from None
    return report


def read_corpus(corpus_dir: str | Path = CORPUS_DIR) -> pd.DataFrame:
    """The utterances of all splits, one a row, with CORPUS_COLUMNS, sentence_splits and speaker_splits.

    `sentence` is the text without case and marks; `..._splits` names the splits the sentence, or the speaker,
    is in: "train", or "test, train". A value the corpus does not have is None, a text it does not have "".
    Raises BlspError where there is no corpus, or a shard is missing.
    """
    rows = [
        _corpus_row(cut, split) for split in SPLITS for shard in iter_shards(split, corpus_dir) for cut in shard.cuts()
    ]
    table = pd.DataFrame(rows, columns=CORPUS_COLUMNS)
    for column in ("sentence", "speaker"):
        table[f"{column}_splits"] = _splits_of(table, column)
    return table


def _corpus_row(cut: Any, split: str) -> tuple[Any, ...]:
    segment = cut.supervisions[0] if cut.supervisions else None
    text = (segment.text if segment else "") or ""
    return (
        cut.id,
        split,
        text,
        sentence_key(text) or None,
        (segment.speaker if segment else None) or None,
        (segment.language if segment else None) or None,
        cut.duration,
        cut.sampling_rate,
        len(text) / cut.duration if cut.duration else float("inf"),
        (cut.custom or {}).get("licence") or None,
    )


def _splits_of(table: pd.DataFrame, column: str) -> pd.Series:
    pairs = table[[column, "split"]].dropna().drop_duplicates().sort_values([column, "split"])
    return table[column].map(pairs.groupby(column)["split"].agg(", ".join))


def read_continuations(
    corpus: pd.DataFrame,
    behaviours: Iterable[str],
    corpus_dir: str | Path = CORPUS_DIR,
    continuations_dir: str | Path = CONTINUATIONS_DIR,
) -> pd.DataFrame:
    """What the LLM wrote, one row an utterance and behaviour, with CONTINUATION_COLUMNS.

    `is_copy` is true where the text says its transcript's words and no others; `corpus_text` is the text of
    the utterance in `corpus`. Raises BlspError where a field is missing, belongs to other utterances, or has
    a row without what a continuation must have.
    """
    rows = []
    for split in SPLITS:
        for shard in iter_shards(split, corpus_dir):
            for behaviour in behaviours:
                path = shard.field_path(behaviour, continuations_dir)
                for cut_id, value in read_field(shard, behaviour, continuations_dir).items():
                    rows.append((cut_id, split, behaviour, *_written(value, path, cut_id)))
    table = pd.DataFrame(rows, columns=CONTINUATION_COLUMNS[:-1])
    table["corpus_text"] = table["id"].map(corpus.drop_duplicates("id").set_index("id")["text"])
    return table


def _written(value: dict[str, Any], path: Path, cut_id: str) -> tuple[Any, ...]:
    try:
        transcript, text = value["transcript"], value["text"]
        finish_reason, n_tokens = value["finish_reason"], len(value["token_ids"])
    except KeyError as missing:
        raise BlspError(f"{path}, row {cut_id}: has no {missing}; run `blsp continuations` again") from None
    return transcript, text, finish_reason, n_tokens, sentence_key(text) == sentence_key(transcript)


def missing_continuations(
    corpus: pd.DataFrame, continuations: pd.DataFrame, behaviours: Iterable[str], report: dict[str, Any]
) -> list[str]:
    """For each utterance, the behaviours it has neither a row nor a listed drop for: "" or "repetition".

    `report` is reports/continuations.json.
    """
    accounted = set(zip(continuations["id"], continuations["behaviour"], strict=True))
    accounted |= {(row["id"], row["behaviour"]) for row in report["dropped_rows"] if row["reason"]}
    names = list(behaviours)
    return [", ".join(name for name in names if (id_, name) not in accounted) for id_ in corpus["id"]]


def preparation(report: dict[str, Any], corpus: pd.DataFrame) -> pd.DataFrame:
    """What became of the source's rows, one row: the counts of reports/corpus.json beside those that were packed.

    `rows_dropped` is the sum over reasons, `rows_listed` the rows named one by one.
    """
    dropped = sum(report["dropped"].values())
    reasons = ", ".join(f"{reason}: {count}" for reason, count in sorted(report["dropped"].items()))
    return pd.DataFrame(
        {
            "source": [report["source"]],
            "rows_in": [report["rows_in"]],
            "rows_kept": [report["rows_kept"]],
            "rows_dropped": [dropped],
            "rows_accounted": [report["rows_kept"] + dropped],
            "rows_packed": [len(corpus)],
            "rows_listed": [len(report["dropped_rows"])],
            "drop_share": [dropped / report["rows_in"] if report["rows_in"] else 0.0],
            "dropped": [reasons or "nothing"],
        }
    )
