"""Two processes over gloo: they make the step that one makes, share the utterances, and take over each other's runs."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]


def start(pins, folder, processes, scratch=None, terminate_after=None, **settings):
    """Nothing; a training of so many processes has ended, its files are in `folder`."""
    folder.mkdir()
    job = {
        "pins": pins,
        "out": str(folder),
        "scratch": str(scratch or folder / "scratch"),
        "settings": {"steps": 6, "validate_every": 6, **settings},
        "terminate_after": terminate_after,
    }
    result = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--standalone"),
            *("-m", "tests.training.run_processes", json.dumps(job)),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-4000:]


def run(pins, folder, processes, scratch=None):
    """The adapter, the log and the rows each process saw, of a run on so many processes."""
    start(pins, folder, processes, scratch)
    seen = [json.loads((folder / f"seen-{rank}.json").read_text()) for rank in range(processes)]
    return load_file(folder / "adapter.safetensors"), json.loads((folder / "log.json").read_text()), seen


@pytest.fixture(scope="module")
def alone(pins, tmp_path_factory):
    return run(pins, tmp_path_factory.mktemp("alone") / "run", 1)


@pytest.fixture(scope="module")
def together(pins, tmp_path_factory):
    return run(pins, tmp_path_factory.mktemp("together") / "run", 2)


def test_the_same_global_batch_gives_the_same_steps(alone, together):
    (adapter, log, _), (shared, shared_log, _) = alone, together
    for name, tensor in adapter.items():
        torch.testing.assert_close(shared[name], tensor, rtol=1e-5, atol=1e-5)
    for key in ("loss", "gradient_norm", "dev_kl", "dev_top1"):
        assert shared_log[-1][key] == pytest.approx(log[-1][key], rel=1e-4), key


def test_processes_share_the_utterances(alone, together):
    whole, (first, second) = alone[2][0], together[2]
    # Three utterances over two processes of equal counts: nothing is lost, nothing is counted twice.
    assert Counter(first) + Counter(second) == Counter(whole)


def test_a_run_stopped_on_two_processes_goes_on_with_one(pins, alone, tmp_path):
    scratch = tmp_path / "scratch"
    start(pins, tmp_path / "two", 2, scratch, terminate_after=6)
    stopped = {(tmp_path / "two" / f"stopped-{rank}.txt").read_text() for rank in range(2)}
    assert len(stopped) == 1 and "stopped by SIGTERM after step " in stopped.pop()
    adapter, log, (seen,) = run(pins, tmp_path / "one", 1, scratch)
    assert 0 < len(seen) < len(alone[2][0]), "what two processes learned was not learned again"
    assert [record["step"] for record in log] == [record["step"] for record in alone[1]]
    for name, tensor in alone[0].items():
        torch.testing.assert_close(adapter[name], tensor, rtol=1e-4, atol=1e-5)
