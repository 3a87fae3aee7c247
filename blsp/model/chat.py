"""The one way a prompt is made: for writing, training, evaluation and serving, from text and from speech."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from blsp.model.decoding import greedy

if TYPE_CHECKING:
    from blsp.model.modeling import BlspForConditionalGeneration
    from blsp.model.processing import BlspProcessor

AUDIO_TOKEN = "<|audio|>"


def build_prompt(tokenizer: Any, instruction: str, content: str) -> str:
    """The chat prompt that asks the LLM to follow `instruction` on `content`, ready for its answer.

    `content` is " " + transcript for text and AUDIO_TOKEN for speech. The space belongs to the transcript's
    first word, as tokenizers see it, so that the ids before and after the content are the same for both.
    """
    messages = [{"role": "user", "content": instruction + content}]
    return render(tokenizer, messages, add_generation_prompt=True)


def render(tokenizer: Any, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = False) -> str:
    """The text that the LLM's pinned chat template makes of these turns: see blsp.model.chat_template."""
    text = tokenizer.apply_chat_template(
        list(messages), tokenize=False, add_generation_prompt=add_generation_prompt, return_dict=False
    )
    assert isinstance(text, str)
    return text


def end_of_turn(tokenizer: Any) -> Any:
    """The token with which the chat template ends an answer; the tokenizer's end token where it has none there."""
    if tokenizer.chat_template is None:
        return tokenizer.eos_token_id
    answer = "yes"
    conversation = render(tokenizer, [{"role": "user", "content": "a"}, {"role": "assistant", "content": answer}])
    after = tokenizer(conversation[conversation.rindex(answer) + len(answer) :], add_special_tokens=False).input_ids
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    return next((token for token in after if token in special), tokenizer.eos_token_id)


def respond(
    model: "BlspForConditionalGeneration",
    processor: "BlspProcessor",
    instruction: str,
    audio: Sequence[np.ndarray],
    max_new_tokens: int,
) -> list[str]:
    """The model's greedy answer to `instruction` on each clip of `audio`, float32 mono (N,), as one batch."""
    return respond_to_heard(model, processor, instruction, hear(model, processor, audio), max_new_tokens)


def hear(
    model: "BlspForConditionalGeneration", processor: "BlspProcessor", audio: Sequence[np.ndarray]
) -> list[torch.Tensor]:
    """The speech vectors (A, D) of each clip of `audio`, float32 mono (N,), as one batch, for any instruction."""
    with torch.inference_mode():
        vectors = model.get_audio_features(**processor.features(audio)).pooler_output
    return list(vectors.split([processor.audio_token_count(len(clip)) for clip in audio]))


def respond_to_heard(
    model: "BlspForConditionalGeneration",
    processor: "BlspProcessor",
    instruction: str,
    heard: Sequence[torch.Tensor],
    max_new_tokens: int,
) -> list[str]:
    """As `respond`, from the clips' speech vectors (A, D)."""
    prompt = build_prompt(processor.tokenizer, instruction, AUDIO_TOKEN)
    expanded = [prompt.replace(AUDIO_TOKEN, AUDIO_TOKEN * len(vectors)) for vectors in heard]
    inputs = processor.tokenizer(
        expanded, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt"
    ).to(model.device)
    with torch.inference_mode():
        embeddings = model.embed(inputs["input_ids"], torch.cat(list(heard)).to(model.device))
    answers = greedy(
        model,
        processor.tokenizer,
        max_new_tokens,
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        inputs_embeds=embeddings,
    )
    return [answer.text for answer in answers]
