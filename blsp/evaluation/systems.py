"""The systems, each a function from a prompt (an instruction alone, or more) and test items to answers."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from tqdm import tqdm

from blsp.backbones import load_llm, load_recogniser
from blsp.continuation.engine import write_answers
from blsp.data.recogniser import Whisper, recognise
from blsp.evaluation.tasks import Item
from blsp.model.chat import answer_to, build_prompt, hear, respond_to_heard
from blsp.params import Evaluate
from blsp.prompts import Prompt

Done = Callable[[int], object]


class System(Protocol):
    """Answers to a prompt about these items, in their order; `done` is told of so many more as they are there."""

    def __call__(self, prompt: Prompt | str, items: list[Item], done: Done = ...) -> list[str]: ...


def all_systems(settings: Evaluate, model: Any, processor: Any, untrained: Any) -> dict[str, System]:
    """Those that `evaluate` compares, around one copy of the LLM and one of the speech encoder: the model's own.

    `untrained` is the adapter of the system of that name.
    """
    llm = model.language_model, processor.tokenizer
    return {
        "text": text_system(settings, llm),
        "cascade": cascade_system(settings, llm, model.audio_tower),
        "speech": speech_system(settings, model, processor),
        "untrained": speech_system(settings, model, processor, untrained),
    }


def text_system(settings: Evaluate, llm: tuple[Any, Any] | None = None) -> System:
    """The LLM reading the true transcript: the ceiling. `llm` is it and its tokenizer, where they are loaded."""
    return _reader(settings, lambda items: [item.transcript for item in items], llm)


def cascade_system(settings: Evaluate, llm: tuple[Any, Any] | None = None, encoder: Any = None) -> System:
    """The speech model's own transcript of each item, then the LLM reading it; an item is recognised once.

    `llm` as for `text_system`; `encoder` is the speech model's, where it is loaded already.
    """
    whisper = Whisper(*load_recogniser(encoder))

    def heard(items: list[Item]) -> list[str]:
        return recognise(whisper, [item.samples for item in items], [item.language for item in items])

    return _reader(settings, _once_an_item(heard, settings.batch_size, "recogniser"), llm)


def speech_system(settings: Evaluate, model: Any, processor: Any, adapter: Any = None) -> System:
    """The LLM hearing the speech through the model's adapter; an item is heard once, whatever is asked about it.

    Where an `adapter` is given, it hears through that one.
    """

    def vectors_of(items: list[Item]) -> list[Any]:
        with model.hearing_through(adapter) if adapter is not None else nullcontext():
            return [vectors.cpu() for vectors in hear(model, processor, [item.samples for item in items])]

    heard = _once_an_item(vectors_of, settings.batch_size, "encoder")

    def answer(prompt: Prompt | str, items: list[Item], done: Done = nobody) -> list[str]:
        vectors = heard(items)
        answers = [""] * len(items)
        for rows in _batches([len(own) for own in vectors], settings.batch_size):
            batch = [vectors[row] for row in rows]
            texts = respond_to_heard(model, processor, prompt, batch, settings.max_new_tokens)
            for row, text in zip(rows, texts, strict=True):
                answers[row] = text
            done(len(rows))
        return answers

    return answer


def nobody(_: int) -> None:
    """Tell nobody."""


def _reader(
    settings: Evaluate, transcripts_of: Callable[[list[Item]], list[str]], llm: tuple[Any, Any] | None
) -> System:
    model, tokenizer = llm or load_llm()

    def answer(prompt: Prompt | str, items: list[Item], done: Done = nobody) -> list[str]:
        prompts = [build_prompt(tokenizer, prompt, text) for text in transcripts_of(items)]
        answers = [""] * len(items)
        for row, written in write_answers(model, tokenizer, prompts, settings.batch_size, settings.max_new_tokens):
            answers[row] = answer_to(prompt, written, tokenizer).text
            done(1)
        return answers

    return answer


def _once_an_item(
    process: Callable[[list[Item]], Sequence[Any]], batch_size: int, name: str
) -> Callable[[list[Item]], list[Any]]:
    """What `process` makes of each item, in batches sorted by length; known as long as the item is."""
    known: WeakKeyDictionary[Item, Any] = WeakKeyDictionary()

    def of_all(items: list[Item]) -> list[Any]:
        new = [item for item in items if item not in known]
        with tqdm(total=len(new), desc=name, unit=" utterances", leave=False, disable=not new) as progress:
            for rows in _batches([len(item.samples) for item in new], batch_size):
                some = [new[row] for row in rows]
                known.update(zip(some, process(some), strict=True))
                progress.update(len(rows))
        return [known[item] for item in items]

    return of_all


def _batches(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """The rows, shortest first, so many at a time."""
    order = sorted(range(len(lengths)), key=lambda row: (lengths[row], row))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]
