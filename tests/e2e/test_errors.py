"""Every error of the taxonomy comes out of the entry points, in each form that it has."""

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import pytest

from tests.e2e.contents import empty_table
from tests.e2e.http import Http
from tests.sandbox.aws import failure
from tests.sandbox.signatures import Keys
from tests.sandbox.simulator import APP_ID, Fault
from tests.sandbox.stack import Sandbox
from tests.vendor.faults import canned, delay, error, reset, result

TARGET = {"room_id": "class-1", "user_id": "teacher"}
PATH = "/rooms/class-1/users/teacher/stream-state"
# No function may run for so long.
LONG_PAUSE = {"Retry-After": "1000"}
type Prepare = Callable[[Sandbox], None]
type Conforms = Callable[[str, Any], None]


@pytest.fixture(scope="module")
def environment() -> Mapping[str, str]:
    # So that a time-out comes soon.
    return {"RTC_READ_TIMEOUT": "0.3"}


@dataclass(frozen=True)
class Case:
    """A failure, and the error that it comes to."""

    name: str
    prepare: Prepare
    error: str
    status: int
    retryable: bool = False
    rtc_code: str | None = None


def always(fault: Fault) -> Prepare:
    """Every call meets this fault."""

    def prepare(sandbox: Sandbox) -> None:
        sandbox.simulator.fault = lambda exchange: fault

    return prepare


def refused(code: str, status: int, name: str, http_status: int, **more: Any) -> Case:
    """The vendor answers with an error code."""
    return Case(code, always(error(code, status)), name, http_status, rtc_code=code, **more)


def secret_is_not_json(sandbox: Sandbox) -> None:
    sandbox.put_secret("access_key_id=1")
    sandbox.functions.restart()


def secrets_manager_throttles(sandbox: Sandbox) -> None:
    reply = failure("ThrottlingException")
    sandbox.aws.intercept = lambda operation, call: reply if operation == "secretsmanager.GetSecretValue" else None
    sandbox.functions.restart()


def keys_are_unknown(sandbox: Sandbox) -> None:
    sandbox.simulator.rotate(Keys("sandbox-unknown", "sandbox-unknown-secret"))


CASES = [
    Case("secret is not JSON", secret_is_not_json, "CredentialsInvalid", 500),
    Case("secrets manager throttles", secrets_manager_throttles, "CredentialsUnavailable", 503, retryable=True),
    Case("keys are unknown", keys_are_unknown, "RtcAccessDenied", 502, rtc_code="InvalidAccessKey"),
    refused("InvalidParameter.RoomId", 400, "RtcRequestRefused", 502),
    refused("InvalidActionOrVersion", 404, "RtcActionRetired", 502),
    Case("an answer is not JSON", always(canned(200, "<html>")), "RtcProtocolError", 502),
    refused("InternalError", 500, "RtcUnavailable", 503, retryable=True),
    Case("connection breaks", always(reset), "RtcUnavailable", 503, retryable=True),
    Case("an answer is late", always(delay(0.6)), "RtcUnavailable", 504, retryable=True),
]


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest, sandbox: Sandbox) -> Iterator[Case]:
    """Each failure, prepared."""
    prepared: Case = request.param
    sandbox.simulator.publish("class-1", "teacher", "Audio")
    prepared.prepare(sandbox)
    yield prepared
    # Other tests do not expect a process without keys.
    if prepared.error.startswith("Credentials"):
        sandbox.functions.restart()


def assert_is(problem: Mapping[str, Any], case: Case) -> None:
    """The problem is the case's error."""
    kind = problem["error"]
    assert (kind, problem["status"], problem["retryable"]) == (case.error, case.status, case.retryable)
    assert problem["type"].startswith("urn:problem-type:stream-state:")
    assert problem["type"].rpartition(":")[2].replace("-", "") == case.error.lower()
    assert problem.get("rtc_code") == case.rtc_code


def test_an_error_comes_out_in_each_form(sandbox: Sandbox, case: Case, conforms: Conforms) -> None:
    http = Http(sandbox.api_url)

    # All at once, since most of the time goes into starts and pauses.
    with ThreadPoolExecutor() as pool:
        single = pool.submit(http.get, PATH)
        batch = pool.submit(http.post, "/stream-states/query", {"targets": [TARGET]})
        raised = pool.submit(sandbox.invoke, "TaskFunction", TARGET).result()
        several = pool.submit(sandbox.invoke, "TaskFunction", {"targets": [TARGET], "deliver": "queue"}).result()
        swept = pool.submit(sandbox.invoke, "SweepFunction", TARGET).result()
    reply, results = single.result(), [*batch.result().body["results"], *several.payload["results"]]

    # HTTP: a problem document.
    assert reply.status == case.status
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.headers["cache-control"] == "no-store"
    assert "retry-after" not in reply.headers
    assert (reply.body["instance"], reply.body["request_id"]) == (PATH, reply.headers["apigw-requestid"])
    # Of several targets each has its own problem.
    assert batch.result().status == 200
    assert all({"app_id": APP_ID, **TARGET}.items() <= problem.items() for problem in results)
    # Step Functions: the exception's name, and a sentence.
    assert (raised.error, raised.error_type) == ("Unhandled", case.error)
    assert reply.body["detail"] in raised.payload["errorMessage"]
    # The queue: a message for the given target, and a failure in the summary.
    (message,) = sandbox.receive_messages(1)
    conforms("message", message)
    assert {"app_id": APP_ID, "type": "stream_state_problem", **TARGET}.items() <= message.items()
    assert (swept.payload["delivered"], swept.payload["failed"]) == (0, 1)
    for problem in (reply.body, *results, message["problem"]):
        conforms("problem", problem)
        assert_is(problem, case)
    assert_is(swept.payload["failures"][0]["problem"], case)


def test_a_throttle_comes_out_in_each_form(cold: Sandbox, http: Http, conforms: Conforms) -> None:
    # Given a vendor that asks for a long pause, and functions that have seen no hold yet.
    def forget() -> None:
        empty_table(cold)
        cold.functions.restart()

    cold.simulator.fault = lambda exchange: error("AccountFlowLimitExceeded", 200, headers=LONG_PAUSE)

    # When each form is asked for, as if the pause of the one before were over.
    single = http.get(PATH)
    forget()
    batch = http.post("/stream-states/query", {"targets": [TARGET]})
    forget()
    raised = cold.invoke("TaskFunction", TARGET)
    forget()
    cold.invoke("SweepFunction", TARGET)

    # Then each says so, and passes the pause on.
    assert (single.status, single.headers["retry-after"]) == (429, "1000")
    assert raised.error_type == "RtcThrottled"
    (message,) = cold.receive_messages(1)
    throttled = refused("AccountFlowLimitExceeded", 200, "RtcThrottled", 429, retryable=True)
    for problem in (single.body, *batch.body["results"], message["problem"]):
        conforms("problem", problem)
        assert_is(problem, throttled)
    assert len(cold.simulator.arrivals) == 4


def test_a_throttle_of_one_function_holds_the_others(cold: Sandbox, http: Http) -> None:
    cold.simulator.fail_next(error("FlowLimitExceeded", 429, headers=LONG_PAUSE))

    throttled, held = http.get(PATH), http.get(PATH)
    raised = cold.invoke("TaskFunction", TARGET)

    assert (throttled.body["error"], held.body["error"]) == ("RtcThrottled", "QuotaExceeded")
    assert raised.error_type == "QuotaExceeded"
    # However long a pause the vendor asks for, calls are held for a bounded time.
    assert 1 <= int(held.headers["retry-after"]) <= 60
    assert len(cold.simulator.arrivals) == 1


@pytest.mark.parametrize(
    "fault",
    [error("InternalError.RoomNotFound", 404), error("UserNotExist"), result("User is not found.")],
    ids=["room", "user", "text"],
)
def test_an_unknown_target_is_an_error_for_its_caller_and_a_change_for_the_queue(
    sandbox: Sandbox, http: Http, conforms: Conforms, fault: Fault
) -> None:
    sandbox.simulator.fault = lambda exchange: fault

    single, raised = http.get(PATH), sandbox.invoke("TaskFunction", TARGET)
    batch = http.post("/stream-states/query", {"targets": [TARGET]})
    sandbox.invoke("SweepFunction", TARGET)

    assert (single.status, single.body["error"]) == (404, "TargetNotFound")
    assert batch.body["results"][0]["error"] == "TargetNotFound"
    assert raised.error_type == "TargetNotFound"
    (message,) = sandbox.receive_messages(1)
    conforms("message", message)
    assert (message["present"], message["publishing"]) == (False, None)


def test_a_table_that_fails_is_an_error_where_it_is_needed(sandbox: Sandbox, http: Http) -> None:
    sandbox.simulator.publish("class-1", "teacher", "Audio")
    # Of the table only the rate limiter's item is left.
    reply = failure("ResourceNotFoundException")
    sandbox.aws.intercept = lambda operation, call: (
        reply if operation.startswith("DynamoDB_20120810.") and "limiter" not in str(call) else None
    )

    # The vendor's answer needs no table, also when an age was named.
    assert http.get(f"{PATH}?max_age=60").body["media"]["audio"] is True
    listed = http.get("/watches")
    raised = sandbox.invoke("TaskFunction", {**TARGET, "deliver": "queue"})
    sandbox.invoke("SweepFunction", TARGET)
    watched = sandbox.invoke("SweepFunction", {})

    assert (listed.status, listed.body["error"], listed.body["retryable"]) == (503, "StateUnavailable", True)
    assert (raised.error_type, watched.error_type) == ("StateUnavailable", "StateUnavailable")
    assert [message["problem"]["error"] for message in sandbox.receive_messages(1)] == ["StateUnavailable"]


def test_a_wait_past_its_deadline_is_an_error_of_its_own(sandbox: Sandbox) -> None:
    sandbox.simulator.publish("class-1", "teacher", "Audio")
    until = {"publishing": False, "started_at": "2026-01-01T00:00:00Z", "timeout_seconds": 10}

    raised = sandbox.invoke("TaskFunction", {**TARGET, "until": until})

    assert raised.error_type == "StreamStateTimeout"


def test_a_request_without_a_slot_in_time_is_an_error_of_its_own(cold: Sandbox, http: Http, conforms: Conforms) -> None:
    # Given a limit that is used up for two minutes to come, and a sweep that has seconds.
    next_us = {"next_us": {"N": str(int((time.time() + 120) * 1_000_000))}}
    item = {"pk": {"S": "limiter"}, "sk": {"S": "rtc"}, **next_us}
    cold.client("dynamodb").put_item(TableName=cold.outputs["StateTableName"], Item=item)
    functions = cold.functions.functions
    usual = functions["SweepFunction"]
    functions["SweepFunction"] = replace(usual, timeout_seconds=6)
    # When each form is asked for.
    batch, single = http.post("/stream-states/query", {"targets": [TARGET]}), http.get(PATH)
    raised = cold.invoke("TaskFunction", TARGET)
    cold.invoke("SweepFunction", TARGET)
    functions["SweepFunction"] = usual

    # Then it is a problem of its own, and nothing was called.
    assert single.status == 429
    assert 60 < int(single.headers["retry-after"]) < 120
    assert raised.error_type == "QuotaExceeded"
    (message,) = cold.receive_messages(1)
    for problem in (single.body, *batch.body["results"], message["problem"]):
        conforms("problem", problem)
        assert (problem["error"], problem["status"], problem["retryable"]) == ("QuotaExceeded", 429, True)
    assert not cold.simulator.arrivals
