"""A process that is killed at any step between registering a wait and answering it leaves no workflow waiting."""

import json
import threading
from typing import Any

import pytest

from stream_state.clock import CLOCK
from tests.integration.conftest import Stack
from tests.integration.test_crash import Worker, worker
from tests.integration.test_wait_for_stream import IDS, Answer, Machine, machine, raised
from tests.unit.callback_world import VIDEO, signed
from tests.vendor.faults import error

__all__ = ["machine", "worker"]
# An interval takes a hundredth of its time here.
WAIT = {**IDS, "medium": "video", "interval_seconds": 200, "timeout_seconds": 3000}
# What a round asks of AWS if the condition holds already, and a callback event that fulfils it.
PLACES = ("before", "after")
ROUND = [f"{place} {step}" for step in ("PutItem", "UpdateItem", "SendTaskSuccess", "DeleteItem") for place in PLACES]
EVENT = [f"{place} {step}" for step in ("PutItem", "Query", "SendTaskSuccess", "DeleteItem") for place in PLACES]


@pytest.fixture
def silent(stack: Stack) -> Stack:
    """A vendor who answers nothing: the event alone fulfils the condition."""
    stack.simulator.fault = lambda exchange: error("InternalServiceError", 500, 100014)
    return stack


def event() -> str:
    return signed(VIDEO, CLOCK.now_ms())


@pytest.mark.parametrize("comes", ["before the round", "after the crash"])
@pytest.mark.parametrize("step", [*ROUND, 3, 4])
def test_a_round_that_is_killed_misses_no_event(
    silent: Stack, machine: Machine, worker: Worker, step: int | str, comes: str
) -> None:
    # Given a round that is killed at a step, while a callback event comes
    ends: list[str] = []

    def crash_once(asked: Any) -> Answer:
        if ends:
            silent.begin_round(asked)
            return {}
        if comes == "before the round":
            silent.receive_event(event())
        ends.append(worker(json.dumps(asked), step))
        if comes == "after the crash":
            silent.receive_event(event())
        return raised("Runtime.ExitError") if ends == ["killed"] else {}

    machine.task = crash_once

    # Then the workflow gets the answer
    ended = machine.run(WAIT)
    assert (ended.status, ended.output["media"]["video"]) == ("SUCCEEDED", True)
    # A round whose condition does not hold yet has no wake to be killed in.
    assert ends[0] == "killed" or (ends[0], comes) == ("done", "after the crash")


@pytest.mark.parametrize("step", EVENT)
def test_an_event_that_is_killed_wakes_at_its_repeat_or_in_the_next_round(
    silent: Stack, machine: Machine, worker: Worker, step: str
) -> None:
    # Given a wait that has begun
    began = threading.Event()

    def begin(asked: Any) -> Answer:
        silent.begin_round(asked)
        began.set()
        return {}

    machine.task = begin
    ended: list[Any] = []
    waiting = threading.Thread(target=lambda: ended.append(machine.run(WAIT)))
    waiting.start()
    assert began.wait(20)

    # When the process that receives the event is killed, and the vendor, without an answer, sends it again
    text = event()
    assert worker(text, step) == "killed"
    silent.receive_event(text)

    waiting.join(40)
    (execution,) = ended
    assert (execution.status, execution.output["media"]["video"]) == ("SUCCEEDED", True)
