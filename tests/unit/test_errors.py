"""The taxonomy: each error as a problem over HTTP, and as text."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stream_state.errors import (
    CredentialsInvalid,
    CredentialsUnavailable,
    DeliveryFailed,
    InvalidRequest,
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
)

KINDS: list[tuple[type[StreamStateError], int, bool, str]] = [
    (InvalidRequest, 400, False, "invalid-request"),
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


def test_all_kinds_are_covered_here_and_in_the_schema_and_no_two_share_a_title() -> None:
    kinds = [kind for kind, *_ in KINDS]
    schema = json.loads((Path(__file__).parents[2] / "docs" / "problem.schema.json").read_text())

    assert set(kinds) == set(StreamStateError.__subclasses__())
    assert schema["properties"]["error"]["examples"] == [kind.__name__ for kind in kinds]
    assert len({kind.title for kind in kinds}) == len(kinds)


def test_as_text_an_error_is_its_detail_with_the_vendors_code_and_request_id() -> None:
    assert str(RtcUnavailable("It failed.")) == "It failed."
    assert (
        str(RtcUnavailable("It failed.", rtc_code="InternalError", rtc_request_id="request-1"))
        == "It failed. (rtc_code InternalError, rtc_request_id request-1)"
    )


def test_a_problem_has_the_optional_fields_that_are_known(conforms: Callable[[str, Any], None]) -> None:
    error = RtcUnavailable("It failed.", rtc_code="InternalError", rtc_request_id="request-1", status=504)

    problem = error.problem(instance="/rooms/a", request_id=None, room_id="class-1")

    conforms("problem", problem)
    assert (problem["status"], problem["rtc_code"], problem["rtc_request_id"]) == (504, "InternalError", "request-1")
    assert (problem["instance"], problem["room_id"]) == ("/rooms/a", "class-1")
    assert "request_id" not in problem


def test_one_error_can_be_retryable_unlike_its_kind() -> None:
    assert RtcUnavailable("No.", retryable=False).problem()["retryable"] is False


@pytest.mark.parametrize(
    ("seconds", "whole"), [(None, 1), (-5.0, 1), (0.0, 1), (0.2, 1), (1.0, 1), (1.01, 2), (59.5, 60)]
)
def test_retry_after_is_in_whole_seconds_rounded_up(seconds: float | None, whole: int) -> None:
    assert QuotaExceeded("Later.", retry_after_seconds=seconds).retry_after == whole


def test_retry_after_is_always_given_with_429_and_else_only_where_known() -> None:
    assert RtcUnavailable("Later.").retry_after is None
    assert RtcUnavailable("Later.", retry_after_seconds=3).retry_after == 3
    assert RtcThrottled("Later.").retry_after == 1
