"""Who is in which room: the users to look at, each with its record and what a presence call said of the user."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import batched, groupby

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


@dataclass(frozen=True, slots=True)
class Member:
    """A user to look at: the record if it was read, and what a presence call said; `room` if all of it is asked for."""

    target: Target
    before: StateRecord | None = None
    presence: Observations = field(default_factory=dict)
    rtc_request_id: str | None = None
    room: Room | None = None


type Group = tuple[Room | None, Sequence[Target]]
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
        room is refused that has more than `most` users, as all of them will be asked about.
        """
        window: deque[tuple[Group, Future[Presence | StreamStateError] | None]] = deque()
        pool = ThreadPoolExecutor(ROOMS_AT_ONCE)
        try:
            for group in _groups(targets, by_presence=by_presence):
                room, users = group
                asked = pool.submit(self._ask, room, users, deadline, wait_seconds) if room else None
                window.append((group, asked))
                # Who needs no call is not held up by the rooms to come.
                while window and (len(window) == ROOMS_AT_ONCE or not asked):
                    yield from self._members(*window.popleft(), most)
            while window:
                yield from self._members(*window.popleft(), most)
        finally:
            pool.shutdown(cancel_futures=True)

    def known(self, room: Room, presence: Presence) -> Iterator[Member]:
        """The users of a room who have a record that an answer changes, or who may be there by it."""
        after: str | None = None
        while True:
            page = self._store.room(room.app_id, room.room_id, after, to_merge=True)
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

    def _ask(
        self, room: Room, users: Sequence[Target], deadline: float, wait_seconds: float
    ) -> Presence | StreamStateError:
        try:
            if 0 < len(users) <= MAX_USERS:
                user_ids = [target.user_id for target in users]
                return self._rtc.users_property(room, user_ids, deadline, max_wait_seconds=wait_seconds)
            return self._rtc.online_users(room, deadline, max_wait_seconds=wait_seconds)
        except StreamStateError as error:
            return error

    def _members(
        self, group: Group, asked: "Future[Presence | StreamStateError] | None", most: float
    ) -> Iterator[Step]:
        room, users = group
        presence: Presence | StreamStateError = Presence({}, {}, None)
        while asked:
            try:
                presence, asked = asked.result(IDLE_SECONDS), None
            except TimeoutError:
                yield None
        if isinstance(presence, Presence) and room and not users and len(presence.users) > most:
            why = (
                f"names a room of {len(presence.users)} users, more than can be asked about in time: give it to a sweep"
            )
            presence = invalid("room_id", why)
        if isinstance(presence, StreamStateError):
            is_asked = not isinstance(presence, QuotaExceeded)
            yield from (Outcome(target, presence, presence, is_asked) for target in users or filter(None, [room]))
        elif users:
            for batch in batched(users, READ_AHEAD, strict=False):
                records = self._records(batch)
                for target in batch:
                    said = presence.of(target.user_id)
                    yield Member(target, records.get(target), said, presence.rtc_request_id)
        elif room:
            yield from self._of_room(room, presence)
            yield room

    def _of_room(self, room: Room, presence: Presence) -> Iterator[Member]:
        """All users of a room: those who have a record, and those whom the answer names besides."""
        unknown = dict(presence.users)
        try:
            for member in self.known(room, presence):
                unknown.pop(member.target.user_id, None)
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


def _groups(targets: Iterable[Target | Room], *, by_presence: bool) -> Iterator[Group]:
    """Whole rooms, without users, and users who are asked about together, of one room if `by_presence`."""

    def key(target: Target | Room) -> tuple[bool, Room | None]:
        if isinstance(target, Room):
            return True, target
        return False, target.room if by_presence else None

    for (is_whole, room), run in groupby(targets, key):
        if is_whole:
            yield room, ()
        else:
            users = (target for target in run if isinstance(target, Target))
            yield from ((room, batch) for batch in batched(users, GROUP_USERS if room else READ_AHEAD, strict=False))
