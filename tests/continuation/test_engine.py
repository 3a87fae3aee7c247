"""Step 1's engine: the same answers in any batch, whoever joins or leaves it, and how each of them ended."""

from functools import wraps

import pytest
import torch
from transformers import BambaConfig

from blsp.backbones import load_llm
from blsp.continuation.engine import write_answers
from blsp.files import write_json
from blsp.model.chat import build_prompt
from blsp.model.continuous import _Columns, can_join
from blsp.model.decoding import greedy
from tests import tiny

INSTRUCTIONS = ("Repeat the following text.", "Continue the following text.")
TEXTS = [
    "play some jazz music in the attic",
    "stop",
    "please buy soap at the market which shop sells butter and who is my neighbour",
    "call anna",
    "stop",
]
BAMBA = {"attn_layer_indices": [1], "mamba_n_heads": 4, "mamba_d_head": 12, "num_key_value_heads": 1}


@pytest.fixture(scope="module", params=[*tiny.LLMS, "bamba"])
def llm(request, tmp_path_factory):
    """A random LLM of each family, one of which keeps other states than keys and values; and its tokenizer."""
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tiny.LLMS, "bamba", (BambaConfig, BAMBA))
        pins = tiny.save_backbones(folder, request.param)
        patch.chdir(folder)
        write_json("models/backbones/backbones.json", pins)
        return load_llm()


def prompts(tokenizer):
    return [build_prompt(tokenizer, instruction, " " + text) for instruction in INSTRUCTIONS for text in TEXTS]


def generated(model, tokenizer, prompt, max_new_tokens):
    """The answer of transformers' own `generate` to this prompt alone."""
    ids = tokenizer([prompt], add_special_tokens=False, return_tensors="pt", return_token_type_ids=False)
    return greedy(model, tokenizer, max_new_tokens, **ids)[0]


def end_somewhere(model, answers, monkeypatch):
    """Makes an end token of the one by which these answers differ most in length."""
    ids = [answer.token_ids for answer in answers]

    def lengths(end):
        return {answer.index(end) if end in answer else len(answer) for answer in ids}

    end = max(sorted({token for answer in ids for token in answer}), key=lambda token: len(lengths(token)))
    assert len(lengths(end)) > 1, "nothing is tested where all end at once"
    monkeypatch.setattr(model.generation_config, "eos_token_id", end)


def test_answers_are_those_of_generate_alone_in_any_batch(llm, monkeypatch):
    model, tokenizer = llm
    texts = prompts(tokenizer)
    end_somewhere(model, [generated(model, tokenizer, text, 24) for text in texts], monkeypatch)
    alone = [generated(model, tokenizer, text, 24) for text in texts]
    for batch_size in (1, 3, 64):
        together = list(write_answers(model, tokenizer, texts, batch_size, 24))
        assert sorted(row for row, _ in together) == list(range(len(texts)))
        assert dict(together) == dict(enumerate(alone)), f"in batches of {batch_size}"


def test_answers_outlive_many_moves_of_the_buffer(tiny_model, monkeypatch):
    """Rows come and go for many times as long as the buffer is wide."""
    monkeypatch.setattr("blsp.model.continuous.SPARE_COLUMNS", 1)
    model, processor = tiny_model
    tokenizer, llm = processor.tokenizer, model.language_model
    texts = prompts(tokenizer) * 3
    end_somewhere(llm, [generated(llm, tokenizer, text, 20) for text in texts[:10]], monkeypatch)
    alone = [generated(llm, tokenizer, text, 20) for text in texts[:10]] * 3
    assert dict(write_answers(llm, tokenizer, texts, 2, 20)) == dict(enumerate(alone))


def test_only_what_keeps_keys_alone_is_joined(llm):
    model, _ = llm
    assert can_join(model) == (model.config.model_type != "bamba")


def test_an_llm_that_writes_otherwise_beside_others_is_not_joined(tiny_model, monkeypatch):
    llm = tiny_model[0].language_model
    forward = type(llm.base_model).forward

    @wraps(forward)
    def positions_by_column(self, input_ids, position_ids=None, **options):
        return forward(self, input_ids=input_ids, **options)

    monkeypatch.setattr(type(llm.base_model), "forward", positions_by_column)
    monkeypatch.setattr(_Columns, "get_seq_length", lambda self: self.span.end)
    monkeypatch.setattr(_Columns, "get_mask_sizes", lambda self, length: (self.span.end - self.span.start + length, 0))
    assert not can_join(llm)


def test_what_prompts_begin_with_is_read_once_for_those_that_join_together(tiny_model, monkeypatch):
    model, processor = tiny_model
    tokenizer, llm = processor.tokenizer, model.language_model
    read = []
    forward = type(llm.base_model).forward

    @wraps(forward)
    def counted(self, input_ids, **options):
        read.append(tuple(input_ids.shape))
        return forward(self, input_ids=input_ids, **options)

    monkeypatch.setattr(type(llm.base_model), "forward", counted)
    texts = [build_prompt(tokenizer, INSTRUCTIONS[0], " " + text) for text in ("play", "stop it", "call anna now")]
    list(write_answers(llm, tokenizer, texts, 24, 1))
    lengths = [len(tokenizer(text, add_special_tokens=False).input_ids) for text in texts]
    (one, shared), (rows, rest) = read[-2:]  # after the check whether it can join
    assert (one, rows) == (1, 3) and shared > 5 and shared + rest == max(lengths)


def test_an_answer_cut_at_the_limit_has_no_end_token(tiny_model, monkeypatch):
    model, processor = tiny_model
    tokenizer, llm = processor.tokenizer, model.language_model
    texts = prompts(tokenizer)[:4]
    cut = dict(write_answers(llm, tokenizer, texts, 4, 3))
    assert {answer.finish_reason for answer in cut.values()} <= {"stop", "length"}
    for answer in cut.values():
        if answer.finish_reason == "length":
            assert len(answer.token_ids) == 3 and tokenizer.eos_token_id not in answer.token_ids
    # The second token it writes is made its end token: it must stop there, and say so.
    ids = cut[0].token_ids
    monkeypatch.setattr(llm.generation_config, "eos_token_id", ids[1])
    ((_, stopped),) = write_answers(llm, tokenizer, texts[:1], 1, 3)
    assert stopped.finish_reason == "stop" and stopped.token_ids == ids[: ids.index(ids[1]) + 1]


def test_nothing_to_answer_is_no_answer(tiny_model):
    model, processor = tiny_model
    assert list(write_answers(model.language_model, processor.tokenizer, [], 4, 3)) == []
    assert torch.is_grad_enabled()
