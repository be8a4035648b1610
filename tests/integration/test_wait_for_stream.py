"""The state machine WaitForStream, run by moto's interpreter; its rounds reach a script or the task function itself."""

import functools
import importlib
import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from moto.stepfunctions.parser.asl.component.common.retry import retrier_decl
from moto.stepfunctions.parser.asl.component.state.exec.state_task import lambda_eval_utils
from moto.stepfunctions.parser.asl.utils import json_path

from stream_state import errors
from stream_state.errors import StreamStateError
from stream_state.model import MAX_ROUNDS, PRESENT, Fact, Medium, StreamState, Target
from tests.integration.conftest import Stack
from tests.sandbox.server import Request, Response
from tests.sandbox.simulator import APP_ID, canned, error
from tests.unit.memory import Context

REPOSITORY = Path(__file__).parents[2]
DEFINITION = REPOSITORY / "statemachines" / "wait_for_stream.asl.json"
TASK = "arn:aws:lambda:eu-central-1:123456789012:function:task"
IDS = {"room_id": "class-1", "user_id": "teacher"}
HISTORY_LIMIT_EVENTS = 25_000
EVERY_ERROR = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, StreamStateError)]
# DeliveryFailed cannot meet a wait, which delivers nothing.
PASSING = {kind.__name__ for kind in EVERY_ERROR if kind.retryable} - {"DeliveryFailed"}
FINAL = {kind.__name__ for kind in EVERY_ERROR} - PASSING - {"DeliveryFailed", "StreamStateError", "TargetNotFound"}
LAMBDA_ERRORS = {
    "ServiceException": 500,
    "AWSLambdaException": 502,
    "SdkClientException": 503,
    "TooManyRequestsException": 429,
}

Answer = Mapping[str, Any] | Response
Task = Callable[[Any], Answer]


def answer(*, holds: bool) -> Answer:
    return {"type": "stream_state", **IDS, "note": 'told by "Ünïcode\\"', "holds": holds}


def raised(name: str) -> Response:
    body = {"errorType": name, "errorMessage": "raised by the script", "requestId": "1", "stackTrace": []}
    return Response(200, json.dumps(body).encode(), [("X-Amz-Function-Error", "Unhandled")])


def refused(code: str) -> Response:
    headers = [("X-Amzn-ErrorType", code), ("x-amzn-RequestId", "1")]
    return Response(LAMBDA_ERRORS[code], json.dumps({"message": "made by the test"}).encode(), headers)


@dataclass(frozen=True)
class Execution:
    """An execution that has ended."""

    status: str
    error: str | None
    cause: str | None
    output: Any
    events: list[dict[str, Any]]

    def inputs(self, state: str) -> list[str]:
        """The input of each time that a state was entered."""
        details = [event.get("stateEnteredEventDetails", {}) for event in self.events]
        return [entered["input"] for entered in details if entered.get("name") == state]


@dataclass
class Machine:
    """The state machine, without its waits between rounds; `task` answers the rounds, `asked` are its events."""

    client: Any
    task: Task = lambda event: answer(holds=True)
    asked: list[Any] = field(default_factory=list)
    retried_after_seconds: list[float] = field(default_factory=list)

    def says(self, *answers: Answer) -> None:
        """Let the task answer so, one after another, and then the last for good."""
        script = iter(answers)
        self.task = lambda event: next(script, answers[-1])

    def invoke(self, request: Request) -> Response:
        """Lambda's Invoke."""
        event = json.loads(request.body)
        self.asked.append(event)
        try:
            told = self.task(event)
        except StreamStateError as problem:
            return raised(type(problem).__name__)
        return told if isinstance(told, Response) else Response(200, json.dumps(told).encode())

    def run(self, given: object) -> Execution:
        """Execute with an input, to the end."""
        text = DEFINITION.read_text().replace("${Partition}", "aws").replace("${TaskFunctionArn}", TASK)
        definition = json.loads(text)
        wait = definition["States"]["WaitInTime"]["Branches"][0]["States"]["WaitForNextRound"]
        assert wait.pop("SecondsPath") == "$.interval_seconds"
        wait["Seconds"] = 0
        return self.execute(definition, given)

    def execute(self, definition: object, given: object) -> Execution:
        """Execute any definition."""
        role = "arn:aws:iam::123456789012:role/wait"
        made = self.client.create_state_machine(name=uuid4().hex, definition=json.dumps(definition), roleArn=role)
        started = self.client.start_execution(stateMachineArn=made["stateMachineArn"], input=json.dumps(given))
        arn = started["executionArn"]
        while (ended := self.client.describe_execution(executionArn=arn))["status"] == "RUNNING":
            time.sleep(0.02)
        pages = self.client.get_paginator("get_execution_history").paginate(executionArn=arn)
        events = [event for page in pages for event in page["events"]]
        output = json.loads(ended["output"]) if "output" in ended else None
        return Execution(ended["status"], ended.get("error"), ended.get("cause"), output, events)


@pytest.fixture
def machine(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine(stack.aws.client("stepfunctions"))
    monkeypatch.setattr(stack.aws, "_invoke_api", machine.invoke)
    monkeypatch.setattr(retrier_decl, "time", SimpleNamespace(sleep=machine.retried_after_seconds.append))
    # The interpreter parses a path and makes a client each time it needs one, which takes most of its time.
    monkeypatch.setattr(json_path, "parse", functools.cache(json_path.parse))
    make_client = functools.cache(lambda_eval_utils.boto_client_for)
    monkeypatch.setattr(
        lambda_eval_utils, "boto_client_for", lambda *, region, service, **others: make_client(region, service)
    )
    return machine


@pytest.fixture
def task(stack: Stack, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module of the task function, answering the rounds."""
    secret = stack.aws.client("secretsmanager").create_secret(Name=uuid4().hex, SecretString="{}")["ARN"]
    for name, value in {**stack.environment, "RTC_SECRET_ID": secret}.items():
        monkeypatch.setenv(name, value)
    module = importlib.import_module("functions.task.app")
    for name, value in {"settings": stack.settings, "table": stack.table(), "lookup": stack.lookup()}.items():
        monkeypatch.setattr(module, name, value)
    machine.task = lambda event: module.lambda_handler(event, Context())
    return module


def test_what_holds_at_once_takes_one_look(machine: Machine) -> None:
    ended = machine.run(IDS)

    assert (ended.status, ended.output) == ("SUCCEEDED", answer(holds=True))
    (event,) = machine.asked
    assert event["until"].pop("started_at")[:10] == time.strftime("%Y-%m-%d", time.gmtime())
    until = {"publishing": True, "timeout_seconds": 600, "interval_seconds": 5}
    assert event == {**IDS, "max_age": 5, "until": until}


def test_what_is_given_reaches_the_task(machine: Machine) -> None:
    given = {"app_id": APP_ID, "medium": "video", "publishing": False, "interval_seconds": 2, "timeout_seconds": 60}

    ended = machine.run({**IDS, **given})

    assert ended.status == "SUCCEEDED"
    (event,) = machine.asked
    event["until"].pop("started_at")
    until = {"medium": "video", "publishing": False, "timeout_seconds": 60, "interval_seconds": 2}
    assert event == {**IDS, "app_id": APP_ID, "max_age": 2, "until": until}


def test_what_holds_after_some_rounds_is_answered_then(machine: Machine) -> None:
    machine.says(*[answer(holds=False)] * 3, answer(holds=True))

    ended = machine.run(IDS)

    assert (ended.status, ended.output, len(machine.asked)) == ("SUCCEEDED", answer(holds=True), 4)
    assert len(ended.inputs("WaitForNextRound")) == 3
    assert machine.retried_after_seconds == []


def test_a_host_who_has_not_joined_is_waited_for(stack: Stack, machine: Machine, task: Any) -> None:
    def join_before_the_fourth_look(event: Any) -> Answer:
        if len(machine.asked) == 4:
            stack.simulator.publish("class-1", "teacher", "Video")
        told: Answer = task.lambda_handler(event, Context())
        return told

    machine.task = join_before_the_fourth_look

    ended = machine.run({**IDS, "medium": "video"})

    assert (ended.status, ended.output["media"]["video"], len(machine.asked)) == ("SUCCEEDED", True, 4)
    outcomes = [arrival.outcome for arrival in stack.simulator.arrivals]
    assert outcomes == ["InternalError.RoomNotFound"] * 3 + ["OK"]


def test_workflows_that_wait_for_one_user_share_what_is_known(stack: Stack, machine: Machine, task: Any) -> None:
    stack.simulator.publish("class-1", "teacher", "Audio")

    first, second = machine.run(IDS), machine.run({**IDS, "medium": "audio"})

    assert (first.output["source"], second.output["source"]) == ("query", "table")
    assert len(stack.simulator.arrivals) == 1


def test_the_task_says_that_the_time_is_past(stack: Stack, machine: Machine, task: Any) -> None:
    stack.simulator.join("class-1", "teacher")

    ended = machine.run({**IDS, "timeout_seconds": 1, "interval_seconds": 1})

    assert (ended.status, ended.error) == ("FAILED", "StreamStateTimeout")
    assert json.loads(ended.cause or "")["errorType"] == "StreamStateTimeout"
    assert ended.inputs("TimeIsUp") == []


@pytest.mark.parametrize(
    "failing", [raised("RtcUnavailable"), refused("TooManyRequestsException")], ids=["task", "Lambda"]
)
def test_the_clock_ends_a_wait_in_which_every_round_fails(machine: Machine, failing: Response) -> None:
    machine.says(failing)

    ended = machine.run({**IDS, "timeout_seconds": 1, "interval_seconds": 1})

    assert (ended.status, ended.error) == ("FAILED", "StreamStateTimeout")
    assert [json.loads(given)["clock_seconds"] for given in ended.inputs("TimeIsUp")] == [2]
    assert len(ended.inputs("WaitForNextRound")) > 1


def test_the_clock_ends_a_wait_whose_round_does_not_end(machine: Machine) -> None:
    release = threading.Event()

    def hang(event: Any) -> Answer:
        release.wait(30)
        return answer(holds=True)

    machine.task = hang

    ended = machine.run({**IDS, "timeout_seconds": 1, "interval_seconds": 1})
    release.set()

    assert (ended.status, ended.error, len(machine.asked)) == ("FAILED", "StreamStateTimeout", 1)


@pytest.mark.parametrize(
    "failing",
    [*map(raised, sorted(PASSING)), *map(refused, LAMBDA_ERRORS)],
    ids=[*sorted(PASSING), *LAMBDA_ERRORS],
)
def test_an_error_that_can_pass_is_retried_once_and_then_is_not_yet(machine: Machine, failing: Response) -> None:
    machine.says(failing, failing, answer(holds=False), failing, answer(holds=True))

    ended = machine.run(IDS)

    assert (ended.status, ended.output, len(machine.asked)) == ("SUCCEEDED", answer(holds=True), 5)
    assert len(ended.inputs("WaitForNextRound")) == 2
    assert all(0 <= seconds <= 2 for seconds in machine.retried_after_seconds)
    assert len(machine.retried_after_seconds) == 2


def test_a_throttled_call_is_made_again(stack: Stack, machine: Machine, task: Any) -> None:
    stack.simulator.publish("class-1", "teacher", "Audio")
    # As often as the task itself tries, and once more.
    stack.simulator.fail_next(*[error("FlowLimitExceeded", 429)] * 4)

    ended = machine.run(IDS)

    assert (ended.status, ended.output["publishing"], len(machine.asked)) == ("SUCCEEDED", True, 2)


@pytest.mark.parametrize("name", sorted(FINAL))
def test_any_other_error_fails_the_wait_at_once_by_its_name(machine: Machine, name: str) -> None:
    machine.says(raised(name))

    ended = machine.run(IDS)

    assert (ended.status, ended.error, len(machine.asked)) == ("FAILED", name, 1)


def test_access_that_the_vendor_denies_fails_the_wait(stack: Stack, machine: Machine, task: Any) -> None:
    stack.simulator.fail_next(error("AccessDenied", 403))

    ended = machine.run(IDS)

    assert (ended.status, ended.error, len(machine.asked)) == ("FAILED", "RtcAccessDenied", 1)


@pytest.mark.parametrize(
    "given",
    [
        None,
        "text",
        7,
        [],
        [IDS],
        {},
        {"room_id": "class-1"},
        {"user_id": "teacher"},
        {**IDS, "room_id": None},
        {**IDS, "user_id": "a b"},
        {**IDS, "app_id": "another"},
        {**IDS, "app_id": None},
        {**IDS, "medium": "smell"},
        {**IDS, "medium": None},
        {**IDS, "publishing": "yes"},
        {**IDS, "publishing": None},
        *({**IDS, "interval_seconds": value} for value in (0, -1, 1.5, 3601, "5", None, True, [], 10**20)),
        *({**IDS, "timeout_seconds": value} for value in (0, -1, 1.5, 31_536_001, "600", None, True, {}, 10**20)),
        {**IDS, "interval_seconds": 1, "timeout_seconds": MAX_ROUNDS + 1},
        {**IDS, "interval_seconds": 3600, "timeout_seconds": 3600 * MAX_ROUNDS + 1},
    ],
    ids=json.dumps,
)
def test_bad_input_is_refused_before_any_call(stack: Stack, machine: Machine, task: Any, given: object) -> None:
    ended = machine.run(given)

    assert (ended.status, ended.error) == ("FAILED", "InvalidTarget")
    assert not stack.simulator.arrivals


def test_as_many_rounds_as_allowed_are_no_bad_input(machine: Machine, task: Any, stack: Stack) -> None:
    stack.simulator.publish("class-1", "teacher", "Audio")

    ended = machine.run({**IDS, "interval_seconds": 1, "timeout_seconds": MAX_ROUNDS})

    assert ended.status == "SUCCEEDED"


def test_rounds_leave_nothing_behind(machine: Machine) -> None:
    # Given rounds of the longest kind: one that fails, is retried, and then does not hold
    rounds = 500
    not_yet = [raised("RtcUnavailable"), answer(holds=False)]
    machine.says(*not_yet * (rounds - 1), answer(holds=True))

    # When there are many of them
    ended = machine.run(IDS)

    # Then no state's input has grown, and the most rounds that are allowed fit into one execution
    assert (ended.status, len(machine.asked)) == ("SUCCEEDED", 2 * rounds - 1)
    assert [len(given) for given in ended.inputs("Look")[1:]] == [len(ended.inputs("Look")[1])] * (rounds - 1)
    for state in ("DoesItHold", "WaitForNextRound"):
        assert len({len(given) for given in ended.inputs(state)}) <= 2
    entered = [event["type"] for event in ended.events].index("ParallelStateStarted")
    per_round = (len(ended.events) - entered) / rounds
    # The last look comes one interval after the time.
    assert entered + per_round * (MAX_ROUNDS + 2) < HISTORY_LIMIT_EVENTS


@pytest.mark.parametrize("life", ["withdrawn", "off"])
def test_pushed_events_alone_end_a_wait(
    stack: Stack, machine: Machine, task: Any, monkeypatch: pytest.MonkeyPatch, life: str
) -> None:
    # Given that the vendor has withdrawn its call, or that RTC_QUERY is off
    unusable = {"ResponseMetadata": {"RequestId": "1", "Error": {"CodeN": 100008, "Code": "InvalidActionOrVersion"}}}
    stack.simulator.fault = lambda exchange: canned(404, unusable)
    monkeypatch.setattr(task.lookup, "queries", life != "off")
    table = stack.table()

    def event_of(medium: Medium, *, on: bool) -> None:
        now_ms = int(time.time() * 1000)
        facts = {medium.value: Fact(on, now_ms), PRESENT: Fact(value=True, at_ms=now_ms)}
        table.observe(StreamState(Target(APP_ID, "class-1", "teacher"), facts, "callback"))

    def switch_on_before_the_third_look(event: Any) -> Answer:
        if len(machine.asked) == 3:
            event_of(Medium.VIDEO, on=True)
        told: Answer = task.lambda_handler(event, Context())
        return told

    machine.task = switch_on_before_the_third_look
    event_of(Medium.VIDEO, on=False)

    # When the events tell what is waited for
    ended = machine.run({**IDS, "medium": "video"})

    # Then the wait ends with it
    assert (ended.status, ended.output["source"], len(machine.asked)) == ("SUCCEEDED", "table", 3)
    assert bool(stack.simulator.arrivals) is (life == "withdrawn")


def test_the_same_errors_are_retried_and_caught() -> None:
    look = json.loads(DEFINITION.read_text())["States"]["WaitInTime"]["Branches"][0]["States"]["Look"]

    (retrier,), (catcher,) = look["Retry"], look["Catch"]

    expected = PASSING | {f"Lambda.{code}" for code in LAMBDA_ERRORS} | {"States.Timeout"}
    assert set(retrier["ErrorEquals"]) == set(catcher["ErrorEquals"]) == expected
    assert retrier["JitterStrategy"] == "FULL"


@pytest.mark.parametrize(
    ("media", "ends_in"), [(["Video"], "StartRecording"), (["Audio"], "NoRecording"), (None, "NoRecording")], ids=str
)
def test_the_example_of_the_readme_records_a_live_host_only(
    stack: Stack, machine: Machine, task: Any, media: list[str] | None, ends_in: str
) -> None:
    (example,) = re.findall(r'```json\n("AskForHost": .*?)```', (REPOSITORY / "README.md").read_text(), re.DOTALL)
    states = json.loads(f"{{{example}}}".replace("<TaskFunctionArn>", TASK))
    ends = {name: {"Type": "Succeed"} for name in ("StartRecording", "NoRecording")}
    if media is not None:
        stack.simulator.publish("class-1", "teacher", *media)

    given = {"room_id": "class-1", "host": "teacher"}
    ended = machine.execute({"StartAt": "AskForHost", "States": states | ends}, given)

    assert (ended.status, len(ended.inputs(ends_in))) == ("SUCCEEDED", 1)
