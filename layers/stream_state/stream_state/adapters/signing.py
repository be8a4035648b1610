"""Volcengine's HMAC-SHA256 request signature, as an authentication of `requests` (volcengine.com/docs/6369/67269)."""

import hashlib
import hmac
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from operator import itemgetter
from typing import Any
from urllib.parse import parse_qsl, quote, unquote_to_bytes, urlsplit

from requests import PreparedRequest
from requests.auth import AuthBase
from requests.structures import CaseInsensitiveDict

from stream_state.clock import CLOCK, Clock

ALGORITHM = "HMAC-SHA256"
_ALWAYS_SIGNED = frozenset({"content-type", "content-md5"})
_HASH_OF_NOTHING = hashlib.sha256(b"").hexdigest()


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


@dataclass(eq=False)
class VolcengineAuth(AuthBase):
    """Signs a request as of now: `requests.get(url, auth=VolcengineAuth(keys, "rtc", "cn-north-1"))`.

    The signer rewrites the URL to its canonical form, so that `requests` sends what was signed.
    """

    keys: SigningKeys
    service: str
    region: str
    clock: Clock = CLOCK

    def __call__(self, r: PreparedRequest) -> PreparedRequest:
        """Sign the prepared request in place; a body that is neither text nor bytes raises `TypeError`."""
        r.url, host, path, query = canonical_url(r.url or "")
        date = _date(int(self.clock.now()))
        headers = headers_to_sign(host, r.headers)
        headers["x-date"] = r.headers["X-Date"] = date
        headers["x-content-sha256"] = r.headers["X-Content-Sha256"] = _body_hash(r.body)
        if self.keys.session_token:
            headers["x-security-token"] = r.headers["X-Security-Token"] = self.keys.session_token
        elif "x-security-token" in headers:
            del headers["x-security-token"], r.headers["X-Security-Token"]
        signed_headers, canonical = canonical_request(r.method or "", path, query, headers)
        scope = f"{date[:8]}/{self.region}/{self.service}/request"
        to_sign = f"{ALGORITHM}\n{date}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
        key = signing_key(self.keys.secret_access_key, date[:8], self.region, self.service)
        signature = hmac.digest(key, to_sign.encode(), "sha256").hex()
        credential = f"{self.keys.access_key_id}/{scope}"
        r.headers["Authorization"] = (
            f"{ALGORITHM} Credential={credential}, SignedHeaders={signed_headers}, Signature={signature}"
        )
        return r


# Sweeps and waits ask about the same users again and again, and this takes as long as all the rest of signing.
@lru_cache(maxsize=1024)
def canonical_url(url: str) -> tuple[str, str, str, str]:
    """The URL with path and query encoded by RFC 3986 and the query sorted by name; its host, path and query."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2].lower().removesuffix(":80").removesuffix(":443")
    path = quote(unquote_to_bytes(parts.path)) or "/"
    # Bytes that are not UTF-8 stay the bytes that they are. Values of one name stay in their order.
    pairs = parse_qsl(parts.query, keep_blank_values=True, errors="surrogateescape")
    query = "&".join([f"{_encoded(name)}={_encoded(value)}" for name, value in sorted(pairs, key=itemgetter(0))])
    return f"{parts.scheme}://{parts.netloc}{path}" + (query and f"?{query}"), host, path, query


def headers_to_sign(host: str, headers: CaseInsensitiveDict[Any]) -> dict[str, str]:
    """The headers that the signature covers, by lower-case names, with trimmed values."""
    signed = {"host": host}
    for name, value in headers.lower_items():
        if name[:2] == "x-" or name in _ALWAYS_SIGNED:
            signed[name] = value.strip() if isinstance(value, str) else value.decode("latin-1").strip()
    return signed


def canonical_request(method: str, path: str, query: str, headers: Mapping[str, str]) -> tuple[str, str]:
    """The names of the signed headers, and the text whose hash is signed; path and query are canonical already."""
    names = sorted(headers)
    lines = "".join([f"{name}:{headers[name]}\n" for name in names])
    signed_headers = ";".join(names)
    return signed_headers, f"{method}\n{path}\n{query}\n{lines}\n{signed_headers}\n{headers['x-content-sha256']}"


@lru_cache(maxsize=16)
def signing_key(secret_access_key: str, day: str, region: str, service: str) -> bytes:
    """The key derived for one day (YYYYMMDD), region and service; the secret is used as its raw text."""
    key = secret_access_key.encode()
    for part in (day, region, service, "request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key


# The requests of a second have one date.
@lru_cache(maxsize=1)
def _date(seconds: int) -> str:
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(seconds))


def _encoded(text: str) -> str:
    return quote(text, safe="", errors="surrogateescape")


def _body_hash(body: object) -> str:
    if body is None:
        return _HASH_OF_NOTHING
    if not isinstance(body, str | bytes):
        # A stream cannot be hashed before it is sent.
        raise TypeError(f"a {type(body).__name__} body cannot be signed: pass text or bytes")
    return hashlib.sha256(body.encode() if isinstance(body, str) else body).hexdigest()
