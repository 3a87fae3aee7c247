"""The pipeline as a Prefect flow: DVC's graph, one task a stage.

DVC says what the stages are, which of them are stale, and caches what they write. Prefect starts them in
order, independent ones together, tries again as `meta:` in dvc.yaml says, and shows how they get on. In a
shell, `dvc repro` runs the same commands and leaves the same dvc.lock.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.events import emit_event
from prefect.exceptions import TerminationSignal
from prefect.logging import get_run_logger
from prefect.runtime import deployment, flow_run, task_run
from prefect.states import Cancelled, Completed, Failed

from blsp.backbones import check_sources
from blsp.errors import BlspError
from blsp.params import PARAMS_FILE, load_params, read_params, with_overrides
from blsp.tracking.pages import run_page_in
from flows.artifacts import Progress, publish_metrics, publish_pages
from flows.console import end_on_signals, outlive_reader, readable
from flows.dvc_graph import Stage, load_graph
from flows.git import committed
from flows.local_server import ensure_server
from flows.run_params import in_place
from flows.stage_process import repro
from flows.workspace import WorkspaceBusy, taken

COMPLETED_EVENT = "blsp.pipeline.completed"
BAR_EVERY_S = 10.0  # s between two lines of a progress bar in the log


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How one stage of a run ended: its Prefect state and the time it took."""

    stage: str
    state: State[Any]
    took_s: float

    @property
    def unmoved(self) -> bool:
        """Whether DVC left the stage as it was."""
        return self.state.name == "Skipped"


@flow(name="pipeline", persist_result=False)
async def pipeline(
    targets: list[str] | None = None, profile: str | None = None, overrides: list[str] | None = None
) -> State[Any]:
    """Completed where every stage up to `targets` (by default all) ran or needed no run; otherwise Failed,
    naming the stage and why. Stages that do not depend on a failed one are still run to their end.

    `profile` (profiles/*.yaml) and `overrides` (`train.lr=1e-4`) are values of params.yaml for this run. They stay
    there where it completes; where it does not, params.yaml and dvc.lock are as they were before. Failed with the
    name WorkspaceBusy where another run has the workspace.
    """
    outlive_reader()
    log = get_run_logger()
    by = f"pipeline run '{flow_run.name}'"
    try:
        with (
            taken(by, log.warning, deployed=deployment.id is not None) as own,
            _params(own, profile, overrides or (), by) as keep,
        ):
            state = await _run_stages(targets or ())
            if state.is_completed():
                keep()
                _tell_completed()
            return state
    except WorkspaceBusy as error:
        log.error("%s", error)
        return Failed(name="WorkspaceBusy", message=str(error))
    except BlspError as error:
        log.error("%s", error)
        return Failed(message=str(error))


def _params(
    own: bool, profile: str | None, overrides: Sequence[str], by: str
) -> contextlib.AbstractContextManager[Callable[[], None]]:
    """The run's params.yaml in place: in a folder of runs' `own` the commit's, elsewhere the one that is there, with
    the run's values in it. Without any it is the user's, who may change it while the run goes on."""
    if not own and profile is None and not overrides:
        return contextlib.nullcontext(lambda: None)
    text = committed(PARAMS_FILE) if own else read_params()
    return in_place(with_overrides(text, profile, overrides), by, get_run_logger().warning)


def _tell_completed() -> None:
    """Nothing; the automation that promotes hears of it. Prefect's own event of the state would reach it up to 15 min
    late where a schedule began the run: it waits for that of the run's first state, which the scheduler never sends."""
    emit_event(COMPLETED_EVENT, {"prefect.resource.id": f"{COMPLETED_EVENT}.{flow_run.id}"})


async def _run_stages(targets: Sequence[str]) -> State[Any]:
    """The state of the whole, as `pipeline` returns it.

    Raises BlspError where DVC cannot read the pipeline, or a local checkpoint has changed behind its back.
    """
    log = get_run_logger()
    check_sources()
    graph = await load_graph(targets)
    if any(stage.name == "corpus" and not stage.unchanged for stage in graph.stages):
        await asyncio.to_thread(_check)
    running: dict[str, asyncio.Task[Outcome]] = {}
    async with asyncio.TaskGroup() as group:
        for stage in graph.stages:  # upstream first
            upstream = [running[name] for name in stage.upstream]
            running[stage.name] = group.create_task(_in_turn(stage, graph.remote, upstream))
    outcomes = [running[stage.name].result() for stage in graph.stages]
    log.info("stages:\n%s", _table(outcomes))
    failed = [f"stage '{end.stage}' failed: {_why(end.state)}" for end in outcomes if end.state.is_failed()]
    if failed:
        log.error("%s", "; ".join(failed))
        return Failed(message="; ".join(failed))
    return Completed(message=_tally(outcomes))


def _check() -> None:
    """Log what is to be known before anything is computed. Raises BlspError where the run would fail."""
    from blsp.check import check

    log = get_run_logger()
    found = check(load_params())
    for line in found.facts:
        log.info("%s", line)
    for line in found.warnings:
        log.warning("%s", line)
    found.refuse_errors()


async def _in_turn(stage: Stage, remote: bool, upstream: Sequence[asyncio.Task[Outcome]]) -> Outcome:
    """The outcome of one stage, started when everything upstream has ended."""
    before = [await other for other in upstream]
    blocked_by = next((end.stage for end in before if not end.state.is_completed()), None)
    stale = not stage.unchanged or not all(end.unmoved for end in before)
    as_meta_says = run_stage.with_options(
        name=stage.name,
        task_run_name=stage.name,
        retries=stage.retries,
        retry_delay_seconds=stage.retry_delay_s,
        timeout_seconds=stage.timeout_s,
        tags=stage.tags,
    )
    started_s = time.monotonic()
    state = await cast(Awaitable[State[Any]], as_meta_says(stage, remote, stale, blocked_by, return_state=True))
    return Outcome(stage.name, state, time.monotonic() - started_s)


@task(cache_policy=NO_CACHE, persist_result=False)
async def run_stage(stage: Stage, remote: bool, stale: bool, blocked_by: str | None) -> State[Any]:
    """The state in which one stage ends: Completed, Skipped (nothing changed), Cached (outputs restored from
    DVC's run cache), NotRun (something upstream did not complete) or Failed with its last lines."""
    log = get_run_logger()
    if blocked_by is not None:
        log.warning("not run, because '%s' did not complete", blocked_by)
        return Cancelled(name="NotRun", message=f"stage '{blocked_by}' did not complete")
    if not stale:
        # DVC has been asked about all stages at once; with nothing upstream moved, its answer stands.
        log.info("nothing changed, skipped")
        return Completed(name="Skipped", message="nothing changed")

    progress = Progress(stage.name)
    last_bar_s = -BAR_EVERY_S

    def show_bar(label: str, percent: int) -> None:
        nonlocal last_bar_s
        progress.see(label, percent)
        if time.monotonic() - last_bar_s >= BAR_EVERY_S:
            last_bar_s = time.monotonic()
            log.info("%s%d %%", f"{label} " if label else "", percent)

    def show_line(line: str) -> None:
        if page := run_page_in(line):
            progress.see_run(page)
        log.info(line)

    started_s = time.monotonic()
    publisher = asyncio.create_task(progress.publish())
    try:
        ended = await repro(stage, remote, show_line, show_bar)
        progress.end()
        await publisher
    finally:
        publisher.cancel()
    took = f"{time.monotonic() - started_s:.0f} s"
    if ended.how == "failed":
        log.error("failed after %s: %s", took, ended.reason)
        attempt = task_run.run_count
        if attempt <= stage.retries:
            log.warning("trying again in %g s (%d of %d)", stage.retry_delay_s, attempt, stage.retries)
        return Failed(message="\n".join([ended.reason, "last lines:", *ended.tail]))
    if ended.how == "skipped":
        return Completed(name="Skipped", message="nothing changed")
    await publish_metrics(stage.name, stage.metrics)
    await publish_pages(stage.name, stage.stored)
    if ended.how == "cached":
        return Completed(name="Cached", message="outputs restored from DVC's run cache")
    log.info("done in %s", took)
    return Completed(message=f"ran for {took}")


async def _state_of(targets: list[str], profile: str | None, overrides: list[str]) -> State[Any]:
    return await pipeline(targets or None, profile, overrides or None, return_state=True)


def _why(state: State[Any]) -> str:
    return (state.message or state.name or "no reason given").partition("\n")[0]


def _table(outcomes: Sequence[Outcome]) -> str:
    width = max((len(end.stage) for end in outcomes), default=5)
    rows = [f"  {end.stage:<{width}}  {end.state.name:<9}  {end.took_s:7.1f} s" for end in outcomes]
    return "\n".join(rows)


def _tally(outcomes: Sequence[Outcome]) -> str:
    skipped = sum(end.unmoved for end in outcomes)
    return f"{len(outcomes) - skipped} of {len(outcomes)} stages ran, {skipped} skipped"


def main(arguments: Sequence[str] | None = None) -> int:
    """0 where the pipeline completed, 1 where it failed, 130 where it was interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.pipeline",
        description="Run the stages of dvc.yaml that are stale, in order, independent ones together.",
        epilog=(
            "DVC decides what is stale: a stage runs again when its code, its inputs or its values in "
            "params.yaml have changed, and is Skipped otherwise; `dvc status dvc.yaml` says which and why, and "
            "`dvc repro` does the same without Prefect. Without a Prefect server a temporary one is started "
            "(10 to 30 s); to see runs, logs and metrics in a browser, run `prefect server start` and set "
            "PREFECT_API_URL=http://127.0.0.1:4200/api. Interrupting is safe: the next run goes on from the "
            "last stage that ended. Values given with --profile and --set are written into params.yaml; they stay "
            "there when the run completes, and are taken out again when it does not. One run at a time works in "
            "a workspace: a second one ends at once and says which run has it."
        ),
    )
    parser.add_argument("stage", nargs="*", help="run only up to this stage (default: all of dvc.yaml)")
    parser.add_argument("--profile", metavar="NAME", help="values of profiles/NAME.yaml for this run")
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        dest="overrides",
        help="one value for this run, such as train.lr=1e-4; may be given several times",
    )
    options = parser.parse_args(arguments)
    end_on_signals()
    try:
        temporary = ensure_server()
        readable(pages=not temporary)
        state = asyncio.run(_state_of(options.stage, options.profile, options.overrides))
    except BlspError as error:
        print(error, file=sys.stderr)
        return 1
    except (KeyboardInterrupt, TerminationSignal):
        print("interrupted; the next run goes on from the last stage that ended", file=sys.stderr)
        return 130
    return 0 if state.is_completed() else 1


if __name__ == "__main__":
    sys.exit(main())
