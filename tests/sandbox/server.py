"""HTTP/1.1 on loopback: a server with one function that answers every request, and requests that stay here."""

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.client import responses
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import Any

import requests

Headers = list[tuple[str, str]]
LOOPBACK = "127.0.0.1"
# With this linger option the end of a connection is a TCP reset.
RESET = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Request:
    """One request as it came in; `target` is the path and query still percent-encoded."""

    method: str
    target: str
    headers: Headers
    body: bytes

    @property
    def path(self) -> str:
        """Path, still percent-encoded."""
        return self.target.partition("?")[0]

    @property
    def query(self) -> str:
        """Query, still percent-encoded, without the question mark."""
        return self.target.partition("?")[2]

    def header(self, name: str, default: str = "") -> str:
        """Value of the first header of that name, in any case."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), default)


@dataclass(frozen=True)
class Response:
    """An answer; Content-Length is added unless it is given."""

    status: int
    body: bytes = b""
    headers: Headers = field(default_factory=list)

    def wire(self) -> bytes:
        """The answer as it goes over the connection."""
        headers = {"content-length": str(len(self.body))} if self.status != 204 else {}
        headers |= {name.lower(): value for name, value in self.headers}
        lines = [f"HTTP/1.1 {self.status} {responses.get(self.status, '')}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace") + self.body


# An answer of None means that the function has used the connection itself, and that it is to be closed.
Answer = Callable[[Request, socket.socket], Response | None]
# Is called with each answered request and its milliseconds.
Observer = Callable[[Request, Response, float], None]


def send(method: str, url: str, **options: Any) -> requests.Response:
    """Send a request past the proxies of the environment: it must not leave this machine."""
    with requests.Session() as session:
        session.trust_env = False
        return session.request(method, url, **{"timeout": 60, **options})


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: "LoopbackServer"

    def handle_one_request(self) -> None:
        self.close_connection = True
        # A client that goes away in the middle is ordinary here: no traceback.
        with contextlib.suppress(ConnectionError, TimeoutError, ValueError):
            self.raw_requestline = self.rfile.readline(65537)
            if self.raw_requestline and self.parse_request():
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                request, started = Request(self.command, self.path, self.headers.items(), body), time.perf_counter()
                if response := self.server.answer(request, self.connection):
                    self.connection.sendall(response.wire())
                    self.server.observe(request, response, (time.perf_counter() - started) * 1000)
                else:
                    self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class names it so)
        """Stay silent: what matters is recorded by the answering function."""


class LoopbackServer(ThreadingTCPServer):
    """Serve `answer` from threads of this process until `stop`, on a free port unless one is given."""

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 1024

    def __init__(self, answer: Answer, port: int = 0) -> None:
        self.answer = answer
        self.observe: Observer = lambda request, response, duration_ms: None
        super().__init__((LOOPBACK, port), _Handler)
        self.authority = f"{LOOPBACK}:{self.server_address[1]}"
        self.url = f"http://{self.authority}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def shutdown_request(self, request: Any) -> None:
        """Close the connection, without the orderly end of the base class: it would spoil a reset."""
        request.close()

    def stop(self) -> None:
        """Stop listening; the thread of a connection ends with it."""
        self.shutdown()
        self.server_close()

    def __exit__(self, *error: object) -> None:
        self.stop()
