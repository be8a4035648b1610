"""The item of a rate limiter: its name and rate, and the conditional writes on it."""

import math
from collections.abc import Mapping
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from stream_state.adapters import aws
from stream_state.adapters.table import Table, key_of
from stream_state.observability import logger

# The names of the items: that of GetUserStreamState, whose hold is the kill switch of all calls, and others.
MAIN, ONLINE_USERS, USERS_PROPERTY = "rtc", "GetRoomOnlineUsers", "GetRoomUsersProperty"
# Calls a second and burst, by item, of actions with limits of their own: 40 a second, and 10 a second for each AppId. A
# call begins up to `LATE_US` after its slot, so a second can hold the slots of 1.2 s: at most 30 * 1.2 + 3 = 39 and
# 8 * 1.2 + 1 = 10 of them.
OWN_LIMITS: Mapping[str, tuple[float, int]] = {ONLINE_USERS: (30, 3), USERS_PROPERTY: (8, 1)}

_NOT_ON_HOLD = "(attribute_not_exists(hold_until) OR hold_until <= :seconds)"
# DynamoDB has no maximum of two values: the instance tries the likelier case first, that slots are reserved or none is.
BUSY = ("SET next_us = next_us + :more", f"next_us >= :now AND next_us <= :latest AND {_NOT_ON_HOLD}")
IDLE = ("SET next_us = :next", f"(attribute_not_exists(next_us) OR next_us < :now) AND {_NOT_ON_HOLD}")
HOLD = ("SET hold_until = :until", "attribute_not_exists(hold_until) OR hold_until < :until")
_THROTTLES = {"ProvisionedThroughputExceededException", "RequestLimitExceeded", "Throttling", "ThrottlingException"}


class LimiterItem:
    """Reads and writes of one item, safe to share among threads."""

    def __init__(self, client: Any, table_name: str, name: str) -> None:
        self._client = client
        self._place: Mapping[str, Any] = {"TableName": table_name, "Key": key_of("limiter", name)}

    def hold_until(self) -> int | None:
        """Until when calls are on hold, in seconds since 1970; None if the table fails."""
        try:
            answer = self._client.get_item(**self._place, ConsistentRead=True)
        except (BotoCoreError, ClientError) as error:
            logger.warning("A hold could not be looked up.", extra={"error": aws.error_code(error)})
            return None
        return number(answer.get("Item", {}), "hold_until")

    def update(self, write: tuple[str, str], values: Mapping[str, int], tries: int = 2) -> tuple[bool, Any]:
        """Whether the condition of a write held, and the item; None for the item if the table fails."""
        try:
            answer = self._client.update_item(
                **self._place,
                UpdateExpression=write[0],
                ConditionExpression=write[1],
                ExpressionAttributeValues={name: {"N": str(value)} for name, value in values.items()},
                ReturnValues="UPDATED_NEW",
                ReturnValuesOnConditionCheckFailure="ALL_OLD",
            )
            return True, answer["Attributes"]
        except (BotoCoreError, ClientError, KeyError) as error:
            code = aws.error_code(error)
            if isinstance(error, ClientError) and code == "ConditionalCheckFailedException":
                return False, error.response.get("Item", {})
            if tries > 1 and code not in _THROTTLES:
                # A kept connection may be dead, for example after Lambda froze the function.
                return self.update(write, values, tries - 1)
            logger.warning("The item of the rate limiter could not be written.", extra={"error": code})
            return False, None


def reserved_until(table: Table) -> tuple[float, float]:
    """Until when slots are reserved, and until when calls are on hold, in seconds since 1970."""
    item = table.call("get_item", Key=key_of("limiter", MAIN)).get("Item", {})
    return number(item, "next_us") / 1_000_000, number(item, "hold_until")


def number(item: Mapping[str, Any], name: str) -> int:
    """A number of the item, 0 if the item has none."""
    return math.ceil(float(item.get(name, {}).get("N", 0)))
