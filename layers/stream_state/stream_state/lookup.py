"""Stream states of one target, of some, or of many in turn: asked for and remembered."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import batched
from queue import Empty, SimpleQueue
from typing import Any, Self, TypeGuard

from aws_lambda_powertools.utilities.typing import LambdaContext

from stream_state.errors import (
    CredentialsInvalid,
    CredentialsUnavailable,
    QuotaExceeded,
    RtcAccessDenied,
    RtcActionRetired,
    StateUnavailable,
    StreamStateError,
    TargetNotFound,
)
from stream_state.model import Known, StreamState, Target, Until
from stream_state.observability import log_error, logger, record
from stream_state.quota import Function
from stream_state.rtc import MAX_CONCURRENCY, MIN_CALL_SECONDS, RtcClient
from stream_state.settings import Settings
from stream_state.table import MAX_BATCH_KEYS, StateTable
from stream_state.transport import in_background

# How long a sweep may have nothing to take before it is asked whether something waits to be told.
IDLE_SECONDS = 1
# Of how many targets the known states are read at once, before they are asked for.
READ_AHEAD = 25
# How long after its deadline a lookup may still be writing what it was told, or reading what is known instead.
WRITE_SECONDS = 3
# How long a request to the table takes at the very most, with all its tries.
LONGEST_REQUEST_SECONDS = 30


type Result = dict[str, Any] | StreamStateError


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of asking for a target: the answer for who asked, and what is known to tell the queue."""

    target: Target
    answer: StreamState | StreamStateError
    known: Known | StreamStateError
    # False if no call was made, for want of a slot or because every call would fail: its turn is still to come.
    asked: bool = True

    def result(self) -> Result:
        """The answer object, or the error."""
        return self.answer.answer() if isinstance(self.answer, StreamState) else self.answer


class Lookup:
    """Answers for targets from the vendor or from what is known; safe to share among threads."""

    def __init__(
        self,
        rtc: RtcClient,
        table: StateTable,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        *,
        queries: bool = True,
    ) -> None:
        self.queries = queries
        self._rtc = rtc
        self._table = table
        self._clock = clock
        self._wall_clock = wall_clock

    @classmethod
    def from_settings(cls, settings: Settings, table: StateTable, function: Function) -> Self:
        """A lookup as the settings describe it, for the function that is named in the limiter's metrics."""
        return cls(RtcClient.from_settings(settings, function), table, queries=settings.rtc_query == "on")

    def one(self, target: Target, deadline: float, max_age_seconds: int = 0) -> StreamState:
        """The state of a target, known for at most `max_age_seconds`, or else asked for.

        `deadline` in monotonic seconds. Raises the errors of `RtcClient.stream_state`.
        """
        if not self.queries:
            outcome = self.from_table([target], nothing_known(), deadline)[0]
        elif fresh := self._fresh([target], max_age_seconds, deadline):
            return fresh[target].state()
        else:
            outcome = self._ask(deadline, target)
            if isinstance(outcome.answer, RtcActionRetired):
                outcome = self.from_table([target], outcome.answer, deadline)[0]
        if isinstance(outcome.answer, StreamStateError):
            raise outcome.answer
        return outcome.answer

    def some(self, targets: Sequence[Target], deadline: float, max_age_seconds: int = 0) -> list[Outcome]:
        """What came of each target, in the order asked; a target named twice costs one call."""
        if not self.queries:
            return self.from_table(targets, nothing_known(), deadline)
        fresh = self._fresh(targets, max_age_seconds, deadline)
        missing = [target for target in dict.fromkeys(targets) if target not in fresh]
        outcomes = {target: Outcome(target, known.state(), known) for target, known in fresh.items()}
        halt: StreamStateError = not_reached()
        for outcome in filter(None, self.each(missing, deadline)):
            outcomes[outcome.target] = outcome
            if isinstance(outcome.answer, StreamStateError):
                log_error(outcome.answer, outcome.target)
                halt = outcome.answer if concerns_all(outcome.answer) else halt
        if isinstance(halt, RtcActionRetired):
            outcomes |= {outcome.target: outcome for outcome in self.from_table(missing, halt, deadline)}
        return [outcomes.get(target) or Outcome(target, halt, halt, asked=False) for target in targets]

    def until(
        self, target: Target, condition: Until, deadline: float, max_age_seconds: int = 0
    ) -> tuple[StreamState, bool]:
        """The state of a target, and whether it holds what is waited for; an unknown target does not.

        Raises `StreamStateTimeout` when its time is past, even if asking failed in a way that may pass.
        """
        try:
            state = self.one(target, deadline, max_age_seconds)
        except TargetNotFound as error:
            state = self._not_found(target, error)
        except StreamStateError as error:
            if error.retryable and self._wall_clock() >= condition.ends_at:
                raise condition.timeout() from None
            raise
        holds = condition.holds(state)
        if not holds and self._wall_clock() >= condition.ends_at:
            raise condition.timeout()
        return state, holds

    def each(self, targets: Iterable[Target], deadline: float) -> Iterator[Outcome | None]:
        """What came of each target, as it comes, and None now and then while nothing comes.

        Many are asked at once, few are held in memory. Ends early, leaving out the rest, when time is up, and after an
        error that would meet every other target too.
        """
        if self.queries:
            return self._ask_each(targets, deadline)
        batches = batched(targets, MAX_BATCH_KEYS, strict=False)
        return (outcome for batch in batches for outcome in self.from_table(batch, nothing_known(), deadline))

    def _ask_each(self, targets: Iterable[Target], deadline: float) -> Iterator[Outcome | None]:
        asking = _Asking(lambda *about: self._ask(deadline, *about))
        with ThreadPoolExecutor(MAX_CONCURRENCY) as pool:
            under_way = 0
            for target, known in self._with_known(targets, deadline):
                if asking.halt or self._clock() + MIN_CALL_SECONDS > deadline:
                    break
                pool.submit(asking.ask, target, known).add_done_callback(asking.done.put)
                under_way += 1
                if under_way == MAX_CONCURRENCY:
                    yield from asking.next_done()
                    under_way -= 1
            for _ in range(under_way):
                yield from asking.next_done()

    def _with_known(self, targets: Iterable[Target], deadline: float) -> Iterator[tuple[Target, Known | None]]:
        """The targets, each with what is known of it; None if that could not be read."""
        for batch in batched(targets, READ_AHEAD, strict=False):
            try:
                known = self._in_time(partial(self._table.read, batch, to_merge=True), deadline)
            except StateUnavailable as error:
                # Each is read once more when it is written.
                log_error(error)
                known = {}
            yield from ((target, known.get(target)) for target in batch)

    def _ask(
        self,
        deadline: float,
        target: Target,
        known: Known | None = None,
        before_call: Callable[[], None] = lambda: None,
    ) -> Outcome:
        """Ask the vendor, and write what it says into the table; that the target is unknown is an observation too."""
        try:
            observed = self._rtc.stream_state(target, deadline, before_call)
        except StreamStateError as error:
            error.target = target.as_dict()
            if not isinstance(error, TargetNotFound):
                return Outcome(target, error, error)
            return Outcome(target, error, self._remember(self._not_found(target, error), known, deadline))
        after = self._remember(observed, known, deadline)
        if isinstance(after, StateUnavailable):
            return Outcome(target, observed, after)
        return Outcome(target, after.state(observed.source, observed.rtc_request_id), after)

    def from_table(self, targets: Sequence[Target], missing: StreamStateError, deadline: float) -> list[Outcome]:
        """What is known of each target without asking; `missing` where nothing is. Raises `StateUnavailable`."""
        found = self._in_time(partial(self._table.read, targets), deadline + WRITE_SECONDS)
        if isinstance(missing, RtcActionRetired):
            record("RtcActionRetired")
            if found:
                logger.warning("The answer is what is known: Volcengine has withdrawn GetUserStreamState.")
        known = {target: Outcome(target, found[target].state(), found[target]) for target in found}
        return [known.get(target) or Outcome(target, missing, missing) for target in targets]

    def _not_found(self, target: Target, error: TargetNotFound) -> StreamState:
        at_ms = error.observed_at_ms or int(self._wall_clock() * 1000)
        return StreamState.not_found(target, at_ms, error.rtc_request_id)

    def _remember(self, observed: StreamState, known: Known | None, deadline: float) -> Known | StateUnavailable:
        try:
            return self._in_time(partial(self._table.observe, observed, known), deadline + WRITE_SECONDS)
        except StateUnavailable as error:
            log_error(error, observed.target)
            return error

    def _in_time[T](self, request: Callable[[], T], until: float) -> T:
        """What a request to the table gives; `StateUnavailable` if it fails, or goes on at that time."""
        left = max(until - self._clock(), 0)
        if left > LONGEST_REQUEST_SECONDS:
            return request()
        try:
            return in_background(request).result(left)
        except TimeoutError:
            raise StateUnavailable("The table of known states did not answer in time. Try again later.") from None

    def _fresh(self, targets: Iterable[Target], max_age_seconds: int, deadline: float) -> dict[Target, Known]:
        """What is known of those targets whose four media are all known as of `max_age_seconds` ago or later."""
        if not max_age_seconds:
            return {}
        try:
            found = self._in_time(partial(self._table.read, targets), deadline + WRITE_SECONDS)
        except StateUnavailable as error:
            # The vendor can still be asked.
            log_error(error)
            return {}
        oldest_ms = (self._wall_clock() - max_age_seconds) * 1000
        return {target: known for target, known in found.items() if known.state().is_whole_since(oldest_ms)}


class _Asking:
    """Many lookups side by side: what is done, and the error, if any, that all others would meet too."""

    def __init__(self, ask: Callable[[Target, Known | None, Callable[[], None]], Outcome]) -> None:
        self._ask = ask
        self.done: SimpleQueue[Future[Outcome]] = SimpleQueue()
        self.halt: StreamStateError | None = None

    def ask(self, target: Target, known: Known | None) -> Outcome:
        """Ask, unless an error has come meanwhile that this target would meet too."""
        was_halted = False

        def before_call() -> None:
            nonlocal was_halted
            if self.halt:
                was_halted = True
                raise self.halt

        outcome = self._ask(target, known, before_call)
        if concerns_all(outcome.answer):
            self.halt = self.halt or outcome.answer
        return replace(outcome, asked=not (was_halted or isinstance(outcome.answer, QuotaExceeded)))

    def next_done(self) -> Iterator[Outcome | None]:
        """The next outcome, after None for each second that passes without one."""
        while True:
            try:
                yield self.done.get(timeout=IDLE_SECONDS).result()
            except Empty:
                yield None
            else:
                return


def deadline(context: LambdaContext, reserve_seconds: float) -> float:
    """When to stop waiting, in monotonic seconds, so that `reserve_seconds` of the invocation are left to answer."""
    return time.monotonic() + context.get_remaining_time_in_millis() / 1000 - reserve_seconds


def item(target: Target, result: Result) -> dict[str, Any]:
    """A result among several: an error becomes a problem that names its target."""
    return result.problem(**target.as_dict()) if isinstance(result, StreamStateError) else result


def concerns_all(answer: StreamState | StreamStateError) -> TypeGuard[StreamStateError]:
    """Whether every other target would meet the same error, so that asking on is of no use."""
    if isinstance(answer, RtcAccessDenied):
        return answer.refuses_keys
    return isinstance(answer, CredentialsInvalid | CredentialsUnavailable | RtcActionRetired)


def nothing_known() -> TargetNotFound:
    """The error of a target of which nothing is known while no calls are made."""
    return TargetNotFound("Nothing is known of the target, and RTC_QUERY is off: no event has told of it in 24 hours.")


def not_reached() -> QuotaExceeded:
    """The error of a target that was not asked, for lack of time."""
    detail = "The time was up before this target's turn. Ask for fewer targets at once, or allow more time."
    return QuotaExceeded(detail, retry_after_seconds=1)
