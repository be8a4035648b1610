"""Stream states of one target, of several, or of many in turn: asked for and recorded."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import batched
from queue import Empty, SimpleQueue
from typing import Self

from aws_lambda_powertools.utilities.typing import LambdaContext

from stream_state.adapters.rate_limiter import Function
from stream_state.adapters.state_store import StateStore
from stream_state.adapters.table import MAX_BATCH_KEYS
from stream_state.adapters.vendor_errors import concerns_every_target
from stream_state.adapters.vendor_http import MAX_CONCURRENCY
from stream_state.adapters.volcengine import MIN_CALL_SECONDS, VolcengineClient
from stream_state.clock import CLOCK, Clock
from stream_state.domain.documents import Answer
from stream_state.domain.merging import Merge, StateRecord
from stream_state.domain.observations import Observations, not_found
from stream_state.domain.outcomes import Outcome
from stream_state.domain.states import state_of
from stream_state.domain.targets import Target
from stream_state.errors import QuotaExceeded, RtcActionRetired, StateUnavailable, StreamStateError, TargetNotFound
from stream_state.observability import log_error, logger, record
from stream_state.services.recording import Recorder
from stream_state.settings import Settings

# A sweep that waits for outcomes is asked this often whether a message waits to be sent.
IDLE_SECONDS = 1
# The records of so many targets are read at once, before their calls.
READ_AHEAD = 25


class Lookup:
    """Answers for targets from the vendor or from their records; safe to share among threads.

    `max_wait_seconds` bounds the waiting for slots, besides the time that the targets take at the rate `qps`.
    """

    def __init__(
        self,
        rtc: VolcengineClient,
        store: StateStore,
        recorder: Recorder,
        *,
        queries: bool = True,
        max_wait_seconds: float = math.inf,
        qps: float = 1,
        clock: Clock = CLOCK,
    ) -> None:
        self.queries = queries
        self._rtc = rtc
        self._store = store
        self._recorder = recorder
        self._max_wait_seconds = max_wait_seconds
        self._qps = qps
        self._clock = clock

    @classmethod
    def from_settings(cls, settings: Settings, store: StateStore, function: Function) -> Self:
        """A lookup as the settings describe it, for the function that the rate limiter's metrics name."""
        # Somebody waits for the answers of api and task. Sweeps and rechecks wait for their turn, and deliver.
        is_asked = function in ("api", "task")
        return cls(
            VolcengineClient.from_settings(settings, function),
            store,
            Recorder.from_settings(settings, store, delivers=not is_asked),
            queries=settings.rtc_query == "on",
            max_wait_seconds=settings.rtc_max_wait_seconds if is_asked else math.inf,
            qps=settings.rtc_qps,
        )

    def one(self, target: Target, deadline: float, max_age_seconds: int = 0) -> Answer:
        """The state of a target: a record of at most that age, or else asked for.

        `deadline` in monotonic seconds. Raises the errors of `VolcengineClient.stream_state`.
        """
        answer = self.some([target], deadline, max_age_seconds, logs_errors=False)[0].answer
        if isinstance(answer, StreamStateError):
            raise answer
        return answer

    def some(
        self, targets: Sequence[Target], deadline: float, max_age_seconds: int = 0, *, logs_errors: bool = True
    ) -> list[Outcome]:
        """The outcome of each target, in the order asked; a target named twice costs one call.

        Without `logs_errors` the caller raises the errors, and logs them there.
        """
        if not self.queries:
            return self.from_table(targets, without_record())
        outcomes = self._fresh(targets, max_age_seconds)
        missing = [target for target in dict.fromkeys(targets) if target not in outcomes]
        halt: StreamStateError = not_reached()
        asked = [self.ask(missing[0], deadline)] if len(missing) == 1 else self.each(missing, deadline)
        for outcome in filter(None, asked):
            outcomes[outcome.target] = outcome
            if isinstance(outcome.answer, StreamStateError) and logs_errors:
                log_error(outcome.answer, outcome.target)
            if isinstance(outcome.answer, StreamStateError) and concerns_every_target(outcome.answer):
                halt = outcome.answer
        if isinstance(halt, RtcActionRetired):
            outcomes |= {outcome.target: outcome for outcome in self.from_table(missing, halt)}
        return [outcomes.get(target) or Outcome(target, halt, halt, is_asked=False) for target in targets]

    def recheck(self, target: Target, deadline: float) -> Outcome:
        """The outcome of asking once more about a target whose record is in doubt, if queries are on."""
        if not self.queries:
            return Outcome(target, without_record(), without_record())
        return self.ask(target, deadline, is_recheck=True)

    def each(self, targets: Iterable[Target], deadline: float) -> Iterator[Outcome | None]:
        """The outcome of each target, as it comes, and None now and then while none comes.

        Many are asked at once, few are held in memory. Ends early, leaving out the rest, when time is up, and after an
        error that would meet every other target too.
        """
        if not self.queries:
            for batch in batched(targets, MAX_BATCH_KEYS, strict=False):
                yield from self.from_table(batch, without_record())
            return
        asking = _Asking(partial(self.ask, deadline=deadline, wait_seconds=self._wait_seconds(targets)))
        with ThreadPoolExecutor(MAX_CONCURRENCY) as pool:
            under_way = 0
            for target, before in self._with_records(targets):
                if asking.halt or self._clock.monotonic() + MIN_CALL_SECONDS > deadline:
                    break
                pool.submit(asking.ask, target, before).add_done_callback(asking.done.put)
                under_way += 1
                if under_way == MAX_CONCURRENCY:
                    yield from asking.next_done()
                    under_way -= 1
            for _ in range(under_way):
                yield from asking.next_done()

    def from_table(self, targets: Sequence[Target], missing: StreamStateError) -> list[Outcome]:
        """The record of each target without asking; `missing` where there is none. Raises `StateUnavailable`."""
        records = self._store.read(targets)
        if isinstance(missing, RtcActionRetired):
            record("RtcActionRetired")
            if records:
                logger.warning("The answer is the last known state: Volcengine has withdrawn GetUserStreamState.")
        found = {target: _unasked(found) for target, found in records.items()}
        return [found.get(target) or Outcome(target, missing, missing) for target in targets]

    def _wait_seconds(self, targets: Iterable[Target]) -> float:
        count = len(targets) if isinstance(targets, Sequence) else 0
        return self._max_wait_seconds + count / self._qps

    def _with_records(self, targets: Iterable[Target]) -> Iterator[tuple[Target, StateRecord | None]]:
        """The targets, each with its record; None if the record could not be read."""
        for batch in batched(targets, READ_AHEAD, strict=False):
            try:
                records = self._store.read(batch, to_merge=True)
            except StateUnavailable as error:
                # The refused write brings each record.
                log_error(error)
                records = {}
            yield from ((target, records.get(target)) for target in batch)

    def ask(
        self,
        target: Target,
        deadline: float,
        before: StateRecord | None = None,
        before_call: Callable[[], None] = lambda: None,
        *,
        wait_seconds: float | None = None,
        is_recheck: bool = False,
    ) -> Outcome:
        """Ask the vendor and record the answer; that the target is unknown is an observation too.

        `wait_seconds` bounds the waiting for a slot.
        """
        wait_seconds = self._wait_seconds([target]) if wait_seconds is None else wait_seconds
        try:
            result = self._rtc.stream_state(target, deadline, max_wait_seconds=wait_seconds, before_call=before_call)
        except TargetNotFound as error:
            absent = not_found(error.observed_at_ms or self._clock.now_ms())
            merge = self._observe(target, absent, before, error.rtc_request_id, is_recheck=is_recheck)
            return Outcome(target, error, merge)
        except StreamStateError as error:
            return Outcome(target, error, error, is_asked=not isinstance(error, QuotaExceeded))
        request_id = result.rtc_request_id
        merge = self._observe(target, result.observations(), before, request_id, is_recheck=is_recheck)
        state = merge.after.state if isinstance(merge, Merge) else state_of(result.observations())
        return Outcome(target, Answer(target, state, "query", request_id), merge)

    def _observe(
        self,
        target: Target,
        observations: Observations,
        before: StateRecord | None,
        rtc_request_id: str | None,
        *,
        is_recheck: bool,
    ) -> Merge | StateUnavailable:
        try:
            return self._recorder.observe(
                target, observations, before, source="query", rtc_request_id=rtc_request_id, is_recheck=is_recheck
            )
        except StateUnavailable as error:
            log_error(error, target)
            return error

    def _fresh(self, targets: Iterable[Target], max_age_seconds: int) -> dict[Target, Outcome]:
        """The outcomes of those targets whose four media are all known as of `max_age_seconds` ago or later."""
        if not max_age_seconds:
            return {}
        try:
            records = self._store.read(targets)
        except StateUnavailable as error:
            # The vendor can still be asked.
            log_error(error)
            return {}
        oldest_ms = self._clock.now_ms() - max_age_seconds * 1000
        return {target: _unasked(found) for target, found in records.items() if found.state.is_whole_since(oldest_ms)}


class _Asking:
    """Many lookups side by side: the finished ones, and the error, if any, that all others would meet too."""

    def __init__(self, ask: Callable[..., Outcome]) -> None:
        self._ask = ask
        self.done: SimpleQueue[Future[Outcome]] = SimpleQueue()
        self.halt: StreamStateError | None = None

    def ask(self, target: Target, before: StateRecord | None) -> Outcome:
        """Ask, unless an error has come meanwhile that this target would meet too."""
        was_halted = False

        def before_call() -> None:
            nonlocal was_halted
            if self.halt:
                was_halted = True
                raise self.halt

        outcome = self._ask(target, before=before, before_call=before_call)
        if isinstance(outcome.answer, StreamStateError) and concerns_every_target(outcome.answer):
            self.halt = self.halt or outcome.answer
        return replace(outcome, is_asked=outcome.is_asked and not was_halted)

    def next_done(self) -> Iterator[Outcome | None]:
        """The next outcome, after None for each second that passes without one."""
        while True:
            try:
                yield self.done.get(timeout=IDLE_SECONDS).result()
            except Empty:
                yield None
            else:
                return


def deadline_of(context: LambdaContext, reserve_seconds: float) -> float:
    """The monotonic time that leaves `reserve_seconds` of the invocation."""
    return CLOCK.monotonic() + context.get_remaining_time_in_millis() / 1000 - reserve_seconds


def without_record() -> TargetNotFound:
    """The error of a target without a record while no calls are made."""
    return TargetNotFound("The target has no record, and RTC_QUERY is off: no event named it in the last 24 hours.")


def not_reached() -> QuotaExceeded:
    """The error of a target that was not asked, for lack of time."""
    detail = "The time was up before this target's turn. Ask for fewer targets at once, or allow more time."
    return QuotaExceeded(detail, retry_after_seconds=1)


def _unasked(state_record: StateRecord) -> Outcome:
    answer = Answer(state_record.target, state_record.state)
    return Outcome(state_record.target, answer, Merge(state_record, state_record))
