"""Delivery: the write, the message, the mark, and the list of changes that others left undelivered."""

from collections.abc import Callable, Mapping
from itertools import repeat
from typing import Any

import pytest

from stream_state.domain.documents import Answer, problem_message
from stream_state.domain.merging import StateRecord
from stream_state.domain.observations import Mark
from stream_state.domain.targets import Target
from stream_state.errors import DeliveryFailed, RtcUnavailable, TargetNotFound
from stream_state.services.delivery import Delivery
from stream_state.services.recording import Recorder
from tests.unit.callback_world import Receiver
from tests.unit.fakes import aws_error
from tests.unit.memory import World, media, metrics, targets

ONE, TWO, THREE = targets(3)
THROTTLED = aws_error("ProvisionedThroughputExceededException")


def deliver(world: World, *asked: Target) -> list[Any]:
    """Ask about targets and deliver the answers, as a task does."""
    outcomes = world.lookup.some(asked or [ONE], world.in_seconds(10))
    return list(world.delivery.deliver(outcomes, world.in_seconds(10)))


def see(world: World, *seen: Target) -> None:
    """Let the api see users join."""
    for target in seen:
        world.see(target, {"join": Mark(world.clock.now_ms(), world.clock.now_ms())})


def drain(world: World, seconds: float = 10, *, is_whole: bool = False) -> None:
    world.delivery.drain(world.in_seconds(seconds), is_whole=is_whole)


def stored(world: World, target: Target = ONE) -> StateRecord:
    return world.store.read([target])[target]


def test_a_change_is_written_then_sent_then_marked(world: World, conforms: Callable[[str, Any], None]) -> None:
    world.rtc.say(ONE, media("audio"))
    at_send: list[bool] = []

    def note(_: object) -> bool:
        at_send.append(stored(world).is_undelivered)
        return False

    world.queue.refuses = note
    (result,) = deliver(world)

    (message,) = world.queue.messages
    conforms("message", message)
    assert result == {**message, "message_id": "message-1"}
    assert (at_send, stored(world).is_undelivered) == ([True], False)
    assert stored(world).delivered == {**media("audio"), "present": True}


@pytest.mark.parametrize("dies_at", ["send", "mark"])
def test_a_change_whose_deliverer_died_is_delivered_with_the_same_id_ten_seconds_later(
    world: World, dies_at: str
) -> None:
    attempts: list[Mapping[str, Any]] = []

    def send(message: Mapping[str, Any]) -> bool:
        attempts.append(message)
        if dies_at == "send" and len(attempts) == 1:
            raise KeyboardInterrupt
        return False

    def mark(_: Mapping[str, Any]) -> None:
        raise KeyboardInterrupt

    world.queue.refuses = send
    world.dynamodb.effects["put_item"] = iter([None, mark] if dies_at == "mark" else [])
    with pytest.raises(KeyboardInterrupt):
        deliver(world)
    counts = []
    for seconds in (9, 1, 60):
        drain(world)
        counts.append(len(attempts))
        world.clock.seconds += seconds
    drain(world)

    first, again = attempts
    assert counts == [1, 1, 2]
    assert (again["id"], again["sequence"], again["changed"]) == (first["id"], first["sequence"], first["changed"])
    assert (again["source"], stored(world).is_undelivered) == ("table", False)


def test_a_message_that_could_not_be_marked_is_repeated_by_the_next_observer(world: World) -> None:
    world.rtc.say(ONE, media("audio"))
    world.dynamodb.effects["put_item"] = iter([None, THROTTLED])
    results = []
    for _ in range(3):
        results += deliver(world)
        world.clock.seconds += 5
    first, second, third = results

    assert first["id"] == second["id"] != third["id"]
    assert (first["sequence"], first["changed"], first["previous"]) == (second["sequence"], second["changed"], None)
    assert (third["changed"], third["sequence"], third["previous"]) == ([], second["sequence"], media("audio"))


def test_a_change_that_is_written_between_send_and_mark_is_delivered_too(world: World) -> None:
    def write_between(_: Mapping[str, Any]) -> None:
        world.dynamodb.effects.clear()
        world.clock.seconds += 10
        see(World(world.clock, world.dynamodb.client), ONE)

    world.dynamodb.effects["put_item"] = iter([None, write_between])
    deliver(world)
    drain(world)

    first, second = world.queue.messages
    assert (first["media"], first["present"]) == (media(), None)
    assert (second["changed"], second["previous"], second["sequence"]) == (["present"], media(), first["sequence"] + 1)
    assert not stored(world).is_undelivered


@pytest.mark.parametrize("drained_by", ["event", "sweep"])
def test_the_next_event_or_sweep_of_any_target_delivers_what_the_api_saw(world: World, drained_by: str) -> None:
    see(world, ONE)

    if drained_by == "event":
        Receiver(world).send("UserJoinRoom", user_id=TWO.user_id)
    else:
        world.run_sweep(TWO)

    assert world.queue.users() == [ONE.user_id, TWO.user_id]
    assert (stored(world).is_undelivered, world.store.undelivered(10).entries) == (False, [])


def test_an_event_drains_ten_changes_and_a_sweep_all_the_oldest_first(world: World) -> None:
    users = targets(35)
    for user in users:
        see(world, user)
        world.clock.seconds += 1

    drain(world, -1)
    assert not world.queue.messages
    drain(world)
    assert world.queue.users() == [user.user_id for user in users[:10]]
    drain(world, is_whole=True)
    assert world.queue.users() == [user.user_id for user in users]


@pytest.mark.parametrize(("fails", "sends"), [("send", 10), ("put_item", 20), ("query", 0)])
def test_a_whole_drain_ends_also_when_sqs_or_dynamodb_fails(world: World, fails: str, sends: int) -> None:
    see(world, *targets(20))
    sent: list[object] = []

    def send(message: object) -> bool:
        sent.append(message)
        return fails == "send"

    world.queue.refuses = send
    world.dynamodb.effects[fails] = repeat(THROTTLED)

    drain(world, 0.0005, is_whole=True)

    assert len(sent) == sends


def test_rechecks_that_cannot_be_sent_any_more_keep_no_change_waiting(world: World) -> None:
    """Given ten records in doubt in a stack that has no retry queue any more."""
    now_ms = world.clock.now_ms()
    for user in targets(10):
        for kind, at_ms in (("join", now_ms), ("leave", now_ms + 1)):
            world.store.observe(user, {kind: Mark(at_ms, at_ms)})
    world.clock.seconds += 100
    see(world, Target(ONE.app_id, "class-2", "teacher"))
    world.delivery = Delivery(world.queue, Recorder(world.store, None))

    for _ in range(4):
        drain(world)

    delivered = sorted(["teacher", *(user.user_id for user in targets(10))])
    assert (world.queue.users(), world.store.undelivered(100).entries) == (delivered, [])


def test_only_changes_that_sqs_accepted_are_marked_and_counted(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.rtc.say(THREE, TargetNotFound("Unknown."))
    world.queue.refuses = lambda message: message["user_id"] == TWO.user_id

    results = deliver(world, ONE, TWO, THREE)
    assert [type(result) for result in results] == [dict, DeliveryFailed, TargetNotFound]
    assert [stored(world, target).is_undelivered for target in (ONE, TWO, THREE)] == [False, True, True]
    assert metrics(capsys) == {"StatesDelivered": [1], "StateChanges": [1]}

    problem, unchanged = problem_message(TWO, RtcUnavailable("Network."), 0), Answer(stored(world))
    made = len(world.dynamodb.made)
    world.queue.refuses = lambda message: False
    assert world.delivery.send([problem, unchanged], world.in_seconds(10)) == ["message-2", "message-3"]
    assert (len(world.dynamodb.made), metrics(capsys)) == (made, {"StatesDelivered": [1], "StateChanges": [0]})
