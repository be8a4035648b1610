"""Sweeps, the API and a task that see the same targets at once agree on one order of what is told."""

import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
from typing import Any

import pytest

from stream_state.errors import TargetNotFound
from stream_state.model import Target
from stream_state.sweep import SweepRequest
from tests.integration.conftest import MEDIA, Stack
from tests.sandbox.simulator import APP_ID

TARGETS = [Target(APP_ID, "class-1", f"user-{number}") for number in range(4)]
GIVEN = SweepRequest(TARGETS, "changes")
ALL = SweepRequest(TARGETS, "all")
WATCHED = SweepRequest(None, "changes")
ROUNDS = 10


def soon() -> float:
    return time.monotonic() + 60


@contextmanager
def flipping(stack: Stack) -> Iterator[None]:
    """Let the users of the room change all the time."""
    ended = Event()
    dice = random.Random(20261123)  # noqa: S311 (chance needs no secrecy)

    def flip() -> None:
        while not ended.wait(0.002):
            target = dice.choice(TARGETS)
            if dice.random() < 0.1:
                stack.simulator.leave(target.room_id, target.user_id)
            else:
                medium = dice.choice(list(MEDIA))
                stack.simulator.publish(target.room_id, target.user_id, medium, on=dice.random() < 0.5)

    # Answers overtake each other.
    stack.simulator.delay_seconds = lambda: dice.choice((0.0, 0.0, 0.005, 0.02))
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(flip)
        try:
            yield
        finally:
            ended.set()
            running.result()


def actors(stack: Stack) -> dict[str, Callable[[], Any]]:
    """Two sweeps of given targets, one of watched ones, the API and a task, each with clients of its own."""
    first, second, third, api, task = stack.sweep(), stack.sweep(), stack.sweep(), stack.lookup(), stack.lookup()
    teller = stack.teller()

    def ask() -> None:
        for target in TARGETS:
            try:
                api.one(target, soon())
            except TargetNotFound:
                continue

    return {
        "given": lambda: first.run(GIVEN, soon(), soon()),
        "given, all": lambda: second.run(ALL, soon(), soon()),
        "watched": lambda: third.run(WATCHED, soon(), soon()),
        "api": ask,
        "task": lambda: teller.deliver(task.some(TARGETS, soon()), soon()),
    }


def assert_order_and_truth(stack: Stack) -> None:
    """No sequence of a target was told with two contents, none goes back for the consumer, the last tells the truth."""
    # Consumer.take fails if a sequence or an id is told with two contents.
    messages = stack.consume()
    for target in TARGETS:
        told = [message for message in messages if message["user_id"] == target.user_id]
        highest, kept = -1, []
        for message in told:
            if message["sequence"] >= highest:
                highest = message["sequence"]
                kept.append(message["sequence"])
        assert kept == sorted(kept)
        last = stack.consumer.kept[target.room_id, target.user_id]
        truth = stack.truth(target)
        assert last["sequence"] == highest
        assert last["media"] == (truth or dict.fromkeys(last["media"]))
        assert (last["present"] is False) is (truth is None)


def race(stack: Stack, names: list[str]) -> None:
    """Let them all run again and again at once; what one of them raises is raised here."""
    running = actors(stack)

    def act(name: str) -> None:
        for _ in range(ROUNDS):
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

    # While the users change.
    with flipping(stack):
        race(stack, names)
    # When they have come to rest, and one more sweep has seen them.
    summary = stack.sweep().run(GIVEN, soon(), soon())

    assert summary["failed"] == 0
    assert_order_and_truth(stack)
    assert stack.sweep().run(GIVEN, soon(), soon())["unchanged"] == len(TARGETS)


def test_a_race_at_rest_tells_each_change_under_one_id(stack: Stack) -> None:
    # Given a change that everyone sees at the same time.
    for target in TARGETS:
        stack.simulator.publish(target.room_id, target.user_id, "Video")

    race(stack, ["given", "task", "api"])

    news = [message for message in stack.consume() if message["changed"]]
    assert len({message["id"] for message in news}) == len({message["user_id"] for message in news}) == len(TARGETS)
