"""The number of requests to each AWS service, as docs/cost.md states it for the cost."""

import json
import re
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest

from stream_state.lookup import Lookup
from stream_state.model import Target
from stream_state.sweep import Sweep, SweepRequest
from tests.integration.conftest import Stack
from tests.sandbox.aws import Reply
from tests.sandbox.simulator import APP_ID, KEYS
from tests.sandbox.stack import REPOSITORY

TARGETS = [Target(APP_ID, "class-1", f"user-{number}") for number in range(10)]
GIVEN = SweepRequest(TARGETS, "changes")
ROWS = {
    "limiter": "DynamoDB `UpdateItem` of the limiter",
    "read": "DynamoDB `GetItem` of the state, consistent",
    "write": "DynamoDB `PutItem` of the state",
    "told": "DynamoDB `UpdateItem` of what was told",
    "batch": "DynamoDB `BatchGetItem`",
    "send": "SQS `SendMessageBatch`",
}


def documented() -> dict[str, dict[str, str]]:
    """The table of the document: by column, the cell of each row."""
    text = (REPOSITORY / "docs" / "cost.md").read_text()
    table = text[text.index("| request | HTTP lookup") :].split("\n\n")[0]
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines())
    return {column: {row[0]: row[number] for row in rows} for number, column in enumerate(head)}


def kind(operation: str, call: Mapping[str, Any]) -> str:
    """Which row of the table a request belongs to."""
    name = operation.partition(".")[2]
    if "limiter" in str(call.get("Key")):
        return "limiter"
    words = {"GetItem": "read", "PutItem": "write", "BatchGetItem": "batch", "SendMessageBatch": "send"}
    if "told = " in call.get("UpdateExpression", ""):
        return "told"
    return words.get(name, operation)


@pytest.fixture
def counts(stack: Stack) -> Counter[str]:
    """The requests since the last `clear`, by kind."""
    counted: Counter[str] = Counter()

    def count(operation: str, call: Mapping[str, Any]) -> Reply | None:
        counted[kind(operation, call)] += 1
        return None

    secret = stack.aws.client("secretsmanager").create_secret(
        Name=stack.settings.table_name, SecretString=json.dumps(vars(KEYS))
    )
    stack.environment["RTC_SECRET_ID"] = secret["ARN"]
    stack.__post_init__()
    stack.aws.intercept = count
    for target in TARGETS:
        stack.simulator.publish(target.room_id, target.user_id, "Audio")
    return counted


def assert_as_documented(column: str, counts: Counter[str], targets: int) -> None:
    """Each row of the column says what was counted: exactly, at most, or one for so many targets."""
    cells = documented()[column]
    for name, row in ROWS.items():
        numbers = [int(number) for number in re.findall(r"[0-9]+", cells[row].partition(",")[0])]
        if cells[row].startswith("at most"):
            assert counts[name] <= numbers[0] * targets, row
        elif len(numbers) == 2:
            assert counts[name] == numbers[0] * -(-targets // numbers[1]), row
        else:
            assert counts[name] == numbers[0] * targets, row
    # And nothing else was asked for.
    assert counts.keys() <= ROWS.keys()


def soon() -> float:
    return time.monotonic() + 30


def test_a_lookup_costs_what_is_documented(stack: Stack, counts: Counter[str]) -> None:
    lookup = Lookup.from_settings(stack.settings, stack.table(), "api")
    # The first two writes of a target look whether its room has ended.
    for _ in range(2):
        lookup.one(TARGETS[0], soon())
    # An instance reads the secret once.
    assert counts.pop("secretsmanager.GetSecretValue") == 1
    counts.clear()

    lookup.one(TARGETS[0], soon())

    assert_as_documented("HTTP lookup", counts, 1)


@pytest.mark.parametrize("targets", [TARGETS[:1], TARGETS])
def test_an_answer_from_the_table_costs_what_is_documented(
    stack: Stack, counts: Counter[str], targets: list[Target]
) -> None:
    lookup = Lookup.from_settings(stack.settings, stack.table(), "api")
    lookup.some(targets, soon())
    counts.clear()

    outcomes = lookup.some(targets, soon(), 3600)

    assert len(outcomes) == len(targets)
    assert_as_documented("answer from the table (`max_age`)", counts, len(targets))


def test_a_swept_target_costs_what_is_documented(stack: Stack, counts: Counter[str]) -> None:
    sweep = Sweep.from_settings(stack.settings)
    sweep.run(GIVEN, soon(), soon())
    counts.clear()

    assert sweep.run(GIVEN, soon(), soon())["unchanged"] == len(TARGETS)
    assert_as_documented("sweep, nothing new", counts, len(TARGETS))
    counts.clear()

    for target in TARGETS:
        stack.simulator.publish(target.room_id, target.user_id, "Video")
    assert sweep.run(GIVEN, soon(), soon())["delivered"] == len(TARGETS)
    assert_as_documented("sweep, news", counts, len(TARGETS))


def test_a_watched_sweep_adds_its_list_and_its_lease(stack: Stack, counts: Counter[str]) -> None:
    stack.watch_list().add(TARGETS, 3600)
    sweep = Sweep.from_settings(stack.settings)
    sweep.run(GIVEN, soon(), soon())
    counts.clear()

    assert sweep.run(SweepRequest(None, "changes"), soon(), soon())["unchanged"] == len(TARGETS)

    # One Query for each 200 watches; the lease is written when the sweep begins and when it ends.
    assert counts.pop("DynamoDB_20120810.Query") == 1
    assert counts.pop("DynamoDB_20120810.UpdateItem") == 2
    assert_as_documented("sweep, nothing new", counts, len(TARGETS))
