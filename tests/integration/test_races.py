"""Sweeps, the API and a task that see the same targets at once agree on one order of the changes."""

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from stream_state.domain.requests import SweepRequest
from stream_state.domain.targets import Target
from tests.integration.conftest import Stack, soon
from tests.sandbox.simulator import APP_ID, MEDIA

TARGETS = [Target(APP_ID, "class-1", f"user-{number}") for number in range(4)]
TURNS = 10


def flip(stack: Stack) -> Callable[[], float]:
    """Lets a user of the room change with each call, and the answers overtake each other."""
    dice = random.Random(20261123)  # noqa: S311 (chance needs no secrecy)

    def change() -> float:
        target = dice.choice(TARGETS)
        if dice.random() < 0.1:
            stack.simulator.leave(target.room_id, target.user_id)
        else:
            medium = dice.choice(list(MEDIA))
            stack.simulator.publish(target.room_id, target.user_id, medium, on=dice.random() < 0.5)
        return dice.choice((0.0, 0.0, 0.005, 0.02))

    return change


def actors(stack: Stack) -> dict[str, Callable[[], Any]]:
    """Two sweeps of given targets, one of watched ones, the API and a task, each an instance of its own."""
    first, second, third = stack.sweep(), stack.sweep(), stack.sweep()
    api, store = stack.lookup(stack.store(delivers=False)), stack.store()
    task, delivery = stack.lookup(store), stack.delivery(store)
    return {
        "given": lambda: first.run(SweepRequest(TARGETS, emits_all=False), soon(), soon()),
        "given, all": lambda: second.run(SweepRequest(TARGETS, emits_all=True), soon(), soon()),
        "watched": lambda: third.run(SweepRequest(None, emits_all=False), soon(), soon()),
        "api": lambda: [api.some([target], soon()) for target in TARGETS],
        "task": lambda: delivery.deliver(task.some(TARGETS, soon()), soon()),
    }


def race(stack: Stack, names: list[str]) -> None:
    """Let them all run again and again at once; an exception of any of them is raised here."""
    running = actors(stack)

    def act(name: str) -> None:
        for _ in range(TURNS):
            running[name]()

    with ThreadPoolExecutor(len(names)) as pool:
        for ended in [pool.submit(act, name) for name in names]:
            ended.result()


@pytest.mark.parametrize(
    "names",
    [["given", "given, all"], ["given", "task", "api"], ["given", "given, all", "watched", "api", "task"]],
    ids=["two sweeps", "sweep, task and api", "everyone"],
)
def test_everyone_at_once_agrees(stack: Stack, names: list[str]) -> None:
    stack.watch_list().add(TARGETS, 3600)

    # While the users change
    stack.simulator.delay_seconds = flip(stack)
    race(stack, names)
    # When they have come to rest, and one more sweep has seen them
    stack.simulator.delay_seconds = lambda: 0.0
    summary = stack.run_sweep(*TARGETS)

    # Then no sequence was delivered with two contents, as the consumer checks, and the newest one has the truth
    assert summary["failed"] == 0
    messages = stack.consume()
    stack.assert_consumer_has_the_truth(TARGETS)
    stack.assert_consumer_has_the_records(TARGETS)
    # Then what is still on the list of undelivered changes is a repeat, and the list ends empty
    stack.ahead_seconds += 11
    assert stack.run_sweep(*TARGETS)["unchanged"] == len(TARGETS)
    ids = {message["id"] for message in messages}
    assert all(message["id"] in ids for message in stack.consume())
    assert stack.store().undelivered(100).entries == []


def test_a_race_at_rest_delivers_each_change_under_one_id(stack: Stack) -> None:
    # Given a change that everyone sees at the same time
    for target in TARGETS:
        stack.simulator.publish(target.room_id, target.user_id, "Video")

    race(stack, ["given", "task", "api"])

    changes = [message for message in stack.consume() if message["changed"]]
    assert len({message["id"] for message in changes}) == len({message["user_id"] for message in changes}) == 4
