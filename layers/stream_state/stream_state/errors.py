"""The one taxonomy of errors: exceptions that are also HTTP problems (RFC 9457) and Step Functions error names."""

import math
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, ClassVar

# What the vendor sends back may echo a key. Only text of this shape is ever shown.
_VENDOR_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")


class StreamStateError(Exception):
    """Base of all errors; `str()` of one is a sentence that says what is wrong and what to do."""

    status: ClassVar[int] = 500
    retryable: bool = False
    title: ClassVar[str] = "The stream state could not be told"

    def __init__(
        self,
        detail: str,
        *,
        rtc_code: str | None = None,
        rtc_request_id: str | None = None,
        retry_after_seconds: float | None = None,
        status: int | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.rtc_code = rtc_code
        self.rtc_request_id = rtc_request_id
        self.retry_after_seconds = retry_after_seconds
        self.target: Mapping[str, str] = {}
        self.http_status = status or self.status

    def __str__(self) -> str:
        """Detail, with the vendor's code and request id where known: Step Functions shows nothing else."""
        known = {"rtc_code": self.rtc_code, "rtc_request_id": self.rtc_request_id}
        shown = ", ".join(f"{name} {value}" for name, value in known.items() if value)
        return f"{self.detail} ({shown})" if shown else self.detail

    @property
    def retry_after(self) -> int | None:
        """Whole seconds for a Retry-After header, rounded up; always given with status 429."""
        if self.retry_after_seconds is None and self.http_status != HTTPStatus.TOO_MANY_REQUESTS:
            return None
        return max(1, math.ceil(self.retry_after_seconds or 0))

    def problem(self, **more: str | None) -> dict[str, Any]:
        """Problem document; `more` adds members, such as the path asked, and None leaves one out."""
        name = type(self).__name__
        document: dict[str, Any] = {
            "type": "urn:problem-type:stream-state:" + re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower(),
            "title": self.title,
            "status": self.http_status,
            "detail": self.detail,
            "error": name,
            "retryable": self.retryable,
        }
        optional = {"rtc_code": self.rtc_code, "rtc_request_id": self.rtc_request_id, **more}
        return document | {key: value for key, value in optional.items() if value is not None}


class InvalidTarget(StreamStateError):
    """An id, body, event or option breaks the rules."""

    status = 400
    title = "The request is not valid"


class TargetNotFound(StreamStateError):
    """The vendor says that the room or the user is unknown."""

    status = 404
    title = "The room or the user is unknown"
    observed_at_ms: int | None = None


class QuotaExceeded(StreamStateError):
    """Our own limiter has no slot before the caller's deadline."""

    status = 429
    retryable = True
    title = "The call limit leaves no slot in time"


class RtcThrottled(StreamStateError):
    """The vendor throttled the call, after bounded retries."""

    status = 429
    retryable = True
    title = "Volcengine throttled the call"


class CredentialsInvalid(StreamStateError):
    """The secret with the signing keys is missing, denied or malformed."""

    title = "The signing keys cannot be used"


class CredentialsUnavailable(StreamStateError):
    """The secret could not be read, and no usable earlier value is at hand."""

    status = 503
    retryable = True
    title = "The signing keys could not be read"


class StateUnavailable(StreamStateError):
    """The table failed where the answer needs it."""

    status = 503
    retryable = True
    title = "The known states could not be read or written"


class DeliveryFailed(StreamStateError):
    """The queue did not accept the message, after retries."""

    status = 503
    retryable = True
    title = "The result could not be delivered to the queue"


class RtcAccessDenied(StreamStateError):
    """The vendor refused the keys, the policy or the AppId."""

    status = 502
    title = "Volcengine denied access"

    @property
    def rejects_keys(self) -> bool:
        """Whether the vendor rejected the keys themselves, so that a newer secret may help."""
        return self.rtc_code in _KEYS_REJECTED

    @property
    def refuses_keys(self) -> bool:
        """Whether every call with the same keys would be refused, whatever its target."""
        return self.rtc_code in _KEYS_REFUSED


class RtcRequestRefused(StreamStateError):
    """The vendor calls the request malformed."""

    status = 502
    title = "Volcengine refused the request"


class RtcActionRetired(StreamStateError):
    """The vendor withdrew GetUserStreamState."""

    status = 502
    title = "Volcengine has withdrawn GetUserStreamState"


class RtcProtocolError(StreamStateError):
    """The vendor's answer was not understood."""

    status = 502
    title = "Volcengine's answer was not understood"


class RtcUnavailable(StreamStateError):
    """Network, TLS, time-out or a server error at the vendor, after bounded retries."""

    status = 503
    retryable = True
    title = "Volcengine could not be reached or failed"


class StreamStateTimeout(StreamStateError):
    """A task with `until` is past its time."""

    status = 504
    title = "The state waited for did not come in time"


def vendor_name(value: object, secrets: tuple[str, ...]) -> str | None:
    """The vendor's code or request id if it is safe to show, else None."""
    if not isinstance(value, str) or not _VENDOR_NAME.fullmatch(value):
        return None
    return None if any(secret in value for secret in secrets) else value


# Volcengine's error codes, of its gateway and of RTC; with an asterisk every code that begins so. The longest match
# decides.
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
    ((pattern, error) for error, patterns in _CODES.items() for pattern in patterns.split()),
    key=lambda entry: -len(entry[0].rstrip("*")),
)
_ADVICE: Mapping[type[StreamStateError], str] = {
    TargetNotFound: "Volcengine does not know the room or the user. Check the ids, and that the user has joined.",
    RtcThrottled: "Volcengine throttled the call. Lower RtcQps, or find what else in the account calls this action.",
    RtcActionRetired: "Volcengine has withdrawn GetUserStreamState. Use its pushed stream events instead.",
    RtcAccessDenied: "Volcengine denied access. Check the key's policies, and that the AppId is of its account.",
    RtcRequestRefused: "Volcengine calls the request malformed. Check RtcAppIds, RtcEndpoint and RtcRegion.",
    RtcUnavailable: "Volcengine failed to answer. Try again later.",
    RtcProtocolError: "Volcengine answered HTTP {status} without an error code that is known. Check RtcEndpoint.",
}
_ADVICE_BY_CODE: Mapping[str, str] = {
    "InvalidTimestamp": "Volcengine calls the request's time wrong: the clock here is off by more than 900 seconds.",
    "InvalidParameter.AccountIdMismatch": "The AppId is not of the account that the signing keys belong to.",
    "InvalidSecretToken": "Volcengine refused the session token. Store keys that have not expired in the secret.",
    "InvalidAccessKey": "Volcengine does not know the access key. Store an active key pair in the secret.",
    "InvalidClientTokenId": "Volcengine does not know the access key. Store an active key pair in the secret.",
    "SignatureDoesNotMatch": "Volcengine refused the signature. Store the secret key that belongs to the access key.",
}
# The vendor rejects the keys themselves: a newer version of the secret may hold better ones.
_KEYS_REJECTED = frozenset({"InvalidAccessKey", "InvalidClientTokenId", "SignatureDoesNotMatch", "InvalidSecretToken"})
# The vendor refuses whatever is signed so; its other codes may be about one AppId, its project or its account.
_KEYS_REFUSED = _KEYS_REJECTED | {
    "MissingAuthenticationToken",
    "MissingSignature",
    "InvalidTimestamp",
    "InvalidAuthorization",
    "InvalidCredential",
    "LackPolicy",
}


def not_found(request_id: str | None) -> TargetNotFound:
    """The exception for a Result that says in words that the target is unknown."""
    return TargetNotFound(_ADVICE[TargetNotFound], rtc_request_id=request_id)


def error_for_code(
    code: str | None, status: int, request_id: str | None = None, secrets: tuple[str, ...] = ()
) -> StreamStateError:
    """The exception for an error code of the vendor, or for the HTTP status where the code is not listed."""
    for pattern, listed in _PATTERNS if code else ():
        if code == pattern or (pattern.endswith("*") and str(code).startswith(pattern[:-1])):
            error = listed
            break
    else:
        server_error = status >= HTTPStatus.INTERNAL_SERVER_ERROR
        error = {429: RtcThrottled}.get(status, RtcUnavailable if server_error else RtcProtocolError)
    detail = _ADVICE_BY_CODE.get(code or "") or _ADVICE[error]
    timed_out = error is RtcUnavailable and (code == "InternalServiceTimeout" or status == HTTPStatus.GATEWAY_TIMEOUT)
    return error(
        detail.format(status=status),
        rtc_code=vendor_name(code, secrets),
        rtc_request_id=request_id,
        status=HTTPStatus.GATEWAY_TIMEOUT if timed_out else None,
    )
