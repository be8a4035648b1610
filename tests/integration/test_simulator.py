"""The RTC simulator keeps the vendor's rules, so that whatever passes it would pass there."""

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any
from urllib.parse import urlencode

import pytest
import requests

from tests.sandbox import signatures
from tests.sandbox.signatures import KEYS, Keys
from tests.sandbox.simulator import APP_ID, STREAM_STATE, Simulator
from tests.vendor import official_signer

USER = "user@2.a_b-c"
TEMPORARY = Keys("sandbox-temporary", "sandbox-temporary-secret", "sandbox-token")
Code = tuple[int, str, int]


@pytest.fixture(params=[signatures.verify_signature, official_signer.verify], ids=["own", "official"])
def sim(request: pytest.FixtureRequest) -> Iterator[Simulator]:
    with Simulator(verify=request.param) as running:
        running.publish("class-1", USER, "Audio")
        running.rotate(KEYS, TEMPORARY)
        yield running


@pytest.fixture
def http() -> requests.Session:
    session = requests.Session()
    session.trust_env = False
    return session


def ask(
    http: requests.Session, sim: Simulator, keys: Keys = KEYS, *, minutes: int = 0, **changes: Any
) -> requests.Response:
    params = {"Action": "GetUserStreamState", "Version": "2020-12-01", "AppId": APP_ID, "RoomId": "class-1"}
    given = {**params, "UserId": USER, **changes}
    query = urlencode({name: value for name, value in given.items() if value is not None}, doseq=True)
    host, at = sim.url.removeprefix("http://"), datetime.now(UTC) + timedelta(minutes=minutes)
    headers = official_signer.headers_signed_by_vendor("GET", host, "/", query, keys, at)
    return http.get(f"{sim.url}/?{query}", headers=headers, timeout=10, allow_redirects=False)


def ask_presence(http: requests.Session, sim: Simulator, action: str, **changes: Any) -> requests.Response:
    return ask(http, sim, **{"Action": action, "Version": "2023-11-01", "UserId": None, **changes})


def code(response: requests.Response) -> Code:
    error = response.json()["ResponseMetadata"]["Error"]
    return response.status_code, error["Code"], error["CodeN"]


def published(response: requests.Response) -> list[str]:
    states = response.json()["Result"]["StreamStates"]
    assert [entry["MediaType"] for entry in states] == ["Audio", "Video", "ScreenAudio", "ScreenVideo"]
    return [entry["MediaType"] for entry in states if entry["State"]]


def test_a_call_signed_by_the_vendors_package_is_answered(sim: Simulator, http: requests.Session) -> None:
    answer = ask(http, sim)

    assert answer.json()["ResponseMetadata"].keys() == {"RequestId", "Action", "Version", "Service", "Region"}
    assert answer.json()["Result"].keys() == {"RoomId", "UserId", "StreamStates"}
    assert published(answer) == published(ask(http, sim, TEMPORARY)) == ["Audio"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"keys": Keys("sandbox-no-such-key", KEYS.secret_access_key)}, (401, "InvalidAccessKey", 100009)),
        ({"keys": Keys(KEYS.access_key_id, "wrong")}, (401, "SignatureDoesNotMatch", 100010)),
        ({"keys": replace(KEYS, session_token="unasked")}, (401, "InvalidSecretToken", 100026)),
        ({"keys": replace(TEMPORARY, session_token=None)}, (401, "InvalidSecretToken", 100026)),
        *(({"minutes": minutes}, (400, "InvalidTimestamp", 100006)) for minutes in (-16, 16)),
        ({"Action": "GetSomethingElse"}, (404, "InvalidActionOrVersion", 100008)),
        ({"Version": "2019-01-01"}, (404, "InvalidActionOrVersion", 100008)),
        ({"RoomId": None}, (400, "MissingParameter", 0)),
        *(({"UserId": user}, (400, "InvalidParameter", 0)) for user in ("a" * 129, "a/b c+d~é")),
        ({"AppId": "another"}, (400, "InvalidParameter.AccountIdMismatch", 0)),
        ({"RoomId": "class-2"}, (404, "InternalError.RoomNotFound", 0)),
        ({"UserId": "nobody"}, (404, "InternalError.UserNotFound", 0)),
    ],
    ids=count(),
)
def test_a_call_that_breaks_a_rule_is_refused(
    sim: Simulator, http: requests.Session, given: dict[str, Any], expected: Code
) -> None:
    assert code(ask(http, sim, **given)) == expected


def test_who_is_in_a_room_is_told_by_two_calls(sim: Simulator, http: requests.Session) -> None:
    before_ms = time.time() * 1000
    sim.join("class-1", "robot", device="linux", is_visible=False)

    listed = ask_presence(http, sim, "GetRoomOnlineUsers").json()["Result"]
    some = ask_presence(http, sim, "GetRoomUsersProperty", UserIds=["nobody", "robot"]).json()["Result"]["UserList"]

    assert listed == {
        "RoomExists": True,
        "TotalUser": 2,
        "TotalInvisibleUser": 1,
        "VisibleUserList": [USER],
        "InvisibleUserList": ["robot"],
    }
    assert before_ms - 1 <= some[1].pop("LoginTime") <= time.time() * 1000
    robot = {"UserID": "robot", "Status": 1, "Role": 2, "DeviceType": "linux"}
    assert some == [{"UserID": "nobody", "Status": 0}, robot]
    no_room = ask_presence(http, sim, "GetRoomOnlineUsers", RoomId="class-2").json()["Result"]
    assert no_room == {"RoomExists": False}


@pytest.mark.parametrize(
    ("action", "given", "expected"),
    [
        ("GetRoomOnlineUsers", {"RoomId": None}, (400, "MissingParameter", 0)),
        ("GetRoomOnlineUsers", {"Version": "2020-12-01"}, (404, "InvalidActionOrVersion", 100008)),
        ("GetRoomOnlineUsers", {"AppId": "another"}, (400, "InvalidParameter.AccountIdMismatch", 0)),
        ("GetRoomUsersProperty", {}, (400, "MissingParameter", 0)),
        ("GetRoomUsersProperty", {"UserIds": [f"user-{n}" for n in range(11)]}, (400, "InvalidParameter", 0)),
    ],
)
def test_a_presence_call_that_breaks_a_rule_is_refused(
    sim: Simulator, http: requests.Session, action: str, given: dict[str, Any], expected: Code
) -> None:
    assert code(ask_presence(http, sim, action, **given)) == expected


def test_each_call_has_its_limit_and_can_be_withdrawn(sim: Simulator, http: requests.Session) -> None:
    sim.presence_per_second |= {"GetRoomOnlineUsers": 2, "GetRoomUsersProperty": 1}
    sim.clock = lambda: 10.0

    def asked(action: str, **more: Any) -> list[int]:
        return [ask_presence(http, sim, action, **more).status_code for _ in range(3)]

    assert asked("GetRoomOnlineUsers") == [200, 200, 429]
    assert asked("GetRoomUsersProperty", UserIds=["a"]) == [200, 429, 429]
    assert ask(http, sim).status_code == 200
    assert sim.worst_seconds == {
        "GetRoomOnlineUsers": 3,
        f"GetRoomUsersProperty#{APP_ID}": 3,
        "GetUserStreamState": 1,
    }
    sim.withdrawn.add("GetUserStreamState")
    assert code(ask(http, sim)) == (404, "InvalidActionOrVersion", 100008)


def test_an_unsigned_or_changed_call_is_refused(sim: Simulator, http: requests.Session) -> None:
    request = ask(http, sim).request
    url, headers = request.url or "", dict(request.headers)

    assert code(http.get(url, timeout=10)) == (401, "MissingAuthenticationToken", 100003)
    changed = http.get(url.replace("class-1", "class-2"), headers=headers, timeout=10)
    assert code(changed) == (401, "SignatureDoesNotMatch", 100010)


def test_calls_over_the_limit_are_throttled_until_a_second_has_passed(sim: Simulator, http: requests.Session) -> None:
    sim.calls_per_second = 3
    times = iter([10.0, 10.0, 10.9, 10.9, 10.99, 11.0])
    sim.clock = lambda: next(times)

    assert [ask(http, sim).status_code for _ in range(6)] == [200, 200, 200, 429, 429, 200]
    assert [arrival.outcome for arrival in sim.arrivals] == ["OK"] * 3 + ["FlowLimitExceeded"] * 2 + ["OK"]
    assert sim.worst_seconds[STREAM_STATE] == 5


def test_a_person_changes_a_room_over_http(sim: Simulator, http: requests.Session) -> None:
    user = f"{sim.url}/_simulator/rooms/class-1/users/student-1"

    http.put(user, data=json.dumps({"screen_video": True}), timeout=10)
    assert published(ask(http, sim, UserId="student-1")) == ["ScreenVideo"]
    http.delete(user, timeout=10)
    assert code(ask(http, sim, UserId="student-1")) == (404, "InternalError.UserNotFound", 0)
    assert http.put(user, data='{"smell": true}', timeout=10).status_code == 400
    # The vendor does not publish whether an unknown user is an error, or four zeros.
    sim.unknown_is_error = False
    assert published(ask(http, sim, UserId="student-1")) == []
