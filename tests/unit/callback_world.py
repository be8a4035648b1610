"""Callback events as the vendor sends them, signed by code of the tests, and a receiver on a world in memory."""

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import count
from typing import Any

import pytest

from stream_state.adapters.credentials import CachedSecret, parse_callback_keys
from stream_state.domain.targets import Target
from stream_state.observability import publish_metrics
from stream_state.services.callbacks import Callbacks
from tests.unit.fakes import FakeSecrets
from tests.unit.memory import APP_ID, World

KEY = "callback-key-of-the-sandbox"
SIGNED = ("EventType", "EventData", "EventTime", "EventId", "AppId", "Version", "Nonce")
VENDOR_NAMES = {"audio": "Audio", "video": "Video", "screen_audio": "ScreenAudio", "screen_video": "ScreenVideo"}
AUDIO, VIDEO, VIDEO_STOP = "UserAudioStreamStart", "UserVideoStreamStart", "UserVideoStreamStop"
JOIN, LEAVE, ROOM_END = "UserJoinRoom", "UserLeaveRoom", "RoomDestroy"
TEACHER = Target(APP_ID, "class-1", "teacher")
_numbers = count(1)

type Fields = dict[str, Any]


def sign(fields: Mapping[str, Any], key: str = KEY) -> Fields:
    """The fields with the signature that the vendor's page describes."""
    joined = "".join(sorted([*(fields[name] for name in SIGNED), key]))
    return {**fields, "Signature": hashlib.sha256(joined.encode(errors="surrogatepass")).hexdigest()}


def text(fields: Mapping[str, Any]) -> str:
    """JSON as the vendor writes it."""
    return json.dumps(fields, separators=(",", ":"))


def fields(kind: str, at_ms: int, room_id: str = "class-1", user_id: str | None = "teacher", **more: Any) -> Fields:
    """The fields of an event, without a signature; `more` adds to its data or replaces what is there."""
    user = {} if user_id is None or kind == ROOM_END else {"UserId": user_id}
    return {
        "EventType": kind,
        "EventData": text({"RoomId": room_id, **user, "DeviceType": "web", "Timestamp": at_ms, **more}),
        "EventTime": datetime.fromtimestamp(at_ms / 1000, UTC).isoformat().replace("+00:00", "Z"),
        "EventId": f"event-{next(_numbers)}",
        "AppId": APP_ID,
        "Version": "2020-12-01",
        "Nonce": "aaBc",
    }


def signed(kind: str, at_ms: int, change: Mapping[str, Any] | None = None, key: str = KEY, **more: Any) -> str:
    """The body of a signed event; `change` replaces fields before they are signed."""
    return text(sign({**fields(kind, at_ms, **more), **(change or {})}, key))


def stream(medium: str, *, starts: bool) -> str:
    """The type of the event that a medium starts or stops."""
    return f"User{VENDOR_NAMES[medium]}Stream{'Start' if starts else 'Stop'}"


class Receiver:
    """The callbacks on a world, and a sender of events to them."""

    def __init__(self, world: World, *secrets: Any, auto_watch: bool = False) -> None:
        self.world = world
        self.secrets = FakeSecrets(*secrets or [{"callback_key": KEY}])
        client: Any = self.secrets
        self.callbacks = Callbacks(
            CachedSecret(client, "callback-key", parse_callback_keys, 300, world.clock),
            *(world.delivery, world.watch_list, [APP_ID, "app-2"]),
            auto_watch=auto_watch,
        )
        self.start_ms, self._start_seconds = world.clock.now_ms(), world.clock.seconds

    @property
    def now_ms(self) -> int:
        """Milliseconds since 1970."""
        return self.world.clock.now_ms()

    def move_to(self, at_ms: int) -> None:
        """Let time pass until so many milliseconds after the start, whatever time was read meanwhile."""
        self.world.clock.seconds = self._start_seconds + at_ms / 1000 + 0.0005

    def receive(self, body: str, seconds: float = 60, received_at_ms: int | None = None) -> bool:
        """Receive a body, now unless it is said when, with so much time for it."""
        event = self.callbacks.verified(body, self.now_ms if received_at_ms is None else received_at_ms)
        return self.callbacks.receive(event, self.world.in_seconds(seconds))

    def send(self, kind: str, ago_ms: int = 0, **more: Any) -> bool:
        """Receive an event now that happened a while ago."""
        return self.receive(signed(kind, self.now_ms - ago_ms, **more))

    def recheck_all(self) -> None:
        """Carry out the rechecks that were asked for, six seconds later; those that fail stay in the queue."""
        world = self.world
        asked, world.retry_queue.rechecks = world.retry_queue.rechecks, []
        world.clock.seconds += 6
        for target, due_ms in asked:
            if not self.callbacks.recheck(target, due_ms, world.lookup, world.in_seconds(20)):
                world.retry_queue.rechecks.append((target, due_ms))

    @property
    def watches(self) -> dict[str, int]:
        """For how many seconds each user is still watched."""
        now = int(self.world.clock.now())
        entries = self.world.watch_list.page(None).entries
        return {str(watch.as_dict().get("user_id")): watch.expires_at - now for watch in entries}


def counted(capsys: pytest.CaptureFixture[str]) -> dict[str, list[tuple[str, float]]]:
    """The values of each metric with a dimension, each after its reason or its error, in order."""
    publish_metrics()
    values: dict[str, list[tuple[str, float]]] = {}
    for document in map(json.loads, capsys.readouterr().out.splitlines()):
        for dimension in {"reason", "error"} & document.keys():
            for metric in document["_aws"]["CloudWatchMetrics"][0]["Metrics"]:
                name = metric["Name"]
                values[name] = sorted([*values.get(name, []), *((document[dimension], n) for n in document[name])])
    return values
