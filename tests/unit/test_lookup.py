"""Lookups of one target and of some, and what the queue is told of them."""

import io
import threading
from collections.abc import Callable
from itertools import repeat
from types import SimpleNamespace
from typing import Any

import pytest

from stream_state import lookup as lookup_module
from stream_state.errors import (
    CredentialsInvalid,
    CredentialsUnavailable,
    QuotaExceeded,
    RtcAccessDenied,
    RtcActionRetired,
    RtcProtocolError,
    RtcUnavailable,
    StateUnavailable,
    StreamStateError,
    StreamStateTimeout,
    TargetNotFound,
)
from stream_state.lookup import Lookup, concerns_all, deadline, item, not_reached
from stream_state.model import Medium, StreamState, Target, Until
from stream_state.settings import Settings
from stream_state.table import StateTable
from stream_state.telling import Teller
from tests.unit.fakes import Clock, aws_error
from tests.unit.memory import APP_ID, World, media, query_facts, targets

ONE, TWO, THREE = targets(3)
Conforms = Callable[[str, Any], None]


@pytest.fixture
def world(clock: Clock) -> World:
    return World(clock)


@pytest.fixture
def one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup_module, "MAX_CONCURRENCY", 1)


def test_a_table_that_does_not_answer_in_time_keeps_no_answer_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a table that answers no more, and a vendor whose answer comes when the time for calls is over
    released = threading.Event()
    monkeypatch.setattr(world.table, "observe", lambda *_: released.wait(30))
    monkeypatch.setattr(world.rtc, "seconds_per_call", 10 + lookup_module.WRITE_SECONDS)
    world.rtc.say(ONE, media("video"))

    # When a target is asked for
    (outcome,) = world.lookup.some([ONE], world.in_seconds(10))
    released.set()

    # Then who asks has the answer, and who delivers learns that it is not stored.
    assert isinstance(outcome.answer, StreamState)
    assert isinstance(outcome.known, StateUnavailable)


def test_a_table_that_is_not_read_in_time_keeps_nobody_waiting(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a table whose reads hang
    released = threading.Event()
    monkeypatch.setattr(world.table, "read", lambda *_, **options: released.wait(30))
    monkeypatch.setattr(lookup_module, "WRITE_SECONDS", 0)
    world.rtc.say(ONE, media("video"))

    # When a target is asked for, or looked up
    (outcome,) = world.lookup.some([ONE], world.in_seconds(0.1))
    with_max_age = world.lookup.one(ONE, world.in_seconds(0.1), 60)
    world.lookup.queries = False
    with pytest.raises(StateUnavailable, match="did not answer in time"):
        world.lookup.one(ONE, world.in_seconds(0.1))

    # Then what the table is not needed for is answered all the same
    assert isinstance(outcome.answer, StreamState)
    assert (with_max_age.source, with_max_age.publishing) == ("query", True)
    released.set()


def throttled(world: World, *operations: str) -> None:
    for operation in operations:
        world.dynamodb.effects[operation] = repeat(aws_error("ProvisionedThroughputExceededException"))


def test_an_answer_comes_from_the_vendor_and_is_remembered(world: World, conforms: Conforms) -> None:
    world.rtc.say(ONE, media("video", unknown=["audio"]))

    answer = world.lookup.one(ONE, world.in_seconds(10)).answer()

    conforms("answer", answer)
    assert (answer["source"], answer["rtc_request_id"], answer["publishing"]) == ("query", "request-1", True)
    assert answer["media"] == media("video", unknown=["audio"])
    assert world.known(ONE)


def test_an_answer_tells_also_what_is_known_from_events_that_are_newer_than_the_query(world: World) -> None:
    later_ms = int(world.clock.wall() * 1000) + 5000
    world.table.observe(StreamState(ONE, query_facts(media("audio"), later_ms), "callback"))
    world.rtc.say(ONE, media("video"))

    assert world.lookup.one(ONE, world.in_seconds(10)).values["audio"] is True


@pytest.mark.parametrize(
    ("max_age_seconds", "age_seconds", "known", "calls"),
    [
        (60, 59, media("audio"), 0),
        (60, 61, media("audio"), 1),
        (0, 0, media("audio"), 1),
        (60, 1, media("audio", unknown=["screen_video"]), 1),
        (60, 1, None, 1),
    ],
)
def test_a_known_state_is_accepted_if_it_is_whole_and_fresh(
    world: World, max_age_seconds: int, age_seconds: int, known: dict[str, bool | None] | None, calls: int
) -> None:
    if known:
        at_ms = int(world.clock.wall() * 1000)
        world.table.observe(StreamState(ONE, query_facts(known, at_ms), "query"))
    world.clock.seconds += age_seconds

    state = world.lookup.one(ONE, world.in_seconds(10), max_age_seconds)

    assert len(world.rtc.calls) == calls
    assert (state.source, state.rtc_request_id) == (("query", "request-1") if calls else ("table", None))


def test_the_vendor_is_asked_if_the_table_cannot_be_read(world: World, logs: io.StringIO) -> None:
    throttled(world, "batch_get_item")

    assert world.lookup.one(ONE, world.in_seconds(10), 60).source == "query"
    assert "StateUnavailable" in logs.getvalue()


def test_without_the_table_the_asker_still_gets_what_the_vendor_said_and_the_teller_gets_the_error(
    world: World,
) -> None:
    throttled(world, "get_item", "batch_get_item", "put_item")
    world.rtc.say(ONE, media("audio"))
    world.rtc.say(TWO, TargetNotFound("Unknown."))

    found, unknown = world.lookup.some([ONE, TWO], world.in_seconds(10))

    assert found.result()["media"] == media("audio")
    assert isinstance(found.known, StateUnavailable)
    assert isinstance(unknown.result(), TargetNotFound)
    assert isinstance(unknown.known, StateUnavailable)
    assert isinstance(world.teller.deliver([found], world.in_seconds(10))[0], StateUnavailable)
    assert world.queue.messages == []


def test_some_are_answered_in_the_order_asked_and_one_named_twice_costs_one_call(world: World) -> None:
    world.lookup.one(TWO, world.in_seconds(10))
    world.rtc.say(THREE, RtcProtocolError("What?"))

    outcomes = world.lookup.some([THREE, ONE, TWO, ONE, THREE], world.in_seconds(10), max_age_seconds=60)

    assert [outcome.target for outcome in outcomes] == [THREE, ONE, TWO, ONE, THREE]
    assert sorted(world.rtc.calls) == [ONE, TWO, THREE]
    assert [getattr(outcome.answer, "source", None) for outcome in outcomes] == [None, "query", "table", "query", None]
    assert outcomes[0].answer is outcomes[4].answer
    with pytest.raises(RtcProtocolError):
        world.lookup.one(THREE, world.in_seconds(10))


def test_many_are_asked_each_once(world: World) -> None:
    everyone = targets(300)

    outcomes = world.lookup.some(everyone, world.in_seconds(10))

    assert [outcome.target for outcome in outcomes] == everyone == sorted(world.rtc.calls)
    assert all(isinstance(outcome.answer, StreamState) for outcome in outcomes)


HALTING: list[StreamStateError] = [
    CredentialsInvalid("No secret."),
    CredentialsUnavailable("Later."),
    RtcActionRetired("Gone."),
    RtcAccessDenied("Keys.", rtc_code="InvalidAccessKey"),
    RtcAccessDenied("Policy.", rtc_code="LackPolicy"),
]
PASSING: list[StreamStateError] = [
    RtcAccessDenied("AppId.", rtc_code="InvalidParameter.AccountIdMismatch"),
    RtcUnavailable("Network."),
    TargetNotFound("Unknown."),
    RtcProtocolError("What?"),
]


@pytest.mark.parametrize("error", HALTING, ids=str)
@pytest.mark.parametrize("concurrency", [1, 64])
def test_an_error_that_every_target_would_meet_ends_the_asking(
    world: World, monkeypatch: pytest.MonkeyPatch, error: StreamStateError, concurrency: int
) -> None:
    monkeypatch.setattr(lookup_module, "MAX_CONCURRENCY", concurrency)
    world.rtc.default = error

    outcomes = world.lookup.some(targets(500), world.in_seconds(10))

    assert concerns_all(error)
    assert len(world.rtc.calls) <= concurrency
    assert {str(outcome.answer) for outcome in outcomes} == {str(error)}
    assert len(outcomes) == 500


def test_who_waits_for_a_slot_while_another_is_refused_makes_no_call(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusal = CredentialsInvalid("No secret.")
    all_begun = threading.Barrier(3)

    def ask(target: Target, deadline: float, before_call: Callable[[], None]) -> StreamState:
        all_begun.wait()
        while target != ONE:
            before_call()
        raise refusal

    monkeypatch.setattr(world.rtc, "stream_state", ask)

    outcomes = world.lookup.some([ONE, TWO, THREE], world.in_seconds(10))

    assert [outcome.answer for outcome in outcomes] == [refusal] * 3


@pytest.mark.parametrize("error", PASSING, ids=str)
def test_an_error_of_one_target_leaves_the_others_alone(world: World, error: StreamStateError) -> None:
    world.rtc.say(TWO, error)

    outcomes = world.lookup.some([TWO, *targets(200)], world.in_seconds(10))

    assert not concerns_all(error)
    assert len(world.rtc.calls) == 200
    assert [outcome.target for outcome in outcomes if outcome.answer is error] == [TWO, TWO]


def test_those_whose_turn_does_not_come_before_the_deadline_are_told_to_come_back(
    world: World, one_at_a_time: None
) -> None:
    world.rtc.seconds_per_call = 1

    outcomes = world.lookup.some(targets(10), world.in_seconds(3.5))

    assert world.rtc.calls == targets(4)
    refused = [outcome.answer for outcome in outcomes[4:]]
    assert all(isinstance(answer, QuotaExceeded) and answer.retry_after == 1 for answer in refused)
    assert str(refused[0]) == str(not_reached())


def test_no_target_costs_no_call(world: World) -> None:
    assert world.lookup.some([], world.in_seconds(10)) == []
    assert world.teller.deliver([], world.in_seconds(10)) == []


def until(world: World, *, seconds: float, publishing: bool = True) -> Until:
    return Until(Medium.VIDEO, publishing, world.clock.wall() + seconds)


@pytest.mark.parametrize(
    ("says", "seconds", "outcome"),
    [
        (media("video"), 5, True),
        (media("video"), -5, True),
        (media(), 5, False),
        (media(), -5, StreamStateTimeout),
        (TargetNotFound("Unknown."), 5, False),
        (TargetNotFound("Unknown."), -5, StreamStateTimeout),
        (RtcUnavailable("Network."), 5, RtcUnavailable),
        (RtcUnavailable("Network."), -5, StreamStateTimeout),
        (RtcProtocolError("What?"), 5, RtcProtocolError),
        (RtcProtocolError("What?"), -5, RtcProtocolError),
    ],
)
def test_a_wait_ends_when_it_holds_or_its_time_is_past(
    world: World, says: Any, seconds: float, outcome: type[StreamStateError] | Any
) -> None:
    world.rtc.say(ONE, says)
    condition = until(world, seconds=seconds)

    if isinstance(outcome, type):
        with pytest.raises(outcome):
            world.lookup.until(ONE, condition, world.in_seconds(10))
    else:
        state, holds = world.lookup.until(ONE, condition, world.in_seconds(10))
        assert (state.target, holds) == (ONE, outcome)


def test_who_is_unknown_is_not_known_to_be_off(world: World) -> None:
    world.rtc.say(ONE, TargetNotFound("Unknown.", rtc_request_id="request-7"))

    state, holds = world.lookup.until(ONE, until(world, seconds=5, publishing=False), world.in_seconds(10))

    assert (holds, state.publishing, state.values["present"], state.rtc_request_id) == (False, None, False, "request-7")


def test_a_wait_accepts_a_known_state(world: World) -> None:
    world.rtc.say(ONE, media("video"))
    world.lookup.one(ONE, world.in_seconds(10))

    assert world.lookup.until(ONE, until(world, seconds=5), world.in_seconds(10), 60)[1] is True
    assert len(world.rtc.calls) == 1


def test_an_error_among_several_names_its_target(conforms: Conforms) -> None:
    problem = item(ONE, QuotaExceeded("No slot."))

    conforms("problem", problem)
    assert {name: problem[name] for name in ("app_id", "room_id", "user_id")} == ONE.as_dict()
    assert item(ONE, {"type": "stream_state"}) == {"type": "stream_state"}


def test_the_deadline_leaves_time_to_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup_module, "time", SimpleNamespace(monotonic=lambda: 100.0))
    context: Any = SimpleNamespace(get_remaining_time_in_millis=lambda: 10_000)

    assert deadline(context, reserve_seconds=0.5) == 109.5


def test_a_lookup_and_a_teller_are_made_from_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, "eu-central-1")
    environment = {
        "RTC_APP_IDS": APP_ID,
        "RTC_SECRET_ID": "keys",
        "TABLE_NAME": "states",
        "RESULTS_QUEUE_URL": "https://sqs.example/1/results",
    }
    settings = Settings.from_environment(environment)
    table = StateTable.from_settings(settings)

    assert isinstance(Lookup.from_settings(settings, table, "api"), Lookup)
    assert isinstance(Teller.from_settings(settings, table), Teller)
