"""The sweep's entry point: every form of event, what is refused, and what an invocation returns or raises."""

import io
import json
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest

from stream_state.errors import DeliveryFailed, InvalidTarget, StateUnavailable, StreamStateError, TargetNotFound
from stream_state.model import StreamState, Target
from stream_state.sweep import SweepRequest
from tests.unit.fakes import Clock, aws_error
from tests.unit.memory import APP_ID, EVENTS, Context, World, every_error, metrics, targets

APP_IDS = (APP_ID, "app-2")
WATCHED = SweepRequest(None, "changes")
IDS = {"room_id": "class-1", "user_id": "teacher"}
TEACHER = Target(APP_ID, "class-1", "teacher")
OTHER = Target("app-2", "class-1", "teacher")


@pytest.fixture
def world(clock: Clock) -> World:
    return World(clock)


@pytest.fixture
def invoke(world: World, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    handler = world.function("sweep", monkeypatch).lambda_handler
    return lambda asked, **context: handler(asked, Context(**context))


def event(detail: object, source: object = "aws.scheduler") -> dict[str, object]:
    return {"version": "0", "id": "id-1", "detail-type": "Scheduled Event", "source": source, "detail": detail}


@pytest.mark.parametrize(
    ("asked", "request_"),
    [
        ({}, WATCHED),
        ({"emit": "all"}, SweepRequest(None, "all")),
        (event({}), WATCHED),
        (event({}, "aws.events"), WATCHED),
        (event("{}"), WATCHED),
        (event(" {} ", "aws.events"), WATCHED),
        (IDS, SweepRequest([TEACHER], "all")),
        ({**IDS, "app_id": "app-2", "emit": "changes"}, SweepRequest([OTHER], "changes")),
        ({"targets": [IDS]}, SweepRequest([TEACHER], "all")),
        ({"targets": [IDS] * 5000, "emit": "changes"}, SweepRequest([TEACHER] * 5000, "changes")),
        (event({"targets": [IDS]}, "school.timetable"), SweepRequest([TEACHER], "all")),
        (event({**IDS, "emit": "changes"}, "school.timetable"), SweepRequest([TEACHER], "changes")),
        (event({"targets": [IDS]}), SweepRequest([TEACHER], "all")),
    ],
)
def test_an_event_says_what_to_sweep(asked: object, request_: SweepRequest) -> None:
    assert SweepRequest.parse(asked, APP_IDS) == request_


@pytest.mark.parametrize(
    "asked",
    [
        *(None, [], "text", "{}", 7, True, [IDS]),
        *({"room_id": "class-1"}, {"user_id": "teacher"}, {"app_id": APP_ID}, {**IDS, "more": 1}),
        *({**IDS, "targets": [IDS]}, {"targets": None}, {"targets": []}, {"targets": {}}, {"targets": [IDS] * 5001}),
        *({"targets": ["teacher"]}, {"targets": [{**IDS, "user_id": "x" * 129}]}, {**IDS, "room_id": "a/b"}),
        *({**IDS, "app_id": "other"}, {**IDS, "app_id": None}, {"targets": [{**IDS, "emit": "all"}]}),
        *({"emit": "none"}, {"emit": None}, {"emit": ["all"]}, {"emit": {}}, {**IDS, "emit": True}),
        *(event({}, "school.timetable"), event("{}", "school.timetable"), event({}, None), event({}, ["aws.events"])),
        *(event(None), event([]), event("[]"), event("null"), event("not JSON"), event('"{}"'), event("[" * 100_000)),
        *(event('{"room_id": "class-1", "user_id": "teacher"}'), event('{"emit": "all"}'), event(event({}))),
        *({"source": "aws.scheduler", "detail": {}}, {"detail-type": "Scheduled Event", "detail": {}}),
        event({"emit": "all"}, "school.timetable"),
    ],
    ids=count(),
)
def test_anything_else_is_refused(asked: object) -> None:
    with pytest.raises(InvalidTarget):
        SweepRequest.parse(asked, APP_IDS)


def test_a_refused_event_calls_sends_and_stores_nothing(
    world: World, invoke: Callable[..., Any], logs: io.StringIO
) -> None:
    with pytest.raises(InvalidTarget, match=r"^targets\[1\]\.user_id is missing\.$"):
        invoke({"targets": [IDS, {"room_id": "class-1"}]})

    assert world.is_untouched
    assert [json.loads(line)["error"] for line in logs.getvalue().splitlines()] == ["InvalidTarget"]


@pytest.mark.parametrize("name", sorted(path.stem for path in (EVENTS / "sweep").glob("*.json")))
def test_every_sample_event_is_swept(world: World, invoke: Callable[..., Any], name: str) -> None:
    asked = json.loads((EVENTS / "sweep" / f"{name}.json").read_text())
    watched = SweepRequest.parse(asked, APP_IDS).targets is None
    if watched:
        world.watch_list.add(targets(3), 60)

    summary = invoke(asked)

    assert summary["targets"] == summary["delivered"] == len(world.rtc.calls) == len(world.queue.messages) > 0
    assert set(summary) == {
        *("targets", "delivered", "unchanged", "failed", "failures", "remaining"),
        *("duration_seconds", "calls_per_second"),
    }


@pytest.mark.parametrize("error", every_error(), ids=lambda error: type(error).__name__ + str(error.http_status))
def test_every_error_of_a_given_target_is_told_as_a_problem(
    world: World, invoke: Callable[..., Any], conforms: Callable[[str, Any], None], error: StreamStateError
) -> None:
    world.rtc.default = error

    summary = invoke(IDS)

    (message,) = world.queue.messages
    conforms("message", message)
    if isinstance(error, TargetNotFound):
        assert (message["type"], message["present"], summary["failed"]) == ("stream_state", False, 0)
    else:
        assert message["problem"] == error.problem()
        assert summary["failed"] + summary["remaining"] == 1


def test_messages_that_are_not_accepted_and_a_table_that_fails_are_raised_by_name(
    world: World, invoke: Callable[..., Any]
) -> None:
    world.queue.refuses = lambda message: True
    with pytest.raises(DeliveryFailed):
        invoke(IDS)

    world.dynamodb.effects["update_item"] = iter([aws_error("InternalServerError")])
    with pytest.raises(StateUnavailable):
        invoke({})


@pytest.mark.parametrize(("remaining_ms", "asking_seconds"), [(300_000, 270), (20_000, 18)])
def test_some_of_the_time_is_kept_to_tell_what_was_not_reached(
    world: World,
    invoke: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    remaining_ms: int,
    asking_seconds: float,
) -> None:
    started = world.clock.seconds
    deadlines: list[float] = []
    ask = world.rtc.stream_state

    def note(target: Target, deadline: float, before_call: Callable[[], None]) -> StreamState:
        deadlines.append(deadline)
        return ask(target, deadline, before_call)

    monkeypatch.setattr(world.rtc, "stream_state", note)

    invoke(IDS, remaining_ms=remaining_ms)

    assert deadlines[0] - started == pytest.approx(asking_seconds, abs=0.01)
    kept_seconds = remaining_ms / 1000 - asking_seconds
    assert world.queue.deadlines[0] - started == pytest.approx(remaining_ms / 1000 - kept_seconds / 6, abs=0.01)


@pytest.mark.parametrize(
    ("asked", "correlation_id"), [({}, "invocation-1"), (json.loads((EVENTS / "sweep/rule-bare.json").read_text()), "")]
)
def test_logs_carry_the_events_id_and_the_failed_target(
    world: World,
    invoke: Callable[..., Any],
    logs: io.StringIO,
    capsys: pytest.CaptureFixture[str],
    asked: Any,
    correlation_id: str,
) -> None:
    world.watch_list.add([TEACHER, OTHER], 60)
    world.rtc.say(TEACHER, StreamStateError("Failed.", rtc_code="SomeCode", rtc_request_id="request-7"))

    invoke(asked)

    failure, done = (json.loads(line) for line in logs.getvalue().splitlines())
    keys = {**TEACHER.as_dict(), "rtc_code": "SomeCode", "rtc_request_id": "request-7", "level": "WARNING"}
    assert failure | keys == failure
    assert done | {"delivered": 1, "failed": 1, "level": "INFO"} == done
    assert {line["correlation_id"] for line in (failure, done)} == {correlation_id or asked["id"]}
    assert "failures" not in done
    published = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {name for document in published for name in document} >= {"StatesDelivered", "StateChanges", "StalestState"}
    assert metrics(capsys) == {}
