"""HTTP sessions whose requests are bounded in time as a whole and take nothing from the environment."""

import io
import socket
import time
from http.client import HTTPResponse
from http.cookiejar import DefaultCookiePolicy
from typing import Any

import requests
import urllib3
from requests import PreparedRequest
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection


def bounded_session(connections: int) -> requests.Session:
    """A session whose requests are bounded in time and take nothing from the environment."""
    session = requests.Session()
    # Neither proxies nor .netrc nor certificate paths of the environment; no cookies; no compressed bodies, so that
    # the size read is the size sent.
    session.trust_env = False
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    session.headers.clear()
    session.headers.update({"Accept-Encoding": "identity", "User-Agent": "stream-state-for-volcengine-rtc"})
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


class _BoundedResponse(HTTPResponse):
    """A response whose read time-out covers all of it, from the status line to the last byte of the body."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(_BoundedReader(sock), *args, **kwargs)  # type: ignore[arg-type]  # makefile is all it asks for


class _BoundedAdapter(HTTPAdapter):
    """Connections with bounded responses, found without building a key of all their settings for each request."""

    def __init__(self, **options: Any) -> None:
        self._pools: dict[Any, urllib3.HTTPConnectionPool] = {}
        super().__init__(**options)

    def get_connection_with_tls_context(
        self, request: PreparedRequest, verify: Any, proxies: Any = None, cert: Any = None
    ) -> urllib3.HTTPConnectionPool:
        key = (*str(request.url).split("/", 3)[:3], verify, cert)
        if key not in self._pools:
            self._pools[key] = super().get_connection_with_tls_context(request, verify, proxies, cert)
        return self._pools[key]

    def request_url(self, request: PreparedRequest, proxies: Any) -> str:  # noqa: ARG002 (there are none)
        return request.path_url

    def build_response(self, req: PreparedRequest, resp: Any) -> requests.Response:
        """The response without cookies, encoding and reason, which nothing here reads."""
        response = requests.Response()
        response.status_code, response.headers, response.raw = resp.status, resp.headers, resp
        return response

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _HttpPool, "https": _HttpsPool}


class _HttpConnection(HTTPConnection):
    """A connection whose time-out covers all addresses of its host together, not each."""

    response_class = _BoundedResponse

    def _new_conn(self) -> socket.socket:
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
