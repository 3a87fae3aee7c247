"""A backup brought back: into empty databases and an empty bucket, or, when told so, over what is there."""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from blsp.errors import BlspError
from blsp.files import read_json, sha256_of
from infra import postgresql
from infra.backup import AT_ONCE, MANIFEST, list_objects
from infra.provision import make_bucket, variable

TABLES = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
OTHERS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
EMPTIED = "DROP SCHEMA public CASCADE; CREATE SCHEMA public"
# Of places on GPUs that runs had while the backup was made, nothing else would ever be heard.
FREED = """DO $$ BEGIN IF to_regclass('concurrency_limit_v2') IS NOT NULL THEN
UPDATE concurrency_limit_v2 SET active_slots = 0; END IF; END $$"""


def restore(folder: Path, overwrite: bool = False) -> None:
    """Nothing; databases and bucket hold what the backup in `folder` holds, and nothing else.

    Raises BlspError before anything is changed where the backup is not whole, a database is in use, or there is
    something in the target and `overwrite` was not said; later, where PostgreSQL or the store refuses.
    """
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    manifest = _checked(folder)
    client, bucket = boto3.client("s3"), variable("BLSP_BUCKET")
    try:
        make_bucket()
        there = {row["key"] for row in list_objects(client, bucket)}
        _refuse_databases(manifest["databases"], overwrite)
        if there and not overwrite:
            raise BlspError(f"bucket {bucket} holds {len(there)} objects; --overwrite replaces them by the backup's")
        # Objects first: no database then names what is not there.
        _upload(client, bucket, folder / "objects", manifest["objects"])
        for key in there - {row["key"] for row in manifest["objects"]}:
            client.delete_object(Bucket=bucket, Key=key)
    except (BotoCoreError, ClientError) as error:
        raise BlspError(f"bucket {bucket}: {error}") from error
    for database, dump in manifest["databases"].items():
        _load(database, folder / dump["file"])
    _set_admin_password(variable("MLFLOW_ADMIN_PASSWORD"))
    postgresql.psql(["-c", FREED], postgresql.connection("prefect"))


def _checked(folder: Path) -> dict[str, Any]:
    """The manifest, once every file it names has the content it says."""
    if not (folder / MANIFEST).is_file():
        raise BlspError(f"{folder}: no whole backup is here ({MANIFEST} is missing); name one of its folders")
    manifest: dict[str, Any] = read_json(folder / MANIFEST)
    wanted = {folder / dump["file"]: dump["sha256"] for dump in manifest["databases"].values()}
    wanted |= {folder / "objects" / row["sha256"]: row["sha256"] for row in manifest["objects"]}
    damaged = [str(file) for file, sha256 in wanted.items() if not file.is_file() or sha256_of(file) != sha256]
    if damaged:
        shown = ", ".join(damaged[:5])
        raise BlspError(
            f"{folder} is damaged, and nothing was restored: missing or altered is {shown} ({len(damaged)})"
        )
    if unknown := set(manifest["databases"]) ^ set(postgresql.DATABASES):
        raise BlspError(f"{folder}: backup and this version differ in the databases {', '.join(sorted(unknown))}")
    return manifest


def _refuse_databases(names: Sequence[str], overwrite: bool) -> None:
    for name in names:
        connection = postgresql.connection(name)
        if (others := int(postgresql.psql(["-c", OTHERS], connection))) > 0:
            raise BlspError(
                f"database {name} is in use by {others} connections: stop MLflow, Prefect and workers first"
            )
        if (tables := int(postgresql.psql(["-c", TABLES], connection))) > 0 and not overwrite:
            raise BlspError(f"database {name} holds {tables} tables; --overwrite replaces them by the backup's")


def _upload(client: Any, bucket: str, folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    def upload(row: dict[str, Any]) -> None:
        client.upload_file(str(folder / row["sha256"]), bucket, row["key"])

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for _ in pool.map(upload, rows):
            pass
    sizes = {row["key"]: row["size"] for row in list_objects(client, bucket)}
    if wrong := [row["key"] for row in rows if sizes.get(row["key"]) != row["size"]]:
        raise BlspError(f"bucket {bucket}: {len(wrong)} objects did not arrive whole, among them {wrong[0]}")


def _load(database: str, dump: Path) -> None:
    """Nothing; the database holds what the dump holds, in one transaction: all of it or what it held before."""
    connection = postgresql.connection(database)
    with tempfile.TemporaryDirectory(prefix="blsp-restore-") as folder:
        script = Path(folder) / "script.sql"
        # By way of a file: a pipe that broke would end the transaction halfway, as if that were all.
        done = subprocess.run(
            [postgresql.client("pg_restore"), "--no-owner", "--no-privileges", "--file", script, dump],
            env={**os.environ, **connection},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise BlspError(f"pg_restore, {dump}: {done.stderr.strip()}")
        postgresql.psql(["--single-transaction", "-c", EMPTIED, "-f", script], connection)


def _set_admin_password(password: str) -> None:
    """Nothing; MLflow's `admin` has this password. MLflow takes it from the environment only where it has no admin yet:
    with secrets other than the backup's, nobody could get in, nor give others new passwords."""
    from werkzeug.security import generate_password_hash

    statement = "\\getenv hashed HASHED\nUPDATE users SET password_hash = :'hashed' WHERE username = 'admin';"
    postgresql.psql([], {**postgresql.connection("mlflow_auth"), "HASHED": generate_password_hash(password)}, statement)


def main(arguments: Sequence[str] | None = None) -> int:
    """0 where all is back, 1 where not."""
    parser = argparse.ArgumentParser(
        prog="python -m infra.restore",
        description=(
            "Bring a backup back into the databases mlflow, mlflow_auth and prefect at PGHOST and PGPORT, and into the "
            "bucket BLSP_BUCKET. PostgreSQL and the S3 store must run, MLflow, Prefect and workers must not. Every "
            "file is checked before anything is changed. Secrets come from the environment, as for the backup, with "
            "MLFLOW_ADMIN_PASSWORD beside them. They need not be the backup's: `admin` gets that password, `pipeline` "
            "gets its own from infra.provision; MLflow's other users have the passwords that they had."
        ),
    )
    parser.add_argument("folder", type=Path, metavar="BACKUP", help="a folder that `python -m infra.backup` made")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there; what is newer is lost")
    options = parser.parse_args(arguments)
    try:
        restore(options.folder, options.overwrite)
    except (BlspError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"restored from {options.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
