"""What is asked of the systems: test items, and the reference that each task has for them."""

from collections.abc import Set
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from blsp.data.shards import iter_shards, load_cuts
from blsp.data.text import sentence_key
from blsp.errors import BlspError
from blsp.languages import primary
from blsp.params import Task
from blsp.sampling import draw_of


@dataclass(frozen=True, eq=False)
class Item:
    """One test utterance: float32 mono samples (N,) at a rate in Hz, and the references that it has."""

    id: str
    samples: np.ndarray
    sampling_rate_hz: int
    transcript: str
    translation: str | None
    intent: str | None
    answer: str | None
    language: str | None
    speaker: str | None
    source: str | None

    @property
    def as_heard(self) -> tuple[np.ndarray, int]:
        """The samples and their rate in Hz."""
        return self.samples, self.sampling_rate_hz


class Identified(Protocol):
    """What has an id, as an Item and an Example have."""

    @property
    def id(self) -> str: ...


Utterance = TypeVar("Utterance", bound=Identified)


def test_items() -> list[Item]:
    """The test split, shortest first. Raises BlspError where it is empty."""
    items = [
        Item(
            id=cut.id,
            samples=cut.load_audio()[0],
            sampling_rate_hz=cut.sampling_rate,
            transcript=cut.supervisions[0].text,
            translation=cut.custom.get("translation"),
            intent=cut.custom.get("intent"),
            answer=cut.custom.get("answer"),
            language=primary(cut.supervisions[0].language),
            speaker=cut.supervisions[0].speaker,
            source=cut.custom.get("source"),
        )
        for cut in load_cuts("test")
    ]
    if not items:
        raise BlspError("data/corpus/test is empty: nothing to evaluate on; give rows the split `test`")
    return sorted(items, key=lambda item: (len(item.samples), item.id))


def heard_languages() -> set[str | None]:
    """The languages that training heard, as `primary` has them: those of the training split; None: of no known one."""
    rows = (row for shard in iter_shards("train") for row in shard.rows())
    return {primary(row["supervisions"][0].get("language")) for row in rows}


def heard_in_training(items: list[Item], heard: Set[str | None]) -> set[str]:
    """The ids of the items in the languages that training heard; of all where nobody knows."""
    return {item.id for item in items if not heard or item.language in heard}


def heard_before(items: list[Item]) -> dict[str, int]:
    """What of the test split is in the training data too, counted.

    {"speakers": known ones, "speakers_in_training", "without_speaker": utterances of which nobody knows the speaker,
    "sentences_in_training": utterances whose sentence was trained on}.
    """
    speakers, sentences = set(), set()
    for shard in iter_shards("train"):
        for row in shard.rows():
            spoken = row["supervisions"][0]
            speakers.add(spoken.get("speaker"))
            sentences.add(sentence_key(spoken["text"]))
    known = {item.speaker for item in items} - {None}
    return {
        "speakers": len(known),
        "speakers_in_training": len(known & speakers),
        "without_speaker": sum(item.speaker is None for item in items),
        "sentences_in_training": sum(sentence_key(item.transcript) in sentences for item in items),
    }


def items_of(task: Task, items: list[Item], limit: int | None = None) -> list[Item]:
    """The items that the task is about, and has a reference for where it needs one.

    `some_of` them, for a limit.
    Where no item names a language, nobody can tell: then they are of any task's.
    """
    named = any(item.language for item in items)
    own = [
        item
        for item in items
        if (task.reference is None or reference_of(task, item) is not None)
        and (task.language is None or not named or primary(task.language) == primary(item.language))
        and task.source in (None, item.source)
    ]
    return some_of(own, limit)


def some_of(items: list[Utterance], limit: int | None) -> list[Utterance]:
    """At most `limit` of the items, in their order; None: all. They are chosen by their ids, always the same ones.

    Fewer of them are among more of them, and the choices of two tasks overlap as far as their items do.
    """
    if limit is None or len(items) <= limit:
        return items
    chosen = {item.id for item in sorted(items, key=lambda item: draw_of("item", item.id))[:limit]}
    return [item for item in items if item.id in chosen]


def reference_of(task: Task, item: Item) -> str | None:
    """What a right answer is."""
    return getattr(item, task.reference) if task.reference else None
