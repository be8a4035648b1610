"""Delivery of state changes to the results queue: send, then write the values that were delivered."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

from stream_state.adapters.queues import ResultsQueue
from stream_state.domain.documents import Answer, Outcome, Result
from stream_state.domain.merging import Merge, StateRecord
from stream_state.errors import DeliveryFailed, StateUnavailable, StreamStateError
from stream_state.observability import add_metric, log_error
from stream_state.services.recording import Recorder
from stream_state.settings import Settings

MARKING_THREADS = 10
# The undelivered changes that one drain takes at once, also within the time of a callback event.
DRAIN_RECORDS = 10


@dataclass
class Delivery:
    """Sends messages, and marks their records as delivered: a crash between the two repeats a message."""

    queue: ResultsQueue
    recorder: Recorder

    @classmethod
    def from_settings(cls, settings: Settings, recorder: Recorder, timeout_seconds: float = 3) -> Self:
        """A delivery as the settings describe it, with the time-out of each request to the queue."""
        return cls(ResultsQueue.from_settings(settings, timeout_seconds), recorder)

    def send(self, messages: Sequence[Answer | Mapping[str, Any]], deadline: float) -> list[str | DeliveryFailed]:
        """Send answers and problems; for each, in order, the id that SQS gave it, or why SQS did not accept it."""
        if not messages:
            return []
        sent = self.queue.send([one.message() if isinstance(one, Answer) else one for one in messages], deadline)
        accepted = [message for message, outcome in zip(messages, sent, strict=True) if isinstance(outcome, str)]
        records = [message.record for message in accepted if isinstance(message, Answer)]
        changed = [record for record in records if record.is_undelivered]
        add_metric("StatesDelivered", len(records))
        add_metric("StateChanges", len(changed))
        with ThreadPoolExecutor(MARKING_THREADS) as pool:
            list(pool.map(self._mark, changed))
        return sent

    def deliver(self, outcomes: Sequence[Outcome], deadline: float) -> list[Result]:
        """Send the answers; for each outcome the message with SQS's `message_id`, or why there is none."""
        messages = {
            outcome.target: outcome.answer
            for outcome in outcomes
            if isinstance(outcome.answer, Answer) and isinstance(outcome.merge, Merge)
        }
        sent = dict(zip(messages, self.send(list(messages.values()), deadline), strict=True))

        def result(outcome: Outcome) -> Result:
            message_id = sent.get(outcome.target)
            if isinstance(message_id, str):
                return {**messages[outcome.target].message(), "message_id": message_id}
            errors = (message_id, outcome.answer, outcome.merge)
            return next(error for error in errors if isinstance(error, StreamStateError))

        return [result(outcome) for outcome in outcomes]

    def drain(self, deadline: float, *, is_whole: bool = False) -> None:
        """Deliver changes that their observers did not deliver, and ask again for rechecks that were lost.

        `is_whole`: the whole list, unless SQS is down; else the oldest changes.
        """
        after: str | None = None
        try:
            while self.recorder.clock.monotonic() < deadline:
                page = self.recorder.store.undelivered(DRAIN_RECORDS, after)
                changed = [listed for listed in page.entries if listed.is_undelivered]
                sent = self.send([Answer(listed) for listed in changed], deadline)
                for listed in page.entries:
                    if not listed.is_undelivered:
                        self._settle(listed)
                after = page.next_key
                is_down = bool(sent) and all(isinstance(to, DeliveryFailed) and to.retryable for to in sent)
                if not is_whole or is_down or after is None:
                    return
        except StreamStateError as error:
            log_error(error)

    def _settle(self, listed: StateRecord) -> None:
        """Take a record off the list that has nothing to deliver, or ask for its recheck again."""
        store, now_ms = self.recorder.store, self.recorder.clock.now_ms()
        if not listed.recheck_at_ms:
            store.mark_delivered(listed)
        elif not store.recheck_after_ms:
            store.set_recheck(listed, 0)
        # The list can be behind the record.
        elif listed.deliver_after_ms <= now_ms:
            # The time comes first: a recheck that cannot be sent then keeps no other change waiting.
            due_ms = now_ms + store.recheck_after_ms
            if store.set_recheck(listed, due_ms):
                self.recorder.recheck(listed.target, due_ms)

    def _mark(self, delivered: StateRecord) -> None:
        try:
            self.recorder.store.mark_delivered(delivered)
        except StateUnavailable as error:
            # The record stays on the list: its message is sent again, with the same id.
            log_error(error, delivered.target)
