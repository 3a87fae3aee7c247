"""The LLM in process: prompts in, greedy answers out as they end."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from transformers import PreTrainedModel

from blsp.model.continuous import can_join, continuous_greedy
from blsp.model.decoding import Answer, greedy

# An engine gives the number of each prompt with its answer, in any order. Prompts are texts of `build_prompt`.
Engine = Callable[[Sequence[str]], Iterator[tuple[int, Answer]]]


def write_answers(
    model: PreTrainedModel, tokenizer: Any, prompts: Sequence[str], batch_size: int, max_new_tokens: int
) -> Iterator[tuple[int, Answer]]:
    """The number of each prompt with its greedy answer, as they end; `batch_size` prompts are answered at a time.

    The answers do not depend on `batch_size`, but for near ties where numbers are rounded to few bits.
    """
    if not prompts:
        return
    prompt_ids = tokenizer(list(prompts), add_special_tokens=False).input_ids
    write = continuous_greedy if can_join(model) else _padded_greedy
    yield from write(model, tokenizer, prompt_ids, batch_size, max_new_tokens)


def _padded_greedy(
    model: PreTrainedModel, tokenizer: Any, prompt_ids: Sequence[Sequence[int]], batch_size: int, max_new_tokens: int
) -> Iterator[tuple[int, Answer]]:
    """The same for an LLM whose rows cannot join a batch: in batches sorted by length, padded on the left."""
    order = sorted(range(len(prompt_ids)), key=lambda row: (len(prompt_ids[row]), row))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        ids = {"input_ids": [prompt_ids[row] for row in rows]}
        batch = tokenizer.pad(ids, padding_side="left", return_tensors="pt").to(model.device)
        yield from zip(rows, greedy(model, tokenizer, max_new_tokens, **batch), strict=True)
