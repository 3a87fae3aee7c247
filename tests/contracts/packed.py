"""A packed corpus with continuations in the working directory, good unless a test spoils it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from blsp.data import shards
from blsp.data.drops import DROPPED, write_drops
from blsp.data.records import SPLITS, Utterance
from blsp.files import write_json

RATE_HZ = 16_000
BEHAVIOURS = ("continuation", "repetition")
_WORDS = ("lamp", "door", "oven", "radio", "heater", "curtain", "kettle", "window")


@dataclass
class Row:
    """One utterance and what the LLM wrote for it."""

    id: str
    split: str
    text: str
    speaker: str | None
    licence: str | None = "CC0-1.0"
    duration_s: float = 1.0
    sampling_rate_hz: int = RATE_HZ
    written: dict[str, dict[str, Any] | None] = field(default_factory=dict)
    """By behaviour; None where there is no row."""


def good_rows() -> list[Row]:
    """Eight utterances a split, each split with words and speakers of its own."""
    rows = []
    for split in SPLITS:
        for number, word in enumerate(_WORDS):
            text = f"{split} turns the {word}"
            row = Row(f"{split}-{number}", split, text, speaker=f"{split}-voice-{number % 2}")
            row.written = {
                "continuation": answer(text, f"and the {word} is warm"),
                "repetition": answer(text, text),
            }
            rows.append(row)
    return rows


def answer(transcript: str, text: str, finish_reason: str = "stop") -> dict[str, Any]:
    """The value of a continuation's field."""
    return {"transcript": transcript, "text": text, "finish_reason": finish_reason, "token_ids": [5, 6, 7]}


def pack(
    rows: list[Row],
    corpus: dict[str, Any] | None = None,
    dropped: Sequence[dict[str, str]] = (),
    dropped_answers: Sequence[dict[str, str]] = (),
    behaviours: dict[str, dict[str, Any]] | None = None,
    shard_size: int = 4,
) -> None:
    """Nothing; afterwards the working directory is as the stages before `validate` leave it.

    `corpus` and `behaviours` override what the reports say of sources and behaviours; `dropped` and `dropped_answers`
    are the lists of rows.
    """
    for split in SPLITS:
        own = [row for row in rows if row.split == split]
        with shards.ShardWriter(Path(shards.CORPUS_DIR) / split, shard_size=shard_size) as writer:
            for row in own:
                writer.write(*_audio(row))
        for shard in shards.iter_shards(split):
            ids = {cut.id for cut in shard.cuts()}
            for behaviour in BEHAVIOURS:
                values = {row.id: row.written[behaviour] for row in own if row.id in ids}
                shards.write_field(shard, behaviour, {id_: value for id_, value in values.items() if value})
    write_drops(Path(shards.CORPUS_DIR) / DROPPED, dropped)
    write_drops(Path(shards.CONTINUATIONS_DIR) / DROPPED, dropped_answers)
    reasons = dict(Counter(row["reason"] for row in dropped))
    counts = {"rows_in": len(rows) + len(dropped), "rows_kept": len(rows), "dropped": reasons} | (corpus or {})
    write_json("reports/corpus.json", counts | {"sources": [{"name": "manifest", "path": "mine", **counts}]})
    written = {}
    for name in BEHAVIOURS:
        reasons = dict(Counter(row["reason"] for row in dropped_answers if row["behaviour"] == name))
        kept = sum(row.written[name] is not None for row in rows)
        written[name] = {"rows": kept, "rows_not_asked": 0, "dropped": reasons} | (behaviours or {}).get(name, {})
    write_json("reports/continuations.json", {"behaviours": written})


def _audio(row: Row) -> tuple[Any, bytes]:
    num_samples = round(row.duration_s * row.sampling_rate_hz)
    samples = (0.1 * np.random.default_rng(1).standard_normal(num_samples)).astype(np.float32)
    utterance = Utterance(
        id=row.id,
        audio=Path("unused.wav"),
        text=row.text,
        speaker=row.speaker,
        licence=row.licence,
        source="mine",
    )
    cut = shards.make_cut(utterance, row.split, num_samples, row.sampling_rate_hz)
    return cut, shards.encode_flac(samples, row.sampling_rate_hz)
