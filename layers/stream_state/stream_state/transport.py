"""HTTP requests to one host over connections that are kept, each bounded in time and size as a whole."""

import contextlib
import http.client
import io
import socket
import ssl
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any
from urllib.parse import urlsplit

import certifi
import requests
from requests import PreparedRequest
from requests.adapters import BaseAdapter
from urllib3.util import wait_for_read

from stream_state.signing import canonical_url

# No compressed bodies, so that the size read is the size sent.
HEADERS = {"Accept-Encoding": "identity", "User-Agent": "stream-state-for-volcengine-rtc"}
# Not the machine's, which the environment may name.
CA_BUNDLE = certifi.where()


class BoundedAdapter(BaseAdapter):
    """An adapter of `requests` for GET requests to one host; safe to share among threads.

    The adapter that `requests` brings bounds each read, not their sum, and takes twice the processor time. This one
    takes nothing from the environment, keeps no cookies and follows no redirects.
    """

    def __init__(
        self,
        endpoint: str,
        connect_seconds: float,
        read_seconds: float,
        max_body_bytes: int,
        ca_file: str = CA_BUNDLE,
    ) -> None:
        super().__init__()
        url = urlsplit(endpoint)
        self._origin = f"{url.scheme}://{url.netloc}"
        # As it is signed: without a default port.
        self._host_header = canonical_url(endpoint)[1]
        self._context: ssl.SSLContext | None = None
        if url.scheme == "https":
            self._context = ssl.create_default_context(cafile=ca_file)
            self._context.set_alpn_protocols(["http/1.1"])
        self._address = (url.hostname or "", url.port or (443 if self._context else 80))
        self._connect_seconds = connect_seconds
        self._read_seconds = read_seconds
        self._max_body_bytes = max_body_bytes
        # No more than requests were under way at once.
        self._idle: deque[socket.socket] = deque()
        self._close_idle = weakref.finalize(self, _close_all, self._idle)

    def send(self, request: PreparedRequest, timeout: Any = None, **_: Any) -> requests.Response:  # type: ignore[override]  # one kind of time-out
        """The response; `timeout` in seconds bounds all of it. A body that is too large is cut after one byte too many.

        Raises `ConnectTimeout`, `ReadTimeout`, `SSLError`, `ConnectionError` or `InvalidHeader` of `requests`.
        """
        until = time.monotonic() + timeout
        wire = self._wire(request)
        connection = self._idle_connection() or self._connected(min(timeout, self._connect_seconds))
        response = requests.Response()
        try:
            may_be_kept = self._exchange(connection, wire, until, response)
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise _failure(error, requests.ReadTimeout) from None
        if may_be_kept:
            self._idle.append(connection)
        else:
            connection.close()
        return response

    def close(self) -> None:
        """Close the connections that are kept, as happens too when the adapter is no longer used."""
        self._close_idle()

    def _exchange(self, connection: socket.socket, wire: bytes, until: float, response: requests.Response) -> bool:
        """Send the request and fill in the response; whether the connection can serve another one."""
        connection.settimeout(_left(until))
        connection.sendall(wire)
        reader: Any = _BoundedReader(connection, min(until, time.monotonic() + self._read_seconds))
        with contextlib.closing(http.client.HTTPResponse(reader, method="GET")) as answer:
            answer.begin()
            body = answer.read(self._max_body_bytes + 1)
            if answer.length and len(body) <= self._max_body_bytes:
                raise http.client.IncompleteRead(b"", answer.length)
            response.status_code, response.raw = answer.status, io.BytesIO(body)
            response.headers.update(answer.headers.items())
            return answer.isclosed() and not answer.will_close

    def _wire(self, request: PreparedRequest) -> bytes:
        """The request as it is sent, which header values with line ends would make another one."""
        headers = [f"{name}: {value}" for name, value in request.headers.items()]
        if not "".join(headers).isprintable():
            raise requests.exceptions.InvalidHeader
        path = str(request.url).removeprefix(self._origin)
        return "\r\n".join((f"GET {path} HTTP/1.1", f"Host: {self._host_header}", *headers, "", "")).encode()

    def _idle_connection(self) -> socket.socket | None:
        """The connection that was used last: the others are closed at the other end before it."""
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return None
            # Nothing is to be read from one that is still open.
            if not wait_for_read(connection, 0):
                return connection
            connection.close()

    def _connected(self, seconds: float) -> socket.socket:
        """A new connection, all that it takes bounded together: looking up a name has no time-out of its own."""
        made = in_background(lambda: self._connect(seconds))
        try:
            return made.result(seconds)
        except (OSError, UnicodeError) as error:
            made.add_done_callback(_close)
            raise _failure(error, requests.ConnectTimeout) from None

    def _connect(self, seconds: float) -> socket.socket:
        # Each address has its share of the time, so that the last is tried too.
        addresses = len(socket.getaddrinfo(*self._address, type=socket.SOCK_STREAM))
        connection = socket.create_connection(self._address, seconds / addresses)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self._context.wrap_socket(connection, server_hostname=self._address[0]) if self._context else connection


class _BoundedReader(io.RawIOBase):
    """Reads a connection until a time, in monotonic seconds; a socket's own time-out bounds each read by itself."""

    def __init__(self, connection: socket.socket, until: float) -> None:
        self._connection = connection
        self._until = until

    def makefile(self, *_: object) -> io.BufferedReader:
        """What a response asks of a socket."""
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._connection.settimeout(_left(self._until))
        return self._connection.recv_into(buffer)


def in_background[T](function: Callable[[], T]) -> Future[T]:
    """Call a function in a thread that may be left to itself, for what has no time-out and cannot be ended."""
    future: Future[T] = Future()

    def call() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # noqa: BLE001 (raised by `result`)
            future.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    return future


def _left(until: float) -> float:
    """Seconds until then; `TimeoutError` if there are none."""
    if (left := until - time.monotonic()) <= 0:
        raise TimeoutError
    return left


def _failure(error: Exception, timeout: type[requests.Timeout]) -> requests.RequestException:
    if isinstance(error, TimeoutError):
        return timeout()
    kind = requests.exceptions.SSLError if isinstance(error, ssl.SSLError) else requests.ConnectionError
    return kind(type(error).__name__)


def _close_all(connections: deque[socket.socket]) -> None:
    for connection in connections:
        connection.close()


def _close(connected: Future[socket.socket]) -> None:
    if not connected.exception():
        connected.result().close()
