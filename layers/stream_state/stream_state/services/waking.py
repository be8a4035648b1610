"""Waking: whoever observes what a workflow waits for answers the workflow."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Self

from stream_state.adapters.table import Table
from stream_state.adapters.wait_list import WaitList, Workflows
from stream_state.clock import CLOCK, Clock
from stream_state.domain.documents import Answer
from stream_state.domain.merging import StateRecord
from stream_state.domain.waits import Wait
from stream_state.errors import StateUnavailable
from stream_state.observability import log_error

WAKING_THREADS = 10


class Waking:
    """Answers the waits whose condition a state record fulfils. The next round of a wait repeats what failed here."""

    def __init__(self, wait_list: WaitList, workflows: Workflows, clock: Clock = CLOCK) -> None:
        self._wait_list = wait_list
        self._workflows = workflows
        self._clock = clock

    @classmethod
    def from_table(cls, table: Table) -> Self:
        """Waking for the waits in a table."""
        return cls(WaitList(table), Workflows())

    def wake(self, answer: Answer, record: StateRecord) -> StateRecord:
        """Answer the waits for a record's target; the record, without its mark if no wait is left."""
        if record.waits_until <= self._clock.now():
            return record
        try:
            waits = self._wait_list.of(record.target)
            with ThreadPoolExecutor(WAKING_THREADS) as pool:
                woken = list(pool.map(lambda wait: self._wake(wait, answer), waits))
        except StateUnavailable as error:
            log_error(error, record.target)
            return record
        return record if False in woken else replace(record, waits_until=0)

    def _wake(self, wait: Wait, answer: Answer) -> bool:
        """Whether a wait is over."""
        if not wait.condition.holds(answer.state):
            return False
        is_answered = self._workflows.answer(wait.token, {**answer.document(), "holds": True})
        if is_answered:
            self._wait_list.remove(answer.target, wait)
        return is_answered
