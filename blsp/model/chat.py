"""The one way a prompt is made: for writing, training, evaluation and serving, from text and from speech."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from blsp.model.decoding import Answer, greedy
from blsp.plain_text import plain_text
from blsp.prompts import Prompt

if TYPE_CHECKING:
    from blsp.model.modeling import BlspForConditionalGeneration
    from blsp.model.processing import BlspProcessor

AUDIO_TOKEN = "<|audio|>"
PROBE = "Yes"  # a content, to see how a tokenizer spells what stands before one
BETWEEN_EXAMPLES = "\n\n"  # without a chat template


def build_prompt(tokenizer: Any, prompt: Prompt | str, content: str) -> str:
    """The prompt that asks the LLM for an answer to `content`, ready for that answer.

    `content` is the transcript for text (a space before it does not count) and AUDIO_TOKEN for speech. A space
    between instruction and transcript belongs to the transcript's first word, as tokenizers see it: there is none
    before speech. `spoken_around` gives the ids around speech. Control tokens of the LLM in instruction, examples and
    transcript are read as plain text.
    """
    prompt = Prompt(prompt) if isinstance(prompt, str) else prompt
    before, after = (plain_text(part, tokenizer) for part in prompt.around())
    content = content.removeprefix(" ")
    is_speech = content.startswith(AUDIO_TOKEN)  # of a transcript, the corpus has taken it apart
    asked = before.removesuffix(" ") + content if is_speech else before + plain_text(content, tokenizer)
    asked += after
    examples = [
        (before + plain_text(said, tokenizer) + after, plain_text(answer, tokenizer))
        for said, answer in prompt.examples
    ]
    if prompt.template == "none":
        turns = [message + gap_before_answer(message) + answer for message, answer in examples]
        return _start(tokenizer) + BETWEEN_EXAMPLES.join([*turns, asked])
    messages = []
    for message, answer in examples:
        messages += [{"role": "user", "content": message}, {"role": "assistant", "content": answer}]
    messages.append({"role": "user", "content": asked})
    return render(tokenizer, messages, add_generation_prompt=True)


def spoken_around(tokenizer: Any, prompt: Prompt | str) -> tuple[list[int], list[int]]:
    """The token ids before and after the speech vectors in a spoken prompt.

    They are the ones before and after a word in a written prompt: a tokenizer may spell what stands at the end of a
    text (an empty line, say) in other tokens than before a word. Where the last mark of a transcript and the first
    after it make one token (."), the written prompt has that one.
    """
    spoken = build_prompt(tokenizer, prompt, AUDIO_TOKEN)
    ids = tokenizer(spoken, add_special_tokens=False).input_ids
    place = ids.index(tokenizer.convert_tokens_to_ids(AUDIO_TOKEN))
    written = build_prompt(tokenizer, prompt, PROBE)
    following = PROBE + spoken.partition(AUDIO_TOKEN)[2]
    if not (tokenizer.is_fast and written.endswith(following)):
        return ids[:place], ids[place + 1 :]
    start = len(written) - len(following)
    spelled = tokenizer(written, add_special_tokens=False, return_offsets_mapping=True)
    ends = [end for _, end in spelled.offset_mapping]
    before, with_content = (sum(end <= limit for end in ends) for limit in (start, start + len(PROBE)))
    return spelled.input_ids[:before], spelled.input_ids[with_content:]


def answer_to(prompt: Prompt | str, answer: Answer, tokenizer: Any) -> Answer:
    """The answer as it counts: without a chat template nothing but a line's end says where it ends."""
    if isinstance(prompt, str) or prompt.template == "chat":
        return answer
    for length in range(1, len(answer.token_ids) + 1):
        text = tokenizer.decode(answer.token_ids[:length], skip_special_tokens=True).lstrip()
        if "\n" in text:
            return Answer(answer.token_ids[:length], text.partition("\n")[0].strip(), "stop")
    return answer


def gap_before_answer(message: str) -> str:
    """What stands between a message and its answer where there is no chat template."""
    return "" if message[-1:].isspace() else " "


def _start(tokenizer: Any) -> str:
    """The token that the tokenizer puts before every text, if it has one."""
    ids = tokenizer("a").input_ids
    return str(tokenizer.bos_token) if ids[0] == tokenizer.bos_token_id else ""


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
    prompt: Prompt | str,
    audio: Sequence[np.ndarray],
    max_new_tokens: int,
) -> list[str]:
    """The model's greedy answer to a prompt (an instruction alone, or more) on each clip, float32 mono (N,)."""
    return respond_to_heard(model, processor, prompt, hear(model, processor, audio), max_new_tokens)


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
    prompt: Prompt | str,
    heard: Sequence[torch.Tensor],
    max_new_tokens: int,
) -> list[str]:
    """As `respond`, from the clips' speech vectors (A, D)."""
    before, after = spoken_around(processor.tokenizer, prompt)
    ids = [[*before, *[processor.audio_token_id] * len(vectors), *after] for vectors in heard]
    inputs = processor.tokenizer.pad({"input_ids": ids}, padding_side="left", return_tensors="pt").to(model.device)
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
    return [answer_to(prompt, answer, processor.tokenizer).text for answer in answers]
