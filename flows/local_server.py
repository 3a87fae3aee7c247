"""A temporary Prefect server for a flow started by hand, where no other server is configured.

Prefect would start one itself, but only after it has imported the whole server into the flow's process too:
6 s more on a slow machine. A killed flow also leaves that one running; this one ends with whoever started it.
"""

import atexit
import os
import socket
import subprocess
import sys
import time

import httpx
import prefect
from prefect.client.orchestration import get_client
from prefect.context import refresh_global_settings_context
from prefect.settings import get_current_settings

from blsp.errors import BlspError
from flows.stage_process import GUARD


def ensure_server() -> bool:
    """Whether a temporary server was started; either way this process and its children now have a server.

    Its runs are kept where every Prefect server of this user keeps them (~/.prefect). Raises BlspError where
    it does not come up, and where the one that is set does not answer or refuses this user.
    """
    settings = get_current_settings()
    if settings.api.url:
        _refuse_strange(settings.api.url)
        return False
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # As Prefect sets them for its own temporary server: no pages, no schedules.
    modest = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
    server = subprocess.Popen(
        [
            *("/bin/sh", "-c", GUARD, "sh", sys.executable, "-m", "uvicorn"),
            *("--app-dir", str(prefect.__module_path__.parent)),
            *("--factory", "prefect.server.api.server:create_app"),
            *("--host", "127.0.0.1", "--port", str(port), "--log-level", "error"),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env={**os.environ, **modest},
        start_new_session=True,
    )
    atexit.register(_stop, server)
    url = f"http://127.0.0.1:{port}/api"
    limit_s = settings.server.ephemeral.startup_timeout_seconds
    print(f"Starting a temporary Prefect server at {url} ...", file=sys.stderr)
    deadline_s = time.monotonic() + limit_s
    while not _answers(url):
        if server.poll() is not None:
            raise BlspError(f"The temporary Prefect server ended with exit code {server.returncode}.")
        if time.monotonic() > deadline_s:
            raise BlspError(
                f"The temporary Prefect server did not answer within {limit_s} s; raise "
                "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS, or set PREFECT_API_URL to a server."
            )
        time.sleep(0.1)
    os.environ["PREFECT_API_URL"] = url
    refresh_global_settings_context()
    return True


def _refuse_strange(url: str) -> None:
    """Nothing, where the server takes what this process sends it."""
    try:
        with get_client(sync_client=True) as client:
            client.hello().raise_for_status()
    except httpx.HTTPStatusError as error:
        if error.response.status_code not in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise BlspError(f"Prefect's server at {url} fails: {error}") from error
        raise BlspError(
            f"Prefect's server at {url} refuses this user: set PREFECT_API_AUTH_STRING=admin:PASSWORD to what the "
            "server has; client.env of the services' state folder has it"
        ) from error
    except httpx.TransportError as error:
        raise BlspError(
            f"PREFECT_API_URL is {url}, and no Prefect server answers there ({error}); start it "
            "(`prefect server start`), or unset PREFECT_API_URL for a temporary one"
        ) from error


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def _stop(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(timeout=5)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
    assert server.stdin is not None
    server.stdin.close()  # the watcher of its group goes too
