"""The state records that an instance wrote last, kept so that their next write needs no other record."""

import threading
from collections import OrderedDict

from stream_state.clock import Clock
from stream_state.domain.merging import StateRecord
from stream_state.domain.targets import Target

MOST_KEPT = 1000


class KeptRecords:
    """Records with the expiry of their items (seconds since 1970), safe to share among threads."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._kept: OrderedDict[Target, tuple[StateRecord, float]] = OrderedDict()
        self._lock = threading.Lock()

    def keep(self, record: StateRecord, expires_at: float | None = None) -> None:
        """Keep a record until its item expires; None: as the one before it, because the write did not put that off."""
        with self._lock:
            _, before = self._kept.pop(record.target, (None, 0.0))
            self._kept[record.target] = record, before if expires_at is None else expires_at
            if len(self._kept) > MOST_KEPT:
                self._kept.popitem(last=False)

    def get(self, target: Target) -> StateRecord | None:
        """The record of a target, if it is kept and its item has not expired."""
        with self._lock:
            record, expires_at = self._kept.get(target, (None, 0.0))
        return record if expires_at > self._clock.now() else None

    def forget(self, target: Target) -> None:
        """Keep the record of a target no more."""
        with self._lock:
            self._kept.pop(target, None)
