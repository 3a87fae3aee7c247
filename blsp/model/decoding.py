"""Greedy answers of any causal model, with how each of them ended; and its logits, only where they are wanted."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

CHUNK_LOGITS = 1 << 25  # logits made at once: 128 MiB in float32


@dataclass(frozen=True)
class Answer:
    """What the LLM wrote: token ids, with the end token where it stopped by itself, and their text."""

    token_ids: list[int]
    text: str
    finish_reason: Literal["stop", "length"]


@torch.inference_mode()
def greedy(model: PreTrainedModel, tokenizer: Any, max_new_tokens: int, **inputs: torch.Tensor) -> list[Answer]:
    """One greedy answer a row of left-padded model inputs, whatever the checkpoint's own sampling settings are."""
    prompt_length = inputs["input_ids"].shape[1]
    output = model.generate(
        **inputs,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        temperature=None,
        top_p=None,
        top_k=None,
        repetition_penalty=None,
        pad_token_id=tokenizer.pad_token_id,
    )
    ends = end_token_ids(model)
    return [_answer(row, tokenizer, ends) for row in output[:, prompt_length:].tolist()]


def logits_of(llm: PreTrainedModel, states: torch.Tensor) -> torch.Tensor:
    """The logits (N, V) of an LLM from its last states (N, D), as its own `forward` makes them."""
    logits = llm.get_output_embeddings()(states)
    softcap = getattr(llm.config, "final_logit_softcapping", None)  # Gemma's
    return logits if softcap is None else torch.tanh(logits / softcap) * softcap


def chunk_rows(llm: PreTrainedModel) -> int:
    """How many states to make logits of at once, for them to stay within CHUNK_LOGITS."""
    return max(CHUNK_LOGITS // llm.config.get_text_config().vocab_size, 1)


def end_token_ids(model: PreTrainedModel) -> set[int]:
    """The tokens at which the model stops."""
    ends = model.generation_config.eos_token_id
    return set(ends) if isinstance(ends, list) else {ends}


def _answer(token_ids: list[int], tokenizer: Any, ends: set[int]) -> Answer:
    stop = next((index for index, token in enumerate(token_ids) if token in ends), None)
    if stop is not None:
        token_ids = token_ids[: stop + 1]
    text = tokenizer.decode(token_ids, skip_special_tokens=True).strip()
    return Answer(token_ids, text, "length" if stop is None else "stop")
