"""PostgreSQL from the distribution's packages: its programs, a data folder, and SQL by `psql`."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from blsp.errors import BlspError

DATABASES = {"mlflow": "MLFLOW_DB_PASSWORD", "mlflow_auth": "MLFLOW_AUTH_DB_PASSWORD", "prefect": "PREFECT_DB_PASSWORD"}
DATABASES_SQL = Path(__file__).with_name("postgres") / "databases.sql"
PACKAGES = Path("/usr/lib/postgresql")  # where Debian has the programs, a folder for each major version


def server_programs(data: Path | None = None) -> Path:
    """The folder of the server's programs: of the version that made `data` where that is there, else the newest.

    Where there are none, Debian's package is installed if this process is root's. Raises BlspError otherwise.
    """
    made_by = (data / "PG_VERSION").read_text().strip() if data and (data / "PG_VERSION").exists() else None
    if not (found := _folders("initdb")) and os.geteuid() == 0 and shutil.which("apt-get"):
        _install()
        found = _folders("initdb")
    if not found:
        raise BlspError(
            "PostgreSQL is not here (no `initdb` on PATH nor in /usr/lib/postgresql); install it, on Debian and Ubuntu "
            "`sudo apt-get install postgresql`, on Fedora `sudo dnf install postgresql-server postgresql-contrib`"
        )
    if made_by is None:
        return next(iter(found.values()))
    if made_by not in found:
        raise BlspError(f"{data} was made by PostgreSQL {made_by}; here is {', '.join(found)}: install that version")
    return found[made_by]


def client(program: str) -> Path:
    """Where `psql`, `pg_dump` or `pg_restore` is, of the newest version: an older one refuses a newer server.

    Raises BlspError where it is not there.
    """
    if found := _folders(program):
        return next(iter(found.values())) / program
    raise BlspError(f"{program} is not here; install PostgreSQL's client, on Debian and Ubuntu `postgresql-client`")


def _folders(program: str) -> dict[str, Path]:
    """The folders that have a program, by its major version, newest first."""
    folders = [path.parent for path in PACKAGES.glob(f"*/bin/{program}")]
    # Only then: on PATH Debian has scripts that choose a version by clusters of their own.
    if not folders and (on_path := shutil.which(program)):
        folders = [Path(on_path).resolve().parent]
    versions = {}
    for folder in folders:
        said = subprocess.run([folder / program, "--version"], capture_output=True, text=True, check=True).stdout
        versions[said.split()[2].partition(".")[0]] = folder  # initdb (PostgreSQL) 15.18 (Debian ...)
    return dict(sorted(versions.items(), key=lambda item: int(item[0]), reverse=True))


def _install() -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "--yes", "--no-install-recommends", "postgresql"]):
        done = subprocess.run(["apt-get", "--quiet", *command], env=environment, capture_output=True, text=True)
        if done.returncode:
            said = (done.stderr or done.stdout).strip()
            raise BlspError(f"PostgreSQL is not here, and `apt-get {' '.join(command)}` failed:\n{said}")


def owner() -> str | None:
    """The user that the server runs as: this process's own (None), or `postgres` for root, which PostgreSQL refuses."""
    return "postgres" if os.geteuid() == 0 else None


def make_cluster(data: Path, superuser_password: str) -> None:
    """Nothing; `data` is a data folder, made now where it was not there. Raises BlspError where that fails."""
    if (data / "PG_VERSION").exists():
        return
    initdb, user = server_programs() / "initdb", owner()
    with tempfile.TemporaryDirectory(prefix="initdb-") as folder, tempfile.NamedTemporaryFile("w", dir=folder) as file:
        file.write(superuser_password)
        file.flush()
        home = data.parent / f".{data.name}.tmp"
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(mode=0o700)
        if user is not None:
            for path in (folder, file.name, home):
                shutil.chown(path, user, user)
        done = subprocess.run(
            [
                *(initdb, "--pgdata", home, "--username", "postgres", "--pwfile", file.name),
                *("--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C.UTF-8", "--data-checksums"),
            ],
            user=user,
            group=user,
            extra_groups=None if user is None else [],
            cwd="/",
            capture_output=True,
            text=True,
        )
    if done.returncode:
        shutil.rmtree(home)
        hint = f"; the user {user} must be able to enter all folders above it" if user else ""
        raise BlspError(f"no PostgreSQL data folder could be made at {data}{hint}:\n{done.stderr.strip()}")
    os.replace(home, data)


def psql(arguments: Sequence[str | Path], environment: Mapping[str, str], sql: str | None = None) -> str:
    """What `psql` prints, unaligned, without headings. Raises BlspError with its words where anything fails."""
    done = subprocess.run(
        [
            client("psql"),
            "--no-psqlrc",
            "--quiet",
            "--tuples-only",
            "--no-align",
            "-v",
            "ON_ERROR_STOP=1",
            *arguments,
        ],
        env={**os.environ, **environment},
        input=sql,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise BlspError(f"psql, database {environment.get('PGDATABASE')}: {done.stderr.strip()}")
    return done.stdout.strip()


def connection(database: str) -> dict[str, str]:
    """The variables by which PostgreSQL's programs find one of DATABASES, its user's password among them; PGHOST and
    PGPORT are taken as they are. Raises BlspError where the password is not in the environment."""
    variable = DATABASES[database]
    if not (password := os.environ.get(variable)):
        raise BlspError(f"{variable} is not set: the password of PostgreSQL's user {database}; see docs/services.md")
    return {"PGDATABASE": database, "PGUSER": database, "PGPASSWORD": password}
