"""git's side of a workspace: a clone of its own, brought to the commit of the flow's code."""

from pathlib import Path

from blsp.errors import BlspError
from blsp.params import PARAMS_FILE
from blsp.tracking.local import NOT_CHANGES
from flows.git import TRANSFER_LIMIT_S, asked, changes, git

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
    git("init", "--quiet", folder=folder)


def bring_to_commit() -> None:
    """Nothing; afterwards the working folder, which must be held, is at the commit of this code.

    What runs left in git's files (dvc.lock, reports, params.yaml) goes onto git's stash where the commit changes.
    Raises BlspError where other files have changes that no commit has, here or in the code, or git fails.
    """
    commit = git("rev-parse", "HEAD", folder=CODE)
    here = Path.cwd()
    refuse_changes(CODE, "the run would not have them")
    if "origin" not in git("remote").split():
        git("remote", "add", "origin", _origin())
    head = asked("rev-parse", "--quiet", "--verify", "HEAD")
    if head:
        refuse_changes(here, f"runs here are of commits alone (now of {commit[:12]})")
    if head == commit:
        return
    if not asked("cat-file", "-t", commit):
        git("fetch", "--quiet", "origin", commit, limit_s=TRANSFER_LIMIT_S)
    if head and git("status", "--porcelain", "--untracked-files=no"):
        git("stash", "push", "--quiet", "--message", f"blsp: what runs left at {head[:12]}")
    git("checkout", "--quiet", "--detach", commit)


def _origin() -> str:
    return asked("remote", "get-url", "origin", folder=CODE) or str(CODE)


def refuse_changes(folder: Path, so: str) -> None:
    """Nothing. Raises BlspError, which ends in `so`, where git's files there have changes that no commit has.

    What stages write is no such change; nor, in a workspace, is params.yaml.
    """
    allowed = (*NOT_CHANGES, f":(exclude){PARAMS_FILE}") if folder != CODE else NOT_CHANGES
    if changed := changes(*allowed, folder=folder):
        names = ", ".join(changed[:5])
        raise BlspError(f"{folder}: has changes that no commit has, and {so}: {names}; commit or discard them")
