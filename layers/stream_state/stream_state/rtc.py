"""The vendor's GetUserStreamState: one signed call, bounded in time and size, retried where that can help."""

import random
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, Self
from urllib.parse import quote

import requests
from requests.adapters import BaseAdapter
from requests.structures import CaseInsensitiveDict

from stream_state.credentials import KeySource, SecretKeys
from stream_state.errors import (
    CredentialsUnavailable,
    RtcAccessDenied,
    RtcProtocolError,
    RtcThrottled,
    RtcUnavailable,
    StreamStateError,
    TargetNotFound,
    error_for_code,
    not_found,
    vendor_name,
)
from stream_state.model import FOUND, MEDIA_TYPES, Fact, Medium, StreamState, Target
from stream_state.observability import logger, record
from stream_state.quota import Function, Limiter, TableLimiter
from stream_state.settings import Settings
from stream_state.signing import SigningKeys, VolcengineAuth
from stream_state.transport import HEADERS, BoundedAdapter, in_background
from stream_state.validation import JsonError, parse_json

# Calls under way at once: enough for 60 calls a second that take a second each.
MAX_CONCURRENCY = 64
MAX_BODY_BYTES = 1024 * 1024
MAX_TRIES = 3
BACKOFF_SECONDS = 0.2
# How long a throttled call holds back those of all functions, if the vendor does not say.
THROTTLE_HOLD_SECONDS = 1
MAX_RETRY_AFTER_SECONDS = 3600
# A caller who would have to wait for longer is told so instead.
LONGEST_PAUSE_SECONDS = 10
# Below this there is no time left for a call that could succeed.
MIN_CALL_SECONDS = 0.05
# How long after its deadline a call may still be reading rejected keys anew.
RENEW_SECONDS = 2
_NOT_FOUND_RESULTS = frozenset({"User is not found.", "Room is not found."})


class RtcClient:
    """Asks the vendor for stream states; safe to share among threads."""

    def __init__(
        self,
        settings: Settings,
        keys: KeySource,
        limiter: Limiter,
        *,
        adapter: BaseAdapter | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._settings = settings
        self._keys = keys
        self._limiter = limiter
        self._clock = clock
        self._wall_clock = wall_clock
        self._sleep = sleep
        self._jitter = jitter
        self._url = f"{settings.rtc_endpoint.rstrip('/')}/?Action=GetUserStreamState"
        self._adapter = adapter or BoundedAdapter(
            settings.rtc_endpoint,
            settings.rtc_connect_timeout_seconds,
            settings.rtc_read_timeout_seconds,
            MAX_BODY_BYTES,
        )

    @classmethod
    def from_settings(cls, settings: Settings, function: Function) -> Self:
        """A client with the keys of the secret and the limit in the table that the settings name."""
        return cls(settings, SecretKeys.from_settings(settings), TableLimiter.from_settings(settings, function))

    def stream_state(
        self, target: Target, deadline: float, before_call: Callable[[], None] = lambda: None
    ) -> StreamState:
        """The state of a target as the vendor tells it now; `deadline` in monotonic seconds.

        Every try reserves a slot and is signed anew; what `before_call` raises prevents the call. Raises
        `TargetNotFound`, `QuotaExceeded` and the errors whose names begin with `Rtc` and `Credentials`.
        """
        try:
            keys = self._keys.keys()
        except StreamStateError as error:
            record("RtcErrors", error=type(error).__name__)
            raise
        may_renew_keys = True
        tries = 0
        while True:
            tries += 1
            self._limiter.acquire(deadline - MIN_CALL_SECONDS)
            before_call()
            signed_at = self._clock()
            try:
                return self._call(target, keys, deadline)
            except RtcAccessDenied as error:
                if not (error.rejects_keys and may_renew_keys):
                    raise
                may_renew_keys = False
                rejected, keys = keys, self._renewed(keys, signed_at, deadline)
                if keys == rejected:
                    raise
                logger.info("Volcengine rejected the signing keys; trying those that the secret holds now.")
            except StreamStateError as error:
                if isinstance(error, RtcThrottled):
                    self._limiter.hold(error.retry_after_seconds or THROTTLE_HOLD_SECONDS)
                pause = self._pause(error, tries)
                in_time = pause <= LONGEST_PAUSE_SECONDS and self._clock() + pause + MIN_CALL_SECONDS <= deadline
                if not (error.retryable and tries < MAX_TRIES and in_time):
                    raise
                self._sleep(pause)

    def _renewed(self, rejected: SigningKeys, signed_at: float, deadline: float) -> SigningKeys:
        renewing = in_background(lambda: self._keys.keys_after_rejection(rejected, signed_at))
        try:
            return renewing.result(max(deadline + RENEW_SECONDS - self._clock(), 0))
        except TimeoutError:
            raise CredentialsUnavailable("Secrets Manager did not answer in time. Try again later.") from None

    def _pause(self, error: StreamStateError, tries: int) -> float:
        """Seconds before the next try: full jitter, at least as long as the vendor asks for."""
        return max(self._jitter(0, BACKOFF_SECONDS * 2**tries), error.retry_after_seconds or 0)

    def _call(self, target: Target, keys: SigningKeys, deadline: float) -> StreamState:
        started = self._clock()
        if deadline - started < MIN_CALL_SECONDS:
            detail = "There was no time left to call Volcengine. Allow more time, or ask for fewer targets."
            raise RtcUnavailable(detail, status=HTTPStatus.GATEWAY_TIMEOUT)
        record("RtcCalls")
        sent_at_ms = int(self._wall_clock() * 1000)
        try:
            response = self._exchange(target, keys, deadline - started)
            return _read_answer(target, sent_at_ms, response, keys.secrets)
        except StreamStateError as error:
            record("RtcErrors", error=type(error).__name__)
            if isinstance(error, TargetNotFound):
                error.observed_at_ms = sent_at_ms
            raise
        finally:
            record("RtcLatency", (self._clock() - started) * 1000, "Milliseconds")

    def _exchange(self, target: Target, keys: SigningKeys, seconds_left: float) -> requests.Response:
        """The response to one signed GET."""
        # Neither prepared nor sent by a session of `requests`, which would look for cookies, proxies and hooks.
        request = requests.PreparedRequest()
        request.method = "GET"
        request.url = f"{self._url}&AppId={quote(target.app_id, '')}&RoomId={target.room_id}&UserId={target.user_id}"
        request.url += "&Version=2020-12-01"
        request.headers = CaseInsensitiveDict(HEADERS)
        VolcengineAuth(keys, "rtc", self._settings.rtc_region, self._wall_clock)(request)
        try:
            return self._adapter.send(request, timeout=seconds_left)
        except requests.RequestException as error:
            raise _network_error(error) from None


def _network_error(error: Exception) -> RtcUnavailable:
    name = type(error).__name__
    if isinstance(error, requests.Timeout):
        detail = f"Volcengine did not answer in time ({name}). Try again later."
        return RtcUnavailable(detail, status=HTTPStatus.GATEWAY_TIMEOUT)
    if isinstance(error, requests.exceptions.SSLError):
        return RtcUnavailable("The TLS connection to Volcengine failed. Check RtcEndpoint and its certificate.")
    return RtcUnavailable(f"The connection to Volcengine failed ({name}). Try again later.")


def _read_answer(target: Target, sent_at_ms: int, response: requests.Response, secrets: tuple[str, ...]) -> StreamState:
    """The state that a response tells; success needs status 200, no Error, and a Result for the target asked."""
    status, body = response.status_code, response.content
    if len(body) > MAX_BODY_BYTES:
        message = f"Volcengine's answer is larger than {MAX_BODY_BYTES} bytes. Check RtcEndpoint."
        raise RtcProtocolError(message)
    try:
        envelope = parse_json(body)
    except JsonError:
        envelope = None
    metadata = _member(envelope, "ResponseMetadata")
    request_id = vendor_name(_member(metadata, "RequestId"), secrets)
    error = _member(metadata, "Error")
    result = _member(envelope, "Result")
    told_in_words = isinstance(result, str) and result in _NOT_FOUND_RESULTS and isinstance(metadata, dict)
    if told_in_words and error is None:
        raise not_found(request_id)
    if error is not None or status != HTTPStatus.OK:
        code = _member(error, "Code")
        failure = error_for_code(code if isinstance(code, str) else None, status, request_id, secrets)
        failure.retry_after_seconds = _retry_after(response.headers, sent_at_ms) if failure.retryable else None
        raise failure
    if not isinstance(metadata, dict) or not isinstance(result, dict):
        message = "Volcengine's answer is not JSON with ResponseMetadata and Result. Check RtcEndpoint."
        raise RtcProtocolError(message, rtc_request_id=request_id)
    if (result.get("RoomId"), result.get("UserId")) != (target.room_id, target.user_id):
        message = "Volcengine's answer is not about the room and user that were asked for."
        raise RtcProtocolError(message, rtc_request_id=request_id)
    facts = {medium: Fact(value, sent_at_ms) for medium, value in _media(result, target, request_id).items()}
    return StreamState(target, {**facts, FOUND: Fact(None, sent_at_ms)}, "query", request_id)


def _media(result: Mapping[str, Any], target: Target, request_id: str | None) -> dict[str, bool | None]:
    """Each medium's value; None for one that is not told, told oddly, or told both ways."""
    told: dict[str, list[object]] = {medium: [] for medium in Medium}
    entries = result.get("StreamStates")
    odd = [] if isinstance(entries, list) else ["StreamStates is not a list"]
    for entry in entries if isinstance(entries, list) else ():
        name = entry.get("MediaType") if isinstance(entry, dict) else None
        if isinstance(name, str) and name in MEDIA_TYPES:
            told[MEDIA_TYPES[name]].append(entry.get("State"))
        else:
            odd.append("an entry has a MediaType that is not known, or none")
    values = {medium: _agreed(states) for medium, states in told.items()}
    odd += [f"{medium} is not told as 0 or 1" for medium, value in values.items() if value is None]
    if odd:
        keys = {**target.as_dict(), "rtc_request_id": request_id, "odd": sorted(set(odd))}
        logger.warning("Volcengine's answer leaves something unknown.", extra=keys)
    return values


def _agreed(states: list[object]) -> bool | None:
    """The one value that all states tell: the integers 0 and 1 only, so neither `true` nor 1.0."""
    for state in states:
        if type(state) is not int or state not in (0, 1) or state != states[0]:
            return None
    return states[0] == 1 if states else None


def _member(value: object, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None


def _retry_after(headers: Mapping[str, str], sent_at_ms: int) -> float | None:
    """Seconds that a Retry-After header asks for, as a number or a date, at most an hour."""
    value = headers.get("Retry-After", "")
    try:
        seconds = float(value) if value.isdecimal() else parsedate_to_datetime(value).timestamp() - sent_at_ms / 1000
    except (ValueError, OverflowError):
        return None
    return min(max(seconds, 0), MAX_RETRY_AFTER_SECONDS)
