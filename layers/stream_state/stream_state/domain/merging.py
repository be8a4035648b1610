"""State records: the observations of a target, merged, and the values that were last delivered.

Merging keeps the latest observation of each kind, so the same observations in any order and with any repeats give the
same record.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Self

from stream_state.domain.observations import Mark, Observations
from stream_state.domain.states import SKEW_MS, State, is_end_of_connection, state_of
from stream_state.domain.targets import Target

_QUERY_KINDS = frozenset({"found", "absent", "streaming", "online", "offline", "login"})


@dataclass(frozen=True)
class StateRecord:
    """All observations of a target, and the values of its last delivery; times in milliseconds since 1970.

    `sequence` grows by one with each change of the values. It starts with the time, so that it does not go back when a
    record has expired and is made again. `revision` counts the writes; 0: not written yet. `is_room_end_read`: whether
    the end of the room was read since the record was first written. `recheck_at_ms`: when the last recheck is due.
    `has_waits`: workflows may wait for the target.
    `changed_at_ms`: when the values last changed in the table. `expires_at`: the end of the record's life in seconds
    since 1970; 0: the next write sets it. `deliver_after_ms`: since when anybody may deliver the change.
    """

    target: Target
    observations: Observations = field(default_factory=dict)
    sequence: int = 0
    delivered: Mapping[str, bool | None] | None = None
    delivered_sequence: int = 0
    revision: int = 0
    is_room_end_read: bool = False
    recheck_at_ms: int = 0
    has_waits: bool = False
    changed_at_ms: int = 0
    expires_at: int = 0
    deliver_after_ms: int = 0
    skew_ms: int = SKEW_MS

    @cached_property
    def state(self) -> State:
        """The state by the observations."""
        return state_of(self.observations, self.skew_ms)

    @property
    def is_undelivered(self) -> bool:
        """Whether the last change was not delivered."""
        return self.sequence > self.delivered_sequence

    @property
    def last_event_ms(self) -> int:
        """The time of the latest callback event, by the vendor's clock; 0 without any."""
        return max((mark.at_ms for kind, mark in self.observations.items() if not is_of_query(kind)), default=0)

    @property
    def is_asked_too_soon(self) -> bool:
        """Whether the vendor was last asked within the skew of an event or a login: a doubt may not be settled."""
        kinds = [kind for kind in self.observations if kind == "login" or not is_of_query(kind)]
        last_ms = max((self.observations[kind].seen_ms for kind in kinds), default=0)
        return self.asked_at_ms - last_ms <= self.skew_ms

    @property
    def asked_at_ms(self) -> int:
        """When the vendor was last asked; 0 if never."""
        return max((mark.at_ms for kind, mark in self.observations.items() if is_of_query(kind)), default=0)

    @property
    def media_asked_at_ms(self) -> int:
        """When the vendor was last asked about media; 0 if never."""
        return max((mark.at_ms for kind, mark in self.observations.items() if kind in {"found", "absent"}), default=0)

    def merged(self, observations: Observations, now_ms: int) -> "Merge":
        """The record with more observations."""
        latest = {**self.observations}
        for kind, mark in observations.items():
            kept_as = _kept_as(kind, mark)
            latest[kept_as] = mark.merged(latest.get(kept_as))
        merged = replace(self, observations=latest)
        if not self.sequence:
            # A new target of which nothing is known has no change to deliver.
            delivered_sequence = 0 if merged.state.is_known else now_ms
            first = replace(merged, sequence=now_ms, delivered_sequence=delivered_sequence, changed_at_ms=now_ms)
            return Merge(self, first)
        if merged.state.values == self.state.values:
            return Merge(self, merged)
        return Merge(self, replace(merged, sequence=self.sequence + 1, changed_at_ms=now_ms))

    def with_delivery(self, values: Mapping[str, bool | None], sequence: int) -> Self:
        """The record after the delivery of the values of a sequence."""
        return replace(self, delivered=values, delivered_sequence=sequence)

    def forgotten(self) -> Self:
        """The record after it expired: that nothing is known any more is a change too."""
        sequence = self.sequence + self.state.is_known
        return replace(self, observations={}, sequence=sequence, is_room_end_read=False, recheck_at_ms=0, expires_at=0)


@dataclass(frozen=True)
class Merge:
    """A state record before and after observations were merged into it."""

    before: StateRecord
    after: StateRecord

    @property
    def is_repeat(self) -> bool:
        """Whether all observations were in the record already."""
        return self.before.revision > 0 and self.before.observations == self.after.observations

    @property
    def needs_recheck(self) -> bool:
        """Whether the merge left unknown a value that was known, or met a contradiction within the skew."""
        before, after = self.before.state, self.after.state
        lost = any(before.values[name] is not None and value is None for name, value in after.values.items())
        return lost or (after.is_contradicted and not before.is_contradicted)

    @property
    def asks_recheck(self) -> bool:
        """Whether the write that followed set a new time for a recheck."""
        return self.after.recheck_at_ms not in (0, self.before.recheck_at_ms)

    @property
    def corrects_event(self) -> bool:
        """Whether the merge reversed a value, and callback events have described the target."""
        values = self.after.state.values
        is_turned = any({was, values[name]} == {True, False} for name, was in self.before.state.values.items())
        return is_turned and any(not is_of_query(kind) for kind in self.after.observations)


def _kept_as(kind: str, mark: Mark) -> str:
    """The kind under which a mark is kept: the end of one device's connection must not hide that of another's."""
    return f"{kind}@{mark.device}" if mark.device and is_end_of_connection(kind) else kind


def is_of_query(kind: str) -> bool:
    """Whether observations of a kind come from calls to the vendor, not from callback events."""
    return kind in _QUERY_KINDS or kind.endswith(".query")


def as_lists(observations: Observations) -> dict[str, list[object]]:
    """The observations as JSON stores them."""
    return {kind: [mark.at_ms, mark.seen_ms, mark.value, mark.device] for kind, mark in observations.items()}


def from_lists(stored: Mapping[str, list[object]]) -> Observations:
    """The observations that `as_lists` gave."""
    return {kind: Mark(*values) for kind, values in stored.items()}  # type: ignore[arg-type]  # as `as_lists` wrote them
