"""The task's entry point: one target or some, answered or delivered, and what is waited for."""

import io
import json
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import count
from typing import Any

import pytest

from stream_state.errors import DeliveryFailed, InvalidTarget, StateUnavailable, StreamStateError, StreamStateTimeout
from stream_state.model import Target
from tests.unit.fakes import Clock, aws_error
from tests.unit.memory import APP_ID, EVENTS, Context, World, every_error, media, metrics, targets

IDS = {"room_id": "class-1", "user_id": "teacher"}
TEACHER = Target(APP_ID, "class-1", "teacher")
Conforms = Callable[[str, Any], None]
Invoke = Callable[..., dict[str, Any]]


@pytest.fixture
def world(clock: Clock) -> World:
    return World(clock)


@pytest.fixture
def invoke(world: World, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    handler = world.function("task", monkeypatch).lambda_handler
    return lambda event, **context: handler(event, Context(**context))


def until(world: World, seconds_ago: float = 0, **more: object) -> dict[str, object]:
    started_at = datetime.fromtimestamp(world.clock.wall() - seconds_ago, UTC).isoformat()
    return {"publishing": True, "started_at": started_at, "timeout_seconds": 600, **more}


@pytest.mark.parametrize("name", sorted(path.stem for path in (EVENTS / "task").glob("*.json")))
def test_every_sample_event_is_answered(world: World, invoke: Invoke, conforms: Conforms, name: str) -> None:
    event = json.loads((EVENTS / "task" / f"{name}.json").read_text())

    answer = invoke(event)

    delivered = event.get("deliver") == "queue"
    for document in answer.get("results", [answer]):
        conforms("message" if delivered else "answer", document)
    assert len(world.queue.messages) == (len(event["targets"]) if delivered else 0)


def test_a_single_target_is_answered_or_accepted_as_known(world: World, invoke: Invoke) -> None:
    world.rtc.say(TEACHER, media("video"))

    asked, known = invoke(IDS), invoke({**IDS, "app_id": APP_ID, "max_age": 60, "deliver": "return"})

    assert (asked["media"], asked["source"], known["source"]) == (media("video"), "query", "table")
    assert len(world.rtc.calls) == 1


@pytest.mark.parametrize("error", every_error(), ids=lambda error: type(error).__name__ + str(error.http_status))
@pytest.mark.parametrize("deliver", ["return", "queue"])
def test_every_error_is_raised_by_name_for_one_target_and_a_problem_among_several(
    world: World, invoke: Invoke, conforms: Conforms, logs: io.StringIO, error: StreamStateError, deliver: str
) -> None:
    world.rtc.default = error

    with pytest.raises(type(error)) as raised:
        invoke({**IDS, "deliver": deliver})
    logged = json.loads(logs.getvalue().splitlines()[-1])
    several = invoke({"targets": [IDS, IDS], "deliver": deliver})["results"]

    assert raised.value is error
    assert (logged["error"], logged["correlation_id"]) == (type(error).__name__, "invocation-1")
    assert several == [{**error.problem(), **TEACHER.as_dict()}] * 2
    conforms("problem", several[0])
    assert world.queue.messages == []


def test_what_is_delivered_is_returned_with_the_ids_of_the_messages(
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
    assert {document["StatesDelivered"][0] for document in published if "StatesDelivered" in document} == {1}
    assert metrics(capsys) == {}
    with pytest.raises(DeliveryFailed):
        invoke({**two.as_dict(), "deliver": "queue"})


def test_a_table_that_fails_matters_to_a_delivery_only(world: World, invoke: Invoke) -> None:
    world.dynamodb.effects["get_item"] = iter([aws_error("InternalServerError")] * 2)

    assert invoke(IDS)["media"] == media()
    with pytest.raises(StateUnavailable):
        invoke({**IDS, "deliver": "queue"})


@pytest.mark.parametrize(
    ("says", "condition", "holds"),
    [
        (media("video"), {}, True),
        (media("video"), {"medium": "audio"}, False),
        (media(), {"publishing": False}, True),
        (media(unknown=["audio"]), {"publishing": False}, False),
    ],
)
def test_what_is_waited_for_holds_or_not_yet(
    world: World,
    invoke: Invoke,
    says: Any,
    condition: dict[str, object],
    holds: bool,  # noqa: FBT001 (a parameter)
) -> None:
    world.rtc.say(TEACHER, says)

    answer = invoke({**IDS, "until": until(world, **condition)})

    assert answer["holds"] is holds


@pytest.mark.parametrize("error", every_error(), ids=lambda error: type(error).__name__ + str(error.http_status))
def test_an_error_while_waiting_is_not_yet_if_the_user_is_unknown_and_else_raised(
    world: World, invoke: Invoke, conforms: Conforms, error: StreamStateError
) -> None:
    world.rtc.default = error

    if type(error).__name__ == "TargetNotFound":
        answer = invoke({**IDS, "until": until(world)})
        assert (answer.pop("holds"), answer["present"]) == (False, False)
        conforms("answer", answer)
    else:
        with pytest.raises(type(error)):
            invoke({**IDS, "until": until(world)})
    late = StreamStateTimeout if error.retryable or type(error).__name__ == "TargetNotFound" else type(error)
    with pytest.raises(late):
        invoke({**IDS, "until": until(world, seconds_ago=600)})


def test_a_wait_that_is_over_is_raised_by_name(world: World, invoke: Invoke) -> None:
    with pytest.raises(StreamStateTimeout, match="any medium on"):
        invoke({**IDS, "until": until(world, seconds_ago=601)})


@pytest.mark.parametrize(("deliver", "seconds"), [("return", 26), ("queue", 18)])
def test_time_is_kept_to_answer_and_to_deliver(world: World, invoke: Invoke, deliver: str, seconds: float) -> None:
    started = world.clock.seconds
    world.rtc.seconds_per_call = 1
    world.rtc.default = lambda: deadlines.append(world.clock.seconds) or media()
    deadlines: list[float] = []

    results = invoke({"targets": [target.as_dict() for target in targets(100)], "deliver": deliver})["results"]

    assert started + seconds - 1.1 < deadlines[-1] <= started + seconds
    assert [result.get("error") for result in results].count("QuotaExceeded") == 100 - len(world.rtc.calls)


UNTIL = {"publishing": True, "started_at": "2026-11-23T03:04:05Z", "timeout_seconds": 600}
MALFORMED = [
    *(None, [], "text", 7, True, {}, {"room_id": "class-1"}, {"user_id": "teacher"}, {"app_id": APP_ID}),
    *({**IDS, name: value} for name in IDS for value in (None, "", "x" * 129, "a/b", 7, True, [], {}, "教室")),
    *({**IDS, "app_id": value} for value in (None, "", "app-3", 7, [APP_ID])),
    *({**IDS, "max_age": value} for value in (-1, 3601, 1.5, "5", True, None)),
    *({**IDS, "deliver": value} for value in (None, "", "Queue", True, ["queue"], {})),
    *({**IDS, "until": value} for value in (None, [], "text", {}, {**UNTIL, "medium": "sound"}, {**UNTIL, "more": 1})),
    *({**IDS, "until": {**UNTIL, "started_at": value}} for value in (None, 7, "soon", "2026-11-23T03:04:05")),
    *({**IDS, "until": {**UNTIL, "timeout_seconds": value}} for value in (0, None, "600", 10**9)),
    *({**IDS, "more": 1}, {**IDS, "targets": [IDS]}, {**IDS, "until": UNTIL, "deliver": "queue"}),
    *(
        {"targets": value}
        for value in (None, [], {}, "teacher", [IDS] * 101, [None], [{}], [IDS, {**IDS, "user_id": 7}])
    ),
    *(
        {"targets": [IDS], **more}
        for more in ({"until": UNTIL}, {"deliver": "both"}, {"max_age": None}, {"emit": "all"})
    ),
]


@pytest.mark.parametrize("event", MALFORMED, ids=count())
def test_malformed_input_is_refused_and_nothing_is_called_sent_or_stored(
    world: World, invoke: Invoke, event: object
) -> None:
    with pytest.raises(InvalidTarget):
        invoke(event)

    assert world.is_untouched
