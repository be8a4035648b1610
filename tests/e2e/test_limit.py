"""The limit is one for all functions, and an operator can stop and free all calls."""

import time

import pytest

from tests.e2e.contents import table_items
from tests.e2e.http import Http
from tests.sandbox.stack import Sandbox

TARGET = {"room_id": "class-1", "user_id": "teacher"}
PATH = "/rooms/class-1/users/teacher/stream-state"
ITEM = {"pk": {"S": "limiter"}, "sk": {"S": "rtc"}}


@pytest.fixture
def stopped(sandbox: Sandbox) -> Sandbox:
    """Calls are on hold for an hour, as the operations guide says to do it."""
    sandbox.simulator.publish("class-1", "teacher", "Audio")
    update(sandbox, "SET hold_until = :until", {":until": {"N": str(int(time.time()) + 3600)}})
    return sandbox


def update(sandbox: Sandbox, expression: str, values: dict[str, dict[str, str]] | None = None) -> None:
    sandbox.client("dynamodb").update_item(
        TableName=sandbox.outputs["StateTableName"],
        Key=ITEM,
        UpdateExpression=expression,
        **({"ExpressionAttributeValues": values} if values else {}),
    )


def test_a_hold_stops_every_call_and_says_so(stopped: Sandbox, http: Http) -> None:
    reply, raised = http.get(PATH), stopped.invoke("TaskFunction", TARGET)
    several = http.post("/stream-states/query", {"targets": [TARGET]})

    assert (reply.status, reply.body["error"], raised.error_type) == (429, "QuotaExceeded", "QuotaExceeded")
    assert int(reply.headers["retry-after"]) > 0
    assert several.body["results"][0]["error"] == "QuotaExceeded"
    assert not stopped.simulator.arrivals


def test_calls_go_on_when_the_hold_is_lifted(stopped: Sandbox, http: Http) -> None:
    assert http.get(PATH).status == 429

    update(stopped, "REMOVE hold_until")

    assert http.get(PATH).status == 200
    assert stopped.invoke("TaskFunction", TARGET).error is None


def test_what_is_known_is_told_during_a_hold(sandbox: Sandbox, http: Http) -> None:
    sandbox.simulator.publish("class-1", "teacher", "Audio")
    http.get(PATH)
    update(sandbox, "SET hold_until = :until", {":until": {"N": str(int(time.time()) + 3600)}})

    assert http.get(f"{PATH}?max_age=3600").body["source"] == "table"
    assert http.get("/rooms/class-1/stream-states").body["results"][0]["publishing"] is True


def test_all_functions_reserve_from_one_item(sandbox: Sandbox, http: Http) -> None:
    sandbox.simulator.publish("class-1", "teacher", "Audio")
    reserved = []
    for ask in (
        lambda: http.get(PATH),
        lambda: sandbox.invoke("TaskFunction", TARGET),
        lambda: sandbox.invoke("SweepFunction", TARGET),
    ):
        ask()
        reserved += [int(item["next_us"]["N"]) for item in table_items(sandbox) if item["pk"]["S"] == "limiter"]

    assert len(reserved) == 3
    assert reserved == sorted(set(reserved))
