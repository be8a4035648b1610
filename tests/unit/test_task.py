"""The task's entry point: one target or several, answered or delivered, and wait conditions."""

import io
import json
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import count
from typing import Any

import pytest

from stream_state import errors
from stream_state.domain.targets import Target
from tests.unit.memory import APP_ID, Context, World, every_error, media, metrics, samples, targets
from tests.unit.observed import event

IDS = {"room_id": "class-1", "user_id": "teacher"}
TEACHER = Target(APP_ID, "class-1", "teacher")
EVERY_ERROR = pytest.mark.parametrize("error", every_error(), ids=lambda error: f"{error.name}{error.status}")
Conforms = Callable[[str, Any], None]
Invoke = Callable[[object], dict[str, Any]]


@pytest.fixture
def invoke(world: World, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    handler = world.function("task", monkeypatch).lambda_handler
    return lambda event: handler(event, Context())


def until(world: World, seconds_ago: float = 0, **more: Any) -> dict[str, object]:
    started_at = datetime.fromtimestamp(world.clock.now() - seconds_ago, UTC).isoformat()
    return {**IDS, "until": {"publishing": True, "started_at": started_at, "timeout_seconds": 600, **more}}


@pytest.mark.parametrize("sample", samples("task").values())
def test_every_sample_event_is_answered(
    world: World, invoke: Invoke, conforms: Conforms, sample: dict[str, Any]
) -> None:
    answer = invoke(sample)

    if "wait" in sample:
        # The answer goes to the token.
        assert (answer, len(world.wait_list.of(TEACHER))) == ({}, 1)
        return
    is_delivered = sample.get("deliver") == "queue"
    for document in answer.get("results", [answer]):
        conforms("message" if is_delivered else "answer", document)
    assert len(world.queue.messages) == (len(sample["targets"]) if is_delivered else 0)


def test_a_single_target_is_answered_by_the_vendor_or_by_a_fresh_record(world: World, invoke: Invoke) -> None:
    world.rtc.say(TEACHER, media("video"))

    asked, recorded = invoke(IDS), invoke({**IDS, "app_id": APP_ID, "max_age": 60.0, "deliver": "return"})

    assert (asked["media"], asked["source"], recorded["source"]) == (media("video"), "query", "table")
    assert invoke({**until(world), "max_age": 60})["holds"] is True
    assert len(world.rtc.calls) == 1


@EVERY_ERROR
@pytest.mark.parametrize("deliver", ["return", "queue"])
def test_every_error_is_raised_by_name_for_one_target_and_a_problem_among_several(
    world: World, invoke: Invoke, conforms: Conforms, logs: io.StringIO, error: errors.StreamStateError, deliver: str
) -> None:
    world.rtc.default = error

    with pytest.raises(type(error)) as raised:
        invoke({**IDS, "deliver": deliver})
    lines = [json.loads(line) for line in logs.getvalue().splitlines()]
    several = invoke({"targets": [IDS, IDS], "deliver": deliver})["results"]

    assert str(raised.value) == str(error)
    (line,) = [line for line in lines if "error" in line]
    assert line | {**TEACHER.as_dict(), "error": error.name, "correlation_id": "invocation-1"} == line
    assert several == [{**error.problem(), **TEACHER.as_dict()}] * 2
    conforms("problem", several[0])
    assert world.queue.messages == []


@pytest.mark.parametrize("asked", [[IDS], [IDS, {**IDS, "user_id": "student"}, IDS]])
def test_an_error_in_a_list_is_logged_once_with_its_target(
    world: World, invoke: Invoke, logs: io.StringIO, asked: list[dict[str, str]]
) -> None:
    world.rtc.say(TEACHER, errors.StreamStateError("Failed."))

    invoke({"targets": asked})

    (line,) = [json.loads(line) for line in logs.getvalue().splitlines()]
    assert line | {**TEACHER.as_dict(), "error": "StreamStateError"} == line


def test_a_message_is_returned_with_its_id(
    world: World, invoke: Invoke, conforms: Conforms, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = targets(2)
    world.queue.refuses = lambda message: message["user_id"] == two.user_id

    delivered, failed = invoke({"targets": [one.as_dict(), two.as_dict()], "deliver": "queue"})["results"]

    (message,) = world.queue.messages
    conforms("message", message)
    conforms("problem", failed)
    assert delivered == {**message, "message_id": "message-1"}
    assert (failed["error"], failed["user_id"]) == ("DeliveryFailed", two.user_id)
    published = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [document["StatesDelivered"] for document in published if "StatesDelivered" in document] == [[1]]
    assert metrics(capsys) == {}
    with pytest.raises(errors.DeliveryFailed):
        invoke({**two.as_dict(), "deliver": "queue"})


@pytest.mark.parametrize(("queries", "missing"), [(True, errors.RtcActionRetired), (False, errors.TargetNotFound)])
def test_records_are_answered_and_delivered_where_the_vendor_cannot_be_asked(
    world: World, invoke: Invoke, queries: object, missing: type[errors.StreamStateError]
) -> None:
    # Given a user whom a callback event described
    world.rtc.default, world.lookup.query = errors.RtcActionRetired("Gone."), "on" if queries else "off"
    world.store.observe(TEACHER, event("video.start", world.clock.now_ms()))

    for deliver in ("return", "queue"):
        described, problem = invoke({"targets": [IDS, targets(1)[0].as_dict()], "deliver": deliver})["results"]
        assert (described["source"], described["media"]["video"], problem["error"]) == ("table", True, missing.__name__)
    assert world.queue.users() == ["teacher"]
    assert [invoke(until(world, medium=medium))["holds"] for medium in ("video", "audio")] == [True, False]


@EVERY_ERROR
def test_an_error_of_a_wait_is_not_yet_if_the_user_is_unknown_and_else_raised(
    world: World, invoke: Invoke, conforms: Conforms, error: errors.StreamStateError
) -> None:
    world.rtc.default = error

    if isinstance(error, errors.TargetNotFound):
        answer = invoke(until(world))
        assert (answer.pop("holds"), answer["present"]) == (False, False)
        conforms("answer", answer)
    else:
        with pytest.raises(type(error)):
            invoke(until(world))
    is_not_yet = error.retryable or isinstance(error, errors.TargetNotFound)
    with pytest.raises(errors.StreamStateTimeout if is_not_yet else type(error)):
        invoke(until(world, seconds_ago=601))


@pytest.mark.parametrize(("deliver", "seconds"), [("return", 26), ("queue", 18)])
def test_time_is_kept_to_answer_and_to_deliver(world: World, invoke: Invoke, deliver: str, seconds: float) -> None:
    world.rtc.seconds_per_call = 1
    ended = world.in_seconds(seconds)

    results = invoke({"targets": [target.as_dict() for target in targets(100)], "deliver": deliver})["results"]

    # The last call began in time, and none after it.
    assert ended <= world.clock.seconds < ended + 1.1
    assert [result.get("error") for result in results].count("QuotaExceeded") == 100 - len(world.rtc.calls)


UNTIL = {"publishing": True, "started_at": "2026-11-23T03:04:05Z", "timeout_seconds": 600}
WRONG_UNTIL: list[dict[str, Any]] = [
    {"medium": "sound"},
    {"more": 1},
    {"started_at": "soon"},
    {"timeout_seconds": 0},
    {"publishing": None},
]
NO_ID: list[Any] = [None, "", "x" * 129, "a/b", 7, True, [], {}, "教室"]
WRONG: dict[str, list[Any]] = {
    "room_id": NO_ID,
    "user_id": NO_ID,
    "app_id": [None, "", "app-3", 7, [APP_ID]],
    "max_age": [-1, 3601, 1.5, "5", True, None],
    "deliver": [None, "", "Queue", True, ["queue"], {}],
    "until": [None, [], "text", {}, *({**UNTIL, **wrong} for wrong in WRONG_UNTIL)],
    "targets": [None, [], {}, "teacher", [IDS], [IDS] * 101, [None], [{}], [IDS, {"user_id": "a"}]],
    "more": [1],
}
OTHERS: list[Any] = [
    *(
        None,
        [],
        [IDS],
        "text",
        7,
        1.5,
        True,
        {},
        {"room_id": "class-1", "until": UNTIL},
        {"user_id": "teacher"},
        {"app_id": APP_ID},
    ),
    *({**IDS, name: value} for name, values in WRONG.items() for value in values),
    *({"targets": value} for value in WRONG["targets"] if value != [IDS]),
    *({"targets": [IDS], name: value} for name, value in (("until", UNTIL), ("deliver", "both"), ("emit", "all"))),
    {**IDS, "until": UNTIL, "deliver": "queue"},
    *samples("api", "sweep", "callback").values(),
]


@pytest.mark.parametrize("other", OTHERS, ids=count())
def test_any_other_event_is_refused_and_nothing_is_called_sent_or_stored(
    world: World, invoke: Invoke, other: object
) -> None:
    with pytest.raises(errors.InvalidRequest):
        invoke(other)

    assert world.is_untouched
