"""HTTP sessions bounded in time as a whole that take nothing from the environment, and clients of AWS."""

import io
import json
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from http import HTTPStatus
from http.client import HTTPResponse
from http.cookiejar import DefaultCookiePolicy
from typing import Any

import boto3
import requests
import urllib3
from botocore.config import Config
from botocore.exceptions import BotoCoreError
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError


def bounded_session(connections: int) -> requests.Session:
    """A session whose requests are bounded in time and take nothing from the environment."""
    session = requests.Session()
    # Neither proxies nor .netrc nor certificate paths of the environment; no cookies; no compressed bodies, so that
    # the size read is the size sent.
    session.trust_env = False
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    session.headers.update({"Accept-Encoding": "identity", "User-Agent": "stream-state-for-volcengine-rtc"})
    adapter = _BoundedAdapter(pool_connections=1, pool_maxsize=connections, max_retries=0)
    for scheme in ("https://", "http://"):
        session.mount(scheme, adapter)
    return session


class MalformedAnswer(BotoCoreError):
    """What came is no answer of AWS."""

    fmt = "AWS's answer was not understood."


def aws_client(service: Any, config: Config) -> Any:
    """A boto3 client that understands nothing where nothing was said: botocore reads HTML as an empty answer."""
    client = boto3.client(service, config=config)
    client.meta.events.register("before-parse", _check_answer)
    return client


def _check_answer(response_dict: dict[str, Any], **_: Any) -> None:
    try:
        answer = json.loads(response_dict["body"])
    except ValueError:
        answer = None
    if not isinstance(answer, dict) or not isinstance(answer.get("__type", ""), str):
        if response_dict["status_code"] == HTTPStatus.OK:
            raise MalformedAnswer
        # The status alone then says what kind of error it is, and whether to try again.
        response_dict["body"] = b""


class _BoundedReader(io.RawIOBase):
    """Reads a socket until its time-out, counted from now, is over: by itself it bounds each read, not their sum."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._raw = sock.makefile("rb", buffering=0)
        self._until = time.monotonic() + (sock.gettimeout() or 0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._socket.settimeout(left)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _BoundedResponse(HTTPResponse):
    """A response whose read time-out covers all of it, from the status line to the last byte of the body."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp.close()
        self.fp = io.BufferedReader(_BoundedReader(sock))


class _BoundedAdapter(HTTPAdapter):
    """Connections with bounded responses."""

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
    """A connection whose time-out covers finding its host's addresses and trying them, all together."""

    response_class = _BoundedResponse

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
