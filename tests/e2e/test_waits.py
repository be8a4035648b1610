"""WaitForStream, executed: its rounds by the built function, woken by whoever observes the condition."""

import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from itertools import batched, count
from statistics import median
from typing import Any

import pytest

from tests.e2e.contents import table_items
from tests.e2e.http import Http
from tests.e2e.waiting import until, waits
from tests.sandbox.aws import Reply, failure
from tests.sandbox.simulator import Fault
from tests.sandbox.stack import Sandbox
from tests.vendor.faults import error

# More for a thorough run: STREAM_STATE_WAITS=200.
WAITS = int(os.environ.get("STREAM_STATE_WAITS", "40"))
USERS = [f"host-{number}" for number in range(WAITS)]
HOST = {"room_id": "class-1", "user_id": "host"}
# One round lasts as long as the test.
WAIT = {"medium": "video", "interval_seconds": 600, "timeout_seconds": 600}
# Milliseconds are usual; this is for a machine that does other work too.
SOON_SECONDS = 5
DENIED, THROTTLED = error("AccessDenied", 403, 100013), error("FlowLimitExceeded", 429, 100018)


@pytest.fixture(scope="module")
def parameters() -> Mapping[str, str]:
    return {"EnableCallbacks": "true"}


@pytest.fixture(scope="module")
def environment() -> Mapping[str, str]:
    # There is one clock only: no event is so close to a call that the vendor is asked once more.
    return {"RTC_SKEW_SECONDS": "0"}


@pytest.fixture
def stage(sandbox: Sandbox) -> Iterator[Sandbox]:
    """A vendor who sends callback events; after the test no hold is left, and no throttled call comes again."""
    sandbox.simulator.push_to = sandbox.callback_url
    yield sandbox
    until(lambda: held_until(sandbox) < time.time() - 5)


def held_until(sandbox: Sandbox) -> float:
    """Until when all calls are on hold, or were."""
    held = [item["hold_until"]["N"] for item in table_items(sandbox) if "hold_until" in item]
    return max(map(float, held), default=0)


def begin(sandbox: Sandbox, **more: Any) -> str:
    """Start a wait for the host's camera, and return when its first round has asked the vendor."""
    before = len(sandbox.simulator.arrivals)
    arn = sandbox.start_wait({**HOST, **WAIT, **more})
    until(lambda: len(sandbox.simulator.arrivals) > before)
    return arn


def begin_all(sandbox: Sandbox) -> list[str]:
    """Start a wait for each of many users, and return when all have registered and have asked."""
    sandbox.simulator.push_to = None
    for user in USERS:
        sandbox.simulator.join("class-1", user)
    with ThreadPoolExecutor(8) as pool:
        arns = list(pool.map(lambda user: sandbox.start_wait({**HOST, **WAIT, "user_id": user}), USERS))
    until(lambda: len(waits(sandbox)) == WAITS, 180)
    # The last round has asked, or found no slot.
    asked = -1
    while asked < len(sandbox.simulator.arrivals):
        asked = len(sandbox.simulator.arrivals)
        time.sleep(1.5)
    assert asked <= WAITS
    return arns


def assert_all_are_woken(sandbox: Sandbox, arns: list[str], source: str) -> None:
    ended = [sandbox.wait_for_end(arn) for arn in arns]

    assert Counter(execution["status"] for execution in ended) == {"SUCCEEDED": WAITS}
    answers = [json.loads(execution["output"]) for execution in ended]
    assert [answer["user_id"] for answer in answers] == USERS
    assert {answer["source"] for answer in answers} == {source}
    delays = [
        (execution["stopDate"] - datetime.fromisoformat(answer["media_observed_at"]["video"])).total_seconds()
        for execution, answer in zip(ended, answers, strict=True)
    ]
    print(f"{WAITS} waits, {source}: median {median(delays):.3f} s, longest {max(delays):.3f} s after the observation")
    assert median(delays) < SOON_SECONDS
    assert waits(sandbox) == []


def test_many_waits_are_woken_by_callback_events_after_one_call_each(stage: Sandbox) -> None:
    # Given many workflows that wait, each for another user
    arns = begin_all(stage)

    # When the cameras go on, and the vendor sends that
    stage.simulator.push_to = stage.callback_url
    for user in USERS:
        stage.simulator.publish("class-1", user, "Video")

    # Then all end with it, and the vendor was asked once for each at most
    assert_all_are_woken(stage, arns, "callback")
    assert len(stage.simulator.arrivals) <= WAITS


@pytest.mark.parametrize("parameters", [{}], ids=["no callbacks"], scope="module")
def test_many_waits_are_woken_by_a_sweep(sandbox: Sandbox) -> None:
    arns = begin_all(sandbox)

    # When the cameras go on, and a sweep sees it; a busy machine may need another one
    for user in USERS:
        sandbox.simulator.publish("class-1", user, "Video")
    targets = [{"room_id": "class-1", "user_id": user} for user in USERS]
    sweeps = next(
        number for number in range(1, 4) if not sandbox.invoke("SweepFunction", {"targets": targets}).payload["failed"]
    )

    assert_all_are_woken(sandbox, arns, "query")
    # One call of each wait at most, and those of the sweeps
    assert len(sandbox.simulator.arrivals) <= (1 + sweeps) * WAITS


def test_a_lookup_is_not_slower_while_a_thousand_waits_are_open(stage: Sandbox, http: Http) -> None:
    def median_seconds() -> float:
        taken = []
        for _ in range(20):
            started = time.perf_counter()
            assert http.get("/rooms/class-1/users/student/stream-state").status == 200
            taken.append(time.perf_counter() - started)
        return median(taken)

    stage.simulator.join("class-1", "student")
    before = median_seconds()
    # Given what one round of a wait has written, for a thousand users
    arn = begin(stage)
    written = [item for item in table_items(stage) if "host" in f"{item['pk']} {item['sk']}"]
    assert len(written) == 2
    dynamodb, name = stage.client("dynamodb"), stage.outputs["StateTableName"]
    for numbers in batched(range(1000), 12, strict=False):
        changed = [json.loads(json.dumps(written).replace("class-1", f"class-2-{number}")) for number in numbers]
        puts = [{"PutRequest": {"Item": item}} for items in changed for item in items]
        dynamodb.batch_write_item(RequestItems={name: puts})
    assert len(waits(stage)) == 1001

    after = median_seconds()

    print(f"median of a lookup over HTTP: {before * 1000:.0f} ms, with 1,000 waits {after * 1000:.0f} ms")
    assert after < 2 * before + 0.05
    stage.client("stepfunctions").stop_execution(executionArn=arn)


@pytest.mark.parametrize(
    "fault", [None, THROTTLED, error("InternalServiceError", 500, 100014)], ids=["not there", "throttled", "fails"]
)
def test_a_wait_whose_call_says_nothing_of_the_host_is_woken(stage: Sandbox, fault: Fault | None) -> None:
    stage.simulator.fault = lambda exchange: fault
    arn = begin(stage)

    stage.simulator.publish("class-1", "host", "Audio", "Video")

    execution = stage.wait_for_end(arn)
    assert execution["status"] == "SUCCEEDED", execution
    answer = json.loads(execution["output"])
    assert (answer["media"]["video"], answer["source"], answer["holds"]) == (True, "callback", True)


def test_a_wait_for_which_the_vendor_refuses_the_keys_fails_at_once_by_name(stage: Sandbox) -> None:
    stage.simulator.fault = lambda exchange: DENIED

    execution = stage.wait_for_end(begin(stage))

    assert (execution["status"], execution["error"]) == ("FAILED", "RtcAccessDenied")
    assert (execution["stopDate"] - execution["startDate"]).total_seconds() < 30
    assert waits(stage) == []


def test_a_wait_ends_in_time_while_every_call_and_every_wake_fails(stage: Sandbox) -> None:
    # Given a vendor who answers no call, and Step Functions that accepts no token
    wakes: list[dict[str, Any]] = []

    def refuse(operation: str, call: dict[str, Any]) -> Reply | None:
        if operation != "AWSStepFunctions.SendTaskSuccess":
            return None
        wakes.append(call)
        return failure("InternalServerError", 500)

    stage.simulator.fault = lambda exchange: error("InternalServiceError", 500, 100014)
    stage.aws.intercept = refuse

    # When the condition is observed during the wait
    arn = begin(stage, interval_seconds=2, timeout_seconds=6)
    stage.simulator.publish("class-1", "host", "Video")
    execution = stage.wait_for_end(arn)

    # Then the wait ends by its time, after further rounds that tried to answer
    assert (execution["status"], execution["error"]) == ("FAILED", "StreamStateTimeout")
    assert 6 <= (execution["stopDate"] - execution["startDate"]).total_seconds() < 6 + SOON_SECONDS
    assert len({wake["taskToken"] for wake in wakes}) > 1


def test_a_wake_that_failed_is_made_good_by_the_next_round(stage: Sandbox) -> None:
    stage.aws.fail_next("AWSStepFunctions.SendTaskSuccess", failure("ServiceUnavailable", 503))
    arn = begin(stage, interval_seconds=3)
    asked = len(stage.simulator.arrivals)

    stage.simulator.publish("class-1", "host", "Video")

    execution = stage.wait_for_end(arn)
    assert execution["status"] == "SUCCEEDED", execution
    # It knew by the event: nobody asked the vendor again.
    assert (json.loads(execution["output"])["source"], len(stage.simulator.arrivals)) == ("table", asked)


@pytest.mark.parametrize("code", ["TaskTimedOut", "TaskDoesNotExist", "InvalidToken"])
def test_the_token_of_a_wait_that_was_stopped_is_removed_quietly(stage: Sandbox, code: str) -> None:
    arn = begin(stage)
    stage.client("stepfunctions").stop_execution(executionArn=arn)
    # AWS refuses the token of an execution that was stopped; moto accepts it.
    stage.aws.fail_next("AWSStepFunctions.SendTaskSuccess", failure(code))
    logged = len(stage.logs)

    stage.simulator.publish("class-1", "host", "Video")

    assert waits(stage) == []
    assert not stage.aws.next_replies["AWSStepFunctions.SendTaskSuccess"]
    assert not [level for level in ("ERROR", "WARNING") if level in stage.logs[logged:]]


@pytest.mark.parametrize("place", range(5))
def test_an_event_before_any_request_of_a_round_wakes_the_wait(stage: Sandbox, place: int) -> None:
    # Given a vendor who answers no call, so that the event alone can
    stage.simulator.fault = lambda exchange: error("InternalServiceError", 500, 100014)
    requests = count()

    def publish_meanwhile(operation: str, call: dict[str, Any]) -> Reply | None:
        # The first request is that which registers the wait.
        is_of_round = operation.startswith("DynamoDB") and (place or json.dumps(call).count("wait#"))
        if is_of_round and next(requests) == place:
            stage.simulator.publish("class-1", "host", "Video")
        return None

    stage.aws.intercept = publish_meanwhile
    execution = stage.wait_for_end(stage.start_wait({**HOST, **WAIT, "timeout_seconds": 30}))

    assert execution["status"] == "SUCCEEDED", execution


@pytest.mark.parametrize("place", range(5))
def test_a_wait_that_begins_before_any_request_of_an_event_is_woken(stage: Sandbox, place: int) -> None:
    stage.simulator.fault = lambda exchange: error("InternalServiceError", 500, 100014)
    requests, arns = count(), list[str]()

    def begin_meanwhile(operation: str, call: dict[str, Any]) -> Reply | None:
        if operation.startswith("DynamoDB") and next(requests) == place:
            arns.append(stage.start_wait({**HOST, **WAIT, "timeout_seconds": 30}))
            until(lambda: waits(stage))
        return None

    stage.aws.intercept = begin_meanwhile
    stage.simulator.publish("class-1", "host", "Video")

    execution = stage.wait_for_end(arns[0])
    assert execution["status"] == "SUCCEEDED", execution
