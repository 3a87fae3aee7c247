"""Servers as processes: each in a group of its own, with a record on disk by which later commands find it."""

import contextlib
import dataclasses
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

from blsp.errors import BlspError
from blsp.files import read_json, write_json

STOP_LIMIT_S = 90.0  # s a server gets to end by itself; Prefect's worker ends its runs first


@dataclasses.dataclass(frozen=True)
class Server:
    """What to start, and how to know that it serves."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]  # beside this process's own
    port: int
    health: str | tuple[str, ...]  # an address that answers when the server serves, or a command that then ends with 0
    statuses: tuple[int, ...] = (200,)  # of a healthy answer
    user: str | None = None  # to run as, where this process is root's
    stop_signal: signal.Signals = signal.SIGTERM


def start(server: Server, state: Path) -> None:
    """Nothing; the server has been started, its output goes to `state`/logs, and its record is in `state`/run."""
    log = state / "logs" / f"{server.name}.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            server.command,
            cwd=state,
            env={**os.environ, **server.environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            user=server.user,
            group=server.user,
            extra_groups=None if server.user is None else [],
        )
    created = psutil.Process(process.pid).create_time()
    write_json(_record(server.name, state), {"pid": process.pid, "created": created})


def pid_of(name: str, state: Path) -> int | None:
    """The number of the server's first process, or None where that does not run."""
    with contextlib.suppress(FileNotFoundError, psutil.NoSuchProcess):
        record = read_json(_record(name, state))
        process = psutil.Process(record["pid"])
        if process.create_time() == record["created"] and process.status() != psutil.STATUS_ZOMBIE:
            return process.pid
    return None


def stop(server: Server, state: Path) -> None:
    """Nothing; no process that the server started lives, and its record is gone."""
    record = _record(server.name, state)
    if not record.exists():
        return
    family = _family(server.name, state)
    if (pid := pid_of(server.name, state)) is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, server.stop_signal)
        _wait(family[:1], STOP_LIMIT_S)
    left = [process for process in {*family, *_family(server.name, state)} if _lives(process)]
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    _wait(left, 10)
    record.unlink()


def _record(name: str, state: Path) -> Path:
    return state / "run" / f"{name}.json"


def _family(name: str, state: Path) -> list[psutil.Process]:
    """The server's first process, then those below it and in its group, also where the first is gone."""
    number = read_json(_record(name, state))["pid"]
    first = pid_of(name, state)
    if first is None and psutil.pid_exists(number) and psutil.Process(number).status() != psutil.STATUS_ZOMBIE:
        return []  # the number is another's by now, and Linux gives none that a group still has
    found = [] if first is None else [psutil.Process(first), *psutil.Process(first).children(recursive=True)]
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getpgid(process.pid) == number and process not in found:
                found.append(process)
    return found


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _wait(processes: list[psutil.Process], limit_s: float) -> None:
    deadline_s = time.monotonic() + limit_s
    while any(map(_lives, processes)) and time.monotonic() < deadline_s:
        time.sleep(0.1)


def wait_until_healthy(server: Server, state: Path, limit_s: float) -> None:
    """Nothing; the server serves. Raises BlspError with its last words where it ended, or does not in time."""
    deadline_s = time.monotonic() + limit_s
    while not healthy(server):
        log = state / "logs" / f"{server.name}.log"
        if pid_of(server.name, state) is None:
            said = log.read_text(encoding="utf-8", errors="replace").splitlines()[-10:]
            raise BlspError("\n".join([f"{server.name} ended as it started; {log} ends with:", *said]))
        if time.monotonic() > deadline_s:
            raise BlspError(f"{server.name} does not serve after {limit_s:.0f} s; see {log}")
        time.sleep(0.2)


def healthy(server: Server) -> bool:
    """Whether the server serves."""
    import httpx

    if not isinstance(server.health, str):
        return subprocess.run(server.health, stdout=subprocess.DEVNULL).returncode == 0
    try:
        # Straight to it: a proxy that the environment names would be asked for this machine's own ports.
        with httpx.Client(trust_env=False, timeout=5) as client:
            return client.get(server.health).status_code in server.statuses
    except httpx.TransportError:
        return False


def port_taken(port: int) -> bool:
    """Whether something listens on this port of 127.0.0.1."""
    import socket

    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=2):
        return True
    return False
