"""A proxy before a server, on which things go wrong as told: real sockets, real statuses, real broken bodies."""

import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# A fault handles one request and says whether it is done with; else the request goes through.
Fault = Callable[[BaseHTTPRequestHandler], bool]


class Proxy:
    """Passes requests on to `upstream` (http://host:port), but for the faults, which meet one request each."""

    def __init__(self, upstream: str) -> None:
        proxy = self
        self.faults: list[Fault] = []
        self.key: str | None = None
        self.seen: list[float] = []  # when each request came
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                with proxy.lock:
                    proxy.seen.append(time.monotonic())
                    fault = proxy.faults.pop(0) if proxy.faults else None
                    proxy.at_once += 1
                    proxy.most_at_once = max(proxy.most_at_once, proxy.at_once)
                try:
                    self.body = self.rfile.read(int(self.headers["Content-Length"]))
                    if proxy.key and self.headers["Authorization"] != f"Bearer {proxy.key}":
                        answer(self, 401, b'{"error": {"message": "Incorrect API key provided"}}')
                    elif not (fault and fault(self)):
                        answer(self, *forward(upstream + self.path, self.body))
                except OSError:  # client or server has gone
                    self.close_connection = True
                finally:
                    with proxy.lock:
                        proxy.at_once -= 1

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def forward(url: str, body: bytes) -> tuple[int, bytes]:
    """Status and body of the server's own answer."""
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def answer(handler: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def status(code: int, **headers: str) -> Fault:
    """An answer of this status, with these headers."""

    def fault(handler: BaseHTTPRequestHandler) -> bool:
        answer(handler, code, b'{"error": "as injected"}', **headers)
        return True

    return fault


def body(content: object) -> Fault:
    """This instead of the server's answer."""

    def fault(handler: BaseHTTPRequestHandler) -> bool:
        answer(handler, 200, json.dumps(content).encode())
        return True

    return fault


def dropped(handler: BaseHTTPRequestHandler) -> bool:
    """The connection is reset before any answer."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    handler.connection.close()
    handler.close_connection = True
    return True


def truncated(handler: BaseHTTPRequestHandler) -> bool:
    """Half of the body that the headers promise, then the end."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [{"text": "half an ans')
    handler.close_connection = True
    return True


def truncated_unseen(handler: BaseHTTPRequestHandler) -> bool:
    """Half of the body, as if it were whole."""
    answer(handler, 200, b'{"choices": [{"text": "half an ans')
    return True


def slow(seconds: float) -> Fault:
    """An answer after so long."""

    def fault(handler: BaseHTTPRequestHandler) -> bool:
        time.sleep(seconds)
        return False

    return fault
