"""The deployments of the commit that is here, and all they need, on a Prefect server.

`prefect deploy` reads infra/prefect.yaml. What has no place there comes from here: the work pool, which is one
workspace, the limit on stages that need a GPU, and the automations that mark vanished runs as crashed.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from blsp.errors import BlspError
from flows.checkout import CODE, refuse_changes
from flows.git import TRANSFER_LIMIT_S, git

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.responses import DeploymentResponse
    from prefect.events import AutomationCore

Kind = Literal["process", "kubernetes"]

PREFECT_FILE = "infra/prefect.yaml"
POOLS: dict[Kind, str] = {"process": "blsp", "kubernetes": "blsp-kubernetes"}
GPU_TAG = "gpu"  # of stages, under `meta` in dvc.yaml
FLOWS = ["pipeline", "promote", "publish", "roll-back"]

# The names of the states in which runs of these flows end.
ENDS = ("Completed", "Failed", "WorkspaceBusy", "Cancelled", "Crashed", "TimedOut")
SILENT_AFTER_S = 200.0  # s without a heartbeat, of which infra/prefect.yaml asks for one every 60 s
UNBORN_AFTER_S = 3600.0  # s from a worker's taking a run to its first step: code and image are fetched meanwhile


def deploy(kind: Kind, repository: str, gpus: int) -> list["DeploymentResponse"]:
    """The deployments as the server then has them, all of this commit, from which workers clone `repository`.

    Raises BlspError where there is no server, the commit is not whole or not at `repository`, or Prefect refuses.
    """
    from prefect.settings import get_current_settings

    if not get_current_settings().api.url:
        raise BlspError("PREFECT_API_URL is not set: deployments live on a server; start one (`prefect server start`)")
    commit = git("rev-parse", "HEAD", folder=CODE)
    refuse_changes(CODE, "deployments are of a commit")
    _refuse_missing(commit, repository)
    return asyncio.run(_deploy(kind, repository, gpus, commit))


async def _deploy(kind: Kind, repository: str, gpus: int, commit: str) -> list["DeploymentResponse"]:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterTags

    async with get_client() as client:
        await make_pool(client, kind)
        await client.create_concurrency_limit(GPU_TAG, gpus)
        for automation in (silent(SILENT_AFTER_S), unborn(UNBORN_AFTER_S)):
            await make_automation(client, automation)
        # Prefect loads the flows, and finds `git`, in this repository's root.
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", PREFECT_FILE],
            cwd=CODE,
            env={**os.environ, "BLSP_REPOSITORY": repository, "BLSP_WORK_POOL": POOLS[kind]},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise BlspError(f"`prefect deploy` failed:\n{done.stdout}{done.stderr}")
        ours = DeploymentFilter(tags=DeploymentFilterTags(all_=["blsp"]))
        found = await client.read_deployments(deployment_filter=ours)
    old = [deployment.name for deployment in found if deployment.version != commit]
    if old:
        raise BlspError(f"on the server, but not in {PREFECT_FILE}: {', '.join(old)}; `prefect deployment delete` them")
    return found


def silent(within_s: float) -> "AutomationCore":
    """The automation that marks a run as crashed that was alive and has not been heard of for `within_s`."""
    name = "blsp: a run that went silent has crashed"
    return _crashing(name, {"heartbeat"}, {"heartbeat", *ENDS}, within_s, "no heartbeat: its machine or process died")


def unborn(within_s: float) -> "AutomationCore":
    """The automation that marks a run as crashed that a worker took and that did not begin within `within_s`."""
    name = "blsp: a run that never began has crashed"
    return _crashing(name, {"Pending"}, {"Running", "heartbeat", *ENDS}, within_s, "its worker died before it began")


def _crashing(name: str, after: set[str], expect: set[str], within_s: float, why: str) -> "AutomationCore":
    from prefect.client.schemas.objects import StateType
    from prefect.events import AutomationCore, EventTrigger, Posture, ResourceSpecification
    from prefect.events.actions import ChangeFlowRunState

    return AutomationCore(
        name=name,
        trigger=EventTrigger(
            posture=Posture.Proactive,
            match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
            match_related=ResourceSpecification({"prefect.resource.role": "flow", "prefect.resource.name": FLOWS}),
            for_each={"prefect.resource.id"},
            after={f"prefect.flow-run.{event}" for event in after},
            expect={f"prefect.flow-run.{event}" for event in expect},
            threshold=1,
            within=timedelta(seconds=within_s),
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, name="Crashed", message=f"vanished: {why}", force=False)],
    )


async def make_automation(client: "PrefectClient", automation: "AutomationCore") -> None:
    """Nothing; the server has this automation once under its name."""
    there = await client.read_automations_by_name(automation.name)
    if there:
        await client.update_automation(there[0].id, automation)
    else:
        await client.create_automation(automation)


async def make_pool(client: "PrefectClient", kind: Kind) -> None:
    """Nothing; the server has the pool, with one run at a time, for it is one workspace."""
    from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
    from prefect.exceptions import ObjectNotFound

    template = _template(kind)
    try:
        await client.read_work_pool(POOLS[kind])
    except ObjectNotFound:
        pool = WorkPoolCreate(name=POOLS[kind], type=kind, base_job_template=template, concurrency_limit=1)
        await client.create_work_pool(pool)
    else:
        update = WorkPoolUpdate(base_job_template=template, concurrency_limit=1)
        await client.update_work_pool(POOLS[kind], update)


def _template(kind: Kind) -> dict[str, Any]:
    if kind == "process":
        from prefect.workers.process import ProcessWorker

        return ProcessWorker.get_default_base_job_template()
    from ruamel.yaml import YAML

    text = (CODE / "infra/work-pools/kubernetes.yaml").read_text(encoding="utf-8")
    template: dict[str, Any] = YAML(typ="safe", pure=True).load(text)
    return template


def _refuse_missing(commit: str, repository: str) -> None:
    """Nothing, where a worker could fetch the commit from `repository`. Raises BlspError where it could not."""
    if urlsplit(repository).password:
        raise BlspError(
            "the repository's address has a password in it, which Prefect's pages would show; git can keep it"
        )
    with tempfile.TemporaryDirectory() as scratch:
        git("init", "--quiet", "--bare", folder=Path(scratch))
        try:
            fetch = ("fetch", "--quiet", "--depth=1", "--filter=tree:0", repository, commit)
            git(*fetch, folder=Path(scratch), limit_s=TRANSFER_LIMIT_S)
        except BlspError as error:
            raise BlspError(
                f"commit {commit[:12]} is not to be had from {repository}: push it first ({error})"
            ) from error


def main(arguments: Sequence[str] | None = None) -> int:
    """0 where all deployments are on the server, 1 where not."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.deploy",
        description=(
            "Put the deployments of infra/prefect.yaml on the Prefect server at PREFECT_API_URL: pipeline, data, "
            "generation, training, evaluation and promote, each of the commit that is checked out here, which must be "
            "pushed. Also made: the work pool, which runs one at a time; the limit on stages tagged `gpu`; automations "
            "that mark vanished runs as crashed. Run it again after every change: what is there is brought up to date."
        ),
        epilog=(
            "Then start a worker where the stages are to run, in this project's environment: "
            "`BLSP_WORKSPACE=/srv/blsp prefect worker start --pool blsp`. A run by hand: "
            "`prefect deployment run pipeline/pipeline --param profile=miniature "
            "--param 'overrides=[\"train.lr=1e-4\"]'`. docs/operating.md has the rest."
        ),
    )
    parser.add_argument(
        "--pool",
        choices=tuple(POOLS),
        default="process",
        help="run as processes of a worker (pool `blsp`) or as Kubernetes Jobs (`blsp-kubernetes`); default: process",
    )
    parser.add_argument("--repository", help="where workers clone this code from (default: git's remote `origin`)")
    parser.add_argument("--gpus", type=int, default=1, help="stages tagged `gpu` that may run at once (default: 1)")
    options = parser.parse_args(arguments)
    from prefect.client.schemas.schedules import CronSchedule  # takes seconds

    try:
        repository = options.repository or git("remote", "get-url", "origin", folder=CODE)
        found = deploy(options.pool, repository, options.gpus)
    except BlspError as error:
        print(error, file=sys.stderr)
        return 1
    for deployment in sorted(found, key=lambda deployment: deployment.name):
        plans = [one.schedule for one in deployment.schedules if one.active]
        crons = [f"{plan.cron} {plan.timezone}" for plan in plans if isinstance(plan, CronSchedule)]
        print(f"{deployment.name:<12} {deployment.version}  {', '.join(crons) or 'on demand'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
