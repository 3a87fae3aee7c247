"""git's side of a workspace: a clone of its own, brought to the commit of the flow's code."""

import os
import subprocess
from pathlib import Path

from blsp.errors import BlspError
from blsp.params import PARAMS_FILE
from blsp.tracking.local import NOT_CHANGES

CODE = Path(__file__).resolve().parents[1]


def make(folder: Path) -> None:
    """Nothing; afterwards `folder` is a git repository, with the origin of this code where it was not there yet.

    Raises BlspError where it holds something else.
    """
    if (folder / ".git").exists():
        return
    if folder.exists() and any(path.name != ".dvc" for path in folder.iterdir()):
        raise BlspError(f"{folder}: to be the workspace it must be empty, or a clone of this repository")
    (folder / ".dvc").mkdir(parents=True, exist_ok=True)  # in which the lock lies, before anything is fetched
    git(folder, "init", "--quiet")


def bring_to_commit() -> None:
    """Nothing; afterwards the working folder, which must be held, is at the commit of this code.

    What runs left in git's files (dvc.lock, reports, params.yaml) goes onto git's stash where the commit changes.
    Raises BlspError where other files have changes that no commit has, here or in the code, or git fails.
    """
    commit = git(CODE, "rev-parse", "HEAD")
    here = Path.cwd()
    refuse_changes(CODE, "the run would not have them")
    if "origin" not in git(here, "remote").split():
        git(here, "remote", "add", "origin", _origin())
    head = git(here, "rev-parse", "--quiet", "--verify", "HEAD", or_else="")
    if head:
        refuse_changes(here, f"runs here are of commits alone (now of {commit[:12]})")
    if head == commit:
        return
    if not git(here, "cat-file", "-t", commit, or_else=""):
        git(here, "fetch", "--quiet", "origin", commit)
    if head and git(here, "status", "--porcelain", "--untracked-files=no"):
        git(here, "stash", "push", "--quiet", "--message", f"blsp: what runs left at {head[:12]}")
    git(here, "checkout", "--quiet", "--detach", commit)


def committed_params() -> str:
    """The text of params.yaml as the working folder's commit has it. Raises BlspError where it has none."""
    return git(Path.cwd(), "show", f"HEAD:./{PARAMS_FILE}", strip=False)


def git(folder: Path, *arguments: str, or_else: str | None = None, strip: bool = True) -> str:
    """What a git command in `folder` prints. Where it fails: `or_else`, or BlspError with git's words."""
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}
    done = subprocess.run(["git", *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        if or_else is not None:
            return or_else
        raise BlspError(f"{folder}: git {arguments[0]} failed: {done.stderr.strip()}")
    return done.stdout.strip() if strip else done.stdout


def _origin() -> str:
    return git(CODE, "remote", "get-url", "origin", or_else=str(CODE))


def refuse_changes(folder: Path, so: str) -> None:
    """Nothing. Raises BlspError, which ends in `so`, where git's files there have changes that no commit has.

    What stages write is no such change; nor, in a workspace, is params.yaml.
    """
    allowed = (*NOT_CHANGES, f":(exclude){PARAMS_FILE}") if folder != CODE else NOT_CHANGES
    changed = git(folder, "status", "--porcelain", "--untracked-files=no", "--", ".", *allowed)
    if changed:
        names = ", ".join(line.split(maxsplit=1)[-1] for line in changed.splitlines()[:5])
        raise BlspError(f"{folder}: has changes that no commit has, and {so}: {names}; commit or discard them")
