"""The limit on calls to the vendor: every call reserves a slot before it is made."""

import threading
import time
from collections.abc import Callable
from typing import Protocol

from stream_state.errors import QuotaExceeded
from stream_state.observability import record


class Limiter(Protocol):
    """Where calls to the vendor get their slots."""

    def acquire(self, deadline: float) -> None:
        """Wait for a slot; raises `QuotaExceeded` at once if none comes before `deadline` (monotonic seconds)."""


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
        """See `Limiter`."""
        with self._lock:
            now = self._clock()
            slot = max(now, self._next_arrival - self._tolerance)
            if slot > deadline:
                record("QuotaDenied")
                detail = (
                    "No call to Volcengine is free before this request must end. Ask again later, or for fewer targets."
                )
                raise QuotaExceeded(detail, retry_after_seconds=slot - deadline)
            self._next_arrival = max(now, self._next_arrival) + self._interval
        record("QuotaGranted")
        if slot > now:
            self._sleep(slot - now)
