"""Git as a process, in the working folder or another: what it prints, or its own words as an error."""

import os
import subprocess
from pathlib import Path

from blsp.errors import BlspError

TRANSFER_LIMIT_S = 3600  # of a clone or a fetch: a slow network, a long history


def git(
    *arguments: str,
    folder: Path | None = None,
    content: str | None = None,
    index: Path | None = None,
    limit_s: float = 120,
) -> str:
    """What git printed, without the last line break.

    `content` is what it reads; `index` is used in place of the user's own. Raises BlspError where git fails, is not
    there, or takes longer than `limit_s`.
    """
    return _said(arguments, folder, content, index, limit_s).rstrip("\n")


def committed(path: str) -> str:
    """The text of a file in the working folder as its commit has it. Raises BlspError where it has none."""
    return _said(("show", f"HEAD:./{path}"))


def asked(*arguments: str, folder: Path | None = None) -> str | None:
    """What git printed; None where it answers with an error, as it does where there is no such thing."""
    done = _run(arguments, folder)
    return None if done.returncode else done.stdout.rstrip("\n")


def paths(*arguments: str, folder: Path | None = None) -> list[str]:
    """The paths that a git command prints with -z."""
    return [path for path in git(*arguments, folder=folder).split("\0") if path]


def changes(*allowed: str, folder: Path | None = None) -> list[str]:
    """The files of git's that have changes which no commit has, but for those of the pathspecs `allowed`."""
    status = ("status", "--porcelain", "-z", "--untracked-files=no", "--no-renames", "--", ".", *allowed)
    return [entry[3:] for entry in paths(*status, folder=folder)]


def _said(
    arguments: tuple[str, ...],
    folder: Path | None = None,
    content: str | None = None,
    index: Path | None = None,
    limit_s: float = 120,
) -> str:
    done = _run(arguments, folder, content, index, limit_s)
    if done.returncode:
        said = (done.stderr or done.stdout).strip() or f"exit code {done.returncode}"
        raise BlspError(f"{f'{folder}: ' if folder else ''}git {arguments[0]} failed: {said}")
    return done.stdout


def _run(
    arguments: tuple[str, ...],
    folder: Path | None = None,
    content: str | None = None,
    index: Path | None = None,
    limit_s: float = 120,
) -> "subprocess.CompletedProcess[str]":
    # Nobody is there to be asked for a password; and its words are read here, in English.
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    if index:
        environment["GIT_INDEX_FILE"] = str(index)
    try:
        return subprocess.run(
            ["git", *arguments],
            cwd=folder,
            input="" if content is None else content,
            env=environment,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            check=False,
            timeout=limit_s,
        )
    except FileNotFoundError:
        raise BlspError("git is not installed: runs are of its commits") from None
    except subprocess.TimeoutExpired:
        raise BlspError(f"git {arguments[0]} did not end within {limit_s:g} s") from None
