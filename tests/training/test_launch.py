"""`blsp train` as it is typed on a machine with two devices: what one would have trained, or one clear error."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file

from blsp.cli import main
from tests.contracts import packed
from tests.trained import PARAMS
from tests.training.test_processes import ROOT

# Both "devices" are this CPU: the processes that the launcher starts see none, and talk over gloo.
BLSP = "import torch; torch.accelerator.device_count = lambda: 2; from blsp.cli import main; exit(main())"


def blsp_train(*options):
    return subprocess.run(
        [sys.executable, "-c", BLSP, "train", *options],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "BLSP_TRACKING": "off"},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture
def workspace(pins, tmp_path, monkeypatch):
    """A folder where every stage before `train` has run, on sixteen clips of noise."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BLSP_SCRATCH", str(tmp_path / "scratch"))
    rows = packed.good_rows()
    for row in rows:
        for behaviour, value in row.written.items():
            value["instruction"] = f"do {behaviour}"
    packed.pack(rows)
    yaml = YAML(typ="safe", pure=True)
    params = yaml.load(PARAMS)
    params["train"] |= {"steps": 4, "batch_size": 4, "validate_every": 2, "warmup_steps": 1, "bottleneck": 8}
    yaml.dump(params, Path("params.yaml"))
    Path("models/backbones").mkdir(parents=True)
    Path("models/backbones/backbones.json").write_text(json.dumps(pins))


def test_two_devices_train_what_one_trains(workspace, monkeypatch):
    monkeypatch.setenv("BLSP_TRACKING", "off")
    assert main(["train"]) == 0
    alone = load_file("models/adapter/model.safetensors")
    shutil.rmtree("models/adapter")
    done = blsp_train()
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("trained in") == 1, "the main process alone speaks"
    assert "destroy_process_group" not in done.stderr
    for name, tensor in load_file("models/adapter/model.safetensors").items():
        torch.testing.assert_close(tensor, alone[name], rtol=1e-4, atol=1e-4)
    assert len(Path("reports/train_log.jsonl").read_text().splitlines()) == 2


def test_what_fails_in_one_process_is_told_and_stops_all(workspace):
    Path("data/continuations/train").rename("elsewhere")
    failed = blsp_train()
    assert failed.returncode == 1
    assert failed.stderr.splitlines()[-1].startswith("blsp train: one of 2 processes failed")
    assert "run `blsp continuations`" in failed.stderr
