"""The DynamoDB table: known states, watches, and the lease and cursor of the sweep.

Items by key: `state#<app>#<room>` / user, `state#<app>#<room>#` / `room` (its end), `watch` / `<app>#<room>#<user>`,
`sweep` / `lease`. No room or user id holds the `#`. All but the last carry `expires_at`; since DynamoDB deletes late,
readers check it too.
"""

import json
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import batched
from typing import TYPE_CHECKING, Any, Self

from botocore.exceptions import BotoCoreError, ClientError

from stream_state import aws
from stream_state.errors import StateUnavailable
from stream_state.model import Fact, Known, StreamState, Target, iso_time
from stream_state.settings import Settings, SettingsError
from stream_state.validation import parse_whole_number

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

STATE_LIFE_SECONDS = 86_400
DEFAULT_WATCH_SECONDS = 86_400
MAX_WATCH_SECONDS = 2_592_000
LEASE_SECONDS = 60
PAGE_ITEMS = 200
MAX_BATCH_KEYS = 100
MAX_BATCH_WRITES = 25
MAX_TRIES = 10
BACKOFF_SECONDS = 0.2

type Item = Mapping[str, Any]


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


@dataclass(frozen=True, slots=True)
class Page[T]:
    """Some of a list, and the key after which the rest begins; None at the end."""

    entries: Sequence[T]
    next_key: str | None


class StateTable:
    """One table, safe to share among threads. Every method raises `StateUnavailable` if DynamoDB fails."""

    def __init__(
        self,
        client: "DynamoDBClient",
        name: str,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._client = client
        self._name = name
        self._clock = clock
        self._sleep = sleep
        self._jitter = jitter

    @classmethod
    def from_settings(cls, settings: Settings, timeout_seconds: float = 1, tries: int = 3) -> Self:
        """The table that `TABLE_NAME` names, with the time-out and tries of each request."""
        if not settings.table_name:
            message = "TABLE_NAME is not set."
            raise SettingsError(message)
        client = aws.client(
            "dynamodb",
            connect_timeout=timeout_seconds,
            read_timeout=timeout_seconds,
            retries={"mode": "standard", "total_max_attempts": tries},
            max_pool_connections=64,
        )
        return cls(client, settings.table_name)

    def observe(self, state: StreamState) -> Known:
        """Merge an observation into what is known of its target, write that, and return it."""
        key = _state_key(state.target)
        found = self._call("get_item", Key=key, ConsistentRead=True).get("Item")
        for _ in range(MAX_TRIES):
            before = self._known(state.target, found)
            facts = state.facts
            if not before.facts:
                # The room may have ended since: its end was told to those users only of whom something was known.
                facts = self._room_end(state.target).merged(facts, 0).facts
            after = before.merged(facts, int(self._clock() * 1000))
            try:
                self._write(key, before, after)
            except _ConditionFailed as failed:
                found = failed.item
            else:
                return after
        message = "Too many writers at once to the known state of a target. Try again."
        raise StateUnavailable(message)

    def end_room(self, app_id: str, room_id: str, facts: Mapping[str, Fact]) -> None:
        """Remember what the end of a room tells, for users of whom nothing is known yet."""
        room = _whole_room(app_id, room_id)
        self.observe(StreamState(room, facts, "callback"))

    def _room_end(self, target: Target) -> Known:
        room = _whole_room(target.app_id, target.room_id)
        return self._known(room, self._call("get_item", Key=_state_key(room), ConsistentRead=True).get("Item"))

    def _write(self, key: Item, before: Known, after: Known) -> None:
        facts = {name: [fact.value, fact.at_ms] for name, fact in after.facts.items()}
        values = {
            ":facts": {"S": json.dumps(facts, separators=(",", ":"))},
            ":sequence": {"N": str(after.sequence)},
            ":revision": {"N": str(after.revision)},
            ":expires_at": {"N": str(int(self._clock()) + STATE_LIFE_SECONDS)},
            ":app_id": {"S": after.target.app_id},
            ":room_id": {"S": after.target.room_id},
            ":user_id": {"S": after.target.user_id},
        }
        assignments = ", ".join(f"#{name[1:]} = {name}" for name in values)
        condition = "attribute_not_exists(#revision)"
        if before.revision:
            condition = "#revision = :before"
            values[":before"] = {"N": str(before.revision)}
        self._call(
            "update_item",
            Key=key,
            UpdateExpression=f"SET {assignments}",
            ConditionExpression=condition,
            ExpressionAttributeNames={f"#{name[1:]}": name[1:] for name in values if name != ":before"},
            ExpressionAttributeValues=values,
            ReturnValuesOnConditionCheckFailure="ALL_OLD",
        )

    def mark_told(self, known: Known) -> None:
        """Write that the queue was told what is known, unless it was told something newer meanwhile."""
        values = json.dumps(known.state().values, separators=(",", ":"))
        try:
            self._call(
                "update_item",
                Key=_state_key(known.target),
                UpdateExpression="SET told = :told, told_sequence = :sequence",
                ConditionExpression="attribute_exists(pk) AND (attribute_not_exists(told_sequence)"
                " OR told_sequence < :sequence)",
                ExpressionAttributeValues={":told": {"S": values}, ":sequence": {"N": str(known.sequence)}},
            )
        except _ConditionFailed:
            return

    def read(self, targets: Iterable[Target]) -> dict[Target, Known]:
        """What is known of the targets, eventually consistent; those of which nothing is known are left out."""
        known = {}
        for batch in batched(dict.fromkeys(targets), MAX_BATCH_KEYS, strict=False):
            by_key = {(key["pk"]["S"], key["sk"]["S"]): target for target in batch for key in [_state_key(target)]}
            keys = [_state_key(target) for target in batch]
            for item in self._batch_get(keys):
                target = by_key[item["pk"]["S"], item["sk"]["S"]]
                if self._is_alive(item):
                    known[target] = self._known(target, item)
        return known

    def _pause(self) -> None:
        """Wait before asking for what DynamoDB left undone."""
        self._sleep(self._jitter(0, BACKOFF_SECONDS))

    def _batch_get(self, keys: list[Item]) -> Iterator[Item]:
        for _ in range(MAX_TRIES):
            answer = self._call("batch_get_item", RequestItems={self._name: {"Keys": keys}}, table=None)
            yield from answer.get("Responses", {}).get(self._name, ())
            keys = answer.get("UnprocessedKeys", {}).get(self._name, {}).get("Keys", [])
            if not keys:
                return
            self._pause()
        message = "DynamoDB left part of a read undone. Try again."
        raise StateUnavailable(message)

    def room(self, app_id: str, room_id: str, after: str | None, *, consistent: bool = False) -> Page[Known]:
        """A page of what is known of a room's users, in the order of their ids."""
        items, next_key = self._query(f"state#{app_id}#{room_id}", after, consistent=consistent)
        return Page([self._known(_target(item), item) for item in items], next_key)

    def watch(self, targets: Iterable[Target], expires_in_seconds: int) -> list[Watch]:
        """Watch the targets from now on; one that is watched already gets the new time of expiry."""
        now = int(self._clock())
        watches = [Watch(target, now, now + expires_in_seconds) for target in dict.fromkeys(targets)]
        for batch in batched(watches, MAX_BATCH_WRITES, strict=False):
            requests: list[Any] = [{"PutRequest": {"Item": _watch_item(watch)}} for watch in batch]
            for _ in range(MAX_TRIES):
                answer = self._call("batch_write_item", RequestItems={self._name: requests}, table=None)
                requests = answer.get("UnprocessedItems", {}).get(self._name, [])
                if not requests:
                    break
                self._pause()
            else:
                message = "DynamoDB left part of a write undone. Try again."
                raise StateUnavailable(message)
        return watches

    def unwatch(self, target: Target) -> None:
        """Watch a target no more; nothing happens if it was not watched."""
        self._call("delete_item", Key={"pk": {"S": "watch"}, "sk": {"S": Watch(target, 0, 0).key}})

    def watches(self, after: str | None, last: str | None = None) -> Page[Watch]:
        """A page of the watches that have not expired, in the order of their keys, up to the key `last`."""
        items, next_key = self._query("watch", after, last, consistent=True)
        return Page(
            [Watch(_target(item), int(item["watched_at"]["N"]), int(item["expires_at"]["N"])) for item in items],
            next_key,
        )

    def count_watches(self) -> int:
        """How many targets are watched."""
        count = 0
        start: dict[str, Any] = {}
        while True:
            answer = self._call(
                "query",
                KeyConditionExpression="pk = :pk",
                FilterExpression="expires_at > :now",
                ExpressionAttributeValues={":pk": {"S": "watch"}, ":now": {"N": str(int(self._clock()))}},
                Select="COUNT",
                **start,
            )
            count += int(answer["Count"])
            if "LastEvaluatedKey" not in answer:
                return count
            start = {"ExclusiveStartKey": answer["LastEvaluatedKey"]}

    def take_lease(self, token: str) -> tuple[bool, str | None]:
        """Take the lease of the sweep if nobody holds it; whether it was taken, and the cursor that was stored."""
        now = int(self._clock())
        try:
            answer = self._call(
                "update_item",
                Key=_LEASE_KEY,
                UpdateExpression="SET holder = :token, held_until = :until",
                ConditionExpression="attribute_not_exists(held_until) OR held_until <= :now",
                ExpressionAttributeValues={
                    ":token": {"S": token},
                    ":now": {"N": str(now)},
                    ":until": {"N": str(math.ceil(self._clock() + LEASE_SECONDS))},
                },
                ReturnValues="ALL_NEW",
            )
        except _ConditionFailed:
            return False, None
        return True, answer["Attributes"].get("cursor", {}).get("S") or None

    def keep_lease(self, token: str, cursor: str | None, *, release: bool = False) -> bool:
        """Store the cursor and hold the lease for another minute, or let go of it; False if another holds it now."""
        until = 0 if release else math.ceil(self._clock() + LEASE_SECONDS)
        try:
            self._call(
                "update_item",
                Key=_LEASE_KEY,
                UpdateExpression="SET #cursor = :cursor, held_until = :until",
                ConditionExpression="holder = :token",
                ExpressionAttributeNames={"#cursor": "cursor"},
                ExpressionAttributeValues={
                    ":token": {"S": token},
                    ":cursor": {"S": cursor or ""},
                    ":until": {"N": str(until)},
                },
            )
        except _ConditionFailed:
            return False
        return True

    def _query(
        self, partition: str, after: str | None, last: str | None = None, *, consistent: bool = False
    ) -> tuple[list[Item], str | None]:
        start: dict[str, Any] = {"ExclusiveStartKey": {"pk": {"S": partition}, "sk": {"S": after}}} if after else {}
        values = {":pk": {"S": partition}} | ({":last": {"S": last}} if last else {})
        answer = self._call(
            "query",
            KeyConditionExpression="pk = :pk AND sk <= :last" if last else "pk = :pk",
            ExpressionAttributeValues=values,
            Limit=PAGE_ITEMS,
            ConsistentRead=consistent,
            **start,
        )
        next_key = answer.get("LastEvaluatedKey")
        return [item for item in answer["Items"] if self._is_alive(item)], next_key["sk"]["S"] if next_key else None

    def _is_alive(self, item: Item) -> bool:
        return int(item["expires_at"]["N"]) > self._clock()

    def _known(self, target: Target, item: Item | None) -> Known:
        if not item:
            return Known(target)
        told = json.loads(item["told"]["S"]) if "told" in item else None
        told_sequence = int(item["told_sequence"]["N"]) if "told_sequence" in item else 0
        revision = int(item["revision"]["N"])
        facts = {name: Fact(*fact) for name, fact in json.loads(item["facts"]["S"]).items()}
        known = Known(target, facts, int(item["sequence"]["N"]), told, told_sequence, revision)
        return known if self._is_alive(item) else known.forgotten()

    def _call(self, operation: str, *, table: str | None = "", **parameters: Any) -> Any:
        if table is not None:
            parameters["TableName"] = self._name
        try:
            return getattr(self._client, operation)(**parameters)
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code")
            if code == "ConditionalCheckFailedException":
                raise _ConditionFailed(error.response.get("Item")) from None  # type: ignore[arg-type]  # not in the stubs
            raise _unavailable(str(code)) from None
        except BotoCoreError as error:
            raise _unavailable(type(error).__name__) from None


class _ConditionFailed(Exception):
    """Another writer came first; `item` is what is stored now."""

    def __init__(self, item: Item | None) -> None:
        super().__init__()
        self.item = item


def _unavailable(reason: str) -> StateUnavailable:
    return StateUnavailable(f"The table of known states did not answer ({reason}). Try again later.")


_LEASE_KEY: Item = {"pk": {"S": "sweep"}, "sk": {"S": "lease"}}


def _whole_room(app_id: str, room_id: str) -> Target:
    """Stands for the room itself; it is none of the room's users, since no room's id holds the #."""
    return Target(app_id, f"{room_id}#", "room")


def _state_key(target: Target) -> Item:
    return {"pk": {"S": f"state#{target.app_id}#{target.room_id}"}, "sk": {"S": target.user_id}}


def _watch_item(watch: Watch) -> Item:
    times = {"watched_at": watch.watched_at, "expires_at": watch.expires_at}
    return {
        "pk": {"S": "watch"},
        "sk": {"S": watch.key},
        **{name: {"S": value} for name, value in watch.target.as_dict().items()},
        **{name: {"N": str(value)} for name, value in times.items()},
    }


def _target(item: Item) -> Target:
    return Target(item["app_id"]["S"], item["room_id"]["S"], item["user_id"]["S"])


def parse_expires_in(body: Mapping[str, Any]) -> int:
    """For how many seconds to watch: a day unless `expires_in` says otherwise, 30 days at most."""
    return parse_whole_number(body.get("expires_in", DEFAULT_WATCH_SECONDS), "expires_in", 1, MAX_WATCH_SECONDS)
