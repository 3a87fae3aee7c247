"""The servers of a site, which drills kill, stop and start: as `python -m infra.local up` runs them."""

import contextlib
import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from infra import local, postgresql
from infra.processes import pid_of, stop
from infra.secrets import read_variables
from infra.services import NAMES, server


class Services:
    """PostgreSQL, S3, MLflow, Prefect and a worker, whose state lies in `state`."""

    def __init__(self, state: Path) -> None:
        self.state = state

    def first_up(self) -> None:
        """Nothing; all serve for the first time, at ports that were free."""
        with contextlib.ExitStack() as stack:
            free = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in NAMES]
            ports = {name: one.getsockname()[1] for name, one in zip(NAMES, free, strict=True)}
        self.up(ports=ports)

    def up(self, *names: str, ports: dict[str, int] | None = None) -> None:
        """Nothing; these servers serve, or all."""
        with self._as_a_person():
            local.up(self.state, names or NAMES, ports)
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
        stop(server(name, secrets, json.loads((self.state / local.PORTS).read_text()), self.state), self.state)

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

    @contextlib.contextmanager
    def mlflow(self) -> Iterator[Any]:
        """An MLflow client of the user `pipeline`."""
        from mlflow import MlflowClient

        with patch.dict(os.environ, read_variables(self.state / local.CLIENT)):
            yield MlflowClient(os.environ["MLFLOW_TRACKING_URI"])

    @contextlib.contextmanager
    def as_administrator(self) -> Iterator[None]:
        """This process has the variables with which backups are made."""
        ports = json.loads((self.state / local.PORTS).read_text())
        server = {"PGHOST": "127.0.0.1", "PGPORT": str(ports["postgres"])}
        secrets, client = (read_variables(self.state / name) for name in (local.SECRETS, local.CLIENT))
        with patch.dict(os.environ, secrets | client | server), patch("boto3.DEFAULT_SESSION", None):
            yield
