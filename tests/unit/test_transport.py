"""What the adapter sends, and what it refuses to send, before there is any connection."""

from types import SimpleNamespace
from typing import Any

import pytest
import requests

from stream_state.transport import BoundedAdapter, _BoundedReader


def adapter(endpoint: str = "https://rtc.example/") -> BoundedAdapter:
    return BoundedAdapter(endpoint, connect_seconds=1, read_seconds=1, max_body_bytes=10)


@pytest.mark.parametrize("value", ["a\r\nX-More: b", "a\nb", "a\rb", "a\0b", "a\x7f"])
def test_a_header_that_would_begin_another_line_is_refused(value: str) -> None:
    request = requests.Request("GET", "https://rtc.example/?a=b").prepare()
    request.headers["X-Security-Token"] = value

    with pytest.raises(requests.exceptions.InvalidHeader):
        adapter().send(request, timeout=1)


@pytest.mark.parametrize("query", ["a=b\r\nX-More: c", "a=é", "a=\ud800"])
def test_a_url_that_is_not_encoded_is_refused(query: str) -> None:
    request = requests.Request("GET", "https://rtc.example/").prepare()
    request.url = f"https://rtc.example/?{query}"

    with pytest.raises(requests.exceptions.InvalidHeader):
        adapter().send(request, timeout=1)


@pytest.mark.parametrize(
    ("endpoint", "host"),
    [
        ("https://rtc.example/", b"rtc.example"),
        ("https://rtc.example:443/", b"rtc.example"),
        ("http://127.0.0.1:80/", b"127.0.0.1"),
        ("https://rtc.example:8443/", b"rtc.example:8443"),
        ("http://[::1]:8080/", b"[::1]:8080"),
    ],
)
def test_the_host_is_sent_as_it_is_signed(endpoint: str, host: bytes) -> None:
    request = requests.Request("GET", f"{endpoint}?a=b", headers={"X-Date": "20261123T030405Z"}).prepare()

    wire = adapter(endpoint)._wire(request)

    assert wire == b"GET /?a=b HTTP/1.1\r\nHost: " + host + b"\r\nX-Date: 20261123T030405Z\r\n\r\n"


def test_nothing_is_read_when_the_time_is_over() -> None:
    connection: Any = SimpleNamespace(settimeout=pytest.fail, recv_into=pytest.fail)

    with pytest.raises(TimeoutError):
        _BoundedReader(connection, until=0, max_bytes=1).readinto(bytearray(1))
