"""The call limit within one process: for one machine, and for a function whose table of the shared limit fails."""

import threading
import time
from collections.abc import Callable

from stream_state.errors import QuotaExceeded
from stream_state.observability import record

MAX_HOLD_SECONDS = 60
FULL = "No call to Volcengine is free before this request must end. Ask again later, or for fewer targets."


class LocalLimiter:
    """Generic cell rate algorithm (GCRA) within one process: `qps` slots a second, at most `burst` at once."""

    def __init__(
        self,
        qps: float,
        burst: int,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._interval = 1 / qps
        self._tolerance = (burst - 1) / qps
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._next_arrival = clock()

    def acquire(self, deadline: float) -> None:
        """See `Limiter`; refuses at once."""
        with self._lock:
            now = self._clock()
            slot = max(now, self._next_arrival - self._tolerance)
            if slot > deadline:
                record("QuotaDenied")
                raise QuotaExceeded(FULL, retry_after_seconds=slot - deadline)
            self._next_arrival = max(now, self._next_arrival) + self._interval
        record("QuotaGranted")
        if slot > now:
            self._sleep(slot - now)

    def hold(self, seconds: float) -> None:
        """See `Limiter`; slots that were given out before stay valid."""
        with self._lock:
            free_at = self._clock() + min(seconds, MAX_HOLD_SECONDS)
            self._next_arrival = max(self._next_arrival, free_at + self._tolerance)
