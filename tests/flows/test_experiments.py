"""What `make paper` runs, on a toy matrix with real DVC: what fails stops no other, what is stopped goes on."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from blsp.files import read_json, write_json
from blsp.params import load_params
from flows.dvc_graph import read_graph
from flows.experiments import main, shares, stale
from tests.trained import PARAMS

ROOT = PARAMS.parent

SCRIPT = """
import os, signal, sys, time
from pathlib import Path
name, seed = sys.argv[1:]
what = Path(f"what-{name}").read_text()
def save(*_):
    Path(f"saved-{name}").touch()
    sys.exit(1)
signal.signal(signal.SIGINT, save)
Path(f"{name}-{seed}.began").write_text(os.environ["OMP_NUM_THREADS"])
deadline = time.monotonic() + 60
while what == "meets" and len(list(Path().glob(f"{name}-*.began"))) < 2:
    time.sleep(0.1)
    if time.monotonic() > deadline: sys.exit("alone")
if what == "fails": sys.exit("no good")
if what == "hangs": time.sleep(600)
Path(f"out-{name}-{seed}").write_text(what)
"""

DVC_YAML = """
vars: [../../params.yaml]
stages:
  train:
    matrix: {variant: "${experiments.variants}", seed: "${experiments.seeds}"}
    wdir: ../..
    cmd: python script.py ${item.variant} ${item.seed}
    deps: ["what-${item.variant}", upstream]
    outs: ["out-${item.variant}-${item.seed}"]
  page:
    wdir: ../..
    cmd: cat out-a-1 out-b-1 > page
    deps: [out-a-1, out-b-1]
    outs: [page]
"""


def set_variants(seeds=(1,), **variants):
    """params.yaml has these variants, and the script does for each what is said of it."""
    params = YAML(typ="safe", pure=True).load(PARAMS)
    params["experiments"] |= {"seeds": list(seeds), "variants": {name: {} for name in variants}}
    params["experiments"] |= {"ablations": {}, "compared": [], "axes": {}}
    write_json("params.yaml", params)  # JSON is YAML too
    for name, what in variants.items():
        Path(f"what-{name}").write_text(what)


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    subprocess.run(["git", "init", "-q"], check=True)
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q"], check=True)
    shutil.copy(ROOT / ".dvc/config", ".dvc/config")  # as it is, both stage what they write in git
    Path("dvc.yaml").write_text("stages: {upstream: {cmd: date > upstream, outs: [upstream]}}")
    Path("experiments/paper").mkdir(parents=True)
    Path("experiments/paper/dvc.yaml").write_text(DVC_YAML)
    Path("script.py").write_text(SCRIPT)


def began():
    names = sorted(path.stem for path in Path().glob("*.began"))
    for path in Path().glob("*.began"):
        path.unlink()
    return names


@pytest.mark.usefixtures("project")
def test_two_run_at_once_and_what_fails_stops_no_other_and_alone_runs_again(capfd):
    set_variants(a="fails", b="fine")
    assert main(["paper"]) == 1
    said = capfd.readouterr().out
    assert said.startswith(
        "paper: 4 of 4 stages are stale, 2 run at once\n[1 of 4] upstream\n[1 of 4] upstream: done in "
    )
    assert re.search(r"\[\d of 4\] train@a-1: failed after \d+ s\n", said) and "\ntrain@a-1 | no good\n" in said
    assert re.search(r"\[\d of 4\] train@b-1: done in \d+ s\n", said)
    *_, end = said.partition("paper: 1 of 4 stages failed, `make paper` runs what is left\n")
    assert end == "  train@a-1: no good\n  not run, as it needs what failed: page\n"
    assert began() == ["a-1", "b-1"] and not Path("page").exists()
    set_variants(seeds=[1, 2], a="meets", b="fine")
    assert main(["paper"]) == 0
    assert began() == ["a-1", "a-2", "b-2"] and Path("page").read_text() == "meetsfine"
    said = capfd.readouterr().out
    assert said.startswith("paper: 4 of 6 stages are stale") and said.endswith("paper: all 6 stages are up to date\n")
    assert not stale(read_graph(["experiments/paper/dvc.yaml"])), "dvc.lock has what both have done"


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_is_stopped_saves_first_and_starts_no_other(number):
    set_variants(a="hangs", b="hangs")
    running = subprocess.Popen(
        [sys.executable, "-m", "flows.experiments", "paper"],
        stderr=subprocess.PIPE,
        text=True,
        # Tests that run in the background of a script were told to ignore it, and their children with them.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 120
    while len(list(Path().glob("*.began"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    running.send_signal(number)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130 and "`make paper` goes on with what is left" in said
    assert sorted(path.name for path in Path().glob("saved-*")) == ["saved-a", "saved-b"] and len(began()) == 2
    assert not any(read_json(".dvc/tmp/rwlock").values()), "interrupted, not killed"
    left = [stage.name.rpartition(":")[2] for stage in stale(read_graph(["experiments/paper/dvc.yaml"]))]
    assert sorted(left) == ["page", "train@a-1", "train@b-1"]


@pytest.mark.parametrize(
    ("gpus", "visible", "expected"),
    [
        (0, None, [None, None, None]),
        (1, None, [None, None, None]),
        (2, None, ["0", "1", "0"]),
        (8, None, ["0,3,6", "1,4,7", "2,5"]),
        (3, "2,GPU-4,5", ["2", "GPU-4", "5"]),
    ],
)
def test_threads_and_gpus_are_shared_out(monkeypatch, gpus, visible, expected):
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    monkeypatch.setattr("torch.get_num_threads", lambda: 7)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = shares(3)
    assert [environment.get("CUDA_VISIBLE_DEVICES") for environment in found] == expected
    assert {environment["OMP_NUM_THREADS"] for environment in found} == {"2"}
    assert shares(1) == [{}]
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert not any("OMP_NUM_THREADS" in environment for environment in shares(9))


def test_the_pipeline_does_not_hold_the_experiments_and_they_hold_what_they_need_of_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "-q"], check=True)
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q"], check=True)
    for name in ("dvc.yaml", "params.yaml", "experiments/paper/dvc.yaml", "experiments/ablations/dvc.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    pipeline = {"backbones", "corpus", "validate_corpus", "continuations", "validate", "train", "evaluate"}
    assert {stage.name for stage in read_graph().stages} == pipeline
    experiments = load_params(PARAMS).experiments
    counts = {
        "paper": len(experiments.variants) * len(experiments.seeds),
        "ablations": len(experiments.ablations) * len(experiments.ablation_seeds),
    }
    for name, count in counts.items():
        graph = read_graph([f"experiments/{name}/dvc.yaml"])
        names = [stage.name for stage in graph.stages]
        assert sum(stage.startswith(f"experiments/{name}/dvc.yaml:train@") for stage in names) == count
        assert {"backbones", "corpus", "continuations", "validate"} <= set(names)
        assert len(stale(graph)) == len(names), "nothing has run"
        if name == "paper":
            assert not any("ablations" in stage for stage in names), "neither trains for the other"
