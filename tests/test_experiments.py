"""The variants of params.yaml as DVC runs them: a small real matrix, and what each stage depends on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from blsp.files import sha256_of, write_json
from flows.dvc_graph import read_graph
from flows.experiments import main, stale
from tests.contracts import packed
from tests.test_stages import environment
from tests.trained import PARAMS

ROOT = PARAMS.parent
YAML_1_2 = YAML(typ="safe", pure=True)


def stages(path):
    return YAML_1_2.load(ROOT / path)["stages"]


@pytest.mark.parametrize(
    ("name", "group", "seeds"), [("paper", "variants", "seeds"), ("ablations", "ablations", "ablation_seeds")]
)
def test_a_variant_depends_on_what_training_does_and_on_itself(name, group, seeds):
    variant, pipeline = stages(f"experiments/{name}/dvc.yaml")["train"], stages("dvc.yaml")["train"]
    assert variant["matrix"] == {"variant": f"${{experiments.{group}}}", "seed": f"${{experiments.{seeds}}}"}
    assert variant["deps"] == pipeline["deps"] and variant["meta"] == pipeline["meta"]
    assert set(variant["params"]) - set(pipeline["params"]) == {f"experiments.{group}.${{item.variant}}"}
    assert set(pipeline["params"]) <= set(variant["params"])
    assert all(out.startswith(f"models/{group}/${{item.variant}}-${{item.seed}}/") for out in variant["outs"])


def change(**experiments):
    params = YAML_1_2.load(Path("params.yaml"))
    params["experiments"] |= experiments
    write_json("params.yaml", params)


CE = {"shares": {"continuation": 1.0}, "objective": "ce"}


@pytest.fixture
def workspace(pins, tmp_path, monkeypatch):
    """A folder where every stage before `train` has run, on sixteen clips of noise, and a trained adapter is."""
    monkeypatch.chdir(tmp_path)
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    rows = packed.good_rows()
    for row in rows:
        for behaviour, value in row.written.items():
            value["instruction"] = f"do {behaviour}"
    packed.pack(rows)
    write_json("models/backbones/backbones.json", pins)
    write_json("reports/validation.json", {"success": True})
    write_json("models/adapter/config.json", {"mine": True})
    params = YAML_1_2.load(PARAMS)
    params["train"] |= {"steps": 4, "batch_size": 4, "validate_every": 2, "warmup_steps": 1, "bottleneck": 8}
    write_json("params.yaml", params)
    (tmp_path / "blsp").symlink_to(ROOT / "blsp")
    Path("experiments/paper").mkdir(parents=True)
    paper = YAML_1_2.load(ROOT / "experiments/paper/dvc.yaml")
    alone = {"vars": paper["vars"], "stages": {"train": paper["stages"]["train"]}}
    Path("experiments/paper/dvc.yaml").write_text(json.dumps(alone))  # JSON is YAML too
    subprocess.run(["git", "init", "-q"], check=True)
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q"], check=True)


@pytest.mark.usefixtures("workspace")
def test_a_matrix_is_trained_and_only_what_a_change_concerns_is_trained_again(capfd):
    change(
        seeds=[2],
        ablation_seeds=[2],
        variants={"ce": CE, "broken": {"teacher": "stored"}},
        ablations={},
        compared=[],
        axes={},
    )
    before = sha256_of("models/adapter")
    assert main(["paper"]) == 1
    said = capfd.readouterr()
    assert "broken-2 | " in said.out and "data/continuations has it at: none" in said.out
    assert "train@ce-2 | ce from seed 2: objective ce, shares {continuation: 1}" in said.out
    trained = {path.parent.parent.name for path in Path("models/variants").glob("*/adapter/model.safetensors")}
    assert trained == {"ce-2"}

    def left():
        return [stage.name.rpartition("@")[2] for stage in stale(read_graph(["experiments/paper/dvc.yaml"]))]

    assert left() == ["broken-2"]
    change(variants={"ce": CE, "mended": {}}, ablations={"other": {"temperature": 4.0}})
    assert left() == ["mended-2"]
    assert main(["paper"]) == 0 and left() == []
    assert sha256_of("models/adapter") == before and not list(Path("reports").glob("train*"))
    change(variants={"ce": CE | {"temperature": 1.0}, "mended": {}})
    assert left() == ["ce-2"]
    assert os.listdir("models/variants/mended-2") and Path("experiments/paper/dvc.lock").is_file()
