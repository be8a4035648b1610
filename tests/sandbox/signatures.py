"""The vendor's signatures, of calls and of callback events, written for this sandbox."""

import hashlib
import hmac
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from urllib.parse import parse_qsl, quote, urlencode

from tests.sandbox.server import Request

# The callback key of the vendor's console.
CALLBACK_KEY = "sandbox-callback-key"


@dataclass(frozen=True)
class Keys:
    """One key pair that the service accepts, with a session token if it is temporary."""

    access_key_id: str
    secret_access_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)


KEYS = Keys("sandbox-access-key-1", "sandbox-secret-key-1")
Verify = Callable[[Request, Keys], bool]


def verify_signature(request: Request, keys: Keys) -> bool:
    """Whether the Authorization header is what these keys sign for this request (69859, written for this simulator)."""
    fields = dict(part.strip().partition("=")[::2] for part in request.header("Authorization")[12:].split(","))
    scope = f"{request.header('X-Date')[:8]}/cn-north-1/rtc/request"
    signed = sorted(fields.get("SignedHeaders", "").split(";"))
    required = {"host", "x-date"} | ({"x-security-token"} if request.header("X-Security-Token") else set())
    if fields.get("Credential") != f"{keys.access_key_id}/{scope}" or not required <= set(signed):
        return False
    body_hash = hashlib.sha256(request.body).hexdigest()
    if request.header("X-Content-Sha256", body_hash) != body_hash:
        return False
    query = urlencode(sorted(parse_qsl(request.query, keep_blank_values=True)), safe="-_.~", quote_via=quote)
    headers = "".join(f"{name}:{request.header(name).strip()}\n" for name in signed)
    canonical = "\n".join((request.method, request.path or "/", query, headers, ";".join(signed), body_hash))
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    text = "\n".join(("HMAC-SHA256", request.header("X-Date"), scope, digest))
    key = keys.secret_access_key.encode()
    for part in (*scope.split("/"), text):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return hmac.compare_digest(key.hex(), fields.get("Signature", ""))


def signed(event: dict[str, str]) -> str:
    """A callback event as of now, with its signature (69820)."""
    now = datetime.now(UTC)
    data = json.loads(event["EventData"]) | {"Timestamp": int(now.timestamp() * 1000)}
    fields = event | {"EventData": json.dumps(data), "EventTime": now.isoformat()}
    fields.pop("Signature", None)
    digest = hashlib.sha256("".join(sorted([*fields.values(), CALLBACK_KEY])).encode()).hexdigest()
    return json.dumps(fields | {"Signature": digest})
