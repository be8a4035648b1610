"""Sweeps: many targets, asked about in turn at the rate of the limit, and their changes delivered."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from stream_state.adapters.state_store import StateStore
from stream_state.adapters.table import MAX_BATCH_KEYS, Table
from stream_state.adapters.watch_list import WatchList
from stream_state.domain.documents import Outcome
from stream_state.domain.merging import Merge, StateRecord
from stream_state.domain.requests import SweepRequest
from stream_state.domain.targets import Room, Target, sort_key
from stream_state.errors import DeliveryFailed, RtcActionRetired, StateUnavailable, StreamStateError
from stream_state.observability import logger, record
from stream_state.services.asking import Came, error_of_all, not_reached
from stream_state.services.delivery import Delivery
from stream_state.services.lookup import Lookup, withdrawn
from stream_state.services.report import Report
from stream_state.services.watch_pass import WatchPass
from stream_state.settings import Settings


@dataclass
class Sweep:
    """Asks about many targets and delivers their states."""

    lookup: Lookup
    delivery: Delivery
    watch_list: WatchList

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """A sweep as the settings describe it."""
        table = Table.from_settings(settings)
        store = StateStore.from_settings(settings, table)
        lookup = Lookup.from_settings(settings, store, "sweep")
        return cls(lookup, Delivery.from_settings(settings, lookup.recorder), WatchList(table))

    def run(self, request: SweepRequest, calls_deadline: float, deadline: float) -> dict[str, Any]:
        """Ask until `calls_deadline`, send until `deadline` (monotonic seconds), and sum up.

        Raises `StateUnavailable` if the watch list cannot be read, and `DeliveryFailed` if the queue did not accept
        all messages about given targets, so that the caller of the sweep repeats it.
        """
        report = Report(self.delivery, deadline, self.lookup.clock, request.emits_all, request.targets is not None)
        try:
            if request.targets is None:
                summary = self._watched(report, calls_deadline)
            else:
                summary = self._given(request.targets, report, calls_deadline)
        finally:
            self.delivery.drain(deadline, is_whole=True)
        logger.info("The sweep is done.", extra={name: summary[name] for name in summary if name != "failures"})
        return summary

    def _given(self, targets: Sequence[Target | Room], report: Report, calls_deadline: float) -> dict[str, Any]:
        """Sweep given targets; a target that failed or was not reached yields a problem message."""
        # Those that wait for an answer, with the error that kept them from it.
        waiting: dict[Target | Room, StreamStateError | None] = dict.fromkeys(sorted(targets, key=sort_key))
        missing = self._ask_given(waiting, report, calls_deadline)
        if isinstance(missing, RtcActionRetired):
            # The presence calls are withdrawn too.
            users = [target for target in waiting if isinstance(target, Target)]
            for outcome in self.lookup.from_table(users, missing):
                del waiting[outcome.target]
                report.add(outcome)
        for target, error in waiting.items():
            report.add_problem(target, error or missing)
        report.flush()
        if report.unsent:
            detail = f"SQS did not accept {report.unsent} of the sweep's messages. Repeat it for these targets."
            raise DeliveryFailed(detail)
        return report.summary(remaining=len(waiting))

    def _ask_given(
        self, waiting: dict[Target | Room, StreamStateError | None], report: Report, calls_deadline: float
    ) -> StreamStateError:
        """Report the targets that are answered, and leave those that wait; the error of those not reached."""
        missing: StreamStateError = not_reached()

        def left() -> Sequence[Target | Room]:
            waiting.update(dict.fromkeys(waiting))
            return list(waiting)

        for came in self._outcomes(left, calls_deadline):
            if came is None:
                report.flush_if_old()
            elif isinstance(came, Room):
                if waiting[came] is None:
                    del waiting[came]
            else:
                missing = error_of_all(came) or missing
                if isinstance(came.answer, RtcActionRetired) or not came.is_asked:
                    waiting[came.room or came.target] = came.error
                    continue
                report.add(came)
                if not came.room:
                    del waiting[came.target]
        return missing

    def _watched(self, report: Report, calls_deadline: float) -> dict[str, Any]:
        """Pass over the watch list once at most; the next sweep asks again about a target that failed."""
        watch_pass = WatchPass(self.watch_list, report.clock)
        if self.lookup.query == "off":
            return {**report.summary(remaining=0), "skipped": "RTC_QUERY is off"}
        if not watch_pass.begin():
            return {**report.summary(remaining=0), "skipped": "another sweep of the watch list is under way"}
        stalest = _Stalest(self.lookup.store)
        turns, unasked = 0, set[Room | None]()
        try:
            for came in self._outcomes(watch_pass.targets, calls_deadline):
                if came is None:
                    report.flush_if_old()
                    watch_pass.keep()
                elif isinstance(came, Room):
                    if came not in unasked:
                        turns += 1
                        watch_pass.done(came)
                else:
                    stalest.add(came, watch_pass.watched_at(came.room or came.target))
                    if not came.is_asked:
                        unasked.add(came.room)
                        continue
                    turns += came.room is None
                    report.add(came)
                    if isinstance(came.merge, Merge) and came.merge.corrects_event:
                        record("StateDrift")
                    # A target that failed as every other would have its turn again at the next sweep.
                    if not came.room and not error_of_all(came):
                        watch_pass.done(came.target)
        finally:
            report.flush()
            watch_pass.end()
        stalest.record()
        watched = self.watch_list.count() if watch_pass.size is None else watch_pass.size
        return report.summary(remaining=max(watched - turns, 0))

    def _outcomes(self, targets: Callable[[], Iterable[Target | Room]], deadline: float) -> Iterator[Came]:
        """What comes of the targets; if the action is withdrawn, presence calls go on with those that are not done."""
        is_withdrawn = False
        for came in self.lookup.each(targets(), deadline):
            if isinstance(came, Outcome) and isinstance(came.answer, RtcActionRetired):
                is_withdrawn = self.lookup.query == "on"
            if not is_withdrawn:
                yield came
        if is_withdrawn:
            withdrawn()
            yield from self.lookup.each(targets(), deadline, query="presence")


@dataclass
class _Stalest:
    """The age that the states of watched targets had when their turn came; times in milliseconds since 1970."""

    store: StateStore
    oldest_ms: float = float("inf")
    # The table has the ages of targets that failed; a sample bounds the cost of reading them.
    failed: dict[Target, int] = field(default_factory=dict)

    def add(self, outcome: Outcome, watched_at: int) -> None:
        """Note one target, watched since then (seconds since 1970)."""
        if isinstance(outcome.merge, Merge):
            self._note(outcome.merge.before, watched_at)
        elif isinstance(outcome.target, Target) and len(self.failed) < MAX_BATCH_KEYS:
            self.failed[outcome.target] = watched_at

    def record(self) -> None:
        """Record the age of the stalest state, if there was any target at all."""
        try:
            records = self.store.read(self.failed)
        except StateUnavailable:
            records = {}
        for target, watched_at in self.failed.items():
            self._note(records.get(target), watched_at)
        if self.oldest_ms < float("inf"):
            record("StalestState", max(self.store.table.clock.now() - self.oldest_ms / 1000, 0), "Seconds")

    def _note(self, last: StateRecord | None, watched_at: int) -> None:
        at_ms = max(last.state.observed_at_ms or 0, last.asked_at_ms) if last else 0
        self.oldest_ms = min(at_ms or watched_at * 1000, self.oldest_ms)
