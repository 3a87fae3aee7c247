"""Perplexity under the text LLM: against the LLM's own loss, one answer at a time."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from blsp.evaluation.metrics import perplexity
from blsp.evaluation.perplexity import _spelled, perplexity_counts
from blsp.model.chat import build_prompt
from blsp.model.decoding import greedy

INSTRUCTION = "Repeat the following text."
TRANSCRIPTS = ["play some jazz music in the attic", "stop", "please buy soap at the market"]
ANSWERS = ["play jazz", "", "stop the music in the attic please"]
MAX_NEW_TOKENS = 12


@pytest.fixture(scope="module")
def llm(pins):
    name = pins["llm"]["name"]
    return AutoModelForCausalLM.from_pretrained(name).eval(), AutoTokenizer.from_pretrained(name)


def table(answers, transcripts=TRANSCRIPTS):
    return pd.DataFrame({"instruction": INSTRUCTION, "transcript": transcripts, "answer": answers})


def loss(model, prompt, response):
    """The sum that transformers' own loss is the mean of."""
    ids = torch.tensor([[*prompt, *response]])
    labels = ids.clone()
    labels[:, : len(prompt)] = -100
    with torch.inference_mode():
        return float(model(input_ids=ids, labels=labels).loss) * len(response)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_nats_are_those_of_the_llms_own_loss_whatever_the_batch(llm, batch_size):
    model, tokenizer = llm
    counts = perplexity_counts(model, tokenizer, table(ANSWERS), batch_size, MAX_NEW_TOKENS)
    for transcript, answer, own in zip(TRANSCRIPTS, ANSWERS, counts, strict=True):
        prompt = tokenizer(build_prompt(tokenizer, INSTRUCTION, " " + transcript), add_special_tokens=False).input_ids
        response = [*tokenizer(answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        assert own[1] == len(response)
        assert own[0] == pytest.approx(loss(model, prompt, response), rel=1e-4)


def test_what_the_llm_says_itself_is_likelier_than_what_it_says_of_something_else(llm):
    model, tokenizer = llm
    prompts = [build_prompt(tokenizer, INSTRUCTION, " " + text) for text in TRANSCRIPTS]
    inputs = tokenizer(prompts, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt")
    own = [
        answer.text
        for answer in greedy(
            model, tokenizer, MAX_NEW_TOKENS, input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
        )
    ]
    assert len(set(own)) == 3
    said, moved = (
        perplexity().compute(np.sum(perplexity_counts(model, tokenizer, table(answers), 3, MAX_NEW_TOKENS), axis=0))
        for answers in (own, own[1:] + own[:1])
    )
    assert said < moved


def test_an_answer_that_was_cut_has_no_end(llm):
    _, tokenizer = llm
    long = " ".join(["stop"] * 30)
    tokens = len(tokenizer(long, add_special_tokens=False).input_ids)
    for limit, ends in ((tokens + 1, True), (tokens, False), (tokens - 1, False)):
        _, response = _spelled(tokenizer, "", INSTRUCTION, "stop", long, limit)
        assert (response[-1] == tokenizer.eos_token_id) is ends and len(response) == tokens + ends


def test_an_empty_answer_is_the_end_alone(llm):
    model, tokenizer = llm
    (own,) = perplexity_counts(model, tokenizer, table([""], ["stop"]), 1, MAX_NEW_TOKENS)
    prompt, response = _spelled(tokenizer, " ", INSTRUCTION, "stop", "", MAX_NEW_TOKENS)
    assert response == [tokenizer.eos_token_id] and own[1] == 1
    assert own[0] == pytest.approx(loss(model, prompt, response), rel=1e-4)


def test_systems_that_agree_are_read_once(llm, monkeypatch):
    model, tokenizer = llm
    read = []
    monkeypatch.setattr(
        "blsp.evaluation.perplexity._nats",
        lambda _llm, prompts, responses: read.extend(prompts) or [1.0] * len(prompts),
    )
    counts = perplexity_counts(model, tokenizer, pd.concat([table(ANSWERS)] * 4), 2, MAX_NEW_TOKENS)
    assert len(read) == 3 and len(counts) == 12


def test_the_space_before_an_answer_is_the_chat_templates(llm):
    """Llama 2 writes one, the miniature does not."""
    _, tokenizer = llm
    tokenizer = type(tokenizer).from_pretrained(tokenizer.name_or_path)
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}<|user|>{{ m.content }}<|assistant|>"
        "{% else %} {{ m.content }}<|end|>{% endif %}{% endfor %}"
    )
    from blsp.evaluation.perplexity import _between_prompt_and_answer

    between = _between_prompt_and_answer(tokenizer)
    _, response = _spelled(tokenizer, between, INSTRUCTION, "stop", "play", MAX_NEW_TOKENS)
    assert tokenizer.decode(response) == " play<|end|>"


def test_perplexity_is_that_of_a_token():
    assert perplexity().compute(np.array([3 * math.log(7), 3])) == pytest.approx(7)
