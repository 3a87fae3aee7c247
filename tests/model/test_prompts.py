"""How instruction, examples and content become one prompt: written and spoken alike around the content."""

import pytest
from transformers import PreTrainedTokenizerFast

from blsp.miniature.llm import train_tokenizer
from blsp.model.chat import AUDIO_TOKEN, answer_to, build_prompt, spoken_around
from blsp.model.decoding import Answer
from blsp.params import load_params
from blsp.prompts import Prompt
from tests.trained import PARAMS

REPEAT = "Repeat the following text."
TURNS = (("turn on the fan", "turn on the fan"), ("play", "play"))


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    found = train_tokenizer(1, 500)
    found.add_special_tokens({"additional_special_tokens": [AUDIO_TOKEN]})
    return found


def test_prompts_of_todays_params_are_what_they_were(tokenizer):
    """Kept answers are named by their prompts' text: these must be the same bytes as before prompts had styles."""
    params = load_params(PARAMS)
    for asked in (*params.continuations.behaviours.values(), *params.evaluate.tasks.values()):
        for instruction in asked.instructions:
            prompt = asked.prompt(instruction)
            assert prompt == Prompt(instruction) and prompt.style is None
            for content, joined in (("play", " play"), (AUDIO_TOKEN, AUDIO_TOKEN)):
                expected = f"<|user|>{instruction}{joined}<|end|><|assistant|>"
                assert build_prompt(tokenizer, prompt, content) == expected
                assert build_prompt(tokenizer, instruction, joined) == expected


@pytest.mark.parametrize(
    ("prompt", "written", "spoken"),
    [
        (Prompt(""), "<|user|>play<|end|><|assistant|>", "<|user|>@<|end|><|assistant|>"),
        (
            Prompt(REPEAT, joint="{instruction}\n\n{content}"),
            f"<|user|>{REPEAT}\n\nplay<|end|><|assistant|>",
            f"<|user|>{REPEAT}\n\n@<|end|><|assistant|>",
        ),
        (
            Prompt("Repeat", joint='{instruction}: "{content}"'),
            '<|user|>Repeat: "play"<|end|><|assistant|>',
            '<|user|>Repeat: "@"<|end|><|assistant|>',
        ),
        (
            Prompt(REPEAT, joint="{content}\n\n{instruction}"),
            f"<|user|>play\n\n{REPEAT}<|end|><|assistant|>",
            f"<|user|>@\n\n{REPEAT}<|end|><|assistant|>",
        ),
        (
            Prompt("Repeat:", TURNS[1:]),
            "<|user|>Repeat: play<|end|><|assistant|>play<|end|><|user|>Repeat: play<|end|><|assistant|>",
            "<|user|>Repeat: play<|end|><|assistant|>play<|end|><|user|>Repeat:@<|end|><|assistant|>",
        ),
        (Prompt("", template="none"), "play", "@"),
        (
            Prompt("", TURNS[1:], "Text: {content}\nCopy:", "none"),
            "Text: play\nCopy: play\n\nText: play\nCopy:",
            "Text: play\nCopy: play\n\nText:@\nCopy:",
        ),
    ],
)
def test_how_a_prompt_is_put(tokenizer, prompt, written, spoken):
    assert build_prompt(tokenizer, prompt, "play") == written
    assert build_prompt(tokenizer, prompt, AUDIO_TOKEN) == spoken.replace("@", AUDIO_TOKEN)
    assert Prompt.of(prompt.instruction, prompt.style) == prompt


JOINTS = [
    "{instruction} {content}",
    "{instruction}\n\n{content}",
    '{instruction}: "{content}"',
    "{content}\n{instruction}",
]


@pytest.mark.parametrize("joint", JOINTS)
@pytest.mark.parametrize("instruction", [REPEAT, ""])
@pytest.mark.parametrize("template", ["chat", "none"])
@pytest.mark.parametrize("examples", [(), TURNS])
def test_ids_around_the_content_are_the_same_for_text_and_speech(tokenizer, joint, instruction, template, examples):
    prompt = Prompt(instruction, examples, joint, template)
    before, after = spoken_around(tokenizer, prompt)
    written = tokenizer(build_prompt(tokenizer, prompt, "play"), add_special_tokens=False).input_ids
    assert written[: len(before)] == before and written[len(written) - len(after) :] == after
    said = tokenizer.decode(written[len(before) : len(written) - len(after)])
    assert said.strip() == "play"


def test_speech_follows_the_tokens_that_words_follow():
    """GPT-2's spelling of an empty line: one token at the end of a text, two before a word."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: row for row, letter in enumerate([*letters, "ĊĊ"])}
    gpt2 = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ċ", "Ċ")]))
    gpt2.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=gpt2,
        additional_special_tokens=[AUDIO_TOKEN],
        chat_template="{% for m in messages %}{{ m['content'] }}{% endfor %}",
    )
    prompt = Prompt("Go", joint="{instruction}\n\n{content}")
    spoken = tokenizer(build_prompt(tokenizer, prompt, AUDIO_TOKEN), add_special_tokens=False).input_ids
    before, after = spoken_around(tokenizer, prompt)
    assert tokenizer.convert_ids_to_tokens(spoken[:3]) == ["G", "o", "ĊĊ"]
    assert tokenizer.convert_ids_to_tokens(before) == ["G", "o", "Ċ", "Ċ"] and after == []


def test_without_a_template_an_answer_ends_with_its_line(tokenizer):
    ids = tokenizer(" play it\nText: stop", add_special_tokens=False).input_ids
    whole = Answer(ids, tokenizer.decode(ids).strip(), "length")
    cut = answer_to(Prompt("", template="none"), whole, tokenizer)
    assert cut.text == "play it" and cut.finish_reason == "stop"
    assert cut.token_ids == ids[: len(cut.token_ids)] and "\n" in tokenizer.decode(cut.token_ids)
    assert answer_to(Prompt(""), whole, tokenizer) == whole
    endless = Answer(ids[:2], "play it", "length")
    assert answer_to(Prompt("", template="none"), endless, tokenizer) == endless
