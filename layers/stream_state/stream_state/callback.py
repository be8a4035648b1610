"""The vendor's pushed events: verified, merged into what is known, and told."""

import hashlib
import hmac
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from itertools import batched
from typing import Self

from stream_state.credentials import CallbackKeys
from stream_state.errors import InvalidTarget, StreamStateError
from stream_state.model import LEFT, MEDIA_TYPES, PRESENT, Fact, Known, StreamState, Target
from stream_state.observability import record
from stream_state.queue import MAX_BATCH_ENTRIES
from stream_state.settings import Settings
from stream_state.table import STATE_LIFE_SECONDS, StateTable
from stream_state.telling import Outgoing, Teller
from stream_state.validation import JsonError, invalid, parse_id, parse_json
from stream_state.watch_list import DEFAULT_WATCH_SECONDS, WatchList

MAX_AHEAD_SECONDS = 900
# The dimension of `CallbackRefused` by the HTTP status of the refusal.
REASONS = {400: "malformed", 401: "signature", 403: "app_id", 413: "too_large"}
# How often a signature that fits no key may have the secret read anew: a rotation is seen, an attacker costs little.
KEYS_REREAD_SECONDS = 10
_SIGNED = ("EventType", "EventData", "EventTime", "EventId", "AppId", "Version", "Nonce")
_STREAM = re.compile(rf"User({'|'.join(MEDIA_TYPES)})Stream(Start|Stop)")
_JOINS = frozenset({"UserJoinRoom", "InvisibleUserJoinRoom"})
_LEAVES = frozenset({"UserLeaveRoom", "InvisibleUserLeaveRoom"})
_ROOM_ENDS = "RoomDestroy"


@dataclass(frozen=True, slots=True)
class Event:
    """A verified event of interest; `user_id` is None for the end of a room, `facts` is what it tells of a user."""

    kind: str
    app_id: str
    room_id: str
    user_id: str | None
    at_ms: int
    facts: Mapping[str, Fact]


class Callback:
    """Takes in pushed events, one at a time."""

    def __init__(
        self,
        keys: CallbackKeys,
        table: StateTable,
        teller: Teller,
        app_ids: Sequence[str],
        *,
        auto_watch: bool = False,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._keys = keys
        self._table = table
        self._watch_list = WatchList(table)
        self._teller = teller
        self._app_ids = app_ids
        self._auto_watch = auto_watch
        self._clock = clock
        self._wall_clock = wall_clock
        self._keys_read_at = float("-inf")

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """A callback as the settings describe it, with short time-outs: the vendor waits for five seconds only."""
        table = StateTable.from_settings(settings, timeout_seconds=0.6, tries=2)
        teller = Teller.from_settings(settings, table, timeout_seconds=1)
        return cls(
            CallbackKeys.from_settings(settings), table, teller, settings.rtc_app_ids, auto_watch=settings.auto_watch
        )

    def take(self, text: str | bytes, arrived_at_ms: int, deadline: float) -> bool:
        """Verify an event, merge it into what is known and tell what is news.

        False if `deadline` (monotonic seconds) came before all users of a room that ended were told of.
        Raises `InvalidTarget` for an event that is not accepted, with the HTTP status that says why, and
        `StateUnavailable` or `DeliveryFailed` for one that must come again.
        """
        event = self._read(text, arrived_at_ms)
        record("CallbackEvents")
        # What was newer than such an event may be forgotten by now, even if the event itself waited in the queue.
        if event is None or event.at_ms <= (self._wall_clock() - STATE_LIFE_SECONDS) * 1000:
            return True
        if event.user_id is not None:
            self._merge([Target(event.app_id, event.room_id, event.user_id)], event, deadline)
            return True
        self._table.end_room(event.app_id, event.room_id, event.facts)
        for index, targets in enumerate(batched(self._not_yet_off(event), MAX_BATCH_ENTRIES, strict=False)):
            # Some are done in any case, so that tries that begin late get on too.
            if index and self._clock() > deadline:
                return False
            self._merge(targets, event, deadline)
        return True

    def _not_yet_off(self, event: Event) -> Iterator[Target]:
        """The users of the room that ended who are not yet off, or of whom the queue was not told yet."""
        after: str | None = None
        while True:
            page = self._table.room(event.app_id, event.room_id, after, to_merge=True)
            for known in page.entries:
                if known.is_news or known.merged(event.facts, event.at_ms).facts != known.facts:
                    yield known.target
            after = page.next_key
            if after is None:
                return

    def _merge(self, targets: Sequence[Target], event: Event, deadline: float) -> None:
        news = []
        for target in targets:
            known = self._table.observe(StreamState(target, event.facts, "callback"))
            if self._auto_watch and event.kind in _JOINS | _LEAVES | {_ROOM_ENDS}:
                self._watch(known)
            if known.is_news:
                news.append(Outgoing(known.message("callback", None), known))
        for outcome in self._teller.tell(news, deadline) if news else ():
            if isinstance(outcome, StreamStateError):
                raise outcome

    def _watch(self, known: Known) -> None:
        """Watch who is present: what is known decides, since a join may arrive after the leave that followed it."""
        if known.state().values[PRESENT]:
            self._watch_list.add([known.target], DEFAULT_WATCH_SECONDS)
        else:
            self._watch_list.remove(known.target)

    def _read(self, text: str | bytes, arrived_at_ms: int) -> Event | None:
        """The event in the text; None for one that is of no interest here."""
        try:
            body = parse_json(text)
        except JsonError as error:
            raise _refused(f"the body {error}") from None
        names = (*_SIGNED, "Signature")
        if not isinstance(body, dict) or not all(isinstance(body.get(name), str) for name in names):
            raise _refused(f"the body must be an object with the texts {', '.join(names)}")
        fields: dict[str, str] = {name: body[name] for name in names}
        if not self._is_signed(fields):
            raise _refused("the signature fits no callback key", HTTPStatus.UNAUTHORIZED)
        if fields["AppId"] not in self._app_ids:
            raise _refused("the AppId is not one of RtcAppIds", HTTPStatus.FORBIDDEN)
        kind = fields["EventType"]
        stream = _STREAM.fullmatch(kind)
        if not stream and kind not in _JOINS | _LEAVES | {_ROOM_ENDS}:
            return None
        try:
            return _event(kind, stream, fields, arrived_at_ms)
        except InvalidTarget as error:
            raise _refused(f"EventData is not as expected: {error}") from None
        except ValueError:
            raise _refused("EventData must be JSON, with a Timestamp in milliseconds, else an EventTime") from None

    def _is_signed(self, fields: Mapping[str, str]) -> bool:
        keys = self._keys.keys()
        if _fits(fields, keys):
            return True
        if self._clock() - self._keys_read_at < KEYS_REREAD_SECONDS:
            return False
        self._keys_read_at = self._clock()
        return _fits(fields, self._keys.keys_after_rejection(keys, self._clock()))


def signature(fields: Mapping[str, str], key: str) -> str:
    """SHA-256 hex of the sorted values and the key (volcengine.com/docs/6348/69820)."""
    # JSON can hold lone surrogates, which UTF-8 cannot: their signature fits no key, but computing it must not fail.
    values = sorted(value.encode(errors="surrogatepass") for value in (*(fields[name] for name in _SIGNED), key))
    return hashlib.sha256(b"".join(values)).hexdigest()


def _fits(fields: Mapping[str, str], keys: Sequence[str]) -> bool:
    # Every key is tried, so that the time taken does not tell which fits.
    given = fields["Signature"].encode(errors="surrogatepass")
    matches = [hmac.compare_digest(signature(fields, key).encode(), given) for key in keys]
    return any(matches)


def _event(kind: str, stream: re.Match[str] | None, fields: Mapping[str, str], arrived_at_ms: int) -> Event:
    data = parse_json(fields["EventData"])
    if not isinstance(data, dict):
        raise invalid("EventData", "must be an object")
    at_ms = _time_ms(data.get("Timestamp"), fields["EventTime"])
    if at_ms > arrived_at_ms + MAX_AHEAD_SECONDS * 1000:
        raise invalid("Timestamp", f"is more than {MAX_AHEAD_SECONDS} seconds ahead of now")
    at_ms = min(at_ms, arrived_at_ms)
    user_id = None if kind == _ROOM_ENDS else parse_id(data.get("UserId"), "UserId")
    facts = {LEFT: Fact(value=False, at_ms=at_ms)}
    if stream:
        starts = stream[2] == "Start"
        facts = {MEDIA_TYPES[stream[1]].value: Fact(starts, at_ms)}
        facts |= {PRESENT: Fact(value=True, at_ms=at_ms)} if starts else {}
    elif kind in _JOINS:
        facts = {PRESENT: Fact(value=True, at_ms=at_ms)}
    return Event(kind, fields["AppId"], parse_id(data.get("RoomId"), "RoomId"), user_id, at_ms, facts)


def _time_ms(timestamp: object, event_time: str) -> int:
    """The event's time in milliseconds since 1970: its Timestamp, as number or text, else its EventTime."""
    if type(timestamp) in (int, float) or (
        isinstance(timestamp, str) and timestamp.isascii() and timestamp.isdecimal()
    ):
        return int(timestamp)  # type: ignore[call-overload, no-any-return]  # one of the types just asked for
    parsed = datetime.fromisoformat(event_time)
    if parsed.tzinfo is None:
        raise invalid("EventTime", "must have a time zone where there is no Timestamp")
    return int(parsed.timestamp() * 1000)


def _refused(why: str, status: int = HTTPStatus.BAD_REQUEST) -> InvalidTarget:
    return InvalidTarget(f"The event is not accepted: {why}.", status=status)
