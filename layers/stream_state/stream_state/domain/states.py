"""The state that observations add up to: each medium and presence on, off or not known.

Events are ordered among themselves by the vendor's clock, and against queries by `seen_ms`. The skew bounds how far the
two clocks differ and how long a query lags behind the events: a query overrules an event only if it was sent later by
more than the skew.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

from stream_state.domain.observations import Mark, Observations
from stream_state.domain.targets import PRESENT, Medium

SKEW_MS = 5_000
# An end is of one connection, and its user may have a newer one by then: the end proves nothing about a stream or a
# presence that began less than the grace before it. The vendor reports a lost connection about 30 s later.
LEAVE_GRACE_MS = 5_000
LOST_GRACE_MS = 40_000
_GRACE_MS = {"end": 0, "leave": LEAVE_GRACE_MS, "lost": LOST_GRACE_MS}


@dataclass(frozen=True, slots=True)
class Value:
    """A value and when it was observed, in milliseconds since 1970; both None where nothing is known."""

    value: bool | None = None
    at_ms: int | None = None


@dataclass(frozen=True, slots=True)
class State:
    """The four media and presence; `is_contradicted`: an event and a query within the skew disagree."""

    media: Mapping[Medium, Value]
    present: Value
    is_contradicted: bool = False

    @property
    def values(self) -> dict[str, bool | None]:
        """The values of the four media and of `present`."""
        return {**{medium.value: value.value for medium, value in self.media.items()}, PRESENT: self.present.value}

    @property
    def is_known(self) -> bool:
        """Whether any value is known."""
        return any(value is not None for value in self.values.values())

    @property
    def publishing(self) -> bool | None:
        """True if any medium is on, False if all four are off, else None."""
        media = [value.value for value in self.media.values()]
        return True if any(media) else None if None in media else False

    @property
    def observed_at_ms(self) -> int | None:
        """The oldest time of the known media; of presence if no medium is known; None if nothing is known."""
        times = [value.at_ms for value in self.media.values() if value.value is not None]
        if not times and self.present.value is not None:
            times = [self.present.at_ms]
        return min((at_ms for at_ms in times if at_ms is not None), default=None)

    def is_whole_since(self, oldest_ms: float) -> bool:
        """Whether all four media are known, each as of that time or later."""
        return all(value.value is not None for value in self.media.values()) and (self.observed_at_ms or 0) >= oldest_ms


def state_of(observations: Observations, skew_ms: int = SKEW_MS) -> State:
    """The state by all observations: their order and their repeats do not matter."""
    user = _User(observations, skew_ms)
    media, is_contradicted = {}, False
    for medium in Medium:
        media[medium], disagree = user.medium(medium)
        is_contradicted |= disagree
    if on := [value.at_ms or 0 for value in media.values() if value.value]:
        return State(media, Value(value=True, at_ms=max(on)), is_contradicted)
    present, disagree = user.present()
    return State(media, present, is_contradicted or disagree)


def is_end_of_connection(kind: str) -> bool:
    """Whether observations of a kind end one connection, of which a user can have several."""
    return kind in {"leave", "lost"} or kind.endswith(".cut")


# Stands for an observation that was not made: every rule compares times, and this one is long before all others.
_NEVER_MS = -(10**15)
_NEVER = Mark(_NEVER_MS, _NEVER_MS)

# An end of a connection and its grace.
type _Ends = Sequence[tuple[Mark, int]]


@dataclass(frozen=True, slots=True)
class _Verdict:
    """The value by the events, when it was seen, and since when it holds.

    Of a value in doubt `since_ms` is when the latest connection that may have ended began. `unsure_from_ms`: a query
    that says on since then leaves an off in doubt.
    """

    value: bool | None
    seen_ms: int
    since_ms: int
    unsure_from_ms: int = 0
    # The value is None because an end may have been of another connection than that which began then.
    in_doubt: bool = False
    began_ms: int = _NEVER_MS

    @property
    def as_value(self) -> Value:
        """The value that is shown if nothing else is known."""
        return Value() if self == _NOTHING else Value(self.value, self.seen_ms)


# No event says anything.
_NOTHING = _Verdict(None, _NEVER_MS, _NEVER_MS)


class _User:
    """The observations of a user, and what they say."""

    def __init__(self, observations: Observations, skew_ms: int) -> None:
        self._observations = observations
        self._skew_ms = skew_ms
        self._found, self._online, self._absent, self._offline = map(
            self._mark, ("found", "online", "absent", "offline")
        )
        self._login = login = self._mark("login")
        began = Mark(login.seen_ms, min(login.seen_ms, login.at_ms), device=login.device)
        # The latest join; the latest join or start; the latest proof by a query or a call that the user is there.
        self._join = _latest(self._mark("join"), began)
        self._joined = _latest(self._join, *(self._mark(f"{medium}.start") for medium in Medium))
        self._there = _latest(self._found, self._online)
        self._ends = [(mark, grace_ms) for kind, grace_ms in _GRACE_MS.items() for mark in self._marks(kind)]

    def medium(self, medium: Medium) -> tuple[Value, bool]:
        """The value of a medium by events and queries, and whether the two disagree within the skew."""
        event, query = self._by_events(medium), self._mark(f"{medium}.query")
        offline, skew_ms = self._offline, self._skew_ms
        gone = self._absent if self._absent.at_ms > self._there.at_ms else _NEVER
        if query.at_ms < offline.at_ms:
            query = _NEVER
        disagree = False
        if query != _NEVER and query.at_ms - event.seen_ms <= skew_ms:
            if event.value is False and query.value and query.at_ms >= event.unsure_from_ms and gone == _NEVER:
                return Value(None, event.seen_ms), True
            if event.in_doubt and query.value is False and query.at_ms - event.began_ms > skew_ms:
                # The medium was off before the end came, and an end starts nothing.
                return Value(value=False, at_ms=query.at_ms), False
            is_within = event.seen_ms - query.at_ms <= skew_ms
            disagree = is_within and gone == _NEVER and query.value not in (None, event.value)
            query = _NEVER
        if query == _NEVER != offline:
            if offline.at_ms - event.since_ms > skew_ms:
                # A user who is not in the room publishes nothing, unless the user was seen or joined since the call or
                # shortly before it.
                is_back = self._there.at_ms >= offline.at_ms or offline.at_ms - self._joined.seen_ms <= skew_ms
                return Value(value=None if is_back else False, at_ms=offline.at_ms), disagree
            disagree |= event.value is not False and event.seen_ms - offline.at_ms <= skew_ms
        value = event.as_value if query == _NEVER else Value(query.value, query.at_ms)
        if gone == _NEVER or value.value is False or value.at_ms is None:
            return value, disagree
        if query == _NEVER and gone.at_ms - event.since_ms <= skew_ms:
            return value, disagree or event.seen_ms - gone.at_ms <= skew_ms
        # An end in doubt and a user who is gone: the end was of the last connection. Without an end, that the user has
        # gone is no word about the stream.
        is_ended = query == _NEVER and event.in_doubt
        return Value(value=False if is_ended else None, at_ms=gone.at_ms), False

    def present(self) -> tuple[Value, bool]:
        """Presence by events, queries and presence calls: a query proves absence, and ends older proof of it."""
        event, skew_ms = self._ended(self._joined, self._ends_of(self._joined)), self._skew_ms
        gone = _latest(self._absent, self._offline)
        if gone.at_ms > self._there.at_ms:
            if event.value is False or gone.at_ms - event.since_ms > skew_ms:
                return Value(value=False, at_ms=gone.at_ms), False
            return event.as_value, event.seen_ms - gone.at_ms <= skew_ms
        if gone.at_ms - event.since_ms > skew_ms:
            # The user had gone meanwhile: what came before that proves no presence.
            event = _NOTHING
        if self._online.at_ms >= gone.at_ms and self._online.at_ms - event.seen_ms > skew_ms:
            return Value(value=True, at_ms=self._online.at_ms), False
        if event.value is False:
            if self._found.at_ms - event.seen_ms > skew_ms:
                return Value(), False
            # A query that saw a stream perhaps saw that of a newer connection than the one that ended.
            is_unsure = _latest(self._online, self._mark("streaming")).at_ms >= event.unsure_from_ms
            return Value(None, event.seen_ms) if is_unsure else event.as_value, is_unsure
        # A query so soon after an end in doubt settles nothing.
        is_too_soon = event.in_doubt and 0 <= self._there.at_ms - event.seen_ms <= skew_ms
        return event.as_value, is_too_soon

    def _by_events(self, medium: Medium) -> _Verdict:
        """The value of a medium by its start and stop and by the ends."""
        start, stop = self._mark(f"{medium}.start"), self._mark(f"{medium}.stop")
        ends = self._ends_of(start, [(mark, LOST_GRACE_MS) for mark in self._marks(f"{medium}.cut")])
        verdict = self._ended(start, ends)
        if start.at_ms >= stop.at_ms:
            stop = _NEVER
        if stop == _NEVER and verdict.value is not False:
            return verdict
        seen = [mark.seen_ms for mark, _ in ends if mark.at_ms >= max(start.at_ms, stop.at_ms)]
        if seen and self._online.at_ms - max(seen) > self._skew_ms:
            # The user came back, or the end was of another connection.
            return _Verdict(None, max(seen), max(seen))
        # An end and a join after it began a newer connection, of which the stop says nothing.
        if stop == _NEVER or any(stop.at_ms <= mark.at_ms <= self._joined.at_ms for mark, _ in ends):
            return verdict
        off = self._off([(stop, 0)])
        if verdict.value is not False:
            return off
        seen_ms = max(off.seen_ms, verdict.seen_ms)
        return _Verdict(
            value=False,
            seen_ms=seen_ms,
            since_ms=seen_ms,
            unsure_from_ms=max(off.unsure_from_ms, verdict.unsure_from_ms),
        )

    def _ended(self, start: Mark, ends: _Ends) -> _Verdict:
        """On since it began, off by an end after that, or in doubt."""
        joined = self._joined
        newer = [(mark, grace_ms) for mark, grace_ms in ends if mark.at_ms > start.at_ms]
        if not newer:
            return _NOTHING if start == _NEVER else _Verdict(value=True, seen_ms=start.seen_ms, since_ms=start.seen_ms)
        last, _ = max(newer, key=lambda end: end[0].at_ms)
        if joined.at_ms >= last.at_ms:
            # A newer connection, of which this medium has not been observed.
            return _Verdict(None, joined.seen_ms, joined.seen_ms)
        # The latest join began the connection if an end came before it; else the start did.
        began = joined if any(mark.at_ms <= joined.at_ms for mark, _ in newer) else start
        since = joined if began == _NEVER else _latest(began, self._join)
        if sure := [end for end in newer if end[0].at_ms - since.at_ms >= max(end[1], 1)]:
            return self._off(sure)
        return _Verdict(None, last.seen_ms, since.seen_ms, in_doubt=True, began_ms=began.seen_ms)

    def _off(self, ends: _Ends) -> _Verdict:
        """Off by any of the ends, as sure as the surest of them."""
        seen_ms = max(mark.seen_ms for mark, _ in ends)
        # The grace is by one clock, a query by the other.
        unsure_from_ms = max(mark.seen_ms - grace_ms for mark, grace_ms in ends) - self._skew_ms
        return _Verdict(value=False, seen_ms=seen_ms, since_ms=seen_ms, unsure_from_ms=unsure_from_ms)

    def _ends_of(self, start: Mark, cuts: _Ends = ()) -> _Ends:
        """The ends that may be of a connection with such a start.

        If the connection began with the latest login or later, a leave that came more than the skew before the login's
        call was of another connection: this one was still there. If no join came after the start, an end of another
        device within the grace was of another connection too.
        """
        ends, login = self._ends, self._login
        if start.at_ms >= login.seen_ms:
            ends = [
                (mark, grace_ms)
                for mark, grace_ms in ends
                if grace_ms == 0 or mark.at_ms < login.seen_ms or login.at_ms - mark.seen_ms <= self._skew_ms
            ]
        ends = [*ends, *cuts]
        if start.device and self._join.at_ms <= start.at_ms:
            return [
                (mark, grace_ms)
                for mark, grace_ms in ends
                if mark.device in (None, start.device) or not start.at_ms < mark.at_ms < start.at_ms + grace_ms
            ]
        return ends

    def _mark(self, kind: str) -> Mark:
        return self._observations.get(kind, _NEVER)

    def _marks(self, kind: str) -> list[Mark]:
        """The marks of a kind, of all devices."""
        return [mark for name, mark in self._observations.items() if name.partition("@")[0] == kind]


def _latest(*marks: Mark) -> Mark:
    """The latest of some marks; marks of one time are merged."""
    return reduce(Mark.merged, marks)
