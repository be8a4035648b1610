"""The waits of workflows in the table, by target, and the answers to their task tokens."""

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from stream_state.adapters import aws
from stream_state.adapters.table import ConditionFailed, Table, attributes, entries_of, key_of
from stream_state.domain.targets import Medium, Target
from stream_state.domain.waits import Wait, WaitCondition
from stream_state.observability import add_metric, logger

# Two tries end within the time that a callback event has.
_TIMEOUTS = {"connect_timeout": 0.3, "read_timeout": 0.3}
_client = partial(aws.client_on_demand, "stepfunctions", **_TIMEOUTS, retries=aws.ONE_TRY, max_pool_connections=64)
_DEAD = {"TaskDoesNotExist", "TaskTimedOut", "InvalidToken"}


@dataclass(eq=False)
class WaitList:
    """The waits, safe to share among threads. Every method raises `StateUnavailable` if DynamoDB fails."""

    table: Table

    def add(self, target: Target, wait: Wait, begun_at_ms: int) -> None:
        """Keep a wait, in place of the round before, for the interval after which its token is dead."""
        item = attributes(
            {
                "task_token": wait.token,
                "medium": str(wait.condition.medium or ""),
                "publishing": wait.condition.publishing,
                "deadline": int(wait.condition.deadline),
                "since_ms": wait.since_ms,
                "begun_at_ms": begun_at_ms,
                "expires_at": begun_at_ms // 1000 + (wait.condition.interval_seconds or 0) + 1,
            }
        )
        condition = "attribute_not_exists(begun_at_ms) OR begun_at_ms <= :begun_at_ms"
        item |= key_of(_partition(target), wait.id)
        # An older round whose request comes late replaces no newer one.
        with suppress(ConditionFailed):
            self.table.write("put_item", condition, {":begun_at_ms": begun_at_ms}, Item=item)

    def of(self, target: Target) -> list[Wait]:
        """The waits for a target."""
        items = entries_of(partial(self.table.query, _partition(target), consistent=True))
        return [_wait(item) for item in items if self.table.is_alive(item)]

    def remove(self, target: Target, wait: Wait) -> None:
        """Remove a wait, but not a newer round of it."""
        with suppress(ConditionFailed):
            key = key_of(_partition(target), wait.id)
            self.table.write("delete_item", "task_token = :token", {":token": wait.token}, Key=key)


@dataclass(eq=False)
class Workflows:
    """The workflows in Step Functions that wait with a task token; safe to share among threads."""

    client: Callable[[], Any] = field(default_factory=_client)

    def answer(self, token: str, document: Mapping[str, Any]) -> bool:
        """Let a workflow go on with an answer; False if Step Functions failed. A dead token is done too."""
        send = partial(self.client().send_task_success, taskToken=token, output=json.dumps(document))
        try:
            try:
                send()
            except BotoCoreError:
                # A kept connection may be dead.
                send()
        except (BotoCoreError, ClientError) as error:
            code = aws.error_code(error)
            if code not in _DEAD:
                logger.warning("A workflow that waits could not be answered.", extra={"error": code})
                add_metric("Errors", error="WakeFailed")
                return False
        else:
            add_metric("WaitsWoken")
        return True


def _partition(target: Target) -> str:
    return f"wait#{target.app_id}#{target.room_id}#{target.user_id}"


def _wait(item: Mapping[str, Any]) -> Wait:
    medium = item["medium"]["S"]
    deadline = float(item["deadline"]["N"])
    condition = WaitCondition(Medium(medium) if medium else None, item["publishing"]["BOOL"], deadline)
    return Wait(item["sk"]["S"], item["task_token"]["S"], condition, int(item["since_ms"]["N"]))
