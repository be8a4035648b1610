"""The only source of time, pauses and chance, so that tests can own all of them."""

import random
import time

from aws_lambda_powertools.utilities.typing import LambdaContext


class Clock:
    """Wall time, monotonic time, sleep and jitter of the machine."""

    def now(self) -> float:
        """Seconds since 1970."""
        return time.time()

    def now_ms(self) -> int:
        """Milliseconds since 1970."""
        return int(self.now() * 1000)

    def monotonic(self) -> float:
        """Seconds of a clock that never goes back; deadlines are times of it."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Pause the calling thread."""
        time.sleep(seconds)

    def jitter(self, low: float, high: float) -> float:
        """A random number from `low` to `high`."""
        return random.uniform(low, high)  # noqa: S311 (pauses need no secret)


CLOCK = Clock()


def deadline_of(context: LambdaContext, reserve_seconds: float) -> float:
    """The monotonic time that leaves `reserve_seconds` of the invocation."""
    return CLOCK.monotonic() + context.get_remaining_time_in_millis() / 1000 - reserve_seconds
