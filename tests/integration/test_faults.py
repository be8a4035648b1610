"""Whatever fails between query, write, send and write: nothing is lost, and nothing is told as off that is not."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from stream_state.errors import DeliveryFailed, StateUnavailable, StreamStateError
from stream_state.model import Target
from stream_state.sweep import SweepRequest
from tests.integration.conftest import Stack
from tests.sandbox.aws import Interceptor, Reply, failure
from tests.sandbox.simulator import APP_ID, Fault, error, reset

# The first publishes sound throughout, the second never anything, the third is not there; the others change.
TARGETS = [Target(APP_ID, "class-1", f"user-{number}") for number in range(6)]
WATCHED = SweepRequest(None, "changes")
GIVEN = SweepRequest(TARGETS, "changes")

Call = Mapping[str, Any]


type Step = Callable[[Stack, str, Call], bool]


def updates(word: str) -> Step:
    """The UpdateItem calls whose expression has the word."""
    return lambda stack, operation, call: operation.endswith(".UpdateItem") and word in call["UpdateExpression"]


def named(*names: str) -> Step:
    """The calls of some operations."""
    return lambda stack, operation, call: operation.partition(".")[2] in names


def writes(what: str) -> Step:
    """The writes of what is known, or was told, of a target."""
    return lambda stack, operation, call: stack.writes(operation, call) == what


# The calls that can fail, in the order of a sweep.
STEPS: dict[str, Step] = {
    "take the lease": updates("holder"),
    "read the watches": named("Query"),
    "read what is young enough": named("BatchGetItem"),
    "read what is known": named("BatchGetItem", "GetItem"),
    "write what is known": writes("known"),
    "send": named("SendMessageBatch"),
    "write what was told": writes("told"),
    "store the cursor": updates("cursor"),
}
# Only a lookup that accepts a known state reads it.
MAX_AGES = {"read what is young enough": 60}
HOW: dict[str, Reply | None] = {
    "throttled": failure("ProvisionedThroughputExceededException"),
    "gone": None,
}


@dataclass
class Outcome:
    """What each way in came to: a value, or the error that was raised."""

    lookup: Any
    task: Any
    given: Any
    watched: Any


def attempt(action: Callable[[], Any]) -> Any:
    """The value, or the error of the taxonomy."""
    try:
        return action()
    except StreamStateError as error:
        return error


def soon() -> float:
    return time.monotonic() + 30


def use_every_way_in(stack: Stack, max_age_seconds: int = 0) -> Outcome:
    lookup, teller, sweep = stack.lookup(), stack.teller(), stack.sweep()
    return Outcome(
        lookup=[attempt(lambda target=target: lookup.one(target, soon(), max_age_seconds)) for target in TARGETS],
        task=attempt(lambda: teller.deliver(lookup.some(TARGETS, soon()), soon())),
        given=attempt(lambda: sweep.run(GIVEN, soon(), soon())),
        watched=attempt(lambda: sweep.run(WATCHED, soon(), soon())),
    )


@pytest.fixture
def room(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Stack:
    """Six watched users, told once, who have changed since."""
    # The clients of AWS wait between their tries.
    monkeypatch.setattr("botocore.endpoint.time", SimpleNamespace(sleep=lambda seconds: None, time=time.time))
    stack.watch_list().add(TARGETS, 3600)
    stack.simulator.publish("class-1", "user-0", "Audio")
    stack.simulator.publish("class-1", "user-1")
    for user in ("user-3", "user-4"):
        stack.simulator.publish("class-1", user, "Video")
    stack.sweep().run(WATCHED, soon(), soon())
    assert len(stack.consume()) == len(TARGETS)
    stack.simulator.publish("class-1", "user-0", "ScreenVideo")
    stack.simulator.publish("class-1", "user-3", "Video", on=False)
    stack.simulator.leave("class-1", "user-4")
    stack.simulator.publish("class-1", "user-5", "Audio", "ScreenAudio")
    return stack


def assert_never_wrongly_off(stack: Stack, told: Mapping[str, Any]) -> None:
    """Nothing is off that is on now and was on before; nobody is absent who is there."""
    if told["user_id"] == "user-0":
        assert told["media"]["audio"] is True
        assert told["publishing"] is True
    if told["user_id"] != "user-4" and told["user_id"] != "user-2" and told["user_id"] != "user-5":
        assert told["present"] is not False
    if told["user_id"] == "user-2":
        assert set(told["media"].values()) == {None}


def sweep_watched(stack: Stack) -> dict[str, Any]:
    """A sweep that finds the lease free; a call that is carried out late may take it once more for a minute."""
    for _ in range(50):
        stack.let_lease_end()
        summary = stack.sweep().run(WATCHED, soon(), soon())
        if "skipped" not in summary:
            return summary
    raise AssertionError("the lease was never free")


def assert_nothing_is_lost(stack: Stack) -> None:
    """After one clean sweep the consumer has all that is true, and the next sweep is silent."""
    stack.aws.intercept = lambda operation, call: None
    clean = sweep_watched(stack)
    for message in stack.consume():
        if message["type"] == "stream_state":
            assert_never_wrongly_off(stack, message)
    assert clean["failed"] == clean["remaining"] == 0
    for target in TARGETS:
        kept = stack.consumer.kept[target.room_id, target.user_id]
        truth = stack.truth(target)
        assert kept["media"] == (truth or dict.fromkeys(kept["media"]))
        assert kept["present"] is (False if truth is None else True if any(truth.values()) else kept["present"])
    assert sweep_watched(stack)["unchanged"] == len(TARGETS)
    assert stack.consume() == []


def make_fail(stack: Stack, step: str, how: str) -> None:
    def intercept(operation: str, call: Call) -> Reply | None:
        if not STEPS[step](stack, operation, call):
            return None
        if how == "gone":
            raise ConnectionResetError
        return HOW[how]

    stack.aws.intercept = intercept


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("step", STEPS)
def test_a_step_that_fails_loses_nothing(room: Stack, step: str, how: str) -> None:
    make_fail(room, step, how)

    outcome = use_every_way_in(room, MAX_AGES.get(step, 0))

    # Who asks has an answer whenever the vendor gave one.
    for target, answer in zip(TARGETS, outcome.lookup, strict=True):
        if room.truth(target) is None:
            assert type(answer).__name__ == "TargetNotFound"
        else:
            assert {name: fact.value for name, fact in answer.facts.items() if name in room.truth(target)} == (
                room.truth(target)
            )
            assert_never_wrongly_off(room, answer.answer())
    # Who delivers is told what could not be.
    match step:
        case "read what is known" | "write what is known":
            assert isinstance(outcome.task[0], StateUnavailable)
            assert (outcome.given["failed"], outcome.given["delivered"]) == (6, 0)
            assert (outcome.watched["failed"], outcome.watched["delivered"]) == (6, 0)
            room.consume()
            assert room.consumer.problems == {"StateUnavailable": 6}
        case "send":
            assert isinstance(outcome.task[0], DeliveryFailed)
            assert isinstance(outcome.given, DeliveryFailed)
            assert outcome.watched["failed"] == 4
        case "take the lease" | "read the watches":
            assert isinstance(outcome.watched, StateUnavailable)
            assert outcome.task[0]["message_id"]
            assert outcome.given["failed"] == 0
        case _:
            assert outcome.task[0]["message_id"]
            assert outcome.given["failed"] == outcome.watched["failed"] == 0
    assert_nothing_is_lost(room)


@pytest.mark.parametrize("step", [step for step in STEPS if not step.startswith("read")])
def test_a_step_that_is_done_but_answered_late_loses_nothing(room: Stack, step: str) -> None:
    # Given a call that AWS carries out after its client has given up.
    late: list[str] = []

    def intercept(operation: str, call: Call) -> Reply | None:
        if STEPS[step](room, operation, call) and not late:
            late.append(operation)
            time.sleep(3.2 if step == "send" else 1.2)
        return None

    room.aws.intercept = intercept

    outcome = use_every_way_in(room)

    assert late
    for answer in outcome.lookup:
        if not isinstance(answer, StreamStateError):
            assert_never_wrongly_off(room, answer.answer())
    assert not isinstance(outcome.given, StreamStateError)
    assert_nothing_is_lost(room)


@pytest.mark.parametrize("step", ["read what is known", "write what is known", "write what was told", "send"])
def test_a_step_that_fails_for_one_target_holds_up_no_other(room: Stack, step: str) -> None:
    def intercept(operation: str, call: Call) -> Reply | None:
        concerned = STEPS[step](room, operation, call) and "user-5" in str(call)
        return failure("InternalServerError", 500) if concerned else None

    if step != "send":
        room.aws.intercept = intercept
    else:
        room.aws.intercept = refuse_entry(room, "user-5")

    outcome = room.sweep().run(WATCHED, soon(), soon())

    # Those of user-0, user-3 and user-4 are news; those of user-1 and user-2 are none.
    assert (outcome["unchanged"], outcome["failed"]) == (2, 0 if "told" in step else 1)
    assert {message["user_id"] for message in room.consume()} >= {"user-0", "user-3", "user-4"}
    assert_nothing_is_lost(room)


def refuse_entry(stack: Stack, user: str) -> Interceptor:
    """SQS takes all entries of a batch but those of a user."""
    sqs = stack.aws.client("sqs")

    def intercept(operation: str, call: Call) -> Reply | None:
        if not STEPS["send"](stack, operation, call) or user not in str(call):
            return None
        taken = [entry for entry in call["Entries"] if user not in entry["MessageBody"]]
        failed = [
            {"Id": entry["Id"], "Code": "InternalError", "SenderFault": False}
            for entry in call["Entries"]
            if user in entry["MessageBody"]
        ]
        sent = sqs.send_message_batch(QueueUrl=call["QueueUrl"], Entries=taken) if taken else {}
        return 200, {"Successful": sent.get("Successful", []), "Failed": failed}

    return intercept


@pytest.mark.parametrize("fault", [reset, error("InternalError", 500)], ids=["reset", "refused"])
def test_a_vendor_that_fails_meanwhile_changes_nothing_that_is_known(room: Stack, fault: Fault) -> None:
    room.simulator.fault = lambda exchange: fault

    failed = room.sweep().run(WATCHED, soon(), soon())

    assert (failed["delivered"], failed["failed"]) == (0, 6)
    assert room.consume() == []
    room.simulator.fault = lambda exchange: None
    assert_nothing_is_lost(room)
