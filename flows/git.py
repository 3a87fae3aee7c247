"""Git as a process, in the working folder: what it prints, or its own words as an error."""

import os
import subprocess
from pathlib import Path

from blsp.errors import BlspError


def git(*arguments: str, content: str | None = None, index: Path | None = None, limit_s: float = 120) -> str:
    """What git printed, without the last line break.

    `content` is what it reads; `index` is used in place of the user's own. Raises BlspError where git fails, is not
    there, or takes longer than `limit_s`.
    """
    done = _run(arguments, content, index, limit_s)
    if done.returncode:
        said = (done.stderr or done.stdout).strip() or f"exit code {done.returncode}"
        raise BlspError(f"git {arguments[0]} failed: {said}")
    return done.stdout.rstrip("\n")


def asked(*arguments: str) -> str | None:
    """What git printed; None where it answers with an error, as it does where there is no such thing."""
    done = _run(arguments, None, None, limit_s=120)
    return None if done.returncode else done.stdout.rstrip("\n")


def paths(*arguments: str) -> list[str]:
    """The paths that a git command prints with -z."""
    return [path for path in git(*arguments).split("\0") if path]


def _run(
    arguments: tuple[str, ...], content: str | None, index: Path | None, limit_s: float
) -> "subprocess.CompletedProcess[str]":
    # Nobody is there to be asked for a password; and its words are read here, in English.
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    if index:
        environment["GIT_INDEX_FILE"] = str(index)
    try:
        return subprocess.run(
            ["git", *arguments],
            input="" if content is None else content,
            env=environment,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            check=False,
            timeout=limit_s,
        )
    except FileNotFoundError:
        raise BlspError("git is not installed: runs are published and reproduced with it") from None
    except subprocess.TimeoutExpired:
        raise BlspError(f"git {arguments[0]} did not end within {limit_s:g} s") from None
