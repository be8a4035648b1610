"""Every error of the taxonomy is reached through the entry points, in each form that it has."""

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import pytest

from tests.e2e.contents import empty_table
from tests.e2e.http import Http
from tests.sandbox.aws import failure
from tests.sandbox.simulator import APP_ID, Fault, Keys, canned, delay, error, reset, result
from tests.sandbox.stack import Sandbox

TARGET = {"room_id": "class-1", "user_id": "teacher"}
PATH = "/rooms/class-1/users/teacher/stream-state"
Prepare = Callable[[Sandbox], None]


@pytest.fixture(scope="module")
def environment() -> Mapping[str, str]:
    # So that a time-out comes soon.
    return {"RTC_READ_TIMEOUT": "0.3"}


@dataclass(frozen=True)
class Case:
    """What goes wrong, and the error that tells it."""

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


def secret(text: str) -> Prepare:
    """The secret holds this from the start."""

    def prepare(sandbox: Sandbox) -> None:
        sandbox.put_secret(text)
        sandbox.functions.restart()

    return prepare


def secret_read(code: str, status: int) -> Prepare:
    """Secrets Manager refuses to tell the secret from the start."""

    def prepare(sandbox: Sandbox) -> None:
        sandbox.functions.restart()
        reply = failure(code, status)
        sandbox.aws.intercept = lambda operation, call: reply if operation == "secretsmanager.GetSecretValue" else None

    return prepare


def other_keys(sandbox: Sandbox) -> None:
    sandbox.simulator.rotate(Keys("sandbox-unknown", "sandbox-unknown-secret"))


CASES = [
    Case("secret is not JSON", secret("access_key_id=1"), "CredentialsInvalid", 500),
    Case("secret has no value", secret_read("ResourceNotFoundException", 400), "CredentialsInvalid", 500),
    Case("secret is denied", secret_read("AccessDeniedException", 400), "CredentialsInvalid", 500),
    Case(
        "secrets manager throttles",
        secret_read("ThrottlingException", 400),
        "CredentialsUnavailable",
        503,
        retryable=True,
    ),
    Case(
        "secrets manager fails", secret_read("InternalServiceError", 500), "CredentialsUnavailable", 503, retryable=True
    ),
    Case("keys are unknown", other_keys, "RtcAccessDenied", 502, rtc_code="InvalidAccessKey"),
    refused("AccessDenied", 403, "RtcAccessDenied", 502),
    refused("InvalidParameter.AccountIdMismatch", 400, "RtcAccessDenied", 502),
    refused("InvalidTimestamp", 403, "RtcAccessDenied", 502),
    refused("InvalidParameter.RoomId", 400, "RtcRequestRefused", 502),
    refused("InvalidActionOrVersion", 404, "RtcActionRetired", 502),
    Case("an answer is not JSON", always(canned(200, "<html>")), "RtcProtocolError", 502),
    Case("an answer has no Result", always(result(None)), "RtcProtocolError", 502),
    Case(
        "an answer is for another user", always(result({"RoomId": "class-1", "UserId": "x"})), "RtcProtocolError", 502
    ),
    Case(
        "an answer is a redirect",
        always(canned(302, headers={"Location": "http://127.0.0.1:1/"})),
        "RtcProtocolError",
        502,
    ),
    Case("an answer is too large", always(canned(200, b"{" + b" " * 2**20 + b"}")), "RtcProtocolError", 502),
    refused("InternalError", 500, "RtcUnavailable", 503, retryable=True),
    Case("connection breaks", always(reset), "RtcUnavailable", 503, retryable=True),
    Case("an answer is late", always(delay(0.6)), "RtcUnavailable", 504, retryable=True),
]


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest, sandbox: Sandbox) -> Iterator[Case]:
    """Each way to fail, prepared."""
    prepared: Case = request.param
    sandbox.simulator.publish("class-1", "teacher", "Audio")
    prepared.prepare(sandbox)
    yield prepared
    # A process without keys is not what other tests expect.
    if prepared.error.startswith("Credentials"):
        sandbox.functions.restart()


def assert_tells(problem: Mapping[str, Any], case: Case) -> None:
    """The problem is the case's error."""
    kind = problem["error"]
    assert (kind, problem["status"], problem["retryable"]) == (case.error, case.status, case.retryable)
    assert problem["type"].startswith("urn:problem-type:stream-state:")
    assert problem["type"].rpartition(":")[2].replace("-", "") == case.error.lower()
    assert problem.get("rtc_code") == case.rtc_code


def test_an_error_is_told_in_each_form(sandbox: Sandbox, case: Case, conforms: Callable[[str, Any], None]) -> None:
    http = Http(sandbox.api_url)

    # All at once, since most of the time goes into starts and pauses.
    with ThreadPoolExecutor() as pool:
        asked = [
            pool.submit(http.get, PATH),
            pool.submit(http.post, "/stream-states/query", {"targets": [TARGET]}),
        ]
        invoked = [
            pool.submit(sandbox.invoke, "TaskFunction", TARGET),
            pool.submit(sandbox.invoke, "TaskFunction", {"targets": [TARGET], "deliver": "queue"}),
            pool.submit(sandbox.invoke, "SweepFunction", TARGET),
        ]
    single, batch = (reply.result() for reply in asked)
    raised, several, swept = (invocation.result() for invocation in invoked)

    # HTTP: a problem document.
    assert single.status == case.status
    assert single.headers["content-type"] == "application/problem+json"
    assert single.headers["cache-control"] == "no-store"
    assert "retry-after" not in single.headers
    assert (single.body["instance"], single.body["request_id"]) == (PATH, single.headers["apigw-requestid"])
    # Of several targets each has its own problem.
    assert batch.status == 200
    for problem in (*batch.body["results"], *several.payload["results"]):
        assert {"app_id": APP_ID, **TARGET}.items() <= problem.items()
    # Step Functions: the exception's name, and a sentence.
    assert raised.error == "Unhandled"
    assert raised.error_type == case.error
    assert single.body["detail"] in raised.payload["errorMessage"]
    # The queue: a message for the given target, and a failure in the summary.
    (message,) = sandbox.receive_messages(1)
    conforms("message", message)
    assert message["type"] == "stream_state_problem"
    assert {"app_id": APP_ID, **TARGET}.items() <= message.items()
    assert (swept.payload["delivered"], swept.payload["failed"]) == (0, 1)
    for problem in (single.body, *batch.body["results"], *several.payload["results"], message["problem"]):
        conforms("problem", problem)
        assert_tells(problem, case)
    assert_tells(swept.payload["failures"][0]["problem"], case)


@pytest.mark.parametrize(("code", "status"), [("FlowLimitExceeded", 429), ("AccountFlowLimitExceeded", 200)])
def test_a_throttle_is_told_in_each_form(
    cold: Sandbox, http: Http, conforms: Callable[[str, Any], None], code: str, status: int
) -> None:
    # Given a vendor that asks for a pause longer than any function may run, and functions that know of no hold yet.
    def forget() -> None:
        empty_table(cold)
        cold.functions.restart()

    cold.simulator.fault = lambda exchange: error(code, status, headers={"Retry-After": "1000"})

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
    throttled = Case(code, lambda sandbox: None, "RtcThrottled", 429, retryable=True, rtc_code=code)
    for problem in (single.body, *batch.body["results"], message["problem"]):
        conforms("problem", problem)
        assert_tells(problem, throttled)
    assert len(cold.simulator.arrivals) == 4


def test_a_throttle_of_one_function_holds_the_others(cold: Sandbox, http: Http) -> None:
    cold.simulator.fail_next(error("FlowLimitExceeded", 429, headers={"Retry-After": "1000"}))

    throttled, held = http.get(PATH), http.get(PATH)
    raised = cold.invoke("TaskFunction", TARGET)

    assert (throttled.body["error"], held.body["error"]) == ("RtcThrottled", "QuotaExceeded")
    assert raised.error_type == "QuotaExceeded"
    # However long the vendor asks for, calls are held for a bounded time.
    assert 1 <= int(held.headers["retry-after"]) <= 60
    assert len(cold.simulator.arrivals) == 1


def test_a_throttle_that_passes_is_waited_for(sandbox: Sandbox, http: Http) -> None:
    sandbox.simulator.publish("class-1", "teacher", "Audio")
    sandbox.simulator.fail_next(error("FlowLimitExceeded", 429))

    reply = http.get(PATH)

    assert (reply.status, reply.body["publishing"]) == (200, True)
    assert len(sandbox.simulator.arrivals) == 2


@pytest.mark.parametrize(
    "fault",
    [error("InternalError.RoomNotFound", 404), error("UserNotExist"), result("User is not found.")],
    ids=["room", "user", "text"],
)
def test_an_unknown_target_is_an_error_for_who_asks_and_news_for_the_queue(
    sandbox: Sandbox, http: Http, conforms: Callable[[str, Any], None], fault: Fault
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


def test_refused_keys_stop_a_sweep_that_was_given_many_targets(
    sandbox: Sandbox, conforms: Callable[[str, Any], None]
) -> None:
    sandbox.simulator.fault = lambda exchange: error("LackPolicy", 403)
    targets = [{"room_id": "class-1", "user_id": f"user-{number}"} for number in range(150)]

    sandbox.invoke("SweepFunction", {"targets": targets})

    # Those that were under way at once may have been refused too.
    assert len(sandbox.simulator.arrivals) <= 64
    messages = sandbox.receive_messages(150)
    assert {message["problem"]["error"] for message in messages} == {"RtcAccessDenied"}
    assert {message["user_id"] for message in messages} == {target["user_id"] for target in targets}


def test_one_refused_app_id_does_not_stop_a_sweep(sandbox: Sandbox) -> None:
    sandbox.simulator.fail_next(error("InvalidParameter.AccountIdMismatch", 400))
    targets = [{"room_id": "class-1", "user_id": f"user-{number}"} for number in range(20)]

    summary = sandbox.invoke("SweepFunction", {"targets": targets}).payload

    assert len(sandbox.simulator.arrivals) == 20
    assert (summary["delivered"], summary["failed"]) == (19, 1)


def table_gone(sandbox: Sandbox) -> None:
    reply = failure("ResourceNotFoundException")
    # The item of the limiter stays: this is about the states.
    sandbox.aws.intercept = lambda operation, call: (
        reply if operation.startswith("DynamoDB_20120810.") and "limiter" not in str(call) else None
    )


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/rooms/class-1/stream-states", b""),
        ("GET", "/watches", b""),
        ("POST", "/watches", {"targets": [TARGET]}),
        ("PUT", "/rooms/class-1/users/teacher/watch", b""),
        ("DELETE", "/rooms/class-1/users/teacher/watch", b""),
    ],
)
def test_a_table_that_fails_is_told_where_the_answer_needs_it(
    sandbox: Sandbox, http: Http, conforms: Callable[[str, Any], None], method: str, path: str, body: object
) -> None:
    table_gone(sandbox)

    reply = http.send(method, path, body)

    assert (reply.status, reply.body["error"], reply.body["retryable"]) == (503, "StateUnavailable", True)
    conforms("problem", reply.body)


def test_a_table_that_fails_is_told_where_the_queue_needs_it(
    sandbox: Sandbox, http: Http, conforms: Callable[[str, Any], None]
) -> None:
    sandbox.simulator.publish("class-1", "teacher", "Audio")
    table_gone(sandbox)

    # An answer that the vendor gave needs no table, also when an age was named.
    assert http.get(f"{PATH}?max_age=60").body["media"]["audio"] is True
    raised = sandbox.invoke("TaskFunction", {**TARGET, "deliver": "queue"})
    sandbox.invoke("SweepFunction", TARGET)
    watched = sandbox.invoke("SweepFunction", {})

    assert (raised.error_type, watched.error_type) == ("StateUnavailable", "StateUnavailable")
    (message,) = sandbox.receive_messages(1)
    conforms("message", message)
    assert message["problem"]["error"] == "StateUnavailable"


def test_a_wait_that_is_over_is_told_by_its_name(sandbox: Sandbox) -> None:
    sandbox.simulator.publish("class-1", "teacher", "Audio")
    until = {"publishing": False, "started_at": "2026-01-01T00:00:00Z", "timeout_seconds": 10}

    raised = sandbox.invoke("TaskFunction", {**TARGET, "until": until})

    assert raised.error_type == "StreamStateTimeout"


def test_what_has_no_slot_in_time_is_told_so(
    sandbox: Sandbox, http: Http, conforms: Callable[[str, Any], None]
) -> None:
    # Given a limit that is used up for two minutes to come, and a sweep that has seconds.
    sandbox.client("dynamodb").put_item(
        TableName=sandbox.outputs["StateTableName"],
        Item={"pk": {"S": "limiter"}, "sk": {"S": "rtc"}, "next_us": {"N": str(int((time.time() + 120) * 1_000_000))}},
    )
    functions = sandbox.functions.functions
    usual = functions["SweepFunction"]
    sandbox.functions.restart()
    functions["SweepFunction"] = replace(usual, timeout_seconds=6)
    try:
        # When each form is asked for.
        batch, single = http.post("/stream-states/query", {"targets": [TARGET]}), http.get(PATH)
        raised = sandbox.invoke("TaskFunction", TARGET)
        sandbox.invoke("SweepFunction", TARGET)
    finally:
        functions["SweepFunction"] = usual
        sandbox.functions.restart()

    # Then it is a problem of its own, and nothing was called.
    assert single.status == 429
    assert 60 < int(single.headers["retry-after"]) < 120
    assert raised.error_type == "QuotaExceeded"
    (message,) = sandbox.receive_messages(1)
    for problem in (single.body, *batch.body["results"], message["problem"]):
        conforms("problem", problem)
        assert (problem["error"], problem["status"], problem["retryable"]) == ("QuotaExceeded", 429, True)
    assert not sandbox.simulator.arrivals
