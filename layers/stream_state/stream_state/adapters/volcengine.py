"""The vendor's GetUserStreamState: a call with a slot and a signature, retried where that can help."""

import math
from collections.abc import Callable
from functools import partial
from typing import Protocol, Self
from urllib.parse import quote

import requests
from requests.adapters import BaseAdapter
from requests.structures import CaseInsensitiveDict

from stream_state.adapters.credentials import signing_keys
from stream_state.adapters.rate_limiter import Function, RateLimiter
from stream_state.adapters.signing import SigningKeys, VolcengineAuth
from stream_state.adapters.vendor_answers import read_answer
from stream_state.adapters.vendor_errors import rejects_keys
from stream_state.adapters.vendor_http import OneOriginAdapter, background, send, timed_out
from stream_state.clock import CLOCK, Clock
from stream_state.domain.observations import QueryResult
from stream_state.domain.targets import Target
from stream_state.errors import CredentialsUnavailable, RtcThrottled, StreamStateError
from stream_state.observability import logger, record, record_error
from stream_state.settings import Settings

MAX_TRIES = 3
_BACKOFF_SECONDS = 0.2
# The limiter holds the calls of all functions for this long if a throttling vendor names no time.
_THROTTLE_HOLD_SECONDS = 1
# A caller who would have to pause for longer gets the error instead.
_LONGEST_PAUSE_SECONDS = 10
# A call with less time left could not succeed.
MIN_CALL_SECONDS = 0.05
# A call may read rejected keys again for this long after its deadline.
RENEW_SECONDS = 2
# The vendor sends bodies uncompressed, so that the cap on their size holds.
_HEADERS = {"Accept-Encoding": "identity", "User-Agent": "stream-state-for-volcengine-rtc"}


class KeySource(Protocol):
    """Where the client gets the keys that it signs with."""

    def keys(self) -> SigningKeys:
        """The keys to sign with now."""

    def keys_after_rejection(self, rejected: SigningKeys, signed_at: float) -> SigningKeys:
        """The keys to try instead, equal to `rejected` if there are no others; `signed_at` in monotonic seconds."""


class Limiter(Protocol):
    """Where the client gets the slots for its calls."""

    def acquire(self, deadline: float) -> None:
        """Wait for a slot; raises `QuotaExceeded` if none comes before `deadline` (monotonic seconds)."""

    def hold(self, seconds: float) -> None:
        """Let no call begin for so long."""


class VolcengineClient:
    """Asks the vendor for stream states; safe to share among threads."""

    def __init__(
        self,
        settings: Settings,
        keys: KeySource,
        limiter: Limiter,
        *,
        adapter: BaseAdapter | None = None,
        clock: Clock = CLOCK,
    ) -> None:
        self._url = f"{settings.rtc_endpoint}?Action=GetUserStreamState"
        self._region = settings.rtc_region
        self._keys = keys
        self._limiter = limiter
        self._clock = clock
        self._adapter = adapter or OneOriginAdapter()
        self._timeouts = (settings.rtc_connect_timeout, settings.rtc_read_timeout)

    @classmethod
    def from_settings(cls, settings: Settings, function: Function) -> Self:
        """A client with the keys of the secret and the rate limiter on the table that the settings name."""
        return cls(settings, signing_keys(settings), RateLimiter.from_settings(settings, function))

    def stream_state(
        self,
        target: Target,
        deadline: float,
        *,
        max_wait_seconds: float = math.inf,
        before_call: Callable[[], None] = lambda: None,
    ) -> QueryResult:
        """The media of a target as the vendor answers now; `deadline` in monotonic seconds.

        The tries wait for slots for `max_wait_seconds` together. An error that `before_call` raises prevents the call.
        Raises `TargetNotFound`, `QuotaExceeded` and the errors whose names begin with `Rtc` and `Credentials`.
        """
        keys = _counted(self._keys.keys)
        may_renew_keys = True
        tries = 0
        while True:
            tries += 1
            asked_at = self._clock.monotonic()
            self._limiter.acquire(min(deadline - MIN_CALL_SECONDS, asked_at + max_wait_seconds))
            signed_at = self._clock.monotonic()
            max_wait_seconds -= signed_at - asked_at
            before_call()
            try:
                return self._call(target, keys, deadline)
            except StreamStateError as error:
                if rejects_keys(error) and may_renew_keys:
                    may_renew_keys = False
                    rejected, keys = keys, _counted(partial(self._keys_after_rejection, keys, signed_at, deadline))
                    if keys == rejected:
                        raise
                    logger.info("Volcengine rejected the signing keys; the next try signs with those of the secret.")
                    continue
                if isinstance(error, RtcThrottled):
                    self._limiter.hold(error.retry_after_seconds or _THROTTLE_HOLD_SECONDS)
                pause = self._pause_after(error, tries)
                if pause is None or self._clock.monotonic() + pause + MIN_CALL_SECONDS > deadline:
                    raise
                self._clock.sleep(pause)

    def _pause_after(self, error: StreamStateError, tries: int) -> float | None:
        """Seconds before the next try: full jitter, at least what the vendor asks for; None for no next try."""
        if not error.retryable or tries == MAX_TRIES:
            return None
        pause = max(self._clock.jitter(0, _BACKOFF_SECONDS * 2**tries), error.retry_after_seconds or 0)
        return pause if pause <= _LONGEST_PAUSE_SECONDS else None

    def _keys_after_rejection(self, rejected: SigningKeys, signed_at: float, deadline: float) -> SigningKeys:
        renewing = background.submit(self._keys.keys_after_rejection, rejected, signed_at)
        try:
            return renewing.result(max(deadline + RENEW_SECONDS - self._clock.monotonic(), 0))
        except TimeoutError:
            raise CredentialsUnavailable("Secrets Manager did not answer in time. Try again later.") from None

    def _call(self, target: Target, keys: SigningKeys, deadline: float) -> QueryResult:
        started = self._clock.monotonic()
        if deadline - started < MIN_CALL_SECONDS:
            raise timed_out("There was no time left to call Volcengine. Allow more time, or ask for fewer targets.")
        record("RtcCalls")
        sent_at_ms = self._clock.now_ms()
        try:
            return _counted(partial(self._ask, target, keys, sent_at_ms, deadline - started))
        finally:
            record("RtcLatency", (self._clock.monotonic() - started) * 1000, "Milliseconds")

    def _ask(self, target: Target, keys: SigningKeys, sent_at_ms: int, seconds_left: float) -> QueryResult:
        response = send(self._adapter, self._signed(target, keys), *self._timeouts, seconds_left)
        return read_answer(target, sent_at_ms, response, keys.secrets)

    def _signed(self, target: Target, keys: SigningKeys) -> requests.PreparedRequest:
        # A session of `requests` would look for cookies, proxies and hooks, which these requests never have.
        request = requests.PreparedRequest()
        request.method = "GET"
        # The vendor's rules for room and user ids allow no character that would end them here.
        request.url = f"{self._url}&AppId={quote(target.app_id, '')}&RoomId={target.room_id}&UserId={target.user_id}"
        request.url += "&Version=2020-12-01"
        request.headers = CaseInsensitiveDict(_HEADERS)
        return VolcengineAuth(keys, "rtc", self._region, self._clock)(request)


def _counted[T](function: Callable[[], T]) -> T:
    """The function's result; an error that it raises is counted."""
    try:
        return function()
    except StreamStateError as error:
        record_error(error)
        raise
