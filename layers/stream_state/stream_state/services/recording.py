"""Recording observations: into the state record, with a recheck where they leave doubt; and waking who waits."""

from dataclasses import replace
from typing import Self

from stream_state.adapters.queues import RetryQueue
from stream_state.adapters.state_store import StateStore
from stream_state.domain.documents import Answer, Source
from stream_state.domain.merging import Merge, StateRecord
from stream_state.domain.observations import Observations
from stream_state.domain.targets import Target
from stream_state.errors import DeliveryFailed
from stream_state.observability import log_error
from stream_state.services.waking import Waking
from stream_state.settings import Settings


class Recorder:
    """Records observations; `delivers`: the function delivers the changes that it records."""

    def __init__(self, store: StateStore, waking: Waking, retry_queue: RetryQueue | None, *, delivers: bool) -> None:
        self._store = store
        self._waking = waking
        self._retry_queue = retry_queue
        self._delivers = delivers

    @classmethod
    def from_settings(cls, settings: Settings, store: StateStore, *, delivers: bool) -> Self:
        """A recorder that sends rechecks if the stack has a retry queue."""
        retry_queue = RetryQueue.from_settings(settings) if settings.callback_retry_queue_url else None
        return cls(store, Waking.from_store(store), retry_queue, delivers=delivers)

    def observe(
        self,
        target: Target,
        observations: Observations,
        before: StateRecord | None = None,
        *,
        source: Source,
        rtc_request_id: str | None = None,
        is_recheck: bool = False,
    ) -> Merge:
        """Merge observations into the record of a target, and wake who waits; raises `StateUnavailable`."""
        merge = self._store.observe(target, observations, before, delivers=self._delivers, is_recheck=is_recheck)
        if merge.asks_recheck and self._retry_queue:
            try:
                self._retry_queue.recheck(target)
            except DeliveryFailed as error:
                # The record is on the list with its recheck, which is sent again when the list is drained.
                log_error(error, target)
        answer = Answer(target, merge.after.state, source, rtc_request_id)
        return replace(merge, after=self._waking.wake(merge.after, answer))
