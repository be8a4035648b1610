"""No key, secret, token or signature appears in a log, an answer, an exception, a message, a metric or the table."""

import json
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from tests.e2e.contents import table_items
from tests.e2e.http import Http
from tests.sandbox.aws import failure
from tests.sandbox.signatures import Keys
from tests.sandbox.simulator import Exchange, Fault
from tests.sandbox.stack import Sandbox
from tests.vendor.faults import canned, error, result, states

TARGET = {"room_id": "class-1", "user_id": "teacher"}
PATH = "/rooms/class-1/users/teacher/stream-state"
# Of the shape that codes and ids may have, so that nothing but their being secret keeps them from being shown.
CANARIES = Keys("CANARYaccess0123456789", "CANARYsecret0123456789", "CANARYtoken0123456789")
ACCESS, SECRET, TOKEN = CANARIES.access_key_id, CANARIES.secret_access_key, CANARIES.session_token
EACH = (ACCESS, SECRET, str(TOKEN))
ALL = " ".join(EACH)
# Only the signature and the canonical request hold these.
SIGNED = ("HMAC-SHA256", "Credential=", "SignedHeaders", "x-content-sha256", "X-Amz-Security")


@pytest.fixture(scope="module")
def environment() -> Mapping[str, str]:
    return {"POWERTOOLS_LOG_LEVEL": "DEBUG", "SECRET_MAX_AGE": "0", "RTC_READ_TIMEOUT": "0.5"}


def echoed(exchange: Exchange) -> str:
    """Everything that was sent, as a vendor's message may repeat it."""
    request = exchange.request
    return f"{request.method} {request.target} {request.headers} {ALL}"


def metadata(**fields: object) -> Fault:
    """An answer with these metadata."""
    return canned(200, {"ResponseMetadata": fields, "Result": {}})


def message_echo(exchange: Exchange) -> Any:
    """The error's message repeats the request, its Authorization too."""
    return error("InvalidParameter", 400, message=echoed(exchange))(exchange)


def body_echo(exchange: Exchange) -> Any:
    """A body that is no JSON repeats the request."""
    return canned(500, f"<html>{echoed(exchange)}")(exchange)


DENIED = {"Code": "AccessDenied", "Message": ALL}
NOTHING = {"RoomId": "class-1", "UserId": "teacher", "StreamStates": []}
ECHOES: dict[str, Fault] = {
    "message": message_echo,
    "body": body_echo,
    "message of rejected keys": error("InvalidAccessKey", 401, message=ALL),
    "header": canned(302, headers={"Location": f"http://127.0.0.1:1/{ALL}", "X-Tt-Logid": ALL, "Set-Cookie": ACCESS}),
    "header value": error("InternalError", 500, headers={"Retry-After": SECRET, "X-Request-Id": ALL}),
    "content length": canned(200, b"", {"Content-Length": ACCESS}),
    "content encoding": canned(200, b"x", {"Content-Encoding": ACCESS, "Content-Type": SECRET}),
    "Result fields": result({ACCESS: SECRET, "RoomId": TOKEN}),
    "RoomId": result({"RoomId": ACCESS, "UserId": SECRET, "StreamStates": []}),
    "UserId": result({"RoomId": "class-1", "UserId": TOKEN, "StreamStates": []}),
    "MediaType": states([{"MediaType": ACCESS, "State": 1}, {"MediaType": "Audio", "State": SECRET}, {TOKEN: 1}]),
    **{f"Code {canary[:12]}": error(canary, 400) for canary in EACH},
    **{f"end of Code {canary[:12]}": error(f"InvalidParameter.{canary}", 400) for canary in EACH},
    **{f"RequestId {canary[:12]}": metadata(RequestId=canary, Error=DENIED) for canary in EACH},
    "RequestId of an answer": canned(200, {"ResponseMetadata": {"RequestId": f"2026.{SECRET}"}, "Result": NOTHING}),
    "no text": metadata(RequestId=[ACCESS], Error={"Code": {ACCESS: 1}, "Message": [ALL], "CodeN": SECRET}),
}
WITHOUT_KEYS: dict[str, str] = {
    "cut off": json.dumps({"access_key_id": ACCESS, "secret_access_key": SECRET})[:-1],
    "lines": f"{ACCESS}\n{SECRET}\n{TOKEN}",
    "both spellings": json.dumps({"access_key_id": ACCESS, "AccessKeyId": ACCESS, "secret_access_key": SECRET}),
    "twice": f'{{"access_key_id": "{ACCESS}", "access_key_id": "{SECRET}"}}',
    "beyond ASCII": json.dumps({"access_key_id": ACCESS, "secret_access_key": f"{SECRET}é"}),
}


def drive(sandbox: Sandbox) -> str:
    """Use every entry point that calls the vendor, and return answers, messages, items and logs."""
    http = Http(sandbox.api_url)
    with ThreadPoolExecutor() as pool:
        asked: list[Future[Any]] = [
            pool.submit(http.get, PATH),
            pool.submit(http.post, "/stream-states/query", {"targets": [TARGET]}),
            pool.submit(sandbox.invoke, "TaskFunction", TARGET),
            pool.submit(sandbox.invoke, "TaskFunction", {**TARGET, "deliver": "queue"}),
            pool.submit(sandbox.invoke, "SweepFunction", TARGET),
        ]
    answers = [repr(answer.result()) for answer in asked]
    sandbox.aws.intercept = lambda operation, call: None
    return "\n".join([*answers, json.dumps(sandbox.receive()), json.dumps(table_items(sandbox)), sandbox.logs])


@pytest.fixture
def show(sandbox: Sandbox) -> Iterator[Callable[[], str]]:
    """Drives the entry points; at the end all that they showed is searched for canaries."""
    shown: list[str] = []

    def drive_and_keep() -> str:
        shown.append(drive(sandbox))
        return shown[-1]

    yield drive_and_keep
    text = "\n".join(shown)
    assert shown
    for canary in (*EACH, *(b64encode(canary.encode()).decode().rstrip("=")[:-1] for canary in EACH)):
        assert canary not in text
        assert canary.lower() not in text.lower()
    for part in SIGNED:
        assert part not in text


@pytest.fixture
def with_canaries(sandbox: Sandbox) -> Sandbox:
    sandbox.put_keys(CANARIES)
    sandbox.simulator.rotate(CANARIES)
    sandbox.simulator.publish("class-1", "teacher", "Audio")
    return sandbox


def test_keys_that_serve_are_not_shown(with_canaries: Sandbox, show: Callable[[], str]) -> None:
    show()

    # The vendor got the canaries, and accepted their signatures.
    assert {arrival.outcome for arrival in with_canaries.simulator.arrivals} == {"OK"}
    assert {arrival.headers["x-security-token"] for arrival in with_canaries.simulator.arrivals} == {TOKEN}
    assert all(ACCESS in arrival.headers["authorization"] for arrival in with_canaries.simulator.arrivals)


@pytest.mark.parametrize("name", ECHOES)
def test_an_echo_of_the_vendor_is_not_shown(with_canaries: Sandbox, show: Callable[[], str], name: str) -> None:
    with_canaries.simulator.fault = lambda exchange: ECHOES[name]

    show()

    assert with_canaries.simulator.arrivals


@pytest.mark.parametrize("canary", EACH)
def test_a_throttle_that_echoes_is_not_shown(cold: Sandbox, with_canaries: Sandbox, http: Http, canary: str) -> None:
    # A sweep would wait until calls are free again.
    with_canaries.simulator.fault = lambda exchange: error(
        f"FlowLimitExceeded.{canary}", 429, message=ALL, headers={"Retry-After": "1000", "X-Tt-Logid": canary}
    )

    shown = [http.get(PATH).text, repr(with_canaries.invoke("TaskFunction", TARGET)), with_canaries.logs]

    assert "RtcThrottled" in shown[0]
    assert all(secret not in text for secret in EACH for text in shown)


@pytest.mark.parametrize("keys", [Keys(ACCESS, "other", TOKEN), Keys(ACCESS, SECRET, "other"), Keys("other", "other")])
def test_the_simulators_own_refusals_are_not_shown(with_canaries: Sandbox, show: Callable[[], str], keys: Keys) -> None:
    with_canaries.simulator.rotate(keys)

    assert "RtcAccessDenied" in show()


@pytest.mark.parametrize("name", WITHOUT_KEYS)
def test_a_malformed_secret_is_not_shown(cold: Sandbox, show: Callable[[], str], name: str) -> None:
    cold.put_secret(WITHOUT_KEYS[name])

    assert "CredentialsInvalid" in show()

    assert not cold.simulator.arrivals


def test_a_secret_that_goes_bad_is_not_shown(with_canaries: Sandbox, show: Callable[[], str]) -> None:
    show()
    with_canaries.put_secret(WITHOUT_KEYS["cut off"])

    assert "The earlier keys serve on" in show()


def test_a_message_of_aws_is_not_shown(with_canaries: Sandbox, show: Callable[[], str]) -> None:
    reply = failure("InternalFailure", 500, message=ALL)
    # Without the item of the limit a sweep would wait for it to come back.
    with_canaries.aws.intercept = lambda operation, call: (
        reply
        if operation.startswith(("AmazonSQS.Send", "DynamoDB_20120810.", "secretsmanager."))
        and "limiter" not in str(call)
        else None
    )

    text = show()

    assert "StateUnavailable" in text
    assert "The earlier keys serve on" in text


def test_an_execution_does_not_show_an_echo(with_canaries: Sandbox) -> None:
    with_canaries.simulator.fault = lambda exchange: message_echo

    execution = with_canaries.wait_for_end(with_canaries.start_wait({**TARGET, "timeout_seconds": 5}))

    history = with_canaries.client("stepfunctions").get_execution_history(executionArn=execution["executionArn"])
    shown = f"{execution}{history}{with_canaries.logs}"
    assert (execution["status"], execution["error"]) == ("FAILED", "RtcRequestRefused")
    assert not [text for text in (*EACH, *SIGNED) if text in shown]
