"""Who is in which room: the users to look at, each with its record and what a presence call said of the user."""

import math
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import batched

from stream_state.adapters.state_store import StateStore
from stream_state.adapters.table import entries_of
from stream_state.adapters.vendor_errors import concerns_action
from stream_state.adapters.volcengine import MAX_USERS, VolcengineClient
from stream_state.domain.documents import Outcome
from stream_state.domain.merging import StateRecord
from stream_state.domain.observations import Observations, Presence
from stream_state.domain.parsing import invalid
from stream_state.domain.targets import PRESENT, Room, Target
from stream_state.errors import QuotaExceeded, StateUnavailable, StreamStateError
from stream_state.observability import log_error
from stream_state.services.in_order import completed, in_order

# The records of so many targets are read at once, before their calls.
READ_AHEAD = 25
# Rooms that are asked about at once: enough for 40 calls a second that take 0.4 s each.
ROOMS_AT_ONCE = 16
# The most users of a room that are held in memory, and served by one presence call.
GROUP_USERS = 1000
_NOTHING = Presence({}, {}, None)


@dataclass(frozen=True, slots=True)
class Member:
    """A user to look at: the record if it was read, and what a presence call said; `room` if all of it is asked for.

    `recheck_due_ms`: the due time of the recheck that asks about the user; 0 if it is no recheck.
    """

    target: Target
    before: StateRecord | None = None
    presence: Observations = field(default_factory=dict)
    rtc_request_id: str | None = None
    room: Room | None = None
    recheck_due_ms: int = 0


@dataclass(frozen=True, slots=True)
class _Group:
    """What one presence call serves: users, of `room` if there is a call, and all of the room if `is_whole`."""

    room: Room | None
    is_whole: bool
    users: list[Target] = field(default_factory=list)


type Step = Member | Outcome | Room | None
type _Said = Presence | StreamStateError


@dataclass(frozen=True)
class Rooms:
    """Asks who is in rooms, by the `query` of the settings.

    With `presence` a presence call is made for users too, one for those of a room that follow one another, and with
    `off` none at all. A room is refused that has more than `most` users.
    """

    rtc: VolcengineClient
    store: StateStore
    deadline: float
    query: str
    wait_seconds: float
    most: float = math.inf
    # By whether the call is about a whole room: the error that every such call would meet.
    _refusals: dict[bool, StreamStateError] = field(default_factory=dict, init=False)

    def steps(self, targets: Iterable[Target | Room]) -> Iterator[Step]:
        """The users in the targets; after all users of a room the room; an outcome where a call failed.

        None while a call is under way. Users who follow their room are served by its call.
        """

        def asked(pool: ThreadPoolExecutor) -> Iterator[Future[tuple[_Group, _Said]]]:
            for group in _groups(targets, by_presence=self.query == "presence"):
                is_called = group.room and self.query != "off"
                yield pool.submit(self._ask, group) if is_called else completed((group, _NOTHING))

        pool = ThreadPoolExecutor(ROOMS_AT_ONCE)
        try:
            for answered in in_order(asked(pool), ROOMS_AT_ONCE):
                yield from self._members(*answered) if answered else [None]
        finally:
            pool.shutdown(cancel_futures=True)

    def _ask(self, group: _Group) -> tuple[_Group, _Said]:
        room, user_ids = group.room or group.users[0].room, [target.user_id for target in group.users]
        wait: dict[str, float] = {"max_wait_seconds": self.wait_seconds}
        is_whole = group.is_whole or len(user_ids) > MAX_USERS
        if refusal := self._refusals.get(is_whole):
            return group, refusal
        try:
            if is_whole:
                return group, self.rtc.online_users(room, self.deadline, **wait)
            return group, self.rtc.users_property(room, user_ids, self.deadline, **wait)
        except StreamStateError as error:
            if concerns_action(error):
                self._refusals[is_whole] = error
            return group, error

    def _members(self, group: _Group, said: _Said) -> Iterator[Step]:
        whole = group.room if group.is_whole else None
        if whole and isinstance(said, Presence) and (count := len(said.users)) > self.most:
            why = f"names a room of {count} users, more than can be asked about in time: give it to a sweep"
            said = invalid("room_id", why)
        presence = said if isinstance(said, Presence) else _NOTHING
        is_asked = not isinstance(said, QuotaExceeded)
        if whole and isinstance(said, StreamStateError):
            # Users are asked about by another action.
            yield Outcome(whole, said, said, is_asked, concerns_others=not concerns_action(said))
        if isinstance(said, StreamStateError) and concerns_action(said) and self.query == "presence":
            concerns_others = len(self._refusals) > 1
            for target in group.users:
                yield Outcome(target, said, said, is_asked, concerns_others=concerns_others)
            return
        for batch in batched(group.users, READ_AHEAD, strict=False):
            try:
                records = self.store.read(batch, to_merge=True)
            except StateUnavailable as error:
                # The refused write brings each record.
                log_error(error)
                records = {}
            for target in batch:
                before = records.get(target)
                if isinstance(said, StreamStateError) and self.query == "presence":
                    yield Outcome(target, said, said, is_asked, before=before)
                else:
                    yield Member(target, before, presence.of(target.user_id), presence.rtc_request_id)
        if whole and presence is said:
            yield from self._of_room(whole, presence, {target.user_id for target in group.users})

    def _of_room(self, room: Room, presence: Presence, named: Collection[str]) -> Iterator[Step]:
        """All users of a room but those named beside it: those with a record, then others whom the answer names."""
        unknown = {user_id: said for user_id, said in presence.users.items() if user_id not in named}
        end: Room | Outcome = room
        try:
            for record in entries_of(partial(self.store.room, room, to_merge=True)):
                user_id = record.target.user_id
                unknown.pop(user_id, None)
                if user_id not in named and _is_of_interest(record, said := presence.of(user_id)):
                    yield Member(record.target, record, said, presence.rtc_request_id, room)
        except StateUnavailable as error:
            end = Outcome(room, error, error)
        for user_id, said in unknown.items():
            yield Member(Target(room.app_id, room.room_id, user_id), None, said, presence.rtc_request_id, room)
        yield end


def _is_of_interest(record: StateRecord, said: Observations) -> bool:
    """Whether the user of a record may be there, or an answer changes the record."""
    values = record.state.values
    # Nothing changes for a user who was known to have gone.
    is_there = values[PRESENT] is not False or (bool(said) and any(value is not False for value in values.values()))
    return "online" in said or (is_there and bool(record.observations))


def _groups(targets: Iterable[Target | Room], *, by_presence: bool) -> Iterator[_Group]:
    """The targets in their order, in groups."""
    group: _Group | None = None
    for target in targets:
        if group and (isinstance(target, Room) or group.room not in (None, target.room)):
            yield group
            group = None
        if not group:
            is_whole, room = isinstance(target, Room), target if isinstance(target, Room) else target.room
            group = _Group(room if is_whole or by_presence else None, is_whole)
        if isinstance(target, Target):
            group.users.append(target)
        if len(group.users) == (GROUP_USERS if group.room else READ_AHEAD):
            yield group
            group = None
    if group:
        yield group
