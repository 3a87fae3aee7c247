"""The text side: what is measured of the LLM that reads, and what is said where it does not do."""

import math

import pytest
import torch

from blsp.backbones import load_llm
from blsp.continuation import answers, text_side, writer
from blsp.continuation.answers import Asker
from blsp.continuation.text_side import Pair, dependence
from blsp.files import read_json, write_json
from blsp.model.chat import build_prompt
from blsp.prompts import Prompt
from tests.continuation.asking import ANY, asking
from tests.contracts import packed

TURNS = [{"content": "play", "answer": "play"}, {"content": "stop it", "answer": "stop it"}]
ASR = {"instructions": ["Repeat the following text."], "reference": "transcript", "metric": "wer"}
NO_MORE = {"drop": None, "language": None, "source": None}


@pytest.fixture
def corpus(pins, tmp_path, monkeypatch):
    """A packed corpus, an LLM of random weights, and a scratch folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BLSP_SCRATCH", str(tmp_path / "scratch"))
    answers._llm.cache_clear()
    packed.pack(packed.good_rows())
    write_json("models/backbones/backbones.json", pins)
    return packed.good_rows()


def looking(behaviours, tasks):
    params = asking(max_new_tokens=5, behaviours=behaviours)
    evaluate = params.evaluate.model_dump() | {"max_new_tokens": 4, "tasks": tasks}
    return params.model_copy(update={"evaluate": type(params.evaluate).model_validate(evaluate)})


def test_the_report_names_a_broken_task_and_what_has_no_reference(corpus, capsys):
    tasks = {
        "asr": {**ASR, **NO_MORE},
        "st_fr": {
            "instructions": ["French."],
            "reference": "translation",
            "metric": "bleu",
            **NO_MORE,
            "language": "fr",
        },
        "open": {"instructions": [""], "reference": None, "metric": "perplexity", **NO_MORE},
    }
    examples = {"instructions": ["Say again:", ""], "examples": TURNS, **ANY}
    writer.run(looking({"plain": {"instructions": ["Go on."], **ANY}, "again": examples}, tasks))
    found = read_json("reports/continuations.json")["text_side"]
    dev = [row for row in corpus if row.split == "dev"]
    assert found["items"] == len(dev)
    assert set(found["tasks"]) == {"asr", "st_fr"} and found["tasks"]["st_fr"] is None
    asr = found["tasks"]["asr"]
    assert asr["metric"] == "wer" and asr["n"] == len(dev) and asr["value"] > 0.5 and asr["broken"]
    assert any(warning.startswith("task asr: ") for warning in found["warnings"])
    for own in found["behaviours"].values():
        assert own["answers"] == len(dev) and own["kl"] >= 0 and 0 <= own["changed_tokens"] <= 1
        assert 0 < own["mean_tokens"] <= 5
    said = capsys.readouterr().out
    assert "task asr: wer" in said and "task st_fr: not measured" in said and "WARNING task asr" in said


def test_dependence_is_the_mean_kl_along_the_answers(corpus, pins):
    llm, tokenizer = load_llm()
    asker = Asker(pins["llm"], "float32", 5, 0, 1.0, 4, None)
    turns = tuple((turn["content"], turn["answer"]) for turn in TURNS)
    pairs = [
        Pair(prompt, own, other, tokenizer(said + "<|end|>", add_special_tokens=False).input_ids)
        for prompt in (Prompt("Repeat:", turns), Prompt(""), Prompt("", turns, template="none"))
        for own, other, said in (("turn on the fan", "play", "turn on"), ("play", "please buy soap", "play it again"))
    ]
    kl, changed = [], []
    for pair in pairs:
        logprobs = []
        for said in (pair.own, pair.other):
            prompt = tokenizer(build_prompt(tokenizer, pair.prompt, said), add_special_tokens=False).input_ids
            with torch.no_grad():
                logits = llm(input_ids=torch.tensor([[*prompt, *pair.answer]])).logits[0]
            logprobs.append(logits[len(prompt) - 1 : -1].log_softmax(-1))
        own, other = logprobs
        kl += (own.exp() * (own - other)).sum(-1).tolist()
        at = torch.arange(len(pair.answer)), torch.tensor(pair.answer)
        changed += ((own[at] - other[at]).abs() >= math.log(2)).tolist()
    found = dependence(pairs, asker)
    assert found["kl"] == pytest.approx(sum(kl) / len(kl), rel=1e-3, abs=1e-6)
    assert found["changed_tokens"] == sum(changed) / len(changed)
    same = [Pair(pair.prompt, pair.own, pair.own, pair.answer) for pair in pairs]
    assert dependence(same, asker)["kl"] == pytest.approx(0, abs=1e-6)
    assert dependence([], asker) == {"kl": None, "changed_tokens": None}


def test_a_behaviour_that_hears_nothing_is_named():
    shares = {"shared_openings": 0.5, "openings": {"i m sorry for": 10}}
    hearing = {"kl": 2.0, "changed_tokens": 0.6, **shares, "shared_openings_of_transcripts": 0.4}
    deaf = {"kl": 0.05, "changed_tokens": 0.1, **shares, "shared_openings_of_transcripts": 0.0}
    found = {"items": 8, "tasks": {}, "behaviours": {"reply": deaf, "repeat": hearing}}
    same, alike = text_side._warnings(found)
    assert "behaviour reply" in same and "KL 0.05" in same and "continuations.behaviours.reply" in same
    assert "behaviour reply" in alike and "'i m sorry for' 10 times" in alike


def test_openings_that_many_share_are_counted():
    texts = ["I'm sorry for your loss.", "I'm sorry for that!", "i'm sorry for it", "Yes.", "Yes.", ""]
    assert text_side._shared_openings(texts) == {"i m sorry for": 3}
