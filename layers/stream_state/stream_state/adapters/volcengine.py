"""The vendor's calls, each with a slot and a signature, retried where that can help.

GetUserStreamState says what a user publishes. The presence calls, GetRoomOnlineUsers and GetRoomUsersProperty, say who
is in a room.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from threading import Lock
from typing import Self
from urllib.parse import quote

import requests
from requests.adapters import BaseAdapter
from requests.structures import CaseInsensitiveDict

from stream_state.adapters.credentials import CachedSecret, signing_keys
from stream_state.adapters.rate_limiter import MAIN, ONLINE_USERS, USERS_PROPERTY, Function, RateLimiter, rate_limiters
from stream_state.adapters.signing import SigningKeys, VolcengineAuth
from stream_state.adapters.table import Table
from stream_state.adapters.vendor_answers import VendorAnswer, read_answer, read_states
from stream_state.adapters.vendor_errors import rejects_keys
from stream_state.adapters.vendor_http import OneOriginAdapter, background, send, timed_out
from stream_state.adapters.vendor_presence import read_online_users, read_users_property
from stream_state.clock import CLOCK, Clock
from stream_state.domain.observations import Presence, QueryResult, offline
from stream_state.domain.targets import Room, Target
from stream_state.errors import (
    CredentialsUnavailable,
    QuotaExceeded,
    RtcProtocolError,
    RtcThrottled,
    StreamStateError,
    TargetNotFound,
)
from stream_state.observability import add_metric, logger
from stream_state.settings import Settings

# The most users that GetRoomUsersProperty can be asked about.
MAX_USERS = 10
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


@dataclass(frozen=True, slots=True)
class _Call[T]:
    """A call: its query, how its answer is read, and the name of the rate limiter that grants its slots."""

    query: str
    read: Callable[[VendorAnswer], T]
    limiter: str


@dataclass(eq=False)
class VolcengineClient:
    """Asks the vendor for stream states and presence; safe to share among threads.

    Every method takes its `deadline` in monotonic seconds. `max_wait_seconds` bounds what its tries wait for slots
    together, and each pause between them. An error that `before_call` raises prevents the call. Every method raises
    `QuotaExceeded`, and the errors whose names begin with `Rtc` and `Credentials`.
    """

    settings: Settings
    keys: CachedSecret[SigningKeys]
    limiter_of: Callable[[str], RateLimiter]
    adapter: BaseAdapter = field(default_factory=OneOriginAdapter)
    clock: Clock = CLOCK
    calls_made: int = field(default=0, init=False)
    _lock: Lock = field(default_factory=Lock, init=False)

    @classmethod
    def from_settings(cls, settings: Settings, table: Table, function: Function) -> Self:
        """A client with the keys of the secret that the settings name, and the rate limiters on a table."""
        return cls(settings, signing_keys(settings), rate_limiters(table, settings, function))

    def stream_state(
        self,
        target: Target,
        deadline: float,
        *,
        max_wait_seconds: float = math.inf,
        before_call: Callable[[], None] = lambda: None,
    ) -> QueryResult:
        """The media of a target as the vendor answers now; raises `TargetNotFound` too."""
        ids = {"RoomId": target.room_id, "UserId": target.user_id}
        query = _query("GetUserStreamState", "2020-12-01", target.app_id, **ids)
        call = _Call(query, partial(read_states, target), MAIN)
        return self._answer(call, deadline, max_wait_seconds, before_call)

    def online_users(self, room: Room, deadline: float, *, max_wait_seconds: float = math.inf) -> Presence:
        """Who is in a room as the vendor answers now."""
        query = _query(ONLINE_USERS, "2023-11-01", room.app_id, RoomId=room.room_id)
        call = _Call(query, partial(read_online_users, room), ONLINE_USERS)
        return self._presence(call, deadline, max_wait_seconds)

    def users_property(
        self, room: Room, user_ids: Sequence[str], deadline: float, *, max_wait_seconds: float = math.inf
    ) -> Presence:
        """Who of at most ten users is in a room, and since when, as the vendor answers now."""
        # Their order is part of what is signed.
        users = "&UserIds=".join(sorted(user_ids))
        query = _query(USERS_PROPERTY, "2023-11-01", room.app_id, RoomId=room.room_id, UserIds=users)
        call = _Call(query, partial(read_users_property, room, user_ids), f"{USERS_PROPERTY}#{room.app_id}")
        return self._presence(call, deadline, max_wait_seconds)

    def _presence(self, call: _Call[Presence], deadline: float, max_wait_seconds: float) -> Presence:
        try:
            return self._answer(call, deadline, max_wait_seconds)
        except TargetNotFound as error:
            if error.observed_at_ms is None or "Room" not in (error.rtc_code or ""):
                # A presence call names no user that could be unknown.
                detail, code = "Volcengine's answer was not understood.", error.rtc_code
                raise RtcProtocolError(detail, rtc_code=code, rtc_request_id=error.rtc_request_id) from None
            # As RoomExists false: nobody is in a room that does not exist.
            return Presence({}, offline(error.observed_at_ms), error.rtc_request_id)

    def _answer[T](
        self, call: _Call[T], deadline: float, max_wait_seconds: float, before_call: Callable[[], None] = lambda: None
    ) -> T:
        """What the answer to a call says; the call is tried again where that can help."""
        limiter, longest_pause = self.limiter_of(call.limiter), min(max_wait_seconds, _LONGEST_PAUSE_SECONDS)
        with _errors_counted():
            keys = self.keys.keys()
        may_renew_keys = True
        failure: StreamStateError | None = None
        tries = 0
        while True:
            tries += 1
            asked_at = self.clock.monotonic()
            try:
                limiter.acquire(min(deadline - MIN_CALL_SECONDS, asked_at + max_wait_seconds))
            except QuotaExceeded:
                if failure is None:
                    raise
                raise failure from None
            signed_at = self.clock.monotonic()
            max_wait_seconds -= signed_at - asked_at
            before_call()
            try:
                return self._send(call, keys, deadline)
            except StreamStateError as error:
                if rejects_keys(error) and may_renew_keys:
                    may_renew_keys = False
                    with _errors_counted():
                        rejected, keys = keys, self._keys_after_rejection(keys, signed_at, deadline)
                    if keys == rejected:
                        raise
                    logger.info("Volcengine rejected the signing keys; the next try signs with those of the secret.")
                    continue
                failure = error
                if isinstance(error, RtcThrottled):
                    limiter.hold(error.retry_after_seconds or _THROTTLE_HOLD_SECONDS)
                # Full jitter, and at least what the vendor asks for.
                pause = max(self.clock.jitter(0, _BACKOFF_SECONDS * 2**tries), error.retry_after_seconds or 0)
                longest = min(longest_pause, deadline - MIN_CALL_SECONDS - self.clock.monotonic())
                if not error.retryable or tries >= MAX_TRIES or pause > longest:
                    raise
                self.clock.sleep(pause)

    def _keys_after_rejection(self, rejected: SigningKeys, signed_at: float, deadline: float) -> SigningKeys:
        renewing = background.submit(self.keys.keys_after_rejection, rejected, signed_at)
        try:
            return renewing.result(max(deadline + RENEW_SECONDS - self.clock.monotonic(), 0))
        except TimeoutError:
            raise CredentialsUnavailable("Secrets Manager did not answer in time. Try again later.") from None

    def _send[T](self, call: _Call[T], keys: SigningKeys, deadline: float) -> T:
        started = self.clock.monotonic()
        if deadline - started < MIN_CALL_SECONDS:
            raise timed_out("There was no time left to call Volcengine. Allow more time, or ask for fewer targets.")
        add_metric("RtcCalls")
        with self._lock:
            self.calls_made += 1
        sent_at_ms = self.clock.now_ms()
        timeouts = self.settings.rtc_connect_timeout, self.settings.rtc_read_timeout
        try:
            with _errors_counted():
                response = send(self.adapter, self._signed(call.query, keys), *timeouts, deadline - started)
                return call.read(read_answer(sent_at_ms, response, keys.secrets))
        finally:
            add_metric("RtcLatency", (self.clock.monotonic() - started) * 1000, "Milliseconds")

    def _signed(self, query: str, keys: SigningKeys) -> requests.PreparedRequest:
        # A session of `requests` would look for cookies, proxies and hooks, which these requests never have.
        request = requests.PreparedRequest()
        request.method = "GET"
        request.url = self.settings.rtc_endpoint + query
        request.headers = CaseInsensitiveDict(_HEADERS)
        return VolcengineAuth(keys, "rtc", self.settings.rtc_region, self.clock)(request)


def _query(action: str, version: str, app_id: str, **ids: str) -> str:
    # The vendor's rules for room and user ids allow no character that would end them here.
    named = "".join(f"&{name}={value}" for name, value in ids.items())
    return f"?Action={action}&AppId={quote(app_id, '')}{named}&Version={version}"


@contextmanager
def _errors_counted() -> Iterator[None]:
    try:
        yield
    except StreamStateError as error:
        add_metric("Errors", error=error.name)
        raise
