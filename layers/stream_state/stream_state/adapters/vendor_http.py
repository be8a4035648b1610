"""HTTP exchanges with the vendor over kept connections, bounded in time and size."""

import http.client
import io
import logging
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import Any, override

import requests
import urllib3
from requests.adapters import BaseAdapter, HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.util import Timeout

from stream_state.adapters.vendor_answers import VendorResponse
from stream_state.clock import CLOCK
from stream_state.errors import RtcProtocolError, RtcUnavailable

# Calls at once: enough for 60 a second that take a second each.
MAX_CONCURRENCY = 64
# Enough for the list of a room of 30,000 users with the longest ids.
MAX_BODY_BYTES = 4 * 1024 * 1024
_READ_BYTES = 65_536

# Nothing can end a thread whose look-up of a name hangs, so the pool has threads left for the calls after it.
background = ThreadPoolExecutor(4 * MAX_CONCURRENCY, "background")
# Its warnings about malformed headers quote them, and headers can echo a key.
logging.getLogger("urllib3.connection").setLevel(logging.ERROR)


def send(
    adapter: BaseAdapter,
    request: requests.PreparedRequest,
    connect_seconds: float,
    read_seconds: float,
    seconds_left: float,
) -> VendorResponse:
    """The whole response; raises `RtcUnavailable`, with status 504 for a time-out, and `RtcProtocolError`."""
    timeout: Any = Timeout(connect=connect_seconds, read=read_seconds, total=seconds_left)
    body = bytearray()
    try:
        with adapter.send(request, stream=True, timeout=timeout) as response:
            if response.status_code < HTTPStatus.OK:
                # The final answer is still to come on this connection, which must not serve another call.
                raise requests.ConnectionError
            # One read of all would not notice that the body is shorter than its Content-Length.
            while len(body) <= MAX_BODY_BYTES and (chunk := response.raw.read1(_READ_BYTES)):
                body += chunk
    except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
        # The cause has most likely ended the idle connections too, so the next try makes a new one.
        adapter.close()
        raise _network_error(error) from None
    if len(body) > MAX_BODY_BYTES:
        raise RtcProtocolError(f"Volcengine's answer is larger than {MAX_BODY_BYTES} bytes. Check RtcEndpoint.")
    return VendorResponse(response.status_code, response.headers, bytes(body))


class OneOriginAdapter(HTTPAdapter):
    """The adapter of `requests` for one origin, with one time-out for all of connecting and one for all of an answer.

    `HTTPAdapter` looks for the pool, for a proxy and for cookies with each call. This takes a tenth of the call's time.
    """

    def __init__(self) -> None:
        self._pool: Any = None
        super().__init__(pool_connections=1, pool_maxsize=MAX_CONCURRENCY)

    @override
    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}

    @override
    def get_connection_with_tls_context(self, *args: Any, **options: Any) -> Any:
        pool = self._pool = self._pool or super().get_connection_with_tls_context(*args, **options)
        return pool

    @override
    def request_url(self, request: requests.PreparedRequest, proxies: Any) -> str:
        return request.path_url

    @override
    def add_headers(self, request: requests.PreparedRequest, **_: Any) -> None:
        # urllib3 copies the headers and looks each of them up, for which a plain dictionary takes less time.
        request.headers = dict(request.headers)  # type: ignore[assignment]  # urllib3 takes any mapping

    @override
    def build_response(self, req: requests.PreparedRequest, resp: Any) -> requests.Response:
        response = requests.Response()
        response.status_code, response.headers, response.raw = resp.status, resp.headers, resp
        return response

    @override
    def close(self) -> None:
        super().close()
        self._pool = None


class _Connection(HTTPConnection):
    """A connection whose time-outs are for all of connecting and for all of the response, not for each read."""

    @override
    def connect(self) -> None:
        # Looking up a name has no time-out, but waiting for a thread has one.
        connecting = background.submit(super().connect)
        try:
            connecting.result(Timeout.resolve_default_timeout(self.timeout))
        except TimeoutError:
            connecting.cancel()
            connecting.add_done_callback(lambda _: self.close())
            raise urllib3.exceptions.ConnectTimeoutError from None

    def response_class(self, sock: Any, **options: Any) -> http.client.HTTPResponse:  # type: ignore[override]  # a class
        """The response on a socket, for `http.client`."""
        reader: Any = _BoundedReader(sock)
        return http.client.HTTPResponse(reader, **options)

    @property
    @override
    def is_connected(self) -> bool:
        # Bytes that TLS has decrypted and nobody has read are not the answer to the next request.
        return super().is_connected and not (isinstance(self.sock, ssl.SSLSocket) and self.sock.pending())


class _BoundedReader(io.RawIOBase):
    """Reads a socket; all reads together end by the time-out that the socket has at first."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._raw = sock.makefile("rb", buffering=0)
        self._deadline = CLOCK.monotonic() + (sock.gettimeout() or 0)

    def makefile(self, *_: object) -> io.BufferedReader:
        """The file that a response makes of its socket."""
        return io.BufferedReader(self)

    @override
    def readable(self) -> bool:
        return True

    @override
    def readinto(self, buffer: Any) -> int | None:
        seconds = self._deadline - CLOCK.monotonic()
        if seconds <= 0:
            raise TimeoutError
        self._sock.settimeout(seconds)
        return self._raw.readinto(buffer)

    @override
    def close(self) -> None:
        self._raw.close()
        super().close()


class _TlsConnection(_Connection, HTTPSConnection):
    pass


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


def timed_out(detail: str) -> RtcUnavailable:
    """The error of a call that did not end in time."""
    return RtcUnavailable(detail, status=HTTPStatus.GATEWAY_TIMEOUT)


def _network_error(error: Exception) -> RtcUnavailable:
    """The error without the text of its cause, which can quote what was sent."""
    name = type(error).__name__
    if isinstance(error, requests.Timeout | urllib3.exceptions.TimeoutError | TimeoutError):
        return timed_out(f"Volcengine did not answer in time ({name}). Try again later.")
    if isinstance(error, requests.exceptions.SSLError | urllib3.exceptions.SSLError | ssl.SSLError):
        return RtcUnavailable("The TLS connection to Volcengine failed. Check RtcEndpoint and its certificate.")
    return RtcUnavailable(f"The connection to Volcengine failed ({name}). Try again later.")
