"""Where finished files lie until a stage has them all: a folder that its workers share, or a prefix in S3.

A file takes its name whole, or not at all. Its size and SHA-256 are known, so that what was cut or altered since is
found out. (S3's own endpoint, credentials and attempts are those of `blsp/data/places.py`.)
"""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from blsp import files
from blsp.data import places
from blsp.errors import BlspError

if TYPE_CHECKING:
    from blsp.params import Execution

KEPT_S = 30 * 24 * 3600.0
"""Seconds after which what nobody wanted to keep is forgotten."""

PART_BYTES = 64 * 2**20
"""Bytes of a part in S3, which are sent again alone where a connection breaks; a file of fewer is one request."""


@dataclass(frozen=True)
class Contents:
    """What a file held when it was stored."""

    size_bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> Self:
        """Those of a file here."""
        return cls(path.stat().st_size, files.sha256_of(path))


class NotWhole(BlspError):
    """What has a name here is not what was stored under it, or there is nothing."""


@dataclass(frozen=True)
class FolderStaging:
    """Files below a folder. It must be the same one for all who store there."""

    folder: Path

    def at(self, *names: str) -> "FolderStaging":
        """The part of it below these names."""
        return FolderStaging(self.folder.joinpath(*names))

    @contextlib.contextmanager
    def workspace(self) -> Iterator[Path]:
        """A folder of one's own to write in what will be stored; it is gone after the block."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".work.", dir=self.folder) as folder:
            yield Path(folder)

    def store(self, path: Path, name: str) -> Contents:
        """What the file at `path`, of a workspace, holds, which has moved to `name` whole."""
        contents = Contents.of(path)
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, self.folder / name)
        return contents

    def contents(self, name: str) -> Contents | None:
        """What `name` holds; None where there is no such file."""
        try:
            return Contents.of(self.folder / name)
        except FileNotFoundError:
            return None

    def fetch(self, name: str, path: Path) -> Contents:
        """What `name` holds, which is then at `path` too. Raises NotWhole where there is no such file."""
        try:
            os.link(self.folder / name, path)
        except FileNotFoundError:
            raise NotWhole(f"{self.folder / name}: no such file") from None
        except OSError:  # on another disk, or on one without links
            shutil.copyfile(self.folder / name, path)
        return Contents.of(path)

    def remove(self, name: str) -> None:
        """Nothing; `name` is gone, or never was."""
        (self.folder / name).unlink(missing_ok=True)

    def keep(self, name: str) -> None:
        """Nothing; `name`, which was used just now, is not forgotten for KEPT_S."""
        os.utime(self.folder / name)

    def forget(self) -> None:
        """Nothing; files that nobody used for KEPT_S are gone, and what workers killed so long ago left."""
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if path.stat().st_mtime < time.time() - KEPT_S:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Nothing; all that is here is gone, and what killed workers left."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def __str__(self) -> str:
        return str(self.folder)


@dataclass(frozen=True)
class S3Staging:
    """Objects below s3://bucket/prefix, each with its SHA-256 in its metadata."""

    prefix: str

    def at(self, *names: str) -> "S3Staging":
        """The part of it below these names."""
        return S3Staging("/".join((self.prefix, *names)))

    @contextlib.contextmanager
    def workspace(self) -> Iterator[Path]:
        """A folder of one's own to write in what will be stored; it is gone after the block."""
        with tempfile.TemporaryDirectory(prefix="blsp.") as folder:
            yield Path(folder)

    def store(self, path: Path, name: str) -> Contents:
        """What the file at `path` holds, which is at `name` too; S3 has checked what arrived part by part.

        Raises BlspError where S3 does not take it.
        """
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        contents = Contents.of(path)
        about = {"ChecksumAlgorithm": "SHA256", "Metadata": {"sha256": contents.sha256}}
        with places.explained(f"{self.prefix}/{name}", "take"):
            try:
                places.s3().upload_file(str(path), *self._key(name), ExtraArgs=about, Config=_transfer())
            except (Boto3Error, BotoCoreError, ClientError):
                # The answer to the last request may have been lost: made again, it finds no upload to complete.
                if self._head(name) != contents:
                    raise
        return contents

    def contents(self, name: str) -> Contents | None:
        """What `name` holds, as S3 says; None where there is no such object, or one that was not stored here."""
        with places.explained(f"{self.prefix}/{name}"):
            return self._head(name)

    def fetch(self, name: str, path: Path) -> Contents:
        """What `name` holds, which is then at `path` too, read and checked.

        Raises NotWhole where there is no such object, or it is not what was stored.
        """
        wanted = self.contents(name)
        if wanted is None:
            raise NotWhole(f"{self.prefix}/{name}: no such object")
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            with places.explained(f"{self.prefix}/{name}"):
                places.s3().download_file(*self._key(name), str(temporary), Config=_transfer())
            if (found := Contents.of(temporary)) != wanted:
                raise NotWhole(f"{self.prefix}/{name}: stored were {wanted}, but it holds {found}")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        return found

    def remove(self, name: str) -> None:
        """Nothing; `name` is gone, or never was."""
        bucket, key = self._key(name)
        with places.explained(f"{self.prefix}/{name}"):
            places.s3().delete_object(Bucket=bucket, Key=key)

    def keep(self, name: str) -> None:
        """Nothing: in S3, a bucket's lifecycle rules say how long objects are kept."""

    def forget(self) -> None:
        """Nothing: see `keep`."""

    def clear(self) -> None:
        """Nothing; all that is here is gone, and the parts of objects that killed workers left unfinished."""
        bucket, prefix = self._key("")
        with places.explained(self.prefix):
            for page in places.s3().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
                if gone := [{"Key": found["Key"]} for found in page.get("Contents", [])]:
                    places.s3().delete_objects(Bucket=bucket, Delete={"Objects": gone, "Quiet": True})
            for page in places.s3().get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=prefix):
                for begun in page.get("Uploads", []):
                    places.s3().abort_multipart_upload(Bucket=bucket, Key=begun["Key"], UploadId=begun["UploadId"])

    def _head(self, name: str) -> Contents | None:
        from botocore.exceptions import ClientError

        bucket, key = self._key(name)
        try:
            found = places.s3().head_object(Bucket=bucket, Key=key)
        except ClientError as error:
            if error.response["Error"]["Code"] == "404":
                return None
            raise
        return Contents(found["ContentLength"], found["Metadata"].get("sha256", ""))

    def _key(self, name: str) -> tuple[str, str]:
        """Bucket and key."""
        bucket, _, prefix = self.prefix.removeprefix("s3://").partition("/")
        return bucket, f"{prefix}/{name}"

    def __str__(self) -> str:
        return self.prefix


Staging = FolderStaging | S3Staging


def staging_of(execution: "Execution") -> Staging:
    """Where `execution.staging` says, or in the scratch folder of this machine."""
    return S3Staging(execution.staging) if execution.staging else FolderStaging(files.scratch_folder().resolve())


def _transfer() -> Any:
    from boto3.s3.transfer import TransferConfig

    return TransferConfig(
        multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, num_download_attempts=places.ATTEMPTS
    )
