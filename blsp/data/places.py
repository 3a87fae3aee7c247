"""Where a corpus lies: a path of this machine, or s3://bucket/prefix, used alike.

`cloudpathlib` gives S3 pathlib's methods, `boto3` its connection: the endpoint is AWS_ENDPOINT_URL, credentials
come from where boto3 looks for them and never from params.yaml.
"""

import contextlib
import errno
import functools
import os
import posixpath
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from blsp.data.records import Unusable
from blsp.errors import BlspError

if TYPE_CHECKING:
    from cloudpathlib import S3Client, S3Path

Place = Union[Path, "S3Path"]

ATTEMPTS = 8
"""How often a request is made before the run stops; longer and longer pauses lie between.

Made again are those met by throttling (SlowDown), a server's error, a lost connection or a body broken off.
"""


def place(name: str) -> Place:
    """The place that `name` names."""
    if not name.startswith("s3://"):
        return Path(name)
    return _client().CloudPath(name)


def beside(manifest: Place, name: str) -> Place:
    """What a manifest means by `name`: relative to its folder, or absolute, or in S3."""
    if isinstance(manifest, Path) and not name.startswith("s3://"):
        return Path(os.path.normpath(manifest.parent / name))
    if isinstance(manifest, Path) or name.startswith(("s3://", "/")):
        return place(name)
    # A key is no path: S3 itself would look for an object with dots in its name.
    return place(f"s3://{manifest.drive}{posixpath.normpath(posixpath.join('/', manifest.parent.key, name))}")


def check_file(path: Place) -> None:
    """Nothing. Raises OSError for a pipe or a device of this machine, which would give its contents once or never."""
    if isinstance(path, Path) and path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(errno.EINVAL, "no regular file, and it is read several times; save it as one")


def check_inside(root: Place, found: Place, name: str) -> None:
    """Nothing. Raises Unusable (bad_path) where `found`, which a row calls `name`, does not lie in or below `root`.

    A manifest may come from anybody: it is not to fetch what else this machine, or a bucket, holds. Links are not
    followed: those in the folder are of its owner's making.
    """
    if not _absolute(found).startswith(_absolute(root).rstrip("/") + "/"):
        shown = name if len(name) <= 200 else f"{name[:200]}..."
        raise Unusable("bad_path", f"{shown!r} does not lie in {root}; name a folder that holds it as the audio_root")


def _absolute(path: Place) -> str:
    return os.path.abspath(path) if isinstance(path, Path) else str(path)


@functools.lru_cache(maxsize=1)  # the segments of a long file follow one another
def content(path: "S3Path") -> bytes:
    """The object's bytes, whole: as many as the server announced, with the checksum it has for them.

    Raises Unusable (missing_file), and BlspError where S3 does not give it after ATTEMPTS.
    """
    with explained(path):
        return _content(path)


def _content(path: "S3Path") -> bytes:
    from botocore.exceptions import (
        ClientError,
        FlexibleChecksumError,
        IncompleteReadError,
        ReadTimeoutError,
        ResponseStreamingError,
    )

    broken_off = (FlexibleChecksumError, IncompleteReadError, ReadTimeoutError, ResponseStreamingError)
    attempt = 1
    while True:
        try:
            answer = s3().get_object(Bucket=path.bucket, Key=path.key)
            body: bytes = answer["Body"].read()
            return body
        except broken_off:  # boto3 makes a request again, but not for a body broken off
            if attempt == ATTEMPTS:
                raise
            time.sleep(min(0.05 * 2**attempt, 5))
            attempt += 1
        except ClientError as error:
            if error.response["Error"]["Code"] == "NoSuchKey":
                raise Unusable("missing_file", f"{path}: no such object") from error
            raise


def s3() -> Any:
    """boto3's client: makes each request ATTEMPTS times."""
    return _client().client


@contextlib.contextmanager
def explained(where: Any, verb: str = "give") -> Iterator[None]:
    """A block in which what S3 refuses, or fails to give (or take) after ATTEMPTS, is a BlspError."""
    try:
        yield
    except Exception as error:
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        if not isinstance(error, Boto3Error | BotoCoreError | ClientError):
            raise
        raise BlspError(
            f"{where}: S3 does not {verb} it ({error}); check the bucket, AWS_ENDPOINT_URL and the credentials in the "
            "environment, or run again when the server answers"
        ) from error


@functools.cache
def _client() -> "S3Client":
    import botocore.session
    from botocore.config import Config
    from cloudpathlib import S3Client

    session = botocore.session.get_session()
    session.set_default_client_config(Config(retries={"mode": "standard", "total_max_attempts": ATTEMPTS}))
    # Manifests are copied here while they are open: no copy outlives its reading.
    return S3Client(botocore_session=session, file_cache_mode="close_file")
