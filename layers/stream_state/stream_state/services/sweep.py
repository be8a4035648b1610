"""Sweeps: many targets, asked about in turn at the rate of the limit, and their changes delivered."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

from stream_state.adapters.queues import MAX_BATCH_ENTRIES
from stream_state.adapters.state_store import StateStore
from stream_state.adapters.table import MAX_BATCH_KEYS, Table
from stream_state.adapters.vendor_errors import concerns_every_target
from stream_state.adapters.watch_list import WatchList
from stream_state.clock import CLOCK, Clock
from stream_state.domain.documents import Message, ProblemMessage
from stream_state.domain.merging import Merge
from stream_state.domain.outcomes import Outcome
from stream_state.domain.requests import SweepRequest
from stream_state.domain.targets import Room, Target
from stream_state.errors import DeliveryFailed, RtcActionRetired, StateUnavailable, StreamStateError
from stream_state.observability import log_error, logger, record
from stream_state.services.asking import not_reached
from stream_state.services.delivery import Delivery, message_of
from stream_state.services.lookup import Lookup, withdrawn
from stream_state.services.watch_pass import WatchPass
from stream_state.settings import Settings

MAX_FAILURES_SHOWN = 20
# How long a message may wait for others to fill its batch.
MAX_WAIT_SECONDS = 1


class Sweep:
    """Asks about many targets and delivers their states."""

    def __init__(
        self, lookup: Lookup, delivery: Delivery, store: StateStore, watch_list: WatchList, clock: Clock = CLOCK
    ) -> None:
        self._lookup = lookup
        self._delivery = delivery
        self._store = store
        self._watch_list = watch_list
        self._clock = clock

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """A sweep as the settings describe it."""
        table = Table.from_settings(settings)
        store = StateStore.from_settings(settings, table)
        lookup = Lookup.from_settings(settings, store, "sweep")
        return cls(lookup, Delivery.from_settings(settings, store), store, WatchList(table))

    def run(self, request: SweepRequest, calls_deadline: float, deadline: float) -> dict[str, Any]:
        """Ask until `calls_deadline`, send until `deadline` (monotonic seconds), and sum up.

        Raises `StateUnavailable` if the watch list cannot be read, and `DeliveryFailed` if the queue did not accept
        all messages about given targets, so that the caller of the sweep repeats it.
        """
        report = _Report(self._delivery, deadline, self._clock, emits_all=request.emits_all)
        try:
            if request.targets is None:
                summary = self._watched(report, calls_deadline)
            else:
                summary = self._given(request.targets, report, calls_deadline)
        finally:
            self._delivery.drain(deadline, is_whole=True)
        logger.info("The sweep is done.", extra={name: summary[name] for name in summary if name != "failures"})
        return summary

    def _given(self, targets: Sequence[Target | Room], report: "_Report", calls_deadline: float) -> dict[str, Any]:
        """Sweep given targets; a target that failed or was not reached yields a problem message."""
        # In this order one presence call can serve several users of a room.
        ordered = sorted(targets, key=lambda target: (*target.as_dict().values(),))
        waiting: dict[Target | Room, StreamStateError | None] = dict.fromkeys(ordered)
        missing: StreamStateError = not_reached()

        def left() -> Sequence[Target | Room]:
            waiting.update(dict.fromkeys(waiting))
            return list(waiting)

        for outcome in self._outcomes(left, calls_deadline):
            if outcome is None:
                report.flush_if_old()
            elif isinstance(outcome, Room):
                if waiting[outcome] is None:
                    del waiting[outcome]
            elif isinstance(answer := outcome.answer, StreamStateError) and not outcome.is_asked:
                waiting[outcome.room or outcome.target] = answer
            else:
                if not outcome.room:
                    del waiting[outcome.target]
                report.add_given(outcome)
            if isinstance(outcome, Outcome) and (error := _of_every_target(outcome)):
                missing = error
        report.asking_ends()
        report.add_problems({target: error or missing for target, error in waiting.items()})
        report.flush()
        if report.unsent:
            detail = f"SQS did not accept {report.unsent} of the sweep's messages. Repeat it for these targets."
            raise DeliveryFailed(detail)
        return report.summary(remaining=len(waiting))

    def _watched(self, report: "_Report", calls_deadline: float) -> dict[str, Any]:
        """Pass over the watch list once at most; the next sweep asks again about a target that failed."""
        watch_pass = WatchPass(self._watch_list, self._clock)
        if self._lookup.query == "off":
            report.asking_ends()
            return {**report.summary(remaining=0), "skipped": "RTC_QUERY is off"}
        if not watch_pass.begin():
            report.asking_ends()
            return {**report.summary(remaining=0), "skipped": "another sweep of the watch list is under way"}
        stalest = _Stalest(self._store, self._clock)
        turns, unasked = 0, set[Room]()
        try:
            for outcome in self._outcomes(watch_pass.targets, calls_deadline):
                if outcome is None:
                    report.flush_if_old()
                    continue
                if isinstance(outcome, Room):
                    if outcome not in unasked:
                        turns += 1
                        watch_pass.done(outcome)
                    continue
                stalest.add(outcome, watch_pass.watched_at(outcome.room or outcome.target))
                if not outcome.is_asked:
                    unasked |= {outcome.room} if outcome.room else set()
                    continue
                turns += outcome.room is None
                report.add(outcome)
                if isinstance(outcome.merge, Merge) and outcome.merge.corrects_event:
                    record("StateDrift")
                # A target that failed as every other would have its turn again at the next sweep.
                if not outcome.room and not _of_every_target(outcome):
                    watch_pass.done(outcome.target)
        finally:
            report.asking_ends()
            report.flush()
            watch_pass.end()
        stalest.record()
        watched = self._watch_list.count() if watch_pass.size is None else watch_pass.size
        return report.summary(remaining=max(watched - turns, 0))

    def _outcomes(
        self, targets: Callable[[], Iterable[Target | Room]], deadline: float
    ) -> Iterator[Outcome | Room | None]:
        """What comes of the targets; if the action is withdrawn, presence calls go on with those that are not done."""
        is_withdrawn = False
        for outcome in self._lookup.each(targets(), deadline):
            if isinstance(outcome, Outcome) and isinstance(outcome.answer, RtcActionRetired):
                is_withdrawn = True
            if not is_withdrawn or self._lookup.query == "presence":
                yield outcome
        if is_withdrawn and self._lookup.query == "on":
            withdrawn()
            yield from self._lookup.each(targets(), deadline, by_presence=True)


def _of_every_target(outcome: Outcome) -> StreamStateError | None:
    """The error of an outcome that every other target would meet too."""
    answer = outcome.answer
    return answer if isinstance(answer, StreamStateError) and concerns_every_target(answer) else None


class _Stalest:
    """The age that the states of watched targets had when their turn came."""

    def __init__(self, store: StateStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._oldest_ms: int | None = None
        # The table has the ages of targets that failed; a sample bounds the cost of reading them.
        self._failed: dict[Target, int] = {}

    def add(self, outcome: Outcome, watched_at: int) -> None:
        """Note one target, watched since then (seconds since 1970)."""
        if isinstance(outcome.merge, Merge):
            before = outcome.merge.before
            self._note(max(before.state.observed_at_ms or 0, before.asked_at_ms) or watched_at * 1000)
        elif isinstance(outcome.target, Target) and len(self._failed) < MAX_BATCH_KEYS:
            self._failed[outcome.target] = watched_at

    def record(self) -> None:
        """Record the age of the stalest state, if there was any target at all."""
        try:
            records = self._store.read(self._failed)
        except StateUnavailable:
            records = {}
        for target, watched_at in self._failed.items():
            observed_at_ms = records[target].state.observed_at_ms if target in records else None
            self._note(observed_at_ms or watched_at * 1000)
        if self._oldest_ms is not None:
            record("StalestState", max(self._clock.now() - self._oldest_ms / 1000, 0), "Seconds")

    def _note(self, at_ms: int) -> None:
        self._oldest_ms = at_ms if self._oldest_ms is None else min(at_ms, self._oldest_ms)


class _Report:
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
