"""A process that is killed between any two of query, write, send and mark loses no change."""

import multiprocessing
import os
import random
import signal
import sys
from collections.abc import Callable
from typing import Any

import pytest

from stream_state.clock import CLOCK
from stream_state.domain.targets import Target
from tests.integration import crashing_worker
from tests.integration.conftest import Stack, soon
from tests.sandbox.simulator import APP_ID, MEDIA
from tests.unit.callback_world import VIDEO, signed

# More for a thorough run: STREAM_STATE_CRASHES=200.
CRASHES = int(os.environ.get("STREAM_STATE_CRASHES", "20"))
TARGETS = [Target(APP_ID, "class-1", f"user-{number}") for number in range(8)]
STRANGER = Target(APP_ID, "class-2", "stranger")
# A sweep of so many targets has about so many steps; a number beyond them lets it come to its end.
STEPS = 70
WRITES = ["after PutItem", "before SendMessageBatch", "after SendMessageBatch", "before settled", "after settled"]
QUERIES = ["before query", "after query", "before PutItem"]
Worker = Callable[[str, int | str], str]


@pytest.fixture
def worker(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Worker:
    """Forks a process that has loaded the package, and returns how it ended."""
    # The process that forks is made once, and may have the environment of another module's AWS.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([crashing_worker.__name__])

    def order(mode: str, die_at: int | str) -> str:
        pass_time(stack)
        arguments = ({**os.environ, **stack.environment}, stack.ahead_seconds, TARGETS, mode, die_at)
        process = context.Process(target=crashing_worker.work, args=arguments)
        process.start()
        process.join()
        return {0: "done", -signal.SIGKILL: "killed"}.get(process.exitcode or 0, "failed")

    return order


def pass_time(stack: Stack) -> None:
    """Let the minute pass for which a sweep that died holds the lease, and after which its changes are everybody's."""
    stack.ahead_seconds += 61


def set_audio(stack: Stack, *, on: bool) -> None:
    for target in TARGETS:
        stack.simulator.publish(target.room_id, target.user_id, "Audio", on=on)


def sweep_cleanly(stack: Stack) -> dict[str, Any]:
    pass_time(stack)
    summary = stack.run_sweep()
    stack.consume()
    return summary


@pytest.fixture
def watched(stack: Stack) -> Stack:
    """Watched users, whose first states were delivered."""
    stack.watch_list().add(TARGETS, 86_400)
    set_audio(stack, on=True)
    sweep_cleanly(stack)
    return stack


def test_kills_at_random_lose_no_change(watched: Stack, worker: Worker) -> None:
    # Given a process that is killed at a random step while the users change, many times
    dice = random.Random(20261123)  # noqa: S311 (chance needs no secrecy)
    ends = []
    for _ in range(CRASHES):
        for target in dice.sample(TARGETS, 3):
            if dice.random() < 0.2:
                watched.simulator.leave(target.room_id, target.user_id)
            else:
                medium = dice.choice(list(MEDIA))
                watched.simulator.publish(target.room_id, target.user_id, medium, on=dice.random() < 0.6)
        ends.append(worker(dice.choice(["given", "watched", "task", "api", "drain"]), dice.randint(1, STEPS)))
        watched.consume()
        if dice.random() < 0.2:
            sweep_cleanly(watched)
            watched.assert_consumer_has_the_truth(TARGETS)

    # When one sweep comes to its end
    summary = sweep_cleanly(watched)

    # Then no change is missing from the queue, and no repeat contradicted what it repeats
    assert (summary["failed"], summary["remaining"]) == (0, 0)
    watched.assert_consumer_has_the_truth(TARGETS)
    assert sweep_cleanly(watched)["unchanged"] == len(TARGETS)
    print(f"{ends.count('killed')} of {len(ends)} were killed; {watched.consumer.repeats} messages were repeats.")
    assert "failed" not in ends
    assert ends.count("killed") > len(ends) // 3


@pytest.mark.parametrize(
    ("mode", "step", "then"),
    [
        *(("watched", step, "their sweep") for step in [*QUERIES, *WRITES]),
        *(("watched", step, "another sweep") for step in WRITES[::2]),
        *(("watched", step, "another event") for step in WRITES[1::2]),
        *((mode, "after SendMessageBatch", "another sweep") for mode in ("given", "task", "drain")),
        *((mode, "after PutItem", "another event") for mode in ("given", "task", "api")),
        *((mode, "after SendMessageBatch", "a change back") for mode in ("watched", "task")),
        *(("event", step, "its repeat") for step in [QUERIES[2], *WRITES]),
        *(("event", step, "another sweep") for step in WRITES[::2]),
        *(("event", step, "another event") for step in WRITES[1::2]),
    ],
)
def test_a_kill_at_a_step_loses_no_change(watched: Stack, worker: Worker, mode: str, step: str, then: str) -> None:
    # Given users who have changed since their states were delivered
    set_audio(watched, on=False)
    if mode == "drain":
        watched.lookup(watched.store(delivers=False)).some(TARGETS, soon())
    event = signed(VIDEO, CLOCK.now_ms(), user_id="newcomer")

    # When a process is killed at a step, and another one does its own work later
    assert worker(event if mode == "event" else mode, step) == "killed"
    if then == "a change back":
        # Then the record differs in nothing from the values that were marked, and the queue has others.
        set_audio(watched, on=True)
    if then in {"their sweep", "a change back"}:
        sweep_cleanly(watched)
    elif then == "its repeat":
        watched.receive_event(event)
    elif then == "another event":
        pass_time(watched)
        watched.receive_event(signed(VIDEO, CLOCK.now_ms(), room_id="class-2"))
    else:
        pass_time(watched)
        watched.run_sweep(STRANGER)

    # Then all that was recorded has been delivered, each change with one id
    watched.consume()
    newcomer = [Target(APP_ID, "class-1", "newcomer")] if mode == "event" else []
    watched.assert_consumer_has_the_records([*TARGETS, *newcomer])
    assert all(watched.consumer.kept["class-1", target.user_id]["media"]["video"] for target in newcomer)
    sweep_cleanly(watched)
    watched.assert_consumer_has_the_truth(TARGETS)
    assert sweep_cleanly(watched)["unchanged"] == len(TARGETS)
