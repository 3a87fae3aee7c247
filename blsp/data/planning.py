"""Which rows go into which shard: two readings of the sources say where speakers and sentences belong, a third plans.

No audio is read. Memory holds a number a row, one a speaker, and the held-out sentences.
"""

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from blsp.data import splits, text
from blsp.data.packing import ShardRows
from blsp.data.records import SPLITS, Dropped, Row, Unusable, Utterance, quoted
from blsp.params import Corpus
from blsp.params import Source as SourceSettings

Source = Callable[[], Iterator[Row]]
OPTIONAL = ("licence", "language", "speaker")
"""What a row had better name; the first two may be told for a whole source."""


@dataclass
class Texts:
    """How a source's transcripts are written: how often each thing was cleaned, and how many are in capitals.

    `rows` are those of scripts that have capitals.
    """

    cleaned: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    in_capitals: int = 0

    def add(self, written: text.Written) -> None:
        """Count one transcript, as the LLM will read it."""
        self.cleaned.update(written.cleaned)
        self.rows += written.text.upper() != written.text.lower()
        self.in_capitals += written.text.isupper()

    @property
    def all_in_capitals(self) -> bool:
        """Whether every transcript is in capitals: an LLM reads few such texts."""
        return 0 < self.rows == self.in_capitals


@dataclass(frozen=True)
class Survey:
    """What two readings of the sources found."""

    rows_in: tuple[int, ...]
    """The rows of each source."""
    speakers: splits.SpeakerSplits
    held_out: splits.HeldOutSentences
    repeated_ids: frozenset[int]
    """Hashes of the ids that may not be one row's alone."""
    rows_written: "Counter[text.Normalizer]"
    """How many transcripts each normaliser is for."""
    texts: tuple["Texts", ...]
    """Of each source, how its transcripts are written."""
    rows_without: "tuple[Counter[str], ...]"
    """Of each source, the rows that do not name their licence, language, speaker."""
    rows_with_ignored: "tuple[Counter[str], ...]"
    """Of each source, the rows with a key that means nothing here, by key."""

    def normalizers(self) -> dict[str, dict[str, Any]]:
        """For the report: by normaliser its rows and its version."""
        return {
            name: {"rows": rows, "version": text.normalizer_version(name)}
            for name, rows in sorted(self.rows_written.items())
        }


def survey(sources: Sequence[Source], settings: Corpus) -> Survey:
    """What is to be known of all rows before the first can be placed. Each source gives the same rows each time."""
    rows_in, hashes = [0] * len(sources), array("q")
    without: tuple[Counter[str], ...] = tuple(Counter() for _ in sources)
    ignored: tuple[Counter[str], ...] = tuple(Counter() for _ in sources)

    def counted() -> Iterator[Row]:
        for number, source in enumerate(sources):
            for row in source():
                rows_in[number] += 1
                if isinstance(row, Utterance):
                    hashes.append(hash(row.id))
                    without[number].update(key for key in OPTIONAL if not getattr(row, key))
                    ignored[number].update(row.ignored)
                yield row

    speakers = splits.assign_speakers(counted(), settings.dev_share, settings.test_share)
    values, counts = np.unique(np.array(hashes, dtype=np.int64), return_counts=True)
    repeated = frozenset(values[counts > 1].tolist())
    texts = tuple(Texts() for _ in sources)
    held_out = splits.HeldOutSentences()
    found = Survey(tuple(rows_in), speakers, held_out, repeated, Counter(), texts, without, ignored)
    for number, row in _identified(sources, repeated):
        if not isinstance(row, Utterance):
            continue
        found.rows_written[text.normalizer_of(row.language, settings.normalizer)] += 1
        try:
            written = text.as_written(row.text, row.language, settings.sources[number].case)
        except Unusable:
            continue
        texts[number].add(written)
        if (split := speakers.of(row)) != "train":
            found.held_out.add(text.sentence_keys(written.text, row.language, settings.normalizer), split)
    return found


def plan(
    sources: Sequence[Source],
    settings: Corpus,
    found: Survey,
    unwanted: Mapping[str, Dropped],
    drop: Callable[[int, Dropped], None],
) -> Iterator[ShardRows]:
    """The shards to be, each as soon as its rows are known.

    `drop` is called for rows that get into none, with their places in the source, in order; `unwanted` are rows by
    their ids that their shards are to leave out.
    """
    waiting: dict[str, list[tuple[int, Utterance]]] = {split: [] for split in SPLITS}
    numbers = dict.fromkeys(SPLITS, 0)
    repeats = splits.SentenceCounts()

    def shard(split: str) -> ShardRows:
        places, utterances = zip(*waiting[split], strict=True)
        of_these = {row.id: unwanted[row.id] for row in utterances if row.id in unwanted}
        local = (row.audio for row in utterances if isinstance(row.audio, Path))
        witness = next((path for path in local if path.exists()), None)
        made = ShardRows(split, numbers[split], utterances, places, of_these, witness)
        waiting[split], numbers[split] = [], numbers[split] + 1
        return made

    rows = (_worded(row, settings.sources[number]) for number, row in _identified(sources, found.repeated_ids))
    for place, row in enumerate(rows):
        if not isinstance(row, Utterance):
            drop(place, row)
            continue
        split = found.speakers.of(row)
        keys = text.sentence_keys(row.text, row.language, settings.normalizer)
        if other := found.held_out.elsewhere(keys, split):
            detail = f"{quoted(row.text)}, {split} here, is also in {other}"
            drop(place, Dropped(row.id, "sentence_in_other_split", detail))
            continue
        if settings.max_rows_per_sentence and repeats.add(keys, split) > settings.max_rows_per_sentence:
            detail = f"{quoted(row.text)} is in {split} {settings.max_rows_per_sentence} times already"
            drop(place, Dropped(row.id, "sentence_repeated", detail))
            continue
        waiting[split].append((place, row))
        if len(waiting[split]) == settings.shard_size:
            yield shard(split)
    for split in SPLITS:
        if waiting[split]:
            yield shard(split)


def _identified(sources: Iterable[Source], repeated_ids: frozenset[int]) -> Iterator[tuple[int, Row]]:
    """The number of its source and each row, in order; those whose id an earlier one has as Dropped."""
    seen: set[str] = set()
    for number, source in enumerate(sources):
        for row in source():
            if isinstance(row, Utterance) and hash(row.id) in repeated_ids:
                if row.id in seen:
                    row = Dropped(row.id, "duplicate_id", "an earlier row has this id; give each its own, or none")
                else:
                    seen.add(row.id)
            yield number, row


def _worded(row: Row, source: SourceSettings) -> Row:
    """The row with its transcript as the LLM reads it, as Dropped where it has no words."""
    if not isinstance(row, Utterance):
        return row
    try:
        return replace(row, text=text.as_written(row.text, row.language, source.case).text)
    except Unusable as fault:
        return Dropped(row.id, fault.reason, str(fault))
