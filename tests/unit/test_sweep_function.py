"""The sweep's entry point: every form of event, events of other functions, and the results of an invocation."""

import io
import json
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest

from stream_state.domain.requests import SweepRequest
from stream_state.domain.targets import Target
from stream_state.errors import InvalidRequest, RtcUnavailable, StreamStateError
from tests.unit.memory import APP_ID, Context, World, every_error, metrics, samples, targets

APP_IDS = (APP_ID, "app-2")
IDS = {"room_id": "class-1", "user_id": "teacher"}
TEACHER = Target(APP_ID, "class-1", "teacher")
OTHER = Target("app-2", "class-1", "teacher")
SAMPLES = samples("sweep")
Invoke = Callable[..., dict[str, Any]]


@pytest.fixture
def invoke(world: World, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    handler = world.function("sweep", monkeypatch).lambda_handler
    return lambda event, **context: handler(event, Context(**context))


def from_event_bridge(detail: object, source: object = "aws.scheduler") -> dict[str, object]:
    return {"version": "0", "id": "id-1", "detail-type": "Scheduled Event", "source": source, "detail": detail}


@pytest.mark.parametrize(
    ("event", "targets", "emits_all"),
    [
        ({}, None, False),
        ({"emit": "all"}, None, True),
        (from_event_bridge({}), None, False),
        (from_event_bridge({}, "aws.events"), None, False),
        (from_event_bridge("{}"), None, False),
        (from_event_bridge(" {} ", "aws.events"), None, False),
        (IDS, [TEACHER], True),
        ({**IDS, "app_id": "app-2", "emit": "changes"}, [OTHER], False),
        ({"targets": [IDS]}, [TEACHER], True),
        ({"room_id": "class-1"}, [TEACHER.room], True),
        (from_event_bridge({"targets": [IDS, {"room_id": "class-1"}]}), [TEACHER, TEACHER.room], True),
        ({"targets": [IDS] * 5000, "emit": "changes"}, [TEACHER] * 5000, False),
        (from_event_bridge({"targets": [IDS]}, "school.timetable"), [TEACHER], True),
        (from_event_bridge({**IDS, "emit": "changes"}, "school.timetable"), [TEACHER], False),
        (from_event_bridge({"targets": [IDS]}), [TEACHER], True),
    ],
    ids=count(),
)
def test_an_event_names_targets_or_means_the_watched_ones(event: object, targets: Any, emits_all: object) -> None:
    assert SweepRequest.parse(event, APP_IDS) == SweepRequest(targets, bool(emits_all))


@pytest.mark.parametrize(
    "event",
    [
        *(None, [], "text", "{}", 7, 1.5, True, [IDS], *samples("api", "callback").values()),
        *(samples("task")[f"task/{name}"] for name in ("deliver-queue", "several", "single", "until")),
        *({"room_id": None}, {"user_id": "teacher"}, {"app_id": APP_ID}, {**IDS, "more": 1}),
        *({**IDS, "targets": [IDS]}, {"targets": None}, {"targets": []}, {"targets": {}}, {"targets": [IDS] * 5001}),
        *({"targets": ["teacher"]}, {"targets": [{**IDS, "user_id": "x" * 129}]}, {**IDS, "room_id": "a/b"}),
        *({**IDS, "app_id": "other"}, {**IDS, "app_id": None}, {"targets": [{**IDS, "emit": "all"}]}),
        *({"emit": "none"}, {"emit": None}, {"emit": ["all"]}, {"emit": {}}, {**IDS, "emit": True}),
        *(from_event_bridge(detail, "school.timetable") for detail in ({}, "{}", {"emit": "all"})),
        *(from_event_bridge({}, source) for source in (None, ["aws.events"])),
        *map(from_event_bridge, (None, [], "[]", "null", "not JSON", '"{}"', "[" * 100_000, '{"emit": "all"}')),
        *map(from_event_bridge, ('{"room_id": "class-1", "user_id": "teacher"}', from_event_bridge({}))),
        *({"source": "aws.scheduler", "detail": {}}, {"detail-type": "Scheduled Event", "detail": {}}),
    ],
    ids=count(),
)
def test_any_other_event_is_refused_before_anything_is_called(world: World, invoke: Invoke, event: object) -> None:
    with pytest.raises(InvalidRequest):
        invoke(event)

    assert world.is_untouched


@pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES)
def test_every_sample_event_is_swept(world: World, invoke: Invoke, sample: Any) -> None:
    if SweepRequest.parse(sample, APP_IDS).targets is None:
        world.watch_list.add(targets(3), 60)
    world.rtc.rooms[TEACHER.room] = {"teacher"}

    summary = invoke(sample)

    assert summary["targets"] == summary["delivered"] == len(world.rtc.calls) == len(world.queue.messages) > 0
    names = "targets delivered unchanged failed failures remaining duration_seconds calls_per_second"
    assert set(summary) == set(names.split())


@pytest.mark.parametrize("error", every_error(), ids=lambda error: f"{error.name}{error.status}")
def test_every_error_of_a_given_target_is_delivered_as_a_problem(
    world: World, invoke: Invoke, conforms: Callable[[str, Any], None], error: StreamStateError
) -> None:
    world.rtc.default = error

    summary = invoke(IDS)

    (message,) = world.queue.messages
    conforms("message", message)
    if error.name in ("TargetNotFound", "RtcActionRetired"):
        # The user is unknown, or a presence call says that the user has gone.
        assert (message["type"], message["present"], summary["failed"]) == ("stream_state", False, 0)
    else:
        assert message["problem"] == error.problem()
        assert summary["failed"] + summary["remaining"] == 1


@pytest.mark.parametrize(("remaining_ms", "asking_seconds", "sending_seconds"), [(300_000, 270, 295), (60_000, 54, 59)])
def test_some_of_the_time_is_kept_for_the_messages_about_targets_that_were_not_reached(
    world: World, invoke: Invoke, one_at_a_time: None, remaining_ms: int, asking_seconds: int, sending_seconds: int
) -> None:
    started = world.clock.seconds
    world.rtc.seconds_per_call = asking_seconds / 9

    invoke({"targets": [target.as_dict() for target in targets(20)]}, remaining_ms=remaining_ms)

    assert len(world.rtc.calls) == 9
    assert len(world.queue.messages) == 20
    assert world.queue.deadlines[-1] - started == pytest.approx(sending_seconds, abs=0.01)


@pytest.mark.parametrize(
    ("event", "correlation_id"),
    [({}, "invocation-1"), (SAMPLES["sweep/rule-bare"], "89d1a02d-5ec7-412e-82f5-13505f849b41")],
)
def test_logs_carry_the_events_id_and_the_failed_target(
    world: World, invoke: Invoke, logs: io.StringIO, capsys: pytest.CaptureFixture[str], event: Any, correlation_id: str
) -> None:
    world.watch_list.add([TEACHER, OTHER], 60)
    world.rtc.say(TEACHER, RtcUnavailable("Failed.", rtc_code="SomeCode", rtc_request_id="request-7"))

    invoke(event)

    failure, done = (json.loads(line) for line in logs.getvalue().splitlines())
    keys = {**TEACHER.as_dict(), "rtc_code": "SomeCode", "rtc_request_id": "request-7", "level": "WARNING"}
    assert failure | keys | {"correlation_id": correlation_id} == failure
    assert done | {"delivered": 1, "failed": 1, "level": "INFO", "correlation_id": correlation_id} == done
    assert "failures" not in done
    # The metrics of the invocation have been published by its end.
    published = capsys.readouterr().out
    assert all(f'"{name}"' in published for name in ("StatesDelivered", "StateChanges", "StalestState"))
    assert metrics(capsys) == {}
