"""`blsp train --variant`: a training beside the pipeline's own, which it leaves alone."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file

from blsp.cli import main
from blsp.files import sha256_of
from blsp.training import train
from tests.training.test_launch import blsp_train, workspace  # noqa: F401  a fixture

pytestmark = pytest.mark.usefixtures("workspace")

VARIANT = Path("models/variants")
FILES = ["adapter", "train.json", "train_curve.csv", "train_log.jsonl"]


@pytest.fixture(autouse=True)
def no_tracking(monkeypatch):
    monkeypatch.setenv("BLSP_TRACKING", "off")


def change(**variants):
    yaml = YAML(typ="safe", pure=True)
    params = yaml.load(Path("params.yaml"))
    params["experiments"]["variants"] |= variants
    with Path("params.yaml").open("w") as stream:
        yaml.dump(params, stream)


def blsp(*arguments):
    return main(["train", *arguments])


def adapter(name):
    return load_file(VARIANT / name / "adapter" / "model.safetensors")


def log(name):
    return [json.loads(line) for line in (VARIANT / name / "train_log.jsonl").read_text().splitlines()]


def test_it_is_the_pipelines_training_elsewhere():
    assert blsp("--variant", "kd_repetition", "--seed", "1") == 0
    assert sorted(path.name for path in (VARIANT / "kd_repetition-1").iterdir()) == FILES
    assert not Path("models/adapter").exists() and not list(Path("reports").glob("train*"))
    assert blsp() == 0
    assert sha256_of("models/adapter") == sha256_of(VARIANT / "kd_repetition-1" / "adapter")


def test_variants_and_seeds_differ(capsys):
    change(part={"corpus_share": 0.25, "downsampling": 8})
    for name, seed in (("kd", 1), ("kd", 2), ("ce", 1), ("part", 1)):
        assert blsp("--variant", name, "--seed", str(seed)) == 0
    kd, other_seed, ce = (adapter(name) for name in ("kd-1", "kd-2", "ce-1"))
    for other in (other_seed, ce):
        assert any(not torch.equal(tensor, other[name]) for name, tensor in kd.items())
    assert json.loads((VARIANT / "part-1" / "adapter" / "config.json").read_text())["downsampling"] == 8
    assert (
        "part from seed 1: objective kd, shares {continuation: 0.9, repetition: 0.1}, temperature 4, downsampling 8"
        in capsys.readouterr().out
    )


def test_one_that_broke_off_goes_on_from_checkpoints_of_its_own(monkeypatch):
    change(often={"checkpoint_every": 1})

    def breaks(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(train, "write_text", breaks)  # the curve: training is over, its report is not there
        with pytest.raises(KeyboardInterrupt):
            blsp("--variant", "often", "--seed", "1")
    (mine,) = Path(os.environ["BLSP_SCRATCH"], "train").iterdir()
    (step,) = mine.glob("step-*")
    change(twin={"checkpoint_every": 1})
    assert blsp("--variant", "twin", "--seed", "1") == 0
    assert step.is_dir(), "another with the same settings leaves them alone"
    logged = log("often-1")
    assert blsp("--variant", "often", "--seed", "1") == 0
    assert not mine.exists()
    assert log("often-1") == logged, "nothing was computed again"
    assert sha256_of(VARIANT / "often-1" / "adapter") == sha256_of(VARIANT / "twin-1" / "adapter")


def test_ablations_lie_apart():
    assert blsp("--variant", "temperature_2", "--seed", "1") == 0
    assert sorted(os.listdir("models/ablations/temperature_2-1")) == FILES and not VARIANT.exists()


def test_two_devices_train_the_variant():
    assert blsp("--variant", "ce", "--seed", "2") == 0
    alone = adapter("ce-2")
    shutil.rmtree(VARIANT)
    done = blsp_train("--variant", "ce", "--seed", "2")
    assert done.returncode == 0, done.stderr[-4000:]
    assert not Path("models/adapter").exists()
    for name, tensor in adapter("ce-2").items():
        torch.testing.assert_close(tensor, alone[name], rtol=1e-4, atol=1e-4)


def test_half_a_variant_and_one_that_is_not_there_are_refused(capsys):
    with pytest.raises(SystemExit):
        blsp("--variant", "ce")
    assert "--variant and --seed are given together" in capsys.readouterr().err
    assert blsp("--variant", "cee", "--seed", "1") == 1
    assert "no variant and no ablation cee; it has " in capsys.readouterr().err
