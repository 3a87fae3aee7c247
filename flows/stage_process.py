"""One stage as a DVC process: started in a group of its own, read line by line, never left behind."""

import asyncio
import codecs
import contextlib
import dataclasses
import os
import re
import signal
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Literal

import anyio

from flows.dvc_graph import Stage

TAIL_LINES = 20  # lines of a failed stage that its message keeps
# s a cancelled stage gets to end by itself: training ends its step and saves. Prefect's worker kills the flow 30 s
# after it asked it to end, and what the flow found must be put back before.
INTERRUPT_GRACE_S = 20.0

# Whoever starts the group holds the other end of its stdin; when that process dies, however it dies, `read`
# returns and the group goes with it. The watcher also keeps the group's number from being given to others.
GUARD = 'exec 3<&0; (read _ <&3; kill -KILL 0) >/dev/null 2>&1 & exec "$@" </dev/null 3<&-'

_ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_PERCENT = re.compile(r"^(?P<label>.*?):?\s*(?P<percent>\d{1,3})%\|")  # tqdm with a total
_COUNTER = re.compile(r"\d+it \[\d")  # tqdm without one
_CHATTER = re.compile(
    r"Generating lock file|Updating lock file|Use `dvc push`|To track the changes|To enable auto staging"
    r"|Data and pipelines are up to date"
)
_DVC_ERROR = "ERROR: "


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a stage ended: it ran, DVC skipped it or restored its outputs from the run cache, or it failed."""

    how: Literal["ran", "skipped", "cached", "failed"]
    reason: str = ""  # of a failure, one line
    tail: tuple[str, ...] = ()  # the last lines of a failed stage


async def repro(
    stage: Stage,
    remote: bool,
    on_line: Callable[[str], None],
    on_progress: Callable[[str, int], None],
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Ended:
    """How `dvc repro --single-item` of `stage` ended, in the working folder.

    `on_line` gets each line of output as it comes, `on_progress` a progress bar's label and percentage. With
    a remote, what is missing here is pulled. `environment` is set beside this process's own. Cancelling stops
    the stage and all its processes.
    """
    missing = [path for path in stage.inputs if not os.path.exists(path)] if remote else []
    if missing:
        # Otherwise --allow-missing takes an absent input for unchanged, also where dvc.lock says it is new.
        pulled = await _dvc(["pull", *missing], on_line, on_progress, environment)
        if pulled.returncode:
            return _failure(pulled)
    how: Literal["ran", "skipped", "cached"] = "ran"

    def heed(line: str) -> None:
        nonlocal how
        if line.removeprefix("Stage ") == f"'{stage.name}' didn't change, skipping":
            how = "skipped"
        elif line == f"Stage '{stage.name}' is cached - skipping run, checking out outputs":
            how = "cached"
        on_line(line)

    flags = ["--pull", "--allow-missing"] if remote else []
    ended = await _dvc(["repro", "--single-item", *flags, stage.name], heed, on_progress, environment)
    return _failure(ended) if ended.returncode else Ended(how)


async def dvc(
    arguments: Sequence[str],
    on_line: Callable[[str], None],
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Ended:
    """How any DVC command ended, in the working folder, as `repro` says it of a stage. Cancelling stops it."""
    ended = await _dvc([*arguments], on_line, lambda label, percent: None, environment)
    return _failure(ended) if ended.returncode else Ended("ran")


@dataclasses.dataclass
class _Output:
    returncode: int
    tail: deque[str]


async def _dvc(
    arguments: list[str],
    on_line: Callable[[str], None],
    on_progress: Callable[[str, int], None],
    environment: Mapping[str, str],
) -> _Output:
    process = await asyncio.create_subprocess_exec(
        *("/bin/sh", "-c", GUARD, "sh"),
        *(sys.executable, "-m", "dvc", "--wait-for-lock", *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, **environment, "PATH": _path(), "PYTHONUNBUFFERED": "1"},
        start_new_session=True,
        preexec_fn=_heed_interrupts,
    )
    output = _Output(0, deque(maxlen=TAIL_LINES))
    try:
        async for line in _lines(process):
            if progress := _PERCENT.search(line):
                on_progress(progress["label"].strip(), min(int(progress["percent"]), 100))
            elif line.strip() and not _CHATTER.match(line) and not _COUNTER.search(line):
                on_line(line)
                output.tail.append(line)
        output.returncode = await _exited(process)
    finally:
        # A run that is torn down cancels more than once; the group must be gone first.
        ending = asyncio.ensure_future(_end_group(process))
        with anyio.CancelScope(shield=True):
            while not ending.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.shield(ending)
    return output


def _path() -> str:
    """PATH, in which `python` of dvc.yaml's commands is this one, whether or not its environment is active."""
    return os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)])


def _heed_interrupts() -> None:
    """What runs in the background, as workers do, may ignore SIGINT, and hands that down to its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


async def _lines(process: asyncio.subprocess.Process) -> AsyncIterator[str]:
    """The lines of a process's output; a carriage return, with which progress bars redraw, ends one too."""
    assert process.stdout is not None
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    pending = ""
    while True:
        try:
            chunk = await asyncio.wait_for(process.stdout.read(65536), timeout=0.5)
        except TimeoutError:
            if process.returncode is None:
                continue
            chunk = b""  # it has ended; something it left behind still holds the pipe
        pending += decoder.decode(chunk, final=not chunk)
        *whole, pending = re.split(r"[\r\n]", pending)
        for line in whole if chunk else [*whole, pending]:
            yield _ESCAPES.sub("", line).rstrip()
        if not chunk:
            return


async def _end_group(process: asyncio.subprocess.Process) -> None:
    """Nothing; afterwards no process of the group lives. A running stage is interrupted first, so that DVC
    can release its locks and training can write down where it is."""
    with contextlib.suppress(ProcessLookupError):
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGINT)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(_exited(process), INTERRUPT_GRACE_S)
        os.killpg(process.pid, signal.SIGKILL)
    await _exited(process)
    if process.stdin is not None:
        process.stdin.close()


async def _exited(process: asyncio.subprocess.Process) -> int:
    """The exit code, once there is one. `process.wait()` may also wait for pipes that a straggler holds."""
    while process.returncode is None:
        await asyncio.sleep(0.05)
    return process.returncode


def _failure(output: _Output) -> Ended:
    own = [line for line in output.tail if not line.startswith((_DVC_ERROR, "Running stage ", "> "))]
    said = [line.removeprefix(_DVC_ERROR) for line in output.tail if line.startswith(_DVC_ERROR)]
    verdict = said[-1] if said else f"dvc ended with exit code {output.returncode}"
    if killed_by := _killed_by(verdict):
        reason = f"its process was killed by signal {killed_by.value} ({killed_by.name})"
    elif own and "exited with" in verdict:
        reason = own[-1].strip()
    else:
        reason = verdict
    return Ended("failed", reason, tuple(output.tail))


def _killed_by(verdict: str) -> signal.Signals | None:
    code = re.search(r"exited with (-?\d+)$", verdict)
    # bash gives its place to the command, whose death DVC sees as -9; dash waits for it and reports 128 + 9.
    number = 0 if code is None else -int(code[1]) if int(code[1]) < 0 else int(code[1]) - 128
    return signal.Signals(number) if number in set(signal.Signals) else None
