"""`make paper` and `make ablations`: a further DVC pipeline under experiments/, several of its stages at once.

What is stale of the pipeline before it comes first, one stage after the other. Each stage is a `dvc repro
--single-item`, as in the scheduled flow. Two of them in one workspace are sound: DVC holds its repository lock but
while a stage's command runs, so that dvc.lock is read and written by one at a time, and its read and write locks
refuse a stage what another is writing.
"""

import argparse
import asyncio
import itertools
import os
import signal
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from blsp.errors import BlspError
from blsp.params import PARAMS_FILE, load_params
from flows.dvc_graph import Graph, Stage, load_graph
from flows.stage_process import repro
from flows.workspace import taken

BAR_EVERY_S = 60.0  # s between two lines of one progress bar


def stale(graph: Graph) -> list[Stage]:
    """The stages of the graph that `dvc repro` would run: those that changed, and all that come after them."""
    found: dict[str, Stage] = {}
    for stage in graph.stages:  # upstream first
        if not stage.unchanged or any(name in found for name in stage.upstream):
            found[stage.name] = stage
    return list(found.values())


def shares(at_once: int) -> list[dict[str, str]]:
    """The environment of each of so many stages that run at once: its share of the threads, and of several GPUs.

    What OMP_NUM_THREADS says is left as it is; of the GPUs, those in CUDA_VISIBLE_DEVICES are shared out.
    """
    if at_once == 1:
        return [{}]
    import torch  # takes seconds

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]
    environments: list[dict[str, str]] = [{} for _ in range(at_once)]
    for number, environment in enumerate(environments):
        if "OMP_NUM_THREADS" not in os.environ:
            environment["OMP_NUM_THREADS"] = str(max(1, torch.get_num_threads() // at_once))
        if len(gpus) > 1:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[number::at_once] or [gpus[number % len(gpus)]])
    return environments


async def run(experiment: str) -> int:
    """0 where every stage of experiments/`experiment` and before it is up to date afterwards, else 1.

    A stage that fails stops only those that need what it writes. Cancelling stops all that run.
    """
    own = Path(f"experiments/{experiment}") / PARAMS_FILE
    at_once = load_params(own if own.is_file() else Path(PARAMS_FILE)).execution.experiments_at_once
    graph = await load_graph([f"experiments/{experiment}/dvc.yaml"])
    stages = stale(graph)
    print(f"{experiment}: {len(stages)} of {len(graph.stages)} stages are stale, {at_once} run at once", flush=True)
    if stages:
        work = _Work(len(stages), graph.remote)
        await work.run((stage for stage in stages if not _of_experiments(stage)), [{}])
        await work.run(filter(_of_experiments, stages), shares(at_once))
        if work.failed:
            failed = f"{len(work.failed)} of {len(stages)} stages failed"
            print(f"\n{experiment}: {failed}, `make {experiment}` runs what is left")
            for name, reason in work.failed.items():
                print(f"  {name}: {reason}")
            for name in work.blocked:
                print(f"  not run, as it needs what failed: {name}")
            return 1
    print(f"{experiment}: all {len(graph.stages)} stages are up to date")
    return 0


class _Work:
    """The stages of one run: how many there are, which began, and how they ended."""

    def __init__(self, total: int, remote: bool) -> None:
        self.total, self.remote = total, remote
        self.failed: dict[str, str] = {}
        self.blocked: list[str] = []
        self._numbers = itertools.count(1)
        self._running: dict[str, asyncio.Task[bool]] = {}

    async def run(self, stages: Iterable[Stage], environments: Sequence[Mapping[str, str]]) -> None:
        """Nothing; the stages (upstream first) have ended, as many at once as there are environments."""
        free: asyncio.Queue[Mapping[str, str]] = asyncio.Queue()
        for environment in environments:
            free.put_nowait(environment)
        async with asyncio.TaskGroup() as group:
            for stage in stages:
                upstream = [self._running[name] for name in stage.upstream if name in self._running]
                self._running[stage.name] = group.create_task(self._in_turn(stage, upstream, free))

    async def _in_turn(
        self, stage: Stage, upstream: Sequence[asyncio.Task[bool]], free: asyncio.Queue[Mapping[str, str]]
    ) -> bool:
        """Whether the stage is up to date, once everything upstream has ended."""
        if not all([await other for other in upstream]):
            self.blocked.append(_short(stage))
            return False
        environment = await free.get()
        try:
            return await self._stage(stage, environment)
        finally:
            free.put_nowait(environment)

    async def _stage(self, stage: Stage, environment: Mapping[str, str]) -> bool:
        name = _short(stage)
        title = f"[{next(self._numbers)} of {self.total}] {name}"
        began_s = shown_s = time.monotonic()

        def say(line: str) -> None:
            if not line.startswith(("Running stage ", "> ", "ERROR: failed to reproduce")):
                print(f"{name} | {line}", flush=True)

        def show_bar(label: str, percent: int) -> None:
            nonlocal shown_s
            if time.monotonic() - shown_s >= BAR_EVERY_S:
                shown_s = time.monotonic()
                say(f"{label} {percent} %".strip())

        print(title, flush=True)
        ended = await repro(stage, self.remote, say, show_bar, environment)
        took = f"{time.monotonic() - began_s:.0f} s"
        if ended.how == "failed":
            self.failed[name] = ended.reason
        how = {"ran": "done in", "skipped": "nothing changed,", "cached": "done in", "failed": "failed after"}
        print(f"{title}: {how[ended.how]} {took}", flush=True)
        return ended.how != "failed"


def _of_experiments(stage: Stage) -> bool:
    return stage.name.startswith("experiments/")


def _short(stage: Stage) -> str:
    return stage.name.rpartition(":")[2]


async def _stoppable(experiment: str) -> int:
    """What `run` returns; SIGTERM cancels it, as SIGINT does."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await run(experiment)


def main(arguments: Sequence[str] | None = None) -> int:
    """0 where all stages are up to date afterwards, 1 where some failed, 130 where it was interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.experiments",
        description=(
            "Run what is stale of an experiment, and of the pipeline before it, with `dvc repro`: as many stages at "
            "once as execution.experiments_at_once says, in its own params.yaml where it has one. One that fails "
            "stops only those that need it."
        ),
        epilog="Interrupting is safe: the next run goes on with what is left, a training from where it was.",
    )
    parser.add_argument("experiment", choices=("paper", "ablations", "laptop"), help="folder under experiments/")
    options = parser.parse_args(arguments)
    try:
        with taken(f"make {options.experiment}", print):
            return asyncio.run(_stoppable(options.experiment))
    except BlspError as error:
        print(error, file=sys.stderr)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        print(f"interrupted; `make {options.experiment}` goes on with what is left", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
