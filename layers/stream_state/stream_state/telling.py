"""Telling the queue what is known, and remembering what it was told."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

from stream_state.errors import DeliveryFailed, StateUnavailable, StreamStateError
from stream_state.lookup import Outcome, Result
from stream_state.model import Known, StreamState
from stream_state.observability import log_error, record
from stream_state.queue import ResultsQueue
from stream_state.settings import Settings
from stream_state.table import StateTable

TELLING_THREADS = 10


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message for the queue, and what is known by it; None for a problem."""

    message: Mapping[str, Any]
    known: Known | None

    @classmethod
    def of(cls, known: Known, answer: StreamState | StreamStateError) -> Self:
        """The message that tells what is known by an answer."""
        source = answer.source if isinstance(answer, StreamState) else "query"
        return cls(known.message(source, answer.rtc_request_id), known)


class Teller:
    """Tells the queue what is known, and writes that it was told: a crash between the two repeats a message."""

    def __init__(self, queue: ResultsQueue, table: StateTable) -> None:
        self._queue = queue
        self._table = table

    @classmethod
    def from_settings(cls, settings: Settings, table: StateTable, timeout_seconds: float = 3) -> Self:
        """A teller as the settings describe it, with the time-out of each request to the queue."""
        return cls(ResultsQueue.from_settings(settings, timeout_seconds), table)

    def tell(self, entries: Sequence[Outgoing], deadline: float) -> list[str | DeliveryFailed]:
        """Send messages; for each, in order, the id that SQS gave it, or why it was not accepted."""
        sent = self._queue.send([entry.message for entry in entries], deadline)
        delivered = [entry for entry, outcome in zip(entries, sent, strict=True) if isinstance(outcome, str)]
        record("StatesDelivered", sum(entry.known is not None for entry in delivered))
        news = [entry.known for entry in delivered if entry.known and entry.known.is_news]
        record("StateChanges", len(news))
        with ThreadPoolExecutor(TELLING_THREADS) as pool:
            for _ in pool.map(self._mark, news):
                pass
        return sent

    def deliver(self, outcomes: Sequence[Outcome], deadline: float) -> list[Result]:
        """Send the answers; for each outcome the message with SQS's `message_id`, or why there is none."""
        sendable = {
            outcome.target: Outgoing.of(outcome.known, outcome.answer)
            for outcome in outcomes
            if isinstance(outcome.answer, StreamState) and isinstance(outcome.known, Known)
        }
        sent = dict(zip(sendable, self.tell(list(sendable.values()), deadline), strict=True))
        results: list[Result] = []
        for outcome in outcomes:
            message_id = sent.get(outcome.target)
            if isinstance(message_id, str):
                results.append({**sendable[outcome.target].message, "message_id": message_id})
            else:
                errors = (message_id, outcome.answer, outcome.known)
                results.append(next(error for error in errors if isinstance(error, StreamStateError)))
        return results

    def _mark(self, known: Known) -> None:
        try:
            self._table.mark_told(known)
        except StateUnavailable as error:
            # Whoever observes the target next tells it again, with the same id.
            log_error(error, known.target)
