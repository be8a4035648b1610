"""Volcengine's error codes, of its gateway and of RTC, as exceptions of the taxonomy."""

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from http import HTTPStatus
from typing import Any

from stream_state.errors import (
    MAY_PASS,
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

# The vendor's answers can echo a key. Only text of this shape is ever shown.
_VENDOR_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")

# A code that ends with an asterisk stands for every code that begins so. The longest match decides.
_CODES: Mapping[type[StreamStateError], str] = {
    TargetNotFound: "InternalError.RoomNotFound InternalError.UserNotFound UnknownUser RoomNotExist UserNotExist",
    RtcThrottled: "FlowLimitExceeded* AccountFlowLimitExceeded InternalError.ReachRateLimit",
    RtcActionRetired: "InvalidActionOrVersion UnknownAction UnknownVersion",
    RtcAccessDenied: "InvalidAccessKey InvalidClientTokenId SignatureDoesNotMatch InvalidSecretToken"
    " MissingAuthenticationToken MissingSignature InvalidTimestamp InvalidAuthorization InvalidCredential"
    " LackPolicy LackProjectPolicy AccessDenied* Unauthorized InvalidParameter.AccountIdMismatch",
    RtcRequestRefused: "InvalidParameter* ErrorParameter* MissingParameter* MissingRequestInfo ServiceNotFound"
    " MethodNotAllowed",
    RtcUnavailable: "Internal* ServiceUnavailableTemp",
}
_PATTERNS = sorted(
    ((pattern, kind) for kind, patterns in _CODES.items() for pattern in patterns.split()),
    key=lambda entry: -len(entry[0].rstrip("*")),
)
_ADVICE: Mapping[type[StreamStateError], str] = {
    TargetNotFound: "Volcengine does not know the room or the user. Check the ids, and that the user has joined.",
    RtcThrottled: "Volcengine throttled the call. Lower RtcQps, or find what else in the account calls this action.",
    RtcActionRetired: "Volcengine has withdrawn the action. Use its callback events instead (EnableCallbacks).",
    RtcAccessDenied: "Volcengine denied access. Check the key's policies, and that the AppId is of its account.",
    RtcRequestRefused: "Volcengine calls the request malformed. Check RtcAppIds, RtcEndpoint and RtcRegion.",
    RtcUnavailable: "Volcengine failed to answer. Try again later.",
    RtcProtocolError: "Volcengine answered HTTP {status} without an error code that is listed. Check RtcEndpoint.",
}
_ADVICE_BY_CODE: Mapping[str, str] = {
    "InvalidTimestamp": "Volcengine calls the request's time wrong: the clock here is off by more than 900 seconds.",
    "InvalidParameter.AccountIdMismatch": "The AppId is not of the account that the signing keys belong to.",
    "InvalidSecretToken": "Volcengine refused the session token. Store keys that have not expired in the secret.",
    "InvalidAccessKey": "Volcengine does not know the access key. Store an active key pair in the secret.",
    "InvalidClientTokenId": "Volcengine does not know the access key. Store an active key pair in the secret.",
    "SignatureDoesNotMatch": "Volcengine refused the signature. Store the secret key that belongs to the access key.",
}
# A newer version of the secret may hold keys that the vendor accepts.
_KEYS_REJECTED = frozenset({"InvalidAccessKey", "InvalidClientTokenId", "SignatureDoesNotMatch", "InvalidSecretToken"})
# The vendor refuses every call with these keys. Its other codes may concern one AppId, its project or its account.
_KEYS_REFUSED = _KEYS_REJECTED | {
    "MissingAuthenticationToken",
    "MissingSignature",
    "InvalidTimestamp",
    "InvalidAuthorization",
    "InvalidCredential",
    "LackPolicy",
}


def vendor_name(value: object, secrets: tuple[str, ...]) -> str | None:
    """The vendor's code or request id if it is safe to show, else None."""
    if not isinstance(value, str) or not _VENDOR_NAME.fullmatch(value):
        return None
    return None if any(secret in value for secret in secrets) else value


def not_found(observed_at_ms: int, rtc_request_id: str | None) -> TargetNotFound:
    """The exception for a Result that says in words that the target is unknown."""
    return TargetNotFound(_ADVICE[TargetNotFound], observed_at_ms=observed_at_ms, rtc_request_id=rtc_request_id)


def error_for_code(
    code: object,
    status: int,
    *,
    sent_at_ms: int,
    rtc_request_id: str | None = None,
    retry_after_seconds: float | None = None,
    secrets: tuple[str, ...] = (),
) -> StreamStateError:
    """The exception for an error code of the vendor, or for the HTTP status where the code is not listed."""
    name = code if isinstance(code, str) else ""
    kinds = (kind for pattern, kind in _PATTERNS if fnmatchcase(name, pattern))
    kind = next(kinds, _by_status(status))
    more: dict[str, Any] = {}
    if kind is TargetNotFound:
        more["observed_at_ms"] = sent_at_ms
    if kind is RtcUnavailable and (name == "InternalServiceTimeout" or status == HTTPStatus.GATEWAY_TIMEOUT):
        more["status"] = HTTPStatus.GATEWAY_TIMEOUT
    return kind(
        (_ADVICE_BY_CODE.get(name) or _ADVICE[kind]).format(status=status),
        rtc_code=vendor_name(code, secrets),
        rtc_request_id=rtc_request_id,
        retry_after_seconds=retry_after_seconds if kind.default_status in MAY_PASS else None,
        **more,
    )


def rejects_keys(error: StreamStateError) -> bool:
    """Whether the vendor rejected the keys themselves, so that a newer version of the secret may help."""
    return isinstance(error, RtcAccessDenied) and error.rtc_code in _KEYS_REJECTED


def concerns_every_target(error: StreamStateError) -> bool:
    """Whether a call for any other target would meet the same error."""
    if isinstance(error, RtcAccessDenied):
        return error.rtc_code in _KEYS_REFUSED
    return isinstance(error, CredentialsInvalid | CredentialsUnavailable | RtcActionRetired)


def concerns_action(error: StreamStateError) -> bool:
    """Whether every call of the same action would meet the error, and calls of other actions might not."""
    return isinstance(error, RtcActionRetired) or error.rtc_code == "LackPolicy"


def _by_status(status: int) -> type[StreamStateError]:
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return RtcThrottled
    return RtcUnavailable if status >= HTTPStatus.INTERNAL_SERVER_ERROR else RtcProtocolError
