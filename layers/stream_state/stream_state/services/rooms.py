"""Who is in which room: the users to look at, each with its record and what a presence call said of the user."""

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import batched

from stream_state.adapters.state_store import StateStore
from stream_state.adapters.volcengine import MAX_USERS, VolcengineClient
from stream_state.domain.merging import StateRecord
from stream_state.domain.observations import Observations, Presence
from stream_state.domain.outcomes import Outcome
from stream_state.domain.parsing import invalid
from stream_state.domain.targets import PRESENT, Room, Target
from stream_state.errors import QuotaExceeded, StateUnavailable, StreamStateError
from stream_state.observability import log_error

# The records of so many targets are read at once, before their calls.
READ_AHEAD = 25
# Rooms that are asked about at once: enough for 40 calls a second that take 0.4 s each.
ROOMS_AT_ONCE = 16
# The most users of a room that are held in memory, and served by one presence call.
GROUP_USERS = 1000
# A caller who waits for a room's call is asked this often whether something else is to be done.
IDLE_SECONDS = 1
# An answer that says nothing of anybody.
NOTHING = Presence({}, {}, None)


@dataclass(frozen=True, slots=True)
class Member:
    """A user to look at: the record if it was read, and what a presence call said; `room` if all of it is asked for."""

    target: Target
    before: StateRecord | None = None
    presence: Observations = field(default_factory=dict)
    rtc_request_id: str | None = None
    room: Room | None = None


@dataclass(frozen=True, slots=True)
class _Group:
    """What one presence call serves: users, of `room` if there is a call, and all of the room if `is_whole`."""

    room: Room | None
    is_whole: bool
    users: list[Target] = field(default_factory=list)

    @property
    def is_full(self) -> bool:
        """Whether no other user fits in."""
        return len(self.users) == (GROUP_USERS if self.room else READ_AHEAD)

    def takes(self, target: Target | Room) -> bool:
        """Whether a target belongs to the group."""
        return isinstance(target, Target) and self.room in (None, target.room)


type Step = Member | Outcome | Room | None


class Rooms:
    """Asks who is in rooms; safe to share among threads."""

    def __init__(self, rtc: VolcengineClient, store: StateStore) -> None:
        self._rtc = rtc
        self._store = store

    def steps(
        self,
        targets: Iterable[Target | Room],
        deadline: float,
        *,
        by_presence: bool,
        wait_seconds: float,
        most: float,
    ) -> Iterator[Step]:
        """The users in the targets; after all users of a room the room; an outcome where a call failed; None to wait.

        `by_presence`: a presence call is made for users too, one for those of a room that follow one another. Else a
        room is refused that has more than `most` users, as all of them will be asked about. Users who follow their room
        are served by its call.
        """
        window: deque[tuple[_Group, Future[Presence | StreamStateError] | None]] = deque()
        pool = ThreadPoolExecutor(ROOMS_AT_ONCE)
        try:
            for group in _groups(targets, by_presence=by_presence):
                asked = pool.submit(self._ask, group.room, group, deadline, wait_seconds) if group.room else None
                window.append((group, asked))
                # Who needs no call is not held up by the rooms to come.
                while window and (len(window) == ROOMS_AT_ONCE or not asked):
                    yield from self._members(*window.popleft(), most, by_presence=by_presence)
            while window:
                yield from self._members(*window.popleft(), most, by_presence=by_presence)
        finally:
            pool.shutdown(cancel_futures=True)

    def known(self, room: Room, presence: Presence) -> Iterator[Member]:
        """The users of a room who have a record that an answer changes, or who may be there by it."""
        after: str | None = None
        while True:
            page = self._store.room(room, after, to_merge=True)
            for state_record in page.entries:
                said, values = presence.of(state_record.target.user_id), state_record.state.values
                # Nothing changes for a user who was known to have gone.
                is_there = values[PRESENT] is not False or (
                    said and any(value is not False for value in values.values())
                )
                if "online" in said or (is_there and state_record.observations):
                    yield Member(state_record.target, state_record, said, presence.rtc_request_id, room)
            after = page.next_key
            if after is None:
                return

    def _ask(self, room: Room, group: _Group, deadline: float, wait_seconds: float) -> Presence | StreamStateError:
        try:
            if not group.is_whole and len(group.users) <= MAX_USERS:
                user_ids = [target.user_id for target in group.users]
                return self._rtc.users_property(room, user_ids, deadline, max_wait_seconds=wait_seconds)
            return self._rtc.online_users(room, deadline, max_wait_seconds=wait_seconds)
        except StreamStateError as error:
            return error

    def _members(
        self, group: _Group, asked: "Future[Presence | StreamStateError] | None", most: float, *, by_presence: bool
    ) -> Iterator[Step]:
        presence: Presence | StreamStateError = NOTHING
        while asked:
            try:
                presence, asked = asked.result(IDLE_SECONDS), None
            except TimeoutError:
                yield None
        if group.is_whole and isinstance(presence, Presence) and (count := len(presence.users)) > most:
            why = f"names a room of {count} users, more than can be asked about in time: give it to a sweep"
            presence = invalid("room_id", why)
        if isinstance(presence, StreamStateError):
            failed: list[Target | Room] = [group.room] if group.is_whole and group.room else []
            failed += group.users if by_presence else []
            is_asked = not isinstance(presence, QuotaExceeded)
            yield from (Outcome(target, presence, presence, is_asked) for target in failed)
            if by_presence:
                return
        said = presence if isinstance(presence, Presence) else NOTHING
        for batch in batched(group.users, READ_AHEAD, strict=False):
            records = self._records(batch)
            for target in batch:
                yield Member(target, records.get(target), said.of(target.user_id), said.rtc_request_id)
        if group.is_whole and group.room and said is presence:
            yield from self._of_room(group.room, said, {target.user_id for target in group.users})
            yield group.room

    def _of_room(self, room: Room, presence: Presence, done: Collection[str]) -> Iterator[Member]:
        """All users of a room but those who are done: those with a record, then those whom the answer names besides."""
        unknown = {user_id: said for user_id, said in presence.users.items() if user_id not in done}
        try:
            for member in self.known(room, presence):
                unknown.pop(member.target.user_id, None)
                if member.target.user_id not in done:
                    yield member
        except StateUnavailable as error:
            # The refused write brings each record.
            log_error(error)
        for user_id, said in unknown.items():
            yield Member(Target(room.app_id, room.room_id, user_id), None, said, presence.rtc_request_id, room)

    def _records(self, targets: Sequence[Target]) -> dict[Target, StateRecord]:
        try:
            return self._store.read(targets, to_merge=True)
        except StateUnavailable as error:
            # As above.
            log_error(error)
            return {}


def _groups(targets: Iterable[Target | Room], *, by_presence: bool) -> Iterator[_Group]:
    """The targets in their order, in groups."""
    group: _Group | None = None
    for target in targets:
        if group is None or not group.takes(target):
            if group:
                yield group
            is_whole = isinstance(target, Room)
            room = target if isinstance(target, Room) else target.room
            group = _Group(room if is_whole or by_presence else None, is_whole)
        if isinstance(target, Target):
            group.users.append(target)
        if group.is_full:
            yield group
            group = None
    if group:
        yield group
