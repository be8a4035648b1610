"""A model of rooms, users and connections: who is there, which media are on, and what the vendor says about it.

Times are milliseconds of the true clock.
"""

import hashlib
import json
import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import NamedTuple

from stream_state.domain.targets import MEDIA_TYPES, PRESENT, Medium
from tests.unit.memory import APP_ID

START_MS = 1_795_403_045_678
DAY_MS = 86_400_000
ROOM, KEY = "class-1", "callback-key"
NAMES = (*Medium, PRESENT)
VENDOR_NAMES = {medium: name for name, medium in MEDIA_TYPES.items()}
PAUSES_MS = ((20, 2_000), (2_000, 15_000), (15_000, 90_000), (200_000, 900_000))


@dataclass(frozen=True, slots=True)
class Event:
    """An event of the vendor; `user_id` is None for the end of the room."""

    at_ms: int
    type: str
    user_id: str | None = None
    reason: str | None = None
    device: str | None = None
    # When the connection ended that the event is about, if it is the end of one.
    ended_ms: int | None = None

    @property
    def begun(self) -> Sequence[str]:
        """The medium or presence that begins with the event."""
        medium = MEDIA_TYPES.get(self.type.removeprefix("User").removesuffix("StreamStart"))
        return [medium, PRESENT] if medium else [PRESENT] if self.type.endswith("JoinRoom") else []


class Said(NamedTuple):
    """A word of the vendor, as of a time: a medium or presence is on or off; `asked_ms` is 0 for an event."""

    user_id: str
    name: str
    value: bool
    at_ms: int
    asked_ms: int = 0


@dataclass(slots=True)
class Spell:
    """From when until when one connection publishes a medium or is there."""

    since_ms: int
    until_ms: int = START_MS * 2


class Model:
    """A room that is used once or twice, by one user or two."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.events: list[Event] = []
        self.spells: dict[tuple[str, str], list[Spell]] = defaultdict(list)
        self.user_ids = ("teacher", "guest")[: rng.choice((1, 1, 1, 2))]
        at_ms = START_MS
        for lives_left in rng.choice(((0,), (0,), (1, 0))):
            users = [_User(self, user_id, at_ms) for user_id in self.user_ids]
            for user in users:
                user.live()
            at_ms = max(user.at_ms for user in users) + self.pause_ms()
            if lives_left or rng.random() < 0.3:
                self.events.append(Event(at_ms, "RoomDestroy"))
                for user in users:
                    user.close(at_ms)
            at_ms += self.pause_ms() + rng.choice((0, 0, 0, DAY_MS))
        self.events.sort(key=lambda event: event.at_ms)

    def pause_ms(self) -> int:
        """How long a user does nothing."""
        return self.rng.randint(*self.rng.choices(PAUSES_MS, (2, 3, 3, 2))[0])

    def spell(self, user_id: str, name: str, at_ms: int) -> Spell | None:
        """The spell of a medium or of presence at a time."""
        for spell in reversed(self.spells[user_id, name]):
            if spell.since_ms <= at_ms:
                return spell if at_ms < spell.until_ms else None
        return None

    def last_began_ms(self, user_id: str, name: str, at_ms: int) -> int:
        """When the latest spell began until a time; 0 without any."""
        return max((spell.since_ms for spell in self.spells[user_id, name] if spell.since_ms <= at_ms), default=0)


class Vendor:
    """The vendor's side: a clock that is off, events with a signature, and answers that lag."""

    def __init__(self, model: Model) -> None:
        self._model, self._rng = model, model.rng
        self._ahead_ms = self._rng.choice((-3_000, 3_000, self._rng.randint(-3_000, 3_000)))
        self.absent_is_error = self._rng.choice((True, False))

    def text(self, event: Event) -> str:
        """The body of an event's request."""
        stamp_ms = event.at_ms + self._ahead_ms
        data = {"RoomId": ROOM, "UserId": event.user_id, "DeviceType": event.device, "Timestamp": stamp_ms}
        data |= {"Reason": event.reason} if event.reason else {}
        event_time = datetime.fromtimestamp(stamp_ms / 1000, UTC).isoformat()
        fields = {"EventType": event.type, "EventData": json.dumps(data), "EventTime": event_time, "EventId": "event-1"}
        fields |= {"AppId": APP_ID, "Version": "2020-12-01", "Nonce": "aaBc"}
        signature = hashlib.sha256("".join(sorted([*fields.values(), KEY])).encode()).hexdigest()
        return json.dumps(fields | {"Signature": signature})

    def words_of(self, event: Event) -> Sequence[Said]:
        """The words in an event that are true: what began with it, or what its end left off."""
        user_id = event.user_id or ""
        if event.type.endswith("Stop"):
            medium = MEDIA_TYPES[event.type.removeprefix("User").removesuffix("StreamStop")]
            # A stream that ended with its connection may be of an earlier one.
            is_sure = event.reason != "LeaveRoom"
            return [Said(user_id, medium, value=False, at_ms=event.at_ms)] if is_sure else []
        if event.begun:
            return [Said(user_id, name, value=True, at_ms=event.at_ms) for name in event.begun]
        keys = [(user, name) for user in self._model.user_ids for name in NAMES if event.user_id in (None, user)]
        off = [key for key in keys if not self._model.spell(*key, event.at_ms)]
        if event.ended_ms is not None:
            # What began then or later was of another connection, of which the event says nothing.
            off = [key for key in off if self._model.last_began_ms(*key, event.at_ms) < event.ended_ms]
        return [Said(*key, value=False, at_ms=event.at_ms) for key in off]

    def answer(self, user_id: str, now_ms: int) -> tuple[Mapping[Medium, bool | None] | None, Sequence[Said]]:
        """The answer about a user, as of up to 2 s ago, and the words in it; None for an error."""
        at_ms = now_ms - self._rng.choice((0, 2_000, self._rng.randint(0, 2_000)))
        on = {name: self._model.spell(user_id, name, at_ms) is not None for name in NAMES}
        is_error = self.absent_is_error and not on[PRESENT]
        media = {medium: on[medium] for medium in Medium}
        # Four zeros prove neither presence nor absence.
        names = NAMES if is_error or any(media.values()) else Medium
        said = [Said(user_id, name, on[name], at_ms, now_ms) for name in names]
        return (None if is_error else media), said

    def presence(self, user_ids: Sequence[str], now_ms: int) -> tuple[Mapping[str, int | None], Sequence[Said]]:
        """When the connection of each user began, None for those who are not there, and the words in the answer."""
        at_ms = now_ms - self._rng.choice((0, 2_000, self._rng.randint(0, 2_000)))
        spells = {user_id: self._model.spell(user_id, PRESENT, at_ms) for user_id in user_ids}
        said = [
            Said(user_id, name, spell is not None, at_ms, now_ms)
            for user_id, spell in spells.items()
            for name in (NAMES if spell is None else (PRESENT,))
        ]
        return {user: spell.since_ms + self._ahead_ms if spell else None for user, spell in spells.items()}, said


class _User:
    """One user in one life of the room: connections, and their streams."""

    def __init__(self, model: Model, user_id: str, at_ms: int) -> None:
        self._model, self._rng, self._user_id = model, model.rng, user_id
        self.at_ms = at_ms + model.pause_ms()
        self._device: str | None = None
        self._is_visible = True
        self._now: dict[str, Spell] = {}

    def live(self) -> None:
        """Join, do this and that, and leave or stay."""
        self._join()
        taken_over = partial(self._change_connection, 1_000, "userLeave", "duplicateLogin", None)
        reloaded = partial(self._change_connection, 4_900, "userLeave")
        turned = partial(self._change_connection, 300, "userLeave", is_turned=True)
        steps: list[Callable[[], object]] = [
            self._toggle,
            self._drop,
            self._leave,
            taken_over,
            reloaded,
            turned,
            self._ban,
        ]
        for _ in range(self._rng.randint(1, 7)):
            self.at_ms += self._model.pause_ms()
            if self._now:
                self._rng.choices(steps, (7, 3, 3, 2, 2, 1, 1))[0]()
            else:
                self.at_ms += self._rng.choice((0,) * 9 + (DAY_MS,))
                self._join()

    def close(self, at_ms: int) -> list[str]:
        """End all spells; the media among them."""
        for spell in self._now.values():
            spell.until_ms = max(spell.since_ms, at_ms)
        media = [name for name in self._now if name != PRESENT]
        self._now.clear()
        return media

    def _join(self, media: Sequence[str] = ()) -> None:
        """Connect, and publish media, at once or one after another."""
        self._device = self._rng.choice(("web", "web", "ios", "android", None))
        self._emit("UserJoinRoom" if self._is_visible else "InvisibleUserJoinRoom")
        self._begin(PRESENT)
        for medium in media or self._rng.choice(([], [Medium.AUDIO], [Medium.AUDIO, Medium.VIDEO])):
            self.at_ms += self._rng.choice((0, self._rng.randint(20, 3_000)))
            self._start(medium)

    def _start(self, medium: str) -> None:
        if self._is_visible:
            self._emit(f"User{VENDOR_NAMES[Medium(medium)]}StreamStart")
            self._begin(medium)

    def _stop(self, medium: str, reason: str) -> None:
        self._emit(f"User{VENDOR_NAMES[Medium(medium)]}StreamStop", reason)
        self._now.pop(medium).until_ms = self.at_ms

    def _toggle(self) -> None:
        medium = self._rng.choice(list(Medium))
        if medium in self._now:
            self._stop(medium, "StreamStop")
        else:
            self._start(medium)

    def _ban(self) -> None:
        for medium in [name for name in self._now if name != PRESENT]:
            self._stop(medium, "BannedByAdmin")

    def _leave(self) -> None:
        self._disconnect(self.at_ms, self._rng.choice(("userLeave", "userLeave", "kickedByAdmin")))

    def _change_connection(self, apart_ms: int, *reasons: str | None, is_turned: bool = False) -> None:
        """A new connection begins, and the earlier one ends before that, after it or at once."""
        reason = self._rng.choice(reasons)
        gap_ms = self._rng.choice((0, apart_ms, self._rng.randint(-apart_ms, apart_ms)))
        media = self._disconnect(self.at_ms + max(gap_ms, 0), reason, ends_ms=self.at_ms)
        self.at_ms += max(-gap_ms, 0)
        self._is_visible ^= is_turned
        self._join(media)

    def _drop(self) -> None:
        """Lose the connection, which the vendor sees about 30 s later, and come back before that, after it or never."""
        lost_ms = self.at_ms + self._rng.randint(29_000, 34_000)
        returns_ms = self.at_ms + self._rng.randint(200, self._rng.choice((29_000, 60_000)))
        is_gone = self._rng.random() < 0.3
        self.at_ms = lost_ms if is_gone else returns_ms
        media = self._disconnect(lost_ms, "connectionLost", ends_ms=min(lost_ms, self.at_ms))
        if not is_gone:
            self._join(media)

    def _disconnect(self, at_ms: int, reason: str | None, ends_ms: int | None = None) -> list[str]:
        """The events of a connection's end; the stops of its streams come with the leave or never."""
        media = self.close(ends_ms or at_ms)
        for medium in media if self._rng.random() < 0.5 else ():
            self._emit(f"User{VENDOR_NAMES[Medium(medium)]}StreamStop", "LeaveRoom", at_ms)
        event_type = "UserLeaveRoom" if self._is_visible else "InvisibleUserLeaveRoom"
        self._emit(event_type, reason, at_ms, ended_ms=ends_ms or at_ms)
        return media

    def _begin(self, name: str) -> None:
        self._now[name] = Spell(self.at_ms)
        self._model.spells[self._user_id, name].append(self._now[name])

    def _emit(
        self, event_type: str, reason: str | None = None, at_ms: int | None = None, ended_ms: int | None = None
    ) -> None:
        self._model.events.append(Event(at_ms or self.at_ms, event_type, self._user_id, reason, self._device, ended_ms))
