"""Greedy answers of any causal model, with how each of them ended; and its logits, only where they are wanted."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from blsp.errors import BlspError

CHUNK_LOGITS = 1 << 25  # logits made at once: 128 MiB in float32
CHECKED_TOKENS = 8


@dataclass(frozen=True)
class Answer:
    """What the LLM wrote: token ids, with the end token where it stopped by itself, and their text."""

    token_ids: list[int]
    text: str
    finish_reason: Literal["stop", "length"]


@torch.inference_mode()
def greedy(model: PreTrainedModel, tokenizer: Any, max_new_tokens: int, **inputs: torch.Tensor) -> list[Answer]:
    """One greedy answer a row of left-padded model inputs, whatever the checkpoint's own generation settings are."""
    prompt_length = inputs["input_ids"].shape[1]
    ends = end_token_ids(model)
    pad = tokenizer.pad_token_id
    own = model.generation_config
    # generate fills from the model's own configuration whatever it is not told: suppressed tokens, penalties, ...
    model.generation_config = GenerationConfig(eos_token_id=sorted(ends) or None, pad_token_id=pad)
    try:
        output = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    finally:
        model.generation_config = own
    return [answer_of(row, tokenizer, ends) for row in output[:, prompt_length:].tolist()]


def logits_of(llm: PreTrainedModel, states: torch.Tensor) -> torch.Tensor:
    """The logits (N, V) of an LLM from its last states (N, D), as its own `forward` makes them: see `check_llm`."""
    logits = llm.get_output_embeddings()(states)
    if (factor := getattr(llm.config, "logit_scale", None)) is not None:  # Cohere's
        logits = logits * factor
    if (divisor := getattr(llm.config, "logits_scaling", None)) is not None:  # Granite's
        logits = logits / divisor
    if (softcap := getattr(llm.config, "final_logit_softcapping", None)) is not None:  # Gemma's
        logits = torch.tanh(logits / softcap) * softcap
    return logits


@torch.no_grad()
def check_llm(llm: PreTrainedModel) -> None:
    """Nothing; the LLM says the same to embeddings of words, by way of its last states, as to the words themselves.

    Speech enters as embeddings, and losses are made from last states. Families differ in what they do to both, under
    names of their own; some change tokens alone on their way in. Raises BlspError where the logits differ.
    """
    vocabulary = llm.config.get_text_config().vocab_size
    tokens = torch.arange(0, vocabulary, -(-vocabulary // CHECKED_TOKENS), device=llm.device)[None]
    expected = llm(input_ids=tokens, use_cache=False).logits[:, :-1]
    embeddings = llm.get_input_embeddings()(tokens).clone()
    embeddings[:, -1] = embeddings.mean(1)  # no word's, as speech is not; nothing before it hears it
    try:
        states = llm.base_model(inputs_embeds=embeddings, use_cache=False).last_hidden_state
        found = logits_of(llm, states)[:, :-1].to(expected)
        eps, spread = torch.finfo(llm.dtype).eps, float(expected.std())
        is_same = torch.allclose(found, expected, rtol=8 * eps, atol=0.01 * spread)
    except RuntimeError:  # Gemma 4 looks up which words the embeddings are of
        is_same = False
    if not is_same:
        raise BlspError(
            f"{llm.name_or_path}: an LLM of the kind {llm.config.model_type} answers otherwise to embeddings than to "
            "the tokens they stand for, so it cannot be given speech; choose another as backbones.llm_name"
        )


def chunk_rows(llm: PreTrainedModel) -> int:
    """How many states to make logits of at once, for them to stay within CHUNK_LOGITS."""
    return max(CHUNK_LOGITS // llm.config.get_text_config().vocab_size, 1)


def has_keys_alone(llm: PreTrainedModel) -> bool:
    """Whether keys and values are all that the LLM keeps of what it has read (Mamba, for one, keeps other states)."""
    kinds = {type(layer) for layer in DynamicCache(config=llm.config).layers}
    return kinds <= {DynamicLayer, DynamicSlidingWindowLayer}


def end_token_ids(model: PreTrainedModel) -> set[int]:
    """The tokens at which the model stops."""
    ends = model.generation_config.eos_token_id
    return set(ends) if isinstance(ends, list) else {ends} - {None}


def answer_of(token_ids: list[int], tokenizer: Any, ends: set[int]) -> Answer:
    """The answer that these tokens are; whatever comes after the first of the `ends` is left out."""
    stop = next((index for index, token in enumerate(token_ids) if token in ends), None)
    if stop is not None:
        token_ids = token_ids[: stop + 1]
    text = tokenizer.decode(token_ids, skip_special_tokens=True).strip()
    return Answer(token_ids, text, "length" if stop is None else "stop")
