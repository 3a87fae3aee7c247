"""The values of one run in params.yaml: kept where the run completes, put back where it does not.

DVC reads params.yaml and writes dvc.lock, so a run with values of its own changes both, and what its finished stages
wrote. Before it begins, both and the outputs that DVC does not cache are copied to a folder that is removed when the
run has completed. A run that fails, is cancelled or times out puts them back itself; after one that was killed, the
next to take the workspace does. What its finished stages computed stays in DVC's run cache.
"""

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from blsp.files import read_json, replace_dir, write_bytes, write_json, write_text
from blsp.params import PARAMS_FILE
from flows.dvc_graph import RESTORE
from flows.git import asked

STATE = Path(".dvc/tmp/blsp")  # what flows keep beside DVC's own temporary files, outside git
BEFORE = STATE / "before"  # copies of what a run with other values found, and `files.json` about them
SET_ASIDE = STATE / "set-aside"
LOCK_FILE = "dvc.lock"


@contextlib.contextmanager
def in_place(text: str, by: str, say: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """params.yaml in the working folder, which must be held, holds `text` in the block, and after it where the block
    has called what it is given; otherwise all is put back. Where it holds `text` already, nothing is done at all."""
    path = Path(PARAMS_FILE)
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        yield lambda: None
        return
    _copy(text, by)
    write_text(path, text)
    try:
        yield _forget
    finally:
        put_back(say)


def put_back(say: Callable[[str], None]) -> None:
    """Nothing; what the last run with other values found is there again, if that run was not completed.

    Where params.yaml was changed since by another hand, all is left as it is, and `say` tells where the copies are.
    """
    if not BEFORE.is_dir():
        return
    before = read_json(BEFORE / "files.json")
    now = _digest(Path(PARAMS_FILE))
    if now not in (before["params_of_run"], before["params_before"]):
        shutil.rmtree(SET_ASIDE, ignore_errors=True)
        os.replace(BEFORE, SET_ASIDE)
        say(
            f"{PARAMS_FILE} was changed since {before['by']}, which did not complete: left as it is, {LOCK_FILE} too; "
            f"what was there before that run is in {SET_ASIDE}"
        )
        return
    for name, copy in before["files"].items():
        _restore(Path(name), BEFORE / copy if copy else None)
    done = subprocess.run([sys.executable, "-m", "flows.dvc_graph", RESTORE], capture_output=True, text=True)
    if done.returncode:
        say(f"some outputs are not those of {LOCK_FILE}; the next run makes them again: {done.stderr.strip()}")
    # DVC's autostage has put what the run wrote into git's index.
    asked("add", "--update", "--", LOCK_FILE, *_uncached())
    _forget()
    say(f"{before['by']} did not complete: {PARAMS_FILE} and {LOCK_FILE} are as they were before it")


def _forget() -> None:
    done = BEFORE.with_suffix(".done")  # killed while it is removed, it must not be half there
    shutil.rmtree(done, ignore_errors=True)
    os.replace(BEFORE, done)
    shutil.rmtree(done)


def _copy(text: str, by: str) -> None:
    names = [PARAMS_FILE, LOCK_FILE, *_uncached()]
    with replace_dir(BEFORE) as folder:
        copies = {name: f"{number}" if Path(name).exists() else None for number, name in enumerate(names)}
        for name, copy in copies.items():
            if copy is not None:
                _copy_path(Path(name), folder / copy)
        write_json(
            folder / "files.json",
            {
                "by": by,
                "files": copies,
                "params_before": _digest(Path(PARAMS_FILE)),
                "params_of_run": hashlib.sha256(text.encode()).hexdigest(),
            },
        )


def _restore(path: Path, copy: Path | None) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    if copy is None:
        path.unlink(missing_ok=True)
    elif copy.is_dir():
        _copy_path(copy, path)
    else:
        write_bytes(path, copy.read_bytes())


def _copy_path(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy(source, target)


def _uncached() -> list[str]:
    """The outputs in dvc.yaml that DVC leaves to git, as `cache: false` says: small ones."""
    try:
        stages = YAML(typ="safe", pure=True).load(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"]
    except (OSError, YAMLError, KeyError, TypeError):
        return []  # DVC will say what is wrong with it
    return [
        str(path)
        for stage in stages.values()
        for kind in ("outs", "metrics", "plots")
        for entry in stage.get(kind, ())
        if isinstance(entry, dict)
        for path, settings in entry.items()
        if isinstance(settings, dict) and settings.get("cache") is False
    ]


def _digest(path: Path) -> Any:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
