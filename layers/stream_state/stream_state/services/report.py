"""The results of a sweep's targets: counted, sent in batches, and summed up."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from stream_state.adapters.queues import MAX_BATCH_ENTRIES
from stream_state.clock import Clock
from stream_state.domain.documents import Answer, Outcome, observed, problem_message
from stream_state.domain.targets import Room, Target
from stream_state.errors import DeliveryFailed, StreamStateError
from stream_state.observability import log_error
from stream_state.services.delivery import Delivery

MAX_FAILURES_SHOWN = 20
# How long a message may wait for others to fill its batch.
MAX_WAIT_SECONDS = 1


@dataclass
class Report:
    """The results of a sweep's targets so far, sent in batches; the failure of a target `is_given` has a message.

    `calls_made`: how many calls the client of the vendor has made.
    """

    delivery: Delivery
    calls_made: Callable[[], int]
    deadline: float
    clock: Clock
    emits_all: bool
    is_given: bool
    asked: int = 0
    unsent: int = 0
    _delivered: int = 0
    _unchanged: int = 0
    _failed: int = 0
    _failures: list[dict[str, Any]] = field(default_factory=list)
    _outbox: dict[Target | Room, Answer | dict[str, Any]] = field(default_factory=dict)
    # When the first of the waiting messages came, and the last outcome.
    _oldest: float = 0
    _last: float = 0

    def __post_init__(self) -> None:
        self._started, self._calls_before = self.clock.monotonic(), self.calls_made()

    def add(self, outcome: Outcome) -> None:
        """Count an outcome, and send its message if it has one."""
        self.asked += 1
        self._last = self.clock.monotonic()
        if isinstance(outcome.merge, StreamStateError):
            self._fail(outcome.target, outcome.merge)
            if self.is_given:
                self.add_problem(outcome.target, outcome.merge)
        elif self.emits_all or outcome.merge.after.is_undelivered:
            self._add(outcome.target, observed(outcome.answer, outcome.merge))
        else:
            self._unchanged += 1
        self.flush_if_old()

    def add_problem(self, target: Target | Room, error: StreamStateError) -> None:
        """Send why a target has no state."""
        self._add(target, problem_message(target, error, self.clock.now_ms()))

    def flush_if_old(self) -> None:
        """Send the waiting messages if the first of them has waited long enough."""
        if self._outbox and self.clock.monotonic() - self._oldest > MAX_WAIT_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Send all waiting messages."""
        outcomes = self.delivery.send(list(self._outbox.values()), self.deadline)
        for (target, message), outcome in zip(self._outbox.items(), outcomes, strict=True):
            is_state = isinstance(message, Answer)
            if isinstance(outcome, DeliveryFailed):
                self.unsent += 1
                if is_state:
                    self._fail(target, outcome)
            elif is_state:
                self._delivered += 1
        self._outbox.clear()

    def summary(self, remaining: int) -> dict[str, Any]:
        """The sweep's return value."""
        seconds, calls = self._last - self._started, self.calls_made() - self._calls_before
        return {
            "targets": self.asked + remaining,
            "delivered": self._delivered,
            "unchanged": self._unchanged,
            "failed": self._failed,
            "failures": self._failures,
            "remaining": remaining,
            "duration_seconds": round(self.clock.monotonic() - self._started, 3),
            "calls_per_second": round(calls / seconds, 1) if seconds > 0 else 0.0,
        }

    def _add(self, target: Target | Room, message: Answer | dict[str, Any]) -> None:
        if not self._outbox:
            self._oldest = self.clock.monotonic()
        # Of a user who was served twice, alone and with the room, the newer message says all that is undelivered.
        self._outbox[target] = message
        if len(self._outbox) >= MAX_BATCH_ENTRIES:
            self.flush()

    def _fail(self, target: Target | Room, error: StreamStateError) -> None:
        self._failed += 1
        if len(self._failures) < MAX_FAILURES_SHOWN:
            log_error(error, target)
            self._failures.append({**target.as_dict(), "problem": error.problem()})
