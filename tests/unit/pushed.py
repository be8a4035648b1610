"""Pushed events as the vendor sends them, signed by code of the tests, and what takes them in on a world in memory."""

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import count
from typing import Any

from stream_state.callback import Callback
from stream_state.credentials import CallbackKeys
from tests.unit.fakes import FakeSecrets
from tests.unit.memory import APP_ID, World

KEY = "callback-key-of-the-sandbox"
SIGNED = ("EventType", "EventData", "EventTime", "EventId", "AppId", "Version", "Nonce")
VENDOR_NAMES = {"audio": "Audio", "video": "Video", "screen_audio": "ScreenAudio", "screen_video": "ScreenVideo"}
_numbers = count(1)

type Fields = dict[str, Any]


def sign(fields: Mapping[str, Any], key: str = KEY) -> Fields:
    """The fields with the signature that the vendor's page describes."""
    joined = "".join(sorted([*(fields[name] for name in SIGNED), key]))
    return {**fields, "Signature": hashlib.sha256(joined.encode(errors="surrogatepass")).hexdigest()}


def text(fields: Mapping[str, Any]) -> str:
    return json.dumps(fields, separators=(",", ":"))


def fields(kind: str, at_ms: int, room_id: str = "class-1", user_id: str | None = "teacher", **more: Any) -> Fields:
    """The fields of an event, without a signature; `more` adds to its data or replaces what is there."""
    user = {} if user_id is None else {"UserId": user_id}
    return {
        "EventType": kind,
        "EventData": text({"RoomId": room_id, **user, "DeviceType": "web", "Timestamp": at_ms, **more}),
        "EventTime": datetime.fromtimestamp(at_ms / 1000, UTC).isoformat().replace("+00:00", "Z"),
        "EventId": f"event-{next(_numbers)}",
        "AppId": APP_ID,
        "Version": "2020-12-01",
        "Nonce": "aaBc",
    }


def pushed(kind: str, at_ms: int, room_id: str = "class-1", user_id: str | None = "teacher", **more: Any) -> str:
    """The body of a signed event."""
    return text(sign(fields(kind, at_ms, room_id, user_id, **more)))


def stream(medium: str, *, starts: bool) -> str:
    """The type of the event that a medium starts or stops."""
    return f"User{VENDOR_NAMES[medium]}Stream{'Start' if starts else 'Stop'}"


class Receiver:
    """The callback on a world, and a sender of events to it."""

    def __init__(self, world: World, *secrets: Any, auto_watch: bool = False) -> None:
        self.world = world
        self.secrets = FakeSecrets(*secrets or [{"callback_key": KEY}])
        self.callback = Callback(
            CallbackKeys(self.secrets, "callback-key", 300, world.clock.monotonic),  # type: ignore[arg-type]  # a fake
            world.table,
            world.teller,
            [APP_ID, "app-2"],
            auto_watch=auto_watch,
            clock=world.clock.monotonic,
            wall_clock=world.clock.wall,
        )

    @property
    def now_ms(self) -> int:
        return int(self.world.clock.wall() * 1000)

    def take(self, body: str, seconds: float = 60) -> bool:
        """Let an event arrive now, with so much time to take it in."""
        return self.callback.take(body, self.now_ms, self.world.in_seconds(seconds))

    def push(self, kind: str, ago_ms: int = 0, **more: Any) -> bool:
        """Let an event arrive now that happened a while ago."""
        return self.take(pushed(kind, self.now_ms - ago_ms, **more))
