"""What is asked of the systems: test items, and the reference that each task has for them."""

from collections.abc import Set
from dataclasses import dataclass

import numpy as np

from blsp.data.shards import iter_shards, load_cuts
from blsp.errors import BlspError
from blsp.languages import primary
from blsp.params import Task


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


def items_of(task: Task, items: list[Item]) -> list[Item]:
    """The items that the task is about, and has a reference for where it needs one.

    Where no item names a language, nobody can tell: then they are of any task's.
    """
    named = any(item.language for item in items)
    return [
        item
        for item in items
        if (task.reference is None or reference_of(task, item) is not None)
        and (task.language is None or not named or primary(task.language) == primary(item.language))
        and task.source in (None, item.source)
    ]


def reference_of(task: Task, item: Item) -> str | None:
    """What a right answer is."""
    return getattr(item, task.reference) if task.reference else None
