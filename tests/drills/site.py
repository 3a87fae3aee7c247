"""What the drills happen to: real services, this repository with a very small miniature deployed there, a worker."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName, LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import FlowRun, State
from prefect.client.schemas.schedules import IntervalSchedule
from prefect.client.schemas.sorting import FlowRunSort
from prefect.states import Cancelling
from ruamel.yaml import YAML

from blsp.errors import BlspError
from blsp.files import sha256_of
from infra import local, postgresql
from infra.secrets import read_variables
from tests.drills.code import STEPS, write_code
from tests.drills.services import Services
from tests.flows.toy import git, wait_until

LIMIT_S = 180.0  # s, for machines that are slow and busy
OTHER = ["train.lr=1e-3"]  # a training that is not of params.yaml as committed
FLOWS = {"pipeline": "pipeline", "training": "pipeline", "evaluation": "pipeline", "promote": "promote"}


class Site:
    """One machine: services in `state`, the worker's workspace in there too, the code and its origin beside them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state, self.code, self.origin = folder / "state", folder / "code", folder / "origin.git"
        self.workspace = self.state / "workspace"
        self.services = Services(self.state)
        self.scheduled = self.promoted = UUID(int=0)
        """The first run of the pipeline, and of the promotion that followed it."""
        self.undisturbed = ""
        """The SHA-256 of the adapter that params.yaml as committed gives where nothing happens to the training."""

    def build(self) -> None:
        """Nothing; all serves, and the deployments are of the one commit there is."""
        write_code(self.code)
        git(self.code, "clone", "--quiet", "--bare", ".", str(self.origin))
        git(self.code, "remote", "add", "origin", str(self.origin))
        self.services.first_up()
        # Two places on GPUs: that of a run that was killed is free again after a minute only.
        self.run_in(self.code, "flows.deploy", "--gpus", "2").check_returncode()

    def first_run(self) -> None:
        """Nothing; a run that a schedule began has made everything from nothing, and what follows it has ended."""
        with self.services.prefect() as client:
            for name in ("pipeline/pipeline", "pipeline/data"):
                deployment = client.read_deployment_by_name(name)
                for one in deployment.schedules:  # 02:00 UTC may be now
                    client.update_deployment_schedule(deployment.id, one.id, active=False)
            pipeline = client.read_deployment_by_name("pipeline/pipeline")
            soon = datetime.now(UTC) + timedelta(seconds=10)  # the server plans anew every 5 s
            often = IntervalSchedule(interval=timedelta(minutes=1), anchor_date=soon)
            (due,) = client.create_deployment_schedules(pipeline.id, [(often, True)])
            self.scheduled = self._first_of("pipeline")
            client.update_deployment_schedule(pipeline.id, due.id, active=False)
        self.completed(self.scheduled, 3 * LIMIT_S)
        self.undisturbed = self.adapter()
        self.promoted = self._first_of("promote")
        self.completed(self.promoted)

    def _first_of(self, deployment: str) -> UUID:
        """The first run of a deployment, once it has begun."""
        only = DeploymentFilter(name=DeploymentFilterName(any_=[deployment]))

        def begun() -> list[FlowRun]:
            with self.services.prefect() as client:
                found = client.read_flow_runs(deployment_filter=only, sort=FlowRunSort.START_TIME_ASC)
                return [run for run in found if run.start_time]

        wait_until(begun, LIMIT_S)
        return begun()[0].id

    def run_in(self, folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """`python -m WORDS`, ended, in a shell in this folder."""
        environment = self.services.environment(**({"PYTHONPATH": str(self.code)} | variables))
        command = [sys.executable, "-m", *words]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)

    def start(self, deployment: str, overrides: list[str] | None = None) -> UUID:
        """A new run of a deployment, which the worker will find."""
        parameters = {"overrides": overrides} if overrides else {}
        with self.services.prefect() as client:
            found = client.read_deployment_by_name(f"{FLOWS[deployment]}/{deployment}")
            return client.create_flow_run_from_deployment(found.id, parameters=parameters).id

    def read(self, run: UUID) -> FlowRun:
        with self.services.prefect() as client:
            return client.read_flow_run(run)

    def ended(self, run: UUID, limit_s: float = LIMIT_S) -> State[Any]:
        """The state in which the run ends, as Prefect's server tells it."""

        def final() -> bool:
            state = self.read(run).state
            return state is not None and state.is_final()

        wait_until(final, limit_s)
        state = self.read(run).state
        assert state is not None
        return state

    def completed(self, run: UUID, limit_s: float = LIMIT_S) -> State[Any]:
        """The state of a run that ends well."""
        state = self.ended(run, limit_s)
        assert state.is_completed(), f"{state.name}: {state.message}\n{self.worker_log()}"
        return state

    def cancel(self, run: UUID) -> None:
        with self.services.prefect() as client:
            client.set_flow_run_state(run, Cancelling())

    def log(self, run: UUID) -> str:
        """What Prefect's page of the run shows."""
        with self.services.prefect() as client:
            lines = client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run])), limit=200)
        return "\n".join(line.message for line in lines)

    def worker_log(self) -> str:
        return (self.state / "logs" / "worker.log").read_text(errors="replace")[-6000:]

    def newest_runs(self) -> list[FlowRun]:
        """Runs that Prefect knows, the newest first."""
        with self.services.prefect() as client:
            return client.read_flow_runs(limit=20, sort=FlowRunSort.START_TIME_DESC)

    # The workspace.

    def adapter(self) -> str:
        return sha256_of(self.workspace / "models/adapter")

    def rows(self) -> list[dict[str, Any]]:
        """What training has logged up to now."""
        log = self.workspace / "reports/train_log.jsonl"
        lines = log.read_text().split("\n")[:-1] if log.is_file() else []
        return [json.loads(line) for line in lines]

    def forget_training(self, in_lock: bool = True) -> None:
        """Nothing; DVC does not know what training gave, so that the next run really trains, also with what dvc.lock
        has now. Without `in_lock`, dvc.lock keeps it: another training is to follow."""
        shutil.rmtree(self.workspace / ".dvc/cache/runs", ignore_errors=True)
        if in_lock:
            lock = self.workspace / "dvc.lock"
            yaml = YAML(typ="safe", pure=True)
            yaml.default_flow_style = False  # DVC cannot read a question in a list between brackets
            found = yaml.load(lock)
            for stage in ("train", "evaluate"):
                found["stages"].pop(stage, None)
            yaml.dump(found, lock)
            (self.workspace / "reports/train_log.jsonl").unlink(missing_ok=True)

    def training(self) -> psutil.Process | None:
        """The process that trains in the workspace."""
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.cmdline()[1:4] == ["-m", "blsp", "train"] and process.cwd() == str(self.workspace):
                    return process
        return None

    def frozen(self, rows: int = 3) -> psutil.Process:
        """The process that trains, stopped (SIGSTOP) after so many rows of its log, so that the middle of a training
        is as long as a drill takes."""
        wait_until(lambda: self.training() and len(self.rows()) >= rows, LIMIT_S)
        process = self.training()
        assert process is not None
        process.suspend()
        assert len(self.rows()) < STEPS // 10, "it had trained to its end already"
        return process

    def flow_process(self, training: psutil.Process) -> psutil.Process:
        """The process of the flow whose stage this is: the first above it that is not of the stage's group."""
        group = os.getpgid(training.pid)
        return next(process for process in training.parents() if os.getpgid(process.pid) != group)

    def asking(self) -> psutil.Process | None:
        """The process in which a promotion asks the new version."""
        server = read_variables(self.state / local.CLIENT)["MLFLOW_TRACKING_URI"]
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                asks = any(word.endswith("blsp/registry/served.py") for word in process.cmdline())
                if asks and process.environ().get("MLFLOW_TRACKING_URI") == server:
                    return process
        return None

    def places_taken(self) -> int:
        """How many of the places on GPUs Prefect's server takes for taken."""
        with self.services.prefect() as client:
            limit = client._client.get("/v2/concurrency_limits/tag:gpu").raise_for_status().json()
        return int(limit["active_slots"])

    def processes(self) -> list[str]:
        """Command lines of what runs in the workspace, or of a flow."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE and process.cwd() == str(self.workspace):
                    found.append(" ".join(process.cmdline()))
        return found

    def contents(self, *names: str) -> dict[str, str]:
        """{path: SHA-256} of what a run may change."""
        written = ("params.yaml", "dvc.lock", "models/adapter", "reports/train.json", "reports/train_log.jsonl")
        return {name: sha256_of(self.workspace / name) for name in names or written}

    def stale(self, *stages: str) -> Any:
        """What `dvc status` says: nothing where the lock names what is there, whole."""
        done = self.run_in(self.workspace, "dvc", "status", "--json", *stages)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def check_training(self) -> None:
        """Nothing is lost: dvc.lock names whole outputs, the adapter is that of a training to which nothing happened,
        and MLflow has a finished run with every point of the curve."""
        assert self.stale("train") == {}
        assert self.adapter() == self.undisturbed
        assert [row["step"] for row in self.rows()] == [10 * (number + 1) for number in range(STEPS // 10)]
        assert self.recorded() == curve_of(self.rows())

    def recorded(self) -> dict[str, dict[int, float]]:
        """The curve of the newest finished run of the workspace's adapter in MLflow."""
        finished = f"tags.`blsp.adapter_sha256` = '{self.adapter()}' and attributes.status = 'FINISHED'"
        with self.services.mlflow() as client:
            experiment = client.get_experiment_by_name("blsp").experiment_id
            (run,) = client.search_runs([experiment], finished, order_by=["attributes.start_time DESC"], max_results=1)
            assert "blsp.mirror_sha256" in run.data.tags, "not whole"
            return {
                name: {point.step: point.value for point in client.get_metric_history(run.info.run_id, name)}
                for name in run.data.metrics
                if name.startswith("curve/")
            }

    def aliases(self) -> dict[str, str]:
        """{alias: version} of the registered model."""
        with self.services.mlflow() as client:
            models = client.search_registered_models(filter_string="name = 'blsp'")
            return {alias: str(version) for alias, version in models[0].aliases.items()} if models else {}

    def versions(self, model: str = "blsp") -> list[str]:
        """The numbers of the model's versions."""
        with self.services.mlflow() as client:
            return sorted(str(one.version) for one in client.search_model_versions(f"name = '{model}'"))

    def pass_time(self, model: str, seconds: int) -> None:
        """Nothing; to MLflow, the versions of this model were last heard of so much earlier."""
        earlier = f"UPDATE model_versions SET last_updated_time = last_updated_time - {seconds * 1000}"
        with self.services.as_administrator():
            postgresql.psql(["-c", f"{earlier} WHERE name = '{model}'"], postgresql.connection("mlflow"))


def curve_of(rows: list[dict[str, Any]]) -> dict[str, dict[int, float]]:
    """{metric: {step: value}} as MLflow should have it."""
    curve: dict[str, dict[int, float]] = {}
    for row in rows:
        for name, value in row.items():
            if name != "step":
                curve.setdefault(f"curve/{name}", {})[row["step"]] = value
    return curve


@contextlib.contextmanager
def site() -> Iterator[Site]:
    """One that is removed in the end."""
    # Not below pytest's own folders: PostgreSQL's user could not enter those of root.
    folder = Path(tempfile.mkdtemp(prefix="blsp-drills-"))
    folder.chmod(0o711)
    here = Site(folder)
    try:
        here.build()
        yield here
    finally:
        if training := here.training():
            training.send_signal(signal.SIGCONT)
        with contextlib.suppress(BlspError):  # nothing was started
            here.services.down()
        shutil.rmtree(folder)
