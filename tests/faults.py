"""A proxy before a server, on which things go wrong as told: real sockets, real statuses, real broken bodies."""

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# A fault handles one request and says whether it is done with; else the request goes through.
Fault = Callable[["Handler"], bool]


class Proxy:
    """Passes requests on to `upstream` (host:port); each fault meets one request of those that `aim` picks."""

    def __init__(self, upstream: str, aim: Callable[[str, str], bool] = lambda method, path: True) -> None:
        self.upstream = upstream
        self.aim = aim
        self.faults: list[Fault] = []
        self.key: str | None = None
        self.seen: list[float] = []  # when each request came
        self.log: list[tuple[str, str]] = []  # method and fault of each request aimed at, "" where it went through
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("OfThis", (Handler,), {"proxy": self}))
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    proxy: Proxy

    def handle_request(self) -> None:
        proxy, self.content = self.proxy, None
        with proxy.lock:
            proxy.seen.append(time.monotonic())
            aimed = proxy.aim(self.command, self.path)
            fault = proxy.faults.pop(0) if aimed and proxy.faults else None
            if aimed:
                proxy.log.append((self.command, fault.__name__ if fault else ""))
            proxy.at_once += 1
            proxy.most_at_once = max(proxy.most_at_once, proxy.at_once)
        try:
            if proxy.key and self.headers["Authorization"] != f"Bearer {proxy.key}":
                self.answer(401, b'{"error": {"message": "Incorrect API key provided"}}')
            elif not (fault and fault(self)):
                status, body, headers = self.passed_on()
                self.answer(status, body, **headers)
        except OSError:  # client or server has gone
            self.close_connection = True
        finally:
            with proxy.lock:
                proxy.at_once -= 1

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_request

    def body(self) -> bytes:
        """The request's."""
        if self.content is None:
            self.content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return self.content

    def passed_on(self) -> tuple[int, bytes, dict[str, str]]:
        """Status, body and headers of the server's own answer."""
        connection = http.client.HTTPConnection(self.proxy.upstream, timeout=120)
        with contextlib.closing(connection):
            connection.request(self.command, self.path, self.body(), dict(self.headers))
            answer = connection.getresponse()
            return answer.status, answer.read(), dict(answer.getheaders())

    def answer(self, status: int, body: bytes, announced: int | None = None, **headers: str) -> None:
        """The body is `announced` as that long, and the connection closed where it is not."""
        self.body()  # or the next request would begin in it
        self.send_response_only(status)
        if self.command != "HEAD":
            headers = {name: value for name, value in headers.items() if name.lower() != "content-length"}
            headers["Content-Length"] = str(len(body) if announced is None else announced)
        for name, value in headers.items():
            if name.lower() not in ("connection", "transfer-encoding", "keep-alive"):
                self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.close_connection |= announced is not None

    def reset(self) -> None:
        """The connection is no more."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.connection.close()
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


def passed(handler: Handler) -> bool:
    """No fault: the request goes through."""
    return False


def status(code: int, body: bytes = b'{"error": "as injected"}', **headers: str) -> Fault:
    """An answer of this status, with these headers."""

    def fault(handler: Handler) -> bool:
        handler.answer(code, body, **headers)
        return True

    return fault


def body(content: object) -> Fault:
    """This instead of the server's answer."""
    return status(200, json.dumps(content).encode())


def dropped(handler: Handler) -> bool:
    """The connection is reset before any answer, and the server has heard nothing."""
    handler.body()
    handler.reset()
    return True


def dropped_midway(handler: Handler) -> bool:
    """The connection is reset when half of the request's body has come."""
    handler.rfile.read(int(handler.headers.get("Content-Length") or 0) // 2)
    handler.reset()
    return True


def unanswered(handler: Handler) -> bool:
    """The server does as it is told; its answer is lost with the connection."""
    handler.passed_on()
    handler.reset()
    return True


def truncated(handler: Handler) -> bool:
    """Half of the body that the headers promise, then the end."""
    status, body, headers = handler.passed_on()
    handler.answer(status, body[: len(body) // 2], announced=len(body), **headers)
    return True


def truncated_unseen(handler: Handler) -> bool:
    """Half of the body, as if it were whole."""
    status, body, headers = handler.passed_on()
    handler.answer(status, body[: len(body) // 2], **headers)
    return True


def slow(seconds: float) -> Fault:
    """An answer after so long."""

    def fault(handler: Handler) -> bool:
        time.sleep(seconds)
        return False

    return fault
