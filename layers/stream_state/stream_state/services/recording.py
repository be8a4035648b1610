"""Recording observations: into the state record, with a recheck where they leave doubt; and waking who waits."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Self

from stream_state.adapters.queues import RetryQueue
from stream_state.adapters.state_store import StateStore
from stream_state.adapters.wait_list import WaitList, Workflows
from stream_state.clock import Clock
from stream_state.domain.documents import Answer, Source
from stream_state.domain.merging import Merge, StateRecord
from stream_state.domain.observations import Observations
from stream_state.domain.targets import Target
from stream_state.domain.waits import Wait
from stream_state.errors import DeliveryFailed, StateUnavailable
from stream_state.observability import log_error
from stream_state.settings import Settings

WAKING_THREADS = 10
# Waits that are not answered in this time are left to their next round: what the observer delivers comes after them.
WAKING_SECONDS = 1


@dataclass
class Recorder:
    """Records observations, asks for rechecks, and wakes who waits."""

    store: StateStore
    retry_queue: RetryQueue | None
    workflows: Workflows = field(default_factory=Workflows)

    @classmethod
    def from_settings(cls, settings: Settings, store: StateStore) -> Self:
        """A recorder that sends rechecks if the stack has a retry queue."""
        retry_queue = RetryQueue.from_settings(settings) if settings.callback_retry_queue_url else None
        return cls(store, retry_queue)

    @property
    def wait_list(self) -> WaitList:
        """The waits in the store's table."""
        return WaitList(self.store.table)

    @property
    def clock(self) -> Clock:
        """The clock of the store."""
        return self.store.table.clock

    def observe(
        self,
        target: Target,
        observations: Observations,
        before: StateRecord | None = None,
        *,
        source: Source,
        rtc_request_id: str | None = None,
        recheck_due_ms: int = 0,
        is_room_end: bool = False,
    ) -> Merge:
        """Merge observations as the store does, and wake who waits; raises `StateUnavailable`."""
        merge = self.store.observe(target, observations, before, recheck_due_ms=recheck_due_ms, is_room_end=is_room_end)
        if merge.asks_recheck:
            self.recheck(target, merge.after.recheck_at_ms)
        if not merge.after.has_waits:
            return merge
        return replace(merge, after=self._wake(Answer(merge.after, source, rtc_request_id)))

    def recheck(self, target: Target, due_ms: int) -> None:
        """Ask for a recheck that is due at a time, if the stack has a retry queue."""
        try:
            if self.retry_queue:
                self.retry_queue.recheck(target, due_ms)
        except DeliveryFailed as error:
            # The record is on the list with its recheck, which is sent again when the list is drained.
            log_error(error, target)

    def answer(self, wait: Wait, answer: Answer) -> bool:
        """Answer one wait, and remove it; False if Step Functions failed. Raises `StateUnavailable`."""
        is_answered = self.workflows.answer(wait.token, {**answer.document(), "holds": True})
        if is_answered:
            self.wait_list.remove(answer.target, wait)
        return is_answered

    def _wake(self, answer: Answer) -> StateRecord:
        """Answer the waits whose condition is fulfilled; the record, without its mark if no wait is left.

        The next round of a wait repeats what failed here.
        """
        record = answer.record
        deadline = self.clock.monotonic() + WAKING_SECONDS

        def wake(wait: Wait) -> bool:
            is_over = wait.condition.holds(record.state, wait.since_ms)
            return is_over and self.clock.monotonic() < deadline and self.answer(wait, answer)

        try:
            with ThreadPoolExecutor(WAKING_THREADS) as pool:
                woken = list(pool.map(wake, self.wait_list.of(record.target)))
            return record if False in woken else self.store.unmark_waits(record)
        except StateUnavailable as error:
            log_error(error, record.target)
            return record
