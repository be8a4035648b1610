"""Callback events by themselves: their signature, their kinds, and their times."""

import hmac
from typing import Any

import pytest

from stream_state.domain.callback_events import CallbackEvent, has_observation, is_signed, signature
from stream_state.domain.observations import Mark
from stream_state.errors import InvalidRequest
from tests.unit.callback_world import (
    AUDIO,
    JOIN,
    KEY,
    LEAVE,
    ROOM_END,
    SIGNED,
    TEACHER,
    VENDOR_NAMES,
    fields,
    sign,
    stream,
)

NOW_MS = 1_795_403_045_678
# Published by the vendor (volcengine.com/docs/6348/69820).
PUBLISHED = {
    "EventType": "RoomCreate",
    "EventData": '{"RoomId":"room1","Timestamp":1679383924691}',
    "EventTime": "2023-03-21T15:32:04+08:00",
    "EventId": "123456",
    "Version": "2020-12-01",
    "AppId": "appId",
    "Nonce": "aaBc",
    "Signature": "1c7200723842eff514b65fc3f065597432bbb4249e10d33db79b3853d05f3691",
}


def parsed(kind: str, at_ms: int = NOW_MS, received_at_ms: int = NOW_MS, **data: Any) -> CallbackEvent:
    return CallbackEvent.parse(fields(kind, at_ms, **data), received_at_ms, NOW_MS)


# Signatures


def test_the_published_signature_fits() -> None:
    """Also by the code that the tests sign with: a mistake there must not hide one in the product."""
    assert signature(PUBLISHED, "1234") == sign(PUBLISHED, "1234")["Signature"] == PUBLISHED["Signature"]
    assert is_signed(PUBLISHED, ["1234"])
    # The values are sorted by their bytes: as UTF-16 the emoji would come first.
    assert is_signed(sign({**PUBLISHED, "EventId": "\U0001f600", "Nonce": "\uffee"}), [KEY])


def changes(value: str) -> list[str]:
    """The value with any one of its characters changed, taken away or doubled."""
    marks = list(enumerate(value))
    return [value[:at] + other + value[at + 1 :] for at, mark in marks for other in (chr(ord(mark) ^ 1), "", mark * 2)]


@pytest.mark.parametrize("name", [*SIGNED, "Signature"])
def test_any_change_of_a_field_breaks_the_signature(name: str) -> None:
    event = sign(fields(AUDIO, NOW_MS))
    odd = ["\ud800", "\udfff\ud800", "é", "\x00", "", "直播"]

    assert is_signed(event, [KEY])
    assert not [other for other in (*changes(event[name]), *odd) if is_signed({**event, name: other}, [KEY])]
    assert not is_signed(event, changes(KEY))


@pytest.mark.parametrize("key", ["new-key", KEY, "neither"])
def test_every_key_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    compared = []
    compare = hmac.compare_digest

    def compare_digest(one: bytes, other: bytes) -> bool:
        compared.append(one)
        return compare(one, other)

    monkeypatch.setattr(hmac, "compare_digest", compare_digest)
    assert is_signed(sign(fields(AUDIO, NOW_MS), key), ["new-key", KEY]) is (key != "neither")
    assert len(compared) == 2


# Kinds


@pytest.mark.parametrize("medium", VENDOR_NAMES)
@pytest.mark.parametrize(
    ("starts", "data", "kind"),
    [
        (True, {}, "start"),
        (False, {}, "stop"),
        (False, {"Reason": "StreamStop"}, "stop"),
        (False, {"Reason": "BannedByAdmin"}, "stop"),
        (False, {"Reason": "LeaveRoom"}, "cut"),
        (False, {"Reason": "of a later version"}, "cut"),
        (False, {"Reason": ["StreamStop"]}, "cut"),
    ],
)
def test_a_stream_event_is_of_one_medium(medium: str, data: dict[str, Any], kind: str, *, starts: bool) -> None:
    event = parsed(stream(medium, starts=starts), **data)

    assert event.observations == {f"{medium}.{kind}": Mark(NOW_MS, NOW_MS, device="web")}
    assert event.target == TEACHER
    assert (event.is_arrival, event.is_departure) == (starts, False)


@pytest.mark.parametrize(
    ("event_type", "reason", "kind"),
    [
        (JOIN, None, "join"),
        ("InvisibleUserJoinRoom", None, "join"),
        (LEAVE, "userLeave", "leave"),
        ("InvisibleUserLeaveRoom", "userLeave", "leave"),
        (LEAVE, "kickedByAdmin", "end"),
        (LEAVE, "connectionLost", "lost"),
        (LEAVE, "of a later version", "lost"),
        (LEAVE, None, "lost"),
        (LEAVE, {"Reason": []}, "lost"),
        (ROOM_END, None, "end"),
    ],
)
def test_a_presence_event_is_a_join_or_an_end_by_its_reason(event_type: str, reason: Any, kind: str) -> None:
    event = parsed(event_type, Reason=reason)

    assert event.kind == kind
    assert event.target == (TEACHER.room if event_type == ROOM_END else TEACHER)
    assert (event.is_arrival, event.is_departure) == (kind == "join", kind != "join")


@pytest.mark.parametrize(("device", "kept"), [("ios", "ios"), ("", None), (None, None), (7, None), ([], None)])
def test_the_device_is_kept_where_it_is_known(device: object, kept: str | None) -> None:
    assert parsed(LEAVE, DeviceType=device).mark.device == kept


@pytest.mark.parametrize(
    ("event_type", "expected"),
    [
        *((stream(medium, starts=starts), True) for medium in VENDOR_NAMES for starts in (True, False)),
        *((name, True) for name in (JOIN, LEAVE, "InvisibleUserJoinRoom", "InvisibleUserLeaveRoom", ROOM_END)),
        ("RoomCreate", False),
        *((name, None) for name in ("", "UserAudioStream", "UserAudioStreamStarted", "RoomDestroyed", "roomDestroy")),
    ],
)
def test_the_types_that_are_known(event_type: str, *, expected: bool | None) -> None:
    assert has_observation(event_type) is expected


@pytest.mark.parametrize(
    ("data", "where"),
    [
        *((data, "EventData") for data in ("", "null", "[]", "not JSON", '{"Timestamp":NaN}', '{"Timestamp":1e999}')),
        ('{"RoomId":"class-1","RoomId":"class-1","UserId":"teacher"}', "EventData names a field twice"),
        (f'{{"x":{"[" * 100_000}}}', "EventData"),
        ('{"Timestamp":%s}' % ("9" * 5000), "EventData"),
        ("{}", "UserId is missing"),
        ('{"RoomId":"class-1"}', "UserId is missing"),
        ('{"UserId":"teacher"}', "RoomId is missing"),
        ('{"RoomId":"class-1","UserId":7}', "UserId must be text"),
        ('{"RoomId":"class 1","UserId":"teacher"}', "RoomId may hold"),
        ('{"RoomId":"class-1","UserId":"%s"}' % ("u" * 129), "UserId must have 1 to 128 characters, not 129"),
    ],
)
def test_malformed_data_is_refused(data: str, where: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^{where}"):
        CallbackEvent.parse({**fields(AUDIO, NOW_MS), "EventData": data}, NOW_MS, NOW_MS)


# Times

AT_MS, AT = 1_795_403_044_123, "2026-11-23T03:04:04.123456789Z"
HOUR_MS = 3_600_000


ODD: list[Any] = [True, "", "soon", "-1", "²", "9" * 5000, [], {}]


@pytest.mark.parametrize(
    ("timestamp", "event_time", "at_ms", "is_plausible"),
    [
        *((timestamp, "of no use", AT_MS, True) for timestamp in (AT_MS, AT_MS + 0.9, f"0{AT_MS}")),
        *((None, time, AT_MS, True) for time in (AT, "2026-11-23T11:04:04.123+08:00", "2026-11-22T19:34:04.123-07:30")),
        *((odd, AT, AT_MS, False) for odd in ODD),
        *((timestamp, AT, AT_MS, False) for timestamp in (AT_MS // 1000, 0, -5, -(10**30), AT_MS * 1000)),
        (AT_MS - HOUR_MS, AT, AT_MS - HOUR_MS, True),
        (AT_MS - HOUR_MS - 1, AT, AT_MS, False),
        (AT_MS + HOUR_MS + 1, AT, AT_MS, False),
    ],
)
def test_an_event_counts_from_its_timestamp_or_if_that_is_none_from_its_event_time(
    timestamp: object, event_time: str, at_ms: int, *, is_plausible: bool
) -> None:
    event = {**fields(AUDIO, NOW_MS, Timestamp=timestamp), "EventTime": event_time}

    parsed = CallbackEvent.parse(event, NOW_MS, NOW_MS)

    assert (parsed.mark.at_ms, parsed.has_plausible_time) == (at_ms, is_plausible)


@pytest.mark.parametrize("timestamp", [None, 1_795_403_044, "soon"])
@pytest.mark.parametrize(
    "event_time", ["", "soon", "2026-11-23T03:04:04", "2026-13-23T03:04:04Z", "9" * 400, "\ud800", "0001-01-01T00:00Z!"]
)
def test_an_event_without_a_time_is_refused_without_an_echo(event_time: str, timestamp: object) -> None:
    with pytest.raises(InvalidRequest, match=r"^EventTime must be a time with its zone[\w ]*\.$"):
        CallbackEvent.parse({**fields(AUDIO, NOW_MS, Timestamp=timestamp), "EventTime": event_time}, NOW_MS, NOW_MS)


def test_an_event_is_seen_at_its_timestamp_or_at_its_first_arrival_if_that_is_earlier() -> None:
    assert parsed(AUDIO, NOW_MS - 4000).mark == Mark(NOW_MS - 4000, NOW_MS - 4000, device="web")
    assert parsed(AUDIO, NOW_MS + 3000, NOW_MS - 60_000).mark == Mark(NOW_MS + 3000, NOW_MS - 60_000, device="web")


def test_an_event_more_than_15_minutes_ahead_of_now_is_refused() -> None:
    assert parsed(AUDIO, NOW_MS + 900_000).mark.at_ms == NOW_MS + 900_000
    with pytest.raises(InvalidRequest, match=r"^Timestamp is more than 900 seconds ahead of now"):
        parsed(AUDIO, NOW_MS + 900_001)
