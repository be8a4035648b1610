"""Sweeps: many targets, asked about in turn at the rate of the limit, and their changes delivered."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from stream_state.adapters.state_store import StateStore
from stream_state.adapters.table import Table
from stream_state.adapters.watch_list import WatchList
from stream_state.domain.documents import Outcome
from stream_state.domain.requests import SweepRequest
from stream_state.domain.targets import Room, Target, sort_key
from stream_state.errors import DeliveryFailed, RtcActionRetired, StreamStateError
from stream_state.observability import logger
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
        lookup = Lookup.from_settings(settings, StateStore.from_settings(settings, table, delivers=True), "sweep")
        return cls(lookup, Delivery.from_settings(settings, lookup.recorder), WatchList(table))

    def run(self, request: SweepRequest, calls_deadline: float, deadline: float) -> dict[str, Any]:
        """Ask until `calls_deadline`, send until `deadline` (monotonic seconds), and sum up.

        Raises `StateUnavailable` if the watch list cannot be read, and `DeliveryFailed` if the queue did not accept
        all messages about given targets, so that the caller of the sweep repeats it.
        """
        clock, is_given = self.lookup.recorder.clock, request.targets is not None
        rtc = self.lookup.rtc
        report = Report(self.delivery, lambda: rtc.calls_made, deadline, clock, request.emits_all, is_given)
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
        given = _Given(dict.fromkeys(sorted(targets, key=sort_key)))
        self._ask(given, report, calls_deadline)
        if retired := given.retired():
            # The presence calls are withdrawn too.
            for outcome in self.lookup.from_table(list(retired), next(iter(retired.values()))):
                del given.waiting[outcome.target]
                report.add(outcome)
        for target, error in given.waiting.items():
            report.add_problem(target, error or given.missing)
        report.flush()
        if report.unsent:
            detail = f"SQS did not accept {report.unsent} of the sweep's messages. Repeat it for these targets."
            raise DeliveryFailed(detail)
        return report.summary(remaining=len(given.waiting))

    def _watched(self, report: Report, calls_deadline: float) -> dict[str, Any]:
        """Pass over the watch list once at most; the next sweep asks again about a target that failed."""
        watch_pass = WatchPass(self.watch_list, asks_media=self.lookup.query == "on")
        if self.lookup.query == "off":
            return {**report.summary(remaining=0), "skipped": "RTC_QUERY is off"}
        if not watch_pass.begin():
            return {**report.summary(remaining=0), "skipped": "another sweep of the watch list is under way"}
        try:
            self._ask(watch_pass, report, calls_deadline)
        finally:
            report.flush()
            watch_pass.end()
        return report.summary(watch_pass.remaining())

    def _ask(self, asked: "_Given | WatchPass", report: Report, deadline: float) -> None:
        """Report what comes of targets; a room is not done if one of its users was not asked about."""
        unasked = set[Room | None]()
        for came in self._outcomes(asked.targets, deadline):
            if came is None:
                report.flush_if_old()
                asked.keep()
            elif isinstance(came, Room):
                if came not in unasked:
                    asked.done(came)
            elif asked.accepts(came):
                report.add(came)
                if not came.room:
                    asked.done(came.target, error_of_all(came))
                elif error_of_all(came):
                    unasked.add(came.room)
            else:
                unasked.add(came.room)

    def _outcomes(self, targets: Callable[[], Iterable[Target | Room]], deadline: float) -> Iterator[Came]:
        """What comes of the targets; if the action is withdrawn, presence calls go on with those that are not done."""
        is_withdrawn = False
        for came in self.lookup.each(targets(), deadline):
            if isinstance(came, Outcome) and isinstance(error_of_all(came), RtcActionRetired):
                is_withdrawn = self.lookup.query == "on"
            if came is None or not is_withdrawn:
                yield came
        if is_withdrawn:
            withdrawn()
            yield from self.lookup.each(targets(), deadline, query="presence")


@dataclass
class _Given:
    """The given targets that wait for an answer, with the error that they met; `missing`: of those not reached."""

    waiting: dict[Target | Room, StreamStateError | None]
    missing: StreamStateError = field(default_factory=not_reached)

    def targets(self) -> Sequence[Target | Room]:
        """The targets that wait, whatever they met before."""
        self.waiting = dict.fromkeys(self.waiting)
        return list(self.waiting)

    def keep(self) -> None:
        """Given targets need no lease."""

    def accepts(self, outcome: Outcome) -> bool:
        """Whether an outcome is an answer, or a failure that nothing else can answer."""
        self.missing = error_of_all(outcome) or self.missing
        if outcome.is_asked and (isinstance(outcome.target, Room) or not isinstance(outcome.error, RtcActionRetired)):
            return True
        self.waiting[outcome.room or outcome.target] = outcome.error
        return False

    def retired(self) -> dict[Target, StreamStateError]:
        """The users who wait because the vendor has withdrawn an action."""
        waiting = ((target, error or self.missing) for target, error in self.waiting.items())
        users = ((target, error) for target, error in waiting if isinstance(target, Target))
        return {target: error for target, error in users if isinstance(error, RtcActionRetired)}

    def done(self, target: Target | Room, _: StreamStateError | None = None) -> None:
        """A target waits no more, also if it failed."""
        del self.waiting[target]
