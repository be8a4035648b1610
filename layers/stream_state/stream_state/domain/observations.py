"""Observations: what one query or one callback event says of a target, and from when.

Observations are kept by their kind, the latest of each kind. The kinds of a medium are `<medium>.query`,
`<medium>.start`, `<medium>.stop` (the stream was stopped) and `<medium>.cut` (the stream ended with its connection).
The kinds of a user are `join`, `leave` (a connection was closed), `lost` (a connection was lost, or ended for a reason
that is not known), `end` (the room ended, or the user was kicked), `found` and `absent` (a query found the user, or did
not), `streaming` (a query found a medium on), `online` and `offline` (a presence call said that the user is in the
room, or not) and `login` (a presence call named the user's present connection). Ends of connections are kept by device
too, as in `leave@web`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from stream_state.domain.targets import Medium

_RANK = {True: 2, None: 1, False: 0}


@dataclass(frozen=True, slots=True)
class Mark:
    """The time of an observation in milliseconds since 1970, and what it says besides its kind.

    `at_ms` is by the clock of whoever observed: the vendor's for events, ours for queries. `seen_ms` orders events
    against queries: the earlier of the event's time and its first arrival. `device` is None where it is not known. Of a
    `login`, `at_ms` is when the call was sent, and `seen_ms` when the connection began, by the vendor's clock.
    """

    at_ms: int
    seen_ms: int
    value: bool | None = None
    device: str | None = None

    def merged(self, other: "Mark | None") -> "Mark":
        """The later of two marks of one kind; at equal times true beats null beats false."""
        if other is None or other.at_ms < self.at_ms:
            return self
        if other.at_ms > self.at_ms:
            return other
        return Mark(
            self.at_ms,
            min(self.seen_ms, other.seen_ms),
            max(self.value, other.value, key=_RANK.__getitem__),
            self.device if self.device == other.device else None,
        )


type Observations = Mapping[str, Mark]


@dataclass(frozen=True, slots=True)
class QueryResult:
    """The vendor's answer about a target that it found; a medium that the answer leaves out is None."""

    media: Mapping[Medium, bool | None]
    sent_at_ms: int
    rtc_request_id: str | None

    def observations(self) -> Observations:
        """A query speaks of all four media as of the moment it was sent."""
        marks = {
            f"{medium}.query": Mark(self.sent_at_ms, self.sent_at_ms, value) for medium, value in self.media.items()
        }
        more = ("found", "streaming") if any(self.media.values()) else ("found",)
        return {**marks, **dict.fromkeys(more, Mark(self.sent_at_ms, self.sent_at_ms))}


@dataclass(frozen=True, slots=True)
class Presence:
    """The vendor's answer about a room: observations by user id, and those of every other user."""

    users: Mapping[str, Observations]
    others: Observations
    rtc_request_id: str | None

    def of(self, user_id: str) -> Observations:
        """The observations of a user; none if the answer proves nothing of the user."""
        return self.users.get(user_id, self.others)


def online(sent_at_ms: int) -> Observations:
    """The observation of a presence call that listed the user as in the room."""
    return {"online": Mark(sent_at_ms, sent_at_ms)}


def logged_in(sent_at_ms: int, login_ms: int, device: str | None = None) -> Observations:
    """As `online`, with the time at which the user's connection began, by the vendor's clock."""
    return {**online(sent_at_ms), "login": Mark(sent_at_ms, login_ms, device=device)}


def offline(sent_at_ms: int) -> Observations:
    """The observation of a presence call that proves that the user is not in the room."""
    return {"offline": Mark(sent_at_ms, sent_at_ms)}


def absent(sent_at_ms: int) -> Observations:
    """The observation of a query that did not find the user."""
    return {"absent": Mark(sent_at_ms, sent_at_ms)}
