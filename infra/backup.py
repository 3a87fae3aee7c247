"""A backup of everything the services hold: dumps of PostgreSQL's databases, the bucket's objects, and a manifest.

Each backup is one whole folder; objects that did not change are hard links into the one before, so a daily backup costs
what is new, and an old one is removed with `rm -r`.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from blsp.errors import BlspError
from blsp.files import read_json, replace_dir, sha256_of, write_json
from infra import postgresql
from infra.provision import variable

MANIFEST = "manifest.json"
AT_ONCE = 8  # objects
CHUNK_BYTES = 1 << 20


def backup(place: Path) -> Path:
    """The new folder in `place`, named after the time in UTC; it has its name once it is whole.

    Raises BlspError where a database or the store cannot be read.
    """
    bucket = variable("BLSP_BUCKET")
    before = latest(place)
    folder = place / _name_of_now()
    if folder.exists():
        raise BlspError(f"{folder} is there already")
    with replace_dir(folder) as unfinished:
        unfinished.chmod(0o700)  # the databases hold hashes of passwords
        (unfinished / "objects").mkdir()
        # Databases first: whatever they name in the bucket is there by now, and is copied after them.
        databases = {name: _dump(name, unfinished) for name in postgresql.DATABASES}
        objects = _copy(bucket, unfinished / "objects", before)
        manifest = {"made": folder.name, "bucket": bucket, "databases": databases, "objects": objects}
        write_json(unfinished / MANIFEST, manifest)
    return folder


def _name_of_now() -> str:
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())


def latest(place: Path) -> Path | None:
    """The newest whole backup in `place`."""
    return max((path.parent for path in place.glob(f"[0-9]*/{MANIFEST}")), default=None)


def _dump(database: str, folder: Path) -> dict[str, str]:
    """Where the dump of one database lies, and its SHA-256."""
    file = folder / f"{database}.dump"
    # Owners and grants are of the place: databases.sql makes them.
    done = subprocess.run(
        [postgresql.client("pg_dump"), "--format=custom", "--no-owner", "--no-privileges", "--file", file],
        env={**os.environ, **postgresql.connection(database)},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise BlspError(f"pg_dump, database {database}: {done.stderr.strip()}")
    return {"file": file.name, "sha256": sha256_of(file)}


def _copy(bucket: str, folder: Path, before: Path | None) -> list[dict[str, Any]]:
    """Each object's key, size, ETag, time and SHA-256; its content is the file of that name in `folder`."""
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    client = boto3.client("s3")
    known = {}
    if before is not None:
        known = {(row["key"], row["etag"], row["size"], row["modified"]): row for row in _rows(before)}

    def fetch(row: dict[str, Any]) -> dict[str, Any] | None:
        same = known.get((row["key"], row["etag"], row["size"], row["modified"]))
        if same and before and _link(before / "objects" / same["sha256"], folder / same["sha256"]):
            return same
        try:
            return {**row, "sha256": _download(client, bucket, row, folder)}
        except client.exceptions.NoSuchKey:
            return None  # removed since it was listed

    try:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            rows = pool.map(fetch, list_objects(client, bucket))
            return [row for row in rows if row is not None]
    except (BotoCoreError, ClientError) as error:
        raise BlspError(f"bucket {bucket}: {error}") from error


def list_objects(client: Any, bucket: str) -> Iterator[dict[str, Any]]:
    """Key, size in bytes, ETag and time of each object."""
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for found in page.get("Contents", []):
            modified = found["LastModified"].isoformat()
            yield {"key": found["Key"], "size": found["Size"], "etag": found["ETag"].strip('"'), "modified": modified}


def _download(client: Any, bucket: str, row: dict[str, Any], folder: Path) -> str:
    """The SHA-256 under which the object's content now lies in `folder`. Raises BlspError where it is cut."""
    digest, size = hashlib.sha256(), 0
    answer = client.get_object(Bucket=bucket, Key=row["key"])
    temporary = folder / f".{hashlib.sha256(row['key'].encode()).hexdigest()}.tmp"
    with temporary.open("wb") as stream:
        for chunk in answer["Body"].iter_chunks(CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
            stream.write(chunk)
    if size != answer["ContentLength"]:
        raise BlspError(f"bucket {bucket}, {row['key']}: {size} bytes came of {answer['ContentLength']}")
    # An object may have been written anew since it was listed.
    row.update(size=size, etag=answer["ETag"].strip('"'), modified=answer["LastModified"].isoformat())
    os.replace(temporary, folder / digest.hexdigest())
    return digest.hexdigest()


def _link(old: Path, new: Path) -> bool:
    """Whether `new` is there now with the content of `old`, which must still be what its name says."""
    if new.exists():
        return True
    if not old.is_file() or sha256_of(old) != old.name:
        return False
    try:
        os.link(old, new)
    except FileExistsError:  # the same content under another key
        pass
    except OSError:  # a file system without links
        shutil.copyfile(old, new)
    return True


def _rows(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = read_json(folder / MANIFEST)["objects"]
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """0 where a whole backup was made, 1 where not."""
    parser = argparse.ArgumentParser(
        prog="python -m infra.backup",
        description=(
            "Save the databases mlflow, mlflow_auth and prefect at PGHOST and PGPORT, and the bucket BLSP_BUCKET, into "
            "a new folder of PLACE. The services may run meanwhile. Secrets come from the environment, under the names "
            "of infra/.env.example. `python -m infra.restore` brings it back."
        ),
    )
    parser.add_argument("place", type=Path, metavar="PLACE", help="folder of backups, best on another machine's disk")
    options = parser.parse_args(arguments)
    try:
        folder = backup(options.place)
    except (BlspError, OSError) as error:
        print(f"no backup was made: {error}", file=sys.stderr)
        return 1
    rows = _rows(folder)
    size_gib = sum(row["size"] for row in rows) / 2**30
    print(f"{folder}: {len(postgresql.DATABASES)} databases, {len(rows)} objects, {size_gib:.2f} GiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
