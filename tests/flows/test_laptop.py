"""The laptop experiment: its committed files are those of profile and pipeline, and a wrong corpus is named."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from blsp.data.sources.spoken import read
from blsp.errors import BlspError
from blsp.files import sha256_of
from blsp.model import BlspConfig
from blsp.model.adapter import build_adapter
from blsp.model.loading import ADAPTER_FILE, load_adapter
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


def test_the_shipped_adapter_is_small_pinned_and_whole(monkeypatch):
    """What can be known of it without its backbones: they are not fetched here, `make laptop-check` does."""
    monkeypatch.chdir(ROOT)
    config = BlspConfig.from_folder(laptop.SHIPPED)
    tensors = load_adapter(laptop.SHIPPED / ADAPTER_FILE, config)
    assert (laptop.SHIPPED / ADAPTER_FILE).stat().st_size <= laptop.SHIPPED_MB * 1e6
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16, torch.bool}
    assert all(torch.isfinite(tensor.float()).all() for tensor in tensors.values())
    assert all(len(pin["sha256"]) == 64 and pin["licence"] for pin in config.backbones.values())
    made_of = json.loads((laptop.SHIPPED / "provenance.json").read_text())
    evaluation = json.loads((laptop.FOLDER / "reports/evaluation.json").read_text())
    assert made_of["trained_adapter_sha256"] == evaluation["adapter_sha256"]
    assert made_of["dvc_lock_sha256"] == sha256_of(laptop.FOLDER / "dvc.lock")
    for part, pin in config.backbones.items():
        assert pin["sha256"] == evaluation["backbones"][part]["sha256"]


def test_the_shipped_adapter_gives_words_at_their_pace_and_says_the_same_in_any_batch(monkeypatch):
    monkeypatch.chdir(ROOT)
    torch.manual_seed(0)
    config = BlspConfig.from_folder(laptop.SHIPPED)
    adapter = build_adapter(config).eval()
    tensors = load_adapter(laptop.SHIPPED / ADAPTER_FILE, config)
    adapter.load_state_dict({name.partition(".")[2]: tensor.float() for name, tensor in tensors.items()})
    words = torch.nn.Embedding(config.text_config.vocab_size, config.text_config.hidden_size)
    frames, counts = torch.randn(2, 200, config.audio_config.d_model), torch.tensor([200, 120])
    with torch.inference_mode():
        vectors, lengths = adapter(frames, counts, words)
        alone, _ = adapter(frames[1:, :120], counts[1:], words)
    assert lengths.tolist() == [25, 15] and torch.isfinite(vectors).all()
    torch.testing.assert_close(vectors[1, :15], alone[0], atol=1e-5, rtol=1e-4)
