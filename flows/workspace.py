"""The folder in which stages run: one run at a time has it, and finds it as the last completed run left it.

In a shell it is the working folder, at whatever state. A worker clones the flow's code into a temporary folder; there
the workspace is the folder that BLSP_WORKSPACE names, where DVC's cache, data and models outlive the run, brought to
the commit of that code.
"""

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from blsp.errors import BlspError
from flows.checkout import CODE, bring_to_commit, make
from flows.run_params import STATE, put_back

VARIABLE = "BLSP_WORKSPACE"


class WorkspaceBusy(BlspError):
    """Another run has the workspace; the message says which."""


@contextlib.contextmanager
def taken(by: str, say: Callable[[str], None], deployed: bool = False, runs_stages: bool = True) -> Iterator[bool]:
    """The block runs in the workspace, which nobody else then has. What is given says whether it is a folder that
    belongs to runs alone, and so is at the commit of this code.

    `by` tells others who has it; `say` gets what there is to tell. `deployed`: a deployment's run, which needs a folder
    that outlives it. Without `runs_stages` the folder stays at the commit it is at. Raises WorkspaceBusy where another
    has it, and BlspError where it cannot be had.
    """
    named = os.environ.get(VARIABLE)
    if deployed and not named:
        raise BlspError(
            f"{VARIABLE} is not set: a worker runs this code from a temporary folder, and what stages write would go "
            f"with it. Set {VARIABLE} in the worker's environment to a folder on a disk that stays, and start it again."
        )
    folder = Path(named).expanduser().resolve() if named else Path.cwd()
    own = named is not None and folder != CODE
    if own and runs_stages:
        make(folder)
    if not folder.is_dir():
        raise BlspError(f"{folder}: {VARIABLE} names it, but nothing has run there yet; run the pipeline first")
    with held(folder, by):
        put_back(say)
        if own and runs_stages:
            bring_to_commit()
        yield own


@contextlib.contextmanager
def held(folder: Path, by: str) -> Iterator[None]:
    """The block runs in `folder`, which no other run then has; `by` tells others which run has it.

    The lock is the operating system's: it ends with this process, however that dies. A folder without DVC, where
    no stage can run, is not locked. Raises WorkspaceBusy where another run has it.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.chdir(folder))
        if Path(".dvc").is_dir():
            STATE.mkdir(parents=True, exist_ok=True)
            stream = stack.enter_context(open(STATE / "lock", "a+", encoding="utf-8"))
            _lock(stream, folder, by)
        yield


def _lock(stream: IO[str], folder: Path, by: str) -> None:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        stream.seek(0)
        raise WorkspaceBusy(f"{folder}: {_holder(stream.read())}; one run at a time works in a workspace") from None
    stream.truncate(0)
    since = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    json.dump({"by": by, "process": os.getpid(), "host": socket.gethostname(), "since": since}, stream)
    stream.flush()


def _holder(text: str) -> str:
    try:
        return "{by} has it (process {process} on {host}, since {since})".format_map(json.loads(text))
    except (ValueError, KeyError):
        return "another run has it"  # and has only just taken it
