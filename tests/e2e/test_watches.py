"""Watches through the API decide which targets sweeps ask about, and sweeps deliver each change once."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from tests.e2e.contents import table_items
from tests.e2e.http import Http
from tests.sandbox.simulator import APP_ID
from tests.sandbox.stack import Sandbox

ROOM = "class-1"
TEACHER = {"room_id": ROOM, "user_id": "teacher"}
STATE, WATCH = f"/rooms/{ROOM}/users/%s/stream-state", f"/rooms/{ROOM}/users/%s/watch"
OTHER_APP = "other-app"
type Conforms = Callable[[str, Any], None]


@pytest.fixture(scope="module")
def parameters() -> Mapping[str, str]:
    return {"RtcAppIds": f"{APP_ID},{OTHER_APP}"}


@pytest.fixture
def room(sandbox: Sandbox) -> Sandbox:
    sandbox.simulator.app_ids = (APP_ID, OTHER_APP)
    sandbox.simulator.publish(ROOM, "teacher", "Audio", "Video")
    sandbox.simulator.publish(ROOM, "student")
    return sandbox


@pytest.fixture
def watched(room: Sandbox, http: Http) -> Sandbox:
    """The room whose teacher is watched, and whose first state is delivered."""
    http.put(WATCH % "teacher")
    assert sweep(room)["delivered"] == 1
    return room


def sweep(sandbox: Sandbox, **event: str) -> dict[str, Any]:
    invocation = sandbox.invoke("SweepFunction", event)
    assert invocation.error is None, invocation.payload
    summary: dict[str, Any] = invocation.payload
    return summary


def let_expire(sandbox: Sandbox, user_id: str) -> None:
    """As if the time of a user's watch had passed; DynamoDB deletes such items late."""
    table, past = sandbox.outputs["StateTableName"], {"N": str(int(time.time()) - 1)}
    for item in table_items(sandbox):
        if item["pk"]["S"].startswith("watch#") and item["user_id"]["S"] == user_id:
            sandbox.client("dynamodb").put_item(TableName=table, Item={**item, "expires_at": past})


def test_a_watch_is_made_listed_and_removed(room: Sandbox, either_http: Http) -> None:
    made = either_http.put(WATCH % "teacher", {"expires_in": 60})
    listed = either_http.get("/watches")
    removed, again = either_http.delete(WATCH % "teacher"), either_http.delete(WATCH % "teacher")

    assert made.status == 200
    assert {"app_id": APP_ID, **TEACHER}.items() <= made.body.items()
    assert listed.body == {"watches": [made.body], "next_token": None}
    assert ((removed.status, removed.text), again.status) == ((204, ""), 204)
    assert either_http.get("/watches").body["watches"] == []


def test_several_are_watched_at_once_and_once_each(room: Sandbox, http: Http) -> None:
    targets = [{"room_id": ROOM, "user_id": user} for user in ("a", "b", "a")]

    reply = http.post("/watches", {"targets": [*targets, {**targets[0], "app_id": OTHER_APP}]})

    assert reply.status == 200
    made = {(watch["app_id"], watch["user_id"]) for watch in reply.body["watches"]}
    assert made == {(APP_ID, "a"), (APP_ID, "b"), (OTHER_APP, "a")}
    assert len(http.get("/watches").body["watches"]) == 3


def test_a_sweep_delivers_the_watched_states_and_then_each_change_once(
    watched: Sandbox, http: Http, conforms: Conforms
) -> None:
    http.put(WATCH % "student")
    counts = [(summary["delivered"], summary["unchanged"]) for summary in (sweep(watched), sweep(watched))]
    first = {message["user_id"]: message for message in watched.receive_messages(2)}
    watched.simulator.publish(ROOM, "teacher", "Video", on=False)
    sweep(watched)
    (second,) = watched.receive_messages(1)

    assert counts == [(1, 1), (0, 2)]
    assert {user: message["previous"] for user, message in first.items()} == {"teacher": None, "student": None}
    for message in (*first.values(), second):
        conforms("message", message)
    teacher = first["teacher"]
    assert (second["changed"], second["previous"]) == (["video"], teacher["media"])
    assert second["media"] == {**teacher["media"], "video": False}
    assert second["sequence"] == teacher["sequence"] + 1
    assert second["id"] != teacher["id"]


def test_a_user_who_leaves_is_delivered_as_absent_and_never_as_off(watched: Sandbox) -> None:
    watched.receive(1)

    watched.simulator.leave(ROOM, "teacher")
    sweep(watched)

    (message,) = watched.receive_messages(1)
    assert (message["present"], message["publishing"]) == (False, None)
    # The media that were off stay off.
    assert message["media"] == {"audio": None, "video": None, "screen_audio": False, "screen_video": False}


def test_expiry_and_removal_take_effect_at_the_next_sweep(room: Sandbox, http: Http) -> None:
    assert sweep(room)["targets"] == 0
    assert not room.simulator.arrivals
    for user in ("teacher", "student", "guest"):
        http.put(WATCH % user)
    assert sweep(room)["targets"] == 3

    http.delete(WATCH % "student")
    let_expire(room, "guest")

    assert [watch["user_id"] for watch in http.get("/watches").body["watches"]] == ["teacher"]
    assert sweep(room)["targets"] == 1
    http.put(WATCH % "guest")
    assert sweep(room)["targets"] == 2


@pytest.mark.parametrize("user", ["teacher", "student"])
def test_a_change_that_a_lookup_saw_first_is_delivered_by_the_next_sweep(
    watched: Sandbox, http: Http, user: str
) -> None:
    # Given changes of a user who is watched, and of one who is not.
    (first,) = watched.receive_messages(1)
    watched.simulator.publish(ROOM, user, "Audio", on=user == "student")

    # When the API and a task answer them.
    seen = [http.get(STATE % user).body, watched.invoke("TaskFunction", {**TEACHER, "user_id": user}).payload]
    assert [answer["media"]["audio"] for answer in seen] == [user == "student"] * 2
    assert watched.receive() == []
    sweep(watched)

    # Then the sweep delivers each, once.
    (second,) = watched.receive_messages(1)
    assert (second["user_id"], second["media"]) == (user, seen[0]["media"])
    assert second["previous"] == (first["media"] if user == "teacher" else None)
    assert sweep(watched)["unchanged"] == 1
    assert watched.receive() == []


def test_a_task_that_delivers_leaves_nothing_to_the_sweep(room: Sandbox, http: Http) -> None:
    http.put(WATCH % "teacher")
    room.invoke("TaskFunction", {**TEACHER, "deliver": "queue"})
    (message,) = room.receive_messages(1)

    assert sweep(room)["unchanged"] == 1

    assert message["changed"] == ["audio", "video", "screen_audio", "screen_video", "present"]
    assert room.receive() == []


def test_a_record_that_is_young_enough_spares_a_call(room: Sandbox, http: Http, conforms: Conforms) -> None:
    asked = http.get(STATE % "teacher").body
    body = {"targets": [TEACHER], "max_age": 3600}

    answers = [
        http.get(f"{STATE % 'teacher'}?max_age=3600").body,
        *http.post("/stream-states/query", body).body["results"],
        *room.invoke("TaskFunction", body).payload["results"],
        room.invoke("TaskFunction", {**TEACHER, "max_age": 3600}).payload,
    ]

    assert len(room.simulator.arrivals) == 1
    for answer in answers:
        conforms("answer", answer)
        assert answer == {**asked, "source": "table", "rtc_request_id": None}


def test_a_record_that_is_too_old_or_not_whole_spares_none(room: Sandbox, http: Http) -> None:
    room.simulator.leave(ROOM, "student")
    for user in ("teacher", "student"):
        http.get(STATE % user)
    time.sleep(1.1)

    old, zero = (http.get(f"{STATE % 'teacher'}?max_age={age}").body["source"] for age in (1, 0))
    unknown = http.get(f"{STATE % 'student'}?max_age=3600")

    assert (old, zero, unknown.status) == ("query", "query", 404)
    assert len(room.simulator.arrivals) == 5


def test_a_room_is_listed_from_its_records(room: Sandbox, either_http: Http, conforms: Conforms) -> None:
    room.simulator.publish(ROOM, "teacher", "Audio", app_id=OTHER_APP)
    for path in (STATE % "teacher", STATE % "student", f"{STATE % 'teacher'}?app_id={OTHER_APP}"):
        assert either_http.get(path).status == 200

    listed, other = (either_http.get(f"/rooms/{ROOM}/stream-states{query}") for query in ("", f"?app_id={OTHER_APP}"))
    empty = either_http.get("/rooms/class-2/stream-states")

    publishing = {state["user_id"]: state["publishing"] for state in listed.body["results"]}
    assert list(publishing.items()) == [("student", False), ("teacher", True)]
    assert [state["media"]["video"] for state in other.body["results"]] == [False]
    assert empty.body == {"results": [], "next_token": None}
    for state in listed.body["results"]:
        conforms("answer", state)
        assert state["source"] == "table"
    assert len(room.simulator.arrivals) == 3


def test_a_thousand_watches_are_listed_page_by_page(sandbox: Sandbox, http: Http) -> None:
    users = [f"user-{number:05}" for number in range(1_000)]
    for start in range(0, len(users), 100):
        targets = [{"room_id": ROOM, "user_id": user} for user in users[start : start + 100]]
        assert http.post("/watches", {"targets": targets}).status == 200

    pages = [http.get("/watches").body]
    while len(pages) < 100 and (token := pages[-1]["next_token"]):
        pages.append(http.get(f"/watches?next_token={token}").body)

    assert [watch["user_id"] for page in pages for watch in page["watches"]] == users
    assert 5 <= len(pages) < 100
