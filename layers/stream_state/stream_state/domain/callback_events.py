"""Callback events of the vendor: their signature, and the observations in them (volcengine.com/docs/6348/75125)."""

import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Self

from stream_state.domain.observations import Mark, Observations
from stream_state.domain.parsing import JsonError, invalid, parse_id, parse_json
from stream_state.domain.targets import MEDIA_TYPES, Room, Target

MAX_AHEAD_MS = 900_000
# A Timestamp that is further from the EventTime is not one in milliseconds.
MAX_DISAGREEMENT_MS = 3_600_000
EARLIEST_MS = 10**12
# A time of more digits is none, and Python reads no text of thousands of them.
_MAX_DIGITS = 20
_SIGNED = ("EventType", "EventData", "EventTime", "EventId", "AppId", "Version", "Nonce")
FIELDS = (*_SIGNED, "Signature")
_DEVICE = re.compile(r"[A-Za-z0-9_-]{1,32}")
# The kind of the observation in events of a type; empty for a type that the vendor documents, and that has none.
_KINDS = {
    **{f"User{name}StreamStart": f"{medium}.start" for name, medium in MEDIA_TYPES.items()},
    **{f"User{name}StreamStop": f"{medium}.stop" for name, medium in MEDIA_TYPES.items()},
    **dict.fromkeys(("UserJoinRoom", "InvisibleUserJoinRoom"), "join"),
    **dict.fromkeys(("UserLeaveRoom", "InvisibleUserLeaveRoom"), "leave"),
    "RoomDestroy": "end",
    "RoomCreate": "",
}
# A Stop with another reason may be of an earlier connection.
_STOP_REASONS = frozenset({None, "StreamStop", "BannedByAdmin"})
_LEAVE_KINDS = {"userLeave": "leave", "kickedByAdmin": "end"}


@dataclass(frozen=True, slots=True)
class CallbackEvent:
    """A verified event with an observation, of a user, or of a room that ended.

    `has_plausible_time` is False if the EventTime stands in for the Timestamp.
    """

    target: Target | Room
    kind: str
    mark: Mark
    has_plausible_time: bool

    @property
    def observations(self) -> Observations:
        """The event's one observation."""
        return {self.kind: self.mark}

    @property
    def is_arrival(self) -> bool:
        """Whether the event says that the user is there."""
        return self.kind == "join" or self.kind.endswith(".start")

    @property
    def is_departure(self) -> bool:
        """Whether the event says that the user has left."""
        return self.kind in {"leave", "lost", "end"}

    @classmethod
    def parse(cls, fields: Mapping[str, str], received_at_ms: int, now_ms: int) -> Self:
        """The event in verified fields. Raises `InvalidRequest`."""
        try:
            data = parse_json(fields["EventData"])
        except JsonError as error:
            raise invalid("EventData", str(error)) from None
        if not isinstance(data, dict):
            raise invalid("EventData", "must be an object")
        at_ms, has_plausible_time = _time_ms(data.get("Timestamp"), fields["EventTime"])
        if at_ms > now_ms + MAX_AHEAD_MS:
            raise invalid("Timestamp", f"is more than {MAX_AHEAD_MS // 1000} seconds ahead of now")
        user_id = None if fields["EventType"] == "RoomDestroy" else parse_id(data.get("UserId"), "UserId")
        room = Room(fields["AppId"], parse_id(data.get("RoomId"), "RoomId"))
        target = Target(room.app_id, room.room_id, user_id) if user_id else room
        mark = Mark(at_ms, min(at_ms, received_at_ms), device=parse_device(data.get("DeviceType")))
        return cls(target, _kind(fields["EventType"], data.get("Reason")), mark, has_plausible_time)


def has_observation(event_type: str) -> bool | None:
    """Whether events of a type hold an observation; None for a type that this project does not know."""
    return bool(_KINDS[event_type]) if event_type in _KINDS else None


def parse_device(value: object) -> str | None:
    """A DeviceType if it is a name; else None, for a device that is not known."""
    return value if isinstance(value, str) and _DEVICE.fullmatch(value) else None


def signature(fields: Mapping[str, str], key: str) -> str:
    """SHA-256 hex of the sorted values and the key (volcengine.com/docs/6348/69820)."""
    # JSON can hold lone surrogates, which UTF-8 cannot: their signature fits no key, but computing it must not fail.
    values = sorted(value.encode(errors="surrogatepass") for value in (*(fields[name] for name in _SIGNED), key))
    return hashlib.sha256(b"".join(values)).hexdigest()


def is_signed(fields: Mapping[str, str], keys: Sequence[str]) -> bool:
    """Whether the signature fits a key; every key is tried, so that the time taken does not show which one fits."""
    given = fields["Signature"].encode(errors="surrogatepass")
    matches = [hmac.compare_digest(signature(fields, key).encode(), given) for key in keys]
    return any(matches)


def _kind(event_type: str, reason: object) -> str:
    """The kind of the observation in an event."""
    kind, reason = _KINDS[event_type], reason if reason is None or isinstance(reason, str) else ""
    if kind == "leave":
        return _LEAVE_KINDS.get(reason or "", "lost")
    return kind if reason in _STOP_REASONS else kind.replace(".stop", ".cut")


def _time_ms(timestamp: object, event_time: str) -> tuple[int, bool]:
    """The event's time in milliseconds, and whether that is a plausible Timestamp; else it is the EventTime."""
    given = None
    if type(timestamp) in (int, float) or (
        isinstance(timestamp, str) and timestamp.isascii() and timestamp.isdecimal() and len(timestamp) <= _MAX_DIGITS
    ):
        given = int(timestamp)  # type: ignore[call-overload]  # one of the types just asked for
    try:
        parsed = datetime.fromisoformat(event_time)
    except ValueError:
        parsed = None
    if parsed is None or parsed.tzinfo is None:
        if given is None or given < EARLIEST_MS:
            raise invalid("EventTime", "must be a time with its zone where the Timestamp is none in milliseconds")
        return given, True
    event_time_ms = int(parsed.timestamp() * 1000)
    if given is None:
        return event_time_ms, timestamp is None
    is_plausible = abs(given - event_time_ms) <= MAX_DISAGREEMENT_MS
    return (given if is_plausible else event_time_ms), is_plausible
