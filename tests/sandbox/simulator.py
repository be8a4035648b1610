"""The RTC service on loopback: it speaks the vendor's protocol, holds rooms, and fails in any way it is told to."""

import hashlib
import hmac
import json
import secrets
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl, quote, unquote

from tests.sandbox.server import RESET, LoopbackServer, Request, Response

MEDIA_TYPES = ("Audio", "Video", "ScreenAudio", "ScreenVideo")
ACTION, VERSION = "GetUserStreamState", "2020-12-01"
APP_ID = "661e8f2a9b3c4d5e6f708192"
CLOCK_WINDOW_SECONDS = 900
ID_MAX_CHARACTERS = 128
ID_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789@._-")
ADMIN_PREFIX = "/_simulator/"


@dataclass(frozen=True)
class Keys:
    """One key pair that the service accepts, with a session token if it is temporary."""

    access_key_id: str
    secret_access_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)


KEYS = Keys("sandbox-access-key-1", "sandbox-secret-key-1")
Verify = Callable[[Request, Keys], bool]


@dataclass
class Refusal(Exception):
    """An Error of the envelope, with its HTTP status."""

    status: int
    code: str
    message: str
    code_n: int = 0


@dataclass
class Exchange:
    """One call: the request, the answer that the service would give, and the connection to give another one on."""

    request: Request
    params: dict[str, str]
    status: int
    envelope: dict[str, Any]
    connection: socket.socket

    def response(self) -> Response:
        """The answer as it stands."""
        return Response(self.status, json.dumps(self.envelope).encode(), [("Content-Type", "application/json")])


# A fault takes the exchange over: it returns another response, or uses the connection itself and returns None.
Fault = Callable[[Exchange], Response | None]


def _envelope(exchange: Exchange, result: object, **more: object) -> bytes:
    metadata = {key: value for key, value in exchange.envelope["ResponseMetadata"].items() if key != "Error"}
    return json.dumps({"ResponseMetadata": metadata | more, "Result": result}).encode()


def honest(exchange: Exchange) -> Response:
    """Answer as the service would; stands in a list of faults for a call that succeeds."""
    return exchange.response()


def canned(status: int, body: str | bytes | dict[str, Any] = b"", headers: dict[str, str] | None = None) -> Fault:
    """Answer with exactly this, whatever was asked."""
    text = json.dumps(body) if isinstance(body, dict) else body
    data = text.encode() if isinstance(text, str) else text
    return lambda exchange: Response(status, data, list((headers or {"Content-Type": "application/json"}).items()))


def error(
    code: str, status: int = 200, code_n: int = 0, message: str = "refused", headers: dict[str, str] | None = None
) -> Fault:
    """Answer with an Error in the envelope; `headers` can hold a Retry-After."""

    def fault(exchange: Exchange) -> Response:
        body = _envelope(exchange, {}, Error={"CodeN": code_n, "Code": code, "Message": message})
        return Response(status, body, [("Content-Type", "application/json"), *(headers or {}).items()])

    return fault


def result(value: object) -> Fault:
    """Answer 200 with this Result."""
    return lambda exchange: Response(200, _envelope(exchange, value), [("Content-Type", "application/json")])


def states(entries: object) -> Fault:
    """Answer 200 for the room and user asked, with these StreamStates."""

    def fault(exchange: Exchange) -> Response | None:
        target = {name: exchange.params.get(name) for name in ("RoomId", "UserId")}
        return result(target | {"StreamStates": entries})(exchange)

    return fault


def reset(exchange: Exchange) -> None:
    """Reset the connection instead of answering."""
    exchange.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)


def cut(after_bytes: int = 0) -> Fault:
    """Close the connection after so many bytes of the answer, headers included."""

    def fault(exchange: Exchange) -> None:
        exchange.connection.sendall(exchange.response().wire()[:after_bytes])

    return fault


def drip(seconds_per_byte: float, then: Fault = honest) -> Fault:
    """Send the answer one byte at a time."""

    def fault(exchange: Exchange) -> None:
        if (response := then(exchange)) is not None:
            # The connection ends with the answer; a client that is not told might use it again just then.
            told = replace(response, headers=[*response.headers, ("Connection", "close")])
            for byte in told.wire():
                exchange.connection.sendall(bytes([byte]))
                time.sleep(seconds_per_byte)

    return fault


def delay(seconds: float, then: Fault = honest) -> Fault:
    """Answer later."""

    def fault(exchange: Exchange) -> Response | None:
        time.sleep(seconds)
        return then(exchange)

    return fault


@dataclass(frozen=True)
class Arrival:
    """One call as it came in: monotonic time, what it asked and carried, and the code answered ("OK" if none)."""

    at_seconds: float
    params: dict[str, str]
    headers: dict[str, str]
    outcome: str
    fault: bool


def verify_signature(request: Request, keys: Keys, region: str = "cn-north-1", service: str = "rtc") -> bool:
    """Whether the Authorization header is what these keys sign for this request (69859, written for this simulator)."""
    fields = dict(part.strip().partition("=")[::2] for part in (request.header("Authorization") or "")[12:].split(","))
    scope = f"{(request.header('X-Date') or '')[:8]}/{region}/{service}/request"
    signed = fields.get("SignedHeaders", "").split(";")
    required = {"host", "x-date"} | ({"x-security-token"} if request.header("X-Security-Token") else set())
    if fields.get("Credential") != f"{keys.access_key_id}/{scope}" or not required <= set(signed):
        return False
    body_hash = hashlib.sha256(request.body).hexdigest()
    if request.header("X-Content-Sha256") not in (None, body_hash):
        return False
    values = {name: (request.header(name) or "").strip() for name in sorted(signed)}
    host, _, port = values["host"].partition(":")
    if port in ("80", "443"):
        values["host"] = host
    pairs = sorted(parse_qsl(request.query, keep_blank_values=True))
    query = "&".join(f"{quote(name, safe='-_.~')}={quote(value, safe='-_.~')}" for name, value in pairs)
    headers = "".join(f"{name}:{value}\n" for name, value in values.items())
    canonical = "\n".join((request.method, request.path or "/", query, headers, ";".join(values), body_hash))
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    text = "\n".join(("HMAC-SHA256", request.header("X-Date") or "", scope, digest))
    key = keys.secret_access_key.encode()
    for part in scope.split("/"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return hmac.compare_digest(hmac.new(key, text.encode(), hashlib.sha256).hexdigest(), fields.get("Signature", ""))


class Simulator(LoopbackServer):
    """The service with its rooms, keys, limits and faults; every attribute may be changed while it runs."""

    def __init__(
        self,
        keys: Iterable[Keys] = (KEYS,),
        app_ids: Iterable[str] = (APP_ID,),
        verify: Verify = verify_signature,
    ) -> None:
        self.keys = {pair.access_key_id: pair for pair in keys}
        self.app_ids = tuple(app_ids)
        self.verify = verify
        self.calls_per_second: int | None = 60
        # The vendor does not publish what an unknown room or user gets: an error, or four zeros.
        self.unknown_is_error = True
        self.clock: Callable[[], float] = time.monotonic
        self.delay_seconds: Callable[[], float] = lambda: 0.0
        self.fault: Callable[[Exchange], Fault | None] = lambda exchange: None
        self.arrivals: deque[Arrival] = deque(maxlen=100_000)
        self.worst_second = 0
        self._faults: deque[Fault] = deque()
        self._rooms: dict[tuple[str, str], dict[str, set[str]]] = {}
        self._window: deque[float] = deque()
        self._granted: deque[float] = deque()
        self._lock = threading.Lock()
        super().__init__(self._answer)

    def rotate(self, *keys: Keys) -> None:
        """Accept only these key pairs from now on."""
        self.keys = {pair.access_key_id: pair for pair in keys}

    def fail_next(self, *faults: Fault) -> None:
        """Let the next calls meet these faults, one each."""
        with self._lock:
            self._faults.extend(faults)

    def join(self, room_id: str, user_id: str, app_id: str | None = None) -> None:
        """Let a user enter a room, which comes to be with its first user."""
        with self._lock:
            self._rooms.setdefault((app_id or self.app_ids[0], room_id), {}).setdefault(user_id, set())

    def leave(self, room_id: str, user_id: str, app_id: str | None = None) -> None:
        """Let a user leave; the room ends with its last user."""
        with self._lock:
            key = (app_id or self.app_ids[0], room_id)
            users = self._rooms.get(key, {})
            users.pop(user_id, None)
            if not users:
                self._rooms.pop(key, None)

    def publish(
        self, room_id: str, user_id: str, *media_types: str, on: bool = True, app_id: str | None = None
    ) -> None:
        """Switch media of a user on or off; the user joins if need be."""
        if unknown := set(media_types) - set(MEDIA_TYPES):
            raise ValueError(f"no such media type: {', '.join(sorted(unknown))}")
        self.join(room_id, user_id, app_id)
        with self._lock:
            media = self._rooms[app_id or self.app_ids[0], room_id][user_id]
            (media.update if on else media.difference_update)(media_types)

    def _answer(self, request: Request, connection: socket.socket) -> Response | None:
        if request.path.startswith(ADMIN_PREFIX):
            return self._administer(request)
        params = dict(parse_qsl(request.query, keep_blank_values=True))
        metadata: dict[str, Any] = {
            "RequestId": datetime.now(UTC).strftime("%Y%m%d%H%M%S") + secrets.token_hex(9).upper(),
            "Action": params.get("Action", ""),
            "Version": params.get("Version", ""),
            "Service": "rtc",
            "Region": "cn-north-1",
        }
        envelope: dict[str, Any] = {"ResponseMetadata": metadata}
        outcome, status = "OK", 200
        with self._lock:
            now = self.clock()
            self._window.append(now)
            while self._window[0] <= now - 1:
                self._window.popleft()
            self.worst_second = max(self.worst_second, len(self._window))
            try:
                envelope["Result"] = self._look_up(request, params, now)
            except Refusal as refusal:
                outcome, status, envelope["Result"] = refusal.code, refusal.status, {}
                metadata["Error"] = {"CodeN": refusal.code_n, "Code": refusal.code, "Message": refusal.message}
            exchange = Exchange(request, params, status, envelope, connection)
            fault = self._faults.popleft() if self._faults else self.fault(exchange)
            headers = {name.lower(): value for name, value in request.headers}
            self.arrivals.append(Arrival(now, params, headers, outcome, fault is not None))
        if pause_seconds := self.delay_seconds():
            time.sleep(pause_seconds)
        return (fault or honest)(exchange)

    def _look_up(self, request: Request, params: dict[str, str], now: float) -> dict[str, Any]:
        for name in ("Action", "Version"):
            if name not in params:
                raise Refusal(400, "MissingParameter", f"The request is missing {name} parameter.", 100002)
        if (params["Action"], params["Version"]) != (ACTION, VERSION) or request.method != "GET" or request.path != "/":
            message = f"Could not find operation {params['Action']} for version {params['Version']}."
            raise Refusal(404, "InvalidActionOrVersion", message, 100008)
        self._check_signature(request)
        self._check_rate(now)
        for name in ("AppId", "RoomId", "UserId"):
            if not params.get(name):
                raise Refusal(400, "MissingParameter", f"The request is missing {name} parameter.")
        for name in ("RoomId", "UserId"):
            if len(params[name]) > ID_MAX_CHARACTERS or not set(params[name]) <= ID_CHARACTERS:
                raise Refusal(400, "InvalidParameter", f"{name} is not legal.")
        if params["AppId"] not in self.app_ids:
            raise Refusal(400, "InvalidParameter.AccountIdMismatch", "The AppId does not belong to this account.")
        users = self._rooms.get((params["AppId"], params["RoomId"]))
        media = (users or {}).get(params["UserId"])
        if media is None and self.unknown_is_error:
            kind = "Room" if users is None else "User"
            raise Refusal(404, f"InternalError.{kind}NotFound", f"{kind} is not found.")
        entries = [{"MediaType": medium, "State": int(medium in (media or ()))} for medium in MEDIA_TYPES]
        return {"RoomId": params["RoomId"], "UserId": params["UserId"], "StreamStates": entries}

    def _check_signature(self, request: Request) -> None:
        authorization = request.header("Authorization")
        if not authorization:
            raise Refusal(401, "MissingAuthenticationToken", "The request carries no Authorization.", 100003)
        if not authorization.startswith("HMAC-SHA256 Credential="):
            raise Refusal(400, "InvalidAuthorization", "The Authorization header is malformed.", 100024)
        try:
            sent = datetime.strptime(request.header("X-Date") or "", "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
        except ValueError:
            raise Refusal(400, "InvalidTimestamp", "The X-Date header is malformed.", 100006) from None
        if abs(time.time() - sent) > CLOCK_WINDOW_SECONDS:
            raise Refusal(400, "InvalidTimestamp", "The request has expired.", 100006)
        access_key_id = authorization[len("HMAC-SHA256 Credential=") :].partition("/")[0]
        keys = self.keys.get(access_key_id)
        # The vendor's messages repeat what was sent; whoever logs them unredacted must be caught here.
        if keys is None:
            raise Refusal(401, "InvalidAccessKey", f"The access key {access_key_id} is not valid.", 100009)
        token = request.header("X-Security-Token")
        if token != keys.session_token:
            raise Refusal(401, "InvalidSecretToken", f"The security token {token} is not valid.", 100026)
        if not self.verify(request, keys):
            message = f"The signature of {access_key_id} does not match: {authorization}"
            raise Refusal(401, "SignatureDoesNotMatch", message, 100010)

    def _check_rate(self, now: float) -> None:
        while self._granted and self._granted[0] <= now - 1:
            self._granted.popleft()
        if self.calls_per_second is not None and len(self._granted) >= self.calls_per_second:
            raise Refusal(429, "FlowLimitExceeded", "The request was rejected because of flow control.", 100018)
        self._granted.append(now)

    def _administer(self, request: Request) -> Response:
        """Let a person change rooms with curl: PUT or DELETE rooms/{room}/users/{user}, GET rooms."""
        app_id = dict(parse_qsl(request.query)).get("app_id", self.app_ids[0])
        match [request.method, *(unquote(part) for part in request.path.removeprefix(ADMIN_PREFIX).split("/"))]:
            case ["PUT", "rooms", room_id, "users", user_id]:
                try:
                    wanted = {_media_type(name): bool(on) for name, on in json.loads(request.body or b"{}").items()}
                except (ValueError, AttributeError) as problem:
                    return _json(400, {"error": str(problem), "example": {"audio": True, "screen_video": False}})
                self.join(room_id, user_id, app_id)
                for medium, on in wanted.items():
                    self.publish(room_id, user_id, medium, on=on, app_id=app_id)
            case ["DELETE", "rooms", room_id, "users", user_id]:
                self.leave(room_id, user_id, app_id)
            case ["GET", "rooms"]:
                pass
            case _:
                return _json(404, {"error": "known here: PUT or DELETE rooms/{room}/users/{user}, GET rooms"})
        with self._lock:
            rooms = {
                room: {user: sorted(media) for user, media in users.items()}
                for (app, room), users in self._rooms.items()
                if app == app_id
            }
        return _json(200, {"app_id": app_id, "rooms": rooms})


def _media_type(name: str) -> str:
    """The vendor's name of a medium written in any common way."""
    plain = name.replace("_", "").lower()
    for medium in MEDIA_TYPES:
        if medium.lower() == plain:
            return medium
    raise ValueError(f"no such medium: {name}")


def _json(status: int, body: dict[str, Any]) -> Response:
    return Response(status, json.dumps(body).encode() + b"\n", [("Content-Type", "application/json")])
