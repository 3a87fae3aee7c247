"""Requests to an OpenAI-compatible server, so many at a time.

What is transient is tried again, anything else is one clear message.
"""

import asyncio
import os
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from itertools import islice
from typing import Any, TypeVar

import httpx

from blsp.errors import BlspError

KEY_VARIABLE = "OPENAI_API_KEY"
TRANSIENT_STATUSES = (429, 500, 502, 503, 504)
CONNECT_TIMEOUT_S = 20.0
ATTEMPTS = 10
FIRST_PAUSE_S = 0.5  # doubled with each attempt
LONGEST_PAUSE_S = 30.0
LONGEST_RETRY_AFTER_S = 600.0


_Request = TypeVar("_Request")
_Answer = TypeVar("_Answer")


class _TransientError(Exception):
    """What may go well next time; the server may say when."""

    def __init__(self, what: str, retry_after_s: float = 0.0) -> None:
        super().__init__(what)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class Server:
    """Where a model is served, and how it is asked: `url` ends in /v1, `model` is the model's name there.

    `settings` are the names of url, model and timeout_s in params.yaml, for messages.
    """

    url: str
    model: str
    requests_at_once: int
    timeout_s: float
    settings: tuple[str, str, str]


def ask_each(
    server: Server, requests: Iterable[_Request], ask: Callable[[httpx.AsyncClient, _Request], Awaitable[_Answer]]
) -> Iterator[tuple[int, _Answer]]:
    """The number of each request with what `ask` makes of it, as they come; at most `requests_at_once` are under way.

    Raises what `ask` raises; the others are let go, also where the caller stops.
    """
    with asyncio.Runner() as runner:
        answers = _answers(server, requests, ask)

        async def coming() -> tuple[int, _Answer] | None:
            return await anext(answers, None)

        try:
            while (answer := runner.run(coming())) is not None:
                yield answer
        finally:
            runner.run(answers.aclose())


async def _answers(
    server: Server, requests: Iterable[_Request], ask: Callable[[httpx.AsyncClient, _Request], Awaitable[_Answer]]
) -> AsyncGenerator[tuple[int, _Answer], None]:
    waiting = iter(enumerate(requests))
    asked: set[asyncio.Task[tuple[int, _Answer]]] = set()
    async with new_client(server) as client:

        async def numbered(row: int, request: _Request) -> tuple[int, _Answer]:
            return row, await ask(client, request)

        try:
            while True:
                free = server.requests_at_once - len(asked)
                asked |= {asyncio.create_task(numbered(row, request)) for row, request in islice(waiting, free)}
                if not asked:
                    return
                done, asked = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    yield task.result()
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)


def new_client(server: Server) -> httpx.AsyncClient:
    """A client of the server; its key is that of the environment."""
    key = os.environ.get(KEY_VARIABLE)
    return httpx.AsyncClient(
        base_url=server.url,
        headers={"Authorization": f"Bearer {key}"} if key else {},
        limits=httpx.Limits(max_connections=server.requests_at_once),
        timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT_S),  # `post` limits each request as a whole
    )


async def post(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], server: Server, is_first: bool = False
) -> dict[str, Any]:
    """What the server answers to `body`, asked for its model. Statuses 429, 500, 502, 503 and 504, lost connections,
    answers that are cut off, and whatever takes longer than its `timeout_s` are tried again, with pauses that grow, and
    no shorter than the server asks.

    Raises BlspError where the server refuses, after ATTEMPTS attempts, or where it cannot be reached for the first
    time.
    """
    for attempt in range(ATTEMPTS):
        try:
            return await _attempt(client, path, {"model": server.model, **body}, server, is_first)
        except _TransientError as error:
            fault, least_s = str(error), error.retry_after_s
        if least_s > LONGEST_RETRY_AFTER_S:
            raise BlspError(f"{_address(client, path)}: {fault}; it wants to be left alone for {least_s:.0f} s")
        if attempt + 1 < ATTEMPTS:
            # Rows that failed together do not come back together.
            await asyncio.sleep(least_s + random.uniform(0, min(FIRST_PAUSE_S * 2**attempt, LONGEST_PAUSE_S)))
    raise BlspError(f"{_address(client, path)}: {fault}, {ATTEMPTS} times; run again when the server is well")


async def _attempt(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], server: Server, is_first: bool
) -> dict[str, Any]:
    url_setting, _, timeout_setting = server.settings
    try:
        async with asyncio.timeout(server.timeout_s):
            response = await client.post(path, json=body)
    except TimeoutError:
        raise _TransientError(f"no answer within {server.timeout_s:g} s ({timeout_setting})") from None
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        what = str(error) or f"no connection within {CONNECT_TIMEOUT_S:g} s"
        if is_first:
            raise BlspError(f"no server at {_address(client)}: {what}; start it, or set {url_setting}") from error
        raise _TransientError(f"no connection: {what}") from error
    except (httpx.NetworkError, httpx.RemoteProtocolError) as error:
        raise _TransientError(f"the connection broke: {error}") from error
    if response.status_code in TRANSIENT_STATUSES:
        raise _TransientError(f"status {response.status_code}: {_detail(response)}", _retry_after_s(response))
    if response.status_code != 200:
        raise BlspError(_refusal(client, path, response, server))
    try:
        answer = response.json()
    except ValueError:  # a proxy may end a broken answer as if it were whole
        raise _TransientError(f"the answer is no JSON: {response.text[-80:]!r}") from None
    assert isinstance(answer, dict)
    return answer


def _refusal(client: httpx.AsyncClient, path: str, response: httpx.Response, server: Server) -> str:
    status = response.status_code
    start = f"{_address(client, path)}: status {status}: {_detail(response)}"
    if status in (401, 403):
        state = "is not the one it wants" if os.environ.get(KEY_VARIABLE) else "is not set"
        return f"{start}; the environment variable {KEY_VARIABLE} {state}"
    url_setting, model_setting, _ = server.settings
    return f"{start}; asked for the model {server.model!r} ({model_setting}, {url_setting})"


def _address(client: httpx.AsyncClient, path: str = "") -> str:
    return f"{str(client.base_url).rstrip('/')}/{path}".rstrip("/")


def _detail(response: httpx.Response) -> str:
    """What the server says of its refusal: each has its own form."""
    try:
        said = response.json()
    except ValueError:
        said = response.text or response.reason_phrase
    for key in ("error", "detail", "message"):
        if isinstance(said, dict) and key in said:
            said = said[key]
    return str(said)[:300]


def _retry_after_s(response: httpx.Response) -> float:
    """How long the server asks to be left alone: Retry-After is seconds or a date (RFC 9110, 10.2.3)."""
    value = response.headers.get("Retry-After", "")
    try:
        return max(float(value), 0.0)
    except ValueError:
        pass
    try:
        return max(parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except ValueError:
        return 0.0
