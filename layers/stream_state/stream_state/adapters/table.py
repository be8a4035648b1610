"""Requests to the DynamoDB table. All its items but the rate limiter's and the lease carry `expires_at`.

DynamoDB deletes expired items late, so readers check `expires_at` (seconds since 1970) themselves.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import batched
from typing import Any, Self

from botocore.exceptions import BotoCoreError, ClientError

from stream_state.adapters import aws
from stream_state.clock import CLOCK, Clock
from stream_state.domain.targets import Target
from stream_state.errors import StateUnavailable
from stream_state.observability import add_metric
from stream_state.settings import Settings

PAGE_ITEMS = 200
MAX_BATCH_KEYS = 100
MAX_BATCH_WRITES = 25
MAX_TRIES = 10
BACKOFF_SECONDS = 0.2
# Two tries and botocore's pause of at most a second between them end within `RESERVE_SECONDS`.
CONNECT_TIMEOUT_SECONDS, READ_TIMEOUT_SECONDS, TRIES = 0.5, 0.9, 2
RESERVE_SECONDS = 4

type Item = Mapping[str, Any]
type Scalar = str | int | bool


@dataclass(frozen=True, slots=True)
class Page[T]:
    """A part of a list, and the key after which the rest begins; None at the end."""

    entries: Sequence[T]
    next_key: str | None


def entries_of[T](page: Callable[[str | None], Page[T]], after: str | None = None) -> Iterator[T]:
    """The entries of a list after a key, each page read when its turn comes; `page` gets the key before it."""
    while True:
        found = page(after)
        yield from found.entries
        if (after := found.next_key) is None:
            return


class ConditionFailed(Exception):
    """The condition of a write did not hold; `item` is the stored item, empty if there is none."""

    def __init__(self, item: Item) -> None:
        super().__init__()
        self.item = item


@dataclass(eq=False)
class Table:
    """Requests to one table, safe to share among threads. Every method raises `StateUnavailable` if DynamoDB fails."""

    client: Any
    name: str
    clock: Clock = CLOCK

    @classmethod
    def from_settings(cls, settings: Settings, read_timeout_seconds: float = READ_TIMEOUT_SECONDS) -> Self:
        """The table that `TABLE_NAME` names, with the time-out of each try of a request."""
        name = settings.require("table_name")
        client = aws.client(
            "dynamodb",
            connect_timeout=CONNECT_TIMEOUT_SECONDS,
            read_timeout=read_timeout_seconds,
            retries={"mode": "standard", "total_max_attempts": TRIES},
            max_pool_connections=64,
        )
        return cls(client, name)

    def call(self, operation: str, **parameters: Any) -> Any:
        """The answer to a request about the table; raises `ConditionFailed` too."""
        return self._send(operation, TableName=self.name, **parameters)

    def write(self, operation: str, condition: str, values: Mapping[str, Scalar], **more: Any) -> Any:
        """Write one item if a condition on the stored one holds; `ConditionFailed` brings the stored one."""
        # DynamoDB refuses an empty map of values.
        placed = {"ExpressionAttributeValues": attributes(values)} if values else {}
        return self.call(
            operation,
            ConditionExpression=condition,
            ReturnValuesOnConditionCheckFailure="ALL_OLD",
            **placed,
            **more,
        )

    def update(self, key: Item, changes: Mapping[str, Scalar], condition: str, **values: Scalar) -> Item:
        """Set attributes of an item if a condition holds, each by a value of its own name; the item after that."""
        answer = self.write(
            "update_item",
            condition,
            {f":{name}": value for name, value in {**changes, **values}.items()},
            Key=key,
            UpdateExpression="SET " + ", ".join(f"{name} = :{name}" for name in changes),
            ReturnValues="ALL_NEW",
        )
        item: Item = answer["Attributes"]
        return item

    def get_all(self, keys: Iterable[Item], *, consistent: bool) -> Iterator[Item]:
        """The items of those keys that have one, expired ones too, in any order."""
        for batch in batched(keys, MAX_BATCH_KEYS, strict=False):
            yield from self._batch("batch_get_item", {"Keys": batch, "ConsistentRead": consistent}, "UnprocessedKeys")

    def put_all(self, items: Iterable[Item]) -> None:
        """Write items in place of those with the same keys."""
        for batch in batched(items, MAX_BATCH_WRITES, strict=False):
            puts = [{"PutRequest": {"Item": item}} for item in batch]
            list(self._batch("batch_write_item", puts, "UnprocessedItems"))

    def query(
        self,
        partition: str,
        after: str | None = None,
        last: str | None = None,
        *,
        consistent: bool = False,
        most: int = PAGE_ITEMS,
    ) -> Page[Item]:
        """A page of a partition's items, expired ones too, up to the key `last`, and the key it ends with."""
        start: dict[str, Any] = {"ExclusiveStartKey": key_of(partition, after)} if after else {}
        values = {":pk": partition} | ({":last": last} if last else {})
        answer = self.call(
            "query",
            KeyConditionExpression="pk = :pk AND sk <= :last" if last else "pk = :pk",
            ExpressionAttributeValues=attributes(values),
            Limit=most,
            ConsistentRead=consistent,
            **start,
        )
        next_key = answer.get("LastEvaluatedKey")
        return Page(answer["Items"], next_key["sk"]["S"] if next_key else None)

    def count(self, partition: str) -> int:
        """The number of a partition's items that have not expired; an answer counts a megabyte of them."""
        count, start = 0, dict[str, Any]()
        while True:
            answer = self.call(
                "query",
                KeyConditionExpression="pk = :pk",
                FilterExpression="expires_at > :now",
                ExpressionAttributeValues=attributes({":pk": partition, ":now": int(self.clock.now())}),
                Select="COUNT",
                **start,
            )
            count += int(answer["Count"])
            if "LastEvaluatedKey" not in answer:
                return count
            start = {"ExclusiveStartKey": answer["LastEvaluatedKey"]}

    def is_alive(self, item: Item) -> bool:
        """Whether an item has not expired."""
        return int(item["expires_at"]["N"]) > self.clock.now()

    def _batch(self, operation: str, requests: Any, undone: str) -> Iterator[Item]:
        """The items that requests sent together bring; those left `undone` are sent again after a pause."""
        for _ in range(MAX_TRIES):
            answer = self._send(operation, RequestItems={self.name: requests})
            yield from answer.get("Responses", {}).get(self.name, ())
            requests = answer.get(undone, {}).get(self.name)
            if not requests:
                return
            self.clock.sleep(self.clock.jitter(0, BACKOFF_SECONDS))
        raise unavailable("part of a batch was left undone")

    def _send(self, operation: str, **parameters: Any) -> Any:
        try:
            return getattr(self.client, operation)(**parameters)
        except (ClientError, BotoCoreError) as error:
            code = aws.error_code(error)
            if isinstance(error, ClientError) and code == "ConditionalCheckFailedException":
                raise ConditionFailed(error.response.get("Item", {})) from None  # type: ignore[arg-type]  # not in the stubs
            raise unavailable(code) from None


def attributes(values: Mapping[str, Scalar]) -> dict[str, Any]:
    """Values by name as DynamoDB's JSON."""
    types = {bool: "BOOL", str: "S", int: "N"}
    return {name: {types[type(value)]: str(value) if type(value) is int else value} for name, value in values.items()}


def key_of(pk: str, sk: str) -> dict[str, Any]:
    """The key of an item."""
    return attributes({"pk": pk, "sk": sk})


def target_of(item: Item) -> Target:
    """The target that an item is about."""
    return Target(item["app_id"]["S"], item["room_id"]["S"], item["user_id"]["S"])


def unavailable(reason: str) -> StateUnavailable:
    """The error of a failed request, counted."""
    add_metric("Errors", error="StateUnavailable")
    return StateUnavailable(f"The table of states did not do what was asked ({reason}). Try again later.")
