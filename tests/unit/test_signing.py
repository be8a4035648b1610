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
from hypothesis import example, given, settings
from hypothesis import strategies as st
from volcengine.auth.SignerV4 import SignerV4
from volcengine.auth.SignParam import SignParam
from volcengine.Credentials import Credentials

from stream_state.signing import (
    SigningKeys,
    VolcengineAuth,
    _day,
    canonical_path,
    canonical_query,
    canonical_request,
    canonical_url,
    others_to_sign,
    signing_key,
)

FIXTURE = json.loads((Path(__file__).parent / "vectors.json").read_text())
VECTORS = [
    pytest.param(
        {
            "keys": FIXTURE["demo_keys"],
            "date": FIXTURE["demo_date"],
            "content_type": FIXTURE["demo_content_type"],
            **vector,
        },
        id=vector["name"],
    )
    for vector in FIXTURE["vectors"]
]
URL = "https://rtc.volcengineapi.com/?b=2&a=1"
KEYS = SigningKeys("an-access-key", "a-secret-key")
TOKEN_KEYS = SigningKeys("an-access-key", "a-secret-key", "a-session-token")
DAY_SECONDS = 86_400


def seconds(date: str) -> float:
    return calendar.timegm(time.strptime(date, "%Y%m%dT%H%M%SZ"))


def sign(auth: VolcengineAuth, method: str = "GET", url: str = URL, **request: Any) -> requests.PreparedRequest:
    return requests.Request(method, url, auth=auth, **request).prepare()


def sign_vector(vector: Mapping[str, Any]) -> requests.PreparedRequest:
    keys = SigningKeys(**vector["keys"], session_token=vector.get("session_token"))
    _, region, service, _ = vector["scope"].split("/")
    headers = {"Content-Type": vector["content_type"]} if vector["content_type"] else {}
    auth = VolcengineAuth(keys, service, region, lambda: seconds(vector["date"]))
    return sign(auth, vector.get("method", "GET"), vector["url"], headers=headers, data=vector.get("body"))


@pytest.mark.parametrize("vector", VECTORS)
def test_a_request_is_signed_as_in_the_vector(vector: Mapping[str, Any]) -> None:
    request = sign_vector(vector)

    assert request.headers["Authorization"] == (
        f"HMAC-SHA256 Credential={vector['keys']['access_key_id']}/{vector['scope']},"
        f" SignedHeaders={vector['signed_headers']}, Signature={vector['signature']}"
    )
    assert request.headers["X-Date"] == vector["date"]
    body_hash = vector.get("body_hash", hashlib.sha256(b"").hexdigest())
    assert request.headers["X-Content-Sha256"] == body_hash


@pytest.mark.parametrize("vector", [param for param in VECTORS if "canonical_request_hash" in param.values[0]])
def test_the_canonical_request_hashes_as_in_the_vector(vector: Mapping[str, Any]) -> None:
    request = sign_vector(vector)
    url = urlsplit(str(request.url))

    headers = others_to_sign(request.headers.lower_items()) | {"host": url.netloc}
    text, _ = canonical_request("GET", url.path, url.query, headers)

    assert hashlib.sha256(text.encode()).hexdigest() == vector["canonical_request_hash"]


@pytest.mark.parametrize("vector", [param for param in VECTORS if "signing_key" in param.values[0]])
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
headers_to_sign = st.dictionaries(
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
    headers=headers_to_sign,
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

    auth = VolcengineAuth(keys, service, region, at.timestamp)
    request = sign(auth, method, f"https://{host}/{quote(path)}", params=query, headers=headers, data=body)

    assert request.headers["Authorization"] == expected.authorization
    assert request.headers.get("X-Security-Token") == keys.session_token


def test_what_is_sent_is_what_was_signed() -> None:
    request = sign(VolcengineAuth(KEYS, "rtc", "cn-north-1"), url="https://host/a%7e%20b?b=x+y&a=%7e&a=%ff&c&b=%2f")

    assert request.url == "https://host/a~%20b?a=~&a=%FF&b=x%20y&b=%2F&c="


plain_text = st.text("aZ09-._~=&", max_size=8)


@settings(deadline=None)
@given(path=st.text("aZ0-._~/", max_size=8), query=plain_text, host=hosts)
@example(path="", query="a1=2&a=1&a=0&a-b=3", host="host")
@example(path="", query="a=1&&b=2&c", host="host")
@example(path="", query="a=b=c", host="host")
def test_a_url_without_anything_to_encode_becomes_what_any_other_does(path: str, query: str, host: str) -> None:
    _, _, found_path, found_query = canonical_url(f"https://{host}/{path}?{query}")

    assert (found_path, found_query) == (canonical_path(f"/{path}"), canonical_query(query))


def test_signing_again_replaces_the_first_signature() -> None:
    now = seconds("20261123T030405Z")
    request = sign(VolcengineAuth(TOKEN_KEYS, "rtc", "cn-north-1", lambda: now))
    fresh = sign(VolcengineAuth(KEYS, "rtc", "cn-north-1", lambda: now + 900))

    again = VolcengineAuth(KEYS, "rtc", "cn-north-1", lambda: now + 900)(request)

    assert dict(again.headers) == dict(fresh.headers)
    assert again.headers["X-Date"] == "20261123T031905Z"
    assert again.url == fresh.url


@pytest.mark.parametrize(
    ("authority", "host"),
    [
        ("host:80", "host"),
        ("host:443", "host"),
        ("host", "host"),
        ("host:8080", "host:8080"),
        ("[::1]:443", "[::1]"),
        ("[::1]", "[::1]"),
        ("[::80]", "[::80]"),
    ],
)
def test_a_default_port_is_not_part_of_the_host_signed(authority: str, host: str) -> None:
    assert {canonical_url(f"https://{authority}/{rest}")[1] for rest in ("", "?a=1", "?a=%7e")} == {host}


def test_a_user_in_the_address_is_not_part_of_the_host_signed() -> None:
    auth = VolcengineAuth(KEYS, "rtc", "cn-north-1", lambda: 0)
    plain, with_user = (requests.Request("GET", url).prepare() for url in ("https://host/", "https://user@host/"))

    assert auth(with_user).headers["Authorization"] == auth(plain).headers["Authorization"]


def test_a_header_is_signed_trimmed_also_as_bytes() -> None:
    headers = {"x-one": " a  b ", "x-two": b"\tc", "content-type": "text", "accept": "*/*"}

    assert others_to_sign(headers.items()) == {"x-one": "a  b", "x-two": "c", "content-type": "text"}


@pytest.mark.parametrize("body", [iter([b"part"]), io.BytesIO(b"all")], ids=["iterator", "file"])
def test_a_body_that_cannot_be_hashed_first_is_refused(body: object) -> None:
    request = requests.Request("POST", URL).prepare()
    request.body = body

    with pytest.raises(TypeError, match="body cannot be signed: pass text or bytes"):
        VolcengineAuth(KEYS, "rtc", "cn-north-1")(request)


def test_the_key_is_derived_once_for_a_day_region_service_and_secret() -> None:
    _day.cache_clear()
    at = seconds("20261123T030405Z")
    for _ in range(3):
        sign(VolcengineAuth(KEYS, "rtc", "cn-north-1", lambda: at))
    assert _day.cache_info().misses == 1

    for keys, service, region, then in (
        (KEYS, "rtc", "cn-north-1", at + DAY_SECONDS),
        (KEYS, "rtc", "ap-singapore-1", at),
        (KEYS, "iam", "cn-north-1", at),
        (SigningKeys("an-access-key", "another-secret"), "rtc", "cn-north-1", at),
    ):
        sign(VolcengineAuth(keys, service, region, lambda then=then: then))
    assert _day.cache_info().misses == 5


def test_what_is_kept_is_bounded() -> None:
    assert 0 < (_day.cache_info().maxsize or 0) <= 100
    assert 0 < (canonical_url.cache_info().maxsize or 0) <= 10_000


@pytest.mark.parametrize("show", [repr, str, "{0!r:>1}".format])
def test_keys_are_never_shown(show: Callable[[object], str]) -> None:
    shown = show(TOKEN_KEYS) + show(VolcengineAuth(TOKEN_KEYS, "rtc", "cn-north-1"))

    assert not any(secret in shown for secret in TOKEN_KEYS.secrets)
    assert TOKEN_KEYS.secrets == ("an-access-key", "a-secret-key", "a-session-token")
    assert KEYS.secrets == ("an-access-key", "a-secret-key")
