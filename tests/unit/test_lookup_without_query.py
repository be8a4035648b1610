"""Life without the vendor's action: withdrawn by the vendor, or switched off, while pushed events tell the states."""

import io
import json
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import repeat
from typing import Any

import pytest

from stream_state.errors import RtcActionRetired, RtcUnavailable, StateUnavailable, StreamStateTimeout, TargetNotFound
from stream_state.lookup import Lookup
from stream_state.model import StreamState, Target
from stream_state.settings import Settings
from stream_state.sweep import SweepRequest
from stream_state.table import STATE_LIFE_SECONDS
from tests.unit.fakes import Clock, aws_error
from tests.unit.memory import ENVIRONMENT, Context, World, media, metrics, query_facts, targets
from tests.unit.pushed import Receiver, stream

ON, OFF, UNKNOWN = targets(3)
WATCHED = SweepRequest(None, "changes")
RETIRED = RtcActionRetired("Volcengine has withdrawn GetUserStreamState.", rtc_code="InvalidActionOrVersion")

Invoke = Callable[[dict[str, Any]], dict[str, Any]]


@pytest.fixture
def world(clock: Clock) -> World:
    """Two users of whom pushed events have told a minute ago, one with sound and one who left."""
    world = World(clock)
    receiver = Receiver(world)
    receiver.push(stream("audio", starts=True), user_id=ON.user_id)
    receiver.push("UserLeaveRoom", user_id=OFF.user_id)
    world.queue.take()
    world.clock.seconds += 60
    return world


@pytest.fixture(params=["retired", "off"])
def way(request: pytest.FixtureRequest, world: World) -> str:
    """How it came that nothing can be asked."""
    if request.param == "retired":
        world.rtc.default = RETIRED
    else:
        world.lookup.queries = False
    return str(request.param)


@pytest.fixture
def task(world: World, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    handler = world.function("task", monkeypatch).lambda_handler
    return lambda event: handler(event, Context())


def calls(world: World, way: str, count: int) -> bool:
    """Whether so many calls were made if the vendor withdrew the action, and none if it is switched off."""
    return len(world.rtc.calls) == (count if way == "retired" else 0)


def run(world: World, request: SweepRequest) -> dict[str, Any]:
    return world.sweep.run(request, world.in_seconds(600), world.in_seconds(610))


def missing(way: str) -> type[Exception]:
    return RtcActionRetired if way == "retired" else TargetNotFound


def until(world: World, seconds_ago: float = 0, **more: object) -> dict[str, object]:
    started_at = datetime.fromtimestamp(world.clock.wall() - seconds_ago, UTC).isoformat()
    return {"publishing": True, "started_at": started_at, "timeout_seconds": 600, **more}


# Lookups


def test_one_is_answered_with_what_is_known(world: World, way: str, conforms: Callable[[str, Any], None]) -> None:
    on, off = (world.lookup.one(target, world.in_seconds(10)).answer() for target in (ON, OFF))

    for answer in (on, off):
        conforms("answer", answer)
        assert (answer["source"], answer["rtc_request_id"]) == ("table", None)
        assert answer["observed_at"] == "2026-11-23T03:04:05.678Z"
    assert (on["media"], on["present"]) == (media("audio", unknown=["video", "screen_audio", "screen_video"]), True)
    assert (off["media"], off["present"]) == (media(), False)
    assert calls(world, way, 2)


def test_one_of_whom_nothing_is_known_is_an_error(world: World, way: str) -> None:
    with pytest.raises(missing(way)):
        world.lookup.one(UNKNOWN, world.in_seconds(10))
    assert calls(world, way, 1)


def test_some_are_each_answered_with_what_is_known(world: World, way: str) -> None:
    outcomes = world.lookup.some([ON, UNKNOWN, OFF, ON], world.in_seconds(10))

    assert [outcome.target for outcome in outcomes] == [ON, UNKNOWN, OFF, ON]
    assert [isinstance(outcome.answer, StreamState) for outcome in outcomes] == [True, False, True, True]
    assert isinstance(outcomes[1].answer, missing(way))


def test_max_age_does_not_refuse_what_is_known(world: World, way: str) -> None:
    state = world.lookup.one(ON, world.in_seconds(10), max_age_seconds=1)
    (outcome,) = world.lookup.some([ON], world.in_seconds(10), max_age_seconds=1)

    assert state.values["audio"] is outcome.answer.values["audio"] is True


def test_what_is_known_is_forgotten_after_a_day(world: World, way: str) -> None:
    world.clock.seconds += STATE_LIFE_SECONDS

    with pytest.raises(missing(way)):
        world.lookup.one(ON, world.in_seconds(10))


def test_a_table_that_fails_is_an_error(world: World, way: str) -> None:
    world.dynamodb.effects["batch_get_item"] = repeat(aws_error("InternalServerError"))

    with pytest.raises(StateUnavailable):
        world.lookup.one(ON, world.in_seconds(10))
    with pytest.raises(StateUnavailable):
        world.lookup.some([ON], world.in_seconds(10))


def test_an_answer_after_the_action_was_withdrawn_has_a_warning_and_a_metric(
    world: World, logs: io.StringIO, capsys: pytest.CaptureFixture[str]
) -> None:
    world.rtc.default = RETIRED
    world.lookup.one(ON, world.in_seconds(10))

    (warning,) = map(json.loads, logs.getvalue().splitlines())
    assert (warning["level"], "withdrawn" in warning["message"]) == ("WARNING", True)
    assert metrics(capsys)["RtcActionRetired"] == [1]


def test_an_answer_while_queries_are_off_has_neither(
    world: World, logs: io.StringIO, capsys: pytest.CaptureFixture[str]
) -> None:
    world.lookup.queries = False
    world.lookup.one(ON, world.in_seconds(10))

    assert (logs.getvalue(), "RtcActionRetired" in metrics(capsys)) == ("", False)


def test_other_errors_of_the_vendor_are_not_answered_from_the_table(world: World) -> None:
    world.rtc.default = RtcUnavailable("Down.")

    with pytest.raises(RtcUnavailable):
        world.lookup.one(ON, world.in_seconds(10))


@pytest.mark.parametrize(("value", "queries"), [("on", True), ("off", False)])
def test_the_environment_switches_queries(monkeypatch: pytest.MonkeyPatch, value: str, queries: bool) -> None:  # noqa: FBT001 (a case)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, "eu-central-1")
    settings = Settings.from_environment({**ENVIRONMENT, "RTC_QUERY": value})

    assert Lookup.from_settings(settings, None, "api").queries is queries  # type: ignore[arg-type]  # not used yet


# The task


def test_the_task_answers_and_delivers_what_is_known(world: World, way: str, task: Invoke) -> None:
    asked = [{"room_id": target.room_id, "user_id": target.user_id} for target in (ON, UNKNOWN)]

    for deliver in ("return", "queue"):
        known, problem = task({"targets": asked, "deliver": deliver})["results"]
        assert (known["source"], known["media"]["audio"], known["present"]) == ("table", True, True)
        assert problem["error"] == missing(way).__name__
    assert world.queue.users() == [ON.user_id]
    with pytest.raises(missing(way)):
        task(asked[1])


def test_a_wait_holds_by_pushed_events_alone(world: World, way: str, task: Invoke) -> None:
    asked = {"room_id": ON.room_id, "user_id": ON.user_id, "max_age": 5}
    assert task({**asked, "until": until(world, medium="audio")})["holds"] is True
    assert task({**asked, "until": until(world, medium="video")})["holds"] is False

    Receiver(world).push(stream("video", starts=True), user_id=ON.user_id)

    assert task({**asked, "until": until(world, medium="video")})["holds"] is True


def test_a_wait_for_one_who_has_not_joined_yet(world: World, way: str, task: Invoke) -> None:
    """With queries off that is "not yet"; a withdrawn action fails the wait at once, and says what to do."""
    asked = {"room_id": UNKNOWN.room_id, "user_id": UNKNOWN.user_id}
    if way == "retired":
        with pytest.raises(RtcActionRetired):
            task({**asked, "until": until(world)})
        return
    answer = task({**asked, "until": until(world)})
    assert (answer["holds"], answer["publishing"]) == (False, None)
    with pytest.raises(StreamStateTimeout):
        task({**asked, "until": until(world, seconds_ago=601)})


def test_a_wait_whose_time_is_past_ends(world: World, way: str, task: Invoke) -> None:
    with pytest.raises(StreamStateTimeout):
        task({"room_id": OFF.room_id, "user_id": OFF.user_id, "until": until(world, seconds_ago=601)})


# Sweeps


def test_a_sweep_of_given_targets_tells_what_is_known_while_queries_are_off(world: World) -> None:
    world.lookup.queries = False
    many = targets(250)

    summary = run(world, SweepRequest(many, "all"))

    assert (summary["targets"], summary["delivered"], summary["failed"], summary["remaining"]) == (250, 2, 248, 0)
    assert world.queue.users() == [ON.user_id, OFF.user_id]
    assert world.queue.users("stream_state_problem") == [target.user_id for target in many[2:]]
    problems = [message for message in world.queue.messages if "problem" in message]
    assert {message["problem"]["error"] for message in problems} == {"TargetNotFound"}
    assert world.rtc.calls == []


def test_a_sweep_of_given_targets_tells_what_is_known_when_the_action_is_withdrawn(world: World) -> None:
    world.rtc.default = RETIRED

    summary = run(world, SweepRequest(targets(1000), "all"))

    assert len(world.rtc.calls) < 100
    assert (summary["targets"], summary["delivered"], summary["failed"], summary["remaining"]) == (1000, 2, 998, 0)
    assert world.queue.users() == [ON.user_id, OFF.user_id]
    problems = [message["problem"]["error"] for message in world.queue.messages if "problem" in message]
    assert problems == ["RtcActionRetired"] * 998


def test_a_sweep_of_the_watch_list_ends_at_once_while_queries_are_off(world: World) -> None:
    world.lookup.queries = False
    world.watch_list.add(targets(3), 3600)
    made = len(world.dynamodb.made)

    summary = run(world, WATCHED)

    assert (summary["skipped"], summary["targets"]) == ("RTC_QUERY is off", 0)
    assert (world.rtc.calls, world.queue.messages, len(world.dynamodb.made)) == ([], [], made)


def test_a_sweep_of_the_watch_list_ends_when_the_action_is_withdrawn(world: World) -> None:
    world.rtc.default = RETIRED
    world.watch_list.add(targets(1000), 3600)

    summary = run(world, WATCHED)

    assert len(world.rtc.calls) < 100
    assert (summary["failures"][0]["problem"]["error"], world.queue.messages) == ("RtcActionRetired", [])


# What lost events left wrong


def drift(world: World, capsys: pytest.CaptureFixture[str], *watched: Target) -> float:
    """How many states a sweep of these targets corrects."""
    world.watch_list.add(watched, 3600)
    metrics(capsys)
    run(world, WATCHED)
    return sum(metrics(capsys).get("StateDrift", []))


def test_a_sweep_corrects_and_counts_what_a_lost_event_left_wrong(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    # Given that the vendor says otherwise of both
    world.rtc.say(ON, media())
    world.rtc.say(OFF, media("video"))
    # When a sweep asks
    assert drift(world, capsys, ON, OFF) == 2
    # Then what is known and told is right again
    told = {message["user_id"]: message["media"] for message in world.queue.messages}
    assert told == {ON.user_id: media(), OFF.user_id: media("video")}
    # And the next sweep finds nothing to correct
    world.clock.seconds += 60
    assert drift(world, capsys, ON, OFF) == 0


def test_a_user_who_is_gone_without_an_event_is_drift(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.rtc.say(ON, TargetNotFound("Unknown."))

    assert drift(world, capsys, ON) == 1
    assert world.queue.messages[-1]["present"] is False


def test_what_events_had_not_told_is_no_drift(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """A join tells of no medium: the first query that does corrects nothing."""
    Receiver(world).push("UserJoinRoom", user_id=UNKNOWN.user_id)
    world.rtc.say(ON, media("audio"))
    world.rtc.say(UNKNOWN, media())

    assert drift(world, capsys, ON, OFF, UNKNOWN) == 0


def test_what_changes_between_queries_without_events_is_no_drift(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    target = targets(4)[3]
    world.table.observe(StreamState(target, query_facts(media("audio"), int(world.clock.wall() * 1000)), "query"))
    world.clock.seconds += 60

    assert drift(world, capsys, target) == 0
