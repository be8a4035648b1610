"""The vendor's error codes: the exception that each is, what the exception says, and whom it concerns."""

from typing import Any

import pytest

from stream_state.adapters.vendor_errors import (
    concerns_every_target,
    error_for_code,
    not_found,
    rejects_keys,
    vendor_name,
)
from stream_state.errors import (
    CredentialsInvalid,
    CredentialsUnavailable,
    RtcAccessDenied,
    RtcActionRetired,
    RtcProtocolError,
    RtcRequestRefused,
    RtcThrottled,
    RtcUnavailable,
    StreamStateError,
    TargetNotFound,
)

# The codes of the vendor's gateway (volcengine.com/docs/6369/68677) and RTC backend (70426).
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
REJECTED = {"InvalidAccessKey", "InvalidClientTokenId", "SignatureDoesNotMatch", "InvalidSecretToken"}
REFUSED = REJECTED | {
    "MissingAuthenticationToken", "MissingSignature", "InvalidTimestamp", "InvalidAuthorization", "InvalidCredential",
    "LackPolicy", "InvalidActionOrVersion", "UnknownAction", "UnknownVersion",
}  # fmt: skip


def error_for(code: object, status: int = 400, **more: Any) -> StreamStateError:
    return error_for_code(code, status, sent_at_ms=1_000, **more)


@pytest.mark.parametrize(
    ("kind", "code"), [pytest.param(kind, code, id=code) for kind, codes in CODES.items() for code in codes.split()]
)
def test_a_listed_code_decides_whatever_the_status(kind: type[StreamStateError], code: str) -> None:
    for status in (200, 400, 401, 403, 404, 429, 500, 502, 503, 504):
        error = error_for(code, status, rtc_request_id="request-1")

        assert type(error) is kind
        assert (error.rtc_code, error.rtc_request_id) == (code, "request-1")
        assert (rejects_keys(error), concerns_every_target(error)) == (code in REJECTED, code in REFUSED)


@pytest.mark.parametrize("code", [None, "", 7, ["InternalError"], *NOT_LISTED])
def test_without_a_listed_code_the_status_decides(code: object) -> None:
    assert type(error_for(code, 429)) is RtcThrottled
    for status in (500, 501, 502, 503, 504, 599):
        assert type(error_for(code, status)) is RtcUnavailable
    for status in (200, 204, 301, 302, 400, 401, 403, 404, 418):
        assert type(error_for(code, status)) is RtcProtocolError


@pytest.mark.parametrize(
    ("error", "concerns"),
    [
        (CredentialsInvalid("No."), True),
        (CredentialsUnavailable("No."), True),
        (RtcAccessDenied("No."), False),
        (RtcProtocolError("No."), False),
        (RtcUnavailable("No.", rtc_code="InvalidAccessKey"), False),
    ],
)
def test_missing_keys_concern_every_target(error: StreamStateError, concerns: object) -> None:
    assert concerns_every_target(error) is concerns
    assert rejects_keys(error) is False


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        ("InvalidTimestamp", "off by more than 900 s"),
        ("InvalidActionOrVersion", "callback events"),
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
    assert advice in error_for(code).detail


def test_an_unknown_target_carries_when_the_vendor_was_asked() -> None:
    for error in (error_for("UserNotExist", rtc_request_id="request-1"), not_found(1_000, "request-1")):
        assert isinstance(error, TargetNotFound)
        assert (error.observed_at_ms, error.rtc_request_id) == (1_000, "request-1")


@pytest.mark.parametrize(
    ("code", "status", "shown"),
    [("InternalServiceTimeout", 200, 504), ("InternalError", 504, 504), (None, 504, 504), ("InternalError", 500, 503)],
)
def test_a_time_out_at_the_vendor_is_504(code: str | None, status: int, shown: int) -> None:
    assert error_for(code, status).status == shown


def test_only_a_retryable_error_carries_a_time_to_come_back() -> None:
    assert error_for("FlowLimitExceeded", retry_after_seconds=5.0).retry_after_seconds == 5
    assert error_for("LackPolicy", retry_after_seconds=5.0).retry_after is None


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("InternalError.RPC", "InternalError.RPC"),
        ("202611230304050A-b_c", "202611230304050A-b_c"),
        ("x" * 128, "x" * 128),
        *(
            (value, None)
            for value in ("x" * 129, "", "two words", "line\nfeed", "trailing\n", "密", "<b>", "has-a-secret-in-it")
        ),
        *((value, None) for value in (None, 7, ["InternalError"])),
    ],
)
def test_a_name_of_the_vendor_is_shown_only_if_it_is_plain_and_holds_no_secret(
    value: object, shown: str | None
) -> None:
    assert vendor_name(value, ("secret",)) == shown
    assert error_for(value, secrets=("secret",)).rtc_code == shown
