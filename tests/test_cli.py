"""`blsp estimate` as it is typed. The stages are run by tests/test_stages.py."""

import json
from pathlib import Path

import pytest

from blsp.cli import GPU_NAMES, main
from blsp.params import load_params
from tests.trained import PARAMS

ESTIMATE = ["--params", str(PARAMS), "estimate"]


@pytest.fixture
def resolved(pins, tmp_path, monkeypatch):
    """A folder where `blsp backbones` has run."""
    monkeypatch.chdir(tmp_path)
    Path("models/backbones").mkdir(parents=True)
    Path("models/backbones/backbones.json").write_text(json.dumps(pins))
    Path("reports").mkdir()


def test_estimate_without_a_corpus_says_what_it_assumes(resolved, capsys):
    assert main([*ESTIMATE, "--gpu", "rtx4090", "--gpus", "2"]) == 0
    printed = capsys.readouterr().out
    for line in ("12.3 s of audio an utterance (LibriSpeech", "2 x rtx4090", "40% are reached"):
        assert line in printed
    assert "epochs" not in printed


def test_estimate_reads_the_reports(resolved, capsys):
    Path("reports/corpus.json").write_text(json.dumps({"splits": {"train": {"hours": 1.0, "rows": 1440}}}))
    behaviours = {"continuation": {"rows": 10, "tokens": 200}, "repetition": {"rows": 10, "tokens": 100}}
    Path("reports/continuations.json").write_text(json.dumps({"behaviours": behaviours}))
    assert main([*ESTIMATE, "--gpu", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "2.5 s of audio an utterance (reports/corpus.json)" in printed
    assert "19 tokens a response (reports/continuations.json)" in printed  # 0.9 of 20 and 0.1 of 10
    train = load_params(PARAMS).train
    assert f"{train.steps * train.batch_size / 1440:.2f} of 1,440 utterances" in printed


def test_estimate_before_the_backbones_says_what_to_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(ESTIMATE) == 1
    assert "run `blsp backbones` first" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [["--gpus", "0"], ["--utilisation", "1.5"], ["--gpu", "h20"]])
def test_estimate_refuses_what_cannot_be(wrong, capsys):
    with pytest.raises(SystemExit):
        main([*ESTIMATE, *wrong])
    assert wrong[1] in capsys.readouterr().err


def test_every_gpu_can_be_named():
    from blsp.estimate.estimate import GPUS

    assert {*GPUS, "cpu"} == set(GPU_NAMES)
