"""A toy of the whole pipeline, `corpus, backbones -> train -> evaluate`, whose files have the real ones' forms; in a
git repository with DVC, and a folder as remote."""

import asyncio
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flows import publish_steps
from flows.published import Published

ALL = ("backbones", "corpus", "train", "evaluate")

# What a stage does; `TOY_MACHINE` is what another machine adds to its figures.
SCRIPT = """
import hashlib, json, os, pathlib, sys, time
name = sys.argv[1]
p = json.load(open("params.yaml"))[name]
def write(path, content):
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    pathlib.Path(path).write_text(content if isinstance(content, str) else json.dumps(content))
print("hello from", name)
if name == "backbones":
    facts = {"source": "miniature", "revision": None, "sha256": "0" * 64, "licence": "Apache-2.0"}
    pins = {part: {"name": f"models/backbones/{part}", **facts} for part in ("speech", "llm")}
    write("models/backbones/backbones.json", pins)
if name == "corpus":
    write("data/corpus/cuts.000000.jsonl", "".join(f"{row}\\n" for row in range(p["rows"])))
if name == "train":
    rows = pathlib.Path("data/corpus/cuts.000000.jsonl").read_text().count("\\n")
    loss = p["lr"] / rows + float(os.environ.get("TOY_MACHINE", 0))
    write("models/adapter/config.json", {"model_type": "blsp"})
    write("models/adapter/model.safetensors", f"{p['salt']} {loss}")
    write("reports/train.json", {"loss": loss, "train_s": time.time()})
    write("reports/train_log.jsonl", json.dumps({"step": 1, "loss": loss}) + "\\n")
if name == "evaluate":
    adapter = pathlib.Path("models/adapter")
    digest = hashlib.sha256()
    for file in ("config.json", "model.safetensors"):
        digest.update(f"{file}\\0{hashlib.sha256((adapter / file).read_bytes()).hexdigest()}\\n".encode())
    loss = float((adapter / "model.safetensors").read_text().split()[1])
    figure = lambda value: {"value": value, "low": value - 0.01, "high": value + 0.01, "n": 400}
    def system(wer, bleu, slu, qa):
        accuracy = {"slu": {"accuracy": figure(slu)}, "qa": {"accuracy": figure(qa)}}
        return {"asr": {"wer": figure(wer)}, "st": {"bleu": figure(bleu)}, **accuracy}
    write("reports/evaluation.json", {
        "adapter_sha256": digest.hexdigest(),
        "backbones": json.load(open("models/backbones/backbones.json")),
        "systems": {"cascade": system(0.07, 90.0, 0.95, 0.95), "speech": system(0.05 + loss, 88.0, 0.97, 0.9)},
        "alignment": {"kl": figure(0.1), "top1_agreement": figure(0.95)},
        "comparisons": [{"task": "asr", "p": 0.1 + 10 * loss}],
    })
    write("reports/figures/systems.svg", f"<svg>{loss}</svg>")
    write("reports/answers.html", f"<title>{loss}</title>")
"""
PIPELINE: dict[str, dict[str, Any]] = {
    "backbones": {"outs": ["models/backbones"]},
    "corpus": {"outs": ["data/corpus"], "deps": ["data/source"]},
    "train": {
        "deps": ["data/corpus", "models/backbones", "parts"],
        "outs": ["models/adapter", {"reports/train_log.jsonl": {"cache": False}}],
        "metrics": [{"reports/train.json": {"cache": False}}],
    },
    "evaluate": {
        "deps": ["data/corpus", "models/adapter", "models/backbones"],
        "outs": ["reports/answers.html"],
        "metrics": [{"reports/evaluation.json": {"cache": False}}],
        "plots": [{"reports/figures": {"cache": False}}],
    },
}
IGNORED = "__pycache__/\nmlflow.db\n/models/\n/data/corpus/\nreports/answers.html\n"


def run(folder: Path, *command: str) -> str:
    """What the command printed."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


def git(folder: Path, *arguments: str) -> str:
    return run(folder, "git", *arguments)


def dvc(folder: Path, *arguments: str) -> str:
    return run(folder, sys.executable, "-m", "dvc", *arguments)


@pytest.fixture(scope="session")
def toy_built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy after its first run, to be copied. Making one takes 10 s."""
    folder = tmp_path_factory.mktemp("toy") / "built"
    build(folder, salt="one")
    return folder


@pytest.fixture
def toy(toy_built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it as the working folder, with a remote, and without MLflow."""
    shutil.copytree(toy_built, tmp_path / "toy", symlinks=True)
    add_remote(tmp_path / "toy", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path / "toy")
    monkeypatch.setenv("BLSP_TRACKING", "off")
    return tmp_path / "toy"


def publish_here() -> Published:
    """The toy's run in the working folder, published without Prefect."""

    async def steps() -> Published:
        candidate = await publish_steps.check(None)
        await publish_steps.push_data(candidate, print)
        published = await publish_steps.commit(candidate)
        await publish_steps.share(published, None)
        await publish_steps.record(candidate, published)
        return published

    return asyncio.run(steps())


def build(folder: Path, salt: str) -> None:
    """Nothing; the project is in `folder`, after its first `dvc repro`, its code committed."""
    folder.mkdir(parents=True)
    git(folder, "init", "--quiet", "--initial-branch", "main")
    git(folder, "config", "user.name", "Some One")
    git(folder, "config", "user.email", "some@one.example")
    dvc(folder, "init", "--quiet")
    shutil.copy(Path(__file__).parents[1] / ".dvcignore", folder)
    (folder / ".dvc/config").write_text("[core]\nanalytics = false\nautostage = true\ncheck_update = false\n")
    (folder / ".gitignore").write_text(IGNORED)
    (folder / "stage.py").write_text(SCRIPT)
    for name in ("parts/loop.py", "data/source/README.md"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("")
    stages = {
        name: {**stage, "cmd": f"{sys.executable} stage.py {name}", "params": [name]}
        | {"deps": ["stage.py", *stage.get("deps", [])]}
        for name, stage in PIPELINE.items()
    }
    (folder / "dvc.yaml").write_text(json.dumps({"stages": stages}))
    write_params(folder, salt)
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message", "Code")
    dvc(folder, "repro", "--quiet")


def write_params(folder: Path, salt: str, **train: Any) -> None:
    """Nothing; params.yaml is there, its `train` section changed so. No two salts train the same adapter."""
    params: dict[str, dict[str, Any]] = {name: {} for name in ALL}
    params["corpus"] = {"rows": 10}
    params["train"] = {"lr": 0.1, "salt": salt} | train
    (folder / "params.yaml").write_text(json.dumps(params))


def add_remote(folder: Path, url: str) -> None:
    """Nothing; the DVC remote `store` is the default, and committed."""
    with (folder / ".dvc/config").open("a") as config:
        config.write(f"remote = store\n['remote \"store\"']\nurl = {url}\nverify = true\n")
    git(folder, "commit", "--quiet", "--message", "Remote", ".dvc/config")
