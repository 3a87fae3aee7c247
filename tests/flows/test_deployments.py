"""The deployments on a real Prefect server, and their runs by a real worker, of the toy in a repository of its own."""

import asyncio
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateName,
)
from prefect.client.schemas.objects import State, WorkPool
from prefect.client.schemas.schedules import CronSchedule
from prefect.events import Event, ReceivedEvent, emit_event
from prefect.events.clients import get_events_client
from prefect.events.filters import EventFilter, EventNameFilter, EventResourceFilter
from prefect.flow_runs import wait_for_flow_run
from prefect.states import Cancelling, Completed, Pending, Running

from flows.deploy import GPU_TAG, UNBORN_AFTER_S, make_automation, make_pool, silent, unborn
from flows.pipeline import COMPLETED_EVENT, pipeline
from flows.workspace import held
from tests.flows import toy

pytestmark = pytest.mark.usefixtures("prefect_server")

HEARTBEAT = "prefect.flow-run.heartbeat"
FLOWS = {"pipeline": ["pipeline", "data", "generation", "training", "evaluation"], "promote": ["promote"]}


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy, with an origin that has its commit."""
    folder = tmp_path_factory.mktemp("toy") / "code"
    toy.make(folder)
    toy.git(folder, "clone", "--quiet", "--bare", ".", "../origin.git")
    toy.git(folder, "remote", "add", "origin", str(folder.parent / "origin.git"))
    return folder


@pytest.fixture(scope="module")
def deployed(prefect_server: None, code: Path) -> dict[str, UUID]:
    """The deployments, put on the server by the command."""
    command = [sys.executable, "-m", "flows.deploy", "--gpus", "2"]
    done = subprocess.run(command, cwd=code, env=toy.environment(code), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    commit = toy.git(code, "rev-parse", "HEAD")
    assert f"pipeline     {commit}  0 2 * * * UTC" in done.stdout
    assert f"promote      {commit}  on demand" in done.stdout
    with get_client(sync_client=True) as client:
        return {
            name: client.read_deployment_by_name(f"{flow}/{name}").id for flow, names in FLOWS.items() for name in names
        }


def test_each_is_of_the_commit_alone_in_its_turn_and_on_schedule(code: Path, deployed: dict[str, UUID]) -> None:
    commit = toy.git(code, "rev-parse", "HEAD")
    with get_client(sync_client=True) as client:
        found = {name: client.read_deployment(identity) for name, identity in deployed.items()}
    for deployment in found.values():
        assert deployment.version == commit
        clone = {"repository": str(code.parent / "origin.git"), "commit_sha": commit}
        assert deployment.pull_steps == [{"prefect.deployments.steps.git_clone": clone}]
        assert deployment.global_concurrency_limit and deployment.global_concurrency_limit.limit == 1
        assert deployment.work_pool_name == "blsp"
        assert deployment.job_variables["env"] == {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "60"}
    (nightly,) = found["pipeline"].schedules
    assert nightly.active and isinstance(nightly.schedule, CronSchedule) and nightly.schedule.cron == "0 2 * * *"
    assert found["training"].parameters == {"targets": ["train"]} and found["training"].schedules == []


def test_the_pool_runs_one_at_a_time_and_gpu_stages_have_a_limit(deployed: dict[str, UUID]) -> None:
    async def read() -> tuple[int | None, int]:
        async with get_client() as client:
            pool = await client.read_work_pool("blsp")
            return pool.concurrency_limit, (await client.read_global_concurrency_limit_by_name("tag:gpu")).limit

    assert asyncio.run(read()) == (1, 2)


def test_pool_of_kubernetes_jobs_is_accepted_and_made_again(deployed: dict[str, UUID]) -> None:
    async def make() -> WorkPool:
        async with get_client() as client:
            await make_pool(client, "kubernetes")
            await make_pool(client, "kubernetes")
            return await client.read_work_pool("blsp-kubernetes")

    pool = asyncio.run(make())
    assert (pool.type, pool.concurrency_limit) == ("kubernetes", 1)
    assert pool.base_job_template["variables"]["properties"]["env"]["default"]["BLSP_WORKSPACE"] == "/workspace/blsp"


def test_promotion_follows_a_completed_pipeline_and_nothing_else(deployed: dict[str, UUID]) -> None:
    of_promote = DeploymentFilter(id=DeploymentFilterId(any_=[deployed["promote"]]))

    async def tell() -> None:
        """As runs of both do, in a process of their own, when they have completed."""
        async with get_events_client() as events:
            for name, identity in (("evaluation", deployed["evaluation"]), ("pipeline", deployed["pipeline"])):
                deployment = {"prefect.resource.id": f"prefect.deployment.{identity}", "prefect.resource.name": name}
                told = {
                    "event": COMPLETED_EVENT,
                    "resource": {"prefect.resource.id": f"{COMPLETED_EVENT}.{name}"},
                    "related": [{**deployment, "prefect.resource.role": "deployment"}],
                }
                await events.emit(Event.model_validate(told))

    asyncio.run(tell())
    with get_client(sync_client=True) as client:
        toy.wait_until(lambda: client.read_flow_runs(deployment_filter=of_promote))
        time.sleep(2)  # in which a second one would come
        (promotion,) = client.read_flow_runs(deployment_filter=of_promote)
        client.delete_flow_run(promotion.id)


@pytest.fixture
def worker(code: Path, deployed: dict[str, UUID], tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A worker that runs what is due in `workspace` in tmp_path. Nothing follows what it completes."""

    async def silence() -> None:
        async with get_client() as client:
            await client.delete_resource_owned_automations(f"prefect.deployment.{deployed['promote']}")

    asyncio.run(silence())
    environment = toy.environment(code, BLSP_WORKSPACE=str(tmp_path / "workspace"), PREFECT_WORKER_QUERY_SECONDS="1")
    del environment["PYTHONPATH"]  # the code is what it clones
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "blsp", "--name", "toy"]
    with open(tmp_path / "worker.log", "w") as log:
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def test_worker_runs_the_commit_with_a_runs_values_then_one_is_cancelled_then_the_worker_is_killed(
    code: Path, deployed: dict[str, UUID], worker: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    workspace = tmp_path / "workspace"
    with get_client(sync_client=True) as client:
        run = client.create_flow_run_from_deployment(deployed["training"], parameters={"overrides": ["train.lr=1e-4"]})
        assert ended(run.id).is_completed(), (tmp_path / "worker.log").read_text()
        assert toy.git(workspace, "rev-parse", "HEAD") == toy.git(code, "rev-parse", "HEAD")
        assert (workspace / "train.txt").read_text() == "0.0001"
        assert toy.value(workspace, "train", "lr") == 1e-4
        assert toy.stale(workspace) == {}

        before = toy.contents(workspace)
        (workspace / "hang-train").touch()
        (workspace / "train.pid").unlink()
        run = client.create_flow_run_from_deployment(deployed["pipeline"], parameters={"overrides": ["train.lr=5e-4"]})
        toy.wait_until((workspace / "train.pid").exists)
        assert toy.value(workspace, "train", "lr") == 5e-4
        client.set_flow_run_state(run.id, Cancelling())
        assert ended(run.id).is_cancelled(), (tmp_path / "worker.log").read_text()
        toy.wait_until(lambda: toy.processes_in(workspace) == [])
        assert toy.contents(workspace) == before
        assert toy.stale(workspace) == {}

        (workspace / "train.pid").unlink()
        run = client.create_flow_run_from_deployment(deployed["pipeline"])
        toy.wait_until((workspace / "train.pid").exists)
        worker.kill()
        (workspace / "hang-train").unlink()
        assert ended(run.id).is_completed()
        assert (workspace / "train.txt").read_text() == "0.002"


def ended(identity: UUID) -> State:
    state = asyncio.run(wait_for_flow_run(identity, timeout=150)).state
    assert state is not None
    return state


@pytest.fixture
def project(code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The toy as somebody's own checkout, the working folder."""
    shutil.copytree(code, tmp_path / "project", symlinks=True)
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.delenv("BLSP_WORKSPACE", raising=False)
    return tmp_path / "project"


async def state_of(**parameters: object) -> State:
    return await pipeline(**parameters, return_state=True)


def test_unknown_values_and_profiles_are_refused_and_nothing_runs(project: Path) -> None:
    state = asyncio.run(state_of(overrides=["train.lrr=1", "train.steps=many"]))
    assert state.is_failed()
    assert state.message == (
        "params.yaml with train.lrr=1, train.steps=many:\n  train.steps: must be a whole number; found 'many'\n"
        "  train.lrr: unknown key; the nearest valid key is train.lr"
    )
    state = asyncio.run(state_of(profile="miniatur"))
    assert state.message and state.message.startswith(
        "profiles/miniatur.yaml: there is no such profile; there are: laptop, min"
    )
    assert toy.git(project, "status", "--porcelain") == "" and not Path("corpus.pid").exists()


def test_second_run_in_a_workspace_ends_at_once_and_says_why(project: Path) -> None:
    with held(project, "pipeline run 'fox'"):
        state = asyncio.run(state_of(overrides=["train.lr=1e-4"]))
    assert (state.type.value, state.name) == ("FAILED", "WorkspaceBusy")
    assert state.message and "pipeline run 'fox' has it" in state.message
    assert toy.git(project, "status", "--porcelain") == "" and not Path("corpus.pid").exists()


def test_gpu_stages_of_two_workspaces_take_turns(project: Path, code: Path, deployed: dict[str, UUID]) -> None:
    async def limit(gpus: int) -> None:
        async with get_client() as client:
            await client.create_concurrency_limit(GPU_TAG, gpus)

    other = project.with_name("other")
    shutil.copytree(code, other, symlinks=True)
    command = [sys.executable, "-m", "flows.pipeline"]
    Path("hang-corpus").touch()
    asyncio.run(limit(1))
    try:
        first = subprocess.Popen(command, env=toy.environment(project), stderr=subprocess.DEVNULL)
        toy.wait_until(Path("corpus.pid").exists)
        second = subprocess.Popen(command, cwd=other, env=toy.environment(other), stderr=subprocess.DEVNULL)
        waiting = TaskRunFilter(state=TaskRunFilterState(name=TaskRunFilterStateName(any_=["Pending"])))
        with get_client(sync_client=True) as client:
            toy.wait_until(lambda: client.read_task_runs(task_run_filter=waiting))
        time.sleep(2)  # in which it would begin
        assert not (other / "corpus.pid").exists()
        Path("hang-corpus").unlink()
        assert (first.wait(150), second.wait(150)) == (0, 0)
    finally:
        asyncio.run(limit(2))
    assert (other / "train.txt").exists()


def test_run_that_a_worker_took_and_never_began_is_marked_as_crashed(deployed: dict[str, UUID]) -> None:
    async def automate(after_s: float) -> None:
        async with get_client() as client:
            await make_automation(client, unborn(after_s))

    asyncio.run(automate(10))
    with get_client(sync_client=True) as client:
        taken = client.create_flow_run_from_deployment(deployed["training"]).id
        client.set_flow_run_state(taken, Pending())

        def crashed() -> bool:
            state = client.read_flow_run(taken).state
            return bool(state and state.is_crashed())

        toy.wait_until(crashed)
        state = client.read_flow_run(taken).state
        assert state and state.message == "vanished: its worker died before it began"
    asyncio.run(automate(UNBORN_AFTER_S))


def test_killed_run_is_marked_as_crashed_a_living_one_is_not_and_the_next_goes_on(project: Path) -> None:
    """The automation with a shorter patience: the last heartbeat of the one, and all of the other's, come from here,
    as the killed flow sent its own."""

    async def automate(after_s: float) -> None:
        async with get_client() as client:
            await make_automation(client, silent(after_s))

    def beat(run: UUID) -> None:
        emit_event(HEARTBEAT, {"prefect.resource.id": f"prefect.flow-run.{run}"}, related=sent.related)

    before = toy.contents(project)
    Path("hang-train").touch()
    command = [sys.executable, "-m", "flows.pipeline", "--set", "train.lr=1e-4"]
    with get_client(sync_client=True) as client:
        others = {run.id for run in client.read_flow_runs()}
        flow = subprocess.Popen(command, env=toy.environment(project), stderr=subprocess.DEVNULL)
        try:
            toy.wait_until(Path("train.pid").exists)
            (killed,) = {run.id for run in client.read_flow_runs()} - others
        finally:
            flow.kill()
            flow.wait()
        of_killed = EventResourceFilter(id=[f"prefect.flow-run.{killed}"])

        def heartbeats() -> list[ReceivedEvent]:
            filters = EventFilter(event=EventNameFilter(name=[HEARTBEAT]), resource=of_killed)
            return client.read_events(filters, limit=1).events

        toy.wait_until(heartbeats)
        (sent,) = heartbeats()

        living = client.create_flow_run(pipeline, state=Running()).id
        asyncio.run(automate(12))
        beat(killed)

        def crashed() -> bool:
            beat(living)
            time.sleep(1)
            return bool((state := client.read_flow_run(killed).state) and state.is_crashed())

        toy.wait_until(crashed)
        state = client.read_flow_run(killed).state
        assert state and state.message == "vanished: no heartbeat: its machine or process died"
        state = client.read_flow_run(living).state
        assert state and state.is_running()
        client.set_flow_run_state(living, Completed(), force=True)
        asyncio.run(automate(200))

    assert toy.processes_in(project) == []
    Path("hang-train").unlink()
    assert asyncio.run(state_of(targets=["corpus"])).is_completed()
    after = toy.contents(project)
    assert after["params.yaml"] == before["params.yaml"] and after["train.txt"] is None
