"""The vendor's own signer, as a second opinion on every signature: `Simulator(verify=verify)`."""

from datetime import UTC, datetime
from urllib.parse import parse_qsl

from volcengine.auth.SignerV4 import SignerV4
from volcengine.auth.SignParam import SignParam
from volcengine.Credentials import Credentials

from tests.sandbox.server import Request
from tests.sandbox.simulator import Keys


def headers_signed_by_vendor(
    method: str, host: str, path: str, query: str, keys: Keys, date: datetime, headers: dict[str, str] | None = None
) -> dict[str, str]:
    """The headers with which the vendor's signer sends a request without a body."""
    parameters: dict[str, list[str]] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        parameters.setdefault(name, []).append(value)
    param = SignParam()
    param.method, param.host, param.path, param.body = method, host, path or "/", ""
    param.query = {name: sorted(values) for name, values in parameters.items()}
    param.date = date
    param.header_list = {"Host": host, **(headers or {})}
    credentials = Credentials(keys.access_key_id, keys.secret_access_key, "rtc", "cn-north-1", keys.session_token or "")
    result = SignerV4.sign_only(param, credentials)
    return {
        **param.header_list,
        "Authorization": result.authorization,
    }


def verify(request: Request, keys: Keys) -> bool:
    """Whether the vendor's signer gives this request the Authorization that it carries."""
    date = datetime.strptime(request.header("X-Date") or "", "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    content_type = request.header("Content-Type")
    headers = {"Content-Type": content_type} if content_type else {}
    expected = headers_signed_by_vendor(
        request.method, request.header("Host") or "", request.path, request.query, keys, date, headers
    )
    return expected["Authorization"] == request.header("Authorization")
