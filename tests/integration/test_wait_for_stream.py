"""The state machine WaitForStream, run by moto's interpreter; a script takes its rounds, or the task function does."""

import importlib
import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from moto.stepfunctions.parser.asl.component.common.retry import retrier_decl
from moto.stepfunctions.parser.asl.component.common.timeouts.timeout import TimeoutSecondsPath
from moto.stepfunctions.parser.asl.component.state.exec.state_task.service.state_task_service_sfn import (
    StateTaskServiceSfn,
)

from stream_state import errors
from stream_state.clock import CLOCK
from tests.integration.conftest import Stack
from tests.sandbox.server import Request, Response
from tests.sandbox.simulator import APP_ID
from tests.sandbox.stack import REPOSITORY
from tests.unit.callback_world import VIDEO, signed
from tests.unit.memory import Context

DEFINITION = REPOSITORY / "statemachines" / "wait_for_stream.asl.json"
TASK = "arn:aws:lambda:eu-central-1:123456789012:function:task"
IDS = {"room_id": "class-1", "user_id": "teacher"}
MAX_INTERVALS = 2000
NO_SECONDS: list[Any] = [0, -1, 1.5, "5", None, True, [], {}, 10**20]
ERRORS = {kind.__name__: kind for kind in errors.StreamStateError.__subclasses__()}
# A wait delivers nothing, and to it a target that is not found has not joined yet.
MET = ERRORS.keys() - {"DeliveryFailed", "TargetNotFound"}
PASSING = {name for name in MET if ERRORS[name].default_status in errors.MAY_PASS}
# The function could not begin, its runtime failed, or it was ended.
CRASHES = (
    "Lambda.EC2ThrottledException",
    "Lambda.ENILimitReachedException",
    "Lambda.Unknown",
    "Runtime.ExitError",
    "Sandbox.Timedout",
)
STATUSES = {"Service": 500, "AWSLambda": 502, "SdkClient": 503, "TooManyRequests": 429}
LAMBDA_ERRORS = {f"{name}Exception": status for name, status in STATUSES.items()}

Answer = Mapping[str, Any] | Response
Task = Callable[[Any], Answer]


def answer(*, holds: bool) -> Answer:
    return {"type": "stream_state", **IDS, "note": 'said by "Ünïcode\\"', "holds": holds}


def raised(name: str) -> Response:
    """The answer of Lambda for a task that raised an error."""
    body = {"errorType": name, "errorMessage": "raised by the script", "requestId": "1", "stackTrace": []}
    return Response(200, json.dumps(body).encode(), [("X-Amz-Function-Error", "Unhandled")])


def refused(code: str) -> Response:
    """The answer of Lambda that did not invoke the task."""
    headers = [("X-Amzn-ErrorType", code), ("x-amzn-RequestId", "1")]
    return Response(LAMBDA_ERRORS[code], json.dumps({"message": "made by the test"}).encode(), headers)


ERRORS_THAT_PASS = {name: raised(name) for name in (*sorted(PASSING), *CRASHES)} | {
    name: refused(name) for name in LAMBDA_ERRORS
}


def inputs(ended: Any, state: str) -> list[str]:
    """The input of each time that an execution entered a state."""
    details = [event.get("stateEnteredEventDetails", {}) for event in ended.events()]
    return [entered["input"] for entered in details if entered.get("name") == state]


@dataclass
class Machine:
    """The state machine, with short intervals; `task` takes the rounds, whose events are `asked`.

    An answer of the script that holds is sent to the token; any other leaves the token.
    """

    client: Any
    task: Task = lambda event: answer(holds=True)
    asked: list[Any] = field(default_factory=list)
    retried_after_seconds: list[float] = field(default_factory=list)
    times_as_fast: int = 100

    def says(self, *answers: Answer) -> None:
        """Let the task answer so, one after another, and then the last for good."""
        script = iter(answers)
        self.task = lambda event: next(script, answers[-1])

    def invoke(self, request: Request) -> Response:
        """Lambda's Invoke."""
        event = json.loads(request.body)
        self.asked.append(event)
        try:
            said = self.task(event)
        except errors.StreamStateError as error:
            return raised(error.name)
        if isinstance(said, Response):
            return said
        if "token" in event and said.get("holds"):
            self.client.send_task_success(taskToken=event["token"], output=json.dumps(said))
        return Response(200, json.dumps(said).encode())

    def run(self, given: object) -> Any:
        """Execute with an input, to the end."""
        return self.execute(self.definition(), given)

    @staticmethod
    def definition() -> dict[str, Any]:
        """The definition, whose pauses take no time."""
        text = DEFINITION.read_text().replace("${Partition}", "aws").replace("${TaskFunctionArn}", TASK)
        definition: dict[str, Any] = json.loads(text.replace("${DefaultIntervalSeconds}", "60"))
        pause = definition["States"]["WaitInTime"]["Branches"][0]["States"]["WaitForInterval"]
        assert pause.pop("SecondsPath") == "$.interval_seconds"
        pause["Seconds"] = 0
        return definition

    def execute(self, definition: object, given: object) -> Any:
        """Execute any definition: status, error, cause, output, and its events when they are asked for."""
        role = "arn:aws:iam::123456789012:role/wait"
        made = self.client.create_state_machine(name=uuid4().hex, definition=json.dumps(definition), roleArn=role)
        started = self.client.start_execution(stateMachineArn=made["stateMachineArn"], input=json.dumps(given))
        arn = started["executionArn"]
        while (ended := self.client.describe_execution(executionArn=arn))["status"] == "RUNNING":
            time.sleep(0.02)

        # moto cannot always write the events of a branch that was stopped.
        def events() -> list[Any]:
            pages = self.client.get_paginator("get_execution_history").paginate(executionArn=arn)
            return [event for page in pages for event in page["events"]]

        named = {"error": None, **ended, "output": json.loads(ended.get("output", "null"))}
        return SimpleNamespace(**named, events=events)


@pytest.fixture
def machine(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine(stack.aws.client("stepfunctions"))
    monkeypatch.setattr(stack.aws, "invoke_api", machine.invoke)
    monkeypatch.setattr(retrier_decl, "time", SimpleNamespace(sleep=machine.retried_after_seconds.append))
    # An interval takes a part of its time; the clock of a wait takes all of it.
    seconds_of = TimeoutSecondsPath._eval_seconds  # noqa: SLF001 - moto has no public name for it
    monkeypatch.setattr(
        TimeoutSecondsPath, "_eval_seconds", lambda timeout, env: seconds_of(timeout, env) / machine.times_as_fast
    )
    return machine


@pytest.fixture
def task(stack: Stack, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Task:
    """The task function, which answers the machine."""
    for name, value in stack.environment.items():
        monkeypatch.setenv(name, value)
    handler = importlib.reload(importlib.import_module("functions.task.app")).lambda_handler
    machine.task = lambda event: handler(event, Context())
    return machine.task


@pytest.fixture
def starts_executions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the interpreter rename fields between Step Functions and its API, whose names have no capital."""

    def recase(case: Callable[[str], str], fields: dict[str, Any]) -> None:
        for name in list(fields):
            fields[case(name[0]) + name[1:]] = fields.pop(name)

    normalise = StateTaskServiceSfn._normalise_parameters  # noqa: SLF001 - as above

    def to_api(service: StateTaskServiceSfn, parameters: dict[str, Any], *names: str) -> None:
        normalise(service, parameters, *names)
        recase(str.lower, parameters)

    def from_api(_: object, response: dict[str, Any], **__: object) -> None:
        recase(str.upper, response)

    monkeypatch.setattr(StateTaskServiceSfn, "_normalise_parameters", to_api)
    monkeypatch.setattr(StateTaskServiceSfn, "_normalise_response", from_api)


@pytest.mark.parametrize(
    ("more", "until"),
    [
        ({}, {"publishing": True, "timeout_seconds": 600, "interval_seconds": 60}),
        (
            {"app_id": APP_ID},
            {"medium": "video", "publishing": False, "timeout_seconds": 600, "interval_seconds": 500},
        ),
    ],
    ids=["defaults", "given"],
)
def test_a_condition_that_holds_at_once_takes_one_round(
    machine: Machine, more: dict[str, Any], until: dict[str, Any]
) -> None:
    ended = machine.run({**IDS, **more, **until} if more else IDS)

    assert (ended.status, ended.output) == ("SUCCEEDED", answer(holds=True))
    (event,) = machine.asked
    assert event["wait"]["until"].pop("started_at")[:10] == time.strftime("%Y-%m-%d", time.gmtime())
    assert event["wait"] == {**IDS, **more, "until": until}
    assert event["wait_id"] == ended.executionArn
    assert event.keys() == {"wait", "wait_id", "token", "input"}


def test_a_host_who_has_not_joined_is_waited_for(stack: Stack, machine: Machine, task: Task) -> None:
    def join_before_the_fourth_round(event: Any) -> Answer:
        # The function's intervals pass as fast as the state machine's.
        stack.ahead_seconds += 61
        if len(machine.asked) == 4:
            stack.simulator.publish("class-1", "teacher", "Video")
        return task(event)

    machine.task = join_before_the_fourth_round
    # A round takes longer on a machine with other work, and must not be timed out.
    machine.times_as_fast = 20

    ended = machine.run({**IDS, "medium": "video"})

    assert (ended.status, ended.output["media"]["video"], len(machine.asked)) == ("SUCCEEDED", True, 4)
    outcomes = [arrival.outcome for arrival in stack.simulator.arrivals]
    assert outcomes == ["InternalError.RoomNotFound"] * 3 + ["OK"]
    assert (inputs(ended, "WaitForInterval"), machine.retried_after_seconds) == ([], [])
    # Another workflow that waits for the same user shares the answer.
    machine.task = task
    assert machine.run({**IDS, "medium": "video"}).output["source"] == "table"


def test_an_observation_wakes_the_wait_that_asked_once(stack: Stack, machine: Machine, task: Task) -> None:
    # Given a wait whose interval is long
    stack.simulator.publish("class-1", "teacher", "Audio")
    began = threading.Event()

    def begin(event: Any) -> Answer:
        said = task(event)
        began.set()
        return said

    machine.task = begin
    waiting = threading.Thread(
        target=lambda: ended.append(machine.run({**IDS, "medium": "video", "interval_seconds": 3000}))
    )
    ended: list[Any] = []
    waiting.start()
    assert began.wait(20)

    # When a callback event says that the camera is on
    stack.receive_event(signed(VIDEO, CLOCK.now_ms()))
    waiting.join(20)

    # Then the wait ends with that answer, after one call
    (execution,) = ended
    assert (execution.status, execution.output["source"], execution.output["holds"]) == ("SUCCEEDED", "callback", True)
    assert (len(machine.asked), len(stack.simulator.arrivals)) == (1, 1)


def test_ten_minutes_take_ten_rounds_and_forty_transitions(machine: Machine) -> None:
    machine.says(*[answer(holds=False)] * 9, answer(holds=True))

    ended = machine.run(IDS)

    assert (ended.status, len(machine.asked)) == ("SUCCEEDED", 10)
    assert sum(event["type"].endswith("StateEntered") for event in ended.events()) <= 40


FAILING = {"task": raised("RtcUnavailable"), "Lambda": refused("TooManyRequestsException"), "hangs": None}


@pytest.mark.parametrize("failing", FAILING.values(), ids=FAILING)
def test_the_clock_ends_a_wait_in_which_every_round_fails_or_hangs(machine: Machine, failing: Response | None) -> None:
    release = threading.Event()

    def fail(event: Any) -> Answer:
        if not failing:
            release.wait(30)
        return failing or answer(holds=True)

    machine.task = fail
    started = time.monotonic()

    ended = machine.run({**IDS, "timeout_seconds": 2, "interval_seconds": 1})
    took = time.monotonic() - started
    release.set()

    assert (ended.status, ended.error) == ("FAILED", "StreamStateTimeout")
    assert 2 <= took < 7
    assert len(machine.asked) > 1


@pytest.mark.parametrize("failing", ERRORS_THAT_PASS.values(), ids=ERRORS_THAT_PASS)
def test_an_error_that_can_pass_is_retried_once_and_then_is_not_yet(machine: Machine, failing: Response) -> None:
    machine.says(failing, failing, answer(holds=False), failing, answer(holds=True))

    ended = machine.run(IDS)

    assert (ended.status, ended.output, len(machine.asked)) == ("SUCCEEDED", answer(holds=True), 5)
    assert len(inputs(ended, "WaitForInterval")) == 1
    assert all(0 <= seconds <= 2 for seconds in machine.retried_after_seconds)
    assert len(machine.retried_after_seconds) == 2


@pytest.mark.parametrize("name", sorted(MET - PASSING))
def test_any_other_error_fails_the_wait_at_once_by_its_name(machine: Machine, name: str) -> None:
    machine.says(raised(name))

    ended = machine.run(IDS)

    assert (ended.status, ended.error, len(machine.asked)) == ("FAILED", name, 1)


@pytest.mark.parametrize(
    "given",
    [
        *(None, "text", 7, [], [IDS], {}, {"room_id": "class-1"}, {"user_id": "teacher"}),
        *({**IDS, "user_id": "a b"}, {**IDS, "app_id": None}, {**IDS, "medium": None}, {**IDS, "publishing": "yes"}),
        *({**IDS, name: value} for name in ("interval_seconds", "timeout_seconds") for value in NO_SECONDS),
        *({**IDS, "interval_seconds": 3601}, {**IDS, "timeout_seconds": 31_536_001}),
        {**IDS, "interval_seconds": 2, "timeout_seconds": 2 * MAX_INTERVALS + 1},
        *({**IDS, name: "video"} for name in ("meduim", "Medium", "until", "wait")),
    ],
    ids=json.dumps,
)
def test_bad_input_is_refused_before_any_call(stack: Stack, machine: Machine, task: object, given: object) -> None:
    ended = machine.run(given)

    assert (ended.status, ended.error) == ("FAILED", "InvalidRequest")
    assert not stack.simulator.arrivals


def test_rounds_leave_nothing_behind(machine: Machine) -> None:
    # Given rounds of the longest kinds: a try that fails and a retry that fails or times out
    failure = raised("RtcUnavailable")
    machine.says(*[failure, failure, failure, answer(holds=False)] * 20, answer(holds=True))

    # When there are many of them
    machine.times_as_fast = 40
    ended = machine.run({**IDS, "interval_seconds": 10})

    # Then no state's input has grown, and the most rounds that are allowed fit into one execution's 25,000 events
    rounds = len(inputs(ended, "Round"))
    assert (ended.status, rounds) == ("SUCCEEDED", 41)
    sizes = [len(given) for given in inputs(ended, "Round")[1:]]
    assert max(sizes) == max(sizes[:2])
    assert len(ended.events()) / rounds * (MAX_INTERVALS + 2) < 25_000


def test_the_same_errors_are_retried_and_caught() -> None:
    states = json.loads(DEFINITION.read_text())["States"]["WaitInTime"]["Branches"][0]["States"]
    (retrier,), (timeout, catcher) = states["Round"]["Retry"], states["Round"]["Catch"]

    expected = PASSING | {f"Lambda.{code}" for code in LAMBDA_ERRORS} | {*CRASHES}
    assert set(retrier["ErrorEquals"]) == set(catcher["ErrorEquals"]) == expected
    assert retrier["JitterStrategy"] == "FULL"
    # The end of an interval begins the next round at once.
    assert timeout["ErrorEquals"] == ["States.Timeout"]
    assert (timeout["Next"], catcher["Next"]) == ("NextRound", "WaitForInterval")


def example(page: str, name: str, **outputs: str) -> dict[str, Any]:
    """The states that a page shows, with the states after them; `outputs` stand in for names in <>."""
    (found,) = re.findall(rf'```json\n("{name}": .*?)```', (REPOSITORY / page).read_text(), re.DOTALL)
    for output, value in outputs.items():
        found = found.replace(f"<{output}>", value)
    return {**json.loads(f"{{{found}}}"), **{end: {"Type": "Succeed"} for end in ("StartRecording", "NoRecording")}}


@pytest.mark.parametrize(
    ("media", "ends_in"), [(["Video"], "StartRecording"), (["Audio"], "NoRecording"), (None, "NoRecording")], ids=str
)
def test_the_task_of_the_docs_records_a_live_host_only(
    stack: Stack, machine: Machine, task: object, media: list[str] | None, ends_in: str
) -> None:
    states = example("docs/integrate.md", "AskForHost", TaskFunctionArn=TASK)
    if media is not None:
        stack.simulator.publish("class-1", "teacher", *media)

    given = {"room_id": "class-1", "host": "teacher"}
    ended = machine.execute({"StartAt": "AskForHost", "States": states}, given)

    assert (ended.status, len(inputs(ended, ends_in))) == ("SUCCEEDED", 1)


@pytest.mark.parametrize(
    ("says", "ends_in"),
    [
        ([answer(holds=False), {"media": {"video": True}, "holds": True}], "StartRecording"),
        ([raised("RtcAccessDenied")], "NoRecording"),
    ],
    ids=["holds", "refused"],
)
def test_the_task_of_the_readme_waits_for_the_host(
    machine: Machine, starts_executions: None, says: list[Answer], ends_in: str
) -> None:
    role, wait = "arn:aws:iam::123456789012:role/wait", json.dumps(machine.definition())
    made = machine.client.create_state_machine(name=uuid4().hex, definition=wait, roleArn=role)
    states = example("README.md", "WaitForHost", WaitForStreamArn=made["stateMachineArn"])
    machine.says(*says)

    ended = machine.execute({"StartAt": "WaitForHost", "States": states}, {"room_id": "class-1", "host": "teacher"})

    assert (ended.status, len(inputs(ended, ends_in))) == ("SUCCEEDED", 1)
    assert len(machine.asked) == len(says)
    assert machine.asked[0]["wait"]["until"]["medium"] == "video"
