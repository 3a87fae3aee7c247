"""The laptop experiment: its committed files are those of profile and pipeline, and a wrong corpus is named."""

import json
from collections import Counter
from pathlib import Path

import pytest

from blsp.data.sources.spoken import read
from blsp.errors import BlspError
from blsp.params import load_params
from flows import laptop
from flows.dvc_graph import read_graph
from tests.trained import PARAMS

ROOT = PARAMS.parent


def test_committed_files_are_those_of_the_profile_and_of_the_pipeline(monkeypatch):
    """`make laptop` writes them anew: a change of params.yaml, dvc.yaml or the profile belongs into them."""
    monkeypatch.chdir(ROOT)
    assert (laptop.FOLDER / "params.yaml").read_text() == laptop.params_text()
    assert (laptop.FOLDER / "dvc.yaml").read_text() == laptop.dvc_text()


def test_its_stages_are_the_pipelines_and_depend_on_the_same_code(monkeypatch):
    monkeypatch.chdir(ROOT)
    own = {stage.name.rpartition(":")[2]: stage for stage in read_graph([f"{laptop.FOLDER}/dvc.yaml"]).stages}
    pipeline = {stage.name: stage for stage in read_graph().stages}
    assert own.keys() == pipeline.keys()
    for name, stage in pipeline.items():
        code, mine = ({path for path in one.sources if path.startswith("blsp")} for one in (stage, own[name]))
        assert code and code == mine


def test_questions_are_known_and_of_voices_and_words_that_training_has_not():
    params = load_params(ROOT / laptop.FOLDER / "params.yaml")
    questions = list(read(ROOT / laptop.FOLDER / "questions.jsonl"))
    assert Counter(row.split for row in questions)["test"] == 150
    assert all(row.answer and row.text.endswith("?") for row in questions)
    sentences = [json.loads(line)["text"] for line in (ROOT / laptop.FOLDER / "sentences.jsonl").open()]
    assert not {row.text.lower() for row in questions} & {text.lower() for text in sentences}
    assert {task.source for task in params.evaluate.tasks.values()} <= {
        Path(source.path).name for source in params.corpus.sources
    }


def test_a_folder_without_the_corpora_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpora/coffee").mkdir(parents=True)
    with pytest.raises(BlspError, match="speechocean762: no such folder; run `make laptop CORPUS=folder`"):
        laptop.prepare("corpora")
    assert not (laptop.FOLDER / "params.yaml").exists()


def test_an_adapter_that_is_not_there_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert laptop.main(["--check"]) == 1
    assert "experiments/laptop/adapter: no adapter is there yet; run `make laptop`" in capsys.readouterr().err
