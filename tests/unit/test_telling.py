"""What the queue is told, and what is remembered of it."""

import io
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from stream_state.errors import DeliveryFailed, RtcUnavailable, TargetNotFound
from stream_state.model import problem_message
from stream_state.telling import Outgoing
from tests.unit.fakes import Clock, aws_error
from tests.unit.memory import World, media, metrics, targets

ONE, TWO, THREE = targets(3)
Conforms = Callable[[str, Any], None]


@pytest.fixture
def world(clock: Clock) -> World:
    return World(clock)


def tell(world: World, target: Any = ONE) -> list[Any]:
    results: list[Any] = world.teller.deliver(world.lookup.some([target], world.in_seconds(10)), world.in_seconds(10))
    return results


def test_what_is_told_is_written_first_and_marked_as_told_after(world: World, conforms: Conforms) -> None:
    world.rtc.say(ONE, media("audio"))
    steps: list[str] = []

    def note(_: Mapping[str, Any]) -> bool:
        known = world.known(ONE)
        steps.append("sent what is known" if known and known.is_news else "sent what is told")
        return False

    world.queue.refuses = note
    (result,) = tell(world)

    (message,) = world.queue.messages
    conforms("message", message)
    assert steps == ["sent what is known"]
    assert result == {**message, "message_id": "message-1"}
    known = world.known(ONE)
    assert known is not None
    assert (known.is_news, known.told) == (False, known.state().values)


def test_a_message_that_is_not_accepted_is_sent_again_with_the_same_id_by_who_observes_next(world: World) -> None:
    world.rtc.say(ONE, media("audio"))
    refused: list[Mapping[str, Any]] = []
    world.queue.refuses = lambda message: refused.append(message) is None
    (result,) = tell(world)
    assert isinstance(result, DeliveryFailed)

    world.clock.seconds += 5
    world.queue.refuses = lambda message: False
    tell(world)

    assert [message["id"] for message in world.queue.messages] == [refused[0]["id"]]


def test_a_message_that_could_not_be_marked_is_repeated_with_the_same_id(world: World, logs: io.StringIO) -> None:
    """Given a crash or a failing table between sending and marking, then the news is repeated, not lost."""
    world.rtc.say(ONE, media("audio"))
    fails = aws_error("ProvisionedThroughputExceededException")
    world.dynamodb.effects["update_item"] = iter([fails])

    (first,) = tell(world)
    world.clock.seconds += 5
    (second,) = tell(world)
    world.clock.seconds += 5
    (third,) = tell(world)

    assert first["id"] == second["id"] != third["id"]
    assert (first["sequence"], first["changed"], first["previous"]) == (second["sequence"], second["changed"], None)
    assert (third["changed"], third["sequence"], third["previous"]) == ([], second["sequence"], media("audio"))
    assert "StateUnavailable" in logs.getvalue()


def test_a_change_that_an_asker_saw_first_is_still_news_for_the_next_teller(world: World) -> None:
    tell(world)
    world.clock.seconds += 1
    world.rtc.say(ONE, media("video"))
    world.lookup.one(ONE, world.in_seconds(10))
    world.lookup.some([ONE], world.in_seconds(10))
    world.clock.seconds += 1

    (message,) = tell(world)

    assert (message["changed"], message["previous"]) == (["video", "present"], media())


def test_of_several_only_what_was_sent_is_marked(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.rtc.say(THREE, TargetNotFound("Unknown."))
    world.queue.refuses = lambda message: message["user_id"] == TWO.user_id

    results = world.teller.deliver(world.lookup.some([ONE, TWO, THREE], world.in_seconds(10)), world.in_seconds(10))

    assert [type(result) for result in results] == [dict, DeliveryFailed, TargetNotFound]
    assert [known is not None and known.is_news for known in map(world.known, (ONE, TWO, THREE))] == [False, True, True]
    assert metrics(capsys) == {"StatesDelivered": [1], "StateChanges": [1]}


def test_a_problem_is_sent_without_counting_as_a_state(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.lookup.one(ONE, world.in_seconds(10))
    known = world.known(ONE)
    assert known is not None
    nothing_new = replace(known, told=known.state().values, told_sequence=known.sequence)
    problem = problem_message(TWO, RtcUnavailable("Network."), 0)

    sent = world.teller.tell([Outgoing(problem, None), Outgoing(nothing_new.message("query", None), nothing_new)], 0)

    assert sent == ["message-1", "message-2"]
    assert metrics(capsys) == {"StatesDelivered": [1], "StateChanges": [0]}
