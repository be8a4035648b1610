"""The results of a sweep's targets: counted, sent in batches, and summed up."""

from collections.abc import Mapping
from typing import Any

from stream_state.adapters.queues import MAX_BATCH_ENTRIES
from stream_state.clock import Clock
from stream_state.domain.documents import Message, ProblemMessage
from stream_state.domain.outcomes import Outcome
from stream_state.domain.targets import Room, Target
from stream_state.errors import DeliveryFailed, StreamStateError
from stream_state.observability import log_error
from stream_state.services.delivery import Delivery, message_of

MAX_FAILURES_SHOWN = 20
# How long a message may wait for others to fill its batch.
MAX_WAIT_SECONDS = 1


class Report:
    """The results of a sweep's targets so far, sent in batches."""

    def __init__(self, delivery: Delivery, deadline: float, clock: Clock, *, emits_all: bool) -> None:
        self._delivery = delivery
        self._deadline = deadline
        self._clock = clock
        self._emits_all = emits_all
        self._started = clock.monotonic()
        self._asking_seconds = 0.0
        self._oldest = 0.0
        self._outbox: list[Message | ProblemMessage] = []
        self._failures: list[dict[str, Any]] = []
        self._delivered = self._unchanged = self._failed = 0
        self.asked = self.unsent = 0

    def add(self, outcome: Outcome) -> None:
        """Count an outcome, and send its message if it has one."""
        self.asked += 1
        if isinstance(outcome.merge, StreamStateError):
            self._fail(outcome.target, outcome.merge)
        elif self._emits_all or outcome.merge.after.is_undelivered:
            self._add(message_of(outcome.merge.after, outcome.answer))
        else:
            self._unchanged += 1
        self.flush_if_old()

    def add_given(self, outcome: Outcome) -> None:
        """As `add`, for a target that was given: a failure has a message too."""
        self.add(outcome)
        if isinstance(outcome.merge, StreamStateError):
            self.add_problems({outcome.target: outcome.merge})

    def add_problems(self, errors: Mapping[Target | Room, StreamStateError]) -> None:
        """Send why targets have no state."""
        for target, error in errors.items():
            self._add(ProblemMessage(target, error, self._clock.now_ms()))

    def asking_ends(self) -> None:
        """Take the time: the rest is delivery."""
        self._asking_seconds = self._clock.monotonic() - self._started

    def flush_if_old(self) -> None:
        """Send the waiting messages if the first of them has waited long enough."""
        if self._outbox and self._clock.monotonic() - self._oldest > MAX_WAIT_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Send all waiting messages."""
        outcomes = self._delivery.send(self._outbox, self._deadline)
        for message, outcome in zip(self._outbox, outcomes, strict=True):
            is_state = isinstance(message, Message)
            if isinstance(outcome, DeliveryFailed):
                self.unsent += 1
                if is_state:
                    self._fail(message.target, outcome)
            elif is_state:
                self._delivered += 1
        self._outbox.clear()

    def summary(self, remaining: int) -> dict[str, Any]:
        """The sweep's return value."""
        return {
            "targets": self.asked + remaining,
            "delivered": self._delivered,
            "unchanged": self._unchanged,
            "failed": self._failed,
            "failures": self._failures,
            "remaining": remaining,
            "duration_seconds": round(self._clock.monotonic() - self._started, 3),
            "calls_per_second": round(self.asked / self._asking_seconds, 1) if self._asking_seconds else 0.0,
        }

    def _add(self, message: Message | ProblemMessage) -> None:
        if isinstance(message, Message):
            # A user who was served twice, alone and with the room: the newer message says all that is undelivered.
            self._outbox = [other for other in self._outbox if other.target != message.target]
        if not self._outbox:
            self._oldest = self._clock.monotonic()
        self._outbox.append(message)
        if len(self._outbox) >= MAX_BATCH_ENTRIES:
            self.flush()

    def _fail(self, target: Target | Room, error: StreamStateError) -> None:
        self._failed += 1
        if len(self._failures) < MAX_FAILURES_SHOWN:
            log_error(error, target)
            self._failures.append({**target.as_dict(), "problem": error.problem()})
