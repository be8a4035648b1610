"""A process that is killed between any two of query, write, send and write loses no change."""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from stream_state.model import Target
from stream_state.sweep import SweepRequest
from tests.integration.conftest import MEDIA, Stack
from tests.sandbox.aws import Aws
from tests.sandbox.simulator import APP_ID
from tests.sandbox.stack import REPOSITORY

# More for a thorough run: STREAM_STATE_CRASHES=200.
CRASHES = int(os.environ.get("STREAM_STATE_CRASHES", "20"))
TARGETS = [Target(APP_ID, "class-1", f"user-{number}") for number in range(8)]
# A sweep of so many targets has about so many steps; a number beyond them lets it come to its end.
STEPS = 70
NAMED_STEPS = [
    "before query",
    "after query",
    "before facts",
    "after facts",
    "before SendMessageBatch",
    "after SendMessageBatch",
    "before told",
    "after told",
]
Worker = Callable[..., str]


@pytest.fixture(scope="module")
def process(aws: Aws) -> Iterator[subprocess.Popen[str]]:
    """A process that has loaded the package, and forks one that dies for each order."""
    path = os.pathsep.join((str(REPOSITORY), str(REPOSITORY / "layers" / "stream_state")))
    with subprocess.Popen(
        [sys.executable, "-m", "tests.integration.crashing_worker"],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stdin
        yield running
        running.stdin.close()
    assert running.returncode == 0


@pytest.fixture
def worker(stack: Stack, process: subprocess.Popen[str]) -> Worker:
    """Gives an order, and tells how it ended."""

    def order(mode: str, die_at: int | str) -> str:
        # A sweep that died holds the lease for a minute.
        stack.let_lease_end()
        targets = [[target.app_id, target.room_id, target.user_id] for target in TARGETS]
        line = json.dumps({"environment": stack.environment, "mode": mode, "targets": targets, "die_at": die_at})
        assert process.stdin
        assert process.stdout
        process.stdin.write(f"{line}\n")
        process.stdin.flush()
        return process.stdout.readline().strip()

    return order


def flip(stack: Stack, dice: random.Random) -> None:
    """Let some of the users join, leave, or switch a medium."""
    for target in dice.sample(TARGETS, 3):
        if dice.random() < 0.2:
            stack.simulator.leave(target.room_id, target.user_id)
        else:
            medium = dice.choice(list(MEDIA))
            stack.simulator.publish(target.room_id, target.user_id, medium, on=dice.random() < 0.6)


def sweep_cleanly(stack: Stack) -> dict[str, Any]:
    stack.let_lease_end()
    deadline = time.monotonic() + 30
    return stack.sweep().run(SweepRequest(None, "changes"), deadline, deadline)


def assert_consumer_knows_the_truth(stack: Stack) -> None:
    """What it kept of each target is what the room holds."""
    stack.consume()
    for target in TARGETS:
        truth = stack.truth(target)
        kept = stack.consumer.kept[target.room_id, target.user_id]
        assert kept["media"] == (truth or dict.fromkeys(kept["media"]))
        assert (kept["present"] is False) is (truth is None)


def test_kills_at_random_lose_no_change(stack: Stack, worker: Worker) -> None:
    # Given watched users, and a sweep or task that is killed at a random step while they change, many times.
    dice = random.Random(20261123)  # noqa: S311 (chance needs no secrecy)
    stack.watch_list().add(TARGETS, 3600)
    ends = []
    for _ in range(CRASHES):
        flip(stack, dice)
        ends.append(worker(dice.choice(["given", "watched", "task"]), dice.randint(1, STEPS)))
        stack.consume()
        if dice.random() < 0.2:
            sweep_cleanly(stack)
            assert_consumer_knows_the_truth(stack)

    # When one sweep comes to its end.
    summary = sweep_cleanly(stack)

    # Then no change is missing from the queue, and no repeat contradicted what it repeats.
    assert (summary["failed"], summary["remaining"]) == (0, 0)
    assert_consumer_knows_the_truth(stack)
    assert sweep_cleanly(stack)["unchanged"] == len(TARGETS)
    print(f"{ends.count('killed')} of {len(ends)} were killed; {stack.consumer.repeats} messages were repeats.")
    assert "failed" not in ends
    assert ends.count("killed") > len(ends) // 2


@pytest.mark.parametrize(
    ("mode", "step"),
    [
        *(("watched", step) for step in NAMED_STEPS),
        *((mode, step) for mode in ("given", "task") for step in ("after facts", "after SendMessageBatch")),
    ],
)
def test_a_kill_at_a_step_loses_no_change(stack: Stack, worker: Worker, mode: str, step: str) -> None:
    # Given users that the queue was told of, who have changed since.
    stack.watch_list().add(TARGETS, 3600)
    for target in TARGETS:
        stack.simulator.publish(target.room_id, target.user_id, "Audio")
    sweep_cleanly(stack)
    stack.consume()
    for target in TARGETS:
        stack.simulator.publish(target.room_id, target.user_id, "Audio", on=False)

    # When a process is killed at a step.
    assert worker(mode, step) == "killed"
    sent_before = len(stack.consume())
    summary = sweep_cleanly(stack)

    # Then the next sweep tells what was not told, and what was sent but not written as told it repeats by its id.
    assert_consumer_knows_the_truth(stack)
    assert stack.consumer.repeats == sent_before - (len(TARGETS) - summary["delivered"])
    assert sweep_cleanly(stack)["unchanged"] == len(TARGETS)


@pytest.mark.parametrize("mode", ["watched", "task"])
def test_a_change_back_after_a_kill_is_told_with_a_newer_sequence(stack: Stack, worker: Worker, mode: str) -> None:
    stack.watch_list().add(TARGETS, 3600)
    for target in TARGETS:
        stack.simulator.publish(target.room_id, target.user_id, "Audio")
    sweep_cleanly(stack)
    stack.consume()

    # Given that the change was sent, and that it was not written that it was.
    for target in TARGETS:
        stack.simulator.publish(target.room_id, target.user_id, "Audio", on=False)
    assert worker(mode, "after SendMessageBatch") == "killed"
    assert stack.consume()

    # When it is undone before the next sweep.
    for target in TARGETS:
        stack.simulator.publish(target.room_id, target.user_id, "Audio")
    sweep_cleanly(stack)

    # Then the queue is told once more, although it differs in nothing from what was written as told.
    assert_consumer_knows_the_truth(stack)
