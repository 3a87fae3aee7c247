"""The judge behind a `transformers serve`, a server of its own: what it says is kept, and understood strictly."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from blsp import servers
from blsp.errors import BlspError
from blsp.evaluation.judge import FOLDER, Question, _questions, judge, parse
from blsp.params import Judge
from tests.faults import Proxy, body, dropped, status
from tests.servers import transformers_serve

GRADES = {"relevance": 4, "compliance": 2}
VERDICT = json.dumps({"A": GRADES})
LETTERS = {"A": "one", "B": "two"}


@pytest.fixture(scope="module")
def address(pins, tmp_path_factory):
    """The address of a server of an LLM that says VERDICT to whatever it is asked: one token, and after it the end."""
    folder = tmp_path_factory.mktemp("judge") / "llm"
    tokenizer = AutoTokenizer.from_pretrained(pins["llm"]["name"])
    tokenizer.add_tokens([VERDICT])
    model = AutoModelForCausalLM.from_pretrained(pins["llm"]["name"])
    model.resize_token_embeddings(len(tokenizer))
    verdict = len(tokenizer) - 1
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        words, logits = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        words.zero_()
        logits.zero_()
        words[:, 0] = 1
        words[verdict] = torch.eye(len(words[0]))[1]
        logits[verdict, 0] = 1
        logits[tokenizer.eos_token_id, 1] = 1
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with transformers_serve(str(folder)) as url:
        yield url, str(folder)


@pytest.fixture
def proxy(address, monkeypatch, tmp_path):
    monkeypatch.setattr(servers, "FIRST_PAUSE_S", 0.01)
    monkeypatch.delenv(servers.KEY_VARIABLE, raising=False)
    monkeypatch.setenv("BLSP_SCRATCH", str(tmp_path / "scratch"))
    proxy = Proxy(address[0].removeprefix("http://"))
    yield proxy
    proxy.close()


@pytest.fixture
def settings(address, proxy):
    return Judge(server_url=f"{proxy.url}/v1", model=address[1], items=4, timeout_s=60.0)


def table(differing=()):
    """Two tasks of six items; two systems give the same answer, but to the items `differing`."""
    return pd.DataFrame(
        [
            {
                "system": system,
                "seed": seed,
                "task": task,
                "instruction": "Say something.",
                "id": f"u{number}",
                "transcript": f"stop {number}",
                "answer": f"{task} {number}" + (f" of {system}" if number in differing else ""),
            }
            for system, seed in (("text", 1), ("speech", 1), ("speech", 2))
            for task in ("chat", "qa")
            for number in range(6)
        ]
    )


def asked(settings, differing=(), seed=1):
    return judge(table(differing), settings, requests_at_once=2, seed=seed)


def test_every_system_has_the_judges_grades_of_random_questions(settings, proxy):
    found = asked(settings)
    assert found.questions == len(proxy.seen) == 8 and found.unreadable == []
    assert proxy.most_at_once <= 2
    assert sorted(found.scores.value_counts(["task", "system"])) == [4, 4, 4, 4]
    assert (found.scores[["relevance", "compliance"]] == [4, 2]).all(axis=None)
    assert set(found.scores["seed"]) == {1, 2}, "of a system's seeds one by chance"


def test_what_cannot_be_understood_is_listed_and_not_guessed(settings):
    """Where answers differ the judge is asked for two grades; this one gives one."""
    found = asked(settings, differing=range(6))
    assert found.scores.empty and len(found.unreadable) == found.questions == 8
    assert {row["reason"] for row in found.unreadable} == {"wanted one entry for each of A, B"}
    assert {row["said"] for row in found.unreadable} == {VERDICT}
    assert {row["task"] for row in found.unreadable} == {"chat", "qa"}


def test_a_run_that_was_broken_off_asks_for_the_rest(settings, proxy, tmp_path):
    proxy.faults += [lambda handler: False] * 5 + [status(400)]
    with pytest.raises(BlspError, match="status 400"):
        asked(settings)
    kept = len(list((tmp_path / "scratch" / FOLDER).iterdir()))
    assert 4 <= kept <= 6
    before = len(proxy.seen)
    found = asked(settings)
    assert len(proxy.seen) - before == 8 - kept and len(found.scores) == 16
    again = asked(settings)
    assert len(proxy.seen) - before == 8 - kept and again.scores.equals(found.scores)
    asked(settings.model_copy(update={"items": 6}))
    assert len(proxy.seen) - before == 12 - kept, "the questions asked before are among more"


def test_the_same_question_is_asked_once(settings, proxy):
    rows = table()
    again = rows.assign(task=rows["task"] + "_again")
    assert len(judge(pd.concat([rows, again]), settings.model_copy(update={"items": 6}), 2, seed=1).scores) == 48
    assert len(proxy.seen) == 12


def test_whatever_is_asked_otherwise_is_asked_again(settings, proxy, tmp_path):
    asked(settings)
    asked(settings, differing=range(6))
    assert len(proxy.seen) == 16
    proxy.faults += [body({"choices": [{"message": {"content": "{}"}}]})] * 8
    other = asked(settings.model_copy(update={"model": "another"}))
    assert len(proxy.seen) == 24 and len(other.unreadable) == 8
    shutil.rmtree(tmp_path / "scratch")
    asked(settings)
    assert len(proxy.seen) == 32


def test_what_is_transient_costs_no_question_and_what_is_not_is_said(settings, proxy):
    proxy.faults += [status(503), dropped, status(429)]
    assert len(asked(settings).scores) == 16
    with pytest.raises(BlspError, match=r"status \d+: .* \(evaluate.judge.model, evaluate.judge.server_url\)"):
        asked(settings.model_copy(update={"model": "another/model"}))
    proxy.key = "sk-right"
    with pytest.raises(BlspError, match="OPENAI_API_KEY is not set"):
        asked(settings, differing=[0, 1, 2, 3, 4, 5])
    gone = settings.model_copy(update={"server_url": "http://127.0.0.1:9/v1"})
    with pytest.raises(BlspError, match="no server at .*; start it, or set evaluate.judge.server_url"):
        asked(gone)


def test_the_judge_cannot_tell_whose_an_answer_is():
    questions = _questions(table(differing=range(6)), items=6, seed=1)
    orders = {tuple(question.systems[name] for name in ("speech", "text")) for question in questions}
    assert orders == {("A", "B"), ("B", "A")}, "no system is always first"
    for question in questions:
        assert question.answers[question.systems["text"]] == f"{question.task} {question.id[1:]} of text"
        (_, sent) = question.messages()
        content = json.loads(sent["content"])
        assert set(content) == {"said", "instruction", "answers"} and list(content["answers"]) == ["A", "B"]
        assert content["said"] == f"stop {question.id[1:]}"
    again = _questions(table(differing=range(6)).sample(frac=1, random_state=1), items=6, seed=1)
    assert [question.messages() for question in again] == [question.messages() for question in questions]
    other = _questions(table(differing=range(6)), items=6, seed=2)
    assert [question.systems for question in other] != [question.systems for question in questions]


def test_systems_that_say_the_same_share_a_letter():
    for question in _questions(table(), items=6, seed=1):
        assert isinstance(question, Question)
        assert question.answers == {"A": f"{question.task} {question.id[1:]}"} and set(question.systems.values()) == {
            "A"
        }


def test_more_answers_than_letters_are_refused():
    rows = table().iloc[:1]
    many = pd.concat([rows.assign(system=f"s{number}", answer=f"a{number}") for number in range(27)])
    with pytest.raises(BlspError, match="27 different answers to judge at once; at most 26"):
        _questions(many, items=1, seed=1)


def test_grades_are_taken_as_they_stand():
    said = {"A": {"relevance": 1, "compliance": 5}, "B": {"relevance": 3, "compliance": 3}}
    assert parse(f"\n{json.dumps(said)} ", LETTERS) == said


GOOD = '"B": {"relevance": 3, "compliance": 3}'


@pytest.mark.parametrize(
    "said",
    [
        "",
        "A is better.",
        f'Here: {{"A": {{"relevance": 3, "compliance": 3}}, {GOOD}}}',
        f'{{"A": {{"relevance": 3, "compliance": 3}}, {GOOD}',
        f"{{{GOOD}}}",
        f'{{"A": {{"relevance": 3, "compliance": 3}}, {GOOD}, "C": {{"relevance": 3, "compliance": 3}}}}',
        f'{{"A": {{"relevance": 3}}, {GOOD}}}',
        f'{{"A": {{"relevance": 3, "compliance": 3, "style": 3}}, {GOOD}}}',
        f'{{"A": {{"relevance": 0, "compliance": 3}}, {GOOD}}}',
        f'{{"A": {{"relevance": 6, "compliance": 3}}, {GOOD}}}',
        f'{{"A": {{"relevance": 4.0, "compliance": 3}}, {GOOD}}}',
        f'{{"A": {{"relevance": true, "compliance": 3}}, {GOOD}}}',
        f'{{"A": {{"relevance": "4", "compliance": 3}}, {GOOD}}}',
        f'{{"A": {{"relevance": NaN, "compliance": 3}}, {GOOD}}}',
        f'{{"A": {{"relevance": 3, "compliance": 3}}, "A": {{"relevance": 1, "compliance": 1}}, {GOOD}}}',
        f'{{"A": [3, 3], {GOOD}}}',
        "[3, 3]",
        "null",
        "[" * 100_000,
    ],
)
def test_whatever_else_is_said_is_not_understood(said):
    with pytest.raises(ValueError):
        parse(said, LETTERS)


def test_nothing_of_the_key_is_kept(settings, proxy, monkeypatch, tmp_path):
    monkeypatch.setenv(servers.KEY_VARIABLE, "sk-secret")
    asked(settings)
    kept = [Path(path) for path in (tmp_path / "scratch").rglob("*.json")]
    assert kept and not any("sk-secret" in path.read_text() for path in kept)
