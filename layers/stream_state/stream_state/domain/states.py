"""The state that observations add up to: each medium and presence on, off or not known.

Events are ordered among themselves by the vendor's clock, and against queries by `seen_ms`. The skew bounds how far the
two clocks differ and how long a query lags behind the events: a query overrules an event only if it was sent later by
more than the skew.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

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


@dataclass(frozen=True, slots=True)
class _Verdict:
    """The value by the events; `unsure_from_ms`: a query that says on since then leaves an off in doubt."""

    value: bool | None
    seen_ms: int
    unsure_from_ms: int = 0
    # The value is None because an end may have been of another connection than that which began then (None: none did).
    in_doubt: bool = False
    began_ms: int | None = None
    joined_ms: int | None = None

    @property
    def since_ms(self) -> int:
        """When the value was seen; of a value in doubt, when the latest connection that may have ended began."""
        return self.seen_ms if self.joined_ms is None else self.joined_ms


@dataclass(frozen=True, slots=True)
class _Connections:
    """The latest join, the latest join or start, the ends of connections with their graces, and `online`, `login`."""

    join: Mark | None
    joined: Mark | None
    ends: Sequence[tuple[Mark, int]]
    online: Mark | None
    login: Mark | None
    skew_ms: int

    def after_login(self, start: Mark | None) -> "_Connections":
        """Those of a stream that began with the latest login's connection or later.

        A leave before the skew of the login's call was of another connection: this one was still there.
        """
        login = self.login
        if login is None or start is None or start.at_ms < login.seen_ms:
            return self
        ends = [
            (mark, grace_ms)
            for mark, grace_ms in self.ends
            if grace_ms == 0 or mark.at_ms < login.seen_ms or login.at_ms - mark.seen_ms <= self.skew_ms
        ]
        return replace(self, ends=ends)


@dataclass(frozen=True, slots=True)
class _Absence:
    """What proves that the user has gone: `gone` by a query, `offline` by a presence call."""

    gone: Mark | None
    offline: Mark | None
    # The user was seen, or joined, since the presence call or shortly before it.
    is_back: bool


def is_end_of_connection(kind: str) -> bool:
    """Whether observations of a kind end one connection, of which a user can have several."""
    return kind in {"leave", "lost"} or kind.endswith(".cut")


def state_of(observations: Observations, skew_ms: int = SKEW_MS) -> State:
    """The state by all observations: their order and their repeats do not matter."""
    kinds = ("found", "online", "login", "absent", "offline")
    found, online, login, absent, offline = (observations.get(kind) for kind in kinds)
    began = Mark(login.seen_ms, min(login.seen_ms, login.at_ms), device=login.device) if login else None
    join, there = _latest([observations.get("join"), began]), _latest([found, online])
    joined = _latest([join, *(observations.get(f"{medium}.start") for medium in Medium)])
    marks: dict[str, list[Mark]] = defaultdict(list)
    for kind, mark in observations.items():
        marks[kind.partition("@")[0]].append(mark)
    ends = [(mark, grace_ms) for kind, grace_ms in _GRACE_MS.items() for mark in marks[kind]]
    connections = _Connections(join, joined, ends, online, login, skew_ms)
    is_back = offline is not None and (
        _is_since(there, offline) or (joined is not None and offline.at_ms - joined.seen_ms <= skew_ms)
    )
    absence = _Absence(None if _is_since(there, absent) else absent, offline, is_back)
    media, is_contradicted = {}, False
    for medium in Medium:
        start, stop = (observations.get(f"{medium}.{kind}") for kind in ("start", "stop"))
        cuts = [(mark, LOST_GRACE_MS) for mark in marks[f"{medium}.cut"]]
        of_medium = connections.after_login(start)
        by_events = _medium_by_events(start, stop, replace(of_medium, ends=[*of_medium.ends, *cuts]))
        query = observations.get(f"{medium}.query")
        query = query if offline is None or _is_since(query, offline) else None
        media[medium], disagree = _medium(by_events, query, absence, skew_ms)
        is_contradicted |= disagree
    on = [value for value in media.values() if value.value]
    if on:
        newest = max(value.at_ms or 0 for value in on)
        return State(media, Value(value=True, at_ms=newest), is_contradicted)
    by_events = _ended(joined, connections.after_login(joined))
    gone = _latest([absent, offline])
    if gone and _is_since(there, gone):
        if by_events and gone.at_ms - by_events.since_ms > skew_ms:
            # The user had gone meanwhile: what came before that proves no presence.
            by_events = None
        gone = None
    present, disagree = _present(by_events, found, online, gone, skew_ms)
    streaming = observations.get("streaming")
    if by_events and present.value is False and not gone and streaming and streaming.at_ms >= by_events.unsure_from_ms:
        # A query saw a stream, perhaps of a newer connection than the one that ended.
        present, disagree = Value(None, present.at_ms), True
    return State(media, present, is_contradicted or disagree)


def _medium_by_events(start: Mark | None, stop: Mark | None, connections: _Connections) -> _Verdict | None:
    """The value of a medium by its start and stop and by the ends; None if no event says anything of it."""
    verdict, joined = _ended(start, connections), connections.joined
    stop = None if stop and start and start.at_ms >= stop.at_ms else stop
    since_ms = max(mark.at_ms if mark else 0 for mark in (start, stop))
    seen_ms = max((mark.seen_ms for mark, _ in connections.ends if mark.at_ms >= since_ms), default=None)
    if stop is None and (verdict is None or verdict.value is not False):
        return verdict
    if seen_ms and connections.online and connections.online.at_ms - seen_ms > connections.skew_ms:
        # The user came back, or the end was of another connection.
        return _Verdict(None, seen_ms)
    if stop is None:
        return verdict
    if joined and any(stop.at_ms <= mark.at_ms <= joined.at_ms for mark, _ in connections.ends):
        # An end and a join after it began a newer connection, of which the stop says nothing.
        return verdict
    off = _off([(stop, 0)], connections.skew_ms)
    if verdict is None or verdict.value is not False:
        return off
    return _Verdict(
        value=False,
        seen_ms=max(off.seen_ms, verdict.seen_ms),
        unsure_from_ms=max(off.unsure_from_ms, verdict.unsure_from_ms),
    )


def _ended(start: Mark | None, connections: _Connections) -> _Verdict | None:
    """On since it began, off by an end after that, or in doubt; None if no event says anything."""
    began, joined = start, connections.joined
    newer = [(mark, grace_ms) for mark, grace_ms in connections.ends if start is None or mark.at_ms > start.at_ms]
    if not newer:
        return _Verdict(value=True, seen_ms=start.seen_ms) if start else None
    last, _ = max(newer, key=lambda end: end[0].at_ms)
    if joined and joined.at_ms >= last.at_ms:
        # A newer connection, of which this medium has not been observed.
        return _Verdict(None, joined.seen_ms)
    if joined and any(mark.at_ms <= joined.at_ms for mark, _ in newer):
        # The same, and an end came since.
        began = joined
    since = _latest([began, connections.join]) if began else joined
    sure = [end for end in newer if since is None or end[0].at_ms - since.at_ms >= max(end[1], 1)]
    if sure:
        return _off(sure, connections.skew_ms)
    is_newest = start is not None and since is not None and since.at_ms == start.at_ms
    if start and is_newest and all(mark.device and start.device and mark.device != start.device for mark, _ in newer):
        return _Verdict(value=True, seen_ms=start.seen_ms)
    began_ms, since_ms = (mark.seen_ms if mark else None for mark in (began, since))
    return _Verdict(None, last.seen_ms, in_doubt=True, began_ms=began_ms, joined_ms=since_ms)


def _off(ends: Sequence[tuple[Mark, int]], skew_ms: int) -> _Verdict:
    """Off by any of the ends, as sure as the surest of them."""
    return _Verdict(
        value=False,
        seen_ms=max(mark.seen_ms for mark, _ in ends),
        # The grace is by one clock, a query by the other.
        unsure_from_ms=max(mark.seen_ms - grace_ms for mark, grace_ms in ends) - skew_ms,
    )


def _medium(event: _Verdict | None, query: Mark | None, absence: _Absence, skew_ms: int) -> tuple[Value, bool]:
    """The value of a medium by events and queries, and whether the two disagree within the skew."""
    gone, offline, disagree = absence.gone, absence.offline, False
    if event and query and query.at_ms - event.seen_ms <= skew_ms:
        if event.value is False and query.value and query.at_ms >= event.unsure_from_ms and not gone:
            return Value(None, event.seen_ms), True
        is_newer = event.began_ms is None or query.at_ms - event.began_ms > skew_ms
        if event.in_doubt and query.value is False and is_newer:
            # The medium was off before the end came, and an end starts nothing.
            return Value(value=False, at_ms=query.at_ms), False
        is_within = event.seen_ms - query.at_ms <= skew_ms
        disagree = is_within and not gone and query.value not in (None, event.value)
        query = None
    if offline and query is None:
        if event is None or offline.at_ms - event.since_ms > skew_ms:
            # A user who is not in the room publishes nothing.
            return Value(value=None if absence.is_back else False, at_ms=offline.at_ms), disagree
        disagree |= event.value is not False and event.seen_ms - offline.at_ms <= skew_ms
    value = Value(query.value, query.at_ms) if query else Value(event.value, event.seen_ms) if event else Value()
    if gone is None or value.value is False or (event is None and query is None):
        return value, disagree
    if query is None and event and gone.at_ms - event.since_ms <= skew_ms:
        return value, disagree or event.seen_ms - gone.at_ms <= skew_ms
    # An end in doubt and a user who is gone: the end was of the last connection. Without an end, that the user has gone
    # is no word about the stream.
    is_ended = query is None and event is not None and event.in_doubt
    return Value(value=False if is_ended else None, at_ms=gone.at_ms), False


def _present(
    event: _Verdict | None, found: Mark | None, online: Mark | None, gone: Mark | None, skew_ms: int
) -> tuple[Value, bool]:
    """Presence by events, queries and presence calls: a query proves absence, and ends older proof of it."""
    if gone:
        if event is None or event.value is False or gone.at_ms - event.since_ms > skew_ms:
            return Value(value=False, at_ms=gone.at_ms), False
        return Value(event.value, event.seen_ms), event.seen_ms - gone.at_ms <= skew_ms
    if online and (event is None or online.at_ms - event.seen_ms > skew_ms):
        return Value(value=True, at_ms=online.at_ms), False
    if online and event and event.value is False and online.at_ms >= event.unsure_from_ms:
        return Value(None, event.seen_ms), True
    if event is None or (event.value is False and found and found.at_ms - event.seen_ms > skew_ms):
        return Value(), False
    # A query so soon after an end in doubt settles nothing.
    there = _latest([found, online])
    is_too_soon = event.in_doubt and there is not None and 0 <= there.at_ms - event.seen_ms <= skew_ms
    return Value(event.value, event.seen_ms), is_too_soon


def _is_since(mark: Mark | None, other: Mark | None) -> bool:
    """Whether a mark is there, and at the time of another that is there, or later."""
    return mark is not None and other is not None and mark.at_ms >= other.at_ms


def _latest(marks: Sequence[Mark | None]) -> Mark | None:
    """The latest of the marks that are there; marks of one time are merged."""
    latest = None
    for mark in marks:
        latest = mark.merged(latest) if mark else latest
    return latest
