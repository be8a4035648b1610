"""Many targets, one after another at the rate of the limit, each told to the queue."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from stream_state.errors import DeliveryFailed, RtcActionRetired, StateUnavailable, StreamStateError
from stream_state.lookup import Lookup, Outcome, concerns_all, not_reached
from stream_state.model import Known, Target, parse_targets, problem_message
from stream_state.observability import log_error, logger, record
from stream_state.queue import MAX_BATCH_ENTRIES
from stream_state.settings import Settings
from stream_state.sweep_round import SweepRound
from stream_state.table import MAX_BATCH_KEYS, StateTable
from stream_state.telling import Outgoing, Teller
from stream_state.validation import invalid, parse_object
from stream_state.watch_list import WatchList

MAX_TARGETS = 5_000
MAX_FAILURES_SHOWN = 20
# For how long a message may wait for others to be sent with.
MAX_WAIT_SECONDS = 1
EMIT = ("all", "changes")


@dataclass(frozen=True, slots=True)
class SweepRequest:
    """What a sweep is to do: the given targets, or None for the watched ones."""

    targets: Sequence[Target] | None
    emit: str

    @classmethod
    def parse(cls, event: object, app_ids: Sequence[str]) -> Self:
        """The request in an event: bare, or the detail of an EventBridge event. Raises `InvalidTarget`."""
        if isinstance(event, Mapping) and {"source", "detail-type", "detail"} <= event.keys():
            event = _detail(event)
        request = parse_object(event, {"room_id", "user_id", "app_id", "targets", "emit"}, "the event")
        single = request.keys() & {"room_id", "user_id", "app_id"}
        if single and "targets" in request:
            raise invalid("the event", "must hold either targets or room_id and user_id, not both")
        targets = None
        if single:
            targets = [Target.parse(request, app_ids, more_keys={"emit"})]
        elif "targets" in request:
            targets = parse_targets(request["targets"], app_ids, MAX_TARGETS)
        emit = request.get("emit", "all" if targets else "changes")
        if emit not in EMIT:
            raise invalid("emit", "must be all or changes")
        return cls(targets, emit)


def _detail(event: Mapping[str, Any]) -> object:
    """The detail of an EventBridge event; one that a schedule sends without input is empty, as object or as text."""
    detail = event["detail"]
    if isinstance(detail, str) and detail.strip() == "{}":
        detail = {}
    names_targets = isinstance(detail, Mapping) and detail.keys() & {"targets", "room_id", "user_id"}
    if not names_targets and not (detail == {} and event["source"] in ("aws.scheduler", "aws.events")):
        raise invalid("the event's detail", "must name targets, or be empty in an event of a schedule")
    return detail


class Sweep:
    """Asks for many targets and tells the queue."""

    def __init__(
        self,
        lookup: Lookup,
        teller: Teller,
        table: StateTable,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._lookup = lookup
        self._teller = teller
        self._table = table
        self._watch_list = WatchList(table)
        self._clock = clock
        self._wall_clock = wall_clock

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """A sweep as the settings describe it."""
        table = StateTable.from_settings(settings)
        return cls(Lookup.from_settings(settings, table, "sweep"), Teller.from_settings(settings, table), table)

    def run(self, request: SweepRequest, calls_deadline: float, deadline: float) -> dict[str, Any]:
        """Ask until `calls_deadline`, send until `deadline` (monotonic seconds), and sum up.

        Raises `StateUnavailable` if the watch list cannot be read, and `DeliveryFailed` if the queue did not accept
        all messages about given targets, so that whoever invoked the sweep repeats it.
        """
        report = _Report(self._teller, request.emit, deadline, self._clock, self._wall_clock)
        if request.targets is None:
            summary = self._watched(report, calls_deadline)
        else:
            summary = self._given(request.targets, report, calls_deadline)
        logger.info("The sweep is done.", extra={name: summary[name] for name in summary if name != "failures"})
        return summary

    def _given(self, targets: Sequence[Target], report: "_Report", calls_deadline: float) -> dict[str, Any]:
        """Sweep given targets; one that failed or was not reached is told as a problem."""
        waiting: dict[Target, StreamStateError | None] = dict.fromkeys(targets)
        missing: StreamStateError = not_reached()
        for outcome in self._lookup.each(list(waiting), calls_deadline):
            if outcome is None:
                report.flush_if_old()
                continue
            if concerns_all(outcome.answer):
                missing = outcome.answer
            if isinstance(outcome.answer, StreamStateError) and (
                not outcome.asked or isinstance(outcome.answer, RtcActionRetired)
            ):
                waiting[outcome.target] = outcome.answer
                continue
            del waiting[outcome.target]
            report.take_given(outcome)
        report.asking_ends()
        if isinstance(missing, RtcActionRetired):
            for outcome in self._lookup.from_table(list(waiting), missing, calls_deadline):
                report.take_given(outcome)
            waiting.clear()
        for target, error in waiting.items():
            report.add_problem(target, error or missing)
        report.flush()
        if report.unsent:
            detail = f"SQS did not accept {report.unsent} of the sweep's messages. Repeat it for these targets."
            raise DeliveryFailed(detail)
        return report.summary(remaining=len(waiting))

    def _watched(self, report: "_Report", calls_deadline: float) -> dict[str, Any]:
        """Sweep the watch list, once round at most; what failed is asked again by the next sweep."""
        sweep_round = SweepRound(self._watch_list, self._clock)
        if not self._lookup.queries:
            report.asking_ends()
            return {**report.summary(remaining=0), "skipped": "RTC_QUERY is off"}
        if not sweep_round.begin():
            report.asking_ends()
            return {**report.summary(remaining=0), "skipped": "another sweep of the watch list is under way"}
        stalest = _Stalest(self._table, self._wall_clock)
        try:
            for outcome in self._lookup.each(sweep_round.targets(), calls_deadline):
                if outcome is None:
                    report.flush_if_old()
                    continue
                stalest.take(outcome, sweep_round.watched_at(outcome.target))
                if not outcome.asked:
                    continue
                report.take(outcome)
                if isinstance(outcome.known, Known) and outcome.known.corrects_event:
                    record("StateDrift")
                # One that failed as every other would have its turn again at the next sweep.
                if not concerns_all(outcome.answer):
                    sweep_round.done(outcome.target)
        finally:
            report.asking_ends()
            report.flush()
            sweep_round.end()
        stalest.tell()
        watched = self._watch_list.count() if sweep_round.size is None else sweep_round.size
        return report.summary(remaining=max(watched - report.asked, 0))


class _Stalest:
    """How old what is known of watched targets had become when their turn came."""

    def __init__(self, table: StateTable, wall_clock: Callable[[], float]) -> None:
        self._table = table
        self._wall_clock = wall_clock
        self._oldest_ms: int | None = None
        # Of those that failed the table knows; a sample bounds what that costs.
        self._failed: dict[Target, int] = {}

    def take(self, outcome: Outcome, watched_at: int) -> None:
        """Take note of one target, watched since then (seconds since 1970)."""
        if isinstance(outcome.known, Known):
            self._note(outcome.known.was_observed_at_ms or watched_at * 1000)
        elif len(self._failed) < MAX_BATCH_KEYS:
            self._failed[outcome.target] = watched_at

    def tell(self) -> None:
        """Record the age of the stalest, if there was any target at all."""
        try:
            known = self._table.read(self._failed)
        except StateUnavailable:
            known = {}
        for target, watched_at in self._failed.items():
            observed_at_ms = known[target].state().observed_at_ms if target in known else None
            self._note(observed_at_ms or watched_at * 1000)
        if self._oldest_ms is not None:
            record("StalestState", max(self._wall_clock() - self._oldest_ms / 1000, 0), "Seconds")

    def _note(self, at_ms: int) -> None:
        self._oldest_ms = at_ms if self._oldest_ms is None else min(at_ms, self._oldest_ms)


class _Report:
    """What became of a sweep's targets so far, told to the queue in batches."""

    def __init__(
        self,
        teller: Teller,
        emit: str,
        deadline: float,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        self._teller = teller
        self._emit = emit
        self._deadline = deadline
        self._clock = clock
        self._wall_clock = wall_clock
        self._started = clock()
        self._asking_seconds = 0.0
        self._oldest = 0.0
        self._outbox: list[Outgoing] = []
        self._failures: list[dict[str, Any]] = []
        self._delivered = self._unchanged = self._failed = 0
        self.asked = self.unsent = 0

    def take(self, outcome: Outcome) -> None:
        """Count an outcome, and tell it if it is to be told."""
        self.asked += 1
        if isinstance(outcome.known, StreamStateError):
            self._fail(outcome.target, outcome.known)
        elif self._emit == "changes" and not outcome.known.is_news:
            self._unchanged += 1
        else:
            self._add(Outgoing.of(outcome.known, outcome.answer))
        self.flush_if_old()

    def take_given(self, outcome: Outcome) -> None:
        """As `take`, for a target that was given: a failure is told too."""
        self.take(outcome)
        if isinstance(outcome.known, StreamStateError):
            self.add_problem(outcome.target, outcome.known)

    def add_problem(self, target: Target, error: StreamStateError) -> None:
        """Tell why nothing is known of a target."""
        self._add(Outgoing(problem_message(target, error, int(self._wall_clock() * 1000)), None))

    def asking_ends(self) -> None:
        """Take the time: what comes now is telling only."""
        self._asking_seconds = self._clock() - self._started

    def flush_if_old(self) -> None:
        """Send what waits if it has waited long enough for others to be sent with."""
        if self._outbox and self._clock() - self._oldest > MAX_WAIT_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Send all that waits."""
        outcomes = self._teller.tell(self._outbox, self._deadline)
        for outgoing, outcome in zip(self._outbox, outcomes, strict=True):
            if isinstance(outcome, DeliveryFailed):
                self.unsent += 1
                if outgoing.known:
                    self._fail(outgoing.known.target, outcome)
            elif outgoing.known:
                self._delivered += 1
        self._outbox.clear()

    def summary(self, remaining: int) -> dict[str, Any]:
        """What the sweep returns."""
        return {
            "targets": self.asked + remaining,
            "delivered": self._delivered,
            "unchanged": self._unchanged,
            "failed": self._failed,
            "failures": self._failures,
            "remaining": remaining,
            "duration_seconds": round(self._clock() - self._started, 3),
            "calls_per_second": round(self.asked / self._asking_seconds, 1) if self._asking_seconds else 0.0,
        }

    def _add(self, outgoing: Outgoing) -> None:
        if not self._outbox:
            self._oldest = self._clock()
        self._outbox.append(outgoing)
        if len(self._outbox) >= MAX_BATCH_ENTRIES:
            self.flush()

    def _fail(self, target: Target, error: StreamStateError) -> None:
        self._failed += 1
        if len(self._failures) < MAX_FAILURES_SHOWN:
            log_error(error, target)
            self._failures.append({**target.as_dict(), "problem": error.problem()})
