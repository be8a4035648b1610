"""Lookups of one target and of several: from the vendor, from the records, and without the vendor's action."""

import io
import json
import math
import threading
import time
from collections.abc import Callable
from itertools import repeat
from typing import Any

import pytest

from stream_state import errors
from stream_state.adapters.state_store import STATE_LIFE_SECONDS
from stream_state.adapters.volcengine import VolcengineClient
from stream_state.domain.documents import Answer, Outcome
from stream_state.domain.merging import StateRecord
from stream_state.domain.observations import QueryResult
from stream_state.domain.requests import SweepRequest
from stream_state.domain.targets import Medium, Target
from stream_state.domain.waits import WaitCondition
from stream_state.services import asking, waits
from stream_state.services.lookup import Lookup
from stream_state.settings import Settings
from tests.unit.fakes import aws_error
from tests.unit.memory import ENVIRONMENT, World, media, metrics, targets
from tests.unit.observed import event, query

ONE, TWO, THREE = targets(3)
UNKNOWN = errors.TargetNotFound("Unknown.", rtc_request_id="request-7")
RETIRED = errors.RtcActionRetired("Volcengine has withdrawn GetUserStreamState.", rtc_code="InvalidActionOrVersion")
Conforms = Callable[[str, Any], None]


def ask(world: World, target: Target = ONE, max_age_seconds: int = 0) -> Answer:
    return world.lookup.one(target, world.in_seconds(10), max_age_seconds)


def some(world: World, *asked: Target, seconds: float = 10) -> list[Outcome]:
    return world.lookup.some(asked, world.in_seconds(seconds))


def fails(world: World, *operations: str) -> None:
    for operation in operations:
        world.dynamodb.effects[operation] = repeat(aws_error("ProvisionedThroughputExceededException"))


def requests(world: World) -> list[str]:
    """The requests to DynamoDB since the last look."""
    made = [operation for operation, _ in world.dynamodb.made]
    world.dynamodb.made.clear()
    return made


def logged(logs: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in logs.getvalue().splitlines()]


def test_an_answer_comes_from_the_vendor_and_is_recorded(world: World, conforms: Conforms) -> None:
    world.rtc.say(ONE, media("video", unknown=["audio"]))

    answer = ask(world).document()

    conforms("answer", answer)
    assert (answer["source"], answer["rtc_request_id"], answer["publishing"]) == ("query", "request-1", True)
    assert answer["media"] == media("video", unknown=["audio"])
    assert world.values(ONE) == {**media("video", unknown=["audio"]), "present": True}


def test_an_answer_holds_newer_observations_of_the_record_too(world: World) -> None:
    world.store.observe(ONE, query(world.clock.now_ms() + 5000, audio=True))
    world.rtc.say(ONE, media("video"))

    assert ask(world).record.state.values["audio"] is True


@pytest.mark.parametrize(
    ("max_age_seconds", "age_seconds", "recorded", "calls"),
    [
        (60, 59, {"audio": True}, 0),
        (60, 61, {"audio": True}, 1),
        (0, 0, {"audio": True}, 1),
        (60, 1, {"audio": True, "screen_video": None}, 1),
        (60, 1, None, 1),
    ],
)
def test_a_record_is_the_answer_if_it_is_whole_and_fresh(
    world: World, max_age_seconds: int, age_seconds: int, recorded: dict[str, bool | None] | None, calls: int
) -> None:
    if recorded:
        world.store.observe(ONE, query(world.clock.now_ms(), **recorded))
    world.clock.seconds += age_seconds

    answer = ask(world, max_age_seconds=max_age_seconds)

    assert len(world.rtc.calls) == calls
    assert (answer.source, answer.rtc_request_id) == (("query", "request-1") if calls else ("table", None))


def test_a_lookup_reads_nothing_before_its_write(world: World) -> None:
    made, other = [], World(world.clock, world.dynamodb.client)
    for lookups, max_age_seconds in ((world, 0), (world, 0), (other, 0), (world, 60)):
        ask(lookups, max_age_seconds=max_age_seconds)
        made.append(requests(lookups))
        world.clock.seconds += 30

    # The room's end is read after the first write. Another instance gets the record from its refused write.
    assert made == [["put_item", "get_item"], ["put_item"], ["put_item", "put_item"], ["batch_get_item"]]


@pytest.fixture
def made_from(world: World, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Lookup]:
    """Makes the lookup of a function from the environment."""
    monkeypatch.setattr(VolcengineClient, "from_settings", lambda *_: world.rtc)
    settings = Settings.from_environment
    return lambda function, **more: Lookup.from_settings(settings({**ENVIRONMENT, **more}), world.store, function)


@pytest.mark.parametrize(("function", "count", "waits"), [("api", 1, 3.5), ("api", 2, 4.0), ("task", 100, 53.0)])
def test_api_and_task_wait_for_slots_for_a_bounded_time_and_what_their_own_targets_take(
    world: World, made_from: Callable[..., Lookup], function: str, count: int, waits: float
) -> None:
    lookup = made_from(function, RTC_QPS="2", RTC_MAX_WAIT_SECONDS="3")

    lookup.some([*targets(count), ONE], math.inf)

    assert world.rtc.waits == pytest.approx([waits] * count)


@pytest.mark.parametrize("function", ["sweep", "callback"])
def test_sweeps_and_rechecks_wait_for_slots_without_bound(
    world: World, made_from: Callable[..., Lookup], function: str
) -> None:
    lookup = made_from(function)

    list(lookup.each(iter([ONE, TWO]), math.inf))
    lookup.recheck(StateRecord(THREE), math.inf)

    assert world.rtc.waits == [math.inf] * 3


def test_the_environment_switches_queries(made_from: Callable[..., Lookup]) -> None:
    assert [made_from("api", RTC_QUERY=value).query for value in ("on", "off")] == ["on", "off"]


def test_the_vendor_is_asked_if_the_table_cannot_be_read(world: World, logs: io.StringIO) -> None:
    fails(world, "batch_get_item")

    assert ask(world, max_age_seconds=60).source == "query"
    assert [line["error"] for line in logged(logs)] == ["StateUnavailable"]


@pytest.mark.parametrize("asked", [(ONE,), (ONE, TWO)])
def test_the_caller_has_the_answer_and_the_delivery_the_error_if_the_table_fails(
    world: World, asked: tuple[Target, ...]
) -> None:
    fails(world, "get_item", "batch_get_item", "put_item")
    world.rtc.say(ONE, media("audio"))
    world.rtc.say(TWO, UNKNOWN)

    found, *unknown = some(world, *asked)

    assert isinstance(found.answer, Answer)
    assert found.answer.record.state.values["audio"] is True
    assert all(isinstance(outcome.result(), errors.TargetNotFound) for outcome in unknown)
    assert all(isinstance(outcome.merge, errors.StateUnavailable) for outcome in (found, *unknown))
    assert isinstance(world.delivery.deliver([found], world.in_seconds(10))[0], errors.StateUnavailable)
    assert world.queue.messages == []


def test_several_are_answered_in_the_order_asked_and_a_target_named_twice_costs_one_call(
    world: World, logs: io.StringIO
) -> None:
    ask(world, TWO)
    world.rtc.say(THREE, errors.RtcProtocolError("What?"))

    outcomes = world.lookup.some([THREE, ONE, TWO, ONE, THREE], world.in_seconds(10), max_age_seconds=60)

    assert [outcome.target for outcome in outcomes] == [THREE, ONE, TWO, ONE, THREE]
    assert sorted(world.rtc.calls) == [ONE, TWO, THREE]
    assert [getattr(outcome.answer, "source", None) for outcome in outcomes] == [None, "query", "table", "query", None]
    assert outcomes[0].answer is outcomes[4].answer
    # The error is logged once, with its target.
    (line,) = logged(logs)
    assert line | {**THREE.as_dict(), "error": "RtcProtocolError"} == line
    with pytest.raises(errors.RtcProtocolError):
        ask(world, THREE)


HALTING = [
    errors.CredentialsInvalid("No secret."),
    errors.CredentialsUnavailable("Later."),
    errors.RtcActionRetired("Gone."),
    errors.RtcAccessDenied("Keys.", rtc_code="InvalidAccessKey"),
    errors.RtcAccessDenied("Policy.", rtc_code="LackPolicy"),
]
PASSING = [
    errors.RtcAccessDenied("AppId.", rtc_code="InvalidParameter.AccountIdMismatch"),
    errors.RtcUnavailable("Network."),
    UNKNOWN,
]


@pytest.mark.parametrize("error", [*HALTING, *PASSING], ids=str)
@pytest.mark.parametrize("concurrency", [1, 64])
def test_an_error_that_every_target_would_meet_ends_the_asking(
    world: World, monkeypatch: pytest.MonkeyPatch, error: errors.StreamStateError, concurrency: int
) -> None:
    monkeypatch.setattr(asking, "MAX_CONCURRENCY", concurrency)
    world.rtc.default = error

    outcomes = some(world, *targets(200))

    assert 1 <= len(world.rtc.calls) <= (concurrency if error in HALTING else 200)
    assert (sorted(world.rtc.calls) == targets(200)) is (error in PASSING)
    assert (world.dynamodb.count("batch_get_item") < 6) is (error in HALTING)
    assert [outcome.target for outcome in outcomes] == targets(200)
    assert {str(outcome.answer) for outcome in outcomes} == {str(error)}


def test_a_target_that_waits_for_a_slot_meanwhile_is_not_asked(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = errors.CredentialsInvalid("No secret.")
    all_begun = threading.Barrier(3)  # The three wait for a slot, and the keys cannot be read for the first.

    def stream_state(target: Target, deadline: float, *, before_call: Callable[[], None], **more: float) -> QueryResult:
        all_begun.wait()
        for _ in range(0 if target == ONE else 2000):
            time.sleep(0.001)
            before_call()
        raise refusal

    monkeypatch.setattr(world.rtc, "stream_state", stream_state)
    outcomes = some(world, ONE, TWO, THREE)

    assert [outcome.answer for outcome in outcomes] == [refusal] * 3
    assert [outcome.is_asked for outcome in outcomes] == [True, False, False]


def test_a_target_whose_turn_does_not_come_in_time_is_refused_for_a_second(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "MAX_CONCURRENCY", 1)
    world.rtc.seconds_per_call = 1

    outcomes = some(world, *targets(10), seconds=3.5)

    assert world.rtc.calls == targets(4)
    answers = [outcome.answer for outcome in outcomes[4:]]
    assert all(isinstance(answer, errors.QuotaExceeded) and answer.retry_after == 1 for answer in answers)
    assert "before this target's turn" in str(answers[0])


# Wait conditions


def condition(world: World, *, seconds: float, publishing: bool = True) -> WaitCondition:
    return WaitCondition(Medium.VIDEO, publishing, world.clock.now() + seconds)


@pytest.mark.parametrize(
    ("says", "seconds", "outcome"),
    [
        (media("video"), 5, True),
        (media("video"), -5, True),
        (media(), 5, False),
        (media(), -5, errors.StreamStateTimeout),
        (UNKNOWN, 5, False),
        (UNKNOWN, -5, errors.StreamStateTimeout),
        (errors.RtcUnavailable("Network."), 5, errors.RtcUnavailable),
        (errors.RtcUnavailable("Network."), -5, errors.StreamStateTimeout),
        (errors.RtcProtocolError("What?"), 5, errors.RtcProtocolError),
        (errors.RtcProtocolError("What?"), -5, errors.RtcProtocolError),
        (RETIRED, 5, errors.RtcActionRetired),
    ],
)
def test_a_wait_ends_when_its_condition_holds_or_its_deadline_is_past(
    world: World, says: Any, seconds: float, outcome: Any
) -> None:
    world.rtc.say(ONE, says)
    waits_for = condition(world, seconds=seconds)

    if isinstance(outcome, bool):
        answer, holds = waits.check(world.lookup, ONE, waits_for, world.in_seconds(10))
        assert (answer.target, holds) == (ONE, outcome)
    else:
        with pytest.raises(outcome):
            waits.check(world.lookup, ONE, waits_for, world.in_seconds(10))


@pytest.mark.parametrize(("queries", "source", "present"), [(True, "query", False), (False, "table", None)])
def test_an_unknown_user_is_not_yet_and_never_off(world: World, queries: object, source: str, present: object) -> None:
    world.rtc.say(ONE, UNKNOWN)
    world.lookup.query = "on" if queries else "off"

    answer, holds = waits.check(world.lookup, ONE, condition(world, seconds=5, publishing=False), world.in_seconds(10))

    # Without a query nobody said that the user is absent.
    assert (holds, answer.record.state.publishing, answer.record.state.present.value) == (False, None, present)
    assert (answer.source, answer.rtc_request_id) == (source, "request-7" if queries else None)
    with pytest.raises(errors.StreamStateTimeout):
        waits.check(world.lookup, ONE, condition(world, seconds=-1), world.in_seconds(10))


def test_an_answer_that_cannot_be_written_is_merged_with_the_record_that_was_read(world: World) -> None:
    # Given an event of a second ago, and a query that lags behind it
    world.store.observe(ONE, event("audio.start", world.clock.now_ms() - 1000))
    fails(world, "put_item")
    other = World(world.clock, world.dynamodb)
    # Then the event stands, whether the instance wrote the record or read it
    assert ask(world).record.state.values["audio"] is True
    assert some(other, ONE, TWO)[0].result()["media"]["audio"] is True  # type: ignore[index]  # an answer


# Without the vendor's action: withdrawn by the vendor, or switched off


def test_those_whom_the_vendor_answered_before_the_action_was_withdrawn_keep_its_answer(
    world: World, one_at_a_time: None
) -> None:
    world.store.observe(THREE, event("audio.start", world.clock.now_ms() - 3_600_000))
    world.rtc.default = RETIRED
    world.rtc.say(ONE, media("video"))
    world.rtc.say(TWO, UNKNOWN)
    world.dynamodb.effects["put_item"] = iter([aws_error("ProvisionedThroughputExceededException")])

    answered, unknown, withdrawn = some(world, ONE, TWO, THREE)

    assert isinstance(answered.answer, Answer)
    assert (answered.answer.source, answered.answer.record.state.values["video"]) == ("query", True)
    assert (unknown.error and unknown.error.name, world.rtc.calls) == ("TargetNotFound", [ONE, TWO, THREE])
    assert isinstance(withdrawn.answer, Answer)
    assert withdrawn.answer.source == "table"


ON, OFF, NEVER_SEEN, GONE = targets(4)
WATCHED = SweepRequest(None, emits_all=False)


@pytest.fixture
def described(world: World) -> World:
    """A minute ago callback events described two users: one with audio, and one who left. Both were delivered."""
    world.see(ON, event("audio.start", world.clock.now_ms()))
    world.see(OFF, event("leave", world.clock.now_ms()))
    world.delivery.drain(world.in_seconds(10))
    world.queue.take()
    world.clock.seconds += 60
    return world


@pytest.fixture(params=["retired", "off"])
def missing(request: pytest.FixtureRequest, described: World) -> type[errors.StreamStateError]:
    """The error of a target without a record, while no call can help."""
    if request.param == "retired":
        described.rtc.default = RETIRED
        return errors.RtcActionRetired
    described.lookup.query = "off"
    return errors.TargetNotFound


def run(world: World, request: SweepRequest) -> dict[str, Any]:
    return world.sweep.run(request, world.in_seconds(600), world.in_seconds(610))


def test_the_answer_is_the_record(world: World, missing: type[errors.StreamStateError], conforms: Conforms) -> None:
    on, off = ask(world, ON).document(), ask(world, OFF, max_age_seconds=1).document()

    for answer in (on, off):
        conforms("answer", answer)
        assert (answer["source"], answer["rtc_request_id"]) == ("table", None)
        assert answer["observed_at"] == "2026-11-23T03:04:05.678Z"
    assert (on["media"], on["present"]) == (media("audio", unknown=["video", "screen_audio", "screen_video"]), True)
    assert (off["media"], off["present"]) == (media(), False)
    assert len(world.rtc.calls) == (2 if missing is errors.RtcActionRetired else 0)


def test_only_a_target_without_a_record_is_an_error(world: World, missing: type[errors.StreamStateError]) -> None:
    outcomes = some(world, ON, NEVER_SEEN, OFF, ON)

    assert [type(outcome.answer) for outcome in outcomes] == [Answer, missing, Answer, Answer]
    with pytest.raises(missing):
        ask(world, NEVER_SEEN)
    world.clock.seconds += STATE_LIFE_SECONDS
    with pytest.raises(missing):
        ask(world, ON)
    # A table that fails is the error of each target, not of the whole request.
    fails(world, "batch_get_item")
    assert [type(outcome.answer) for outcome in some(world, ON, OFF)] == [errors.StateUnavailable] * 2
    with pytest.raises(errors.StateUnavailable):
        ask(world, ON)


@pytest.mark.parametrize(
    "says", [["The answer is the last known state: Volcengine has withdrawn GetUserStreamState."], []], ids=len
)
def test_an_answer_has_a_warning_and_a_metric_only_after_the_action_was_withdrawn(
    described: World, logs: io.StringIO, capsys: pytest.CaptureFixture[str], says: list[str]
) -> None:
    described.rtc.default = RETIRED
    described.lookup.query = "on" if says else "off"
    ask(described, ON)

    assert [line["message"] for line in logged(logs)] == says
    assert metrics(capsys).get("RtcActionRetired", []) == [1] * len(says)


def test_other_errors_of_the_vendor_are_not_answered_by_the_record(described: World) -> None:
    described.rtc.default = errors.RtcUnavailable("Down.")

    with pytest.raises(errors.RtcUnavailable):
        ask(described, ON)


def test_a_sweep_of_given_targets_delivers_their_records_while_queries_are_off(described: World) -> None:
    world, many = described, targets(250)
    world.lookup.query = "off"

    summary = run(world, SweepRequest(many, emits_all=True))

    assert (summary["targets"], summary["delivered"], summary["failed"], summary["remaining"]) == (250, 2, 248, 0)
    assert world.queue.users() == [ON.user_id, OFF.user_id]
    assert world.queue.users("stream_state_problem") == [target.user_id for target in many[2:]]
    problems = [message["problem"]["error"] for message in world.queue.messages if "problem" in message]
    assert problems == ["TargetNotFound"] * 248
    assert world.rtc.calls == []


def test_a_sweep_of_the_watch_list_ends_at_once_while_queries_are_off(described: World) -> None:
    world = described
    world.lookup.query = "off"
    world.watch_list.add(targets(1000), 3600)
    requests(world)

    summary = run(world, WATCHED)

    assert world.queue.messages == []
    assert (summary["skipped"], summary["targets"], world.rtc.calls) == ("RTC_QUERY is off", 0, [])
    # Only the list of undelivered changes was read.
    assert requests(world) == ["query"]


# Drift: a sweep corrects a record that a lost event left wrong


def drift(world: World, capsys: pytest.CaptureFixture[str], *watched: Target) -> float:
    """The records that a sweep of these targets corrects."""
    world.watch_list.add(watched, 3600)
    world.clock.seconds += 60
    metrics(capsys)
    run(world, WATCHED)
    return sum(metrics(capsys).get("StateDrift", []))


def test_a_sweep_corrects_and_counts_drift_once(described: World, capsys: pytest.CaptureFixture[str]) -> None:
    # Given a user who is off by now, one who is back, and one who has gone, each without an event
    described.see(GONE, event("video.start", described.clock.now_ms()))
    described.rtc.say(ON, media())
    described.rtc.say(OFF, media("video"))
    described.rtc.say(GONE, UNKNOWN)

    assert drift(described, capsys, ON, OFF, GONE) == 3
    delivered = {message["user_id"]: (message["publishing"], message["present"]) for message in described.queue.take()}
    assert delivered == {ON.user_id: (False, True), OFF.user_id: (True, True), GONE.user_id: (None, False)}
    assert drift(described, capsys, ON, OFF, GONE) == 0


def test_values_that_no_event_described_are_no_drift(described: World, capsys: pytest.CaptureFixture[str]) -> None:
    # Given a user who only joined, a user whom only queries described, and one as the events described
    polled = Target(ON.app_id, ON.room_id, "polled")
    described.see(NEVER_SEEN, event("join", described.clock.now_ms()))
    described.see(polled, query(described.clock.now_ms(), audio=True))
    described.rtc.say(ON, media("audio"))

    assert drift(described, capsys, ON, OFF, NEVER_SEEN, polled) == 0
