"""The running sandbox: one context manager that starts everything and leaves nothing behind."""

import json
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

from tests.sandbox.aws import Aws
from tests.sandbox.event_source import EventSource
from tests.sandbox.functions import REGION, Functions
from tests.sandbox.gateway import Gateway
from tests.sandbox.ports import PORTS
from tests.sandbox.server import Request, Response
from tests.sandbox.signatures import CALLBACK_KEY, KEYS, Keys, Verify, verify_signature
from tests.sandbox.simulator import APP_ID, Simulator
from tests.sandbox.template import Template

REPOSITORY = Path(__file__).parents[2]
BUILT_TEMPLATE = REPOSITORY / ".aws-sam" / "build" / "template.yaml"


class Sandbox:
    """The simulator, AWS, the functions and their HTTP front, with the stack's resources made from the template.

    Without `first_port` each server has a free port, and the stack a name of its own: two sandboxes in one process
    share moto's resources.
    """

    def __init__(
        self,
        parameters: Mapping[str, str] | None = None,
        environment: Mapping[str, str] | None = None,
        verify: Verify = verify_signature,
        first_port: int = 0,
    ) -> None:
        name = "stream-state" if first_port else f"sandbox-{uuid4().hex[:8]}"
        _, api, callbacks, vendor, aws = (first_port and first_port + number for number in range(PORTS))
        with ExitStack() as closing:
            self.directory = Path(closing.enter_context(tempfile.TemporaryDirectory(prefix="stream-state-")))
            self.simulator = closing.enter_context(Simulator(verify, vendor))
            # AWS invokes the functions, and is there before them: their environment names its resources.
            self.aws = Aws(REGION, self.invoke_api, aws)
            closing.callback(self.aws.stop)
            given = {"RtcAppIds": APP_ID, "RtcEndpoint": self.simulator.url, **(parameters or {})}
            self.template = Template(BUILT_TEMPLATE, given, name, self.aws)
            functions = self.template.functions({"AWS_ENDPOINT_URL": self.aws.url, **(environment or {})})
            self.outputs = self.template.outputs
            self.queue_url = self.outputs["ResultsQueueUrl"]
            self.functions = Functions(functions, self.directory)
            closing.callback(self.functions.stop)
            self.client, self.invoke, self.log = self.aws.client, self.functions.invoke, self.functions.log
            routes = self.template.routes()
            of_callers = [route for route in routes if route.requires_iam]
            of_vendor = [route for route in routes if not route.requires_iam]
            self.api = closing.enter_context(Gateway(of_callers, self.invoke, api))
            self.callback_api = closing.enter_context(Gateway(of_vendor, self.invoke, callbacks))
            self.api_url, self.callback_api_url = self.api.url, self.callback_api.url
            self.callback_url = self.callback_api_url + "".join(route.path for route in of_vendor)
            if "SigningKeysSecret" in self.template.resources:
                self.put_keys(KEYS)
            if "CallbackKeySecret" in self.template.resources:
                self.put_secret(json.dumps({"callback_key": CALLBACK_KEY}), "CallbackKeySecretArn")
            for function, mapping in self.template.event_sources().items():
                source = EventSource(self.client("sqs"), mapping, partial(self.invoke, function))
                closing.callback(source.stop)
            self._closing = closing.pop_all()

    def invoke_api(self, request: Request) -> Response:
        return self.functions.invoke_api(request)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._closing.close()

    @property
    def logs(self) -> str:
        """All that the functions have written."""
        return "".join(map(self.log, self.functions.functions))

    def put_keys(self, keys: Keys) -> None:
        """Store a key pair in the stack's secret, as an operator does."""
        self.put_secret(json.dumps({name: value for name, value in asdict(keys).items() if value}))

    def put_secret(self, text: str, output: str = "SigningKeysSecretArn") -> None:
        """Store any text in a secret of the stack."""
        self.client("secretsmanager").put_secret_value(SecretId=self.outputs[output], SecretString=text)

    def start_wait(self, given: dict[str, Any]) -> str:
        """Start an execution of WaitForStream; its ARN."""
        machine, client = self.outputs["WaitForStreamArn"], self.client("stepfunctions")
        return str(client.start_execution(stateMachineArn=machine, input=json.dumps(given))["executionArn"])

    def wait_for_end(self, arn: str) -> dict[str, Any]:
        """Wait until an execution has ended; its description."""
        client = self.client("stepfunctions")
        execution: dict[str, Any] = {"status": "RUNNING"}
        while execution["status"] == "RUNNING":
            time.sleep(0.05)
            execution = client.describe_execution(executionArn=arn)
        return execution

    def receive(self, at_least: int = 0, wait_seconds: float = 5) -> list[dict[str, Any]]:
        """Take all raw messages off the results queue; waits until `at_least` so many came."""
        sqs = self.client("sqs")
        received: list[dict[str, Any]] = []
        deadline = time.monotonic() + wait_seconds
        while True:
            answer = sqs.receive_message(QueueUrl=self.queue_url, MaxNumberOfMessages=10, AttributeNames=["All"])
            for message in answer.get("Messages", []):
                sqs.delete_message(QueueUrl=self.queue_url, ReceiptHandle=message["ReceiptHandle"])
                received.append(message)
            if "Messages" not in answer and (len(received) >= at_least or time.monotonic() > deadline):
                return received

    def receive_messages(self, at_least: int = 0, wait_seconds: float = 5) -> list[dict[str, Any]]:
        """Take the messages off the results queue, parsed."""
        return [json.loads(message["Body"]) for message in self.receive(at_least, wait_seconds)]
