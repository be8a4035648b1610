"""Histories of callback events in the built functions: connections that overlap, ends that come late, odd clocks."""

import time
from collections.abc import Mapping
from typing import Any

import pytest

from tests.e2e.http import Http
from tests.sandbox.signatures import CALLBACK_KEY
from tests.sandbox.stack import Sandbox
from tests.unit.callback_world import signed

ROOM = "class-1"
ALL_OFF = dict.fromkeys(("audio", "video", "screen_audio", "screen_video"), False)
JOIN, LEAVE, END = "UserJoinRoom", "UserLeaveRoom", "RoomDestroy"
START, STOP, SOUND = "UserVideoStreamStart", "UserVideoStreamStop", "UserAudioStreamStart"
LEFT, LOST, KICKED = {"Reason": "userLeave"}, {"Reason": "connectionLost"}, {"Reason": "kickedByAdmin"}
CUT, STOPPED = {"Reason": "LeaveRoom"}, {"Reason": "StreamStop"}

type Event = tuple[str, int, Mapping[str, Any]]
type Expected = bool | None

# By name: the events in the order of arrival, their Timestamps in milliseconds; then video and presence.
HISTORIES: dict[str, tuple[list[Event], Expected, Expected]] = {
    "leave of an earlier connection": ([(JOIN, 5000, {}), (START, 5100, {}), (LEAVE, 5101, LEFT)], None, None),
    "stop of an earlier connection": ([(START, 100_000, {}), (STOP, 100_100, CUT)], None, True),
    "loss of an earlier connection": ([(JOIN, 5000, {}), (START, 5100, {}), (LEAVE, 35_000, LOST)], None, None),
    "leave of another device": (
        [(JOIN, 5000, {"DeviceType": "web"}), (START, 5100, {"DeviceType": "web"}),
         (LEAVE, 5101, {**LEFT, "DeviceType": "ios"})],
        True,
        True,
    ),
    "leave, join and start at once": ([(LEAVE, 9000, LEFT), (JOIN, 9000, {}), (START, 9000, {})], True, True),
    "stop that is older than the start": ([(START, 2100, {}), (STOP, 2000, STOPPED)], True, True),
    "older stop again": ([(STOP, 1000, STOPPED), (START, 2000, {}), (STOP, 1000, STOPPED)], True, True),
    "older end again": ([(END, 1000, {}), (JOIN, 9000, {}), (START, 9100, {}), (END, 1000, {})], True, True),
    "first sound after the end of the room": ([(END, 0, {}), (SOUND, 3_000_000, {})], None, True),
    "join after a leave": ([(START, 1000, {}), (LEAVE, 60_000, LEFT), (JOIN, 70_000, {})], None, True),
    "left for good": ([(JOIN, 1000, {}), (START, 1100, {}), (LEAVE, 6100, LEFT)], False, False),
    "lost for good": ([(JOIN, 1000, {}), (START, 1100, {}), (LEAVE, 41_100, LOST)], False, False),
    "kicked": ([(JOIN, 1000, {}), (START, 1100, {}), (LEAVE, 1200, KICKED)], False, False),
    "stopped": ([(JOIN, 1000, {}), (START, 1100, {}), (STOP, 1200, STOPPED)], False, True),
    "room ended": ([(JOIN, 1000, {}), (START, 1100, {}), (END, 1200, {})], False, False),
}  # fmt: skip


@pytest.fixture(scope="module")
def parameters() -> Mapping[str, str]:
    # Without queries no recheck settles what the events leave in doubt.
    return {"EnableCallbacks": "true", "RtcQuery": "off"}


def send(sandbox: Sandbox, kind: str, at_ms: int, **data: Any) -> int:
    """The status of the answer to an event."""
    user_id = None if kind == END else "teacher"
    body = signed(kind, at_ms, key=CALLBACK_KEY, room_id=ROOM, user_id=user_id, **data)
    status: int = Http(sandbox.callback_api_url).send("POST", "/callbacks/rtc", body.encode()).status
    return status


def teacher(http: Http) -> dict[str, Any]:
    (answer,) = http.get(f"/rooms/{ROOM}/stream-states?present=any").body["results"]
    state: dict[str, Any] = answer
    return state


@pytest.mark.parametrize(("history", "video", "present"), HISTORIES.values(), ids=HISTORIES)
def test_a_history_ends_in_the_right_state_and_message(
    sandbox: Sandbox, http: Http, history: list[Event], video: Expected, present: Expected
) -> None:
    start_ms = int((time.time() - 3600) * 1000)

    for kind, at_ms, data in history:
        assert send(sandbox, kind, start_ms + at_ms, **data) == 200

    state = teacher(http)
    assert (state["media"]["video"], state["present"]) == (video, present)
    last = sandbox.receive_messages(1)[-1]
    assert (last["media"], last["present"]) == (state["media"], state["present"])


def test_a_repeat_of_any_event_changes_nothing(sandbox: Sandbox, http: Http) -> None:
    start_ms = int((time.time() - 600) * 1000)
    events: list[Event] = [(JOIN, 0, {}), (START, 100, {}), (STOP, 20_000, STOPPED), (START, 30_000, {})]
    for kind, at_ms, data in events:
        send(sandbox, kind, start_ms + at_ms, **data)
    before = teacher(http)
    assert len(sandbox.receive_messages(4)) == 4

    for kind, at_ms, data in events:
        assert send(sandbox, kind, start_ms + at_ms, **data) == 200

    assert teacher(http) == before
    assert sandbox.receive() == []


@pytest.mark.parametrize("timestamp", [0, -1, 1_795_403_044, 1_000])
def test_an_implausible_timestamp_gives_way_to_the_event_time(sandbox: Sandbox, http: Http, timestamp: int) -> None:
    now_ms = int(time.time() * 1000)

    assert send(sandbox, SOUND, now_ms, Timestamp=timestamp) == 200

    assert teacher(http)["media"]["audio"] is True


def test_everyone_of_a_large_room_that_ends_is_delivered(sandbox: Sandbox, http: Http) -> None:
    # Given many users with sound, one of whom comes back after the end
    start_ms = int((time.time() - 600) * 1000)
    users = [f"user-{number}" for number in range(30)]
    for user in users:
        body = signed(SOUND, start_ms, key=CALLBACK_KEY, room_id=ROOM, user_id=user)
        assert Http(sandbox.callback_api_url).send("POST", "/callbacks/rtc", body.encode()).status == 200
    back = signed(SOUND, start_ms + 60_000, key=CALLBACK_KEY, room_id=ROOM, user_id="user-0")
    assert Http(sandbox.callback_api_url).send("POST", "/callbacks/rtc", back.encode()).status == 200
    sandbox.receive_messages(30)

    assert send(sandbox, END, start_ms + 30_000) == 200

    # Then the others are off, each with a message, by the event or by the retry queue
    messages = sandbox.receive_messages(29, wait_seconds=60)
    assert sorted(message["user_id"] for message in messages if message["media"] == ALL_OFF) == sorted(users[1:])
    states = http.get(f"/rooms/{ROOM}/stream-states").body["results"]
    assert [state["user_id"] for state in states if state["media"]["audio"]] == ["user-0"]
