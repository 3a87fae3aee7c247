"""The publication as a Prefect flow: data to the DVC remote, dvc.lock and figures to a branch and a tag of git.

Each step finds what an interrupted attempt has done already, and the tag is made last: a run with a tag is whole.
"""

import argparse
import asyncio
import sys
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar, cast

from prefect import flow, task
from prefect.artifacts import acreate_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.exceptions import TerminationSignal
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed

from blsp.errors import BlspError
from flows import publish_steps as steps
from flows.console import end_on_signals, readable
from flows.local_server import ensure_server
from flows.workspace import taken

T = TypeVar("T")


@flow(name="publish", persist_result=False)
async def publish(remote: str | None = None, push_to: str | None = None) -> State[Any]:
    """Completed where the run that dvc.lock holds is published afterwards, or was already; Failed, saying what is in
    the way and what to do, where it is not. `remote` is a DVC remote, `push_to` a git remote."""
    log = get_run_logger()

    async def step(name: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        as_named = _step.with_options(name=name, task_run_name=name)
        state = await cast(Awaitable[State[Any]], as_named(work, return_state=True))
        if not state.is_completed():
            raise BlspError(state.message or f"{name} ended as {state.name}")
        result: T = await state.aresult()
        return result

    try:
        with taken("publish", log.warning, runs_stages=False):  # what is published does not change meanwhile
            candidate = await step("check", lambda: steps.check(remote))
            log.info("%s", candidate.in_words())
            for note in candidate.notes:
                log.warning("%s", note)
            pushed = await step("push data", lambda: steps.push_data(candidate, log.info))
            log.info("%s", pushed)
            published = await step("commit", lambda: steps.commit(candidate))
            added = await step("tag", lambda: steps.share(published, push_to))
            recorded = await step("record", lambda: steps.record(candidate, published))
    except BlspError as error:
        log.error("%s", error)
        return Failed(message=str(error))
    said = [f"published as {published.tag}" if added else f"already published as {published.tag}: nothing changed"]
    said += [pushed, f"pushed to {push_to}" if push_to else "", recorded]
    summary = "; ".join(filter(None, said))
    log.info("%s", summary)
    message = f"{published.record['message']}\n"
    await acreate_markdown_artifact(f"{summary}\n\n```\n{message}```\n", key="publication", description=summary)
    if added and not push_to:
        log.info("`git push REMOTE runs/%s %s` shares it", published.name, published.tag)
    return Completed(message=summary)


@task(cache_policy=NO_CACHE, persist_result=False)
async def _step(work: Callable[[], Coroutine[Any, Any, T]]) -> State[Any]:
    """Completed with what `work` returns; Failed in one line where it raises BlspError."""
    try:
        return Completed(data=await work())
    except BlspError as error:
        return Failed(message=str(error))


async def _state_of(remote: str | None, push_to: str | None) -> State[Any]:
    return await publish(remote, push_to, return_state=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """0 where the run is published, now or already; 1 where it is not, 130 where it was interrupted."""
    parser = argparse.ArgumentParser(
        prog="blsp publish",
        description=(
            "Publish the run that dvc.lock holds: `dvc push` what its stages wrote, commit dvc.lock, metrics, plots "
            "and reports/published.json on the branch runs/NAME, and make the annotated tag run-NAME. The checkout, "
            "its branch and its index stay as they are."
        ),
        epilog=(
            "Refused where the pipeline is not up to date, where code or settings have changes that no commit has, and "
            "where there is no DVC remote that a clone would find (docs/reproducing.md). What was interrupted goes on "
            "when it is started again; published again, nothing changes."
        ),
    )
    parser.add_argument("--remote", metavar="NAME", help="DVC remote (default: the one in .dvc/config)")
    parser.add_argument("--push-to", metavar="NAME", help="git remote that gets branch and tag (default: none)")
    options = parser.parse_args(arguments)
    end_on_signals()
    try:
        readable(pages=not ensure_server())
        state = asyncio.run(_state_of(options.remote, options.push_to))
    except BlspError as error:
        print(error, file=sys.stderr)
        return 1
    except (KeyboardInterrupt, TerminationSignal):
        print("interrupted; `blsp publish` goes on", file=sys.stderr)
        return 130
    return 0 if state.is_completed() else 1


if __name__ == "__main__":
    sys.exit(main())
