"""A toy of this repository: its own code and params.yaml, with two quick stages in place of the pipeline's."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from prefect.settings import get_current_settings
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[2]
CODE = ("blsp", "flows", "infra", "profiles", "params.yaml", ".dvcignore")

# A stage writes its value in params.yaml; as long as a file `hang-STAGE` is there, it waits.
SCRIPT = """
import os, sys, time
from pathlib import Path
from ruamel.yaml import YAML
name, section, key = sys.argv[1:]
Path(f"{name}.pid").write_text(str(os.getpid()))
while os.path.exists(f"hang-{name}"): time.sleep(0.1)
value = YAML(typ="safe", pure=True).load(Path("params.yaml"))[section][key]
Path(f"{name}.txt").write_text(str(value))
Path("reports").mkdir(exist_ok=True)
Path(f"reports/{name}.json").write_text(f'{{"value": {value}}}')
"""
STAGES = {"corpus": ("corpus", "shard_size"), "train": ("train", "lr")}


def make(folder: Path) -> None:
    """Nothing; afterwards `folder` is a git repository with one commit, of the toy."""
    folder.mkdir()
    for name in CODE:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)
    (folder / ".dvc").mkdir()
    for name in ("config", ".gitignore"):
        shutil.copy(ROOT / ".dvc" / name, folder / ".dvc" / name)
    (folder / "stage.py").write_text(SCRIPT)
    stages = {
        name: {
            "cmd": f"python stage.py {name} {section} {key}",
            "deps": ["stage.py", *(["corpus.txt"] if name == "train" else [])],
            "params": [f"{section}.{key}"],
            "outs": [f"{name}.txt"],
            "metrics": [{f"reports/{name}.json": {"cache": False}}],
            "meta": {"tags": ["gpu"]},
        }
        for name, (section, key) in STAGES.items()
    }
    (folder / "dvc.yaml").write_text(json.dumps({"stages": stages}))
    (folder / ".gitignore").write_text("__pycache__/\n*.txt\n*.pid\nhang-*\n")
    git(folder, "init", "--quiet", "--initial-branch", "main")
    commit(folder, "Toy")


def commit(folder: Path, message: str) -> str:
    """The commit that has everything in `folder`."""
    git(folder, "add", "--all")
    git(folder, "-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "--quiet", "--message", message)
    return git(folder, "rev-parse", "HEAD")


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def repro(folder: Path) -> None:
    """Nothing; the stages have run, in a shell."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    command = [sys.executable, "-m", "dvc", "repro", "--quiet"]
    subprocess.run(command, cwd=folder, check=True, env={**os.environ, "PATH": path})


def stale(folder: Path) -> dict[str, Any]:
    """What `dvc status` says of the stages: nothing where all are up to date."""
    command = [sys.executable, "-m", "dvc", "status", "--json"]
    done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout))


def value(folder: Path, section: str, key: str) -> Any:
    """A value of params.yaml in `folder`."""
    return YAML(typ="safe", pure=True).load(folder / "params.yaml")[section][key]


def contents(folder: Path) -> dict[str, bytes | None]:
    """What a run may change: params.yaml, dvc.lock, and all that stages write."""
    names = [
        "params.yaml",
        "dvc.lock",
        *(f"{name}.txt" for name in STAGES),
        *(f"reports/{name}.json" for name in STAGES),
    ]
    return {name: path.read_bytes() if (path := folder / name).exists() else None for name in names}


def environment(code: Path, **more: str) -> dict[str, str]:
    """The environment of a process that has the code in `code` and talks to the tests' Prefect server."""
    settings = {"PREFECT_API_URL": str(get_current_settings().api.url), "PYTHONPATH": str(code)}
    return {**os.environ, **settings, **more}


def processes_in(folder: Path) -> list[str]:
    """Command lines of the processes that run in `folder`, this one excepted."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and process.cwd() == str(folder) and process.status() != "zombie":
                found.append(" ".join(process.cmdline()))
    return found


def wait_until(happened: Callable[[], Any], limit_s: float = 120) -> None:
    until_s = time.monotonic() + limit_s
    while not happened():
        assert time.monotonic() < until_s
        time.sleep(0.1)
