"""Sweeps: many targets, asked about in turn at the rate of the limit, and their changes delivered."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Self

from stream_state.adapters.state_store import StateStore
from stream_state.adapters.table import MAX_BATCH_KEYS, Table
from stream_state.adapters.vendor_errors import concerns_every_target
from stream_state.adapters.watch_list import WatchList
from stream_state.clock import CLOCK, Clock
from stream_state.domain.merging import Merge
from stream_state.domain.outcomes import Outcome
from stream_state.domain.requests import SweepRequest
from stream_state.domain.targets import Room, Target, sort_key
from stream_state.errors import DeliveryFailed, RtcActionRetired, StateUnavailable, StreamStateError
from stream_state.observability import logger, record
from stream_state.services.asking import not_reached
from stream_state.services.delivery import Delivery
from stream_state.services.lookup import Lookup, withdrawn
from stream_state.services.report import Report
from stream_state.services.watch_pass import WatchPass
from stream_state.settings import Settings


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
        report = Report(self._delivery, deadline, self._clock, emits_all=request.emits_all)
        try:
            if request.targets is None:
                summary = self._watched(report, calls_deadline)
            else:
                summary = self._given(request.targets, report, calls_deadline)
        finally:
            self._delivery.drain(deadline, is_whole=True)
        logger.info("The sweep is done.", extra={name: summary[name] for name in summary if name != "failures"})
        return summary

    def _given(self, targets: Sequence[Target | Room], report: Report, calls_deadline: float) -> dict[str, Any]:
        """Sweep given targets; a target that failed or was not reached yields a problem message."""
        given = _Given(targets)
        for outcome in self._outcomes(given.left, calls_deadline):
            if isinstance(outcome, Outcome) and given.is_answered(outcome):
                report.add_given(outcome)
            elif isinstance(outcome, Room):
                given.end(outcome)
            else:
                report.flush_if_old()
        report.asking_ends()
        if isinstance(given.missing, RtcActionRetired):
            # The presence calls are withdrawn too.
            users = [target for target in given.waiting if isinstance(target, Target)]
            for outcome in self._lookup.from_table(users, given.missing):
                del given.waiting[outcome.target]
                report.add_given(outcome)
        report.add_problems({target: error or given.missing for target, error in given.waiting.items()})
        report.flush()
        if report.unsent:
            detail = f"SQS did not accept {report.unsent} of the sweep's messages. Repeat it for these targets."
            raise DeliveryFailed(detail)
        return report.summary(remaining=len(given.waiting))

    def _watched(self, report: Report, calls_deadline: float) -> dict[str, Any]:
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


class _Given:
    """The given targets that wait for an answer, with the error that they met, and the error of those not reached."""

    def __init__(self, targets: Sequence[Target | Room]) -> None:
        ordered = sorted(targets, key=sort_key)
        self.waiting: dict[Target | Room, StreamStateError | None] = dict.fromkeys(ordered)
        self.missing: StreamStateError = not_reached()

    def left(self) -> Sequence[Target | Room]:
        """The targets that wait, whatever they met before."""
        self.waiting = dict.fromkeys(self.waiting)
        return list(self.waiting)

    def is_answered(self, outcome: Outcome) -> bool:
        """Whether an outcome is an answer, or a failure that nothing else can answer."""
        answer = outcome.answer
        self.missing = _of_every_target(outcome) or self.missing
        if isinstance(answer, StreamStateError) and (not outcome.is_asked or isinstance(answer, RtcActionRetired)):
            self.waiting[outcome.room or outcome.target] = answer
            return False
        if not outcome.room:
            del self.waiting[outcome.target]
        return True

    def end(self, room: Room) -> None:
        """All users of a room have come: it waits no more, unless one of them was not asked about."""
        if self.waiting[room] is None:
            del self.waiting[room]


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
