"""What `make paper` runs, on a toy matrix with real DVC: what fails stops no other, what is stopped goes on."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from blsp.files import write_json
from flows.dvc_graph import read_graph
from flows.experiments import main, stale
from tests.trained import PARAMS

ROOT = PARAMS.parent

SCRIPT = """
import json, signal, sys, time
from pathlib import Path
name, seed = sys.argv[1:]
what = json.load(open("params.yaml"))["experiments"]["variants"][name]
def save(*_):
    Path("saved").touch()
    sys.exit(1)
signal.signal(signal.SIGTERM, save)
Path(f"{name}-{seed}.began").touch()
if what == "fails": sys.exit("no good")
if what == "hangs": time.sleep(600)
Path(f"out-{name}-{seed}").write_text(str(what))
"""

DVC_YAML = """
vars: [../../params.yaml]
stages:
  train:
    matrix: {variant: "${experiments.variants}", seed: "${experiments.seeds}"}
    wdir: ../..
    cmd: python script.py ${item.variant} ${item.seed}
    params: ["experiments.variants.${item.variant}"]
    outs: ["out-${item.variant}-${item.seed}"]
  page:
    wdir: ../..
    cmd: cat out-a-1 out-b-1 > page
    deps: [out-a-1, out-b-1]
    outs: [page]
"""


def set_variants(seeds=(1,), **variants):
    write_json("params.yaml", {"experiments": {"seeds": list(seeds), "variants": variants}})  # JSON is YAML too


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    subprocess.run(["git", "init", "-q"], check=True)
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q"], check=True)
    Path("experiments/paper").mkdir(parents=True)
    Path("experiments/paper/dvc.yaml").write_text(DVC_YAML)
    Path("script.py").write_text(SCRIPT)


def began():
    names = sorted(path.stem for path in Path().glob("*.began"))
    for path in Path().glob("*.began"):
        path.unlink()
    return names


@pytest.mark.usefixtures("project")
def test_what_fails_stops_no_other_and_alone_runs_again(capfd):
    set_variants(seeds=[1, 2], a="fails", b="fine")
    assert main(["paper"]) == 1
    said = capfd.readouterr()
    assert "paper: 5 of 5 stages are stale" in said.out and "[4 of 5] train@" in said.out
    assert "`make paper` runs what is left" in said.out and "no good" in said.err
    assert began() == ["a-1", "a-2", "b-1", "b-2"] and not Path("page").exists()
    set_variants(seeds=[1, 2], a="mended", b="fine")
    assert main(["paper"]) == 0
    assert began() == ["a-1", "a-2"]
    assert Path("page").read_text() == "mendedfine"
    assert "paper: all 5 stages are up to date" in capfd.readouterr().out
    set_variants(seeds=[1, 2, 3], a="mended", b="fine")
    assert main(["paper"]) == 0
    assert began() == ["a-3", "b-3"]


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
    while not list(Path().glob("*.began")) and time.monotonic() < deadline:
        time.sleep(0.1)
    running.send_signal(number)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130 and "`make paper` goes on with what is left" in said
    assert Path("saved").exists() and len(began()) == 1
    set_variants(a="fine", b="fine")
    assert main(["paper"]) == 0


def test_the_pipeline_does_not_hold_the_experiments_and_they_hold_what_they_need_of_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "-q"], check=True)
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q"], check=True)
    for name in ("dvc.yaml", "params.yaml", "experiments/paper/dvc.yaml", "experiments/ablations/dvc.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    pipeline = {"backbones", "corpus", "continuations", "validate", "train", "evaluate"}
    assert {stage.name for stage in read_graph().stages} == pipeline
    for name, count in (("paper", 12), ("ablations", 27)):
        graph = read_graph([f"experiments/{name}/dvc.yaml"])
        names = [stage.name for stage in graph.stages]
        assert sum(stage.startswith(f"experiments/{name}/dvc.yaml:train@") for stage in names) == count
        assert {"backbones", "corpus", "continuations", "validate"} <= set(names)
        assert len(stale(graph)) == len(names), "nothing has run"
        if name == "paper":
            assert not any("ablations" in stage for stage in names), "neither trains for the other"
