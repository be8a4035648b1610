"""The RTC simulator keeps the vendor's rules, so that whatever passes it would pass there."""

import json
import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

import pytest
import requests

from tests.sandbox import official_signer, simulator
from tests.sandbox.simulator import APP_ID, KEYS, Fault, Keys, Simulator

TARGET = {"AppId": APP_ID, "RoomId": "class-1", "UserId": "user@2.a_b-c"}


@pytest.fixture(params=[simulator.verify_signature, official_signer.verify], ids=["own", "official"])
def sim(request: pytest.FixtureRequest) -> Iterator[Simulator]:
    with Simulator(verify=request.param) as running:
        running.publish(TARGET["RoomId"], TARGET["UserId"], "Audio")
        yield running


@pytest.fixture
def http() -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.trust_env = False
        yield session


def ask(
    http: requests.Session,
    sim: Simulator,
    keys: Keys = KEYS,
    at: datetime | None = None,
    **changes: Any,
) -> requests.Response:
    params = {"Action": "GetUserStreamState", "Version": "2020-12-01", **TARGET, **changes}
    query = urlencode({name: value for name, value in params.items() if value is not None})
    host = sim.url.removeprefix("http://")
    headers = official_signer.headers_signed_by_vendor("GET", host, "/", query, keys, at or datetime.now(UTC))
    return http.get(f"{sim.url}/?{query}", headers=headers, timeout=10, allow_redirects=False)


def code(response: requests.Response) -> tuple[int, str, int]:
    error = response.json()["ResponseMetadata"]["Error"]
    return response.status_code, error["Code"], error["CodeN"]


def test_a_call_signed_by_the_vendors_package_is_answered(sim: Simulator, http: requests.Session) -> None:
    answer = ask(http, sim).json()

    assert answer["ResponseMetadata"].keys() == {"RequestId", "Action", "Version", "Service", "Region"}
    assert answer["Result"] == {
        "RoomId": "class-1",
        "UserId": "user@2.a_b-c",
        "StreamStates": [
            {"MediaType": "Audio", "State": 1},
            {"MediaType": "Video", "State": 0},
            {"MediaType": "ScreenAudio", "State": 0},
            {"MediaType": "ScreenVideo", "State": 0},
        ],
    }


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (Keys("sandbox-no-such-key", KEYS.secret_access_key), (401, "InvalidAccessKey", 100009)),
        (Keys(KEYS.access_key_id, "wrong"), (401, "SignatureDoesNotMatch", 100010)),
        (Keys(KEYS.access_key_id, KEYS.secret_access_key, "unasked"), (401, "InvalidSecretToken", 100026)),
    ],
)
def test_wrong_keys_are_refused(
    sim: Simulator, http: requests.Session, keys: Keys, expected: tuple[int, str, int]
) -> None:
    assert code(ask(http, sim, keys)) == expected


def test_a_session_token_is_asked_for_and_part_of_the_signature(sim: Simulator, http: requests.Session) -> None:
    temporary = Keys("sandbox-temporary", "sandbox-temporary-secret", "sandbox-token")
    sim.rotate(temporary)

    assert ask(http, sim, temporary).status_code == 200
    without = Keys(temporary.access_key_id, temporary.secret_access_key)
    assert code(ask(http, sim, without)) == (401, "InvalidSecretToken", 100026)


@pytest.mark.parametrize("minutes", [-16, 16])
def test_a_clock_that_is_off_is_refused(sim: Simulator, http: requests.Session, minutes: int) -> None:
    at = datetime.now(UTC) + timedelta(minutes=minutes)

    assert code(ask(http, sim, at=at)) == (400, "InvalidTimestamp", 100006)


def test_a_query_changed_after_signing_is_refused(sim: Simulator, http: requests.Session) -> None:
    url = ask(http, sim).request.url or ""
    headers = dict(ask(http, sim).request.headers)

    changed = http.get(url.replace("class-1", "class-2"), headers=headers, timeout=10)

    assert code(changed) == (401, "SignatureDoesNotMatch", 100010)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"Action": "GetSomethingElse"}, (404, "InvalidActionOrVersion", 100008)),
        ({"Version": "2019-01-01"}, (404, "InvalidActionOrVersion", 100008)),
        ({"RoomId": None}, (400, "MissingParameter", 0)),
        ({"UserId": "a" * 129}, (400, "InvalidParameter", 0)),
        ({"UserId": "a/b c+d~é"}, (400, "InvalidParameter", 0)),
        ({"AppId": "another"}, (400, "InvalidParameter.AccountIdMismatch", 0)),
        ({"RoomId": "class-2"}, (404, "InternalError.RoomNotFound", 0)),
        ({"UserId": "nobody"}, (404, "InternalError.UserNotFound", 0)),
    ],
)
def test_a_call_that_breaks_a_rule_is_refused(
    sim: Simulator, http: requests.Session, changes: dict[str, str | None], expected: tuple[int, str, int]
) -> None:
    assert code(ask(http, sim, **changes)) == expected


def test_an_unsigned_call_is_refused(sim: Simulator, http: requests.Session) -> None:
    url = ask(http, sim).request.url or ""

    assert code(http.get(url, timeout=10)) == (401, "MissingAuthenticationToken", 100003)


def test_calls_over_the_limit_are_throttled_until_a_second_has_passed(sim: Simulator, http: requests.Session) -> None:
    sim.calls_per_second = 3
    times = iter([10.0, 10.0, 10.9, 10.9, 10.99, 11.0])
    sim.clock = lambda: next(times)

    codes = [ask(http, sim).status_code for _ in range(6)]

    assert codes == [200, 200, 200, 429, 429, 200]
    assert [arrival.outcome for arrival in sim.arrivals] == ["OK"] * 3 + ["FlowLimitExceeded"] * 2 + ["OK"]
    assert sim.worst_second == 5


def test_an_unknown_user_can_be_four_zeros_instead(sim: Simulator, http: requests.Session) -> None:
    sim.unknown_is_error = False

    states = ask(http, sim, UserId="nobody").json()["Result"]["StreamStates"]

    assert {entry["State"] for entry in states} == {0}


@pytest.mark.parametrize(
    ("fault", "status", "text"),
    [
        (simulator.canned(502, "<html>", {"Content-Type": "text/html"}), 502, "<html>"),
        (simulator.canned(302, headers={"Location": "http://127.0.0.1:1/"}), 302, ""),
        (simulator.result(None), 200, '"Result": null'),
        (simulator.states([{"MediaType": "Audio", "State": 7}]), 200, '"State": 7'),
        (simulator.error("FlowLimitExceeded", 429, 100018, headers={"Retry-After": "2"}), 429, "FlowLimitExceeded"),
        (simulator.drip(0), 200, "class-1"),
        (simulator.delay(0), 200, "class-1"),
    ],
    ids=["html", "redirect", "result", "states", "throttle", "drip", "delay"],
)
def test_a_fault_replaces_one_answer(
    sim: Simulator, http: requests.Session, fault: Fault, status: int, text: str
) -> None:
    sim.fail_next(fault)

    response = ask(http, sim)

    assert response.status_code == status
    assert text in response.text
    assert ask(http, sim).status_code == 200


@pytest.mark.parametrize(
    "fault",
    [simulator.reset, simulator.cut(), simulator.cut(60), simulator.cut(300)],
    ids=["reset", "no answer", "half the headers", "half the body"],
)
def test_a_connection_can_break_anywhere(sim: Simulator, http: requests.Session, fault: Fault) -> None:
    sim.fail_next(fault)

    with pytest.raises((requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
        ask(http, sim).json()

    assert ask(http, sim).status_code == 200


def test_a_person_changes_a_room_over_http(sim: Simulator, http: requests.Session) -> None:
    user = f"{sim.url}/_simulator/rooms/class-1/users/student-1"

    http.put(user, data=json.dumps({"screen_video": True}), timeout=10)

    states = ask(http, sim, UserId="student-1").json()["Result"]["StreamStates"]
    assert [entry["MediaType"] for entry in states if entry["State"]] == ["ScreenVideo"]
    http.delete(user, timeout=10)
    assert code(ask(http, sim, UserId="student-1")) == (404, "InternalError.UserNotFound", 0)
    assert http.put(user, data='{"smell": true}', timeout=10).status_code == 400


def test_nothing_is_left_listening_after_the_end() -> None:
    with Simulator() as sim:
        host, port = sim.authority.split(":")

    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), timeout=10)
