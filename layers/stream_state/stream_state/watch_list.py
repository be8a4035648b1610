"""The watch list in the table, with the lease and the cursor of the sweep that goes through it."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import batched
from typing import Any

from stream_state.model import Target, iso_time
from stream_state.table import ConditionFailed, Item, Page, Table, key_of, target_of
from stream_state.validation import parse_whole_number

DEFAULT_WATCH_SECONDS = 86_400
MAX_WATCH_SECONDS = 2_592_000
LEASE_SECONDS = 60
MAX_BATCH_WRITES = 25
_LEASE_KEY = key_of("sweep", "lease")


@dataclass(frozen=True, slots=True)
class Watch:
    """A target that sweeps ask for until it expires; times in whole seconds since 1970."""

    target: Target
    watched_at: int
    expires_at: int

    def as_dict(self) -> dict[str, Any]:
        """The watch as the API shows it."""
        return {**self.target.as_dict(), "expires_at": iso_time(self.expires_at * 1000)}

    @property
    def key(self) -> str:
        """Its place in the order of the watch list."""
        return f"{self.target.app_id}#{self.target.room_id}#{self.target.user_id}"


class WatchList:
    """The watches, safe to share among threads. Every method raises `StateUnavailable` if DynamoDB fails."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def add(self, targets: Iterable[Target], expires_in_seconds: int) -> list[Watch]:
        """Watch the targets from now on; one that is watched already gets the new time of expiry."""
        now = int(self._table.clock())
        watches = [Watch(target, now, now + expires_in_seconds) for target in dict.fromkeys(targets)]
        for batch in batched(watches, MAX_BATCH_WRITES, strict=False):
            puts = [{"PutRequest": {"Item": _item(watch)}} for watch in batch]
            list(self._table.batch("batch_write_item", puts, "UnprocessedItems", list))
        return watches

    def remove(self, target: Target) -> None:
        """Watch a target no more; nothing happens if it was not watched."""
        self._table.call("delete_item", Key=key_of("watch", Watch(target, 0, 0).key))

    def page(self, after: str | None, last: str | None = None) -> Page[Watch]:
        """A page of the watches that have not expired, in the order of their keys, up to the key `last`."""
        items, next_key = self._table.query("watch", after, last, consistent=True)
        return Page([_watch(item) for item in items if self._table.is_alive(item)], next_key)

    def count(self) -> int:
        """How many targets are watched."""
        count = 0
        start: dict[str, Any] = {}
        while True:
            answer = self._table.call(
                "query",
                KeyConditionExpression="pk = :pk",
                FilterExpression="expires_at > :now",
                ExpressionAttributeValues={":pk": {"S": "watch"}, ":now": {"N": str(int(self._table.clock()))}},
                Select="COUNT",
                **start,
            )
            count += int(answer["Count"])
            if "LastEvaluatedKey" not in answer:
                return count
            start = {"ExclusiveStartKey": answer["LastEvaluatedKey"]}

    def take_lease(self, token: str) -> tuple[bool, str | None]:
        """Take the lease of the sweep if nobody holds it; whether it was taken, and the cursor that was stored."""
        try:
            answer = self._table.call(
                "update_item",
                Key=_LEASE_KEY,
                UpdateExpression="SET holder = :token, held_until = :until",
                # The client tries again if an answer is lost: its own lease must not keep it out then.
                ConditionExpression="attribute_not_exists(held_until) OR held_until <= :now OR holder = :token",
                ExpressionAttributeValues={
                    ":token": {"S": token},
                    ":now": {"N": str(int(self._table.clock()))},
                    ":until": {"N": str(self._held_until())},
                },
                ReturnValues="ALL_NEW",
            )
        except ConditionFailed:
            return False, None
        return True, answer["Attributes"].get("cursor", {}).get("S") or None

    def keep_lease(self, token: str, cursor: str | None, *, release: bool = False) -> bool:
        """Store the cursor and hold the lease for another minute, or let go of it; False if another holds it now."""
        try:
            self._table.call(
                "update_item",
                Key=_LEASE_KEY,
                UpdateExpression="SET #cursor = :cursor, held_until = :until",
                ConditionExpression="holder = :token",
                ExpressionAttributeNames={"#cursor": "cursor"},
                ExpressionAttributeValues={
                    ":token": {"S": token},
                    ":cursor": {"S": cursor or ""},
                    ":until": {"N": str(0 if release else self._held_until())},
                },
            )
        except ConditionFailed:
            return False
        return True

    def _held_until(self) -> int:
        return math.ceil(self._table.clock() + LEASE_SECONDS)


def parse_expires_in(body: Mapping[str, Any]) -> int:
    """For how many seconds to watch: a day unless `expires_in` says otherwise, 30 days at most."""
    return parse_whole_number(body.get("expires_in", DEFAULT_WATCH_SECONDS), "expires_in", 1, MAX_WATCH_SECONDS)


def _watch(item: Item) -> Watch:
    return Watch(target_of(item), int(item["watched_at"]["N"]), int(item["expires_at"]["N"]))


def _item(watch: Watch) -> Item:
    times = {"watched_at": watch.watched_at, "expires_at": watch.expires_at}
    return {
        **key_of("watch", watch.key),
        **{name: {"S": value} for name, value in watch.target.as_dict().items()},
        **{name: {"N": str(value)} for name, value in times.items()},
    }
