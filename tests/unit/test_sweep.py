"""Sweeps of given targets: whom they ask about, and which messages they send."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest

from stream_state import errors
from stream_state.domain.documents import Outcome
from stream_state.domain.targets import Target
from tests.unit.fakes import aws_error
from tests.unit.memory import World, media, metrics, targets
from tests.unit.observed import event

ONE, TWO, THREE = targets(3)
Conforms = Callable[[str, Any], None]
FAILS = aws_error("ProvisionedThroughputExceededException")
FAILED = errors.RtcUnavailable("Network.", rtc_code="InternalError", rtc_request_id="request-7")


def problems(world: World) -> dict[str, str]:
    """The errors that messages named, by user."""
    return {message["user_id"]: message["problem"]["error"] for message in world.queue.messages if "problem" in message}


def counts(summary: dict[str, Any], *names: str) -> tuple[Any, ...]:
    return tuple(summary[name] for name in names)


def test_given_targets_are_all_delivered(world: World, conforms: Conforms, capsys: pytest.CaptureFixture[str]) -> None:
    # What others in this process have recorded does not count.
    metrics(capsys)
    world.rtc.seconds_per_call = 0.1
    world.rtc.say(TWO, media("audio"))

    summary = world.run_sweep(*targets(25), ONE, emits_all=True)

    assert world.rtc.calls.count(ONE) == 1
    assert world.queue.users() == [target.user_id for target in targets(25)]
    for message in world.queue.messages:
        conforms("message", message)
    assert summary.pop("duration_seconds") == pytest.approx(2.5, abs=0.01)
    assert summary.pop("calls_per_second") == pytest.approx(10, abs=0.1)
    assert summary == {"targets": 25, "delivered": 25, "unchanged": 0, "failed": 0, "failures": [], "remaining": 0}
    assert metrics(capsys) == {"StatesDelivered": [25], "StateChanges": [25]}


@pytest.mark.parametrize(("emits_all", "delivered"), [(True, 3), (False, 1)])
def test_an_unchanged_state_is_delivered_only_if_all_are(world: World, emits_all: object, delivered: int) -> None:
    world.run_sweep(ONE, TWO, THREE)
    world.queue.take()
    world.clock.seconds += 60
    world.rtc.say(TWO, media("video"))

    summary = world.run_sweep(ONE, TWO, THREE, emits_all=bool(emits_all))

    assert counts(summary, "delivered", "unchanged") == (delivered, 3 - delivered)
    changed = {message["user_id"]: message["changed"] for message in world.queue.messages if message["changed"]}
    assert changed == {TWO.user_id: ["video", "present"]}
    assert len(world.queue.messages) == delivered


def test_that_a_target_is_unknown_is_delivered_as_an_observation(world: World, conforms: Conforms) -> None:
    world.rtc.say(ONE, media("audio"), errors.TargetNotFound("Unknown.", rtc_request_id="request-7"))
    summaries = []
    for _ in range(3):
        summaries.append(world.run_sweep(ONE))
        world.clock.seconds += 1

    message = world.queue.messages[-1]
    conforms("message", message)
    # What was on is not known, and what was off stays off.
    assert message["media"] == media(unknown=["audio"])
    assert (message["present"], message["publishing"], message["rtc_request_id"]) == (False, None, "request-7")
    expected = [(1, 0, 0), (1, 0, 0), (0, 1, 0)]
    assert [counts(summary, "delivered", "unchanged", "failed") for summary in summaries] == expected


@pytest.mark.parametrize("operation", ["put_item", "get_item"])
def test_a_given_target_whose_record_cannot_be_written_has_a_problem_message(world: World, operation: str) -> None:
    world.dynamodb.effects[operation] = iter([FAILS])

    summary = world.run_sweep(ONE, emits_all=True)

    assert problems(world) == {ONE.user_id: "StateUnavailable"}
    assert summary["failures"][0]["problem"]["error"] == "StateUnavailable"


def test_of_many_failures_the_first_are_shown_and_each_has_a_message(world: World) -> None:
    world.rtc.default = FAILED
    world.rtc.say(THREE, media())

    summary = world.run_sweep(*targets(50))

    assert counts(summary, "targets", "delivered", "failed") == (50, 1, 49)
    messages = {message["user_id"]: message for message in world.queue.messages if "problem" in message}
    assert sorted([*messages, THREE.user_id]) == [target.user_id for target in targets(50)]
    assert all(message["problem"] == FAILED.problem() for message in messages.values())
    assert len(summary["failures"]) == 20
    assert all(
        failure | messages[failure["user_id"]] == messages[failure["user_id"]] for failure in summary["failures"]
    )


@pytest.mark.parametrize(
    "error",
    [
        errors.CredentialsInvalid("No secret."),
        errors.RtcAccessDenied("No.", rtc_code="InvalidAccessKey"),
    ],
    ids=lambda error: error.name,
)
def test_a_refusal_that_concerns_all_ends_the_asking_and_is_the_problem_of_all_others(
    world: World, one_at_a_time: None, error: errors.StreamStateError
) -> None:
    world.rtc.say(TWO, error)

    summary = world.run_sweep(*targets(100), emits_all=True)

    assert world.rtc.calls == [ONE, TWO]
    assert problems(world) == {target.user_id: error.name for target in targets(100)[1:]}
    assert counts(summary, "targets", "delivered", "failed", "remaining") == (100, 1, 1, 98)


def test_given_targets_that_were_not_reached_have_problem_messages(world: World, one_at_a_time: None) -> None:
    world.rtc.seconds_per_call = 1
    world.rtc.say(TWO, errors.QuotaExceeded("On hold."))

    summary = world.run_sweep(*targets(10), emits_all=True, seconds=4.5)

    not_reached = [TWO, *targets(10)[5:]]
    assert problems(world) == {target.user_id: "QuotaExceeded" for target in not_reached}
    assert counts(summary, "delivered", "remaining", "failed") == (4, 6, 0)


def test_the_reason_why_the_asking_ended_counts_for_all_that_were_not_reached(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a target that found no slot after the refusal that ended the asking
    refusal, no_slot = errors.CredentialsInvalid("No secret."), errors.QuotaExceeded("No slot.")
    outcomes = [Outcome(ONE, refusal, refusal), Outcome(TWO, no_slot, no_slot, is_asked=False)]
    monkeypatch.setattr(world.lookup, "each", lambda asked, deadline: iter(outcomes))

    world.run_sweep(ONE, TWO, THREE)

    assert problems(world)[THREE.user_id] == "CredentialsInvalid"


def test_messages_that_are_not_accepted_make_a_sweep_of_given_targets_fail(world: World) -> None:
    world.rtc.say(TWO, FAILED)
    world.queue.refuses = lambda message: message["user_id"] in {ONE.user_id, TWO.user_id}

    with pytest.raises(errors.DeliveryFailed, match=r"^SQS did not accept 2 of the sweep's messages\."):
        world.run_sweep(ONE, TWO, THREE)

    assert world.queue.users() == [THREE.user_id]


# The list of undelivered changes


@pytest.mark.parametrize(
    ("given", "prepare", "calls", "raises"),
    [
        ([], lambda world: None, [ONE], False),
        ([], lambda world: setattr(world.lookup, "query", "off"), [], False),
        ([], lambda world: world.watch_list.take_lease("another"), [], False),
        ([], lambda world: world.dynamodb.effects.update(update_item=iter([FAILS])), [], True),
        ([TWO], lambda world: None, [TWO], False),
        ([TWO], lambda world: setattr(world.lookup, "query", "off"), [], False),
    ],
    ids=["watched", "RTC_QUERY is off", "lease is held", "lease fails", "given", "given, RTC_QUERY is off"],
)
def test_every_sweep_delivers_the_changes_that_nobody_has_delivered(
    world: World, given: list[Target], prepare: Callable[[World], Any], calls: list[Target], raises: object
) -> None:
    # Given more changes than one look at the list shows, of targets that the sweep is not about
    changed = targets(25, "class-2")
    for target in changed:
        world.see(target, event("audio.start", world.clock.now_ms()))
    world.watch_list.add([ONE], 3600)
    prepare(world)

    with pytest.raises(errors.StateUnavailable) if raises else nullcontext():
        world.run_sweep(*given)

    messages = [message for message in world.queue.take() if message["room_id"] == "class-2"]
    assert sorted(message["user_id"] for message in messages) == [target.user_id for target in changed]
    assert all((m["source"], m["changed"]) == ("table", ["audio", "present"]) for m in messages)
    assert world.rtc.calls == calls
    # And only once
    world.clock.seconds += 60
    world.run_sweep()
    assert [message for message in world.queue.messages if message["room_id"] == "class-2"] == []
