"""Volcengine's HMAC-SHA256 request signature, as an authentication of `requests`."""

import hashlib
import hmac
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from urllib.parse import parse_qsl, quote, unquote_to_bytes, urlsplit, urlunsplit

from requests import PreparedRequest
from requests.auth import AuthBase

ALGORITHM = "HMAC-SHA256"
_ALWAYS_SIGNED = frozenset({"host", "content-type", "content-md5"})
_DEFAULT_PORTS = frozenset({"80", "443"})


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
        url = urlsplit(str(r.url))
        path, query = canonical_path(url.path), canonical_query(url.query)
        r.url = urlunsplit((url.scheme, url.netloc, path, query, ""))
        date = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(self._clock()))
        body_hash = hashlib.sha256(_body_bytes(r.body)).hexdigest()
        r.headers.update({"X-Date": date, "X-Content-Sha256": body_hash})
        r.headers.pop("X-Security-Token", None)
        if self._keys.session_token:
            r.headers["X-Security-Token"] = self._keys.session_token
        headers = signed_headers({"Host": url.netloc.rpartition("@")[2], **r.headers})
        canonical = canonical_request(str(r.method), path, query, headers, body_hash)
        r.headers["Authorization"] = self._authorization(canonical, date, ";".join(headers))
        return r

    def _authorization(self, canonical: str, date: str, header_names: str) -> str:
        scope = f"{date[:8]}/{self._region}/{self._service}/request"
        to_sign = f"{ALGORITHM}\n{date}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
        key = signing_key(self._keys.secret_access_key, date[:8], self._region, self._service)
        signature = hmac.digest(key, to_sign.encode(), "sha256").hex()
        credential = f"{self._keys.access_key_id}/{scope}"
        return f"{ALGORITHM} Credential={credential}, SignedHeaders={header_names}, Signature={signature}"


def canonical_path(path: str) -> str:
    """The path, decoded and encoded again by RFC 3986; `/` if there is none."""
    return quote(unquote_to_bytes(path)) or "/"


def canonical_query(query: str) -> str:
    """The query, decoded and encoded again by RFC 3986, sorted by name; values of one name stay in their order."""
    pairs = parse_qsl(query, keep_blank_values=True, errors="surrogateescape")
    pairs.sort(key=lambda pair: pair[0])
    return "&".join(f"{_encoded(name)}={_encoded(value)}" for name, value in pairs)


def signed_headers(headers: Mapping[str, str | bytes]) -> dict[str, str]:
    """The headers that the signature covers, lower-case name to trimmed value, sorted by name."""
    chosen = {}
    for name, value in headers.items():
        lower = name.lower()
        if lower in _ALWAYS_SIGNED or lower.startswith("x-"):
            chosen[lower] = (value if isinstance(value, str) else value.decode("latin-1")).strip()
    host, _, port = chosen["host"].rpartition(":")
    if port in _DEFAULT_PORTS:
        chosen["host"] = host
    return dict(sorted(chosen.items()))


def canonical_request(method: str, path: str, query: str, headers: Mapping[str, str], body_hash: str) -> str:
    """The text whose hash is signed; path, query and headers are canonical already."""
    header_lines = "".join(f"{name}:{value}\n" for name, value in headers.items())
    return f"{method}\n{path}\n{query}\n{header_lines}\n{';'.join(headers)}\n{body_hash}"


@lru_cache(maxsize=16)
def signing_key(secret_access_key: str, day: str, region: str, service: str) -> bytes:
    """The key derived for one day (YYYYMMDD), region and service; the secret is used as its raw text."""
    key = secret_access_key.encode()
    for part in (day, region, service, "request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key


def _encoded(text: str) -> str:
    return quote(text, safe="", errors="surrogateescape")


def _body_bytes(body: object) -> bytes:
    if body is None:
        return b""
    if isinstance(body, str):
        return body.encode()
    if isinstance(body, bytes):
        return body
    message = f"a {type(body).__name__} body cannot be signed: pass text or bytes"
    raise TypeError(message)
