"""Tasks on a Ray cluster that is there already: one worker a CPU, or a GPU, each with this machine's code of blsp.

A worker is an actor, which keeps its GPU and what it loaded onto it for life. Ray's plain tasks would start a process
anew for each GPU task, or else find, after a pause, another GPU in the environment of a process that uses the first.
"""

import contextlib
import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import blsp
from blsp.errors import BlspError

Task = TypeVar("Task")
Result = TypeVar("Result")

ATTEMPTS = 4
"""How many workers may die at one task, or one after the other before they begin, until the run stops."""
AHEAD = 4
"""Tasks drawn beyond the oldest that is unfinished, as a multiple of the cluster's workers."""

PATIENCE_S = 60
"""Seconds without a worker after which a warning says what is waited for."""

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def connected(address: str) -> Iterator[Any]:
    """The module `ray`, connected to the cluster at `address` while the block lasts: auto, host:port, ray://host:port.

    auto is what RAY_ADDRESS names, or the cluster that this machine is a node of.
    Raises BlspError where Ray is not installed, or no cluster answers.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        from ray._private import services
    except ImportError:
        raise BlspError("execution.executor is ray, but Ray is not installed: pip install 'blsp[cluster]'") from None
    chosen = os.environ.get("RAY_ADDRESS")
    if chosen and address == "auto":
        address = chosen
    elif chosen and address != chosen:
        raise BlspError(
            f"execution.ray_address is {address}, but Ray would go to {chosen}, which RAY_ADDRESS names; unset that"
        )
    try:
        if address == "auto":  # as ray.init itself finds it
            address = services.canonicalize_bootstrap_address_or_die("auto")
        host, _, port = address.removeprefix("ray://").rpartition(":")
        # Ray itself would try for minutes, also where a cluster that died left its address behind.
        socket.create_connection((host, int(port)), timeout=10).close()
        # The code that workers run is the driver's, changed files and all.
        context = ray.init(
            address,
            runtime_env={"py_modules": [str(Path(blsp.__file__).parent)]},
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise BlspError(
            f"execution.ray_address: no Ray cluster answers at {address} ({error}); start one with `ray start --head`, "
            "or name the address of another"
        ) from error
    with context:
        yield ray


@dataclass
class _Work:
    """A task on its way, with the number of workers that died at it."""

    number: int
    task: Any
    deaths: int = 0


class _Worker:
    """What runs on the cluster, once a CPU or GPU."""

    def __init__(self, folder: str) -> None:
        # Where it has the folder too, relative names mean the same there. Where not, a task finds out what it lacks.
        with contextlib.suppress(OSError):
            os.chdir(folder)

    def begin(self) -> None:
        """Nothing, when the worker has begun."""

    def run(self, function: Callable[[Task], Result], task: Task) -> Result:
        return function(task)


def run_on_cluster(
    ray: Any, function: Callable[[Task], Result], tasks: Iterable[Task], gpus: int = 0
) -> Iterator[Result]:
    """As `run_each` says. Workers that died, and those that nodes brought later, are replaced and used."""
    from ray.exceptions import RayError, RayTaskError

    gpus = gpus if ray.cluster_resources().get("GPU") else 0
    new_worker = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=0, max_task_retries=0)(_Worker).remote
    to_come = (_Work(number, task) for number, task in enumerate(tasks))
    again: deque[_Work] = deque()
    idle: list[Any] = []
    busy: dict[Any, tuple[Any, _Work | None]] = {}  # by what it will return: a worker, and its work once it has begun
    results: dict[int, Result] = {}
    wanted = drawn = deaths_at_start = 0
    all_drawn = False
    try:
        while not (all_drawn and wanted == drawn):
            room = _room(ray, gpus)
            if again or not all_drawn:
                # A worker for which there is no room yet begins later, and no task waits for it.
                for _ in range(room - len(idle) - len(busy)):
                    worker = new_worker(os.getcwd())
                    busy[worker.begin.remote()] = worker, None
            while idle and (again or (not all_drawn and drawn < wanted + AHEAD * room)):
                work = again.popleft() if again else next(to_come, None)
                if work is None:
                    all_drawn = True
                    break
                drawn = max(drawn, work.number + 1)
                worker = idle.pop()
                busy[worker.run.remote(function, work.task)] = worker, work
            if wanted in results:
                yield results.pop(wanted)
                wanted += 1
                continue
            if not busy:
                continue
            done, _ = ray.wait(list(busy), timeout=PATIENCE_S)
            if not done and not any(work for _, work in busy.values()):
                _log.warning("the cluster has had no free %s for %d s; waiting", "GPU" if gpus else "CPU", PATIENCE_S)
            for returned in done:
                worker, work = busy.pop(returned)
                idle.append(worker)
                try:
                    result = ray.get(returned)
                except RayTaskError as error:
                    if isinstance(error.cause, RayError):
                        raise BlspError(_why_refused(error.cause)) from error
                    raise error.cause from error
                except RayError as error:  # the worker died, perhaps with its machine
                    idle.pop()
                    if work is None:
                        deaths_at_start += 1
                    else:
                        work.deaths += 1
                        again.append(work)
                    if ATTEMPTS in (deaths_at_start, work.deaths if work else 0):
                        raise BlspError(_why_given_up(work, error)) from error
                    continue
                if work is None:
                    deaths_at_start = 0
                else:
                    results[work.number] = result
    finally:
        # What is raised here may be kept, and the workers with it, and their CPUs.
        for worker in [*idle, *(worker for worker, _ in busy.values())]:
            ray.kill(worker)


def _room(ray: Any, gpus: int) -> int:
    """How many workers the cluster's nodes have room for now, those at work included; at least one."""
    has = ray.cluster_resources()
    return max(1, int(has.get("GPU", 0) / gpus if gpus else has.get("CPU", 0)))


def _why_refused(error: Exception) -> str:
    return (
        f"a worker of the cluster cannot begin its task: {_first_line(error)}; each node must have what blsp needs: "
        "pip install 'blsp[cluster]' there, at the versions of constraints.txt"
    )


def _why_given_up(work: _Work | None, error: Exception) -> str:
    if work is None:
        return f"{ATTEMPTS} workers of the cluster died before they began: {_first_line(error)}"
    return (
        f"{ATTEMPTS} workers of the cluster died at the same task, most likely for want of memory; give them more, or "
        f"make corpus.shard_size smaller, and run it again: what is finished is kept ({_first_line(error)})"
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
