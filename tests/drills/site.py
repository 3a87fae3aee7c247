"""What the drills happen to: real services, this repository with a very small miniature deployed there, a worker."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch
from uuid import UUID

import psutil
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName, LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import FlowRun, State
from prefect.client.schemas.schedules import IntervalSchedule
from prefect.client.schemas.sorting import FlowRunSort
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling
from ruamel.yaml import YAML

from blsp.errors import BlspError
from blsp.files import sha256_of
from infra import local, postgresql, services
from infra.processes import pid_of, stop
from infra.secrets import read_variables
from tests.flows.toy import CODE, ROOT, commit, git, wait_until
from tests.test_stages import change

LIMIT_S = 180.0  # s, for machines that are slow and busy
STEPS = 160
OTHER = ["train.lr=1e-3"]  # a training that is not of params.yaml as committed
FLOWS = {"pipeline": "pipeline", "training": "pipeline", "evaluation": "pipeline", "promote": "promote"}


class Site:
    """One machine: services in `state`, the worker's workspace in there too, the code and its origin beside them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state, self.code, self.origin = folder / "state", folder / "code", folder / "origin.git"
        self.workspace = self.state / "workspace"
        self.scheduled = self.promoted = UUID(int=0)
        """The first run of the pipeline, and of the promotion that followed it."""
        self.undisturbed = ""
        """The SHA-256 of the adapter that params.yaml as committed gives where nothing happens to the training."""

    def build(self) -> None:
        """Nothing; all serves, and the deployments are of the one commit there is."""
        _write_code(self.code)
        git(self.code, "clone", "--quiet", "--bare", ".", str(self.origin))
        git(self.code, "remote", "add", "origin", str(self.origin))
        with contextlib.ExitStack() as stack:
            free = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in services.NAMES]
            ports = {name: one.getsockname()[1] for name, one in zip(services.NAMES, free, strict=True)}
        self.up(ports=ports)
        # Two places on GPUs: that of a run that was killed is free again after a minute only.
        self.run_in(self.code, "flows.deploy", "--gpus", "2").check_returncode()

    def first_run(self) -> None:
        """Nothing; a run that a schedule began has made everything from nothing, and what follows it has ended."""
        with self.prefect() as client:
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
            with self.prefect() as client:
                found = client.read_flow_runs(deployment_filter=only, sort=FlowRunSort.START_TIME_ASC)
                return [run for run in found if run.start_time]

        wait_until(begun, LIMIT_S)
        return begun()[0].id

    def up(self, *names: str, ports: dict[str, int] | None = None) -> None:
        """Nothing; these servers serve, or all."""
        with self._as_a_person():
            local.up(self.state, names or services.NAMES, ports)
        if not names or "mlflow" in names:
            self._check_passwords_quickly()

    def _check_passwords_quickly(self) -> None:
        """Nothing; MLflow's checks cost little. As they are they take 80 ms a request, of which one training's record
        is 300: half of all that the drills would take."""
        from werkzeug.security import generate_password_hash

        for user in ("admin", "pipeline"):
            with self.as_administrator():
                password = os.environ[f"MLFLOW_{user.upper()}_PASSWORD"]
                hashed = generate_password_hash(password, method="pbkdf2:sha256:1")
                change = f"UPDATE users SET password_hash = '{hashed}' WHERE username = '{user}'"
                postgresql.psql(["-c", change], postgresql.connection("mlflow_auth"))

    def down(self) -> None:
        local.down(self.state)

    def kill(self, name: str, children: bool = True) -> None:
        """Nothing; the server and all its processes, or the first alone, have died without warning."""
        number = pid_of(name, self.state)
        assert number is not None, f"{name} does not run"
        family = [psutil.Process(number), *(psutil.Process(number).children(recursive=True) if children else ())]
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        assert psutil.wait_procs(family, timeout=30)[1] == []

    def halt(self, name: str) -> None:
        """Nothing; the server was shut down in order."""
        secrets = read_variables(self.state / local.SECRETS)
        stop(services.server(name, secrets, json.loads((self.state / local.PORTS).read_text()), self.state), self.state)

    @contextlib.contextmanager
    def _as_a_person(self) -> Iterator[None]:
        """What the services inherit: no variables of the tests' own, and a worker that looks for work every second."""
        with patch.dict(os.environ, {"PREFECT_WORKER_QUERY_SECONDS": "1", "OMP_NUM_THREADS": "1"}):
            for name in ("PYTHONPATH", "BLSP_SCRATCH", "PREFECT_API_URL"):
                os.environ.pop(name, None)
            yield

    def environment(self, **more: str) -> dict[str, str]:
        """That of a shell on this machine which has client.env."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "MLFLOW_", "PREFECT_", "BLSP_"))}
        client = read_variables(self.state / local.CLIENT)
        return {**inherited, **client, "PATH": path, "OMP_NUM_THREADS": "1", "PYTHONPATH": "", **more}

    def run_in(self, folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """`python -m WORDS`, ended, in a shell in this folder."""
        environment = self.environment(**({"PYTHONPATH": str(self.code)} | variables))
        command = [sys.executable, "-m", *words]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)

    @contextlib.contextmanager
    def prefect(self) -> Iterator[SyncPrefectClient]:
        """A client of the Prefect server, beside which this process may be in use of another."""
        variables = read_variables(self.state / local.CLIENT)
        updates = {
            PREFECT_API_URL: variables["PREFECT_API_URL"],
            PREFECT_API_AUTH_STRING: variables["PREFECT_API_AUTH_STRING"],
        }
        with temporary_settings(updates), get_client(sync_client=True) as client:
            yield client

    def start(self, deployment: str, overrides: list[str] | None = None) -> UUID:
        """A new run of a deployment, which the worker will find."""
        parameters = {"overrides": overrides} if overrides else {}
        with self.prefect() as client:
            found = client.read_deployment_by_name(f"{FLOWS[deployment]}/{deployment}")
            return client.create_flow_run_from_deployment(found.id, parameters=parameters).id

    def read(self, run: UUID) -> FlowRun:
        with self.prefect() as client:
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
        with self.prefect() as client:
            client.set_flow_run_state(run, Cancelling())

    def log(self, run: UUID) -> str:
        """What Prefect's page of the run shows."""
        with self.prefect() as client:
            lines = client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run])), limit=200)
        return "\n".join(line.message for line in lines)

    def worker_log(self) -> str:
        return (self.state / "logs" / "worker.log").read_text(errors="replace")[-6000:]

    def newest_runs(self) -> list[FlowRun]:
        """Runs that Prefect knows, the newest first."""
        with self.prefect() as client:
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
        with self.prefect() as client:
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
        with self.mlflow() as client:
            experiment = client.get_experiment_by_name("blsp").experiment_id
            (run,) = client.search_runs([experiment], finished, order_by=["attributes.start_time DESC"], max_results=1)
            assert "blsp.mirror_sha256" in run.data.tags, "not whole"
            return {
                name: {point.step: point.value for point in client.get_metric_history(run.info.run_id, name)}
                for name in run.data.metrics
                if name.startswith("curve/")
            }

    @contextlib.contextmanager
    def mlflow(self) -> Iterator[Any]:
        """An MLflow client of the user `pipeline`."""
        from mlflow import MlflowClient

        with patch.dict(os.environ, read_variables(self.state / local.CLIENT)):
            yield MlflowClient(os.environ["MLFLOW_TRACKING_URI"])

    def aliases(self) -> dict[str, str]:
        """{alias: version} of the registered model."""
        with self.mlflow() as client:
            models = client.search_registered_models(filter_string="name = 'blsp'")
            return {alias: str(version) for alias, version in models[0].aliases.items()} if models else {}

    def versions(self, model: str = "blsp") -> list[str]:
        """The numbers of the model's versions."""
        with self.mlflow() as client:
            return sorted(str(one.version) for one in client.search_model_versions(f"name = '{model}'"))

    def pass_time(self, model: str, seconds: int) -> None:
        """Nothing; to MLflow, the versions of this model were last heard of so much earlier."""
        earlier = f"UPDATE model_versions SET last_updated_time = last_updated_time - {seconds * 1000}"
        with self.as_administrator():
            postgresql.psql(["-c", f"{earlier} WHERE name = '{model}'"], postgresql.connection("mlflow"))

    @contextlib.contextmanager
    def as_administrator(self) -> Iterator[None]:
        """This process has the variables with which backups are made."""
        ports = json.loads((self.state / local.PORTS).read_text())
        server = {"PGHOST": "127.0.0.1", "PGPORT": str(ports["postgres"])}
        secrets, client = (read_variables(self.state / name) for name in (local.SECRETS, local.CLIENT))
        with patch.dict(os.environ, secrets | client | server), patch("boto3.DEFAULT_SESSION", None):
            yield


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
            here.down()
        shutil.rmtree(folder)


def _write_code(folder: Path) -> None:
    """Nothing; `folder` is a repository with one commit: this one's code, settings that make everything small, and a
    DVC remote in the site's S3 store."""
    folder.mkdir()
    for name in (*CODE, "dvc.yaml", "data/source/README.md", ".gitignore", ".dvc/config", ".dvc/.gitignore"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)
    change(folder, small=True, steps=STEPS, validate_every=STEPS // 2, checkpoint_every=5)
    params = YAML(typ="safe", pure=True).load(folder / "params.yaml")
    # So little training teaches nothing: who is promoted is not what is asked here.
    params["promote"] |= {"gates": {"alignment.kl": {"max": 1000.0}}, "no_task_may_fall": False, "tolerated_falls": {}}
    (folder / "params.yaml").write_text(json.dumps(params, indent=1))
    stages = folder / "dvc.yaml"
    stages.write_text(stages.read_text().replace("retry_delay_s: 30", "retry_delay_s: 1"))
    config = folder / ".dvc/config"
    remote = "['remote \"store\"']\n    url = s3://blsp/dvc\n"
    config.write_text(config.read_text().replace("[core]\n", "[core]\n    remote = store\n") + remote)
    git(folder, "init", "--quiet", "--initial-branch", "main")
    git(folder, "config", "user.name", "Some One")
    git(folder, "config", "user.email", "some@one.example")
    commit(folder, "Code")
