"""Watches through the API decide what sweeps ask for, and sweeps tell what changed, once."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from tests.e2e.contents import table_items
from tests.e2e.http import Http
from tests.sandbox.simulator import APP_ID
from tests.sandbox.stack import Sandbox

ROOM = "class-1"
OTHER_APP = "other-app"


@pytest.fixture(scope="module")
def parameters() -> Mapping[str, str]:
    return {"RtcAppIds": f"{APP_ID},{OTHER_APP}"}


@pytest.fixture
def room(sandbox: Sandbox) -> Sandbox:
    sandbox.simulator.app_ids = (APP_ID, OTHER_APP)
    sandbox.simulator.publish(ROOM, "teacher", "Audio", "Video")
    sandbox.simulator.publish(ROOM, "student")
    return sandbox


def watch_path(user_id: str) -> str:
    return f"/rooms/{ROOM}/users/{user_id}/watch"


def state_path(user_id: str) -> str:
    return f"/rooms/{ROOM}/users/{user_id}/stream-state"


def watched(http: Http) -> list[str]:
    """The users that the API lists as watched."""
    return [watch["user_id"] for watch in http.get("/watches").body["watches"]]


def sweep(sandbox: Sandbox, **event: str) -> dict[str, Any]:
    invocation = sandbox.invoke("SweepFunction", event)
    assert invocation.error is None, invocation.payload
    summary: dict[str, Any] = invocation.payload
    return summary


def let_expire(sandbox: Sandbox, user_id: str) -> None:
    """As if the time of a user's watch had passed; DynamoDB deletes such items late."""
    for item in table_items(sandbox):
        if item["pk"]["S"] == "watch" and item["user_id"]["S"] == user_id:
            sandbox.client("dynamodb").update_item(
                TableName=sandbox.outputs["StateTableName"],
                Key={name: item[name] for name in ("pk", "sk")},
                UpdateExpression="SET expires_at = :past",
                ExpressionAttributeValues={":past": {"N": str(int(time.time()) - 1)}},
            )


def test_a_watch_is_made_listed_and_removed(room: Sandbox, either_http: Http) -> None:
    made = either_http.put(watch_path("teacher"), {"expires_in": 60})
    listed = either_http.get("/watches")
    removed, again = either_http.delete(watch_path("teacher")), either_http.delete(watch_path("teacher"))

    assert made.status == 200
    assert {"app_id": APP_ID, "room_id": ROOM, "user_id": "teacher"}.items() <= made.body.items()
    assert listed.body == {"watches": [made.body], "next_token": None}
    assert ((removed.status, removed.text), again.status) == ((204, ""), 204)
    assert watched(either_http) == []


def test_several_are_watched_at_once_and_once_each(room: Sandbox, http: Http) -> None:
    targets = [{"room_id": ROOM, "user_id": user} for user in ("a", "b", "a")]
    targets.append({"room_id": ROOM, "user_id": "a", "app_id": OTHER_APP})

    reply = http.post("/watches", {"targets": targets})

    assert reply.status == 200
    made = {(watch["app_id"], watch["user_id"]) for watch in reply.body["watches"]}
    assert made == {(APP_ID, "a"), (APP_ID, "b"), (OTHER_APP, "a")}
    assert len(http.get("/watches").body["watches"]) == 3


def test_a_sweep_tells_what_is_watched_and_the_next_is_silent(
    room: Sandbox, http: Http, conforms: Callable[[str, Any], None]
) -> None:
    for user in ("teacher", "student"):
        http.put(watch_path(user))

    first, second = sweep(room), sweep(room)

    assert (first["targets"], first["delivered"], first["unchanged"]) == (2, 2, 0)
    assert (second["targets"], second["delivered"], second["unchanged"]) == (2, 0, 2)
    messages = {message["user_id"]: message for message in room.receive_messages(2)}
    assert set(messages) == {"teacher", "student"}
    for message in messages.values():
        conforms("message", message)
        assert message["previous"] is None


def test_a_change_is_told_with_what_was_told_before(room: Sandbox, http: Http) -> None:
    http.put(watch_path("teacher"))
    sweep(room)
    (first,) = room.receive_messages(1)

    room.simulator.publish(ROOM, "teacher", "Video", on=False)
    sweep(room)

    (second,) = room.receive_messages(1)
    assert (second["changed"], second["previous"]) == (["video"], first["media"])
    assert second["media"] == {**first["media"], "video": False}
    assert second["sequence"] == first["sequence"] + 1
    assert second["id"] != first["id"]


def test_a_user_who_leaves_is_told_as_absent_and_never_as_off(room: Sandbox, http: Http) -> None:
    http.put(watch_path("teacher"))
    sweep(room)
    room.receive(1)

    room.simulator.leave(ROOM, "teacher")
    sweep(room)

    (message,) = room.receive_messages(1)
    assert (message["present"], message["publishing"]) == (False, None)
    assert set(message["media"].values()) == {None}


def test_all_is_told_when_all_is_asked_for(room: Sandbox, http: Http) -> None:
    http.put(watch_path("teacher"))

    summaries = [sweep(room, emit="all") for _ in range(3)]

    assert [summary["delivered"] for summary in summaries] == [1, 1, 1]
    messages = room.receive_messages(3)
    assert len({message["sequence"] for message in messages}) == 1
    assert len({message["id"] for message in messages}) == 3
    assert [message["changed"] for message in messages][1:] == [[], []]


def test_expiry_and_removal_take_effect_at_the_next_sweep(room: Sandbox, http: Http) -> None:
    for user in ("teacher", "student", "guest"):
        http.put(watch_path(user))
    assert sweep(room)["targets"] == 3

    http.delete(watch_path("student"))
    let_expire(room, "guest")

    assert watched(http) == ["teacher"]
    assert sweep(room)["targets"] == 1
    http.put(watch_path("guest"))
    assert sweep(room)["targets"] == 2


def test_nothing_watched_is_nothing_asked(room: Sandbox, http: Http) -> None:
    assert sweep(room)["targets"] == 0
    assert not room.simulator.arrivals


def test_a_lookup_that_sees_a_change_first_leaves_it_to_the_sweep_to_tell(room: Sandbox, http: Http) -> None:
    http.put(watch_path("teacher"))
    sweep(room)
    (first,) = room.receive_messages(1)

    room.simulator.publish(ROOM, "teacher", "Audio", on=False)
    assert http.get(state_path("teacher")).body["media"]["audio"] is False
    assert room.invoke("TaskFunction", {"room_id": ROOM, "user_id": "teacher"}).payload["media"]["audio"] is False
    assert room.receive() == []
    sweep(room)

    (second,) = room.receive_messages(1)
    assert (second["changed"], second["previous"]) == (["audio"], first["media"])
    assert sweep(room)["unchanged"] == 1


def test_a_task_that_tells_the_queue_leaves_nothing_to_the_sweep(room: Sandbox, http: Http) -> None:
    http.put(watch_path("teacher"))
    room.invoke("TaskFunction", {"room_id": ROOM, "user_id": "teacher", "deliver": "queue"})
    (told,) = room.receive_messages(1)

    assert sweep(room)["unchanged"] == 1

    assert told["changed"] == ["audio", "video", "screen_audio", "screen_video", "present"]
    assert room.receive() == []


def test_a_known_state_that_is_young_enough_spares_a_call(
    room: Sandbox, http: Http, conforms: Callable[[str, Any], None]
) -> None:
    asked = http.get(state_path("teacher")).body
    body = {"targets": [{"room_id": ROOM, "user_id": "teacher"}], "max_age": 3600}

    answers = [
        http.get(f"{state_path('teacher')}?max_age=3600").body,
        *http.post("/stream-states/query", body).body["results"],
        *room.invoke("TaskFunction", body).payload["results"],
        room.invoke("TaskFunction", {**body["targets"][0], "max_age": 3600}).payload,
    ]

    assert len(room.simulator.arrivals) == 1
    for answer in answers:
        conforms("answer", answer)
        assert answer == {**asked, "source": "table", "rtc_request_id": None}


def test_a_known_state_that_is_too_old_or_not_whole_is_asked_for_anew(room: Sandbox, http: Http) -> None:
    room.simulator.leave(ROOM, "student")
    for user in ("teacher", "student"):
        http.get(state_path(user))
    time.sleep(1.1)

    old = http.get(f"{state_path('teacher')}?max_age=1")
    zero = http.get(f"{state_path('teacher')}?max_age=0")
    unknown = http.get(f"{state_path('student')}?max_age=3600")

    assert (old.body["source"], zero.body["source"], unknown.status) == ("query", "query", 404)
    assert len(room.simulator.arrivals) == 5


def test_a_room_is_listed_from_what_is_known(
    room: Sandbox, either_http: Http, conforms: Callable[[str, Any], None]
) -> None:
    room.simulator.publish(ROOM, "teacher", "Audio", app_id=OTHER_APP)
    for path in (state_path("teacher"), state_path("student"), f"{state_path('teacher')}?app_id={OTHER_APP}"):
        assert either_http.get(path).status == 200
    calls = len(room.simulator.arrivals)

    listed = either_http.get(f"/rooms/{ROOM}/stream-states")
    other = either_http.get(f"/rooms/{ROOM}/stream-states?app_id={OTHER_APP}")
    empty = either_http.get("/rooms/class-2/stream-states")

    assert [(state["user_id"], state["publishing"]) for state in listed.body["results"]] == [
        ("student", False),
        ("teacher", True),
    ]
    assert [state["media"]["video"] for state in other.body["results"]] == [False]
    assert empty.body == {"results": [], "next_token": None}
    for state in listed.body["results"]:
        conforms("answer", state)
        assert state["source"] == "table"
    assert len(room.simulator.arrivals) == calls


def test_two_sweeps_of_the_watch_list_do_not_overlap(room: Sandbox, http: Http) -> None:
    http.put(watch_path("teacher"))
    second: list[dict[str, Any]] = []
    # While the first sweep waits for its answer, another begins.
    room.simulator.fault = lambda exchange: second.append(sweep(room)) if not second else None

    first = sweep(room)

    assert (first["targets"], first["delivered"]) == (1, 1)
    assert (second[0]["targets"], "skipped" in second[0]) == (0, True)
    assert len(room.receive_messages(1)) == 1


def test_ten_thousand_watches_are_listed_page_by_page(sandbox: Sandbox, http: Http) -> None:
    users = [f"user-{number:05}" for number in range(10_000)]
    for start in range(0, len(users), 100):
        targets = [{"room_id": ROOM, "user_id": user} for user in users[start : start + 100]]
        assert http.post("/watches", {"targets": targets}).status == 200

    found: list[str] = []
    token, pages = "", 0
    while pages < 1_000:
        reply = http.get(f"/watches{token}")
        found += [watch["user_id"] for watch in reply.body["watches"]]
        pages += 1
        if reply.body["next_token"] is None:
            break
        token = f"?next_token={reply.body['next_token']}"

    assert found == users
    assert 10 <= pages < 1_000
