"""Volcengine's HMAC-SHA256 request signature, as an authentication of `requests`."""

import hashlib
import hmac
import re
import time
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, quote, unquote_to_bytes, urlsplit

from requests import PreparedRequest
from requests.auth import AuthBase

if TYPE_CHECKING:
    from _hashlib import HASH

ALGORITHM = "HMAC-SHA256"
_ALWAYS_SIGNED = frozenset({"content-type", "content-md5"})
_HASH_OF_NOTHING = hashlib.sha256(b"").hexdigest()
# A URL in which nothing is to be decoded or encoded, such as those of this project's calls: taking any other one apart
# takes longer than all the rest of signing.
_UNRESERVED = "[A-Za-z0-9._~-]*+"
_PAIR = f"{_UNRESERVED}={_UNRESERVED}"
_PLAIN_URL = re.compile(
    rf"(https?://([A-Za-z0-9.-]+(?::[0-9]+)?))(/[A-Za-z0-9._~/-]*)\?({_PAIR}(?:&{_PAIR})*+)"
).fullmatch


@dataclass(frozen=True, slots=True)
class SigningKeys:
    """A key pair of Volcengine, with a session token if it is temporary; never shown by `repr`."""

    access_key_id: str = field(repr=False)
    secret_access_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)

    @property
    def secrets(self) -> tuple[str, ...]:
        """All texts that must never be shown."""
        return tuple(filter(None, (self.access_key_id, self.secret_access_key, self.session_token)))


class VolcengineAuth(AuthBase):
    """Signs a request at the time it is sent: `requests.get(url, auth=VolcengineAuth(keys, "rtc", "cn-north-1"))`.

    Rules: volcengine.com/docs/6369/67269. The request's URL is rewritten to its canonical form, so that what is
    sent is what was signed. Bodies are text or bytes; a stream raises `TypeError`, since it cannot be hashed first.
    """

    def __init__(self, keys: SigningKeys, service: str, region: str, clock: Callable[[], float] = time.time) -> None:
        self._keys = keys
        self._service = service
        self._region = region
        self._clock = clock

    def __call__(self, r: PreparedRequest) -> PreparedRequest:
        """Sign the prepared request in place."""
        r.url, host, path, query = canonical_url(r.url or "")
        date = _date(int(self._clock()))
        body_hash = hashlib.sha256(_body_bytes(r.body)).hexdigest() if r.body is not None else _HASH_OF_NOTHING
        headers = {"host": host, "x-content-sha256": body_hash, "x-date": date}
        headers |= others_to_sign(r.headers.lower_items(), headers)
        r.headers["X-Date"] = date
        r.headers["X-Content-Sha256"] = body_hash
        if self._keys.session_token:
            r.headers["X-Security-Token"] = headers["x-security-token"] = self._keys.session_token
        elif "x-security-token" in headers:
            del headers["x-security-token"], r.headers["X-Security-Token"]
        r.headers["Authorization"] = self._authorization(r.method or "", path, query, headers, date)
        return r

    def _authorization(self, method: str, path: str, query: str, headers: Mapping[str, str], date: str) -> str:
        canonical, names = canonical_request(method, path, query, headers)
        scope, inner, outer = _day(date[:8], self._keys.secret_access_key, self._region, self._service)
        to_sign = f"{ALGORITHM}\n{date}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
        inner, outer = inner.copy(), outer.copy()
        inner.update(to_sign.encode())
        outer.update(inner.digest())
        credential = f"{self._keys.access_key_id}/{scope}"
        return f"{ALGORITHM} Credential={credential}, SignedHeaders={names}, Signature={outer.hexdigest()}"


# Users are asked for again and again: by whoever waits for one, and by each sweep of a short list.
@lru_cache(maxsize=1024)
def canonical_url(url: str) -> tuple[str, str, str, str]:
    """The URL in its canonical form; of it the host to sign, the path and the query."""
    if plain := _PLAIN_URL(url):
        origin, host, path, query = plain.groups()
        # With the lowest of all characters for =, pairs compare as their names do.
        pairs = query.replace("=", "\0").split("&")
        if pairs != sorted(pairs):
            query = "&".join(sorted(query.split("&"), key=_name))
    else:
        parts = urlsplit(url)
        origin, host = f"{parts.scheme}://{parts.netloc}", parts.netloc.rpartition("@")[2]
        path, query = canonical_path(parts.path), canonical_query(parts.query)
    host = host.removesuffix(":80").removesuffix(":443")
    return origin + path + (query and f"?{query}"), host, path, query


def canonical_path(path: str) -> str:
    """The path, decoded and encoded again by RFC 3986; `/` if there is none."""
    return quote(unquote_to_bytes(path)) or "/"


def canonical_query(query: str) -> str:
    """The query, decoded and encoded again by RFC 3986, sorted by name; values of one name stay in their order."""
    pairs = parse_qsl(query, keep_blank_values=True, errors="surrogateescape")
    pairs.sort(key=lambda pair: pair[0])
    return "&".join(f"{_encoded(name)}={_encoded(value)}" for name, value in pairs)


def others_to_sign(headers: Iterable[tuple[str, str | bytes]], known: Container[str] = ()) -> dict[str, str]:
    """The headers that the signature covers besides those that are known, of those given with lower-case names."""
    return {
        name: value.strip() if isinstance(value, str) else value.decode("latin-1").strip()
        for name, value in headers
        if (name[:2] == "x-" or name in _ALWAYS_SIGNED) and name not in known
    }


def canonical_request(method: str, path: str, query: str, headers: Mapping[str, str]) -> tuple[str, str]:
    """The text whose hash is signed, and the names of the headers in it; what is given is canonical already."""
    body_hash = headers["x-content-sha256"]
    if len(headers) == 3:  # noqa: PLR2004 (those named below, which every request has)
        # Calls with keys that are not temporary have no others: to join these as others takes a sixth of all signing.
        signed = "host;x-content-sha256;x-date"
        lines = f"host:{headers['host']}\nx-content-sha256:{body_hash}\nx-date:{headers['x-date']}\n"
    else:
        names = sorted(headers)
        signed = ";".join(names)
        lines = "".join([f"{name}:{headers[name]}\n" for name in names])
    return f"{method}\n{path}\n{query}\n{lines}\n{signed}\n{body_hash}", signed


def signing_key(secret_access_key: str, day: str, region: str, service: str) -> bytes:
    """The key derived for one day (YYYYMMDD), region and service; the secret is used as its raw text."""
    key = secret_access_key.encode()
    for part in (day, region, service, "request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key


# `hmac` would begin with the key for each text, which takes most of its time.
@lru_cache(maxsize=16)
def _day(day: str, secret_access_key: str, region: str, service: str) -> "tuple[str, HASH, HASH]":
    """The scope of a day, and the inner and the outer hash of HMAC (RFC 2104) to which the day's key has been given."""
    block = signing_key(secret_access_key, day, region, service).ljust(hashlib.sha256().block_size, b"\0")
    inner, outer = (hashlib.sha256(bytes(byte ^ pad for byte in block)) for pad in (0x36, 0x5C))
    return f"{day}/{region}/{service}/request", inner, outer


@lru_cache(maxsize=16)
def _date(seconds: int) -> str:
    """The same for all requests of a second."""
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(seconds))


def _name(pair: str) -> str:
    return pair.partition("=")[0]


def _encoded(text: str) -> str:
    return quote(text, safe="", errors="surrogateescape")


def _body_bytes(body: object) -> bytes:
    if isinstance(body, str):
        return body.encode()
    if isinstance(body, bytes):
        return body
    message = f"a {type(body).__name__} body cannot be signed: pass text or bytes"
    raise TypeError(message)
