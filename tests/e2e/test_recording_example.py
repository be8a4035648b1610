"""The example of docs/waiting.md, executed: it starts executions of WaitForStream, and functions of a user."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import pytest
from moto.stepfunctions.parser.asl.component.state.exec.state_task.service.state_task_service_sfn import (
    StateTaskServiceSfn,
)

from tests.e2e.waiting import until, waits
from tests.sandbox.aws import ROLE
from tests.sandbox.functions import ACCOUNT_ID, REGION
from tests.sandbox.server import Request, Response
from tests.sandbox.stack import REPOSITORY, Sandbox
from tests.vendor.faults import error

EXAMPLE = REPOSITORY / "statemachines" / "examples" / "record_the_host.asl.json"
LAMBDA = f"arn:aws:lambda:{REGION}:{ACCOUNT_ID}:function"


@pytest.fixture(scope="module")
def parameters() -> Mapping[str, str]:
    return {"EnableCallbacks": "true"}


@dataclass
class Studio:
    """A user's two functions and the execution of the example; `failing` calls of each function fail first."""

    sandbox: Sandbox
    forward: Callable[[Request], Response]
    called: list[tuple[str, Any]] = field(default_factory=list)
    failing: int = 0

    def invoke(self, request: Request) -> Response:
        """Lambda's Invoke: the user's functions, or those of the stack."""
        name = next((name for name in ("start", "stop") if f"-{name}-recording/" in request.path), None)
        if name is None:
            return self.forward(request)
        self.called.append((name, json.loads(request.body)))
        if [called for called, _ in self.called].count(name) <= self.failing:
            body = {"errorType": "RecorderBusy", "errorMessage": "made by the test"}
            return Response(200, json.dumps(body).encode(), [("X-Amz-Function-Error", "Unhandled")])
        return Response(200, b'{"id": "recording-7"}' if name == "start" else b"null")

    def execute(self, **times: int) -> str:
        """Start the example, its waits as long as given; the ARN of the execution."""
        values = {
            "Partition": "aws",
            "WaitForStreamArn": self.sandbox.outputs["WaitForStreamArn"],
            "StartRecordingArn": f"{LAMBDA}:my-start-recording",
            "StopRecordingArn": f"{LAMBDA}:my-stop-recording",
        }
        definition = json.loads(re.sub(r"\$\{(\w+)\}", lambda found: values[found[1]], EXAMPLE.read_text()))
        for state, seconds in times.items():
            definition["States"][state]["Parameters"]["Input"]["timeout_seconds"] = seconds
        client, name = self.sandbox.client("stepfunctions"), uuid4().hex
        made = client.create_state_machine(name=name, definition=json.dumps(definition), roleArn=ROLE)
        given = json.dumps({"room_id": "class-1", "host": "teacher"})
        return str(client.start_execution(stateMachineArn=made["stateMachineArn"], input=given)["executionArn"])


def as_sdk(parameters: dict[str, Any]) -> None:
    """The parameters of a task in the case of boto3, which moto leaves to the task."""
    for name in list(parameters):
        value = parameters.pop(name)
        parameters[name[0].lower() + name[1:]] = json.dumps(value) if name == "Input" else value


def as_result(response: dict[str, Any]) -> None:
    """The result of a task in the case of Step Functions, as above."""
    for name in list(response):
        response[name[0].upper() + name[1:]] = response.pop(name)


@pytest.fixture
def studio(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Studio:
    studio = Studio(sandbox, sandbox.aws.invoke_api)
    monkeypatch.setattr(sandbox.aws, "invoke_api", studio.invoke)
    monkeypatch.setattr(StateTaskServiceSfn, "_normalise_parameters", lambda task, given, **_: as_sdk(given))
    monkeypatch.setattr(StateTaskServiceSfn, "_normalise_response", lambda task, response, **_: as_result(response))
    sandbox.simulator.push_to = sandbox.callback_url
    return studio


@pytest.mark.parametrize("failing", [0, 1], ids=["", "recorder fails once"])
def test_the_host_is_recorded_from_the_camera_to_the_leave(studio: Studio, failing: int) -> None:
    sandbox, studio.failing = studio.sandbox, failing
    # Given a host who is not there yet
    arn = studio.execute()
    until(lambda: sandbox.simulator.arrivals)

    # When the host joins, then the recording starts
    sandbox.simulator.publish("class-1", "teacher", "Audio", "Video")
    until(lambda: len(studio.called) > failing and waits(sandbox))
    assert [name for name, _ in studio.called] == ["start"] * (failing + 1)
    assert studio.called[-1][1]["answer"]["media"]["video"] is True

    # When the host leaves, then it stops
    sandbox.simulator.leave("class-1", "teacher", reason="kickedByAdmin")
    assert sandbox.wait_for_end(arn)["status"] == "SUCCEEDED"
    stops = [given for name, given in studio.called if name == "stop"]
    assert stops == [{"room_id": "class-1", "user_id": "teacher", "recording": {"id": "recording-7"}}] * (failing + 1)


def test_a_host_who_does_not_come_is_not_recorded(studio: Studio) -> None:
    execution = studio.sandbox.wait_for_end(studio.execute(WaitForHost=2))

    assert (execution["status"], studio.called) == ("SUCCEEDED", [])


def test_a_wait_that_fails_ends_the_example_by_its_error(studio: Studio) -> None:
    studio.sandbox.simulator.fault = lambda exchange: error("AccessDenied", 403, 100013)

    execution = studio.sandbox.wait_for_end(studio.execute())

    assert (execution["status"], execution["error"], studio.called) == ("FAILED", "RtcAccessDenied", [])


def test_a_recording_is_stopped_also_if_the_wait_for_its_end_fails(studio: Studio) -> None:
    studio.sandbox.simulator.publish("class-1", "teacher", "Video")

    execution = studio.sandbox.wait_for_end(studio.execute(WaitForEnd=2))

    assert execution["status"] == "SUCCEEDED"
    assert [name for name, _ in studio.called] == ["start", "stop"]
