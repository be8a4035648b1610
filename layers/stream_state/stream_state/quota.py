"""The limit on calls to the vendor: every call reserves a slot before it is made."""

import math
import random
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, Self

from botocore.exceptions import BotoCoreError, ClientError

from stream_state import aws
from stream_state.errors import QuotaExceeded
from stream_state.limit_item import LimitItem, error_code, is_throttle
from stream_state.local_limiter import FULL, MAX_HOLD_SECONDS, LocalLimiter
from stream_state.observability import logger, record
from stream_state.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

type Function = Literal["api", "task", "sweep"]

# The longest pause between two questions of one caller, so that it notices a hold that was lifted.
MAX_PAUSE_SECONDS = 5
_OUTAGE_US = 5_000_000
# A slot that the table confirms so late would crowd those of the next second: another one is asked for, once.
_LATE_US = 200_000
THROTTLED_SECONDS = 0.2
# Slots that a sweep leaves to others after one of its own: more after a denial, fewer after a grant at first try.
MAX_YIELD_SLOTS, YIELD_STEP_SLOTS, YIELD_FACTOR = 64, 0.5, 0.7
_ON_HOLD = "Calls to Volcengine are on hold. Ask again later."
_THROTTLED = "DynamoDB throttles the table that holds the call limit. Ask again later."
_DOWN = "The table that holds the call limit does not answer. Ask again later."


class Limiter(Protocol):
    """Where calls to the vendor get their slots."""

    def acquire(self, deadline: float) -> None:
        """Wait for a slot; raises `QuotaExceeded` if none comes before `deadline` (monotonic seconds)."""

    def hold(self, seconds: float) -> None:
        """Let no call begin for so long, at most `MAX_HOLD_SECONDS`: the vendor throttles."""


@dataclass(slots=True, eq=False)
class _Caller:
    """A waiting thread: its deadline, then a slot, a refusal, or neither if it is to ask again (epoch microseconds)."""

    deadline_us: int
    woken: threading.Event = field(default_factory=threading.Event)
    slot_us: int | None = None
    refusal: QuotaExceeded | None = None


@dataclass(frozen=True, slots=True)
class _Denial:
    """No slot now: why, in how long there may be one, and how long to pause before asking again (microseconds)."""

    detail: str
    free_in_us: float
    pause_us: float


class TableLimiter:
    """GCRA on one DynamoDB item that all processes share; safe to share among threads, which get slots in blocks.

    Calls come earlier than they are due on the item by at most the burst.
    """

    def __init__(
        self,
        client: "DynamoDBClient",
        settings: Settings,
        function: Function,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._item = LimitItem(client, settings.table_name, wall_clock)
        self._function = function
        self._is_sweep = function == "sweep"
        self._burst = settings.rtc_burst
        # Rounded up, so that the rate is never above the one configured.
        self._interval_us = math.ceil(1_000_000 / settings.rtc_qps)
        # A sweep leaves the rest of the burst to those who have somebody waiting.
        self._tolerance_us = (min(self._burst, 2) - 1 if self._is_sweep else self._burst - 1) * self._interval_us
        self._may_go_local = settings.quota_failure_mode == "open"
        self._local = LocalLimiter(settings.rtc_qps / 10, 1, clock, sleep)
        self._clock = clock
        self._wall_clock = wall_clock
        self._sleep = sleep
        self._jitter = jitter
        self._lock = threading.Lock()
        # The first in the queue asks the table for all; the others wait until they have an answer or are the first. The
        # lock guards the queue; what stands below it is changed by the first alone.
        self._queue: list[_Caller] = []
        self._down_until_us = 0
        self._turn_us = 0
        self._yield_slots = 1.0

    @classmethod
    def from_settings(cls, settings: Settings, function: Function) -> Self:
        """The limiter on the table that `TABLE_NAME` names, for one kind of caller."""
        settings.require("table_name")
        # One try: what is tried again is decided here.
        retries = {"mode": "standard", "total_max_attempts": 1}
        return cls(aws.client("dynamodb", connect_timeout=1, read_timeout=1, retries=retries), settings, function)

    def acquire(self, deadline: float) -> None:
        """See `Limiter`; refuses at once, but a sweep only when its deadline has come."""
        started = self._clock()
        was_late = False
        while not (self._may_go_local and self._now_us() < self._down_until_us):
            caller = _Caller(self._now_us() + math.ceil((deadline - self._clock()) * 1_000_000))
            self._queue_up(caller)
            if caller.refusal:
                record("QuotaDenied")
                raise caller.refusal
            if caller.slot_us is None:
                continue
            if not was_late and self._now_us() - caller.slot_us > _LATE_US:
                was_late = True
            elif self._reach(caller.slot_us):
                record("QuotaGranted")
                break
        else:
            self._local.acquire(deadline)
        record("QuotaWait", (self._clock() - started) * 1000, "Milliseconds", function=self._function)

    def hold(self, seconds: float) -> None:
        """See `Limiter`; a longer hold that is in the table stays."""
        until = math.ceil(self._wall_clock() + min(seconds, MAX_HOLD_SECONDS))
        self._local.hold(seconds)
        if self._item.hold(until):
            logger.warning("All calls to Volcengine are on hold.", extra={"hold_until": until})

    def _reach(self, slot_us: int) -> bool:
        """Sleep until a slot; False if calls are on hold by then."""
        if (early_us := slot_us - self._now_us()) > 0:
            self._sleep(early_us / 1_000_000)
        return not self._item.is_on_hold()

    def _queue_up(self, caller: _Caller) -> None:
        """Wait until the caller has its answer; the first in the queue asks for all."""
        with self._lock:
            self._queue.append(caller)
            leads = self._queue[0] is caller
        if not leads:
            caller.woken.wait(max(caller.deadline_us - self._now_us(), 0) / 1_000_000)
        try:
            with self._lock:
                place = self._queue.index(caller) if caller in self._queue else None
            if place == 0:
                self._lead(caller)
            elif place:
                self._refuse(caller, _Denial(FULL, 0, 0))
        finally:
            self._let_go([caller])
            with self._lock:
                if self._queue:
                    self._queue[0].woken.set()

    def _let_go(self, callers: Iterable[_Caller]) -> None:
        with self._lock:
            for caller in callers:
                if caller in self._queue:
                    self._queue.remove(caller)
                caller.woken.set()

    def _lead(self, head: _Caller) -> None:
        """Ask the table until the first in the queue has its answer, after a pause where that is of use."""
        failures = denials = 0
        denial = _Denial(FULL, 0, max(self._turn_us - self._now_us(), 0))
        while True:
            left_us = head.deadline_us - self._now_us()
            pause_us = min(denial.pause_us, MAX_PAUSE_SECONDS * 1_000_000, max(left_us, 0))
            is_late = denial.free_in_us > left_us or (denials > 0 and left_us <= 0)
            if pause_us and (self._is_sweep or not is_late):
                self._sleep(pause_us / 1_000_000)
            if is_late and (not self._is_sweep or pause_us >= left_us):
                return self._refuse(head, denial)
            try:
                found = self._ask(denials)
            except (BotoCoreError, ClientError) as error:
                failures += 1
                found = self._failed(error, failures)
            else:
                failures = 0
            if found is None:
                return None
            denial = found
            denials += 1

    def _ask(self, denials: int) -> _Denial | None:
        """Reserve a block of slots with one write, and hand them out."""
        now = self._now_us()
        if self._item.own_hold_until * 1_000_000 > now:
            return self._denied(denials, now)
        contends = self._yield_slots > 1
        block, latest = self._block(now, 1 if contends or (self._is_sweep and self._item.was_moved) else self._burst)
        due = self._item.reserve(now, len(block) * self._interval_us, latest, is_busy=contends and denials == 0)
        if due is None:
            return self._denied(denials, now)
        if self._is_sweep:
            if denials == 0:
                self._yield_slots = max(self._yield_slots * YIELD_FACTOR, 1)
            # A sweep that is alone waits for so long that one write reserves two slots.
            least = 0.75 if contends or self._item.was_moved else 1.0
            slots = self._yield_slots * self._jitter(least, least + 0.5)
            self._turn_us = self._opens_us() + int(self._interval_us * slots)
        for place, caller in enumerate(caller for caller in block if caller in self._queue):
            caller.slot_us = max(now, due + place * self._interval_us - self._tolerance_us)
        self._let_go(block)
        return None

    def _block(self, now: int, at_most: int) -> tuple[list[_Caller], int]:
        """The callers to reserve for, at least one, and the latest `next_us` at which all their slots are in time."""
        ahead = now + self._interval_us if self._is_sweep else math.inf
        block: list[_Caller] = []
        latest = due = max(now, self._item.next_us)
        with self._lock:
            for place, caller in enumerate(self._queue[:at_most]):
                last = int(min(caller.deadline_us, ahead)) + self._tolerance_us - place * self._interval_us
                if block and last < due:
                    break
                latest = min(last, latest) if block else last
                block.append(caller)
        return block, latest

    def _opens_us(self) -> int:
        """When the next slot may be reserved by a sweep, or begins for the others."""
        return self._item.next_us - self._tolerance_us - (self._interval_us if self._is_sweep else 0)

    def _denied(self, denials: int, asked_us: int) -> _Denial:
        """What the item says after a write that was refused; a wrong guess is put right at once."""
        now = self._now_us()
        scatter = self._jitter(0, 2 * self._interval_us)
        if (held_for := self._item.hold_until * 1_000_000 - now) > 0:
            return _Denial(_ON_HOLD, held_for, held_for + scatter)
        free_in = max(self._opens_us() - now, 0)
        if self._is_sweep and self._opens_us() > asked_us:
            self._yield_slots = min(self._yield_slots + YIELD_STEP_SLOTS, MAX_YIELD_SLOTS)
            return _Denial(FULL, free_in, free_in + scatter)
        return _Denial(FULL, free_in, scatter * denials if denials > 1 else 0)

    def _failed(self, error: Exception, failures: int) -> _Denial | None:
        """A throttled item is a denial; another failure is one after it was tried again."""
        if is_throttle(error):
            free_in = min(THROTTLED_SECONDS * 2**failures, MAX_PAUSE_SECONDS) * 1_000_000
            return _Denial(_THROTTLED, free_in, self._jitter(free_in / 2, free_in))
        if failures == 1:
            return _Denial(_DOWN, 0, 0)
        logger.warning("The table that holds the call limit does not answer.", extra={"error": error_code(error)})
        self._down_until_us = self._now_us() + _OUTAGE_US
        if self._may_go_local:
            self._let_go(list(self._queue))
            return None
        return _Denial(_DOWN, _OUTAGE_US if self._is_sweep else math.inf, _OUTAGE_US)

    def _refuse(self, head: _Caller, denial: _Denial) -> None:
        """Refuse a caller, and all others who would have to wait beyond their deadlines."""
        free_at = self._now_us() + denial.free_in_us
        too_late = self._now_us() if self._is_sweep else free_at
        with self._lock:
            refused = [caller for caller in self._queue if caller is head or caller.deadline_us < too_late]
        for caller in refused:
            beyond_us = _OUTAGE_US if math.isinf(free_at) else max(free_at - caller.deadline_us, 0)
            caller.refusal = QuotaExceeded(denial.detail, retry_after_seconds=beyond_us / 1_000_000)
        self._let_go(refused)

    def _now_us(self) -> int:
        return int(self._wall_clock() * 1_000_000)
