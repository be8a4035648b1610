"""The signature: the vendor's vectors, its official package as an oracle, and what an authentication must not do."""

import calendar
import hashlib
import io
import json
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st
from volcengine.auth.SignerV4 import SignerV4
from volcengine.auth.SignParam import SignParam
from volcengine.Credentials import Credentials

from stream_state.adapters.signing import (
    SigningKeys,
    VolcengineAuth,
    canonical_request,
    canonical_url,
    headers_to_sign,
    signing_key,
)
from stream_state.clock import Clock

FIXTURE = json.loads((Path(__file__).parent / "vectors.json").read_text())
COMMON = {
    "keys": FIXTURE["demo_keys"],
    "date": FIXTURE["demo_date"],
    "content_type": FIXTURE["demo_content_type"],
    "method": "GET",
    "body_hash": hashlib.sha256(b"").hexdigest(),
}


def vectors(with_field: str = "name") -> pytest.MarkDecorator:
    chosen = [COMMON | vector for vector in FIXTURE["vectors"] if with_field in vector]
    return pytest.mark.parametrize("vector", chosen, ids=[vector["name"] for vector in chosen])


URL = "https://rtc.volcengineapi.com/?b=2&a=1"
KEYS = SigningKeys("an-access-key", "a-secret-key")
TOKEN_KEYS = SigningKeys("an-access-key", "a-secret-key", "a-session-token")


class At(Clock):
    """A clock that stands."""

    def __init__(self, date: str | float) -> None:
        self.seconds = date if isinstance(date, float) else calendar.timegm(time.strptime(date, "%Y%m%dT%H%M%SZ"))

    def now(self) -> float:
        return self.seconds


def sign(auth: VolcengineAuth, method: str = "GET", url: str = URL, **request: Any) -> requests.PreparedRequest:
    return requests.Request(method, url, auth=auth, **request).prepare()


def sign_vector(vector: Mapping[str, Any]) -> requests.PreparedRequest:
    keys = SigningKeys(**vector["keys"], session_token=vector.get("session_token"))
    _, region, service, _ = vector["scope"].split("/")
    headers = {"Content-Type": vector["content_type"]} if vector["content_type"] else {}
    auth = VolcengineAuth(keys, service, region, At(vector["date"]))
    return sign(auth, vector["method"], vector["url"], headers=headers, data=vector.get("body"))


@vectors()
def test_a_request_is_signed_as_in_the_vector(vector: Mapping[str, Any]) -> None:
    request = sign_vector(vector)

    assert request.headers["Authorization"] == (
        f"HMAC-SHA256 Credential={vector['keys']['access_key_id']}/{vector['scope']},"
        f" SignedHeaders={vector['signed_headers']}, Signature={vector['signature']}"
    )
    assert request.headers["X-Date"] == vector["date"]
    assert request.headers["X-Content-Sha256"] == vector["body_hash"]


@vectors("canonical_request_hash")
def test_the_canonical_request_hashes_as_in_the_vector(vector: Mapping[str, Any]) -> None:
    request = sign_vector(vector)
    url = urlsplit(str(request.url))

    _, text = canonical_request("GET", url.path, url.query, headers_to_sign(url.netloc, request.headers))

    assert hashlib.sha256(text.encode()).hexdigest() == vector["canonical_request_hash"]


@vectors("signing_key")
def test_the_signing_key_is_that_of_the_vector(vector: Mapping[str, Any]) -> None:
    day, region, service, _ = vector["scope"].split("/")

    key = signing_key(vector["keys"]["secret_access_key"], day, region, service)

    assert key.hex() == vector["signing_key"]


odd_text = st.text(
    st.one_of(st.sampled_from(" ~+%/&=?#;,:-._*'\"\\<>|^`é漢😀\x00\n\x7f"), st.characters(exclude_categories=["Cs"])),
    max_size=6,
)
# `requests` resolves dot segments, which the official package signs as they are.
paths = st.lists(odd_text, max_size=3).map("/".join).filter(lambda path: not {".", ".."} & set(path.split("/")))
queries = st.dictionaries(odd_text, odd_text | st.lists(odd_text, min_size=1, max_size=3), max_size=5)
names = st.from_regex(r"[A-Za-z0-9_-]{1,20}", fullmatch=True)
ascii_text = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=40)
header_values = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=20).map(str.strip)
some_headers = st.dictionaries(
    st.sampled_from(["Content-Type", "Content-Md5", "X-Custom", "X-Other-1", "Accept"]), header_values, max_size=4
)
bodies = st.none() | odd_text | st.binary(max_size=40)
hosts = st.sampled_from(["rtc.volcengineapi.com", "localhost:8080", "127.0.0.1:80", "open.example:443"])
times = st.datetimes(datetime(2000, 1, 1), datetime(2099, 12, 31)).map(lambda at: at.replace(microsecond=0, tzinfo=UTC))  # noqa: DTZ001 (hypothesis adds zones itself)


@settings(max_examples=1_000, deadline=None)
@given(
    method=st.sampled_from(["GET", "POST"]),
    host=hosts,
    path=paths,
    query=queries,
    headers=some_headers,
    body=bodies,
    keys=st.builds(SigningKeys, ascii_text, ascii_text, st.none() | ascii_text),
    service=names,
    region=names,
    at=times,
)
def test_any_request_is_signed_as_the_official_package_signs_it(
    method: str,
    host: str,
    path: str,
    query: dict[str, str | list[str]],
    headers: dict[str, str],
    body: str | bytes | None,
    keys: SigningKeys,
    service: str,
    region: str,
    at: datetime,
) -> None:
    official = SignParam()
    official.method, official.host, official.path, official.date = method, host, f"/{path}", at
    official.query, official.header_list, official.body = query, {"Host": host, **headers}, body or ""
    credentials = Credentials(keys.access_key_id, keys.secret_access_key, service, region, keys.session_token or "")
    expected = SignerV4.sign_only(official, credentials)

    auth = VolcengineAuth(keys, service, region, At(at.timestamp()))
    request = sign(auth, method, f"https://{host}/{quote(path)}", params=query, headers=headers, data=body)

    assert request.headers["Authorization"] == expected.authorization
    assert request.headers.get("X-Security-Token") == keys.session_token


def test_requests_sends_the_url_that_was_signed() -> None:
    request = sign(VolcengineAuth(KEYS, "rtc", "cn-north-1"), url="https://host/a%7e%20b?b=x+y&a=%7e&a=%ff&c&b=%2f")

    assert request.url == "https://host/a~%20b?a=~&a=%FF&b=x%20y&b=%2F&c="


def test_signing_again_replaces_the_first_signature() -> None:
    request = sign(VolcengineAuth(TOKEN_KEYS, "rtc", "cn-north-1", At("20261123T030405Z")))
    later = VolcengineAuth(KEYS, "rtc", "cn-north-1", At("20261123T031905Z"))

    again = later(request)

    assert (dict(again.headers), again.url) == (dict(sign(later).headers), sign(later).url)
    assert again.headers["X-Date"] == "20261123T031905Z"


@pytest.mark.parametrize(
    ("authority", "host"),
    [
        ("host:80", "host"),
        ("host:443", "host"),
        ("host", "host"),
        ("HOST", "host"),
        ("host:8080", "host:8080"),
        ("user@host", "host"),
        ("[::1]:443", "[::1]"),
        ("[::1]", "[::1]"),
        ("[::80]", "[::80]"),
    ],
)
def test_the_host_signed_is_the_host_that_requests_sends_without_a_default_port(authority: str, host: str) -> None:
    assert canonical_url(f"https://{authority}/?a=1")[1] == host


def test_a_header_is_signed_trimmed_also_as_bytes() -> None:
    headers: Any = {"X-One": " a  b ", "x-two": b"\tc", "Content-Type": "text", "Accept": "*/*"}

    signed = headers_to_sign("host", requests.structures.CaseInsensitiveDict(headers))

    assert signed == {"host": "host", "x-one": "a  b", "x-two": "c", "content-type": "text"}


@pytest.mark.parametrize("body", [iter([b"part"]), io.BytesIO(b"all")], ids=["iterator", "file"])
def test_a_body_that_cannot_be_hashed_first_is_refused(body: Any) -> None:
    request = requests.Request("POST", URL).prepare()
    request.body = body

    with pytest.raises(TypeError, match="body cannot be signed: pass text or bytes"):
        VolcengineAuth(KEYS, "rtc", "cn-north-1")(request)


def test_the_key_is_derived_once_for_a_day_region_service_and_secret() -> None:
    signing_key.cache_clear()
    for _ in range(3):
        sign(VolcengineAuth(KEYS, "rtc", "cn-north-1", At("20261123T030405Z")))
    assert signing_key.cache_info().misses == 1

    for keys, service, region, date in (
        (KEYS, "rtc", "cn-north-1", "20261124T030405Z"),
        (KEYS, "rtc", "ap-singapore-1", "20261123T030405Z"),
        (KEYS, "iam", "cn-north-1", "20261123T030405Z"),
        (SigningKeys("an-access-key", "another-secret"), "rtc", "cn-north-1", "20261123T030405Z"),
    ):
        sign(VolcengineAuth(keys, service, region, At(date)))
    assert signing_key.cache_info().misses == 5


def test_the_caches_are_bounded() -> None:
    assert 0 < (signing_key.cache_info().maxsize or 0) <= 100
    assert 0 < (canonical_url.cache_info().maxsize or 0) <= 10_000


@pytest.mark.parametrize("show", [repr, str, "{0!r:>1}".format])
def test_keys_are_never_shown(show: Callable[[object], str]) -> None:
    shown = show(TOKEN_KEYS) + show(VolcengineAuth(TOKEN_KEYS, "rtc", "cn-north-1"))

    assert not any(secret in shown for secret in TOKEN_KEYS.secrets)
    assert TOKEN_KEYS.secrets == ("an-access-key", "a-secret-key", "a-session-token")
    assert KEYS.secrets == ("an-access-key", "a-secret-key")
