"""Operation without the vendor's action, withdrawn or not to be called: by callback events, and by presence calls."""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.http import Http
from tests.sandbox.aws import failure
from tests.sandbox.stack import Sandbox
from tests.vendor import official_signer
from tests.vendor.faults import error

STAGE = "stage-1"
HOST = {"room_id": STAGE, "user_id": "host"}
STRANGER = {"room_id": STAGE, "user_id": "stranger"}
WAIT = {"interval_seconds": 1, "timeout_seconds": 60}


@pytest.fixture(scope="module", params=["withdrawn", "presence", "off"])
def way(request: pytest.FixtureRequest) -> str:
    """The reason why no query is answered."""
    return str(request.param)


@pytest.fixture(scope="module")
def world(way: str) -> Iterator[Sandbox]:
    """A stack that receives events, of a vendor who answers `InvalidActionOrVersion` or must not be called.

    By presence the vendor must not be called for streams; withdrawn are all calls.
    """
    parameters = {"EnableCallbacks": "true", "RtcQuery": "on" if way == "withdrawn" else way}
    with Sandbox(parameters, verify=official_signer.verify) as sandbox:
        sandbox.simulator.calls_per_second = None
        withdrawn = error("InvalidActionOrVersion", 404)
        sandbox.simulator.fault = lambda exchange: withdrawn if way == "withdrawn" else None
        sandbox.simulator.push_to = sandbox.callback_url
        yield sandbox
        called = {arrival.action for arrival in sandbox.simulator.arrivals}
        assert way == "withdrawn" or called == ({"GetRoomUsersProperty"} if way == "presence" else set())


@pytest.fixture
def on_stage(world: Sandbox) -> Iterator[Sandbox]:
    """The host has joined with sound, by events."""
    world.simulator.publish(STAGE, "host", "Audio")
    yield world
    world.simulator.leave(STAGE, "host")


def test_each_way_in_answers_from_callback_events(on_stage: Sandbox, way: str) -> None:
    http, missing = Http(on_stage.api_url), "RtcActionRetired" if way == "withdrawn" else "TargetNotFound"

    one = http.get(f"/rooms/{STAGE}/users/host/stream-state").body
    several = http.post("/stream-states/query", {"targets": [HOST, STRANGER]}).body["results"]
    task = on_stage.invoke("TaskFunction", HOST).payload
    unknown = on_stage.invoke("TaskFunction", STRANGER)

    for answer in (one, several[0], task):
        assert (answer["source"], answer["present"], answer["media"]["audio"]) == ("table", True, True)
        # No event said anything of the other media since the host joined.
        assert answer["media"]["video"] is None
    assert several[1]["error"] == unknown.error_type == missing


def test_a_sweep_of_given_targets_delivers_their_records(on_stage: Sandbox, way: str) -> None:
    on_stage.receive_messages()

    summary = on_stage.invoke("SweepFunction", {"targets": [HOST, STRANGER]}).payload

    # By presence it is known that the stranger is not in the room.
    assert (summary["delivered"], summary["failed"]) == ((2, 0) if way == "presence" else (1, 1))
    types = {message["user_id"]: message["type"] for message in on_stage.receive_messages(2)}
    assert types == {"host": "stream_state", "stranger": "stream_state" + "_problem" * (way != "presence")}


def test_an_execution_waits_for_an_event(on_stage: Sandbox) -> None:
    waiting = on_stage.start_wait({**HOST, **WAIT, "medium": "video"})
    time.sleep(1.5)
    on_stage.simulator.publish(STAGE, "host", "Audio", "Video")
    execution = on_stage.wait_for_end(waiting)

    assert execution["status"] == "SUCCEEDED", execution
    answer: dict[str, Any] = json.loads(execution["output"])
    assert (answer["holds"], answer["media"]["video"], answer["source"]) == (True, True, "callback")


def test_an_execution_waits_until_the_host_leaves_and_the_room_ends(on_stage: Sandbox) -> None:
    waiting = on_stage.start_wait({**HOST, **WAIT, "publishing": False})
    on_stage.simulator.leave(STAGE, "host")
    execution = on_stage.wait_for_end(waiting)

    assert execution["status"] == "SUCCEEDED", execution
    assert json.loads(execution["output"])["publishing"] is False


def test_an_execution_for_a_user_of_whom_there_was_no_event(world: Sandbox, way: str) -> None:
    execution = world.wait_for_end(world.start_wait({**STRANGER, "interval_seconds": 1, "timeout_seconds": 2}))

    # "Not yet" while no call is made; with a withdrawn action the user's state cannot come.
    expected = "RtcActionRetired" if way == "withdrawn" else "StreamStateTimeout"
    assert (execution["status"], execution["error"]) == ("FAILED", expected)


def test_an_event_that_cannot_be_stored_comes_again_from_the_retry_queue(world: Sandbox) -> None:
    world.receive_messages()
    world.aws.fail_next("DynamoDB_20120810.PutItem", *[failure("InternalServerError", 500)] * 2)

    world.simulator.join("room-2", "late")

    # A recheck of the host may come to an end meanwhile.
    first, more = world.receive_messages(1), []
    if all(message["user_id"] != "late" for message in first):
        more = world.receive_messages(1)
    messages = [message for message in first + more if message["user_id"] == "late"]
    assert [(message["present"], message["source"]) for message in messages] == [(True, "callback")]
