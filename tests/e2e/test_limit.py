"""The limit is one for all functions, and an operator can stop and free all calls."""

import time
from typing import Any

import pytest

from tests.e2e.contents import table_items
from tests.e2e.http import Http
from tests.sandbox.stack import Sandbox

# A function asks for a slot at least this often while calls are on hold.
NOTICED_SECONDS = 6
TARGET = {"room_id": "class-1", "user_id": "teacher"}
PATH = "/rooms/class-1/users/teacher/stream-state"


@pytest.fixture
def room(cold: Sandbox) -> Sandbox:
    """A room, and functions that have seen no hold yet."""
    cold.simulator.publish("class-1", "teacher", "Audio")
    return cold


def update(sandbox: Sandbox, expression: str, **more: Any) -> None:
    """Change the item of the limit, as the operations guide says to do it."""
    key = {"pk": {"S": "limiter"}, "sk": {"S": "rtc"}}
    table = sandbox.outputs["StateTableName"]
    sandbox.client("dynamodb").update_item(TableName=table, Key=key, UpdateExpression=expression, **more)


def test_a_hold_stops_every_call_and_says_so_until_it_is_lifted(room: Sandbox, http: Http) -> None:
    assert http.get(PATH).status == 200
    until = {":until": {"N": str(int(time.time()) + 3600)}}
    update(room, "SET hold_until = :until", ExpressionAttributeValues=until)
    # A function that has called just now may call on its view of the hold, which is a second old at most.
    time.sleep(1.1)

    reply, raised = http.get(PATH), room.invoke("TaskFunction", TARGET)
    several = http.post("/stream-states/query", {"targets": [TARGET]})

    assert (reply.status, reply.body["error"], raised.error_type) == (429, "QuotaExceeded", "QuotaExceeded")
    assert int(reply.headers["retry-after"]) > 0
    assert several.body["results"][0]["error"] == "QuotaExceeded"
    assert len(room.simulator.arrivals) == 1
    # The states of the table are answered meanwhile.
    assert http.get(f"{PATH}?max_age=3600").body["source"] == "table"
    assert http.get("/rooms/class-1/stream-states").body["results"][0]["publishing"] is True

    update(room, "REMOVE hold_until")
    lifted_at = time.monotonic()
    while http.get(PATH).status != 200:
        assert time.monotonic() < lifted_at + NOTICED_SECONDS
        time.sleep(0.2)


def test_all_functions_reserve_from_one_item(room: Sandbox, http: Http) -> None:
    reserved = []
    for ask in (
        lambda: http.get(PATH),
        lambda: room.invoke("TaskFunction", TARGET),
        lambda: room.invoke("SweepFunction", TARGET),
    ):
        ask()
        reserved += [int(item["next_us"]["N"]) for item in table_items(room) if item["pk"]["S"] == "limiter"]

    assert len(reserved) == 3
    assert reserved == sorted(set(reserved))
