"""Chat templates of today's LLMs: thinking, dates, several templates, parts; each pinned, or refused at `backbones`."""

import datetime
import shutil

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, trainers
from transformers import AutoModelForCausalLM, AutoProcessor, AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from blsp import backbones
from blsp.continuation.engine import write_answers
from blsp.errors import BlspError
from blsp.files import sha256_of
from blsp.miniature.llm import END
from blsp.model import BlspConfig, BlspForConditionalGeneration, BlspProcessor
from blsp.model.chat import AUDIO_TOKEN, build_prompt, end_of_turn, respond, spoken_around
from blsp.model.chat_template import load_spoken_tokenizer, load_tokenizer
from blsp.model.decoding import greedy
from blsp.model.export import export
from blsp.model.loading import load_language_model
from tests import tiny
from tests.test_backbones import params

QUESTION = [{"role": "user", "content": "Which tram?"}]
TURN_END = "<|im_end|>"
NO_THOUGHTS = "<think>\n\n</think>\n\n"
TURNS = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}ANSWER{%- endif %}"
)
# The ways in which makers write their templates: Qwen3's and DeepSeek's of thinking, ...
QWEN3 = TURNS.replace(
    "ANSWER",
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}",
)
DEEPSEEK = (
    "{%- if not thinking is defined %}{%- if enable_thinking is defined %}{%- set thinking = enable_thinking %}"
    "{%- else %}{%- set thinking = true %}{%- endif %}{%- endif %}"
) + TURNS.replace("ANSWER", "{{- '<think>' if thinking else '</think>' }}")
# ... SmolLM3's, Llama 3.2's and gpt-oss's of the day, ...
SMOLLM3 = "{%- set today = strftime_now('%d %B %Y') %}{{- 'Today: ' + today + '.' }}" + TURNS.replace("ANSWER", "")
LLAMA32 = (
    "{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    "{%- set date_string = strftime_now('%d %b %Y') %}{%- else %}{%- set date_string = '26 Jul 2024' %}{%- endif %}"
    "{%- endif %}{{- 'Today: ' + date_string + '.' }}"
) + TURNS.replace("ANSWER", "")
GPT_OSS = (
    "{%- macro system() -%}{{- 'Today: ' + strftime_now('%d %b %Y') + '.' }}{%- endmacro %}{{- system() }}"
) + TURNS.replace("ANSWER", "")
# ... and SmolVLM's, which knows content in parts alone.
PARTS_ALONE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\n' }}{%- for part in message.content %}"
    "{%- if part.type == 'text' %}{{- part.text }}{%- endif %}{%- endfor %}{{- '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Pins of tiny backbones whose tokenizer has the tokens of the templates here."""
    pins = tiny.save_backbones(tmp_path_factory.mktemp("base"))
    folder = pins["llm"]["name"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", TURN_END]})
    tokenizer.save_pretrained(folder)
    llm = AutoModelForCausalLM.from_pretrained(folder)
    llm.resize_token_embeddings(len(tokenizer))
    llm.save_pretrained(folder)
    return pins


@pytest.fixture
def checkpoint(base, tmp_path):
    """A function that gives the pins of the tiny backbones, their LLM copied with another chat template."""

    def make(template, pad_token="<|pad|>", **pinned):
        folder = tmp_path / "llm"
        shutil.copytree(base["llm"]["name"], folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.chat_template, tokenizer.pad_token = template, pad_token
        (folder / "chat_template.jinja").unlink()
        tokenizer.save_pretrained(folder)
        return {**base, "llm": {**base["llm"], "name": str(folder), "sha256": sha256_of(folder), **pinned}}

    return make


@pytest.fixture
def another_day(monkeypatch):
    """A function that moves the clock of chat templates to the first of this month of 2031."""

    def move(month):
        class Clock(datetime.datetime):
            @classmethod
            def now(cls, tz=None):
                return cls(2031, month, 1)

        monkeypatch.setattr(chat_template_utils, "datetime", Clock)

    return move


def rendered(writer, messages=QUESTION, **options):
    return writer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options)


def saved(processor, folder):
    """The processor as it comes back from a folder like an exported model's, and the tokenizer that servers ask."""
    processor.save_pretrained(folder)
    BlspConfig().save_pretrained(folder)
    return AutoProcessor.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def exported(pins, folder):
    tiny.build(pins)[0].save_pretrained(folder / "adapter")
    export(folder / "adapter", folder / "exported")
    return folder / "exported"


def at_backbones(pins, **settings):
    """What the `backbones` stage pins of these checkpoints."""
    backbones.run(params(pins["speech"]["name"], pins["llm"]["name"], **settings))
    return backbones.pins()


@pytest.mark.parametrize(
    ("template", "argument", "off", "on"),
    [
        (QWEN3, "enable_thinking", NO_THOUGHTS, ""),
        (DEEPSEEK, "thinking", "</think>", "<think>"),
        (DEEPSEEK, "enable_thinking", "</think>", "<think>"),
    ],
)
def test_thinking_is_off_unless_params_turn_it_on(checkpoint, tmp_path, monkeypatch, template, argument, off, on):
    monkeypatch.chdir(tmp_path)
    start = "<|im_start|>user\nWhich tram?<|im_end|>\n<|im_start|>assistant\n"
    made = checkpoint(template)
    assert rendered(AutoTokenizer.from_pretrained(made["llm"]["name"])) == start + on  # the checkpoint's own default
    for settings, expected in (({}, off), ({argument: True}, on), ({argument: False}, off)):
        found = at_backbones(made, chat_template_kwargs=settings)
        processor = BlspProcessor.from_backbones(found, 4)
        assert rendered(backbones.load_tokenizer()) == rendered(processor) == start + expected
        for written in saved(processor, tmp_path / "saved"):
            assert rendered(written) == start + expected


def test_an_exported_model_thinks_no_more_than_the_adapter_did(checkpoint, tmp_path):
    made = checkpoint(QWEN3)
    folder = exported(made, tmp_path)
    assert rendered(AutoProcessor.from_pretrained(folder)) == rendered(BlspProcessor.from_backbones(made, 4))
    assert rendered(AutoTokenizer.from_pretrained(folder)).endswith("assistant\n" + NO_THOUGHTS)


@pytest.mark.parametrize("template", [SMOLLM3, LLAMA32, GPT_OSS])
@pytest.mark.parametrize(("pinned", "shown"), [({}, "01 Jan"), ({"chat_template_date": "2024-07-26"}, "26 Jul")])
def test_todays_date_is_the_pinned_one_whatever_the_day(checkpoint, another_day, tmp_path, template, pinned, shown):
    made = checkpoint(template, **pinned)
    own = AutoTokenizer.from_pretrained(made["llm"]["name"])
    processor = BlspProcessor.from_backbones(made, 4)
    its_own, pinned_texts = set(), set()
    for month in (2, 3):
        another_day(month)
        its_own.add(rendered(own))
        writers = (load_tokenizer(made), processor, *saved(processor, tmp_path / "saved"))
        pinned_texts |= {rendered(writer) for writer in writers}
    assert len(its_own) == 2  # else nothing was tried
    (text,) = pinned_texts
    year = pinned.get("chat_template_date", "2025")[:4]
    assert text.startswith(f"Today: {shown}") and year in text.partition(".")[0] and "2031" not in text


def test_a_date_that_params_give_the_template_stands_as_they_write_it(checkpoint):
    made = checkpoint(LLAMA32, chat_template_kwargs={"date_string": "the first"})
    assert rendered(load_tokenizer(made)).startswith("Today: the first.<|im_start|>")


def test_an_argument_that_the_template_does_not_read_is_refused(checkpoint):
    made = checkpoint(LLAMA32, origin="owner/llm", chat_template_kwargs={"enable_thinking": True})
    said = "owner/llm: its chat template reads no enable_thinking, .* it reads add_generation_prompt, date_string, mess"
    with pytest.raises(BlspError, match=said):
        load_tokenizer(made)


def test_of_several_templates_the_default_is_used_and_saved_alone(checkpoint, tmp_path):
    made = checkpoint({"default": QWEN3, "tool_use": SMOLLM3})
    assert isinstance(AutoTokenizer.from_pretrained(made["llm"]["name"]).chat_template, dict)  # else nothing is tried
    expected = rendered(BlspProcessor.from_backbones(made, 4))
    assert expected == rendered(load_tokenizer(made)) and expected.endswith(NO_THOUGHTS)
    folder = exported(made, tmp_path)
    for written in (AutoProcessor.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)):
        assert isinstance(written.chat_template, str) and rendered(written) == expected


def test_several_templates_without_a_default_are_refused(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = checkpoint({"rag": QWEN3, "tool_use": SMOLLM3})
    with pytest.raises(BlspError, match="llm: it has the chat templates rag, tool_use, and none is the default; name"):
        at_backbones(made)
    assert not (tmp_path / "models/backbones").exists()


def test_a_template_that_takes_parts_alone_is_given_parts(checkpoint, tmp_path):
    made = checkpoint(PARTS_ALONE)
    assert "tram" not in rendered(AutoTokenizer.from_pretrained(made["llm"]["name"]))  # a string is lost
    processor = BlspProcessor.from_backbones(made, 4)
    parts = [{"role": "user", "content": [{"type": "text", "text": "Which "}, {"type": "text", "text": "tram?"}]}]
    expected = "<|im_start|>user\nWhich tram?<|im_end|>\n<|im_start|>assistant\n"
    for writer in (processor, *saved(processor, tmp_path / "saved")):
        assert rendered(writer) == rendered(writer, parts) == rendered(load_tokenizer(made)) == expected
    spoken = build_prompt(processor.tokenizer, "Repeat.", AUDIO_TOKEN)
    assert spoken == expected.replace("Which tram?", f"Repeat.{AUDIO_TOKEN}")


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("message.content | upper", r"puts the text of a message 0 times into the prompt: 'Ada asks: Which Tram\?'"),
        ("''", "puts the text of a message 0 times"),
        ("message.content + message.content", "puts the text of a message 2 times"),
        ("raise_exception('no words')", r"fails on a message with text in it \(no words\)"),
    ],
)
def test_a_template_that_changes_or_loses_the_content_is_refused_at_backbones(
    checkpoint, tmp_path, monkeypatch, content, fault
):
    monkeypatch.chdir(tmp_path)
    template = TURNS.replace("ANSWER", "").replace("message.content", f"({content})")
    with pytest.raises(BlspError, match=f"llm: its chat template {fault}.*; choose another LLM") as refusal:
        at_backbones(checkpoint(template))
    assert "\n" not in str(refusal.value) and not (tmp_path / "models/backbones").exists()


def llama2_tokenizer(template):
    """A tokenizer that puts ▁ for a space, and one before each piece of text, as Llama 2's and Mistral 7B's do."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    words = ["Say", "this.", "light", "fan", "Yes", "[INST]", "[/INST]", "turn", "on", "the", "kitchen", "lamp"]
    tokenizer.train_from_iterator(words * 9, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", chat_template=template
    )


@pytest.mark.parametrize("template", ["[INST] CONTENT [/INST]", "[INST]CONTENT[/INST]", "[INST] CONTENT\n[/INST]"])
def test_llama_2s_tokenizer_writes_the_same_around_speech_as_around_a_word(pins, tmp_path, template):
    turn = "{% if m.role == 'user' %}TURN{% else %} {{ m.content }} </s>{% endif %}"
    whole = "<s>{% for m in messages %}" + turn.replace("TURN", template.replace("CONTENT", "{{ m.content }}"))
    llama2_tokenizer(whole + "{% endfor %}").save_pretrained(tmp_path / "llm")
    made = {**pins, "llm": {**pins["llm"], "name": str(tmp_path / "llm")}}
    if not template.endswith("CONTENT [/INST]"):  # one ▁ more after speech than after a word, or the line's end lost
        with pytest.raises(BlspError, match=r"llm: its tokenizer writes other tokens around <\|audio\|> than around"):
            load_spoken_tokenizer(made)
        return
    processor = BlspProcessor.from_backbones(made, 4)
    for tokenizer in (processor.tokenizer, saved(processor, tmp_path / "saved")[1]):
        spoken, written = (
            tokenizer(build_prompt(tokenizer, "Say this.", content), add_special_tokens=False).input_ids
            for content in (AUDIO_TOKEN, "light")
        )
        at = spoken.index(processor.audio_token_id)
        before, after = spoken[:at], spoken[at + 1 :]
        assert (before, after) == spoken_around(tokenizer, "Say this.")
        assert written[:at] == before and written[-len(after) :] == after and len(written) > len(before + after)
        assert tokenizer.decode(written[at : -len(after)]) == "light"


@pytest.fixture(params=["<|pad|>", END])
def writes_its_turns_end(checkpoint, request):
    """Pins of an LLM that ends its answer with a token which its template alone tells of, and what it writes before.

    Its padding is a token of its own, or the token that its generation configuration knows as the end.
    """
    made = checkpoint(TURNS.replace("ANSWER", ""), pad_token=request.param)
    folder = made["llm"]["name"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    turn_end = tokenizer.convert_tokens_to_ids(TURN_END)
    llm = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        head = llm.lm_head.weight
        head[[turn_end, tokenizer.eos_token_id]] = 0.0
        prompt = tokenizer(build_prompt(tokenizer, "", "Which tram?"), return_tensors="pt", add_special_tokens=False)
        written = llm.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt.input_ids.shape[1] :].tolist()
        at = next(place for place in range(2, 12) if written[place] not in written[:place])
        head[[written[at], turn_end]] = head[[turn_end, written[at]]]  # what came there is the turn's end now
    llm.save_pretrained(folder)
    assert llm.generation_config.eos_token_id == tokenizer.eos_token_id != turn_end
    return {**made, "llm": {**made["llm"], "sha256": sha256_of(folder)}}, [*written[:at], turn_end]


def test_generation_stops_where_the_template_ends_a_turn(writes_its_turns_end):
    made, expected = writes_its_turns_end
    llm, tokenizer = backbones.load_llm(made)
    assert expected[-1] == end_of_turn(tokenizer)
    prompts = [build_prompt(tokenizer, "", text) for text in ("Which tram?", "Tell me which of the two trams it is?")]
    batch = tokenizer(prompts, padding_side="left", padding=True, return_tensors="pt", add_special_tokens=False)
    padded, answers = greedy(llm, tokenizer, 12, **batch), dict(write_answers(llm, tokenizer, prompts, 2, 12))
    for answer in (padded[0], answers[0]):
        assert answer.token_ids == expected and answer.finish_reason == "stop" and TURN_END not in answer.text
    assert answers[1] == padded[1]


def test_the_saved_and_exported_model_stops_there_too(writes_its_turns_end, tmp_path):
    made, expected = writes_its_turns_end
    folder = exported(made, tmp_path)
    config = load_language_model(made).generation_config
    assert expected[-1] in config.eos_token_id
    for place in (folder, tmp_path / "adapter"):
        whole, processor = BlspForConditionalGeneration.from_pretrained(place), AutoProcessor.from_pretrained(place)
        inputs = processor(text=[build_prompt(processor.tokenizer, "", "Which tram?")])
        written = whole.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert written.tolist() == expected


def test_what_a_checkpoint_says_of_repetition_changes_no_answer_to_speech(pins, clips, tmp_path):
    llm = AutoModelForCausalLM.from_pretrained(pins["llm"]["name"])
    tokenizer = AutoTokenizer.from_pretrained(pins["llm"]["name"])
    model, processor = tiny.build(pins)
    expected = respond(model, processor, "Repeat.", clips, 12)
    prompt = build_prompt(tokenizer, "Repeat.", "turn on the fan")
    answer = dict(write_answers(llm, tokenizer, [prompt], 1, 12))[0]
    for number, habit in enumerate(
        (
            {"no_repeat_ngram_size": 1, "min_new_tokens": 12},
            {"suppress_tokens": answer.token_ids[:1]},
            {"repetition_penalty": 50.0, "do_sample": True, "temperature": 9.0},
        )
    ):
        folder = tmp_path / f"llm_{number}"
        shutil.copytree(pins["llm"]["name"], folder)
        llm.generation_config.update(**habit)
        llm.generation_config.save_pretrained(folder)
        made = {**pins, "llm": {**pins["llm"], "name": str(folder), "sha256": sha256_of(folder)}}
        model, processor = tiny.build(made)
        for name, value in habit.items():
            assert getattr(model.generation_config, name) == value  # else nothing is tried
        ids = processor.tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
        assert respond(model, processor, "Repeat.", clips, 12) == expected
        assert greedy(model.language_model, tokenizer, 12, **ids) == [answer]
        assert dict(write_answers(model.language_model, tokenizer, [prompt], 1, 12))[0] == answer
        own = model.generate(**ids, max_new_tokens=12)[0, ids["input_ids"].shape[1] :].tolist()
        assert own != answer.token_ids
        llm.generation_config = AutoModelForCausalLM.from_pretrained(pins["llm"]["name"]).generation_config
