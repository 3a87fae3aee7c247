"""The LLM's tokenizer with its chat template pinned: one template, with its arguments and its date written into it.

A tokenizer that is saved, exported or served then writes the same prompts everywhere, without code of ours.
"""

import datetime
import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jinja2
import jinja2.meta
from transformers import AddedToken, AutoTokenizer
from transformers.utils import cached_file

from blsp.errors import BlspError
from blsp.model.chat import AUDIO_TOKEN, render
from blsp.model.pinning import backbone_source

# Names under which templates let thinking be switched off. A template that reads neither stays as it is.
THINKING_OFF: Mapping[str, Any] = {"enable_thinking": False, "thinking": False}
DATE = "2025-01-01"  # "today" of templates that ask for it, where the pins name no other day
DATE_CODES = ("-d", "-m", "A", "a", "B", "b", "d", "e", "j", "m", "Y", "y", "F", "D", "H", "I", "M", "S", "p", "c", "x")
PROBE = "Ada asks: Which Tram?"  # a content that a template may neither lose nor change nor say twice

PARTS = (
    "{%- set blsp_parts = namespace(messages=[]) -%}{%- for message in messages -%}"
    "{%- if message.content is string -%}"
    "{%- set message = dict(message, content=[{'type': 'text', 'text': message.content}]) -%}{%- endif -%}"
    "{%- set blsp_parts.messages = blsp_parts.messages + [message] -%}{%- endfor -%}"
    "{%- set messages = blsp_parts.messages %}\n"
)


def load_tokenizer(pins: Mapping[str, Any]) -> Any:
    """The tokenizer of the LLM that `pins` names, with a padding token and its chat template pinned.

    The template is None where the checkpoint has none. Raises BlspError where the backbone is missing, or its template
    cannot be pinned: see `pinned_template`.
    """
    name, revision = backbone_source(pins, "llm")
    tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.chat_template is None:
        tokenizer.chat_template = _processors_template(name, revision)
    if tokenizer.chat_template is not None:
        pin = pins["llm"]
        tokenizer.chat_template = pinned_template(
            tokenizer, _shown(pins), pin.get("chat_template_kwargs") or {}, pin.get("chat_template_date") or DATE
        )
    return tokenizer


def pinned_template(tokenizer: Any, name: str, arguments: Mapping[str, Any], date: str) -> str:
    """The chat template in use, with its arguments and today's date (ISO 8601) written before it.

    Thinking is off unless `arguments` say otherwise. A template that takes the parts of a message alone gets them.
    Raises BlspError, beginning with `name`, where several templates are there and none is the default, the template
    reads no such argument, or a message's content does not stand in the prompt once and unchanged.
    """
    try:
        template = str(tokenizer.get_chat_template())
    except ValueError:
        raise BlspError(
            f"{name}: it has the chat templates {', '.join(sorted(tokenizer.chat_template))}, and none is the default; "
            "name one of them `default` in its tokenizer_config.json"
        ) from None
    asked = _names_asked_for(template, name)
    if unknown := sorted(arguments.keys() - asked):
        raise BlspError(
            f"{name}: its chat template reads no {', '.join(unknown)}, which backbones.chat_template_kwargs sets; "
            f"it reads {', '.join(sorted(asked))}"
        )
    off = {} if THINKING_OFF.keys() & arguments.keys() else THINKING_OFF  # a template may read several names
    pinned = {key: value for key, value in {**off, **arguments}.items() if key in asked}
    before = "".join(f"{{%- set {key} = {_literal(value)} %}}\n" for key, value in pinned.items())
    if "strftime_now" in asked:
        before += _date_macro(date)
    faults = []
    for parts in ("", PARTS):
        whole = parts + before + template
        if not (fault := _fault(partial(_rendered, tokenizer, whole))):
            return whole
        faults.append(fault)
    raise BlspError(
        f"{name}: its chat template {faults[0]}; choose another LLM, or give it another chat_template.jinja"
    )


def load_spoken_tokenizer(pins: Mapping[str, Any]) -> Any:
    """As `load_tokenizer`, with the placeholder for speech among its special tokens.

    Tokenizers of Llama 2's kind begin every piece of text with a space, and so would put one after the placeholder:
    theirs takes the space that follows it. Raises BlspError where other tokens stand around the placeholder than
    around a word all the same.
    """
    for token in (AUDIO_TOKEN, AddedToken(AUDIO_TOKEN, rstrip=True, normalized=False, special=True)):
        tokenizer = load_tokenizer(pins)
        if tokenizer.convert_tokens_to_ids(AUDIO_TOKEN) in (None, tokenizer.unk_token_id):
            tokenizer.add_special_tokens({"additional_special_tokens": [token]})
        if tokenizer.chat_template is None or _is_seamless(tokenizer):
            return tokenizer
    raise BlspError(
        f"{_shown(pins)}: its tokenizer writes other tokens around {AUDIO_TOKEN} than around a word, so "
        "speech and text would stand in different prompts; choose another LLM as backbones.llm_name"
    )


def _shown(pins: Mapping[str, Any]) -> str:
    """How messages call the LLM: by where it came from."""
    return str(pins["llm"].get("origin") or pins["llm"]["name"])


def _is_seamless(tokenizer: Any) -> bool:
    """Whether the ids before and after speech are those before and after a word."""
    texts = [
        render(tokenizer, [{"role": "user", "content": f"Say this.{content}"}], add_generation_prompt=True)
        for content in (AUDIO_TOKEN, " light")
    ]
    spoken, written = tokenizer(texts, add_special_tokens=False).input_ids
    number = tokenizer.convert_tokens_to_ids(AUDIO_TOKEN)
    if spoken.count(number) != 1:
        return False
    at = spoken.index(number)
    after = spoken[at + 1 :]
    return spoken[:at] == written[:at] and after == written[len(written) - len(after) :]


def _fault(write: Callable[[list[dict[str, str]]], str]) -> str | None:
    """What is wrong with the prompts that `write` makes of messages; None where nothing is."""
    for content in (PROBE, AUDIO_TOKEN):
        try:
            question = write([{"role": "user", "content": content}])
            turns = write([{"role": "user", "content": content}, {"role": "assistant", "content": "Number 7."}])
        except (jinja2.TemplateError, TypeError) as error:
            return f"fails on a message with text in it ({error})"
        for prompt, text in ((question, content), (turns, content), (turns, "Number 7.")):
            if (count := prompt.count(text)) != 1:
                return f"puts the text of a message {count} times into the prompt: {text!r} became {prompt!r}"
    return None


def _rendered(tokenizer: Any, template: str, messages: list[dict[str, str]]) -> str:
    asks = messages[-1]["role"] == "user"
    return str(
        tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=asks, return_dict=False
        )
    )


def _names_asked_for(template: str, name: str) -> set[str]:
    """The variables and functions that a template takes from outside."""
    environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"])
    plain = re.sub(r"\{%[-+]?\s*(end)?generation\s*[-+]?%\}", "", template)  # marks answers; Jinja has no such tag
    try:
        return jinja2.meta.find_undeclared_variables(environment.parse(plain))
    except jinja2.TemplateSyntaxError as error:
        raise BlspError(f"{name}: its chat template is no Jinja: {error}") from None


def _literal(value: Any) -> str:
    """A value as Jinja writes it, whose true and false are JSON's."""
    return json.dumps(value, ensure_ascii=False)


def _date_macro(date: str) -> str:
    """A `strftime_now` that always says the same day, at midnight."""
    day = datetime.datetime.fromisoformat(date)
    written = "".join(
        f"|replace({json.dumps('%' + code)}, {json.dumps(day.strftime('%' + code))})" for code in DATE_CODES
    )
    return f"{{%- macro strftime_now(format) -%}}{{{{- format{written} -}}}}{{%- endmacro %}}\n"


def _processors_template(name: str, revision: str | None) -> str | None:
    """The template of a multimodal checkpoint, which may lie with its processor alone."""
    found = cached_file(name, "chat_template.json", revision=revision, _raise_exceptions_for_missing_entries=False)
    if found is None:
        return None
    with open(found, encoding="utf-8") as stream:
        return str(json.load(stream)["chat_template"])
