"""A real S3 server in a process of its own, behind a proxy that throttles and breaks off; fixtures of conftest.py."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from blsp.data import places
from tests.faults import Handler, Proxy

BUCKET = "speech"


def slow_down(handler: Handler) -> bool:
    """S3 throttles."""
    handler.answer(503, _error("SlowDown", "Please reduce your request rate."), Content_Type="application/xml")
    return True


def internal_error(handler: Handler) -> bool:
    """S3 fails."""
    handler.answer(500, _error("InternalError", "We encountered an internal error."), Content_Type="application/xml")
    return True


def denied(handler: Handler) -> bool:
    """S3 refuses."""
    handler.answer(403, _error("AccessDenied", "Access Denied."), Content_Type="application/xml")
    return True


def _error(code: str, message: str) -> bytes:
    return f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'.encode()


def of_object(method: str, path: str) -> bool:
    """Whether a request is about an object, not about a bucket."""
    return path.partition("?")[0].strip("/").count("/") > 0


def reads_object(method: str, path: str) -> bool:
    return method == "GET" and of_object(method, path)


def environment(proxy: Proxy) -> dict[str, str]:
    """What a process needs to reach the server."""
    return {
        "AWS_ENDPOINT_URL": proxy.url,
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "secret",  # pragma: allowlist secret
        "AWS_DEFAULT_REGION": "us-east-1",
        "NO_PROXY": "127.0.0.1",
    }


@pytest.fixture(scope="session")
def s3_proxy() -> Iterator[Proxy]:
    """The proxy before a server with one bucket."""
    import boto3

    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listening:
        port = listening.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    proxy = Proxy(f"127.0.0.1:{port}", reads_object)
    try:
        for _ in range(1200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            assert server.poll() is None, "the S3 server did not start"
            time.sleep(0.1)
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment(proxy).items():
                patch.setenv(name, value)
            boto3.client("s3").create_bucket(Bucket=BUCKET)
        yield proxy
    finally:
        proxy.close()
        server.terminate()
        server.wait(10)


@pytest.fixture
def s3(s3_proxy: Proxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """The S3 client of a fresh process, with the empty bucket, and the proxy as its attribute."""
    import boto3

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in environment(s3_proxy).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0)
    (tmp_path / "tmp").mkdir()
    places._client.cache_clear()
    places.content.cache_clear()
    client: Any = boto3.client("s3")
    client.proxy, s3_proxy.aim = s3_proxy, reads_object
    s3_proxy.log.clear()
    yield client
    s3_proxy.faults.clear()
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
        for found in page.get("Contents", []):
            client.delete_object(Bucket=BUCKET, Key=found["Key"])
    places._client.cache_clear()


def keys(client: Any) -> list[str]:
    """Those of all objects."""
    return [found["Key"] for found in client.list_objects_v2(Bucket=BUCKET).get("Contents", [])]


def upload(client: Any, folder: Path, prefix: str) -> None:
    """Nothing; the folder's files are objects below the prefix."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            client.upload_file(str(path), BUCKET, f"{prefix}/{path.relative_to(folder)}")
    client.proxy.log.clear()


def left_over() -> list[Path]:
    """What lies in TMPDIR."""
    return [path for path in Path(os.environ["TMPDIR"]).rglob("*") if path.is_file()]
