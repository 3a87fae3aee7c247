"""The systems, each a function from an instruction and test items to answers."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from tqdm import tqdm

from blsp.backbones import load_llm, load_recogniser
from blsp.continuation.engine import write_answers
from blsp.data.recogniser import Whisper, recognise
from blsp.evaluation.tasks import Item
from blsp.model.chat import build_prompt, hear, respond_to_heard
from blsp.params import Evaluate

System = Callable[[str, list[Item]], list[str]]


def text_system(settings: Evaluate, precision: str | None = None) -> System:
    """The LLM reading the true transcript: the ceiling. It computes in `precision`; None: as it is stored."""
    return _reader(settings, precision, lambda items: [item.transcript for item in items])


def cascade_system(settings: Evaluate, precision: str | None = None) -> System:
    """The speech model's own transcript of each item, then the LLM reading it; an item is recognised once.

    Both compute in `precision`, as for `text_system`.
    """
    whisper = Whisper(*load_recogniser(precision))

    def heard(items: list[Item]) -> list[str]:
        return recognise(whisper, [item.samples for item in items], [item.language for item in items])

    return _reader(settings, precision, _once_an_item(heard, settings.batch_size, "recogniser"))


def speech_system(settings: Evaluate, model: Any, processor: Any) -> System:
    """The LLM hearing the speech through the model's adapter; an item is heard once, whatever is asked about it."""
    heard = _once_an_item(
        lambda some: [vectors.cpu() for vectors in hear(model, processor, [item.samples for item in some])],
        settings.batch_size,
        "encoder",
    )

    def answer(instruction: str, items: list[Item]) -> list[str]:
        vectors = heard(items)
        answers = [""] * len(items)
        for rows in _batches([len(own) for own in vectors], settings.batch_size):
            batch = [vectors[row] for row in rows]
            texts = respond_to_heard(model, processor, instruction, batch, settings.max_new_tokens)
            for row, text in zip(rows, texts, strict=True):
                answers[row] = text
        return answers

    return answer


def _reader(settings: Evaluate, precision: str | None, transcripts_of: Callable[[list[Item]], list[str]]) -> System:
    model, tokenizer = load_llm(precision=precision)

    def answer(instruction: str, items: list[Item]) -> list[str]:
        prompts = [build_prompt(tokenizer, instruction, " " + text) for text in transcripts_of(items)]
        written = dict(write_answers(model, tokenizer, prompts, settings.batch_size, settings.max_new_tokens))
        return [written[row].text for row in range(len(prompts))]

    return answer


def _once_an_item(
    process: Callable[[list[Item]], Sequence[Any]], batch_size: int, name: str
) -> Callable[[list[Item]], list[Any]]:
    """What `process` makes of each item, in batches sorted by length; known as long as the item is."""
    known: WeakKeyDictionary[Item, Any] = WeakKeyDictionary()

    def of_all(items: list[Item]) -> list[Any]:
        new = [item for item in items if item not in known]
        batches = list(_batches([len(item.samples) for item in new], batch_size))
        for rows in tqdm(batches, desc=name, unit="batch", disable=not batches):
            some = [new[row] for row in rows]
            known.update(zip(some, process(some), strict=True))
        return [known[item] for item in items]

    return of_all


def _batches(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """The rows, shortest first, so many at a time."""
    order = sorted(range(len(lengths)), key=lambda row: (lengths[row], row))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]
