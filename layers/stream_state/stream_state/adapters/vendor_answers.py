"""The strict reading of the vendor's answers: a value that an answer does not say plainly is not known."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any

from stream_state.adapters.vendor_errors import error_for_code, not_found, vendor_name
from stream_state.domain.observations import QueryResult
from stream_state.domain.parsing import JsonError, parse_json
from stream_state.domain.targets import MEDIA_TYPES, Medium, Room, Target
from stream_state.errors import RtcProtocolError
from stream_state.observability import logger

MAX_RETRY_AFTER_SECONDS = 3600
_NOT_FOUND_RESULTS = frozenset({"User is not found.", "Room is not found."})


@dataclass(frozen=True, slots=True)
class VendorResponse:
    """An HTTP response that was read to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class VendorAnswer:
    """The Result of a call that succeeded, and when the call was sent, in milliseconds since 1970."""

    result: Mapping[str, Any]
    sent_at_ms: int
    rtc_request_id: str | None


def read_answer(sent_at_ms: int, response: VendorResponse, secrets: tuple[str, ...]) -> VendorAnswer:
    """The answer in a response; success needs status 200, no Error, and a Result that is an object."""
    try:
        envelope = parse_json(response.body)
    except JsonError:
        envelope = None
    metadata = _field(envelope, "ResponseMetadata")
    request_id = vendor_name(_field(metadata, "RequestId"), secrets)
    error = _field(metadata, "Error")
    result = _field(envelope, "Result")
    if isinstance(result, str) and result in _NOT_FOUND_RESULTS and isinstance(metadata, dict) and error is None:
        raise not_found(sent_at_ms, request_id)
    if error is not None or response.status != HTTPStatus.OK:
        raise error_for_code(
            _field(error, "Code"),
            response.status,
            sent_at_ms=sent_at_ms,
            rtc_request_id=request_id,
            retry_after_seconds=_retry_after(response.headers, sent_at_ms),
            secrets=secrets,
        )
    if not isinstance(metadata, dict) or not isinstance(result, dict):
        detail = "Volcengine's answer is not JSON with ResponseMetadata and Result. Check RtcEndpoint."
        raise RtcProtocolError(detail, rtc_request_id=request_id)
    return VendorAnswer(result, sent_at_ms, request_id)


def read_states(target: Target, answer: VendorAnswer) -> QueryResult:
    """The media of a target in an answer of GetUserStreamState; `RtcProtocolError` if it is about another target."""
    if (answer.result.get("RoomId"), answer.result.get("UserId")) != (target.room_id, target.user_id):
        detail = "Volcengine's answer is not about the room and user that were asked for."
        raise RtcProtocolError(detail, rtc_request_id=answer.rtc_request_id)
    media, oddities = _media(answer.result.get("StreamStates"))
    log_oddities(target, answer, oddities)
    return QueryResult(media, answer.sent_at_ms, answer.rtc_request_id)


def log_oddities(target: Target | Room, answer: VendorAnswer, oddities: Collection[str]) -> None:
    """Log why an answer leaves something unknown, if it does."""
    if oddities:
        keys = {**target.as_dict(), "rtc_request_id": answer.rtc_request_id, "odd": sorted(oddities)}
        logger.warning("Volcengine's answer leaves something unknown.", extra=keys)


def _media(entries: object) -> tuple[dict[Medium, bool | None], set[str]]:
    """Each medium's value, and what is odd about the entries."""
    states: dict[Medium, list[object]] = {medium: [] for medium in Medium}
    oddities: set[str] = set()
    if not isinstance(entries, list):
        oddities.add("StreamStates is not a list")
        entries = []
    for entry in entries:
        name = _field(entry, "MediaType")
        if isinstance(name, str) and name in MEDIA_TYPES:
            states[MEDIA_TYPES[name]].append(entry.get("State"))
        else:
            oddities.add("an entry has no MediaType that this project knows")
    media = {medium: _agreed(found) for medium, found in states.items()}
    return media, oddities | {f"{medium} is not 0 or 1" for medium, value in media.items() if value is None}


def _agreed(states: list[object]) -> bool | None:
    """The one value that all states have, of the integers 0 and 1 only: neither `true` nor 1.0 is one of them."""
    for state in states:
        if type(state) is not int or state not in (0, 1) or state != states[0]:
            return None
    return states[0] == 1 if states else None


def _field(value: object, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None


def _retry_after(headers: Mapping[str, str], sent_at_ms: int) -> float | None:
    """Seconds that a Retry-After header asks for, as a number or a date, at most an hour."""
    value = headers.get("Retry-After", "")
    try:
        seconds = float(value) if value.isdecimal() else parsedate_to_datetime(value).timestamp() - sent_at_ms / 1000
    except (ValueError, OverflowError):
        return None
    return min(max(seconds, 0), MAX_RETRY_AFTER_SECONDS)
