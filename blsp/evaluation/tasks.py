"""What is asked of the systems: test items, and the reference that each task has for them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from blsp.data.shards import load_cuts
from blsp.errors import BlspError
from blsp.evaluation import metrics
from blsp.evaluation.metrics import Figure, Resampling


@dataclass(frozen=True, eq=False)
class Item:
    """One test utterance: float32 mono samples (N,), its transcript, and the references it has."""

    id: str
    samples: np.ndarray
    transcript: str
    language: str | None
    translation: str | None
    intent: str | None
    answer: str | None


@dataclass(frozen=True)
class Task:
    """One task: its reference for an item (None: the item has none), the metric's name, and its scorer."""

    title: str
    metric: str
    reference: Callable[[Item], str | None]
    score: Callable[[list[str], list[str], Resampling], Figure]


TASKS: dict[str, Task] = {
    "asr": Task("speech recognition", "wer", lambda item: item.transcript, metrics.word_error_rate),
    "st": Task("speech translation", "bleu", lambda item: item.translation, metrics.bleu),
    "slu": Task("intent", "accuracy", lambda item: item.intent, metrics.accuracy),
    "qa": Task("spoken question", "accuracy", lambda item: item.answer, metrics.answer_accuracy),
}


def test_items() -> list[Item]:
    """The test split, shortest first. Raises BlspError where it is empty."""
    items = [
        Item(
            id=cut.id,
            samples=cut.load_audio()[0],
            transcript=cut.supervisions[0].text,
            language=cut.supervisions[0].language,
            translation=cut.custom.get("translation"),
            intent=cut.custom.get("intent"),
            answer=cut.custom.get("answer"),
        )
        for cut in load_cuts("test")
    ]
    if not items:
        raise BlspError("data/corpus/test is empty: nothing to evaluate on; give rows the split `test`")
    return sorted(items, key=lambda item: (len(item.samples), item.id))


def with_reference(task: Task, items: list[Item]) -> tuple[list[Item], list[str]]:
    """The items the task can be judged on, and their references."""
    pairs = [(item, reference) for item in items if (reference := task.reference(item)) is not None]
    return [item for item, _ in pairs], [reference for _, reference in pairs]
