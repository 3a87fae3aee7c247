"""The LLM's answers to the prompts of one shard, in a file that is named by all that decides them.

A file that is there is whole, and is never written again: what a killed run has finished is kept, and a changed prompt,
LLM, tokenizer, sampling setting or engine looks for files that are not there. What is written is the LLM's own text,
before any rule on its quality.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from blsp.backbones import load_llm, load_tokenizer
from blsp.continuation import engine, openai_server, teacher
from blsp.data.shards import read_jsonl_gz, write_jsonl_gz
from blsp.errors import BlspError
from blsp.model import chat, continuous, decoding, loading, responses
from blsp.model.decoding import Answer
from blsp.servers import Server
from blsp.staging import NotWhole, Staging


@dataclass(frozen=True)
class Asker:
    """How prompts are answered: by the LLM of `pin` in process, computing in `precision`, or by `server`.

    With each token `top_k` most likely ones are kept at `temperature`, and as many of the others: see `teacher`.
    """

    pin: dict[str, Any]
    precision: str
    max_new_tokens: int
    top_k: int
    temperature: float
    prompts_at_once: int
    server: Server | None

    def file_name(self, prompts: Sequence[str]) -> str:
        """A digest of all that decides the answers to these prompts."""
        server = self.server and self.server.model
        kept = self.top_k and [self.top_k, self.temperature]
        precision = None if server else self.precision
        how = [self.pin["sha256"], precision, self.max_new_tokens, kept, server, _code()]
        return f"{hashlib.sha256(json.dumps([how, list(prompts)]).encode()).hexdigest()[:40]}.jsonl.gz"


@dataclass(frozen=True)
class Written:
    """An answer and, where asked for, what is kept of the LLM's distribution at each of its tokens: see `teacher`."""

    answer: Answer
    kept_ids: list[list[int]] | None = None
    kept_logprobs: list[list[float]] | None = None
    kept_temperature: float | None = None


def nobody(_: int) -> None:
    """Tell nobody of progress."""


def answer_prompts(
    prompts: Sequence[str], asker: Asker, staging: Staging, done: Callable[[int], object] = nobody
) -> str:
    """The name in `staging` of the answers to these prompts, in their order; they are written where they are not there.

    `done` is told of so many more as they are written.
    Raises BlspError where a server does not answer.
    """
    name = asker.file_name(prompts)
    if staging.contents(name) is None:
        with staging.workspace() as folder:
            write_jsonl_gz(folder / name, map(asdict, _written(prompts, asker, done)))
            staging.store(folder / name, name)
    return name


def read_answers(name: str, staging: Staging) -> list[Written]:
    """What `answer_prompts` wrote, in its prompts' order.

    Raises BlspError where it is not there whole: the next run asks for it again.
    """
    with staging.workspace() as folder:
        try:
            staging.fetch(name, folder / name)
            staging.keep(name)
            return [Written(Answer(**row.pop("answer")), **row) for row in read_jsonl_gz(folder / name)]
        except (NotWhole, EOFError, OSError, ValueError) as error:
            staging.remove(name)
            raise BlspError(
                f"{staging}/{name}: the answers of a shard are not there whole ({error}); run it again: they are asked "
                f"for again, the others are kept. Workers must share {staging}: see execution.staging in params.yaml"
            ) from None


def loaded_llm(asker: Asker) -> tuple[Any, Any]:
    """The asker's LLM and its tokenizer, loaded once a process."""
    return _llm(json.dumps(asker.pin), asker.precision)


def loaded_tokenizer(asker: Asker) -> Any:
    """The asker's tokenizer alone."""
    return _tokenizer(json.dumps(asker.pin))


def _written(prompts: Sequence[str], asker: Asker, done: Callable[[int], object]) -> list[Written]:
    if asker.server is not None:
        tokenizer = loaded_tokenizer(asker)
        by_row = dict(_told(openai_server.ask_server(asker.server, tokenizer, prompts, asker.max_new_tokens), done))
        return [Written(by_row[row]) for row in range(len(prompts))]
    model, tokenizer = loaded_llm(asker)
    answered = engine.write_answers(model, tokenizer, prompts, asker.prompts_at_once, asker.max_new_tokens)
    by_row = dict(_told(answered, done))
    answers = [by_row[row] for row in range(len(prompts))]
    if not asker.top_k:
        return [Written(answer) for answer in answers]
    ids = tokenizer(list(prompts), add_special_tokens=False).input_ids
    written = []
    for start in range(0, len(answers), asker.prompts_at_once):
        rows = slice(start, start + asker.prompts_at_once)
        kept = teacher.kept_logprobs(model, ids[rows], answers[rows], asker.top_k, asker.temperature)
        written += [Written(answer, *own, asker.temperature) for answer, own in zip(answers[rows], kept, strict=True)]
    return written


def _told(answers: Iterable[tuple[int, Answer]], done: Callable[[int], object]) -> Iterator[tuple[int, Answer]]:
    for answer in answers:
        done(1)
        yield answer


# A worker answers the prompts of many shards. Pins are dictionaries, which no cache takes as they are.
@lru_cache(maxsize=1)
def _llm(pin: str, precision: str) -> tuple[Any, Any]:
    return load_llm({"llm": json.loads(pin)}, precision)


@lru_cache(maxsize=1)
def _tokenizer(pin: str) -> Any:
    return load_tokenizer({"llm": json.loads(pin)})


@cache
def _code() -> str:
    """A digest of the code that turns prompts into tokens and says where answers end."""
    modules = (engine, openai_server, teacher, chat, continuous, decoding, loading, responses)
    code = "".join(Path(str(module.__file__)).read_text(encoding="utf-8") for module in modules)
    return hashlib.sha256(code.encode()).hexdigest()
