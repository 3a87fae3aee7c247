"""The services as plain processes of this machine, on loopback: `up`, `down`, `status`. No Docker, no supervisor: each
server is a process group with a record in the state folder, and `up` starts what does not run."""

import argparse
import contextlib
import fcntl
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from blsp.errors import BlspError
from blsp.files import read_json, write_json
from infra import postgresql, services
from infra.processes import Server, healthy, pid_of, port_taken, start, stop, wait_until_healthy
from infra.secrets import read_variables, write_private, write_secrets

START_LIMIT_S = 300.0  # s until a server must serve; MLflow and Prefect make their tables at the first start
SECRETS, CLIENT, PORTS = "secrets.env", "client.env", "ports.json"


def default_state() -> Path:
    """Where the services keep their data if nothing is said: where PostgreSQL's own user can reach it, for root."""
    if os.geteuid() == 0:
        return Path("/var/lib/blsp")
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "blsp"


def up(state: Path, names: Sequence[str] = services.NAMES, ports: dict[str, int] | None = None) -> None:
    """Nothing; the named servers serve. `ports` are kept for the next time. Raises BlspError where one cannot be
    started; those that run already are left as they are."""
    with _held(state):
        if not (state / SECRETS).exists():
            write_secrets(state / SECRETS)
        secrets = read_variables(state / SECRETS)
        kept = {**services.PORTS, **_kept_ports(state)}
        chosen = {**kept, **(ports or {})}
        if chosen != kept and (running := [name for name in services.NAMES if pid_of(name, state) is not None]):
            raise BlspError(f"ports cannot change while servers run ({', '.join(running)}): `down` first")
        wanted = [services.server(name, secrets, chosen, state) for name in services.NAMES if name in names]
        down = [server for server in wanted if pid_of(server.name, state) is None]
        for server in down:
            stop(server, state)  # what a server that died has left of itself
            if port_taken(server.port):
                raise BlspError(
                    f"port {server.port} is taken by another program: choose one with --{server.name}-port, "
                    "for example with an up-local of its own state folder"
                )
        write_json(state / PORTS, chosen)
        _write_client(state, services.client_variables(secrets, chosen, state))
        _start(down, state, secrets, chosen)
        for server in wanted:
            wait_until_healthy(server, state, START_LIMIT_S)


def _start(servers: Sequence[Server], state: Path, secrets: dict[str, str], ports: dict[str, int]) -> None:
    by_name = {server.name: server for server in servers}
    if postgres := by_name.get("postgres"):
        postgresql.make_cluster(state / "postgres", secrets["POSTGRES_PASSWORD"])
        start(postgres, state)
        wait_until_healthy(postgres, state, START_LIMIT_S)
        _make_databases(secrets, ports)
    for name in ("s3", "mlflow", "prefect"):
        if name in by_name:
            start(by_name[name], state)
    if "s3" in by_name:
        wait_until_healthy(by_name["s3"], state, START_LIMIT_S)
        (state / "s3" / services.BUCKET).mkdir(exist_ok=True)  # a folder is a bucket to this server
    if "mlflow" in by_name:
        wait_until_healthy(by_name["mlflow"], state, START_LIMIT_S)
        _make_pipeline_user(secrets, ports)
    if worker := by_name.get("worker"):
        if prefect := by_name.get("prefect"):
            wait_until_healthy(prefect, state, START_LIMIT_S)
        start(worker, state)


def _make_databases(secrets: dict[str, str], ports: dict[str, int]) -> None:
    superuser = {"PGUSER": "postgres", "PGDATABASE": "postgres", "PGPASSWORD": secrets["POSTGRES_PASSWORD"]}
    where = {"PGHOST": services.HERE, "PGPORT": str(ports["postgres"])}
    postgresql.psql(["-f", postgresql.DATABASES_SQL], {**secrets, **superuser, **where})


def _make_pipeline_user(secrets: dict[str, str], ports: dict[str, int]) -> None:
    from infra.provision import make_pipeline_user

    make_pipeline_user(
        f"http://{services.HERE}:{ports['mlflow']}",
        secrets["MLFLOW_ADMIN_PASSWORD"],
        secrets["MLFLOW_PIPELINE_PASSWORD"],
    )


def down(state: Path) -> None:
    """Nothing; no server runs, their data stay. Raises BlspError where `state` is no state folder."""
    secrets, ports = _known(state)
    with _held(state):
        for name in reversed(services.NAMES):
            stop(services.server(name, secrets, ports, state), state)


def status(state: Path) -> list[tuple[str, int | None, bool, str]]:
    """Of each server: its name, its process or None, whether it serves, its address. Raises BlspError as `down`."""
    secrets, ports = _known(state)
    servers = [services.server(name, secrets, ports, state) for name in services.NAMES]
    pids = [pid_of(server.name, state) for server in servers]
    return [
        (server.name, pid, pid is not None and healthy(server), f"{services.HERE}:{server.port}")
        for server, pid in zip(servers, pids, strict=True)
    ]


def _known(state: Path) -> tuple[dict[str, str], dict[str, int]]:
    if not (state / PORTS).exists():
        raise BlspError(f"{state}: no services were ever started here; `up` does, or name their folder with --state")
    return read_variables(state / SECRETS), {**services.PORTS, **_kept_ports(state)}


def _kept_ports(state: Path) -> dict[str, int]:
    return read_json(state / PORTS) if (state / PORTS).exists() else {}


def _write_client(state: Path, variables: dict[str, str]) -> None:
    write_private(state / CLIENT, "".join(f"{name}={shlex.quote(value)}\n" for name, value in variables.items()))


@contextlib.contextmanager
def _held(state: Path) -> Iterator[None]:
    """The state folder, made, and held against other `up` and `down`. Raises BlspError where one is at it."""
    for folder in (state, state / "logs", state / "run", state / "s3", state / "prefect"):
        folder.mkdir(parents=True, exist_ok=True)
    # PostgreSQL's user must pass through to its own folder; all else there is closed to others.
    state.chmod(0o711 if postgresql.owner() else 0o700)
    for name in ("logs", "run", "s3", "prefect"):
        (state / name).chmod(0o700)
    with (state / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlspError(f"{state}: another `up` or `down` is at work there") from error
        yield


def main(arguments: Sequence[str] | None = None) -> int:
    """0 where the command did what it says and, for `status`, all servers serve; else 1."""
    parser = argparse.ArgumentParser(
        prog="python -m infra.local",
        description=(
            "Run PostgreSQL, an S3 server, MLflow, Prefect's server and a worker as processes of this machine that "
            "only it can reach: what infra/compose.yaml runs in containers. Data, logs and generated secrets are in "
            "the state folder."
        ),
        epilog=(
            "Afterwards `set -a; . STATE/client.env; set +a` lets a shell use them. `down` leaves the data; to forget "
            "them, remove the state folder. docs/services.md has the rest."
        ),
    )
    parser.add_argument("command", choices=("up", "down", "status"))
    parser.add_argument("names", nargs="*", metavar="SERVER", help=f"up: these alone, of {', '.join(services.NAMES)}")
    parser.add_argument("--state", type=Path, default=default_state(), help="state folder (default: %(default)s)")
    for name, port in services.PORTS.items():
        parser.add_argument(f"--{name}-port", type=int, metavar="PORT", help=f"up: default {port}, then the last one")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(services.NAMES):
        parser.error(f"no such server: {', '.join(sorted(unknown))}; there are {', '.join(services.NAMES)}")
    state = options.state.expanduser().absolute()
    given = {name: getattr(options, f"{name}_port") for name in services.PORTS}
    try:
        if options.command == "up":
            up(state, options.names or services.NAMES, {name: port for name, port in given.items() if port})
        elif options.command == "down":
            down(state)
            return 0
        found = status(state)
    except (BlspError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    for name, pid, serves, address in found:
        print(f"{name:<10}{'serves' if serves else 'starts' if pid else 'down':<8}{address:<18}{pid or ''}")
    if options.command == "up":
        print(f"\nset -a; . {state / CLIENT}; set +a    # for a shell that uses them; logs: {state / 'logs'}")
        return 0
    return 0 if all(serves for _, _, serves, _ in found) else 1


if __name__ == "__main__":
    sys.exit(main())
