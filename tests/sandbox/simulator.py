"""The RTC service on loopback: it speaks the vendor's protocol, holds rooms, and fails as a test wants."""

import contextlib
import json
import re
import secrets
import socket
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, unquote

import requests

from tests.sandbox.server import LoopbackServer, Request, Response, send
from tests.sandbox.signatures import KEYS, Keys, Verify, signed, verify_signature

# The media as the vendor calls them, and by the names of this project.
MEDIA = {"Audio": "audio", "Video": "video", "ScreenAudio": "screen_audio", "ScreenVideo": "screen_video"}
APP_ID = "661e8f2a9b3c4d5e6f708192"
CLOCK_WINDOW_SECONDS = 900
LEGAL_ID = re.compile("[A-Za-z0-9@._-]{1,128}")
JSON = {"Content-Type": "application/json"}
# How often the vendor sends an event that is not answered 200.
PUSH_TRIES = 3
# The calls, with their versions.
STREAM_STATE, ONLINE_USERS, USERS_PROPERTY = "GetUserStreamState", "GetRoomOnlineUsers", "GetRoomUsersProperty"
VERSIONS = {STREAM_STATE: "2020-12-01", ONLINE_USERS: "2023-11-01", USERS_PROPERTY: "2023-11-01"}
MAX_PROPERTIES, MAX_INVISIBLE = 10, 10_000
METADATA = {"RequestId": "20261123030405SANDBOX", "Service": "rtc", "Region": "cn-north-1"}


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
        return Response(self.status, json.dumps(self.envelope).encode(), list(JSON.items()))


# A fault takes the exchange over: it returns another response, or uses the connection itself and returns None.
Fault = Callable[[Exchange], Response | None]


@dataclass(frozen=True)
class Arrival:
    """One call as it came in: headers by lower-case name, the code answered ("OK" if none), whether it met a fault."""

    headers: dict[str, str]
    outcome: str
    fault: bool
    action: str


@dataclass(frozen=True)
class Connection:
    """A user's connection to a room, as GetRoomUsersProperty describes it, and what the user publishes."""

    login_ms: int
    device: str
    is_visible: bool
    media: set[str] = field(default_factory=set)


class Simulator(LoopbackServer):
    """The service with its rooms, keys, limits and faults; every attribute may be changed while it runs."""

    def __init__(self, verify: Verify = verify_signature, port: int = 0) -> None:
        self.rotate(KEYS)
        self.app_ids: tuple[str, ...] = (APP_ID,)
        self.verify = verify
        # None: no call is limited. The presence calls have limits of their own, the last one for each AppId.
        self.calls_per_second: int | None = 60
        self.presence_per_second = {ONLINE_USERS: 40, USERS_PROPERTY: 10}
        self.withdrawn: set[str] = set()
        # The vendor does not publish what an unknown room or user gets: an error, or four zeros.
        self.unknown_is_error = True
        self.clock: Callable[[], float] = time.monotonic
        self.delay_seconds: Callable[[], float] = lambda: 0.0
        self.fault: Callable[[Exchange], Fault | None] = lambda exchange: None
        self.arrivals: deque[Arrival] = deque(maxlen=100_000)
        # By call, GetRoomUsersProperty with its AppId.
        self.worst_seconds: Counter[str] = Counter()
        self.next_faults: deque[Fault] = deque()
        # By AppId and room the users who are there.
        self.rooms: dict[tuple[str, str], dict[str, Connection]] = {}
        self._arrived: defaultdict[str, deque[float]] = defaultdict(deque)
        self._granted: defaultdict[str, deque[float]] = defaultdict(deque)
        self._lock = threading.RLock()
        # The address that callback events are sent to, if any, and the last events by room and user.
        self.push_to: str | None = None
        self.pushed: dict[tuple[str, str | None], str] = {}
        super().__init__(self._answer, port)

    def rotate(self, *keys: Keys) -> None:
        """Accept only these key pairs from now on."""
        self.keys = {pair.access_key_id: pair for pair in keys}

    def fail_next(self, *faults: Fault) -> None:
        """Let the next calls meet these faults, one each."""
        self.next_faults.extend(faults)

    def join(
        self, room_id: str, user_id: str, app_id: str | None = None, *, device: str = "web", is_visible: bool = True
    ) -> set[str]:
        """Let a user enter a room, which comes to be with its first user; what the user publishes."""
        users = self.rooms.setdefault((app_id or self.app_ids[0], room_id), {})
        if user_id not in users:
            users[user_id] = Connection(int(time.time() * 1000), device, is_visible)
            kind = "UserJoinRoom" if is_visible else "InvisibleUserJoinRoom"
            self._push(kind, app_id, RoomId=room_id, UserId=user_id, DeviceType=device)
        return users[user_id].media

    def published(self, room_id: str, user_id: str, app_id: str | None = None) -> set[str] | None:
        """What a user publishes; None if the user is not there."""
        user = self.rooms.get((app_id or self.app_ids[0], room_id), {}).get(user_id)
        return user.media if user else None

    def leave(self, room_id: str, user_id: str, app_id: str | None = None, reason: str = "userLeave") -> None:
        """Let a user leave; the room ends with its last user."""
        with self._lock:
            key = (app_id or self.app_ids[0], room_id)
            users = self.rooms.get(key, {})
            if user := users.pop(user_id, None):
                device = user.device
                self._push("UserLeaveRoom", app_id, RoomId=room_id, UserId=user_id, DeviceType=device, Reason=reason)
                if not users:
                    del self.rooms[key]
                    self._push("RoomDestroy", app_id, RoomId=room_id)

    def publish(
        self, room_id: str, user_id: str, *media_types: str, on: bool = True, app_id: str | None = None
    ) -> None:
        """Switch media of a user on or off; the user joins if need be."""
        if unknown := set(media_types) - MEDIA.keys():
            raise ValueError(f"no such media type: {', '.join(sorted(unknown))}")
        with self._lock:
            media = self.join(room_id, user_id, app_id)
            device = self.rooms[app_id or self.app_ids[0], room_id][user_id].device
            changed = [medium for medium in media_types if (medium in media) is not on]
            (media.update if on else media.difference_update)(media_types)
            for medium in changed:
                kind, reason = ("Start", {}) if on else ("Stop", {"Reason": "StreamStop"})
                data = {"RoomId": room_id, "UserId": user_id, "DeviceType": device, **reason}
                self._push(f"User{medium}Stream{kind}", app_id, **data)

    def _push(self, kind: str, app_id: str | None, **data: str) -> None:
        if self.push_to is None:
            return
        fields = {"EventType": kind, "EventData": json.dumps(data), "AppId": app_id or self.app_ids[0]}
        event = signed(fields | {"EventId": secrets.token_hex(16), "Version": "2020-12-01", "Nonce": "aaBc"})
        self.pushed[data["RoomId"], data.get("UserId")] = event
        for _ in range(PUSH_TRIES):
            with contextlib.suppress(requests.RequestException):
                if (
                    send("POST", self.push_to, data=event.encode(), headers=JSON, timeout=5).status_code
                    == HTTPStatus.OK
                ):
                    return

    def _answer(self, request: Request, connection: socket.socket) -> Response | None:
        if request.path.startswith("/_simulator/"):
            return self._administer(request)
        params = dict(parse_qsl(request.query, keep_blank_values=True))
        request_id = datetime.now(UTC).strftime("%Y%m%d%H%M%S") + secrets.token_hex(9).upper()
        called = {name: params.get(name, "") for name in ("Action", "Version")}
        metadata: dict[str, Any] = {**METADATA, "RequestId": request_id, **called}
        exchange = Exchange(request, params, 200, {"ResponseMetadata": metadata}, connection)
        outcome = "OK"
        with self._lock:
            now, action = self.clock(), called["Action"]
            counted = f"{action}#{params.get('AppId')}" if action == USERS_PROPERTY else action
            self._arrived[counted].append(now)
            for times in (self._arrived[counted], self._granted[counted]):
                while times and times[0] <= now - 1:
                    times.popleft()
            self.worst_seconds[counted] = max(self.worst_seconds[counted], len(self._arrived[counted]))
            try:
                exchange.envelope["Result"] = self._look_up(request, params, now, self._granted[counted])
            except Refusal as refusal:
                outcome, exchange.status, exchange.envelope["Result"] = refusal.code, refusal.status, {}
                metadata["Error"] = {"CodeN": refusal.code_n, "Code": refusal.code, "Message": refusal.message}
            fault = self.next_faults.popleft() if self.next_faults else self.fault(exchange)
            headers = {name.lower(): value for name, value in request.headers}
            self.arrivals.append(Arrival(headers, outcome, fault is not None, action))
        time.sleep(self.delay_seconds())
        return fault(exchange) if fault else exchange.response()

    def _look_up(self, request: Request, params: dict[str, str], now: float, granted: deque[float]) -> dict[str, Any]:
        action = params.get("Action", "")
        called = (request.method, request.path, action, params.get("Version"))
        if action in self.withdrawn or called != ("GET", "/", action, VERSIONS.get(action)):
            raise Refusal(404, "InvalidActionOrVersion", f"Could not find operation {called}.", 100008)
        self._check_signature(request)
        most = self.calls_per_second
        if most is not None and len(granted) >= self.presence_per_second.get(action, most):
            raise Refusal(429, "FlowLimitExceeded", "The request was rejected because of flow control.", 100018)
        granted.append(now)
        self._check_parameters(action, params)
        users = self.rooms.get((params["AppId"], params["RoomId"]))
        if action == ONLINE_USERS:
            return _online_users(users) if users else {"RoomExists": False}
        if action == USERS_PROPERTY:
            asked = [value for name, value in parse_qsl(request.query) if name == "UserIds"]
            if len(asked) > MAX_PROPERTIES:
                raise Refusal(400, "InvalidParameter", "There are too many UserIds.")
            return {"UserList": [_property(user_id, (users or {}).get(user_id)) for user_id in asked]}
        user = (users or {}).get(params["UserId"])
        if user is None and self.unknown_is_error:
            kind = "Room" if users is None else "User"
            raise Refusal(404, f"InternalError.{kind}NotFound", f"{kind} is not found.")
        published = user.media if user else ()
        entries = [{"MediaType": medium, "State": int(medium in published)} for medium in MEDIA]
        return {"RoomId": params["RoomId"], "UserId": params["UserId"], "StreamStates": entries}

    def _check_parameters(self, action: str, params: dict[str, str]) -> None:
        own = {STREAM_STATE: ("UserId",), ONLINE_USERS: (), USERS_PROPERTY: ("UserIds",)}[action]
        for name in ("AppId", "RoomId", *own):
            if not params.get(name):
                raise Refusal(400, "MissingParameter", f"The request is missing {name} parameter.")
            if name != "AppId" and not LEGAL_ID.fullmatch(params[name]):
                raise Refusal(400, "InvalidParameter", f"{name} is not legal.")
        if params["AppId"] not in self.app_ids:
            raise Refusal(400, "InvalidParameter.AccountIdMismatch", "The AppId does not belong to this account.")

    def _check_signature(self, request: Request) -> None:
        authorization = request.header("Authorization")
        if not authorization:
            raise Refusal(401, "MissingAuthenticationToken", "The request carries no Authorization.", 100003)
        try:
            sent = datetime.strptime(request.header("X-Date"), "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
        except ValueError:
            sent = 0
        if abs(time.time() - sent) > CLOCK_WINDOW_SECONDS:
            raise Refusal(400, "InvalidTimestamp", "The X-Date header is malformed or has expired.", 100006)
        access_key_id = authorization.partition("Credential=")[2].partition("/")[0]
        keys = self.keys.get(access_key_id)
        # The vendor's messages repeat what was sent; whoever logs them unredacted must be caught here.
        if keys is None:
            raise Refusal(401, "InvalidAccessKey", f"The access key {access_key_id} is not valid.", 100009)
        token = request.header("X-Security-Token")
        if token != (keys.session_token or ""):
            raise Refusal(401, "InvalidSecretToken", f"The security token {token} is not valid.", 100026)
        if not self.verify(request, keys):
            message = f"The signature of {access_key_id} does not match: {authorization}"
            raise Refusal(401, "SignatureDoesNotMatch", message, 100010)

    def _administer(self, request: Request) -> Response:
        """Let a person change rooms with curl: PUT or DELETE rooms/{room}/users/{user}."""
        wanted: dict[str, bool] = json.loads(request.body or b"{}")
        status, answer = 200, "done"
        match [request.method, *unquote(request.path).split("/")[2:]]:
            case ["PUT", "rooms", room_id, "users", user_id] if wanted.keys() <= set(MEDIA.values()):
                self.join(room_id, user_id)
                for medium, name in MEDIA.items():
                    if name in wanted:
                        self.publish(room_id, user_id, medium, on=wanted[name])
            case ["DELETE", "rooms", room_id, "users", user_id]:
                self.leave(room_id, user_id)
            case _:
                status, answer = 400, f"PUT or DELETE rooms/{{room}}/users/{{user}}; media: {', '.join(MEDIA.values())}"
        return Response(status, f"{answer}\n".encode(), [("Content-Type", "text/plain")])


def _online_users(users: dict[str, Connection]) -> dict[str, Any]:
    visible = [user_id for user_id, user in users.items() if user.is_visible]
    invisible = [user_id for user_id, user in users.items() if not user.is_visible]
    lists = {"VisibleUserList": visible, "InvisibleUserList": invisible[:MAX_INVISIBLE]}
    return {"RoomExists": True, "TotalUser": len(users), "TotalInvisibleUser": len(invisible), **lists}


def _property(user_id: str, user: Connection | None) -> dict[str, Any]:
    if user is None:
        return {"UserID": user_id, "Status": 0}
    login = {"LoginTime": user.login_ms, "DeviceType": user.device}
    return {"UserID": user_id, "Status": 1, "Role": 1 if user.is_visible else 2, **login}
