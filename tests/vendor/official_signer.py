"""The vendor's own signer, as a second opinion on every signature: `Simulator(verify=verify)`."""

from datetime import UTC, datetime
from urllib.parse import parse_qs

from volcengine.auth.SignerV4 import SignerV4
from volcengine.auth.SignParam import SignParam
from volcengine.Credentials import Credentials

from tests.sandbox.server import Request
from tests.sandbox.signatures import Keys


def headers_signed_by_vendor(
    method: str, host: str, path: str, query: str, keys: Keys, date: datetime, headers: dict[str, str] | None = None
) -> dict[str, str]:
    """The headers with which the vendor's signer sends a request without a body."""
    param = SignParam()
    param.method, param.host, param.path, param.body, param.date = method, host, path, "", date
    param.query = {name: sorted(values) for name, values in parse_qs(query, keep_blank_values=True).items()}
    param.header_list = {"Host": host, **(headers or {})}
    credentials = Credentials(keys.access_key_id, keys.secret_access_key, "rtc", "cn-north-1", keys.session_token or "")
    return {"Authorization": SignerV4.sign_only(param, credentials).authorization, **param.header_list}


def verify(request: Request, keys: Keys) -> bool:
    """Whether the vendor's signer gives this request the Authorization that it carries."""
    date = datetime.strptime(request.header("X-Date"), "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    signed = {name: request.header(name) for name in ("Content-Type",) if request.header(name)}
    host = request.header("Host")
    expected = headers_signed_by_vendor(request.method, host, request.path, request.query, keys, date, signed)
    return expected["Authorization"] == request.header("Authorization")
