"""The vendor's presence calls in memory."""

import math
from collections import deque
from collections.abc import Sequence

from stream_state.domain.observations import Observations, Presence, logged_in, offline, online
from stream_state.domain.targets import Room, Target
from stream_state.errors import StreamStateError
from tests.unit.fakes import Clock


class MemoryPresence:
    """Who is in rooms, by room; a room that is not named does not exist. Counts the calls of each kind."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.rooms: dict[Room, set[str]] = {}
        self.logins: dict[Target, int] = {}
        self.presence_calls: list[tuple[Room, tuple[str, ...] | None]] = []
        self.answers: deque[Presence | StreamStateError] = deque()
        self.presence_error: StreamStateError | None = None

    def online_users(self, room: Room, deadline: float, *, max_wait_seconds: float = math.inf) -> Presence:
        """See `VolcengineClient`."""
        self.presence_calls.append((room, None))
        return self._next() or Presence(
            {user_id: online(self.clock.now_ms()) for user_id in self.rooms.get(room, ())},
            offline(self.clock.now_ms()),
            "presence-1",
        )

    def users_property(
        self, room: Room, user_ids: Sequence[str], deadline: float, *, max_wait_seconds: float = math.inf
    ) -> Presence:
        """See `VolcengineClient`."""
        self.presence_calls.append((room, tuple(user_ids)))
        return self._next() or Presence({user_id: self._of(room, user_id) for user_id in user_ids}, {}, "presence-1")

    def _next(self) -> Presence | None:
        answer = self.answers.popleft() if self.answers else self.presence_error
        if isinstance(answer, StreamStateError):
            raise answer
        return answer

    def _of(self, room: Room, user_id: str) -> Observations:
        now_ms, target = self.clock.now_ms(), Target(room.app_id, room.room_id, user_id)
        if user_id not in self.rooms.get(room, ()):
            return offline(now_ms)
        return logged_in(now_ms, self.logins[target]) if target in self.logins else online(now_ms)
