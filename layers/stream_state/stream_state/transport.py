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
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import requests
from requests import PreparedRequest
from requests.adapters import BaseAdapter
from requests.utils import DEFAULT_CA_BUNDLE_PATH
from urllib3.util import wait_for_read

from stream_state.signing import canonical_url

# No compressed bodies, so that the size read is the size sent.
HEADERS = {"Accept-Encoding": "identity", "User-Agent": "stream-state-for-volcengine-rtc"}
# How much longer than its body an answer may be: chunks of a byte take six.
MAX_OVERHEAD = 8


class BoundedAdapter(BaseAdapter):
    """An adapter of `requests` for GET requests to one host; safe to share among threads.

    The adapter that `requests` brings bounds each read, not their sum, and looks for what these requests never have.
    This one takes neither proxies nor certificates from the environment, keeps no cookies and follows no redirects.
    """

    def __init__(
        self,
        endpoint: str,
        connect_seconds: float,
        read_seconds: float,
        max_body_bytes: int,
        ca_file: str = DEFAULT_CA_BUNDLE_PATH,
    ) -> None:
        super().__init__()
        url = urlsplit(endpoint)
        self._origin = f"{url.scheme}://{url.netloc}"
        # As it is signed: without a default port.
        self._host_header = canonical_url(endpoint)[1]
        self._context: ssl.SSLContext | None = None
        if url.scheme == "https":
            self._context = ssl.create_default_context(cafile=ca_file)
            self._context.hostname_checks_common_name = False
            self._context.set_alpn_protocols(["http/1.1"])
        self._address = (url.hostname or "", url.port or (443 if self._context else 80))
        self._connect_seconds = connect_seconds
        self._read_seconds = read_seconds
        self._max_body_bytes = max_body_bytes
        # No more than requests were under way at once.
        self._idle: deque[socket.socket] = deque()
        weakref.finalize(self, _close_all, self._idle)

    def send(self, request: PreparedRequest, timeout: Any = None, **_: Any) -> requests.Response:  # type: ignore[override]  # one kind of time-out
        """The response; `timeout` in seconds bounds all of it. A body that is too large is cut after one byte too many.

        Raises `ConnectTimeout`, `ReadTimeout`, `SSLError`, `ConnectionError` or `InvalidHeader` of `requests`.
        """
        until = time.monotonic() + timeout
        wire = self._wire(request)
        kept = self._idle_connection()
        connection = kept or self._connected(min(timeout, self._connect_seconds))
        response = requests.Response()
        try:
            may_be_kept = self._exchange(connection, wire, until, response)
        except (OSError, ValueError, http.client.HTTPException) as error:
            connection.close()
            if kept:
                # What ended one has most likely ended all: the next try is not to meet another.
                self.close()
            raise _failure(error, requests.ReadTimeout) from None
        if may_be_kept:
            self._idle.append(connection)
        else:
            connection.close()
        return response

    def close(self) -> None:
        """Close the connections that are kept, as happens too when the adapter is no longer used."""
        _close_all(self._idle)

    def _exchange(self, connection: socket.socket, wire: bytes, until: float, response: requests.Response) -> bool:
        """Send the request and fill in the response; whether the connection can serve another one."""
        connection.settimeout(_left(until))
        connection.sendall(wire)
        until = min(until, time.monotonic() + self._read_seconds)
        reader: Any = _BoundedReader(connection, until, MAX_OVERHEAD * self._max_body_bytes)
        with contextlib.closing(http.client.HTTPResponse(reader, method="GET")) as answer:
            answer.begin()
            # An interim answer is not the answer, and it is not certain where one of two lengths ends.
            if answer.status < HTTPStatus.OK or len(set(answer.headers.get_all("Content-Length", ()))) > 1:
                raise http.client.HTTPException
            body = answer.read(self._max_body_bytes + 1)
            if answer.length and len(body) <= self._max_body_bytes:
                raise http.client.IncompleteRead(b"", answer.length)
            response.status_code, response.raw = answer.status, io.BytesIO(body)
            response.headers.update(answer.headers.items())
            return answer.isclosed() and not answer.will_close

    def _wire(self, request: PreparedRequest) -> bytes:
        """The request as it is sent, which texts with line ends would make another one."""
        headers = [f"{name}: {value}" for name, value in request.headers.items()]
        path = str(request.url).removeprefix(self._origin)
        lines = (f"GET {path} HTTP/1.1", f"Host: {self._host_header}", *headers, "", "")
        text = "".join(lines)
        if not (text.isascii() and text.isprintable()):
            raise requests.exceptions.InvalidHeader
        return "\r\n".join(lines).encode()

    def _idle_connection(self) -> socket.socket | None:
        """The connection that was used last: the others are closed at the other end before it."""
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return None
            # From one that can be used nothing is to be read: it is not closed, and nothing came that nobody asked for.
            decrypted = connection.pending() if isinstance(connection, ssl.SSLSocket) else 0
            if not decrypted and not wait_for_read(connection, 0):
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
        connection.settimeout(seconds)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self._context.wrap_socket(connection, server_hostname=self._address[0]) if self._context else connection


class _BoundedReader(io.RawIOBase):
    """Reads a connection up to a time, in monotonic seconds, and a number of bytes, which chunks do not tell.

    A socket's own time-out bounds each read by itself.
    """

    def __init__(self, connection: socket.socket, until: float, max_bytes: int) -> None:
        self._connection = connection
        self._until = until
        self._bytes_left = max_bytes

    def makefile(self, *_: object) -> io.BufferedReader:
        """What a response asks of a socket."""
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._connection.settimeout(_left(self._until))
        count = self._connection.recv_into(buffer)
        self._bytes_left -= count
        if self._bytes_left < 0:
            raise http.client.HTTPException
        return count


def in_background[T](function: Callable[[], T]) -> Future[T]:
    """Call a function in a thread that may be left to itself, for what has no time-out and cannot be ended."""
    future: Future[T] = Future()

    def call() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # noqa: BLE001 (whatever it is, who waits is to have it: `result` raises it)
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
    with contextlib.suppress(IndexError):
        while True:
            connections.pop().close()


def _close(connected: Future[socket.socket]) -> None:
    if not connected.exception():
        connected.result().close()
