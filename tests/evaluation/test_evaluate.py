"""The stage itself, on tiny models: what it leaves, and that it ends well where something cannot be measured."""

import json
from pathlib import Path

import pytest

from blsp.evaluation import evaluate
from blsp.files import read_json, write_json, write_text
from blsp.params import Task, load_params
from tests.contracts import packed
from tests.trained import PARAMS


@pytest.fixture
def params(tmp_path, monkeypatch, pins, tiny_model):
    """A working directory as training leaves it, and parameters of two small tasks."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BLSP_TRACKING", "off")
    rows = packed.good_rows()
    for row in rows:
        for behaviour, value in row.written.items():
            value["instruction"] = f"do {behaviour}"
    packed.pack(rows)
    write_json("models/backbones/backbones.json", {part: {**pin, "origin": part} for part, pin in pins.items()})
    Path("models/adapter").mkdir()
    tiny_model[0].save_pretrained("models/adapter")
    write_text("reports/train_log.jsonl", json.dumps({"step": 1, "loss": 1.0, "dev_kl": 1.0, "dev_share": 0.1}) + "\n")
    common = {"reference": "transcript", "drop": None, "language": None, "source": None}
    tasks = {
        "asr": Task(instructions=["Repeat."], metric="wer", **common),
        "words": Task(instructions=["Say it."], metric="contains", **common),
    }
    params = load_params(PARAMS)
    settings = {"tasks": tasks, "max_new_tokens": 3, "bootstrap_samples": 10, "items": 3, "confidence": 0.9}
    return params.model_copy(update={"evaluate": params.evaluate.model_copy(update=settings)})


def test_it_leaves_figures_beside_their_floors_of_as_many_items_as_were_asked_for(params):
    evaluate.run(params)
    report = read_json("reports/evaluation.json")
    assert {own[task][metric]["n"] for own in report["systems"].values() for task, metric in (("asr", "wer"),)} == {3}
    assert "|items:at most 3|" in report["systems"]["speech"]["words"]["contains"]["signature"]
    gap = report["alignment"]
    assert set(gap) >= {"kl", "top1_agreement", "share", "continuation", "repetition"}
    assert gap["kl"] == gap["continuation"]["kl"] and gap["kl"]["n"] == 3
    shares = [gap[name]["share"]["value"] for name in ("continuation", "repetition")]
    assert gap["share"]["value"] == pytest.approx(0.9 * shares[0] + 0.1 * shares[1])
    page = Path("reports/evaluation.md").read_text()
    assert "sentences and voices are in no training data" in page and "90 % bootstrap" in page and "3 of them" in page
    assert "another's speech" in page and "alignment" not in page
    assert all((Path("reports/figures") / name).stat().st_size > 1000 for name in ("gap.png", "learning_curve.png"))


def test_without_a_test_item_in_a_language_of_training_there_are_answers_and_no_gap(params, monkeypatch):
    monkeypatch.setattr(evaluate, "heard_languages", lambda *_: {"fi"})
    evaluate.run(params)
    report = read_json("reports/evaluation.json")
    assert report["alignment"] == {} and report["systems"]["speech"]["asr"]["wer"]["n"] == 3
    assert "no test utterance is in a language that training heard" in Path("reports/evaluation.md").read_text()
