"""Two processes over gloo, on one machine or two: they make the step of one, and go on with each other's runs."""

import json
import os
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]


def start(pins, folder, processes, machines=1, scratch=None, terminate_after=None, **settings):
    """Nothing; a training of so many processes on each machine has ended, its files are in `folder`."""
    folder.mkdir()
    job = {
        "pins": pins,
        "out": str(folder),
        "scratch": str(scratch or folder / "scratch"),
        "settings": {"steps": 6, "validate_every": 6, **settings},
        "terminate_after": terminate_after,
    }
    meeting = ["--standalone"]
    if machines > 1:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            endpoint = f"localhost:{free.getsockname()[1]}"
        meeting = [f"--nnodes={machines}", "--rdzv-backend=c10d", f"--rdzv-endpoint={endpoint}", "--rdzv-id=test"]
    torchruns = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", *meeting),
                *("-m", "tests.training.run_processes", json.dumps({**job, "machine": machine})),
            ],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for machine in range(machines)
    ]
    for torchrun in torchruns:
        _, errors = torchrun.communicate(timeout=120)
        assert torchrun.returncode == 0, errors[-4000:]


def run(pins, folder, processes, machines=1, **options):
    """The adapter, the log and what each process tells of itself, of a run on so many processes a machine."""
    start(pins, folder, processes, machines, **options)
    told = [json.loads((folder / f"told-{rank}.json").read_text()) for rank in range(processes * machines)]
    return load_file(folder / "adapter.safetensors"), json.loads((folder / "log.json").read_text()), told


def agree(some, others):
    (adapter, log, _), (other_adapter, other_log, _) = some, others
    for name, tensor in adapter.items():
        torch.testing.assert_close(other_adapter[name], tensor, rtol=1e-5, atol=1e-5)
    for key in ("loss", "gradient_norm", "dev_kl", "dev_top1"):
        assert other_log[-1][key] == pytest.approx(log[-1][key], rel=1e-4), key


@pytest.fixture(scope="module")
def alone(pins, tmp_path_factory):
    return run(pins, tmp_path_factory.mktemp("alone") / "run", 1)


@pytest.fixture(scope="module")
def together(pins, tmp_path_factory):
    return run(pins, tmp_path_factory.mktemp("together") / "run", 2)


def test_the_same_global_batch_gives_the_same_steps(alone, together):
    agree(alone, together)


def test_processes_share_the_utterances(alone, together):
    whole, (first, second) = alone[2][0]["seen"], (told["seen"] for told in together[2])
    # Three utterances over two processes of equal counts: nothing is lost, nothing is counted twice.
    assert Counter(first) + Counter(second) == Counter(whole)


def test_a_sharded_llm_makes_the_same_steps_and_each_process_keeps_half(pins, alone, tmp_path):
    sharded = run(pins, tmp_path / "sharded", 2, shard_llm=True)
    agree(alone, sharded)
    whole = alone[2][0]["layer_bytes"]
    assert [told["layer_bytes"] for told in sharded[2]] == [whole / 2, whole / 2]


def test_more_processes_than_utterances_make_the_same_steps(pins, tmp_path):
    """Some have nothing to do and take part all the same: a sharded LLM's layers are gathered from everyone."""
    few = {"batch_size": 1, "shard_llm": True}
    agree(run(pins, tmp_path / "alone", 1, batch_size=1), run(pins, tmp_path / "together", 2, **few))


def test_two_machines_meet_and_only_one_of_them_has_the_checkpoint(pins, alone, tmp_path):
    """Each with a scratch of its own; the second run goes on from what the first machine of the first kept."""
    start(pins, tmp_path / "stopped", 1, machines=2, scratch=tmp_path / "scratch", terminate_after=6)
    assert len(list((tmp_path / "scratch").glob("*/train/*/step-*"))) == 1
    adapter, log, told = run(pins, tmp_path / "run", 1, machines=2, scratch=tmp_path / "scratch")
    agree(alone, (adapter, log, told))
    assert sum(len(process["seen"]) for process in told) < len(alone[2][0]["seen"])


def test_a_run_stopped_on_two_processes_goes_on_with_one(pins, alone, tmp_path):
    scratch = tmp_path / "scratch"
    start(pins, tmp_path / "two", 2, scratch=scratch, terminate_after=6)
    stopped = {(tmp_path / "two" / f"stopped-{rank}.txt").read_text() for rank in range(2)}
    assert len(stopped) == 1 and "stopped by SIGTERM after step " in stopped.pop()
    adapter, log, (told,) = run(pins, tmp_path / "one", 1, scratch=scratch)
    assert 0 < len(told["seen"]) < len(alone[2][0]["seen"]), "what two processes learned was not learned again"
    assert [record["step"] for record in log] == [record["step"] for record in alone[1]]
    for name, tensor in alone[0].items():
        torch.testing.assert_close(adapter[name], tensor, rtol=1e-4, atol=1e-5)
