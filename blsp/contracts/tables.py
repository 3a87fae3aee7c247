"""The packed corpus and its continuations as tables to judge: every row with what must be judged in full, and a sample.

Shards are read one at a time, and audio is never decoded: a row of the full tables takes some hundred bytes. Columns
ending in `_splits` and `missing_continuations` are there so that a rule over several rows becomes a rule over one
column, which Great Expectations can judge and show.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from blsp.contracts.sample import Sample, keys_of
from blsp.data.quality import spoken_chars
from blsp.data.records import SPLITS
from blsp.data.shards import CONTINUATIONS_DIR, CORPUS_DIR, Shard, iter_shards, read_field
from blsp.data.text import sentence_key
from blsp.errors import BlspError

_SPOKEN = {
    "id": pa.string(),
    "split": pa.string(),
    "speaker": pa.string(),
    "text": pa.string(),
    "duration_s": pa.float64(),
    "sampling_rate_hz": pa.int64(),
    "chars_per_s": pa.float64(),
    "licence": pa.string(),
}
_KEPT_OF_SPOKEN = ["id", "split", "speaker", "text"]
_WRITTEN = {
    "id": pa.string(),
    "split": pa.string(),
    "behaviour": pa.string(),
    "transcript": pa.string(),
    "text": pa.string(),
    "finish_reason": pa.string(),
    "is_copy": pa.bool_(),
}
# Texts take most of the room: in full, only those that are not as they should be.
_KEPT_OF_WRITTEN = {
    "id": pa.string(),
    "split": pa.string(),
    "behaviour": pa.string(),
    "up_to_date": pa.bool_(),
    "transcript": pa.string(),
    "corpus_text": pa.string(),
}


@dataclass(frozen=True)
class Table:
    """What is judged: every row, and the rows on which values are judged (tables of counts have none such)."""

    rows: pd.DataFrame
    sample: pd.DataFrame = field(default_factory=pd.DataFrame)


def read_shards(
    behaviours: Sequence[str],
    sample_rows: int,
    corpus_dir: str | Path = CORPUS_DIR,
    continuations_dir: str | Path = CONTINUATIONS_DIR,
) -> tuple[Table, Table]:
    """The utterances, and what the LLM wrote, one row an utterance and behaviour; samples of so many rows at most.

    Utterances have sentence_splits and speaker_splits, the names of the splits in which the sentence (case and marks
    aside) and the speaker are, "train" or "test, train", and by behaviour whether it was written. A value the corpus
    does not have is missing, a text it does not have "". Raises BlspError where there is no corpus, a shard or field
    is missing or belongs to other utterances, or a row is without what a continuation must have.
    """
    spoken, sentences, written = [], [], []
    spoken_sample, written_sample = Sample(sample_rows), Sample(sample_rows)
    for split in SPLITS:
        for shard in iter_shards(split, corpus_dir):
            own = _columns([_spoken_row(row, split) for row in shard.rows()], _SPOKEN)
            ids, texts = own["id"].to_pylist(), own["text"].to_pylist()
            spoken_sample.add(keys_of(ids), own)
            sentences.append(keys_of([sentence_key(text) for text in texts]))
            here = own.select(_KEPT_OF_SPOKEN)
            for behaviour in behaviours:
                values = read_field(shard, behaviour, continuations_dir)
                here = here.append_column(behaviour, pa.array([id_ in values for id_ in ids]))
                rows, kept = _written_rows(shard, behaviour, values, dict(zip(ids, texts, strict=True)))
                written_sample.add(keys_of([f"{behaviour} {id_}" for id_ in values]), rows)
                written.append(kept)
            spoken.append(here)
    schema = {name: _SPOKEN[name] for name in _KEPT_OF_SPOKEN} | dict.fromkeys(behaviours, pa.bool_())
    corpus = _frame(spoken, schema)
    in_splits = 1 << pd.Index(SPLITS).get_indexer(pd.Index(corpus["split"]))
    without_words = keys_of([""])[0]
    keys = np.concatenate(sentences) if sentences else np.zeros(0, dtype=np.uint64)
    corpus["sentence_splits"] = _splits_of(keys, in_splits, keys != without_words)
    speakers = pd.factorize(corpus["speaker"])[0]
    corpus["speaker_splits"] = _splits_of(speakers, in_splits, speakers >= 0)
    return (
        Table(corpus, _frame(spoken_sample.tables(), _SPOKEN)),
        Table(_frame(written, _KEPT_OF_WRITTEN), _frame(written_sample.tables(), _WRITTEN)),
    )


def _spoken_row(row: dict[str, Any], split: str) -> tuple[Any, ...]:
    segment = row["supervisions"][0] if row["supervisions"] else {}
    text, duration_s = segment.get("text") or "", row["duration"]
    return (
        row["id"],
        split,
        segment.get("speaker") or None,
        text,
        duration_s,
        row["recording"]["sampling_rate"],
        spoken_chars(text) / duration_s if duration_s else float("inf"),
        (row.get("custom") or {}).get("licence") or None,
    )


def _written_rows(
    shard: Shard, behaviour: str, values: dict[str, dict[str, Any]], texts: dict[str, str]
) -> tuple[pa.Table, pa.Table]:
    """The rows for the sample, and those that are kept in full."""
    rows, kept = [], []
    for cut_id, value in values.items():
        try:
            transcript, text, finish_reason, _ = (
                value[key] for key in ("transcript", "text", "finish_reason", "token_ids")
            )
        except KeyError as missing:
            path = shard.field_path(behaviour)
            raise BlspError(f"{path}, row {cut_id}: has no {missing}; run `blsp continuations` again") from None
        is_copy = sentence_key(text) == sentence_key(transcript)
        rows.append((cut_id, shard.split, behaviour, transcript, text, finish_reason, is_copy))
        fits = transcript == texts[cut_id]
        kept.append((cut_id, shard.split, behaviour, fits, *((None, None) if fits else (transcript, texts[cut_id]))))
    return _columns(rows, _WRITTEN), _columns(kept, _KEPT_OF_WRITTEN)


def _columns(rows: Sequence[tuple[Any, ...]], types: dict[str, pa.DataType]) -> pa.Table:
    columns = list(zip(*rows, strict=True)) or [()] * len(types)
    return pa.table([pa.array(column, of) for column, of in zip(columns, types.values(), strict=True)], list(types))


def _frame(tables: Sequence[pa.Table], types: dict[str, pa.DataType]) -> pd.DataFrame:
    return pa.concat_tables([pa.schema(types).empty_table(), *tables]).to_pandas()


def _splits_of(keys: NDArray[Any], in_splits: NDArray[Any], known: NDArray[np.bool_]) -> "pd.Series[str]":
    """For each row the names of the splits in which its key is, by alphabet; none where it is not known."""
    _, group = np.unique(keys, return_inverse=True)
    together = np.zeros(len(keys), dtype=np.int64)
    np.bitwise_or.at(together, group, in_splits)
    names = [", ".join(sorted(s for at, s in enumerate(SPLITS) if mask >> at & 1)) for mask in range(2 ** len(SPLITS))]
    return _named(pa.array(together[group], mask=~known), names)


def missing_continuations(corpus: pd.DataFrame, dropped: dict[str, Sequence[str]]) -> "pd.Series[str]":
    """For each utterance those of these behaviours that it has neither a row nor a listed drop of: "" or "repetition".

    `dropped` has, by behaviour, the ids of the rows that were dropped.
    """
    names = list(dropped)
    masks = np.zeros(len(corpus), dtype=np.int64)
    for at, name in enumerate(names):
        masks |= (~(corpus[name] | corpus["id"].isin(list(dropped[name])))).to_numpy().astype(np.int64) << at
    different, codes = np.unique(masks, return_inverse=True)
    sets = [", ".join(name for at, name in enumerate(names) if mask >> at & 1) for mask in different]
    return _named(pa.array(codes), sets)


def _named(codes: pa.Array, names: Sequence[str]) -> "pd.Series[str]":
    found: pd.Series[str] = (
        pa.DictionaryArray.from_arrays(codes, pa.array(names, pa.string())).cast(pa.string()).to_pandas()
    )
    return found
