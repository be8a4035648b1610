"""The DynamoDB table: its requests, and the known states in it.

Items by key: `state#<app>#<room>` / user, `state#<app>#<room>#` / `room` (its end), `watch` / `<app>#<room>#<user>`,
`sweep` / `lease`. No room or user id holds the `#`. All but the last carry `expires_at`; since DynamoDB deletes late,
readers check it too.
"""

import json
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import batched
from typing import TYPE_CHECKING, Any, Self

from botocore.exceptions import BotoCoreError, ClientError

from stream_state import aws
from stream_state.errors import StateUnavailable
from stream_state.model import Fact, Known, StreamState, Target
from stream_state.observability import record
from stream_state.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

STATE_LIFE_SECONDS = 86_400
PAGE_ITEMS = 200
MAX_BATCH_KEYS = 100
MAX_TRIES = 10
BACKOFF_SECONDS = 0.2

type Item = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Page[T]:
    """Some of a list, and the key after which the rest begins; None at the end."""

    entries: Sequence[T]
    next_key: str | None


class ConditionFailed(Exception):
    """The condition of a write did not hold; `item` is what is stored, if the write asked for it."""

    def __init__(self, item: Item | None) -> None:
        super().__init__()
        self.item = item


class Table:
    """Requests to one table, safe to share among threads. Every method raises `StateUnavailable` if DynamoDB fails."""

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
        self._sleep = sleep
        self._jitter = jitter
        self.clock = clock

    @classmethod
    def from_settings(cls, settings: Settings, timeout_seconds: float = 2, tries: int = 3) -> Self:
        """The table that `TABLE_NAME` names, with the time-out and tries of each request."""
        name = settings.require("table_name")
        client = aws.client(
            "dynamodb",
            connect_timeout=timeout_seconds,
            read_timeout=timeout_seconds,
            retries={"mode": "standard", "total_max_attempts": tries},
            max_pool_connections=64,
        )
        return cls(client, name)

    def call(self, operation: str, **parameters: Any) -> Any:
        """The answer to a request about the table; raises `ConditionFailed` too."""
        return self._send(operation, TableName=self._name, **parameters)

    def batch(self, operation: str, requests: Any, undone: str, wrap: Callable[[Any], Any]) -> Iterator[Any]:
        """The answers to requests sent together, again for those that come back as `undone`, after a pause."""
        for _ in range(MAX_TRIES):
            answer = self._send(operation, RequestItems={self._name: wrap(requests)})
            yield from answer.get("Responses", {}).get(self._name, ())
            left = answer.get(undone, {}).get(self._name, [])
            requests = left["Keys"] if isinstance(left, Mapping) else left
            if not requests:
                return
            self._sleep(self._jitter(0, BACKOFF_SECONDS))
        raise _unavailable("part of a batch was left undone")

    def query(
        self, partition: str, after: str | None, last: str | None = None, *, consistent: bool = False
    ) -> tuple[list[Item], str | None]:
        """A page of a partition's items, expired ones too, up to the key `last`, and the key it ends with."""
        start: dict[str, Any] = {"ExclusiveStartKey": {"pk": {"S": partition}, "sk": {"S": after}}} if after else {}
        values = {":pk": {"S": partition}} | ({":last": {"S": last}} if last else {})
        answer = self.call(
            "query",
            KeyConditionExpression="pk = :pk AND sk <= :last" if last else "pk = :pk",
            ExpressionAttributeValues=values,
            Limit=PAGE_ITEMS,
            ConsistentRead=consistent,
            **start,
        )
        next_key = answer.get("LastEvaluatedKey")
        return answer["Items"], next_key["sk"]["S"] if next_key else None

    def is_alive(self, item: Item) -> bool:
        """Whether an item has not expired."""
        return int(item["expires_at"]["N"]) > self.clock()

    def _send(self, operation: str, **parameters: Any) -> Any:
        try:
            return getattr(self._client, operation)(**parameters)
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code")
            if code == "ConditionalCheckFailedException":
                raise ConditionFailed(error.response.get("Item")) from None  # type: ignore[arg-type]  # not in the stubs
            raise _unavailable(str(code)) from None
        except BotoCoreError as error:
            raise _unavailable(type(error).__name__) from None


class StateTable(Table):
    """What is known of targets."""

    def observe(self, state: StreamState, before: Known | None = None) -> Known:
        """Merge an observation into what is known of its target, write that, and return it.

        `before` is what was known when it was last read to be merged; else it is read now.
        """
        after = self._merge(before or self._read(state.target), state.facts)
        if after.revision > 2:  # noqa: PLR2004 (as below)
            return after
        # The room may have ended, which is told to those users only of whom something is known. Its end is written
        # before they are listed, and read after they are written, so that neither misses the other; for the second
        # writer too, since the first may have died in between.
        end = self._read(_whole_room(state.target.app_id, state.target.room_id))
        if not end.facts.items() - after.facts.items():
            return after
        ended = self._merge(after, end.facts)
        return replace(ended, was_observed_at_ms=after.was_observed_at_ms, has_turned=after.has_turned)

    def end_room(self, app_id: str, room_id: str, facts: Mapping[str, Fact]) -> None:
        """Remember what the end of a room tells, for users of whom nothing is known yet."""
        self._merge(self._read(_whole_room(app_id, room_id)), facts)

    def mark_told(self, known: Known) -> None:
        """Write that the queue was told what is known, unless it was told something newer meanwhile."""
        values = {
            ":told": {"S": _json(known.state().values)},
            ":sequence": {"N": str(known.sequence)},
            ":one": {"N": "1"},
        }
        with suppress(ConditionFailed):
            self.call(
                "update_item",
                Key=key_of(*_state_key(known.target)),
                UpdateExpression="SET told = :told, told_sequence = :sequence, revision = revision + :one",
                ConditionExpression="told_sequence < :sequence",
                ExpressionAttributeValues=values,
            )

    def read(self, targets: Iterable[Target], *, to_merge: bool = False) -> dict[Target, Known]:
        """What is known of the targets, eventually consistent; those of which nothing is known are left out.

        With `to_merge` consistent and of every target, for `observe`.
        """
        known = {}
        for batch in batched(dict.fromkeys(targets), MAX_BATCH_KEYS, strict=False):
            found = {(item["pk"]["S"], item["sk"]["S"]): item for item in self._batch_get(batch, consistent=to_merge)}
            for target in batch:
                item = found.get(_state_key(target))
                if to_merge or (item and self.is_alive(item)):
                    known[target] = self._known(target, item)
        return known

    def room(self, app_id: str, room_id: str, after: str | None, *, to_merge: bool = False) -> Page[Known]:
        """A page of what is known of a room's users, in the order of their ids; with `to_merge` as `read`."""
        items, next_key = self.query(f"state#{app_id}#{room_id}", after, consistent=to_merge)
        found = [item for item in items if to_merge or self.is_alive(item)]
        return Page([self._known(target_of(item), item) for item in found], next_key)

    def _batch_get(self, targets: Iterable[Target], *, consistent: bool) -> Iterator[Item]:
        keys = [key_of(*_state_key(target)) for target in targets]
        return self.batch(
            "batch_get_item", keys, "UnprocessedKeys", lambda keys: {"Keys": keys, "ConsistentRead": consistent}
        )

    def _read(self, target: Target) -> Known:
        item = self.call("get_item", Key=key_of(*_state_key(target)), ConsistentRead=True).get("Item")
        return self._known(target, item)

    def _merge(self, known: Known, facts: Mapping[str, Fact]) -> Known:
        """Write what the facts make of what is known, or of what others have written meanwhile."""
        for _ in range(MAX_TRIES):
            merged = known.merged(facts, int(self.clock() * 1000))
            condition: dict[str, Any] = {"ConditionExpression": "attribute_not_exists(revision)"}
            if known.revision:
                condition = {
                    "ConditionExpression": "revision = :revision",
                    "ExpressionAttributeValues": {":revision": {"N": str(known.revision)}},
                }
            try:
                self.call(
                    "put_item", Item=self._item(merged), ReturnValuesOnConditionCheckFailure="ALL_OLD", **condition
                )
            except ConditionFailed as failed:
                known = self._known(known.target, failed.item)
            else:
                return merged
        raise _unavailable("others wrote the same state each time")

    def _item(self, known: Known) -> Item:
        facts = {name: [fact.value, fact.at_ms] for name, fact in known.facts.items()}
        numbers = {
            "sequence": known.sequence,
            "revision": known.revision,
            "told_sequence": known.told_sequence,
            "expires_at": int(self.clock()) + STATE_LIFE_SECONDS,
        }
        return {
            **key_of(*_state_key(known.target)),
            **{name: {"S": value} for name, value in known.target.as_dict().items()},
            **{name: {"N": str(value)} for name, value in numbers.items()},
            **{name: {"S": _json(value)} for name, value in (("facts", facts), ("told", known.told))},
        }

    def _known(self, target: Target, item: Item | None) -> Known:
        if not item:
            return Known(target)
        facts = {name: Fact(*fact) for name, fact in json.loads(item["facts"]["S"]).items()}
        sequence, told_sequence, revision = (int(item[name]["N"]) for name in ("sequence", "told_sequence", "revision"))
        known = Known(target, facts, sequence, json.loads(item["told"]["S"]), told_sequence, revision)
        return known if self.is_alive(item) else known.forgotten()


def target_of(item: Item) -> Target:
    """The target that an item is about."""
    return Target(item["app_id"]["S"], item["room_id"]["S"], item["user_id"]["S"])


def key_of(pk: str, sk: str) -> Item:
    """The key of an item."""
    return {"pk": {"S": pk}, "sk": {"S": sk}}


def _state_key(target: Target) -> tuple[str, str]:
    return f"state#{target.app_id}#{target.room_id}", target.user_id


def _whole_room(app_id: str, room_id: str) -> Target:
    """Stands for the room itself; it is none of the room's users, since no room's id holds the #."""
    return Target(app_id, f"{room_id}#", "room")


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def _unavailable(reason: str) -> StateUnavailable:
    record("RtcErrors", error="StateUnavailable")
    return StateUnavailable(f"The table of known states did not do what was asked ({reason}). Try again later.")
