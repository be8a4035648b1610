"""The number of requests to each AWS service, as docs/cost.md states it for the cost."""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest

from stream_state.adapters import rate_limiter
from stream_state.clock import CLOCK
from stream_state.domain.requests import SweepRequest
from stream_state.domain.targets import Medium, Target
from stream_state.domain.waits import Wait, WaitCondition
from stream_state.services.callbacks import Callbacks
from stream_state.services.lookup import Lookup
from stream_state.services.sweep import Sweep
from stream_state.services.waits import begin_round
from tests.integration.conftest import Stack, receive, soon
from tests.sandbox.simulator import APP_ID
from tests.sandbox.stack import REPOSITORY
from tests.unit.callback_world import AUDIO, JOIN, VIDEO, signed

TARGETS = [Target(APP_ID, "class-1", f"user-{number}") for number in range(10)]
GIVEN, WATCHED = SweepRequest(TARGETS, emits_all=False), SweepRequest(None, emits_all=False)
ROWS = {
    "limiter": "DynamoDB `UpdateItem` of the limiter",
    "state": "DynamoDB `PutItem` of the state record",
    "read": "DynamoDB `BatchGetItem`",
    "list": "DynamoDB `Query` of undelivered changes",
    "send": "SQS `SendMessageBatch`",
}
WAIT_ROWS = {
    "mark": "DynamoDB `UpdateItem` of the record's mark",
    "wait PutItem": "DynamoDB `PutItem` of the wait",
    "state": "DynamoDB `PutItem` of the state record",
    "wait Query": "DynamoDB `Query` of the waits",
    "wait DeleteItem": "DynamoDB `DeleteItem` of the wait",
    "SendTaskSuccess": "Step Functions `SendTaskSuccess`",
}


def documented(first: str = "HTTP lookup") -> dict[str, dict[str, str]]:
    """A table of the document, the one with that first column: by column, the cell of each row."""
    text = (REPOSITORY / "docs" / "cost.md").read_text()
    table = text[text.index(f"| request | {first}") :].split("\n\n")[0]
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines())
    return {column: {row[0]: row[number] for row in rows} for number, column in enumerate(head)}


def kind(operation: str, call: Mapping[str, Any]) -> str:
    """Which row of the table a request belongs to."""
    if "limiter" in str(call.get("Key")):
        return "limiter"
    if "has_waits" in call.get("UpdateExpression", ""):
        return "mark"
    if "wait#" in str(call):
        return f"wait {operation.partition('.')[2]}"
    name = "list" if "IndexName" in call else operation.partition(".")[2]
    return {"PutItem": "state", "BatchGetItem": "read", "SendMessageBatch": "send"}.get(name, name)


@pytest.fixture
def counts(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """The requests since the last `clear`, by kind."""
    # A machine that stalls makes a call late to its slot, and another slot costs another write.
    monkeypatch.setattr(rate_limiter, "LATE_US", 60_000_000)
    counted: Counter[str] = Counter()
    stack.aws.intercept = lambda operation, call: counted.update([kind(operation, call)])
    for target in TARGETS:
        stack.simulator.publish(target.room_id, target.user_id, "Audio")
    return counted


def assert_as_documented(column: str, counts: Counter[str], targets: int = 1) -> None:
    """Each row of the column says what was counted: for each target, at most, once a sweep, or for so many targets."""
    cells = documented()[column]
    for name, row in ROWS.items():
        cell = cells[row].partition(",")[0]
        number, *per = [int(number) for number in re.findall(r"[0-9]+", cell)]
        if cell.startswith("at most"):
            assert counts[name] <= number * targets, row
        else:
            times = 1 if "per sweep" in cell else -(-targets // per[0]) if per else targets
            assert counts[name] == number * times, row
    # And nothing else was asked for.
    assert counts.keys() <= ROWS.keys()
    counts.clear()


def test_a_lookup_costs_what_is_documented(stack: Stack, counts: Counter[str]) -> None:
    store, other_store = stack.store(), stack.store()
    lookup, another = (Lookup.from_settings(stack.settings, own, "api") for own in (store, other_store))

    # An instance reads the secret once, and the end of the room after the first write of a record.
    lookup.one(TARGETS[0], soon())
    assert (counts.pop("GetSecretValue"), counts.pop("GetItem")) == (1, 1)
    assert_as_documented("HTTP lookup", counts)
    # Once its change has been delivered, the instance keeps the record.
    stack.delivery(store).drain(soon())
    lookup.one(TARGETS[0], soon())
    counts.clear()
    lookup.one(TARGETS[0], soon())
    assert_as_documented("HTTP lookup", counts)
    # A record that another instance wrote last costs a refused write.
    another.one(TARGETS[0], soon())
    assert (counts["state"], counts["read"]) == (2, 0)


def test_an_answer_from_the_table_costs_what_is_documented(stack: Stack, counts: Counter[str]) -> None:
    lookup = Lookup.from_settings(stack.settings, stack.store(), "api")
    lookup.some(TARGETS, soon())
    for targets in (TARGETS[:1], TARGETS):
        counts.clear()
        lookup.some(targets, soon(), 3600)
        assert_as_documented("answer from the table (`max_age`)", counts, len(targets))


def test_a_swept_target_costs_what_is_documented(stack: Stack, counts: Counter[str]) -> None:
    stack.watch_list().add(TARGETS, 3600)
    sweep = Sweep.from_settings(stack.settings)
    sweep.run(GIVEN, soon(), soon())
    counts.clear()

    assert sweep.run(GIVEN, soon(), soon())["unchanged"] == len(TARGETS)
    assert_as_documented("sweep, no change", counts, len(TARGETS))

    # A sweep of the watch list reads a page of each partition, and writes the lease when it begins and when it ends.
    assert sweep.run(WATCHED, soon(), soon())["unchanged"] == len(TARGETS)
    assert (counts.pop("Query"), counts.pop("UpdateItem")) == (16, 2)
    assert_as_documented("sweep, no change", counts, len(TARGETS))

    for target in TARGETS:
        stack.simulator.publish(target.room_id, target.user_id, "Video")
    assert sweep.run(GIVEN, soon(), soon())["delivered"] == len(TARGETS)
    assert_as_documented("sweep, change", counts, len(TARGETS))


def test_a_callback_event_costs_what_is_documented(stack: Stack, counts: Counter[str]) -> None:
    callbacks = Callbacks.from_settings(stack.settings)
    events = {AUDIO: "event, change", VIDEO: "event, change", JOIN: "event, no change"}
    for kind_of_event, column in events.items():
        receive(callbacks, signed(kind_of_event, CLOCK.now_ms()))
        if kind_of_event == AUDIO:
            assert (counts.pop("GetSecretValue"), counts.pop("GetItem")) == (1, 1)
        assert_as_documented(column, counts)


def test_a_wait_costs_what_is_documented(stack: Stack, counts: Counter[str]) -> None:
    store = stack.store()
    lookup = Lookup.from_settings(stack.settings, store, "task")
    callbacks = Callbacks.from_settings(stack.settings)
    columns = documented("round that asks")
    names = columns["request"]

    def begin(number: int) -> None:
        condition = WaitCondition(Medium.VIDEO, True, CLOCK.now() + 600, 60)  # noqa: FBT003 (on)
        begin_round(lookup, TARGETS[0], Wait("execution", f"token-{number}", condition), soon())

    def assert_costs(column: str) -> None:
        expected = {name: int(columns[column][row]) for name, row in WAIT_ROWS.items() if columns[column][row] != "0"}
        assert {name: counts[name] for name in WAIT_ROWS if counts[name]} == expected, column
        counts.clear()

    assert names.keys() == {*WAIT_ROWS.values(), "Lambda invocation", "Step Functions state transition"}
    # What an instance needs once does not count.
    begin(1)
    counts.clear()
    stack.ahead_seconds = 61
    begin(2)
    assert_costs("round that asks")
    begin(3)
    assert_costs("round that shares an answer")
    receive(callbacks, signed(VIDEO, CLOCK.now_ms(), user_id=TARGETS[0].user_id))
    assert_costs("event that wakes")
