"""How well the text LLM expects an answer to what was truly said: for answers that have no single right wording.

The LLM reads the true transcript under the instruction, and then the answer, whoever gave it. An answer that has
nothing to do with what was said is improbable. Two things it does not see: what is likely need not be right, and text
that repeats itself is likely. So it stands beside a judge or a reader, not in their place.

Axes: N different questions with their answers, L tokens.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from blsp.model.chat import build_prompt, end_of_turn, gap_before_answer, render
from blsp.model.decoding import chunk_rows, logits_of
from blsp.model.responses import prompted
from blsp.params import Evaluate, Task
from blsp.prompts import Prompt


def with_perplexity(
    table: pd.DataFrame, tasks: Mapping[str, Task], llm: PreTrainedModel, tokenizer: Any, settings: Evaluate
) -> pd.DataFrame:
    """The table of answers with `counts`: those of `perplexity_counts` in rows of tasks with that metric, else None."""
    open_ended = table["task"].isin([name for name, task in tasks.items() if task.metric == "perplexity"])
    counts = pd.Series([None] * len(table), index=table.index, dtype=object)
    if open_ended.any():
        asked = table[open_ended]
        prompts = [tasks[name].prompt(i) for name, i in zip(asked["task"], asked["instruction"], strict=True)]
        asked = asked.assign(instruction=pd.Series(prompts, index=asked.index, dtype=object))
        counts[open_ended] = perplexity_counts(llm, tokenizer, asked, settings.batch_size, settings.max_new_tokens)
    return table.assign(counts=counts)


def perplexity_counts(
    llm: PreTrainedModel, tokenizer: Any, table: pd.DataFrame, batch_size: int, max_new_tokens: int
) -> list[np.ndarray]:
    """Nats and tokens (2,) of the answer in each row of the table, from instruction (or Prompt), transcript, answer.

    The end token is one of an answer's tokens where the answer ended. One that has `max_new_tokens` tokens or more was
    cut there: it has none. An empty answer is the end token alone: the LLM's surprise that nothing is to be said.
    """
    asked = list(zip(table["instruction"], table["transcript"], table["answer"], strict=True))
    different = list(dict.fromkeys(asked))  # systems that agree are read once
    between = _between_prompt_and_answer(tokenizer)
    pairs = [_spelled(tokenizer, between, *one, max_new_tokens) for one in different]
    order = sorted(range(len(pairs)), key=lambda row: (sum(map(len, pairs[row])), row))
    counts: dict[tuple[Prompt | str, str, str], np.ndarray] = {}
    with tqdm(total=len(order), desc="perplexity", unit=" answers") as progress:
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            nats = _nats(llm, [pairs[row][0] for row in rows], [pairs[row][1] for row in rows])
            for row, own in zip(rows, nats, strict=True):
                counts[different[row]] = np.array([own, len(pairs[row][1])])
            progress.update(len(rows))
    return [counts[one] for one in asked]


@torch.inference_mode()
def _nats(llm: PreTrainedModel, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> list[float]:
    """How improbable each response is after its prompt: the sum over its tokens."""
    read = prompted(prompts, responses)
    ids, mask, predicts = (tensor.to(llm.device) for tensor in (read.ids, read.mask, read.predicts))
    states = llm.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state[predicts]
    tokens = torch.tensor(list(itertools.chain.from_iterable(responses)), device=llm.device)
    nats = torch.cat(
        [
            torch.nn.functional.cross_entropy(logits_of(llm, chunk).float(), own, reduction="none")
            for chunk, own in zip(states.split(chunk_rows(llm)), tokens.split(chunk_rows(llm)), strict=True)
        ]
    )
    return [float(own.double().sum()) for own in nats.split([len(response) for response in responses])]


def _spelled(
    tokenizer: Any, between: str, asked: Prompt | str, transcript: str, answer: str, max_new_tokens: int
) -> tuple[list[int], list[int]]:
    """The tokens of the prompt and those of the answer, as the tokenizer spells them one after the other."""
    prompt = build_prompt(tokenizer, asked, transcript)
    if not isinstance(asked, str) and asked.template == "none":
        between = gap_before_answer(prompt)
    texts = [prompt, prompt + between + answer if answer else prompt]
    before, whole = tokenizer(texts, add_special_tokens=False).input_ids
    alike = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(before, whole, strict=False)))
    is_cut = len(whole) - alike >= max_new_tokens
    return whole[:alike], whole[alike:] + ([] if is_cut else [end_of_turn(tokenizer)])


def _between_prompt_and_answer(tokenizer: Any) -> str:
    """What the chat template puts before an answer, such as a space; nothing where it writes turns in another way."""
    question, answer = {"role": "user", "content": "a"}, {"role": "assistant", "content": "yes"}
    prompt = render(tokenizer, [question], add_generation_prompt=True)
    conversation = render(tokenizer, [question, answer])
    if not conversation.startswith(prompt):
        return ""
    return str(conversation[len(prompt) : conversation.rindex("yes")])
