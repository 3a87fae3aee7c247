"""Two processes over gloo, on one machine or two: they make the step of one, and go on with each other's runs."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file

from tests.servers import free_port
from tests.training.run_processes import run
from tests.training.test_loop import assert_same_steps

ROOT = Path(__file__).parents[2]


def launch(jobs, *options):
    """The torchrun, started, of processes that each do these jobs."""
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", *options),
            *("-m", "tests.training.run_processes", json.dumps(jobs)),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def finish(*torchruns):
    for torchrun in torchruns:
        _, errors = torchrun.communicate(timeout=300)
        assert torchrun.returncode == 0, errors[-4000:]


def result(folder):
    """The adapter and the log of a run, and what each of its processes told."""
    return SimpleNamespace(
        adapter=load_file(folder / "adapter.safetensors"),
        log=json.loads((folder / "log.json").read_text()),
        told=told(folder),
    )


def told(folder):
    return [json.loads(file.read_text()) for file in sorted(folder.glob("told-*.json"))]


def agree(pins, one, other):
    assert_same_steps(pins, one.adapter, other.adapter)
    for key in ("loss", "gradient_norm", "dev_kl", "dev_top1"):
        assert other.log[-1][key] == pytest.approx(one.log[-1][key], rel=1e-4), key


@pytest.fixture(scope="module")
def alone(pins, tmp_path_factory):
    """The run of one process."""
    folder = tmp_path_factory.mktemp("alone")
    run(pins, folder, folder / "scratch")
    return result(folder)


@pytest.fixture(scope="module")
def together(pins, tmp_path_factory):
    """The folder of four runs of two processes on one machine: plain, sharded, with too few utterances, stopped."""
    folder = tmp_path_factory.mktemp("together")
    runs = {
        "plain": {},
        "sharded": {"shard_llm": True},
        "few": {"shard_llm": True, "batch_size": 1},
        "stopped": {"terminate_after": 6},
    }
    jobs = [
        {"pins": pins, "out": str(folder / name), "scratch": str(folder / name / "scratch"), **options}
        for name, options in runs.items()
    ]
    finish(launch(jobs, "--standalone", "--nproc-per-node=2"))
    return folder


def test_the_same_global_batch_gives_the_same_steps(pins, alone, together):
    agree(pins, alone, result(together / "plain"))


def test_processes_share_the_utterances(alone, together):
    first, second = told(together / "plain")
    # Three utterances over two processes of equal counts: nothing is lost, nothing is counted twice.
    assert Counter(first["seen"]) + Counter(second["seen"]) == Counter(alone.told[0]["seen"])


def test_a_sharded_llm_makes_the_same_steps_and_each_process_keeps_half(pins, alone, together):
    sharded = result(together / "sharded")
    agree(pins, alone, sharded)
    whole = alone.told[0]["layer_bytes"]
    assert [process["layer_bytes"] for process in sharded.told] == [whole / 2, whole / 2]


def test_more_processes_than_utterances_make_the_same_steps(pins, together, tmp_path):
    """Some have nothing to do and take part all the same: a sharded LLM's layers are gathered from everyone."""
    run(pins, tmp_path, tmp_path / "scratch", batch_size=1)
    agree(pins, result(tmp_path), result(together / "few"))


def test_a_run_stopped_on_two_processes_goes_on_with_one(pins, alone, together, tmp_path):
    stopped = {process["stopped"] for process in told(together / "stopped")}
    assert len(stopped) == 1 and "stopped after step " in stopped.pop()
    run(pins, tmp_path, together / "stopped" / "scratch")
    resumed = result(tmp_path)
    seen = resumed.told[0]["seen"]
    assert 0 < len(seen) < len(alone.told[0]["seen"]), "what two processes learned was not learned again"
    assert [record["step"] for record in resumed.log] == [record["step"] for record in alone.log]
    agree(pins, alone, resumed)


def test_two_machines_meet_and_only_one_of_them_needs_the_checkpoint(pins, alone, tmp_path):
    """Each has a scratch of its own: a run is stopped, and goes on from what the first machine kept."""
    endpoint = f"localhost:{free_port()}"
    jobs = [{"pins": pins, "out": str(tmp_path / out)} for out in ("stopped", "resumed")]
    jobs[0]["terminate_after"] = 6
    machines = [
        launch(
            [{**job, "scratch": str(tmp_path / f"scratch-{machine}")} for job in jobs],
            *("--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint={endpoint}"),
            *("--rdzv-id=test", "--local-addr=127.0.0.1"),
        )
        for machine in range(2)
    ]
    finish(*machines)
    assert len(list(tmp_path.glob("scratch-*/train/*/step-*"))) == 1
    resumed = result(tmp_path / "resumed")
    agree(pins, alone, resumed)
    assert 0 < sum(len(process["seen"]) for process in resumed.told) < len(alone.told[0]["seen"])
