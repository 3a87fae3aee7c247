"""The backbones: copied, pinned, checked; the miniature's own are tested with the stages."""

import pytest

from blsp import backbones
from blsp.errors import BlspError
from blsp.files import sha256_of
from blsp.params import load_params
from tests.trained import PARAMS


def params(speech, llm):
    base = load_params(PARAMS)
    local = {"source": "local", "speech_name": str(speech), "llm_name": str(llm), "llm_licence": "MIT"}
    return base.model_copy(update={"backbones": base.backbones.model_copy(update=local)})


def test_local_checkpoints_are_copied_and_pinned(pins, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    backbones.run(params(pins["speech"]["name"], pins["llm"]["name"]))
    pinned = backbones.pins()
    for part in ("speech", "llm"):
        assert pinned[part]["source"] == "local" and pinned[part]["origin"] == pins[part]["name"]
        assert pinned[part]["sha256"] == sha256_of(tmp_path / "models/backbones" / part)
    assert pinned["llm"]["licence"] == "MIT"
    model, tokenizer = backbones.load_llm()
    assert not any(p.requires_grad for p in model.parameters()) and tokenizer.chat_template
    assert "llm: local, SHA-256" in capsys.readouterr().out


def test_what_is_no_checkpoint_is_refused_and_nothing_is_left(pins, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BlspError, match="empty is not a transformers checkpoint: it has no config.json"):
        backbones.run(params(pins["speech"]["name"], tmp_path / "empty"))
    (tmp_path / "empty/config.json").write_text("{}")
    (tmp_path / "empty/pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(BlspError, match=r"backbones.llm_name: .*empty has no \*.safetensors file"):
        backbones.run(params(pins["speech"]["name"], tmp_path / "empty"))
    assert not (tmp_path / "models/backbones").exists()


def test_a_stage_before_its_backbones_says_what_to_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BlspError, match="run `blsp backbones` first"):
        backbones.load_llm()
