"""The rate limiter of all calls to the vendor: every call reserves a slot before it begins."""

import math
from collections.abc import Callable, Mapping
from functools import cache
from threading import Lock
from typing import Any, Literal

from stream_state.adapters.table import ConditionFailed, Table, key_of
from stream_state.errors import QuotaExceeded, StateUnavailable
from stream_state.observability import add_metric, logger
from stream_state.settings import Settings

type Function = Literal["api", "task", "sweep", "callback"]

# The names of the items: that of GetUserStreamState, whose hold is the kill switch of all calls, and others.
MAIN, ONLINE_USERS, USERS_PROPERTY = "rtc", "GetRoomOnlineUsers", "GetRoomUsersProperty"
# Calls a second and burst, by item, of actions with limits of their own: 40 a second, and 10 a second for each AppId. A
# call begins up to `LATE_US` after its slot, so a second can hold the slots of 1.2 s: at most 30 * 1.2 + 3 = 39 and
# 8 * 1.2 + 1 = 10 of them.
OWN_LIMITS: Mapping[str, tuple[float, int]] = {ONLINE_USERS: (30, 3), USERS_PROPERTY: (8, 1)}
MAX_HOLD_SECONDS = 60
# A call may begin on a view of the kill switch that is so old; an older view is refreshed first.
HOLD_VIEW_US = 1_000_000
# The longest pause between two questions, so that a thread notices a lifted hold; also the pause after a failure.
MAX_PAUSE_US = 5_000_000
# A call that would begin so late after its slot gets another slot, once. Without this, a thousand callers on a loaded
# machine make 61 to 67 calls in the worst second at 50/s; with it, 57 to 59.
LATE_US = 200_000
# Sweeps that compete pause at random, up to so many slots: two more after a denial, half as many after a grant.
# Without this pause, eight sweeps make 4.7 writes for a slot (2.3), and lookups wait 0.2 s (p99; 0.04 s).
SPREAD_STEP_SLOTS, MAX_SPREAD_SLOTS = 2, 16

_NOT_ON_HOLD = "(attribute_not_exists(hold_until) OR hold_until <= :seconds)"
# DynamoDB has no maximum of two values: the instance tries the likelier case first, that slots are reserved or none is.
_BUSY = ("SET next_us = next_us + :more", f"next_us >= :now AND next_us <= :latest AND {_NOT_ON_HOLD}")
_IDLE = ("SET next_us = :next", f"(attribute_not_exists(next_us) OR next_us < :now) AND {_NOT_ON_HOLD}")
_HOLD = ("SET hold_until = :until", "attribute_not_exists(hold_until) OR hold_until < :until")
_FULL = "No call to Volcengine is free before this request must end. Ask again later, or for fewer targets."
_ON_HOLD = "Calls to Volcengine are on hold. Ask again later."
_FAILED = "The table that holds the call limit throttles or does not answer. Ask again later."


class RateLimiter:
    """GCRA on one DynamoDB item that all processes share; safe to share among threads.

    The item's `next_us` is the time at which the next call is due; calls may begin earlier than that by the burst. Its
    `hold_until` (epoch seconds) stops the calls, and so does that of `main`, another action's rate limiter.
    """

    def __init__(
        self,
        table: Table,
        settings: Settings,
        function: Function,
        *,
        name: str = MAIN,
        main: "RateLimiter | None" = None,
    ) -> None:
        self._table, self._function, self._clock, self._main = table, function, table.clock, main
        self._key = key_of("limiter", name)
        self._is_patient = function in {"sweep", "callback"}
        qps, self._burst = OWN_LIMITS.get(name.partition("#")[0], (settings.rtc_qps, settings.rtc_burst))
        # Rounded up, so that the rate is never above the one configured.
        self._interval_us = math.ceil(1_000_000 / qps)
        # Patient functions leave half of the burst to callers who wait.
        self._tolerance_us = (self._burst // 2 if self._is_patient else self._burst - 1) * self._interval_us
        self._lock, self._view_lock = Lock(), Lock()
        # The item as last seen and the time of that, the end of a pause after a failure, the time of the next question.
        self._next_us = self._hold_us = self._seen_us = self._failure_us = self._turn_us = 0
        self._spread_slots, self._was_busy = 0.0, False

    def acquire(self, deadline: float) -> None:
        """Wait for a slot; raises `QuotaExceeded` if none comes before `deadline` (monotonic seconds).

        An api or task call is refused as soon as that is certain, a sweep or callback not before its deadline.
        """
        started = self._clock.monotonic()
        deadline_us = self._now_us() + math.ceil((deadline - started) * 1_000_000)
        was_late = False
        while True:
            slot_us = self._slot(deadline_us, was_denied=was_late)
            self._clock.sleep(max(slot_us - self._now_us(), 0) / 1_000_000)
            # Looking up a hold can take long, after which the slot is late.
            is_held = self.held_until_us() > self._now_us()
            if self._now_us() - slot_us > LATE_US and not was_late:
                was_late = True
            elif not is_held:
                break
        add_metric("QuotaGranted")
        add_metric("QuotaWait", (self._clock.monotonic() - started) * 1000, "Milliseconds", function=self._function)

    def hold(self, seconds: float) -> None:
        """Let no call of any function begin for so long, at most a minute: the vendor throttles."""
        until = math.ceil(self._clock.now() + min(seconds, MAX_HOLD_SECONDS))
        with self._view_lock:
            # One write serves all threads that the vendor throttles; a longer hold stays.
            if until * 1_000_000 <= self._hold_us:
                return
            self._hold_us, self._seen_us = until * 1_000_000, self._now_us()
        logger.warning("All calls to Volcengine are on hold.", extra={"hold_until": until})
        self._update(_HOLD, {":until": until})

    def held_until_us(self) -> int:
        """Until when calls are on hold, by a view of the item that is fresh enough; one read serves all threads."""
        with self._view_lock:
            if self._now_us() - self._seen_us > HOLD_VIEW_US:
                try:
                    answer = self._table.call("get_item", Key=self._key, ConsistentRead=True)
                    self._hold_us = _number(answer.get("Item", {}), "hold_until") * 1_000_000
                except StateUnavailable as error:
                    logger.warning("A hold could not be looked up. " + error.detail)
                self._seen_us = self._now_us()
        return max(self._hold_us, self._main.held_until_us() if self._main else 0)

    def _slot(self, deadline_us: int, *, was_denied: bool) -> int:
        """A slot before the deadline; one thread at a time asks the table for one."""
        if self._hold_us and self._now_us() - self._seen_us > HOLD_VIEW_US:
            self._hold_us = self._turn_us = 0
        self._check(deadline_us, was_denied=was_denied)
        # One wait keeps the thread's place among those that wait. With several short ones, some threads had no turn.
        while not self._lock.acquire(timeout=max(deadline_us - self._now_us(), 0) / 1_000_000):
            self._check(deadline_us, was_denied=True)
        try:
            while True:
                self._check(deadline_us, was_denied=was_denied)
                if (pause_us := min(self._turn_us, deadline_us) - self._now_us()) > 0:
                    self._clock.sleep(pause_us / 1_000_000)
                elif slot_us := self._reserve(deadline_us):
                    return slot_us
                else:
                    was_denied = True
        finally:
            self._lock.release()

    def _check(self, deadline_us: int, *, was_denied: bool) -> None:
        """Refuse a caller who can get no slot in time; a sweep or a callback only at its deadline."""
        # The time before which no slot can be had, and the reason.
        busy_us = self._next_us - self._tolerance_us
        free_us, detail = max((busy_us, _FULL), (self._hold_us, _ON_HOLD), (self._failure_us, _FAILED))
        is_over = deadline_us <= self._now_us()
        is_certain = deadline_us < free_us and (is_over or not self._is_patient)
        if is_certain or (was_denied and is_over):
            add_metric("QuotaDenied")
            raise QuotaExceeded(detail, retry_after_seconds=max(free_us - deadline_us, 0) / 1_000_000)

    def _reserve(self, deadline_us: int) -> int | None:
        """Reserve the next slot with one write, or two if the first guesses wrongly; None after a denial."""
        now, is_granted, seen_us = self._now_us(), False, self._next_us
        last_us = min(deadline_us, now + self._interval_us) if self._is_patient else deadline_us
        busy = {":more": self._interval_us, ":latest": last_us + self._tolerance_us}
        idle = {":next": now + self._interval_us}
        for write in (_BUSY, _IDLE) if self._was_busy or self._next_us >= now else (_IDLE, _BUSY):
            values = {":seconds": now // 1_000_000, ":now": now, **(busy if write is _BUSY else idle)}
            is_granted, item = self._update(write, values)
            if item is None:
                pause_us = int(self._clock.jitter(MAX_PAUSE_US / 2, MAX_PAUSE_US))
                self._turn_us = self._failure_us = self._now_us() + pause_us
                return None
            self._next_us, self._hold_us = _number(item, "next_us"), _number(item, "hold_until") * 1_000_000
            if self._main:
                self._hold_us = max(self._hold_us, self._main.held_until_us())
            self._seen_us = now
            if is_granted or self._next_us > busy[":latest"] or self._hold_us > now:
                break
        # Others who kept the item busy are likely to do so still.
        is_shared = write is _BUSY and self._next_us - self._interval_us > seen_us
        self._was_busy = is_shared or not is_granted
        self._take_turn(is_granted=is_granted)
        return max(now, self._next_us - self._interval_us - self._tolerance_us) if is_granted else None

    def _take_turn(self, *, is_granted: bool) -> None:
        """Set the time of the next question: when a slot opens for a sweep, later at random if sweeps compete."""
        now, turn_us = self._now_us(), 0
        opens_us = self._next_us - self._tolerance_us - (self._interval_us if self._is_patient else 0)
        # Waiting callers pause only if the item denies a slot that it shows as free.
        if self._is_patient or opens_us <= now:
            more = min(self._spread_slots + SPREAD_STEP_SLOTS, MAX_SPREAD_SLOTS)
            spread = self._spread_slots / 2 if is_granted else more
            # A slot that is free after a grant shows unused rate: without this, a sweep alone uses 3 % less of it.
            self._spread_slots = 0.0 if is_granted and opens_us <= now else spread
            pause_us = int(self._clock.jitter(0, self._spread_slots) * self._interval_us)
            turn_us = max(opens_us, now) + pause_us
        self._turn_us = min(max(turn_us, self._hold_us), now + MAX_PAUSE_US)

    def _update(self, write: tuple[str, str], values: Mapping[str, int]) -> tuple[bool, Any]:
        """Whether the condition of a write held, and the item; None for the item if the table fails."""
        change, condition = write
        more = {"Key": self._key, "UpdateExpression": change, "ReturnValues": "UPDATED_NEW"}
        try:
            return True, self._table.write("update_item", condition, values, **more)["Attributes"]
        except ConditionFailed as failed:
            return False, failed.item
        except (StateUnavailable, KeyError) as error:
            logger.warning("The item of the rate limiter could not be written.", extra={"error": str(error)})
            return False, None

    def _now_us(self) -> int:
        return int(self._clock.now() * 1_000_000)


def rate_limiters(table: Table, settings: Settings, function: Function) -> Callable[[str], RateLimiter]:
    """The rate limiters on a table, each made when it is first asked for by its name."""

    @cache
    def limiter(name: str) -> RateLimiter:
        return RateLimiter(table, settings, function, name=name, main=None if name == MAIN else limiter(MAIN))

    return limiter


def reserved_until(table: Table) -> tuple[float, float]:
    """Until when slots are reserved, and until when calls are on hold, in seconds since 1970."""
    item = table.call("get_item", Key=key_of("limiter", MAIN)).get("Item", {})
    return _number(item, "next_us") / 1_000_000, _number(item, "hold_until")


def _number(item: Mapping[str, Any], name: str) -> int:
    """A number of the item, 0 if the item has none."""
    return math.ceil(float(item.get(name, {}).get("N", 0)))
