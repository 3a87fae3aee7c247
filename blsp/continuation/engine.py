"""The LLM in process: tokenised prompts in, greedy answers out, in batches of similar length."""

from collections.abc import Callable, Sequence
from typing import Any

from transformers import PreTrainedModel

from blsp.model.decoding import Answer, greedy


def write_answers(
    model: PreTrainedModel,
    tokenizer: Any,
    prompt_ids: Sequence[Sequence[int]],
    batch_size: int,
    max_new_tokens: int,
    on_batch: Callable[[int], object] = lambda done: None,
) -> list[Answer]:
    """One greedy answer a prompt, in the prompts' order.

    Prompts run in batches sorted by length, padded on the left. `on_batch` is told how many prompts each finished
    batch held.
    """
    order = sorted(range(len(prompt_ids)), key=lambda row: (len(prompt_ids[row]), row))
    answers: list[Answer | None] = [None] * len(prompt_ids)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        ids = {"input_ids": [prompt_ids[row] for row in rows]}
        batch = tokenizer.pad(ids, padding_side="left", return_tensors="pt").to(model.device)
        written = greedy(model, tokenizer, max_new_tokens, **batch)
        for row, answer in zip(rows, written, strict=True):
            answers[row] = answer
        on_batch(len(rows))
    return [answer for answer in answers if answer is not None]
