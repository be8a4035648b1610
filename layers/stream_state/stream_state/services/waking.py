"""Waking: whoever observes what a workflow waits for answers the workflow."""

from concurrent.futures import ThreadPoolExecutor
from typing import Self

from stream_state.adapters.state_store import StateStore
from stream_state.adapters.wait_list import WaitList, Workflows
from stream_state.domain.documents import Answer
from stream_state.domain.merging import StateRecord
from stream_state.domain.waits import Wait
from stream_state.errors import StateUnavailable
from stream_state.observability import log_error

WAKING_THREADS = 10
# Waits that are not answered in this time are left to their next round: what the observer delivers comes after them.
WAKING_SECONDS = 1


class Waking:
    """Answers the waits whose condition a state record fulfils. The next round of a wait repeats what failed here."""

    def __init__(self, store: StateStore, wait_list: WaitList, workflows: Workflows) -> None:
        self._store = store
        self._wait_list = wait_list
        self._workflows = workflows
        self._clock = store.table.clock

    @classmethod
    def from_store(cls, store: StateStore) -> Self:
        """Waking for the waits in the table of a store."""
        return cls(store, WaitList(store.table), Workflows())

    def wake(self, record: StateRecord, answer: Answer) -> StateRecord:
        """Answer the waits for a record's target; the record, without its mark if no wait is left."""
        if not record.has_waits:
            return record
        deadline = self._clock.monotonic() + WAKING_SECONDS

        def wake(wait: Wait) -> bool:
            return wait.is_over(answer.state) and self._clock.monotonic() < deadline and self.answer(wait, answer)

        try:
            with ThreadPoolExecutor(WAKING_THREADS) as pool:
                woken = list(pool.map(wake, self._wait_list.of(record.target)))
            return record if False in woken else self._store.end_waits(record)
        except StateUnavailable as error:
            log_error(error, record.target)
            return record

    def answer(self, wait: Wait, answer: Answer) -> bool:
        """Answer one wait, and remove it; False if Step Functions failed. Raises `StateUnavailable`."""
        is_answered = self._workflows.answer(wait.token, {**answer.document(), "holds": True})
        if is_answered:
            self._wait_list.remove(answer.target, wait)
        return is_answered
