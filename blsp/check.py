"""`blsp check`: what would go wrong with a run, said in seconds and before anything is computed.

Sources are read (of a large one the beginning), a few files of each kind are decoded, and rows are placed as the
stage `corpus` will place them: what depends on all the audio, such as rates and recordings met twice, is judged there.
"""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path, PurePosixPath
from types import SimpleNamespace

from blsp.data import audio, corpus, planning, sources
from blsp.data.account import source_name
from blsp.data.records import SPLITS, Dropped, Row, Unusable, Utterance
from blsp.data.text import sentence_key
from blsp.errors import BlspError
from blsp.evaluation.tasks import items_of
from blsp.languages import primary
from blsp.params import Params, Source, Task

ROWS = 10_000
"""Rows of a source that are read."""
READING_S = 10.0
"""How long a source is read, s."""
FILES = 3
"""Files of each kind that are decoded."""
FILES_SOUGHT = 1_000
"""Files of a source whose being there is looked up."""
KNOWN_SHARE = 0.75
"""Share of a corpus's words that the miniature's LLM must know."""


@dataclass
class Findings:
    """What is there, what to know about it, and what a run would fail for: a line each."""

    facts: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def refuse_errors(self) -> None:
        """Raise BlspError where there are errors: a line each."""
        if self.errors:
            count = f"{len(self.errors)} thing{'s' if len(self.errors) > 1 else ''} to mend before a run:"
            raise BlspError("\n".join([count, *(f"  {line}" for line in self.errors)]))


@dataclass(frozen=True)
class Read:
    """The rows of a source, or its first ones."""

    source: Source
    rows: list[Row]
    whole: bool

    @property
    def name(self) -> str:
        return source_name(self.source)

    @property
    def utterances(self) -> list[Utterance]:
        return [row for row in self.rows if isinstance(row, Utterance)]


def run(params: Params) -> None:
    """Print what was found. Raises BlspError where a run would fail."""
    found = check(params)
    for line in found.facts:
        print(line)
    for line in found.warnings:
        print(f"warning: {line}")
    found.refuse_errors()
    print("nothing stands in the way of a run")


def check(params: Params) -> Findings:
    """What would come of a run with these params."""
    found = Findings()
    _check_models(params, found)
    read = list(_read(params, found))
    for one in read:
        _check_audio(one, params, found)
    if read and not found.errors:
        _check_words(read, params, found)
        placed = _placed(read, params, found)
        _check_splits(placed, all(one.whole for one in read), found)
        if placed["test"]:
            _check_tasks(placed["test"], params, found)
    return found


def _read(params: Params, found: Findings) -> Iterator[Read]:
    for source in params.corpus.sources:
        rows: list[Row] = []
        started_s = time.monotonic()
        whole = True
        try:
            for row in sources.rows(source, params.miniature):
                rows.append(row)
                if len(rows) == ROWS or time.monotonic() - started_s > READING_S:
                    whole = False
                    break
        except BlspError as error:
            found.errors.append(str(error))
            continue
        one = Read(source, rows, whole)
        unusable = Counter(row.reason for row in rows if isinstance(row, Dropped))
        read = f"{len(rows):,} rows" if whole else f"the first {len(rows):,} rows"
        languages = Counter(row.language or "unknown" for row in one.utterances)
        found.facts.append(
            f"{one.name}: {read}; languages: {_shown(languages)}"
            + (f"; dropped: {_shown(unusable)}" if unusable else "")
        )
        if not one.utterances:
            first = next((f", {row.reason}: {row.detail}" for row in rows if isinstance(row, Dropped)), "")
            found.errors.append(f"{one.name}: no row can be used{first or ': there is none'}")
        without = Counter(key for row in one.utterances for key in planning.OPTIONAL if not getattr(row, key))
        ignored = Counter(key for row in one.utterances for key in row.ignored)
        found.warnings += corpus.notes(one.name, without, ignored)
        yield one


def _check_audio(read: Read, params: Params, found: Findings) -> None:
    """Whether files are there, and those of each kind can be decoded."""
    local = [row.audio for row in read.utterances if isinstance(row.audio, Path)][:FILES_SOUGHT]
    missing = [path for path in local if not path.is_file()]
    if missing:
        where = found.errors if len(missing) == len(local) == len(read.utterances[:FILES_SOUGHT]) else found.warnings
        where.append(
            f"{read.name}: of {len(local):,} audio files looked for {len(missing):,} are not there, such as "
            f"{missing[0]}; mend the paths, or say with audio_root where the audio lies"
        )
    kinds: dict[str, list[Utterance]] = {}
    for row in read.utterances:
        if callable(row.audio) or isinstance(row.audio, bytes):
            kind = "samples"
        elif isinstance(row.audio, Path) and not row.audio.is_file():
            continue
        else:
            kind = PurePosixPath(str(row.audio)).suffix or "no extension"
        if len(kinds.setdefault(kind, [])) < FILES:
            kinds[kind].append(row)
    for kind, rows in kinds.items():
        faults = [fault for row in rows if (fault := _undecodable(row, params))]
        if len(faults) == len(rows):
            where = found.errors if len(kinds) == 1 else found.warnings
            where.append(f"{read.name}: {kind}: none of {len(rows)} that were tried can be decoded: {faults[0]}")


def _undecodable(row: Utterance, params: Params) -> str | None:
    """Why the row's audio cannot be decoded; None where it can."""
    try:
        audio.load(row, params.corpus.sampling_rate_hz, params.corpus.max_duration_s)
    except Unusable as fault:
        # Others are faults of one row: of its length, or its segment.
        return str(fault) if fault.reason in ("undecodable", "unreadable", "bad_sampling_rate") else None
    return None


def _check_models(params: Params, found: Findings) -> None:
    for part in ("speech", "llm"):
        name = getattr(params.backbones, f"{part}_name")
        if params.backbones.source == "local" and not Path(name).exists():
            found.errors.append(f"backbones.{part}_name: {name}: no such file or folder; name where the model lies")
    recogniser = params.corpus.recogniser
    if recogniser and not params.corpus.recogniser_revision and not Path(recogniser).is_dir():
        found.errors.append(
            f"corpus.recogniser: {recogniser}: no such folder; name one with a Whisper in it, or set "
            "corpus.recogniser_revision for one of the hub"
        )


def _check_words(read: Sequence[Read], params: Params, found: Findings) -> None:
    """Whether the miniature's LLM, which was trained on a small world, knows what is said."""
    spoken = [row for one in read if one.source.name != "miniature" for row in one.utterances]
    if params.backbones.source != "miniature" or not spoken:
        return
    from blsp.miniature.grammar import distinct_sentences

    sentences = distinct_sentences("train", params.miniature.seed, params.miniature.train_utterances)
    known = {word for one in sentences for text in (one.text, one.text_german) for word in sentence_key(text).split()}
    words = [word for row in spoken for word in sentence_key(row.text).split()]
    share = sum(word in known for word in words) / max(len(words), 1)
    if share < KNOWN_SHARE:
        found.errors.append(
            f"backbones.source: the miniature's LLM knows {len(known)} words, {share:.0%} of those in your speech; "
            "set backbones to models of your choice (docs/own-models.md)"
        )


def _placed(read: Sequence[Read], params: Params, found: Findings) -> dict[str, list[Utterance]]:
    """The rows of each split, as the stage `corpus` will place them."""
    again = [partial(iter, one.rows) for one in read]
    survey = planning.survey(again, params.corpus)
    dropped: list[Dropped] = []
    placed: dict[str, list[Utterance]] = {split: [] for split in SPLITS}
    for shard in planning.plan(again, params.corpus, survey, {}, lambda _, row: dropped.append(row)):
        placed[shard.split] += shard.rows
    found.facts.append("splits: " + ", ".join(f"{split} {len(rows):,}" for split, rows in placed.items()))
    rows, limit = sum(survey.rows_in), params.validate_.max_drop_share
    if dropped:
        reasons = _shown(Counter(row.reason for row in dropped))
        line = f"{len(dropped):,} of {rows:,} rows are dropped before their audio is read: {reasons}"
        example = f"; such as {dropped[0].id}: {dropped[0].detail}"
        if len(dropped) > limit * rows:
            found.errors.append(f"{line}; validate.max_drop_share is {limit:g}; mend the rows or raise it{example}")
        else:
            found.warnings.append(line + example)
    return placed


def _check_splits(placed: dict[str, list[Utterance]], whole: bool, found: Findings) -> None:
    where = found.errors if whole else found.warnings
    seen = "is left" if whole else "is among the rows that were read"
    for split in ("train", "test"):
        if not placed[split]:
            where.append(
                f"no row {seen} for {split}: name `split` in the rows, or set `splits: speakers` for the source and "
                "give at least three speakers"
            )
    if not placed["dev"]:
        found.warnings.append(
            f"no row {seen} for dev, so training is not watched on unseen speech: name `split: dev` in rows, or set "
            "`splits: official_test` or `speakers` for the source, which takes corpus.dev_share of the speakers"
        )
    splits: dict[str, set[str]] = {}
    for split, rows in placed.items():
        for speaker in {row.speaker for row in rows if row.speaker}:
            splits.setdefault(speaker, set()).add(split)
    if several := sorted(speaker for speaker, own in splits.items() if len(own) > 1):
        found.errors.append(
            f"{len(several):,} speakers are in more than one split, such as {several[0]!r}; `validate_corpus` refuses "
            "that: give all rows of a speaker one split, or set `splits: speakers` for the source"
        )


def _check_tasks(test: Sequence[Utterance], params: Params, found: Findings) -> None:
    """Which tasks have no items, and what that makes of the gates."""
    items = [
        SimpleNamespace(
            transcript=row.text,
            translation=row.translation,
            intent=row.intent,
            answer=row.answer,
            language=primary(row.language),
            source=row.source,
        )
        for row in test
    ]
    tasks = params.evaluate.tasks
    empty = {name: task for name, task in tasks.items() if not items_of(task, items)}  # type: ignore[arg-type]
    languages = {primary(task.language) for name, task in tasks.items() if name not in empty and task.language}
    if len(languages) > 1 and not any(item.language for item in items):
        found.warnings.append(
            f"no test row names its language, so the tasks for {' and '.join(sorted(map(str, languages)))} ask the "
            "same rows: set `language` for the source in corpus.sources"
        )
    for name, task in empty.items():
        found.warnings.append(f"evaluate.tasks.{name} is left out: {_why_empty(task, items)}")
    if len(empty) == len(tasks):
        found.errors.append("no task of evaluate.tasks has a test item: change their reference, language or source")
        return
    for gate in params.promote.gates:
        if (judged := next(iter(gate.split(".")[1:]), "")) in empty:
            found.warnings.append(
                f"promote.gates.{gate}: {judged} is left out, so promotion will be refused: take the gate out"
            )


def _why_empty(task: Task, items: Sequence[SimpleNamespace]) -> str:
    if task.reference and not any(getattr(item, task.reference) for item in items):
        return f"no test row has `{task.reference}`; add it to the rows, or take the task out"
    if task.language and not any(item.language == primary(task.language) for item in items):
        there = Counter(item.language or "unknown" for item in items)
        return f"no test row is in language {task.language}, but {_shown(there) or 'there is none'}"
    there = Counter(item.source for item in items)
    return (
        f"no test row has all it asks for: reference {task.reference}, language {task.language}, source {task.source} "
        f"(sources: {_shown(there) or 'none'})"
    )


def _shown(counts: Counter[str]) -> str:
    most = [f"{name} {count:,}" for name, count in counts.most_common(8)]
    return ", ".join(chain(most, ["…"] if len(counts) > 8 else []))
