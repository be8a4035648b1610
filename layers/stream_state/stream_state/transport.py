"""HTTP sessions whose requests are bounded in time as a whole and take nothing from the environment."""

import http.client
import io
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from http.cookiejar import DefaultCookiePolicy
from typing import Any

import requests
import urllib3
from requests import PreparedRequest
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError

# No compressed bodies, so that the size read is the size sent.
HEADERS = {"Accept-Encoding": "identity", "User-Agent": "stream-state-for-volcengine-rtc"}


def bounded_session(connections: int) -> requests.Session:
    """A session whose requests are bounded in time and take nothing from the environment."""
    session = requests.Session()
    # Neither proxies nor .netrc nor certificate paths of the environment; no cookies.
    session.trust_env = False
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    adapter = _BoundedAdapter(pool_connections=1, pool_maxsize=connections, max_retries=0)
    for scheme in ("https://", "http://"):
        session.mount(scheme, adapter)
    return session


class _BoundedReader(io.RawIOBase):
    """Reads a socket until its time-out, counted from now, is over: by itself it bounds each read, not their sum."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._raw = sock.makefile("rb", buffering=0)
        self._until = time.monotonic() + (sock.gettimeout() or 0)
        self._has_read = False

    def makefile(self, *_: object) -> io.BufferedReader:
        """What a response asks of a socket."""
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        # The time-out of the first read, which most often is the only one, is set already.
        if self._has_read:
            self._socket.settimeout(left)
        self._has_read = True
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _BoundedResponse(http.client.HTTPResponse):
    """A response whose read time-out covers all of it, from the status line to the last byte of the body."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(_BoundedReader(sock), *args, **kwargs)  # type: ignore[arg-type]  # makefile is all it asks for


class _Response(requests.Response):
    """A response without cookies, history and encoding, which nothing here reads."""

    def __init__(self, raw: urllib3.BaseHTTPResponse) -> None:
        self.raw, self.status_code, self.headers = raw, raw.status, raw.headers  # type: ignore[assignment]  # as good
        self._content_consumed = False


class _BoundedAdapter(HTTPAdapter):
    """Connections with bounded responses, found without building a key of all their settings for each request."""

    def __init__(self, **options: Any) -> None:
        self._pools: dict[Any, Any] = {}
        super().__init__(**options)

    def get_connection_with_tls_context(
        self, request: PreparedRequest, verify: Any, proxies: Any = None, cert: Any = None
    ) -> Any:
        key = (*str(request.url).split("/", 3)[:3], verify, cert)
        if key not in self._pools:
            self._pools[key] = super().get_connection_with_tls_context(request, verify, proxies, cert)
        return self._pools[key]

    def request_url(self, request: PreparedRequest, proxies: Any) -> str:  # noqa: ARG002 (there are none)
        return "/" + str(request.url).split("/", 3)[3]

    def build_response(self, req: PreparedRequest, resp: Any) -> requests.Response:  # noqa: ARG002 (nobody asks for it)
        return _Response(resp)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _HttpPool, "https": _HttpsPool}


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


def _close(connected: Future[socket.socket]) -> None:
    if not connected.exception():
        connected.result().close()


class _HttpConnection(HTTPConnection):
    """A connection whose time-out covers finding its host's addresses and trying them, all together.

    Requests are those of `http.client`, without what urllib3 looks for in each besides: bodies in chunks, markers of
    headers to leave out, and defects of the answer's headers, which it would only log.
    """

    response_class = _BoundedResponse
    putheader = http.client.HTTPConnection.putheader

    def request(self, method: str, url: str, body: Any = None, headers: Any = None, **_: Any) -> None:
        if self.sock is not None:
            self.sock.settimeout(self.timeout)
        http.client.HTTPConnection.request(self, method, url, body, dict(headers.lower_items()))

    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]  # as urllib3's
        self.sock.settimeout(self.timeout)
        answer = http.client.HTTPConnection.getresponse(self)
        return urllib3.HTTPResponse(
            body=answer,
            headers=urllib3.HTTPHeaderDict(answer.headers.items()),
            status=answer.status,
            preload_content=False,
            decode_content=False,
            original_response=answer,
            request_method="GET",
        )

    def _new_conn(self) -> socket.socket:
        timeout = self.timeout
        made = in_background(self._connect)
        try:
            return made.result(timeout)
        except TimeoutError:
            made.add_done_callback(_close)
            message = "The name of the host was not found, or no address of it reached, in time."
            raise ConnectTimeoutError(self, message) from None

    def _connect(self) -> socket.socket:
        timeout = self.timeout
        try:
            addresses = len(socket.getaddrinfo(self._dns_host, self.port, type=socket.SOCK_STREAM))
        except OSError:
            addresses = 1
        self.timeout = timeout / addresses if timeout else timeout
        try:
            connected = super()._new_conn()
        finally:
            self.timeout = timeout
        connected.settimeout(timeout)
        return connected


class _HttpsConnection(_HttpConnection, HTTPSConnection):
    pass


class _HttpPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _HttpConnection


class _HttpsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _HttpsConnection
