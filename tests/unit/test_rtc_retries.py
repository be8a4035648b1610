"""When a call is made again, and when not: retries inside the deadline, and new keys at most once."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import requests

from stream_state.credentials import SecretKeys
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
from stream_state.model import Target
from stream_state.observability import publish_metrics
from stream_state.rtc import MAX_TRIES, RENEW_SECONDS, RtcClient
from stream_state.signing import SigningKeys
from tests.sandbox.static_keys import StaticKeys
from tests.unit.fakes import Clock, FakeAdapter, FakeSecrets, FreeLimiter, Reply

DEADLINE = 1_030.0
IDS = {"RoomId": "class-1", "UserId": "teacher"}
GOOD = Reply(200, {"ResponseMetadata": {"RequestId": "good-1"}, "Result": {**IDS, "StreamStates": []}})
OLD_KEYS = {"access_key_id": "old-access-key", "secret_access_key": "old-secret-key"}
NEW_KEYS = {"access_key_id": "new-access-key", "secret_access_key": "new-secret-key"}


def failing(code: str, status: int = 400, code_n: int = 0, **headers: str) -> Reply:
    error = {"CodeN": code_n, "Code": code, "Message": "canary"}
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status, {"ResponseMetadata": {"RequestId": "bad-1", "Error": error}, "Result": {}}, names)


DENIED = failing("SignatureDoesNotMatch", 401, 100010)
THROTTLED = failing("FlowLimitExceeded", 429, 100018)

# The gateway's codes with their CodeN and HTTP status (volcengine.com/docs/6369/68677), and some of the backend's.
ROWS: list[tuple[str, int, int, type[StreamStateError], int]] = [
    ("MissingParameter", 100002, 400, RtcRequestRefused, 1),
    ("MissingAuthenticationToken", 100003, 401, RtcAccessDenied, 1),
    ("MissingRequestInfo", 100004, 400, RtcRequestRefused, 1),
    ("MissingSignature", 100005, 401, RtcAccessDenied, 1),
    ("InvalidTimestamp", 100006, 400, RtcAccessDenied, 1),
    ("InvalidTimestamp", 100006, 403, RtcAccessDenied, 1),
    ("ServiceNotFound", 100007, 404, RtcRequestRefused, 1),
    ("InvalidActionOrVersion", 100008, 404, RtcActionRetired, 1),
    ("InvalidAccessKey", 100009, 401, RtcAccessDenied, 1),
    ("InvalidClientTokenId", 100009, 401, RtcAccessDenied, 1),
    ("SignatureDoesNotMatch", 100010, 401, RtcAccessDenied, 1),
    ("LackPolicy", 100012, 403, RtcAccessDenied, 1),
    ("AccessDenied", 100013, 403, RtcAccessDenied, 1),
    ("InternalError", 100014, 500, RtcUnavailable, MAX_TRIES),
    ("InternalServiceError", 100014, 502, RtcUnavailable, MAX_TRIES),
    ("InternalServiceTimeout", 100016, 504, RtcUnavailable, MAX_TRIES),
    ("FlowLimitExceeded", 100018, 429, RtcThrottled, MAX_TRIES),
    ("FlowLimitExceeded", 100018, 400, RtcThrottled, MAX_TRIES),
    ("FlowLimitExceeded", 100018, 200, RtcThrottled, MAX_TRIES),
    ("ServiceUnavailableTemp", 100019, 503, RtcUnavailable, MAX_TRIES),
    ("MethodNotAllowed", 100020, 405, RtcRequestRefused, 1),
    ("InvalidAuthorization", 100024, 400, RtcAccessDenied, 1),
    ("InvalidCredential", 100025, 400, RtcAccessDenied, 1),
    ("InvalidSecretToken", 100026, 401, RtcAccessDenied, 1),
    ("InternalError.UserNotFound", 0, 200, TargetNotFound, 1),
    ("InternalError.ReachRateLimit", 0, 200, RtcThrottled, MAX_TRIES),
    ("InternalError.RPC", 0, 200, RtcUnavailable, MAX_TRIES),
    ("InvalidParameter.AccountIdMismatch", 0, 400, RtcAccessDenied, 1),
    ("Unheard.Of", 0, 400, RtcProtocolError, 1),
    ("Unheard.Of", 0, 503, RtcUnavailable, MAX_TRIES),
    ("Unheard.Of", 0, 429, RtcThrottled, MAX_TRIES),
]


@pytest.mark.parametrize(("code", "code_n", "status", "error", "calls"), ROWS)
def test_each_code_is_its_own_error_and_is_retried_only_where_that_can_help(
    rtc: RtcClient,
    adapter: FakeAdapter,
    target: Target,
    conforms: Callable[[str, Any], None],
    code: str,
    code_n: int,
    status: int,
    error: type[StreamStateError],
    calls: int,
) -> None:
    adapter.answer(failing(code, status, code_n))

    with pytest.raises(error) as raised:
        rtc.stream_state(target, DEADLINE)

    conforms("problem", raised.value.problem())
    assert (raised.value.rtc_code, raised.value.rtc_request_id) == (code, "bad-1")
    assert len(adapter.requests) == calls


NETWORK_FAILURES: list[tuple[Exception, int, str]] = [
    (requests.ConnectTimeout("canary"), 504, "did not answer in time (ConnectTimeout)"),
    (requests.ReadTimeout("canary"), 504, "did not answer in time (ReadTimeout)"),
    (requests.exceptions.SSLError("canary"), 503, "TLS connection"),
    (requests.ConnectionError("canary"), 503, "failed (ConnectionError)"),
    (requests.exceptions.InvalidHeader("canary"), 503, "failed (InvalidHeader)"),
]


@pytest.mark.parametrize(("failure", "status", "shown"), NETWORK_FAILURES, ids=lambda value: type(value).__name__)
def test_a_failure_of_the_network_is_retried_and_then_told(
    rtc: RtcClient, adapter: FakeAdapter, target: Target, failure: Exception, status: int, shown: str
) -> None:
    adapter.answer(failure)

    with pytest.raises(RtcUnavailable) as raised:
        rtc.stream_state(target, DEADLINE)

    assert (raised.value.problem()["status"], len(adapter.requests)) == (status, MAX_TRIES)
    assert shown in str(raised.value)
    assert "canary" not in str(raised.value)


def test_a_retry_is_signed_anew_after_a_growing_random_pause_and_takes_a_slot(
    rtc: RtcClient,
    adapter: FakeAdapter,
    clock: Clock,
    limiter: FreeLimiter,
    jitters: list[tuple[float, float]],
    target: Target,
) -> None:
    adapter.answer(THROTTLED, requests.ConnectionError(), GOOD)

    assert rtc.stream_state(target, DEADLINE).rtc_request_id == "good-1"

    assert all(low == 0 for low, _ in jitters)
    assert jitters[0][1] < jitters[1][1]
    assert clock.slept == [high for _, high in jitters]
    assert limiter.slots == 3
    dates = [request.headers["X-Date"] for request in adapter.requests]
    assert dates == sorted(dates)
    assert dates[-1] > dates[0]


@pytest.mark.parametrize("header", ["2", "Mon, 23 Nov 2026 03:04:08 GMT"], ids=["number", "date"])
def test_a_pause_is_as_long_as_the_vendor_asks_for(
    rtc: RtcClient, adapter: FakeAdapter, clock: Clock, target: Target, header: str
) -> None:
    adapter.answer(failing("FlowLimitExceeded", 429, Retry_After=header), GOOD)

    rtc.stream_state(target, DEADLINE)

    assert clock.slept == [pytest.approx(2, abs=0.5)]


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("60", 60),
        ("0", 0),
        ("9" * 400, 3600),
        ("Tue, 24 Nov 2026 03:04:05 GMT", 3600),
        ("Sun, 22 Nov 2026 03:04:05 GMT", 0),
        *(
            (header, None)
            for header in (
                "",
                "soon",
                "-1",
                "1.5",
                "²",
                "Mon, 99 Nov 2026 03:04:05 GMT",
                "Mon, 23 Nov 99999999999999999999 03:04:05 GMT",
                "Mon, 23 Nov 2026 03:04:05 +99999999999999999999",
                "Mon, 23 Nov 2026 03:04:05 +9999",
            )
        ),
    ],
)
def test_any_retry_after_is_read_bounded_or_ignored(
    rtc: RtcClient, adapter: FakeAdapter, target: Target, header: str, seconds: float | None
) -> None:
    adapter.answer(failing("FlowLimitExceeded", 429, Retry_After=header))

    with pytest.raises(RtcThrottled) as raised:
        rtc.stream_state(target, 1_000.3)

    assert raised.value.retry_after_seconds == seconds


def test_what_is_not_retryable_carries_no_time_to_come_back(
    rtc: RtcClient, adapter: FakeAdapter, target: Target
) -> None:
    adapter.answer(failing("LackPolicy", 403, Retry_After="5"))

    with pytest.raises(RtcAccessDenied) as raised:
        rtc.stream_state(target, DEADLINE)

    assert raised.value.retry_after is None


@pytest.mark.parametrize(
    ("reply", "seconds_left"), [(THROTTLED, 0.3), (failing("FlowLimitExceeded", 429, Retry_After="20"), 10.0)]
)
def test_no_pause_reaches_beyond_the_deadline(
    rtc: RtcClient, adapter: FakeAdapter, clock: Clock, target: Target, reply: Reply, seconds_left: float
) -> None:
    adapter.answer(reply)

    with pytest.raises(RtcThrottled):
        rtc.stream_state(target, clock.seconds + seconds_left)

    assert (len(adapter.requests), clock.slept) == (1, [])


def test_without_time_no_call_is_made(rtc: RtcClient, adapter: FakeAdapter, clock: Clock, target: Target) -> None:
    with pytest.raises(RtcUnavailable) as raised:
        rtc.stream_state(target, clock.seconds + 0.01)

    assert raised.value.problem()["status"] == 504
    assert adapter.requests == []


@pytest.mark.parametrize("seconds_left", [30, 2.5, 1])
def test_connecting_and_reading_together_end_at_the_deadline(
    rtc: RtcClient, adapter: FakeAdapter, clock: Clock, target: Target, seconds_left: float
) -> None:
    adapter.answer(GOOD)

    rtc.stream_state(target, clock.seconds + seconds_left)

    assert adapter.options == [{"timeout": pytest.approx(seconds_left, abs=0.01)}]


def test_what_the_caller_raises_before_a_call_prevents_it(rtc: RtcClient, adapter: FakeAdapter, target: Target) -> None:
    def stop() -> None:
        raise RtcActionRetired("Stopped.")

    with pytest.raises(RtcActionRetired, match="Stopped"):
        rtc.stream_state(target, DEADLINE, stop)

    assert adapter.requests == []


def test_without_a_slot_no_call_is_made(
    rtc: RtcClient, adapter: FakeAdapter, limiter: FreeLimiter, monkeypatch: pytest.MonkeyPatch, target: Target
) -> None:
    def deny(deadline: float) -> None:
        raise QuotaExceeded("Later.", retry_after_seconds=3)

    monkeypatch.setattr(limiter, "acquire", deny)

    with pytest.raises(QuotaExceeded):
        rtc.stream_state(target, DEADLINE)

    assert adapter.requests == []


def secret_keys(secrets: FakeSecrets, clock: Clock) -> SecretKeys:
    return SecretKeys(secrets, "signing-keys", 300, clock.monotonic)


def test_rotated_keys_cost_one_refused_call_and_no_failed_answer(
    make_rtc: Callable[[Any], RtcClient], adapter: FakeAdapter, clock: Clock, target: Target
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


@pytest.mark.parametrize(
    "code", ["InvalidAccessKey", "InvalidClientTokenId", "SignatureDoesNotMatch", "InvalidSecretToken"]
)
def test_keys_are_renewed_at_most_once_a_call(
    make_rtc: Callable[[Any], RtcClient], adapter: FakeAdapter, clock: Clock, target: Target, code: str
) -> None:
    secrets = FakeSecrets(OLD_KEYS, NEW_KEYS, OLD_KEYS, NEW_KEYS)
    adapter.answer(failing(code, 401))

    with pytest.raises(RtcAccessDenied):
        make_rtc(secret_keys(secrets, clock)).stream_state(target, DEADLINE)

    assert (len(adapter.requests), secrets.reads) == (2, 2)


def test_the_same_keys_are_not_tried_again(
    make_rtc: Callable[[Any], RtcClient], adapter: FakeAdapter, clock: Clock, target: Target
) -> None:
    secrets = FakeSecrets(OLD_KEYS)
    adapter.answer(DENIED)

    with pytest.raises(RtcAccessDenied) as raised:
        make_rtc(secret_keys(secrets, clock)).stream_state(target, DEADLINE)

    assert raised.value.rtc_code == "SignatureDoesNotMatch"
    assert (len(adapter.requests), secrets.reads) == (1, 2)


def test_keys_that_never_change_are_not_tried_again(rtc: RtcClient, adapter: FakeAdapter, target: Target) -> None:
    adapter.answer(DENIED)

    with pytest.raises(RtcAccessDenied):
        rtc.stream_state(target, DEADLINE)

    assert len(adapter.requests) == 1


def test_a_denial_that_is_not_of_the_keys_reads_no_secret(
    make_rtc: Callable[[Any], RtcClient], adapter: FakeAdapter, clock: Clock, target: Target
) -> None:
    secrets = FakeSecrets(OLD_KEYS, NEW_KEYS)
    adapter.answer(failing("LackPolicy", 403))

    with pytest.raises(RtcAccessDenied):
        make_rtc(secret_keys(secrets, clock)).stream_state(target, DEADLINE)

    assert secrets.reads == 1


def test_calls_errors_and_latency_are_counted(
    make_rtc: Callable[[Any], RtcClient],
    signing_keys: SigningKeys,
    adapter: FakeAdapter,
    target: Target,
    capsys: pytest.CaptureFixture[str],
) -> None:
    adapter.answer(THROTTLED, GOOD)

    make_rtc(StaticKeys(signing_keys)).stream_state(target, DEADLINE)
    publish_metrics()

    written = capsys.readouterr().out
    assert '"RtcCalls":[2' in written
    assert '"error":"RtcThrottled"' in written
    assert '"RtcLatency":[' in written
    assert "class-1" not in written
    assert "app-1" not in written


def test_a_secret_that_is_not_read_anew_in_time_keeps_no_answer_back(
    make_rtc: Callable[[Any], RtcClient],
    adapter: FakeAdapter,
    clock: Clock,
    target: Target,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given rejected keys, no time left, and Secrets Manager that answers no more
    released = threading.Event()
    keys = secret_keys(FakeSecrets(OLD_KEYS), clock)
    monkeypatch.setattr(keys, "keys_after_rejection", lambda rejected, signed_at: released.wait(30))
    adapter.answer(lambda: clock.sleep(DEADLINE + RENEW_SECONDS - clock.monotonic()) or DENIED)

    with pytest.raises(CredentialsUnavailable, match="in time"):
        make_rtc(keys).stream_state(target, DEADLINE)
    released.set()
