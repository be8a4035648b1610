"""The item of the call limit in DynamoDB: one conditional write reserves slots, another one puts all calls on hold."""

import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError

from stream_state.observability import logger

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_dynamodb.type_defs import UpdateItemOutputTypeDef

# How old what is known of a hold may be when a call begins.
LOOK_SECONDS = 1
_KEY: Mapping[str, Any] = {"pk": {"S": "limiter"}, "sk": {"S": "rtc"}}
_NOT_ON_HOLD = "(attribute_not_exists(hold_until) OR hold_until <= :seconds)"
_IDLE = ("SET next_us = :next", f"(attribute_not_exists(next_us) OR next_us < :now) AND {_NOT_ON_HOLD}")
_BUSY = ("SET next_us = next_us + :more", f"next_us >= :now AND next_us <= :latest AND {_NOT_ON_HOLD}")
_HOLD = ("SET hold_until = :until", "attribute_not_exists(hold_until) OR hold_until < :until")
_LOST = "ConditionalCheckFailedException"
_THROTTLES = frozenset(
    {"ProvisionedThroughputExceededException", "RequestLimitExceeded", "Throttling", "ThrottlingException"}
)


class LimitItem:
    """The item as last seen; times in microseconds since 1970, those of holds in seconds.

    Its `next_us` is when the next call is due, its `hold_until` stops all calls before that time. `was_moved`: others
    had reserved slots since it was seen before; `is_shared`: they go on doing so.
    """

    def __init__(self, client: "DynamoDBClient", table_name: str, wall_clock: Callable[[], float]) -> None:
        self._client = client
        self._table_name = table_name
        self._wall_clock = wall_clock
        self._lock = threading.Lock()
        self._look_lock = threading.Lock()
        self._seen_at_us = 0
        self._hold_until = 0.0
        # A hold that could not be written: it stands in this process at least.
        self.own_hold_until = 0.0
        self.next_us = 0
        self.is_shared = self.was_moved = False

    @property
    def hold_until(self) -> float:
        """Until when all calls are on hold, as far as is known here."""
        return max(self._hold_until, self.own_hold_until)

    def reserve(self, now_us: int, more_us: int, latest_us: int, *, is_busy: bool) -> int | None:
        """When the first of the slots is due that take `more_us`; None if it would be after `latest_us`, or on a hold.

        There is no maximum of two values in DynamoDB, so the likely case is tried: that calls are waiting, if
        `is_busy` or the item was seen so, or that none is. A wrong guess is a None too. Raises botocore's exceptions.
        """
        hold_until = self._hold_until
        values = {":seconds": now_us // 1_000_000, ":now": now_us}
        try:
            if self.next_us > now_us or self.is_shared or is_busy:
                answer = self._update(*_BUSY, values | {":more": more_us, ":latest": latest_us})
            else:
                answer = self._update(*_IDLE, values | {":next": now_us + more_us})
        except ClientError as error:
            if error_code(error) != _LOST:
                raise
            item: Mapping[str, Any] = error.response.get("Item", {})  # type: ignore[assignment]  # typed as object
            self._hold_until = _number(item, "hold_until")
            self._see(int(_number(item, "next_us")), now_us)
            return None
        if self._hold_until == hold_until:
            self._hold_until = 0
        due_us = int(_number(answer["Attributes"], "next_us")) - more_us
        self._see(due_us, now_us)
        self.next_us = due_us + more_us
        return due_us

    def hold(self, until: int) -> bool:
        """Put all calls on hold; False if a hold that is as long is known already. A longer one in the table stays."""
        with self._lock:
            if until <= self._hold_until:
                return False
            self._hold_until = until
        try:
            self._update(*_HOLD, {":until": until})
        except (BotoCoreError, ClientError) as error:
            if error_code(error) != _LOST:
                self.own_hold_until = until
                logger.warning("The hold could not be written to the table.", extra={"error": error_code(error)})
        return True

    def is_on_hold(self) -> bool:
        """Whether calls are on hold, by a look that is at most `LOOK_SECONDS` old; one look serves all threads."""
        with self._look_lock:
            if self._now_us() - self._seen_at_us > LOOK_SECONDS * 1_000_000:
                try:
                    answer = self._client.get_item(TableName=self._table_name, Key=_KEY, ConsistentRead=True)
                    self._hold_until = _number(answer.get("Item", {}), "hold_until")
                except (BotoCoreError, ClientError) as error:
                    logger.warning("A hold could not be looked up.", extra={"error": error_code(error)})
                self._seen_at_us = self._now_us()
        return self.hold_until > self._wall_clock()

    def _see(self, due_us: int, now_us: int) -> None:
        self.was_moved = due_us > max(self.next_us, now_us)
        self.is_shared = due_us > now_us and (self.was_moved or self.is_shared)
        self.next_us = due_us
        self._seen_at_us = self._now_us()

    def _update(self, update: str, condition: str, values: Mapping[str, int]) -> "UpdateItemOutputTypeDef":
        return self._client.update_item(
            TableName=self._table_name,
            Key=_KEY,
            UpdateExpression=update,
            ConditionExpression=condition,
            ExpressionAttributeValues={name: {"N": str(value)} for name, value in values.items()},
            ReturnValues="UPDATED_NEW",
            ReturnValuesOnConditionCheckFailure="ALL_OLD",
        )

    def _now_us(self) -> int:
        return int(self._wall_clock() * 1_000_000)


def is_throttle(error: Exception) -> bool:
    """Whether DynamoDB throttles the item."""
    return error_code(error) in _THROTTLES


def error_code(error: Exception) -> str:
    """What went wrong, in DynamoDB's words or those of its client."""
    response = error.response if isinstance(error, ClientError) else {}
    return str(response.get("Error", {}).get("Code") or type(error).__name__)


def _number(item: Mapping[str, Any], name: str) -> float:
    """A number of an item, 0 if it has none."""
    return float(item.get(name, {}).get("N", 0))
