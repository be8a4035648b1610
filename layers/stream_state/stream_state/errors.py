"""The one taxonomy of errors: exceptions that are also HTTP problems (RFC 9457) and Step Functions error names.

StreamStateError
├── InvalidRequest           400  an id, body, event, option, route or signature breaks the rules
├── TargetNotFound           404  the vendor does not know the room or the user
├── QuotaExceeded            429  our rate limiter has no slot in time
├── RtcThrottled             429  the vendor throttled the call
├── CredentialsInvalid       500  the secret is missing, denied or malformed
├── CredentialsUnavailable   503  Secrets Manager did not answer, and no earlier value is at hand
├── StateUnavailable         503  DynamoDB failed
├── DeliveryFailed           503  SQS did not accept a message
├── RtcAccessDenied          502  the vendor refused the keys, the policy or the AppId
├── RtcRequestRefused        502  the vendor calls the request malformed
├── RtcActionRetired         502  the vendor withdrew the action
├── RtcProtocolError         502  the vendor's answer was not understood
├── RtcUnavailable           503  network or a server error at the vendor; 504 after a time-out
└── StreamStateTimeout       504  a wait is past its deadline
"""

import math
import re
from http import HTTPStatus
from typing import Any, ClassVar, Final

# An error with such a status may be gone when the caller asks again.
MAY_PASS = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})


class StreamStateError(Exception):
    """Base of all errors; `str()` of an error says what is wrong and what to do about it."""

    default_status: ClassVar[int] = 500
    title: ClassVar[str] = "The stream state could not be determined"

    def __init_subclass__(cls, *, status: int, title: str) -> None:
        cls.default_status, cls.title = status, title

    def __init__(
        self,
        detail: str,
        *,
        status: int | None = None,
        retryable: bool | None = None,
        retry_after_seconds: float | None = None,
        rtc_code: str | None = None,
        rtc_request_id: str | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail: Final = detail
        self.status: Final = status or self.default_status
        self.retryable: Final = self.default_status in MAY_PASS if retryable is None else retryable
        self.retry_after_seconds: Final = retry_after_seconds
        self.rtc_code: Final = rtc_code
        self.rtc_request_id: Final = rtc_request_id

    def __str__(self) -> str:
        """Detail, with the vendor's code and request id where known: Step Functions shows nothing else."""
        names = {"rtc_code": self.rtc_code, "rtc_request_id": self.rtc_request_id}
        shown = ", ".join(f"{name} {value}" for name, value in names.items() if value)
        return f"{self.detail} ({shown})" if shown else self.detail

    @property
    def name(self) -> str:
        """The error's name in problems, in metrics and in Step Functions."""
        return type(self).__name__

    @property
    def retry_after(self) -> int | None:
        """Whole seconds for a Retry-After header, rounded up; always given with status 429."""
        if self.retry_after_seconds is None and self.status != HTTPStatus.TOO_MANY_REQUESTS:
            return None
        return max(1, math.ceil(self.retry_after_seconds or 0))

    def problem(self, **more: str | None) -> dict[str, Any]:
        """Problem document; `more` adds fields, such as the path asked, and None leaves a field out."""
        document: dict[str, Any] = {
            "type": "urn:problem-type:stream-state:" + re.sub(r"(?<!^)(?=[A-Z])", "-", self.name).lower(),
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "error": self.name,
            "retryable": self.retryable,
        }
        optional = {"rtc_code": self.rtc_code, "rtc_request_id": self.rtc_request_id, **more}
        return document | {key: value for key, value in optional.items() if value is not None}


class InvalidRequest(StreamStateError, status=400, title="The request is not valid"):
    """An id, body, event, option, route or signature breaks the rules."""


class TargetNotFound(StreamStateError, status=404, title="The room or the user is unknown"):
    """The vendor says that the room or the user is unknown; `observed_at_ms` is when the vendor was asked."""

    def __init__(self, detail: str, *, observed_at_ms: int | None = None, **more: Any) -> None:
        super().__init__(detail, **more)
        self.observed_at_ms: Final = observed_at_ms


class QuotaExceeded(StreamStateError, status=429, title="The call limit leaves no slot in time"):
    """Our own rate limiter has no slot before the caller's deadline."""


class RtcThrottled(StreamStateError, status=429, title="Volcengine throttled the call"):
    """The vendor throttled the call, after bounded retries."""


class CredentialsInvalid(StreamStateError, status=500, title="The keys cannot be used"):
    """The secret with the keys is missing, denied or malformed."""


class CredentialsUnavailable(StreamStateError, status=503, title="The keys could not be read"):
    """The secret could not be read, and no usable earlier value is at hand."""


class StateUnavailable(StreamStateError, status=503, title="The table of states could not be read or written"):
    """DynamoDB failed where the answer needs it."""


class DeliveryFailed(StreamStateError, status=503, title="The result could not be delivered to the queue"):
    """SQS did not accept a message, after retries."""


class RtcAccessDenied(StreamStateError, status=502, title="Volcengine denied access"):
    """The vendor refused the keys, the policy or the AppId."""


class RtcRequestRefused(StreamStateError, status=502, title="Volcengine refused the request"):
    """The vendor calls the request malformed."""


class RtcActionRetired(StreamStateError, status=502, title="Volcengine has withdrawn the action"):
    """The vendor withdrew the action."""


class RtcProtocolError(StreamStateError, status=502, title="Volcengine's answer was not understood"):
    """The vendor's answer was not understood."""


class RtcUnavailable(StreamStateError, status=503, title="Volcengine could not be reached or failed"):
    """Network, TLS, time-out or a server error at the vendor, after bounded retries."""


class StreamStateTimeout(StreamStateError, status=504, title="The state did not come in time"):
    """A wait is past its deadline."""
