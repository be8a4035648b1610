"""The client of the vendor: its call, retries inside the deadline, new keys at most once, no secret in any output."""

import io
import json
import math
import threading
import traceback
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
import requests
import urllib3

from stream_state.adapters.credentials import CachedSecret, parse_signing_keys
from stream_state.adapters.rate_limiter import RateLimiter
from stream_state.adapters.signing import SigningKeys
from stream_state.adapters.vendor_http import MAX_BODY_BYTES
from stream_state.adapters.volcengine import MAX_TRIES, RENEW_SECONDS, VolcengineClient
from stream_state.domain.observations import logged_in, offline, online
from stream_state.domain.targets import Room, Target
from stream_state.errors import (
    CredentialsUnavailable,
    QuotaExceeded,
    RtcAccessDenied,
    RtcActionRetired,
    RtcProtocolError,
    RtcRequestRefused,
    RtcThrottled,
    RtcUnavailable,
    StreamStateError,
    TargetNotFound,
)
from stream_state.observability import log_error, publish_metrics
from stream_state.settings import Settings
from tests.unit.fakes import Clock, FakeAdapter, FakeSecrets, FreeLimiter, Reply, aws_error
from tests.vendor.static_keys import StaticKeys

DEADLINE = 1_030.0
IDS = {"RoomId": "class-1", "UserId": "teacher"}
RESULT = {**IDS, "StreamStates": [{"MediaType": "Audio", "State": 1}]}
GOOD = Reply(200, {"ResponseMetadata": {"RequestId": "good-1"}, "Result": RESULT})
OLD_KEYS = {"access_key_id": "old-access-key", "secret_access_key": "old-secret-key"}
NEW_KEYS = {"access_key_id": "new-access-key", "secret_access_key": "new-secret-key"}

type MakeClient = Callable[[Any], VolcengineClient]


def failing(code: str, status: int = 400, **headers: str) -> Reply:
    error = {"CodeN": 0, "Code": code, "Message": "canary"}
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status, {"ResponseMetadata": {"RequestId": "bad-1", "Error": error}, "Result": {}}, names)


def after(clock: Clock, seconds: float, reply: Reply) -> Callable[[], Reply]:
    def answer() -> Reply:
        clock.sleep(seconds)
        return reply

    return answer


DENIED = failing("SignatureDoesNotMatch", 401)
THROTTLED = failing("FlowLimitExceeded", 429)


class RecordingLimiter(RateLimiter):
    """A limiter that grants a slot after a time, and records what the client asks of it."""

    def __init__(self, clock: Clock, wait_seconds: float = 0) -> None:
        self.clock = clock
        self.wait_seconds = wait_seconds
        self.deadlines: list[float] = []
        self.holds: list[float] = []

    def acquire(self, deadline: float) -> None:
        self.deadlines.append(deadline - self.clock.seconds)
        if self.wait_seconds > deadline - self.clock.seconds:
            raise QuotaExceeded("Later.", retry_after_seconds=3)
        self.clock.seconds += self.wait_seconds

    def hold(self, seconds: float) -> None:
        self.holds.append(seconds)


def client_with(limiter: RecordingLimiter, settings: Settings, adapter: FakeAdapter) -> VolcengineClient:
    keys = StaticKeys(SigningKeys("unit-access-key", "unit-secret-key"))
    return VolcengineClient(settings, keys, lambda _: limiter, adapter=adapter, clock=limiter.clock)


def test_one_signed_get_asks_for_the_target(rtc: VolcengineClient, adapter: FakeAdapter, target: Target) -> None:
    adapter.answer(GOOD)

    result = rtc.stream_state(target, DEADLINE)

    (request,) = adapter.requests
    assert request.method == "GET"
    assert request.url == (
        "https://rtc.volcengineapi.com/?Action=GetUserStreamState&AppId=app-1&RoomId=class-1&UserId=teacher&Version=2020-12-01"
    )
    assert request.body is None
    assert request.headers["X-Date"] == "20261123T030405Z"
    assert request.headers["Authorization"].startswith(
        "HMAC-SHA256 Credential=unit-access-key/20261123/cn-north-1/rtc/request,"
        " SignedHeaders=host;x-content-sha256;x-date;x-security-token, Signature="
    )
    assert result.media == {"audio": True, "video": None, "screen_audio": None, "screen_video": None}
    assert (result.sent_at_ms, result.rtc_request_id) == (1_795_403_045_678, "good-1")


def test_an_answer_speaks_of_when_the_call_was_sent(
    rtc: VolcengineClient, adapter: FakeAdapter, clock: Clock, target: Target
) -> None:
    adapter.answer(after(clock, 1, failing("UserNotExist")), after(clock, 1, GOOD))

    with pytest.raises(TargetNotFound) as raised:
        rtc.stream_state(target, DEADLINE)
    assert raised.value.observed_at_ms == 1_795_403_045_678
    assert rtc.stream_state(target, DEADLINE).sent_at_ms == 1_795_403_046_678


@pytest.mark.parametrize("app_id", ["a/b&RoomId=x", "密 +", "a%2f"])
def test_any_app_id_stays_one_value_of_the_query(rtc: VolcengineClient, adapter: FakeAdapter, app_id: str) -> None:
    adapter.answer(GOOD)

    rtc.stream_state(Target(app_id, "class-1", "teacher"), DEADLINE)

    assert f"&AppId={quote(app_id, safe='')}&RoomId=class-1&" in str(adapter.requests[0].url)


@pytest.mark.parametrize(
    ("reply", "error", "calls"),
    [
        (failing("UserNotExist", 404), TargetNotFound, 1),
        (failing("LackPolicy", 403), RtcAccessDenied, 1),
        (failing("InvalidActionOrVersion", 404), RtcActionRetired, 1),
        (failing("MethodNotAllowed", 405), RtcRequestRefused, 1),
        (Reply(200, b"<html>"), RtcProtocolError, 1),
        (Reply(302), RtcProtocolError, 1),
        (failing("InternalServiceError", 502), RtcUnavailable, MAX_TRIES),
        (failing("ServiceUnavailableTemp", 503), RtcUnavailable, MAX_TRIES),
        (failing("InternalError.RPC", 200), RtcUnavailable, MAX_TRIES),
        (failing("FlowLimitExceeded", 200), RtcThrottled, MAX_TRIES),
        (failing("Unheard.Of", 429), RtcThrottled, MAX_TRIES),
    ],
)
def test_an_error_is_retried_only_where_that_can_help(
    rtc: VolcengineClient,
    adapter: FakeAdapter,
    target: Target,
    conforms: Callable[[str, Any], None],
    reply: Reply,
    error: type[StreamStateError],
    calls: int,
) -> None:
    adapter.answer(reply)

    with pytest.raises(error) as raised:
        rtc.stream_state(target, DEADLINE)

    conforms("problem", raised.value.problem())
    assert len(adapter.requests) == calls


@pytest.mark.parametrize(
    ("failure", "status", "shown"),
    [
        (requests.ConnectTimeout("canary"), 504, "did not answer in time (ConnectTimeout)"),
        (requests.ReadTimeout("canary"), 504, "did not answer in time (ReadTimeout)"),
        (TimeoutError("canary"), 504, "did not answer in time (TimeoutError)"),
        (requests.exceptions.SSLError("canary"), 503, "TLS connection"),
        (requests.ConnectionError("canary"), 503, "failed (ConnectionError)"),
        (requests.exceptions.InvalidHeader("canary"), 503, "failed (InvalidHeader)"),
        (urllib3.exceptions.DecodeError("canary"), 503, "failed (DecodeError)"),
        (urllib3.exceptions.InvalidHeader("canary"), 503, "failed (InvalidHeader)"),
        (ConnectionResetError("canary"), 503, "failed (ConnectionResetError)"),
        (ValueError("Invalid header value b'canary'"), 503, "failed (ValueError)"),
    ],
    ids=lambda value: f"{type(value).__module__}.{type(value).__name__}",
)
def test_a_failure_of_the_network_is_retried_and_shown_without_its_text(
    rtc: VolcengineClient, adapter: FakeAdapter, target: Target, failure: Exception, status: int, shown: str
) -> None:
    adapter.answer(failure)

    with pytest.raises(RtcUnavailable) as raised:
        rtc.stream_state(target, DEADLINE)

    assert (raised.value.status, len(adapter.requests)) == (status, MAX_TRIES)
    assert shown in str(raised.value)
    assert "canary" not in str(raised.value)


@pytest.mark.parametrize(("size", "understood"), [(MAX_BODY_BYTES, True), (MAX_BODY_BYTES + 1, False)])
def test_an_answer_may_have_four_mebibytes(
    rtc: VolcengineClient, adapter: FakeAdapter, target: Target, size: int, understood: object
) -> None:
    adapter.answer(Reply(200, json.dumps(GOOD.body).encode().ljust(size)))

    if understood:
        assert rtc.stream_state(target, DEADLINE).rtc_request_id == "good-1"
    else:
        with pytest.raises(RtcProtocolError, match="larger than 4194304 bytes"):
            rtc.stream_state(target, DEADLINE)


def test_the_longest_list_of_invisible_users_is_read(rtc: VolcengineClient, adapter: FakeAdapter) -> None:
    names = [f"{number:0128}" for number in range(9_999)]
    totals = {"TotalUser": 9_999, "TotalInvisibleUser": 9_999}
    result = {"RoomExists": True, **totals, "VisibleUserList": [], "InvisibleUserList": names}
    adapter.answer(Reply(200, {"ResponseMetadata": {"RequestId": "request-1"}, "Result": result}))

    assert rtc.online_users(Room("app-1", "class-1"), DEADLINE).users.keys() == {*names}


def test_each_retry_has_a_signature_and_a_slot_of_its_own_after_a_growing_random_pause(
    rtc: VolcengineClient, adapter: FakeAdapter, clock: Clock, limiter: FreeLimiter, target: Target
) -> None:
    adapter.answer(THROTTLED, requests.ConnectionError(), GOOD)

    assert rtc.stream_state(target, DEADLINE).rtc_request_id == "good-1"

    assert clock.jitters == [(0, 0.4), (0, 0.8)]
    assert clock.slept == [0.4, 0.8]
    assert limiter.slots == 3
    assert [request.headers["X-Date"][-3:-1] for request in adapter.requests] == ["05", "06", "06"]


@pytest.mark.parametrize(
    ("headers", "pause", "hold"),
    [
        ({"Retry_After": "2"}, 2, 2),
        ({"Retry_After": "Mon, 23 Nov 2026 03:04:08 GMT"}, pytest.approx(2.322), pytest.approx(2.322)),
        ({"Retry_After": "0"}, 0.4, 1),
        ({}, 0.4, 1),
    ],
    ids=["number", "date", "zero", "none"],
)
def test_a_throttled_call_holds_all_calls_and_pauses_as_long_as_the_vendor_asks_for(
    settings: Settings,
    adapter: FakeAdapter,
    clock: Clock,
    target: Target,
    headers: dict[str, str],
    pause: float,
    hold: float,
) -> None:
    limiter = RecordingLimiter(clock)
    adapter.answer(failing("FlowLimitExceeded", 429, **headers), GOOD)

    client_with(limiter, settings, adapter).stream_state(target, DEADLINE)

    assert (clock.slept, limiter.holds) == ([pause], [hold])


@pytest.mark.parametrize(
    ("reply", "seconds_left", "max_wait_seconds"),
    [
        (THROTTLED, 0.3, math.inf),
        (failing("FlowLimitExceeded", 429, Retry_After="9"), 8.0, math.inf),
        (failing("FlowLimitExceeded", 429, Retry_After="20"), 600.0, math.inf),
        (failing("FlowLimitExceeded", 429, Retry_After="4"), 600.0, 3.0),
    ],
    ids=["jitter", "Retry-After", "too long a Retry-After", "longer than an api waits"],
)
def test_no_pause_reaches_beyond_the_deadline_or_is_longer_than_a_caller_waits(
    rtc: VolcengineClient,
    adapter: FakeAdapter,
    clock: Clock,
    target: Target,
    reply: Reply,
    seconds_left: float,
    max_wait_seconds: float,
) -> None:
    adapter.answer(reply)

    with pytest.raises(RtcThrottled):
        rtc.stream_state(target, clock.seconds + seconds_left, max_wait_seconds=max_wait_seconds)

    assert (len(adapter.requests), clock.slept) == (1, [])


def test_without_time_no_call_begins(rtc: VolcengineClient, adapter: FakeAdapter, clock: Clock, target: Target) -> None:
    with pytest.raises(RtcUnavailable) as raised:
        rtc.stream_state(target, clock.seconds + 0.01)

    assert raised.value.status == 504
    assert adapter.requests == []


@pytest.mark.parametrize(("seconds_left", "connect"), [(30, 2), (2.5, 2), (1, 1)])
def test_connecting_and_reading_together_end_at_the_deadline(
    rtc: VolcengineClient, adapter: FakeAdapter, clock: Clock, target: Target, seconds_left: float, connect: float
) -> None:
    adapter.answer(GOOD)

    rtc.stream_state(target, clock.seconds + seconds_left)

    timeout = adapter.options[0]["timeout"]
    assert timeout.total == pytest.approx(seconds_left, abs=0.01)
    assert timeout.connect_timeout == pytest.approx(connect, abs=0.01)


def test_an_error_of_the_caller_before_a_call_prevents_it(
    rtc: VolcengineClient, adapter: FakeAdapter, target: Target
) -> None:
    def stop() -> None:
        raise RtcActionRetired("Stopped.")

    with pytest.raises(RtcActionRetired, match="Stopped"):
        rtc.stream_state(target, DEADLINE, before_call=stop)

    assert adapter.requests == []


@pytest.mark.parametrize(
    ("max_wait_seconds", "waits", "calls"),
    [(math.inf, [29.95, 27.55, 24.75], 3), (3.0, [3, 1], 1), (1.5, [1.5], 0)],
    ids=["no bound", "bound of all tries", "bound of the first"],
)
def test_all_tries_together_wait_for_slots_no_longer_than_the_caller_allows(
    settings: Settings,
    adapter: FakeAdapter,
    clock: Clock,
    target: Target,
    max_wait_seconds: float,
    waits: list[float],
    calls: int,
) -> None:
    limiter = RecordingLimiter(clock, wait_seconds=2)
    adapter.answer(THROTTLED)

    # A caller learns what the vendor answered, also if there is then no slot in time for another try.
    with pytest.raises(RtcThrottled if calls else QuotaExceeded, match="throttled" if calls else "Later"):
        client_with(limiter, settings, adapter).stream_state(
            target, clock.seconds + 30, max_wait_seconds=max_wait_seconds
        )

    assert limiter.deadlines == pytest.approx(waits, abs=0.01)
    assert len(adapter.requests) == calls


def secret_keys(secrets: FakeSecrets, clock: Clock) -> CachedSecret[SigningKeys]:
    client: Any = secrets
    return CachedSecret(client, "signing-keys", parse_signing_keys, 300, clock)


def test_rotated_keys_cost_one_refused_call_and_no_failed_answer(
    make_rtc: MakeClient, adapter: FakeAdapter, clock: Clock, target: Target
) -> None:
    secrets = FakeSecrets(OLD_KEYS, NEW_KEYS)
    rtc = make_rtc(secret_keys(secrets, clock))
    adapter.answer(GOOD, DENIED, GOOD)

    for _ in range(3):
        assert rtc.stream_state(target, DEADLINE).rtc_request_id == "good-1"

    used = [request.headers["Authorization"].split("Credential=")[1][:3] for request in adapter.requests]
    assert used == ["old", "old", "new", "new"]
    assert secrets.reads == 2
    assert clock.slept == []


def test_keys_that_are_rejected_at_the_last_try_cost_one_try_more(
    make_rtc: MakeClient, adapter: FakeAdapter, clock: Clock, target: Target
) -> None:
    down = failing("InternalServiceError", 500)
    adapter.answer(down, down, DENIED, down)

    with pytest.raises(RtcUnavailable):
        make_rtc(secret_keys(FakeSecrets(OLD_KEYS, NEW_KEYS), clock)).stream_state(target, DEADLINE)

    assert len(adapter.requests) == MAX_TRIES + 1


@pytest.mark.parametrize(
    ("reply", "values", "calls", "reads"),
    [
        *(
            (failing(code, 401), (OLD_KEYS, NEW_KEYS, OLD_KEYS, NEW_KEYS), 2, 2)
            for code in ("InvalidAccessKey", "InvalidClientTokenId", "SignatureDoesNotMatch", "InvalidSecretToken")
        ),
        (DENIED, (OLD_KEYS,), 1, 2),
        (failing("LackPolicy", 403), (OLD_KEYS, NEW_KEYS), 1, 1),
    ],
)
def test_only_rejected_keys_are_read_again_and_only_once_and_only_other_keys_are_tried(
    make_rtc: MakeClient,
    adapter: FakeAdapter,
    clock: Clock,
    target: Target,
    reply: Reply,
    values: tuple[Any, ...],
    calls: int,
    reads: int,
) -> None:
    secrets = FakeSecrets(*values)
    adapter.answer(reply)

    with pytest.raises(RtcAccessDenied):
        make_rtc(secret_keys(secrets, clock)).stream_state(target, DEADLINE)

    assert (len(adapter.requests), secrets.reads) == (calls, reads)


def test_a_secret_that_is_not_read_again_in_time_keeps_no_answer_back(
    make_rtc: MakeClient, adapter: FakeAdapter, clock: Clock, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given rejected keys, no time left, and Secrets Manager that answers no more
    released = threading.Event()
    keys = secret_keys(FakeSecrets(OLD_KEYS), clock)
    monkeypatch.setattr(keys, "keys_after_rejection", lambda rejected, signed_at: released.wait(30))
    adapter.answer(after(clock, DEADLINE + RENEW_SECONDS - clock.seconds, DENIED))

    with pytest.raises(CredentialsUnavailable, match="in time"):
        make_rtc(keys).stream_state(target, DEADLINE)
    released.set()


def test_calls_errors_and_latency_are_counted(
    make_rtc: MakeClient, adapter: FakeAdapter, clock: Clock, target: Target, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter.answer(THROTTLED, DENIED)

    with pytest.raises(CredentialsUnavailable):
        make_rtc(secret_keys(FakeSecrets(OLD_KEYS, aws_error("InternalServiceError")), clock)).stream_state(
            target, DEADLINE
        )
    publish_metrics()

    written = capsys.readouterr().out
    assert '"RtcCalls":[2' in written
    for error in ("RtcThrottled", "RtcAccessDenied", "CredentialsUnavailable"):
        assert f'"error":"{error}"' in written
    assert '"RtcLatency":[' in written
    assert "class-1" not in written
    assert "app-1" not in written


CANARIES = ("CANARY-ACCESS-KEY", "CANARY-SECRET-KEY==", "CANARY/SESSION+TOKEN")
METADATA = {"RequestId": "20261123AB"}


def echoing(canary: str, place: str, code: str = "InternalError") -> dict[str, Any]:
    error = {"CodeN": 0, "Code": code, "Message": "No.", **({place: canary} if place in {"Code", "Message"} else {})}
    request_id = canary if place == "RequestId" else "20261123AB"
    return {"ResponseMetadata": {"RequestId": request_id, "Error": error}, "Result": {}}


def succeeding(canary: str, request_id: str = "20261123AB", **changes: object) -> dict[str, Any]:
    states = [{"MediaType": canary, "State": canary}, {"MediaType": "Audio", "State": canary}]
    return {"ResponseMetadata": {"RequestId": request_id}, "Result": {**IDS, "StreamStates": states, **changes}}


# Where an answer, or an error of the libraries below, can hold what no output may show.
PLACES: dict[str, Callable[[str], Reply | Exception]] = {
    "code, not listed": lambda canary: Reply(400, echoing(canary, "Code")),
    "code, listed": lambda canary: Reply(400, echoing(f"InvalidParameter.{canary}", "Code")),
    "code of a server error": lambda canary: Reply(500, echoing(f"InternalError.{canary}", "Code")),
    "message": lambda canary: Reply(401, echoing(canary, "Message", "InvalidAccessKey")),
    "message of a retry": lambda canary: Reply(503, echoing(canary, "Message")),
    "message of a denial": lambda canary: Reply(403, echoing(canary, "Message", "LackPolicy")),
    "request id of an error": lambda canary: Reply(400, echoing(canary, "RequestId", "LackPolicy")),
    "request id of a success": lambda canary: Reply(200, succeeding(canary, canary)),
    "request id with more": lambda canary: Reply(200, succeeding(canary, f"a-{canary}")),
    "another user": lambda canary: Reply(200, succeeding(canary, UserId=canary)),
    "media": lambda canary: Reply(200, succeeding(canary)),
    "result": lambda canary: Reply(200, {"ResponseMetadata": METADATA, "Result": canary}),
    "metadata": lambda canary: Reply(200, {"ResponseMetadata": canary, "Result": canary}),
    "error": lambda canary: Reply(200, {"ResponseMetadata": {"Error": canary}, "Result": canary}),
    "body": lambda canary: Reply(200, canary.encode()),
    "page": lambda canary: Reply(502, f"<html>{canary}</html>".encode()),
    "headers": lambda canary: Reply(429, b"", {"Retry-After": canary, "X-Echo": canary, "Location": canary}),
    "redirect": lambda canary: Reply(302, b"", {"Location": f"https://elsewhere/{canary}"}),
    "time-out": lambda canary: requests.ReadTimeout(f"GET /?{canary}"),
    "TLS": requests.exceptions.SSLError,
    "network": requests.ConnectionError,
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("canary", CANARIES)
def test_no_output_shows_a_key_that_the_vendor_echoes(
    make_rtc: MakeClient,
    adapter: FakeAdapter,
    target: Target,
    logs: io.StringIO,
    capsys: pytest.CaptureFixture[str],
    canary: str,
    place: str,
) -> None:
    authorization = f"Authorization: HMAC-SHA256 Credential={canary}/20261123, Signature=ab"
    for shape in (canary, quote(canary, safe=""), authorization):
        adapter.answer(PLACES[place](shape))
        try:
            shown = [repr(make_rtc(StaticKeys(SigningKeys(*CANARIES))).stream_state(target, DEADLINE))]
        except StreamStateError as error:
            log_error(error, target)
            shown = [str(error), repr(error), json.dumps(error.problem()), *traceback.format_exception(error)]
        publish_metrics()

        output = f"{shown}{logs.getvalue()}{capsys.readouterr().out}"
        assert "RtcCalls" in output
        assert "CANARY" not in output


ROOM = Room("a/b", "class-1")
SENT_AT_MS = 1_795_403_045_678


def answered(result: object) -> Reply:
    return Reply(200, {"ResponseMetadata": {"RequestId": "good-1"}, "Result": result})


def test_presence_is_asked_for_a_room_or_for_some_of_its_users_each_by_its_own_limit(
    settings: Settings, adapter: FakeAdapter, clock: Clock
) -> None:
    limiters: list[str] = []

    def limiter_of(name: str) -> RecordingLimiter:
        limiters.append(name)
        return RecordingLimiter(clock)

    keys = StaticKeys(SigningKeys("unit-access-key", "unit-secret-key"))
    rtc = VolcengineClient(settings, keys, limiter_of, adapter=adapter, clock=clock)
    lists = {"VisibleUserList": ["teacher"], "InvisibleUserList": []}
    adapter.answer(
        answered({"RoomExists": True, "TotalUser": 1, "TotalInvisibleUser": 0, **lists}),
        answered({"UserList": [{"UserID": "b", "Status": 0}, {"UserID": "a", "Status": 1, "LoginTime": SENT_AT_MS}]}),
    )

    everyone = rtc.online_users(ROOM, DEADLINE)
    some = rtc.users_property(ROOM, ["b", "a"], DEADLINE)

    # Ids in their order, so that whoever sorts the values too finds the same signature
    assert [request.url for request in adapter.requests] == [
        "https://rtc.volcengineapi.com/?Action=GetRoomOnlineUsers&AppId=a%2Fb&RoomId=class-1&Version=2023-11-01",
        "https://rtc.volcengineapi.com/?Action=GetRoomUsersProperty&AppId=a%2Fb&RoomId=class-1&UserIds=a&UserIds=b&Version=2023-11-01",
    ]
    assert limiters == ["GetRoomOnlineUsers", "GetRoomUsersProperty#a/b"]
    assert [everyone.of(name) for name in ("teacher", "b")] == [online(SENT_AT_MS), offline(SENT_AT_MS)]
    assert [some.of(name) for name in ("a", "b", "c")] == [logged_in(SENT_AT_MS, SENT_AT_MS), offline(SENT_AT_MS), {}]


@pytest.mark.parametrize("code", ["InternalError.RoomNotFound", "RoomNotExist"])
def test_nobody_is_in_a_room_that_the_vendor_does_not_know(
    rtc: VolcengineClient, adapter: FakeAdapter, code: str
) -> None:
    adapter.answer(failing(code, 404))

    for presence in (rtc.online_users(ROOM, DEADLINE), rtc.users_property(ROOM, ["a"], DEADLINE)):
        assert presence.of("a") == offline(SENT_AT_MS)


@pytest.mark.parametrize("code", ["UnknownUser", "InternalError.UserNotFound", "UserNotExist"])
def test_a_presence_call_that_knows_no_user_proves_nothing(
    rtc: VolcengineClient, adapter: FakeAdapter, code: str
) -> None:
    adapter.answer(failing(code, 404))

    with pytest.raises(RtcProtocolError):
        rtc.online_users(ROOM, DEADLINE)


def test_presence_calls_are_retried_and_hold_their_own_action(
    settings: Settings, adapter: FakeAdapter, clock: Clock
) -> None:
    limiter = RecordingLimiter(clock)
    adapter.answer(failing("FlowLimitExceeded", 429), failing("InternalError", 500), answered({"RoomExists": False}))

    assert client_with(limiter, settings, adapter).online_users(ROOM, DEADLINE).of("a")

    assert (len(adapter.requests), limiter.holds) == (3, [1])
