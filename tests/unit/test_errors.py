"""The taxonomy: what each error is over HTTP, and which codes of the vendor lead to it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stream_state.errors import (
    CredentialsInvalid,
    CredentialsUnavailable,
    DeliveryFailed,
    InvalidTarget,
    QuotaExceeded,
    RtcAccessDenied,
    RtcActionRetired,
    RtcProtocolError,
    RtcRequestRefused,
    RtcThrottled,
    RtcUnavailable,
    StateUnavailable,
    StreamStateError,
    StreamStateTimeout,
    TargetNotFound,
    error_for_code,
    vendor_name,
)

KINDS: list[tuple[type[StreamStateError], int, bool, str]] = [
    (InvalidTarget, 400, False, "invalid-target"),
    (TargetNotFound, 404, False, "target-not-found"),
    (QuotaExceeded, 429, True, "quota-exceeded"),
    (RtcThrottled, 429, True, "rtc-throttled"),
    (CredentialsInvalid, 500, False, "credentials-invalid"),
    (CredentialsUnavailable, 503, True, "credentials-unavailable"),
    (StateUnavailable, 503, True, "state-unavailable"),
    (DeliveryFailed, 503, True, "delivery-failed"),
    (RtcAccessDenied, 502, False, "rtc-access-denied"),
    (RtcRequestRefused, 502, False, "rtc-request-refused"),
    (RtcActionRetired, 502, False, "rtc-action-retired"),
    (RtcProtocolError, 502, False, "rtc-protocol-error"),
    (RtcUnavailable, 503, True, "rtc-unavailable"),
    (StreamStateTimeout, 504, False, "stream-state-timeout"),
]

# The vendor's codes, gateway (volcengine.com/docs/6369/68677) and RTC backend (70426).
CODES: dict[type[StreamStateError], str] = {
    TargetNotFound: "InternalError.RoomNotFound InternalError.UserNotFound UnknownUser RoomNotExist UserNotExist",
    RtcThrottled: "FlowLimitExceeded FlowLimitExceeded.Action FlowLimitExceededByAccount AccountFlowLimitExceeded"
    " InternalError.ReachRateLimit",
    RtcActionRetired: "InvalidActionOrVersion UnknownAction UnknownVersion",
    RtcAccessDenied: "InvalidAccessKey InvalidClientTokenId SignatureDoesNotMatch InvalidSecretToken"
    " MissingAuthenticationToken MissingSignature InvalidTimestamp InvalidAuthorization InvalidCredential LackPolicy"
    " LackProjectPolicy AccessDenied AccessDenied.Project Unauthorized InvalidParameter.AccountIdMismatch",
    RtcRequestRefused: "InvalidParameter InvalidParameter.RoomId InvalidParameter.AccountIdMismatchX ErrorParameter"
    " ErrorParameter.UserId MissingParameter MissingParameter.AppId MissingRequestInfo ServiceNotFound"
    " MethodNotAllowed",
    RtcUnavailable: "InternalError InternalServiceError InternalServiceTimeout InternalError.RPC"
    " InternalError.RoomNotFoundX ServiceUnavailableTemp",
}
NOT_LISTED = [
    "LackPolicyX",
    "RoomNotExistX",
    "UnknownActionX",
    "Unknown",
    "internalerror",
    "AccountFlowLimitExceeded.X",
]


@pytest.mark.parametrize(("kind", "status", "retryable", "name"), KINDS)
def test_each_kind_is_a_problem_of_its_own(
    kind: type[StreamStateError], status: int, retryable: object, name: str, conforms: Callable[[str, Any], None]
) -> None:
    problem = kind("What is wrong, and what to do.").problem()

    conforms("problem", problem)
    assert problem == {
        "type": f"urn:problem-type:stream-state:{name}",
        "title": kind.title,
        "status": status,
        "detail": "What is wrong, and what to do.",
        "error": kind.__name__,
        "retryable": retryable,
    }


def test_all_kinds_are_covered_here_and_no_two_share_a_title() -> None:
    kinds = [kind for kind, *_ in KINDS]

    assert set(kinds) == set(StreamStateError.__subclasses__())
    assert len({kind.title for kind in kinds}) == len(kinds)


@pytest.mark.parametrize(
    ("error", "codes"), [pytest.param(error, codes, id=error.__name__) for error, codes in CODES.items()]
)
@pytest.mark.parametrize("status", [200, 400, 401, 403, 404, 429, 500, 502, 503, 504])
def test_a_listed_code_decides_whatever_the_status(error: type[StreamStateError], codes: str, status: int) -> None:
    for code in codes.split():
        found = error_for_code(code, status, "request-1")
        assert type(found) is error, code
        assert (found.rtc_code, found.rtc_request_id) == (code, "request-1")


@pytest.mark.parametrize("code", [None, "", *NOT_LISTED])
@pytest.mark.parametrize(
    ("status", "error"),
    [
        (429, RtcThrottled),
        *((status, RtcUnavailable) for status in (500, 501, 502, 503, 504, 599)),
        *((status, RtcProtocolError) for status in (200, 204, 301, 302, 400, 401, 403, 404, 418)),
    ],
)
def test_without_a_listed_code_the_status_decides(code: str | None, status: int, error: type[StreamStateError]) -> None:
    assert type(error_for_code(code, status)) is error


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        ("InvalidTimestamp", "off by more than 900 s"),
        ("InvalidActionOrVersion", "pushed stream events"),
        ("InvalidParameter.AccountIdMismatch", "AppId is not of the account"),
        ("InvalidAccessKey", "Store an active key pair"),
        ("InvalidSecretToken", "session token"),
        ("SignatureDoesNotMatch", "secret key that belongs to"),
        ("LackPolicy", "denied access"),
        ("ServiceNotFound", "RtcEndpoint"),
        ("FlowLimitExceeded", "RtcQps"),
        (None, "answered HTTP 400 without"),
    ],
)
def test_the_detail_says_what_to_do(code: str | None, advice: str) -> None:
    assert advice in error_for_code(code, 400).detail


@pytest.mark.parametrize(
    ("code", "rejects_keys"),
    [
        ("InvalidAccessKey", True),
        ("InvalidClientTokenId", True),
        ("SignatureDoesNotMatch", True),
        ("InvalidSecretToken", True),
        ("InvalidTimestamp", False),
        ("LackPolicy", False),
        ("InvalidParameter.AccountIdMismatch", False),
    ],
)
def test_only_some_denials_are_of_the_keys(code: str, rejects_keys: object) -> None:
    error = error_for_code(code, 401)

    assert isinstance(error, RtcAccessDenied)
    assert error.rejects_keys is rejects_keys
    assert error.refuses_keys is (code != "InvalidParameter.AccountIdMismatch")


def test_as_text_an_error_is_its_detail_with_what_the_vendor_called_it() -> None:
    plain = RtcUnavailable("It failed.")
    known = RtcUnavailable("It failed.", rtc_code="InternalError", rtc_request_id="request-1")

    assert str(plain) == "It failed."
    assert str(known) == "It failed. (rtc_code InternalError, rtc_request_id request-1)"


def test_a_problem_gains_what_is_known_and_leaves_out_what_is_not(conforms: Callable[[str, Any], None]) -> None:
    error = RtcUnavailable("It failed.", rtc_code="InternalError", rtc_request_id="request-1", status=504)

    problem = error.problem(instance="/rooms/a", request_id=None, room_id="class-1")

    conforms("problem", problem)
    assert (problem["status"], problem["rtc_code"], problem["rtc_request_id"]) == (504, "InternalError", "request-1")
    assert (problem["instance"], problem["room_id"]) == ("/rooms/a", "class-1")
    assert "request_id" not in problem


@pytest.mark.parametrize(
    ("seconds", "whole"), [(None, 1), (-5.0, 1), (0.0, 1), (0.2, 1), (1.0, 1), (1.01, 2), (59.5, 60)]
)
def test_retry_after_is_in_whole_seconds_rounded_up(seconds: float | None, whole: int) -> None:
    assert QuotaExceeded("Later.", retry_after_seconds=seconds).retry_after == whole


def test_retry_after_is_always_given_with_429_and_else_only_where_known() -> None:
    assert RtcUnavailable("Later.").retry_after is None
    assert RtcUnavailable("Later.", retry_after_seconds=3).retry_after == 3
    assert RtcThrottled("Later.").retry_after == 1


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("InternalError.RPC", "InternalError.RPC"),
        ("202611230304050A-b_c", "202611230304050A-b_c"),
        ("x" * 128, "x" * 128),
        ("x" * 129, None),
        ("", None),
        ("two words", None),
        ("line\nfeed", None),
        ("trailing\n", None),
        ("密", None),
        ("<b>", None),
        ("has-a-secret-in-it", None),
        (None, None),
        (7, None),
        (["InternalError"], None),
    ],
)
def test_a_name_of_the_vendor_is_shown_only_if_it_is_plain_and_holds_no_secret(
    value: object, shown: str | None
) -> None:
    assert vendor_name(value, ("secret",)) == shown


def test_the_problem_schema_names_every_kind() -> None:
    schema = json.loads((Path(__file__).parents[2] / "docs" / "problem.schema.json").read_text())

    assert schema["properties"]["error"]["examples"] == [kind.__name__ for kind, *_ in KINDS]
