"""The watch list in the table, with the lease and the cursor of the sweep that passes over it.

The list lies in 16 partitions, so that joins may come faster than one partition of DynamoDB writes. The watches of a
room lie in one of them.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from stream_state.adapters.table import (
    PAGE_ITEMS,
    ConditionFailed,
    Item,
    Page,
    Scalar,
    Table,
    attributes,
    key_of,
    target_of,
)
from stream_state.domain.documents import iso_time
from stream_state.domain.parsing import parse_whole_number
from stream_state.domain.targets import Room, Target

DEFAULT_WATCH_SECONDS = 86_400
MAX_WATCH_SECONDS = 2_592_000
LEASE_SECONDS = 60
# Three sweeps at the shortest period of a schedule.
LEFT_WATCH_SECONDS = 180
PERSON, EVENTS = "person", "events"
PARTITIONS = 16
_LEASE_KEY = key_of("sweep", "lease")


@dataclass(frozen=True, slots=True)
class Watch:
    """A target that sweeps ask about until the watch expires; times in whole seconds since 1970."""

    target: Target | Room
    watched_at: int
    expires_at: int

    def as_dict(self) -> dict[str, Any]:
        """The watch as the API shows it."""
        return {**self.target.as_dict(), "expires_at": iso_time(self.expires_at * 1000)}

    @property
    def key(self) -> str:
        """Its place in the order of its partition."""
        return _sort_key(self.target)


@dataclass(eq=False)
class WatchList:
    """The watches, safe to share among threads. Every method raises `StateUnavailable` if DynamoDB fails."""

    table: Table

    def add(self, targets: Iterable[Target | Room], expires_in_seconds: int) -> list[Watch]:
        """Watch the targets from now on, as a person asks; the watch of a watched target gets the new expiry."""
        now = int(self.table.clock.now())
        watches = [Watch(target, now, now + expires_in_seconds) for target in dict.fromkeys(targets)]
        self.table.put_all(_item(watch) for watch in watches)
        return watches

    def joined(self, target: Target, event_at_ms: int) -> None:
        """Watch a target for a day because an event says that its user is there; an event never shortens a watch."""
        now = int(self.table.clock.now())
        expires_at = now + DEFAULT_WATCH_SECONDS
        changes: dict[str, Scalar] = {
            **target.as_dict(),
            "watched_at": now,
            "expires_at": expires_at,
            "made_by": EVENTS,
            "event_at_ms": event_at_ms,
        }
        newer = "made_by = :made_by AND event_at_ms <= :event_at_ms"
        condition = f"attribute_not_exists(made_by) OR expires_at <= :watched_at OR ({newer})"
        try:
            self.table.update(_key(target), changes, condition)
        except ConditionFailed as failed:
            if failed.item["made_by"]["S"] == PERSON:
                with suppress(ConditionFailed):
                    self.table.update(_key(target), {"expires_at": expires_at}, "expires_at < :expires_at")

    def left(self, target: Target, event_at_ms: int) -> None:
        """Shorten a watch that events made, because a newer event says that its user has left."""
        expires_at = int(self.table.clock.now()) + LEFT_WATCH_SECONDS
        condition = "made_by = :events AND event_at_ms < :event_at_ms AND expires_at > :expires_at"
        changes = {"expires_at": expires_at, "event_at_ms": event_at_ms}
        with suppress(ConditionFailed):
            self.table.update(_key(target), changes, condition, events=EVENTS)

    def remove(self, target: Target | Room) -> None:
        """Watch a target no more; nothing happens if it was not watched."""
        self.table.call("delete_item", Key=_key(target))

    def page(self, after: str | None, last: str | None = None) -> Page[Watch]:
        """A page of the watches that have not expired, in the order of the list, up to the key `last`."""
        end = partition_of(last) if last else PARTITIONS - 1
        watches: list[Watch] = []
        for partition in range(partition_of(after) if after else 0, end + 1):
            up_to = last if last and partition == end else None
            page = self.table.query(f"watch#{partition}", after, up_to, consistent=True)
            watches += [_watch(item) for item in page.entries if self.table.is_alive(item)]
            after = None
            if page.next_key:
                return Page(watches, page.next_key)
            if partition < end and len(watches) >= PAGE_ITEMS:
                return Page(watches, watches[-1].key)
        return Page(watches, None)

    def count(self) -> int:
        """The number of watches."""
        return sum(self.table.count(f"watch#{partition}") for partition in range(PARTITIONS))

    def take_lease(self, token: str) -> tuple[bool, str | None]:
        """Take the lease of the sweep if nobody holds it; whether it was taken, and the cursor that was stored."""
        changes: dict[str, Scalar] = {"holder": token, "held_until": self._held_until()}
        # The client tries again if an answer is lost: its own lease must not keep it out then.
        free = "attribute_not_exists(held_until) OR held_until <= :now OR holder = :holder"
        try:
            lease = self.table.update(_LEASE_KEY, changes, free, now=int(self.table.clock.now()))
        except ConditionFailed:
            return False, None
        return True, lease.get("cursor_key", {}).get("S") or None

    def keep_lease(self, token: str, cursor: str | None, *, release: bool = False) -> bool:
        """Store the cursor and hold the lease for another minute, or let go of it; False if another sweep holds it."""
        changes: dict[str, Scalar] = {"cursor_key": cursor or "", "held_until": 0 if release else self._held_until()}
        try:
            self.table.update(_LEASE_KEY, changes, "holder = :token", token=token)
        except ConditionFailed:
            return False
        return True

    def _held_until(self) -> int:
        return math.ceil(self.table.clock.now() + LEASE_SECONDS)


def parse_expires_in(body: Mapping[str, Any]) -> int:
    """For how many seconds to watch: a day unless `expires_in` says otherwise, 30 days at most."""
    return parse_whole_number(body.get("expires_in", DEFAULT_WATCH_SECONDS), "expires_in", 1, MAX_WATCH_SECONDS)


def partition_of(key: str) -> int:
    """The partition of a watch, by its app and room."""
    room = key.rpartition("#")[0]
    return hashlib.sha256(room.encode()).digest()[0] % PARTITIONS


def _key(target: Target | Room) -> dict[str, Any]:
    key = _sort_key(target)
    return key_of(f"watch#{partition_of(key)}", key)


def _sort_key(target: Target | Room) -> str:
    user_id = target.user_id if isinstance(target, Target) else ""
    return f"{target.app_id}#{target.room_id}#{user_id}"


def _watch(item: Item) -> Watch:
    target = target_of(item) if "user_id" in item else Room(item["app_id"]["S"], item["room_id"]["S"])
    return Watch(target, int(item["watched_at"]["N"]), int(item["expires_at"]["N"]))


def _item(watch: Watch) -> Item:
    times = {"watched_at": watch.watched_at, "expires_at": watch.expires_at}
    return {**_key(watch.target), **attributes({**watch.target.as_dict(), **times, "made_by": PERSON})}
