"""Requests to the DynamoDB table. All its items but the rate limiter's and the lease carry `expires_at`.

DynamoDB deletes expired items late, so readers check `expires_at` (seconds since 1970) themselves.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from botocore.exceptions import BotoCoreError, ClientError

from stream_state.adapters import aws
from stream_state.clock import CLOCK, Clock
from stream_state.domain.targets import Target
from stream_state.errors import StateUnavailable
from stream_state.observability import record_error
from stream_state.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

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
    """The condition of a write did not hold; `item` is the stored item, if there is one."""

    def __init__(self, item: Item | None) -> None:
        super().__init__()
        self.item = item


class Table:
    """Requests to one table, safe to share among threads. Every method raises `StateUnavailable` if DynamoDB fails."""

    def __init__(self, client: "DynamoDBClient", name: str, clock: Clock = CLOCK) -> None:
        self._client = client
        self._name = name
        self.clock = clock

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
        return self._send(operation, TableName=self._name, **parameters)

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

    def get(self, key: Item) -> Item | None:
        """The item of a key if it has not expired, consistently read."""
        item: Item | None = self.call("get_item", Key=key, ConsistentRead=True).get("Item")
        return item if item and self.is_alive(item) else None

    def batch(self, operation: str, requests: Any, undone: str, wrap: Callable[[Any], Any]) -> Iterator[Any]:
        """The answers to requests sent together, again for those that come back as `undone`, after a pause."""
        for _ in range(MAX_TRIES):
            answer = self._send(operation, RequestItems={self._name: wrap(requests)})
            yield from answer.get("Responses", {}).get(self._name, ())
            left = answer.get(undone, {}).get(self._name, [])
            requests = left["Keys"] if isinstance(left, Mapping) else left
            if not requests:
                return
            self.clock.sleep(self.clock.jitter(0, BACKOFF_SECONDS))
        raise unavailable("part of a batch was left undone")

    def query(
        self,
        partition: str,
        after: str | None,
        last: str | None = None,
        *,
        consistent: bool = False,
        most: int = PAGE_ITEMS,
    ) -> tuple[list[Item], str | None]:
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
        return answer["Items"], next_key["sk"]["S"] if next_key else None

    def is_alive(self, item: Item) -> bool:
        """Whether an item has not expired."""
        return int(item["expires_at"]["N"]) > self.clock.now()

    def _send(self, operation: str, **parameters: Any) -> Any:
        try:
            return getattr(self._client, operation)(**parameters)
        except (ClientError, BotoCoreError) as error:
            code = aws.error_code(error)
            if isinstance(error, ClientError) and code == "ConditionalCheckFailedException":
                raise ConditionFailed(error.response.get("Item")) from None  # type: ignore[arg-type]  # not in the stubs
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
    record_error("StateUnavailable")
    return StateUnavailable(f"The table of states did not do what was asked ({reason}). Try again later.")
