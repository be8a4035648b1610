"""Callback events that several instances receive at once, over a table and a queue: one state from all of them."""

import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from stream_state.clock import CLOCK
from stream_state.domain.targets import Target
from stream_state.services.callbacks import Callbacks
from tests.integration.conftest import Stack, receive
from tests.sandbox.simulator import APP_ID
from tests.unit.callback_world import LEAVE, ROOM_END, VENDOR_NAMES, signed, stream
from tests.unit.memory import Media, media

TARGETS = [Target(APP_ID, "class-1", f"user-{number}") for number in range(8)]
INSTANCES = 6


def histories(seed: int, steps: int) -> tuple[list[str], dict[str, Media]]:
    """Events of several users in a random order with repeats, and the media of each user in the end.

    The events are further apart than the grace of a leave.
    """
    source = random.Random(seed)  # noqa: S311 (the same histories each time)
    users = [target.user_id for target in TARGETS]
    start_ms = CLOCK.now_ms() - steps * 6000 - 60_000
    events = [signed(LEAVE, start_ms, user_id=user, Reason="userLeave") for user in users]
    states: dict[str, Media] = {user: media() for user in users}
    gone = set(users)
    for step in range(1, steps):
        user, medium = source.choice(users), source.choice([*VENDOR_NAMES])
        starts = user in gone or source.random() < 0.6
        kind, reason = stream(medium, starts=starts), "StreamStop"
        if source.random() < 0.1:
            kind, reason = LEAVE, "userLeave"
            gone.add(user)
            states[user] = media()
        else:
            if user in gone:
                # A newer connection: what it does not publish yet may be on, and its start was lost.
                gone.remove(user)
                states[user] = media(unknown=VENDOR_NAMES)
            states[user][medium] = starts
        events.append(signed(kind, start_ms + step * 6000, user_id=user, Reason=reason))
    events += source.choices(events, k=steps // 4)
    source.shuffle(events)
    return events, states


def send(stack: Stack, events: list[str]) -> dict[str, Media]:
    """Let each instance receive its share, all at once; the media by the records and by the last messages."""
    instances = [Callbacks.from_settings(stack.settings) for _ in range(INSTANCES)]

    def work(number: int) -> None:
        for text in events[number::INSTANCES]:
            receive(instances[number], text)

    with ThreadPoolExecutor(INSTANCES) as pool:
        list(pool.map(work, range(INSTANCES)))
    stack.consume()
    stack.assert_consumer_has_the_records(TARGETS)
    return {user: message["media"] for (_, user), message in stack.consumer.kept.items()}


@pytest.mark.parametrize("seed", [1, 2])
def test_many_senders_at_once_end_in_the_true_state_and_deliver_it(stack: Stack, seed: int) -> None:
    events, states = histories(seed, 120)

    assert send(stack, events) == states


def test_a_room_ends_while_its_users_still_send(stack: Stack) -> None:
    # Given the events of a room up to its end, and the end
    events, _ = histories(4, 60)
    end = signed(ROOM_END, CLOCK.now_ms())

    # When they come all at once
    states = send(stack, [*events[:30], end, *events[30:]])

    # Then all are off, and the end's repeat has nothing left to do
    assert states == {target.user_id: media() for target in TARGETS}
    stack.receive_event(end)
    assert stack.consume() == []
