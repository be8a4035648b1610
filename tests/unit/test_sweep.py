"""Sweeps of given targets: what is asked, and what is told of each."""

from collections.abc import Callable
from typing import Any

import pytest

from stream_state import lookup as lookup_module
from stream_state.errors import (
    CredentialsInvalid,
    DeliveryFailed,
    QuotaExceeded,
    RtcAccessDenied,
    RtcActionRetired,
    RtcUnavailable,
    StreamStateError,
    TargetNotFound,
)
from stream_state.lookup import Outcome
from stream_state.model import Target
from stream_state.sweep import MAX_FAILURES_SHOWN, SweepRequest
from tests.unit.fakes import Clock, aws_error
from tests.unit.memory import World, media, metrics, targets

ONE, TWO, THREE = targets(3)
WATCHED = SweepRequest(None, "changes")
Conforms = Callable[[str, Any], None]
FAILS = aws_error("ProvisionedThroughputExceededException")


@pytest.fixture
def world(clock: Clock) -> World:
    return World(clock)


@pytest.fixture
def one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Targets are asked in their order."""
    monkeypatch.setattr(lookup_module, "MAX_CONCURRENCY", 1)


def run(world: World, request: SweepRequest = WATCHED, seconds: float = 600) -> dict[str, Any]:
    return world.sweep.run(request, world.in_seconds(seconds), world.in_seconds(seconds + 10))


def given(*given_targets: Target, emit: str = "all") -> SweepRequest:
    return SweepRequest(given_targets, emit)


def test_given_targets_are_all_told(world: World, conforms: Conforms, capsys: pytest.CaptureFixture[str]) -> None:
    world.rtc.seconds_per_call = 0.1
    world.rtc.say(TWO, media("audio"))

    summary = run(world, given(*targets(25), ONE))

    assert world.rtc.calls.count(ONE) == 1
    assert world.queue.users() == [target.user_id for target in targets(25)]
    for message in world.queue.messages:
        conforms("message", message)
    duration = summary.pop("duration_seconds")
    assert duration == pytest.approx(2.5, abs=0.01)
    assert summary.pop("calls_per_second") == pytest.approx(10, abs=0.1)
    counts = {"targets": 25, "delivered": 25, "unchanged": 0, "failed": 0, "failures": [], "remaining": 0}
    assert summary == counts
    assert metrics(capsys) == {"StatesDelivered": [25], "StateChanges": [25]}


@pytest.mark.parametrize(("emit", "told"), [("all", 3), ("changes", 1)])
def test_what_did_not_change_is_told_only_if_all_is_to_be(world: World, emit: str, told: int) -> None:
    run(world, given(ONE, TWO, THREE))
    world.queue.take()
    world.clock.seconds += 60
    world.rtc.say(TWO, media("video"))

    summary = run(world, given(ONE, TWO, THREE, emit=emit))

    assert (summary["delivered"], summary["unchanged"]) == (told, 3 - told)
    changed = {message["user_id"]: message["changed"] for message in world.queue.messages if message["changed"]}
    assert changed == {TWO.user_id: ["video", "present"]}
    assert len(world.queue.messages) == told


def test_that_a_target_is_unknown_is_told_as_an_observation(world: World, conforms: Conforms) -> None:
    world.rtc.say(ONE, media("audio"), TargetNotFound("Unknown.", rtc_request_id="request-7"))
    run(world, given(ONE))
    world.clock.seconds += 1

    first = run(world, given(ONE, emit="changes"))
    world.clock.seconds += 1
    again = run(world, given(ONE, emit="changes"))

    message = world.queue.messages[-1]
    conforms("message", message)
    assert message["media"] == dict.fromkeys(message["media"])
    assert (message["present"], message["publishing"], message["rtc_request_id"]) == (False, None, "request-7")
    assert [(summary["delivered"], summary["unchanged"]) for summary in (first, again)] == [(1, 0), (0, 1)]
    assert first["failed"] == 0


def test_a_given_target_that_failed_is_told_as_a_problem(world: World, conforms: Conforms) -> None:
    world.rtc.say(ONE, RtcUnavailable("Network.", rtc_code="InternalError", rtc_request_id="request-7"))

    summary = run(world, given(ONE, TWO))

    (problem,) = [message for message in world.queue.messages if message["type"] == "stream_state_problem"]
    conforms("message", problem)
    assert (
        problem["problem"] == RtcUnavailable("Network.", rtc_code="InternalError", rtc_request_id="request-7").problem()
    )
    assert summary["failures"] == [{**ONE.as_dict(), "problem": problem["problem"]}]
    assert (summary["targets"], summary["delivered"], summary["failed"]) == (2, 1, 1)


def test_a_given_target_of_which_the_table_cannot_be_written_is_told_as_a_problem(world: World) -> None:
    world.dynamodb.effects["get_item"] = iter([FAILS])

    summary = run(world, given(ONE))

    assert [message["problem"]["error"] for message in world.queue.messages] == ["StateUnavailable"]
    assert summary["failures"][0]["problem"]["error"] == "StateUnavailable"


def test_of_many_failures_the_first_are_shown_and_each_is_told(world: World) -> None:
    world.rtc.default = RtcUnavailable("Network.")

    summary = run(world, given(*targets(50)))

    assert (summary["failed"], len(summary["failures"])) == (50, MAX_FAILURES_SHOWN)
    assert world.queue.users("stream_state_problem") == [target.user_id for target in targets(50)]


@pytest.mark.parametrize(
    "error",
    [CredentialsInvalid("No secret."), RtcActionRetired("Gone."), RtcAccessDenied("No.", rtc_code="InvalidAccessKey")],
    ids=lambda error: type(error).__name__,
)
def test_a_refusal_that_concerns_all_stops_a_sweep_of_given_targets_and_is_told_of_each(
    world: World, one_at_a_time: None, error: StreamStateError
) -> None:
    world.rtc.say(TWO, error)

    summary = run(world, given(*targets(100)))

    assert world.rtc.calls == [ONE, TWO]
    problems = [message["problem"]["error"] for message in world.queue.messages if "problem" in message]
    assert problems == [type(error).__name__] * 99
    # Of the rest the table is asked if the action is withdrawn.
    failed = 99 if isinstance(error, RtcActionRetired) else 1
    assert (summary["delivered"], summary["failed"], summary["remaining"]) == (1, failed, 99 - failed)
    assert summary["targets"] == 100


def test_given_targets_that_were_not_reached_are_told_as_problems(world: World, one_at_a_time: None) -> None:
    world.rtc.seconds_per_call = 1
    world.rtc.say(TWO, QuotaExceeded("On hold."))

    summary = run(world, given(*targets(10)), seconds=4.5)

    problems = {m["user_id"]: m["problem"]["error"] for m in world.queue.messages if "problem" in m}
    assert problems == dict.fromkeys([TWO.user_id, *(target.user_id for target in targets(10)[5:])], "QuotaExceeded")
    assert (summary["delivered"], summary["remaining"], summary["failed"]) == (4, 6, 0)


def test_given_targets_whose_messages_are_not_accepted_make_the_sweep_fail(world: World) -> None:
    world.rtc.say(TWO, RtcUnavailable("Network."))
    world.queue.refuses = lambda message: message["user_id"] in {ONE.user_id, TWO.user_id}

    with pytest.raises(DeliveryFailed, match=r"^SQS did not accept 2 of the sweep's messages\."):
        run(world, given(ONE, TWO, THREE))

    assert world.queue.users() == [THREE.user_id]
    known = world.known(ONE)
    assert known is not None
    assert known.is_news


def test_why_asking_ended_is_told_of_all_that_were_not_reached_also_if_some_found_no_slot(world: World) -> None:
    refusal, no_slot = CredentialsInvalid("No secret."), QuotaExceeded("No slot.")
    outcomes = [Outcome(ONE, refusal, refusal), Outcome(TWO, no_slot, no_slot)]
    world.lookup.each = lambda asked, deadline: iter(outcomes)

    run(world, given(ONE, TWO, THREE))

    problems = {message["user_id"]: message["problem"]["error"] for message in world.queue.messages}
    assert problems[THREE.user_id] == "CredentialsInvalid"
