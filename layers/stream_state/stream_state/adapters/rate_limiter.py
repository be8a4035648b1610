"""The rate limiter of all calls to the vendor: every call reserves a slot before it begins."""

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from stream_state.adapters import aws
from stream_state.adapters.limiter_item import BUSY, HOLD, IDLE, MAIN, OWN_LIMITS, LimiterItem, number
from stream_state.clock import CLOCK, Clock
from stream_state.errors import QuotaExceeded
from stream_state.observability import logger, record
from stream_state.settings import Settings

type Function = Literal["api", "task", "sweep", "callback"]

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

_FULL = "No call to Volcengine is free before this request must end. Ask again later, or for fewer targets."
_ON_HOLD = "Calls to Volcengine are on hold. Ask again later."
_FAILED = "The table that holds the call limit throttles or does not answer. Ask again later."


@dataclass(slots=True, eq=False)
class _Caller:
    """A thread that waits, and its slot (epoch microseconds)."""

    deadline_us: int
    woken: threading.Event = field(default_factory=threading.Event)
    slot_us: int | None = None


class RateLimiter:
    """GCRA on one DynamoDB item that all processes share; safe to share among threads.

    The item's `next_us` is the time at which the next call is due; calls may begin earlier than that by the burst. Its
    `hold_until` (epoch seconds) stops the calls, and so does that of `main`, another action's rate limiter. The first
    thread in the queue asks the table for a block of slots.
    """

    def __init__(
        self,
        client: Any,
        settings: Settings,
        function: Function,
        clock: Clock = CLOCK,
        *,
        name: str = MAIN,
        main: "RateLimiter | None" = None,
    ) -> None:
        self._item = LimiterItem(client, settings.table_name, name)
        self._function, self._clock, self._main = function, clock, main
        self._is_patient = function in {"sweep", "callback"}
        qps, self._burst = OWN_LIMITS.get(name.partition("#")[0], (settings.rtc_qps, settings.rtc_burst))
        # Rounded up, so that the rate is never above the one configured.
        self._interval_us = math.ceil(1_000_000 / qps)
        # Patient functions leave half of the burst to callers who wait.
        self._tolerance_us = (self._burst // 2 if self._is_patient else self._burst - 1) * self._interval_us
        self._lock, self._view_lock = threading.Lock(), threading.Lock()
        self._queue: list[_Caller] = []
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
            caller = _Caller(deadline_us)
            self._queue_up(caller)
            if caller.slot_us is None:
                record("QuotaDenied")
                free_us, detail = self._outlook()
                raise QuotaExceeded(detail, retry_after_seconds=max(free_us - deadline_us, 0) / 1_000_000)
            self._clock.sleep(max(caller.slot_us - self._now_us(), 0) / 1_000_000)
            if self._now_us() - caller.slot_us > LATE_US and not was_late:
                was_late = True
            elif self.held_until_us() <= self._now_us():
                break
        record("QuotaGranted")
        record("QuotaWait", (self._clock.monotonic() - started) * 1000, "Milliseconds", function=self._function)

    def hold(self, seconds: float) -> None:
        """Let no call of any function begin for so long, at most a minute: the vendor throttles."""
        until = math.ceil(self._clock.now() + min(seconds, MAX_HOLD_SECONDS))
        with self._view_lock:
            # One write serves all threads that the vendor throttles; a longer hold stays.
            if until * 1_000_000 <= self._hold_us:
                return
            self._hold_us, self._seen_us = until * 1_000_000, self._now_us()
        logger.warning("All calls to Volcengine are on hold.", extra={"hold_until": until})
        self._item.update(HOLD, {":until": until})

    def held_until_us(self) -> int:
        """Until when calls are on hold, by a view of the item that is fresh enough; one read serves all threads."""
        with self._view_lock:
            if self._now_us() - self._seen_us > HOLD_VIEW_US:
                until = self._item.hold_until()
                self._hold_us = self._hold_us if until is None else until * 1_000_000
                self._seen_us = self._now_us()
        return max(self._hold_us, self._main.held_until_us() if self._main else 0)

    def _queue_up(self, caller: _Caller) -> None:
        """Wait for a slot from another thread or for the deadline; the first in the queue asks the table."""
        with self._lock:
            self._queue.append(caller)
            if self._queue[0] is caller:
                caller.woken.set()
        caller.woken.wait(max(caller.deadline_us - self._now_us(), 0) / 1_000_000)
        try:
            if self._queue[:1] == [caller]:
                self._lead(caller)
        finally:
            self._let_go([caller])

    def _let_go(self, callers: list[_Caller]) -> None:
        """Take callers from the queue and wake them, and the thread that is the first then."""
        with self._lock:
            self._queue = [caller for caller in self._queue if caller not in callers]
            for caller in callers + self._queue[:1]:
                caller.woken.set()

    def _lead(self, caller: _Caller) -> None:
        """Ask the table until the caller has a slot or can get none."""
        if self._hold_us and self._now_us() - self._seen_us > HOLD_VIEW_US:
            self._hold_us = self._turn_us = 0
        was_denied = False
        self._refuse(was_denied=was_denied)
        while caller in self._queue:
            if (pause_us := min(self._turn_us, caller.deadline_us) - self._now_us()) > 0:
                self._clock.sleep(pause_us / 1_000_000)
            else:
                was_denied = not self._reserve()
            self._refuse(was_denied=was_denied)

    def _refuse(self, *, was_denied: bool) -> None:
        """Refuse the callers that can get no slot; a sweep or a callback only at its deadline."""
        now, (free_us, _) = self._now_us(), self._outlook()
        certain_us = min(free_us - 1, now) if self._is_patient else free_us - 1
        last_us = max(certain_us, now) if was_denied else certain_us
        self._let_go([caller for caller in self._queue if caller.deadline_us <= last_us])

    def _reserve(self) -> bool:
        """Reserve a block of slots with one write and hand them out; False after a denial."""
        now, is_granted = self._now_us(), False
        block, latest_us = self._block(now)
        more = len(block) * self._interval_us
        for write in (BUSY, IDLE) if self._was_busy or self._next_us >= now else (IDLE, BUSY):
            values = {":more": more, ":latest": latest_us} if write is BUSY else {":next": now + more}
            is_granted, item = self._item.update(write, {":seconds": now // 1_000_000, ":now": now, **values})
            if item is None:
                pause_us = int(self._clock.jitter(MAX_PAUSE_US / 2, MAX_PAUSE_US))
                self._turn_us = self._failure_us = self._now_us() + pause_us
                return False
            self._next_us, self._hold_us = number(item, "next_us"), number(item, "hold_until") * 1_000_000
            if self._main:
                self._hold_us = max(self._hold_us, self._main.held_until_us())
            self._seen_us = now
            if is_granted or self._next_us > latest_us or self._hold_us > now:
                break
        # Others who kept the item busy are likely to do so still.
        self._was_busy = write is BUSY or not is_granted
        self._take_turn(is_granted=is_granted)
        if is_granted:
            due_us = self._next_us - more - self._tolerance_us
            for place, caller in enumerate(block):
                caller.slot_us = max(now, due_us + place * self._interval_us)
            self._let_go(block)
        return is_granted

    def _block(self, now: int) -> tuple[list[_Caller], int]:
        """The callers to reserve for, at least one, and the latest `next_us` at which their slots are in time."""
        head_us = self._queue[0].deadline_us
        latest_us = (min(head_us, now + self._interval_us) if self._is_patient else head_us) + self._tolerance_us
        # Sweeps that compete ask for one slot: with blocks, one of eight gets 166 slots and another gets 1.
        most = 1 if self._spread_slots >= 1 else self._burst
        free = (latest_us - max(now, self._next_us)) // self._interval_us + 1
        block = [caller for caller in self._queue if caller.deadline_us >= head_us][: max(min(free, most), 1)]
        return block, latest_us - (len(block) - 1) * self._interval_us

    def _take_turn(self, *, is_granted: bool) -> None:
        """Set the time of the next question: when a slot opens for a sweep, later at random if sweeps compete."""
        now, spread, turn_us = self._now_us(), self._spread_slots, 0
        opens_us = self._next_us - self._tolerance_us - (self._interval_us if self._is_patient else 0)
        # Waiting callers pause only if the item denies a slot that it shows as free.
        if self._is_patient or opens_us <= now:
            spread = spread / 2 if is_granted else min(spread + SPREAD_STEP_SLOTS, MAX_SPREAD_SLOTS)
            # A slot that is free after a grant shows unused rate: without this, a sweep alone uses 3 % less of it.
            self._spread_slots = 0.0 if is_granted and opens_us <= now else spread
            pause_us = int(self._clock.jitter(0, self._spread_slots) * self._interval_us)
            turn_us = max(opens_us, now) + pause_us
        self._turn_us = min(max(turn_us, self._hold_us), now + MAX_PAUSE_US)

    def _outlook(self) -> tuple[int, str]:
        """The time before which no slot can be had, and the reason."""
        return max((self._next_us - self._tolerance_us, _FULL), (self._hold_us, _ON_HOLD), (self._failure_us, _FAILED))

    def _now_us(self) -> int:
        return int(self._clock.now() * 1_000_000)


def rate_limiters(settings: Settings, function: Function) -> Callable[[str], RateLimiter]:
    """The rate limiters on the table that `TABLE_NAME` names, each made when it is first asked for by its name."""
    settings.require("table_name")
    # One try: the rate limiter itself decides what it tries again.
    retries = {"mode": "standard", "total_max_attempts": 1}
    client = aws.client("dynamodb", connect_timeout=1, read_timeout=1, retries=retries)
    main = RateLimiter(client, settings, function)
    own = cache(lambda name: RateLimiter(client, settings, function, name=name, main=main))
    return lambda name: main if name == MAIN else own(name)
