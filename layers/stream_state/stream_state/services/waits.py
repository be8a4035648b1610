"""Waits: whether a target fulfils a condition now, and the rounds of a workflow that waits with a task token."""

from typing import Self

from stream_state.adapters.state_store import StateStore
from stream_state.adapters.wait_list import WaitList
from stream_state.clock import CLOCK, Clock
from stream_state.domain.documents import Answer
from stream_state.domain.merging import Merge, StateRecord
from stream_state.domain.observations import not_found
from stream_state.domain.states import state_of
from stream_state.domain.targets import Target
from stream_state.domain.waits import Wait, WaitCondition
from stream_state.errors import RtcActionRetired, StreamStateError, TargetNotFound
from stream_state.observability import log_error, record
from stream_state.services.lookup import Lookup
from stream_state.services.waking import Waking

# A round waits for a slot no longer: its token costs nothing while it waits, and the next round asks again.
SLOT_WAIT_SECONDS = 1


class Waits:
    """Waits for one target."""

    def __init__(
        self,
        lookup: Lookup,
        store: StateStore,
        wait_list: WaitList,
        waking: Waking,
        clock: Clock = CLOCK,
    ) -> None:
        self._lookup = lookup
        self._store = store
        self._wait_list = wait_list
        self._waking = waking
        self._clock = clock

    @classmethod
    def from_lookup(cls, lookup: Lookup, store: StateStore) -> Self:
        """Waits that are kept in the store's table."""
        return cls(lookup, store, WaitList(store.table), Waking.from_table(store.table))

    def check(
        self, target: Target, condition: WaitCondition, deadline: float, max_age_seconds: int = 0
    ) -> tuple[Answer, bool]:
        """The state of a target, and whether it fulfils a wait condition; an unknown target is "not yet".

        Raises `StreamStateTimeout` past the condition's deadline, even if asking failed in a way that may pass.
        """
        outcome = self._lookup.some([target], deadline, max_age_seconds, logs_errors=False)[0]
        is_late = self._clock.now() >= condition.deadline
        answer = outcome.answer
        if isinstance(answer, TargetNotFound):
            merge, at_ms = outcome.merge, answer.observed_at_ms
            state = merge.after.state if isinstance(merge, Merge) else state_of(not_found(at_ms) if at_ms else {})
            answer = Answer(target, state, "query" if at_ms else "table", answer.rtc_request_id)
        if isinstance(answer, StreamStateError):
            raise condition.timeout() if answer.retryable and is_late else answer
        holds = condition.holds(answer.state)
        if is_late and not holds:
            raise condition.timeout()
        return answer, holds

    def begin_round(self, target: Target, wait: Wait, deadline: float) -> None:
        """Keep the token for whoever observes the condition, and ask once; `deadline` in monotonic seconds.

        An answer of the vendor counts for one interval. Raises `StreamStateTimeout` past the wait's deadline, and the
        errors that a later round would meet too.
        """
        if self._clock.now() >= wait.condition.deadline:
            raise wait.condition.timeout()
        interval_seconds = wait.condition.interval_seconds or 0
        until = int(self._clock.now()) + interval_seconds + 1
        # The wait before the mark, and the record after it: a change at the same moment is in the record, or its
        # observer reads the mark and finds the wait.
        self._wait_list.add(target, wait, until)
        state_record = self._store.expect_waits(target, until)
        oldest_ms = self._clock.now_ms() - interval_seconds * 1000 if self._lookup.queries else 0
        answer = Answer(target, state_record.state)
        if wait.condition.holds_since(answer.state, oldest_ms):
            self._waking.wake(answer, state_record)
        elif self._lookup.queries and not answer.state.is_whole_since(oldest_ms):
            try:
                self._ask(state_record, deadline)
            except StreamStateError:
                self._wait_list.remove(target, wait)
                raise
        record("WaitsOpen")

    def _ask(self, state_record: StateRecord, deadline: float) -> None:
        """Ask the vendor: recording the answer wakes the wait if the condition holds. Raises what is not "not yet"."""
        target = state_record.target
        answer = self._lookup.ask(target, deadline, wait_seconds=SLOT_WAIT_SECONDS).answer
        if isinstance(answer, RtcActionRetired):
            answer = self._lookup.from_table([target], answer)[0].answer
            if isinstance(answer, Answer):
                self._waking.wake(answer, state_record)
        if isinstance(answer, StreamStateError) and not isinstance(answer, TargetNotFound):
            if not answer.retryable:
                raise answer
            log_error(answer, target)
