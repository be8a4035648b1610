"""The running sandbox: one context manager that starts everything and leaves nothing behind."""

import json
import shutil
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

from tests.sandbox.aws import Aws
from tests.sandbox.functions import Functions, Invocation
from tests.sandbox.gateway import Gateway
from tests.sandbox.server import Request, Response
from tests.sandbox.simulator import APP_ID, KEYS, Keys, Simulator, Verify, verify_signature
from tests.sandbox.template import Template

REPOSITORY = Path(__file__).parents[2]
BUILT_TEMPLATE = REPOSITORY / ".aws-sam" / "build" / "template.yaml"
REGION = "eu-central-1"


class NotBuiltError(RuntimeError):
    """There are no artifacts to run."""


class Sandbox:
    """The simulator, AWS, the functions and their HTTP front, with the stack's resources made from the template."""

    def __init__(
        self,
        parameters: Mapping[str, str] | None = None,
        environment: Mapping[str, str] | None = None,
        verify: Verify = verify_signature,
        template: Path = BUILT_TEMPLATE,
        *,
        plain_runtime: bool = False,
    ) -> None:
        if not template.exists():
            raise NotBuiltError("There is nothing to run yet: make build makes it.")
        self._closing = ExitStack()
        try:
            self._start(parameters or {}, environment or {}, verify, template, plain_runtime=plain_runtime)
        except BaseException:
            self._closing.close()
            raise

    def _start(
        self,
        parameters: Mapping[str, str],
        environment: Mapping[str, str],
        verify: Verify,
        file: Path,
        *,
        plain_runtime: bool,
    ) -> None:
        # A name of its own keeps the resources of two sandboxes in one process apart.
        stack_name = f"sandbox-{uuid4().hex[:8]}"
        directory = Path(tempfile.mkdtemp(prefix="stream-state-sandbox-"))
        self._closing.callback(shutil.rmtree, directory, ignore_errors=True)
        self.simulator = self._closing.enter_context(Simulator(verify=verify))
        # The functions are known only after the resources, which are made in the AWS that can invoke the functions.
        self.aws = Aws(REGION, self._invoke_api)
        self._closing.callback(self.aws.stop)
        self.template = Template(
            file,
            {"RtcAppIds": APP_ID, "RtcEndpoint": self.simulator.url, **parameters},
            stack_name,
            REGION,
            lambda *resource: self.aws.create(stack_name, *resource),
        )
        for logical_id in self.template.resources:
            self.template.attributes(logical_id)
        functions = self.template.functions({"AWS_ENDPOINT_URL": self.aws.url, **environment})
        self.functions = Functions(functions, directory, plain_runtime=plain_runtime)
        self._closing.callback(self.functions.stop)
        routes = self.template.routes()
        self.api_url = self._closing.enter_context(Gateway(routes, self.functions.invoke)).url
        self.rest_api_url = self._closing.enter_context(Gateway(routes, self.functions.invoke, rest=True)).url
        if "SigningKeysSecret" in self.template.resources:
            self.put_keys(KEYS)

    def _invoke_api(self, request: Request) -> Response:
        return self.functions.invoke_api(request)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop everything that was started, newest first."""
        self._closing.close()

    @cached_property
    def outputs(self) -> dict[str, str]:
        """The stack's outputs."""
        return self.template.outputs()

    @property
    def queue_url(self) -> str:
        """Queue that the results go to."""
        return self.outputs["ResultsQueueUrl"]

    def client(self, service: str) -> Any:
        """A boto3 client of the sandbox's AWS, "lambda" included."""
        return self.aws.client(service)

    def invoke(self, logical_id: str, event: object) -> Invocation:
        """Invoke a function by its logical id and wait for the answer."""
        return self.functions.invoke(logical_id, event)

    def log(self, logical_id: str) -> str:
        """Everything that a function has written."""
        return self.functions.log(logical_id)

    @property
    def logs(self) -> str:
        """Everything that all functions have written."""
        return "".join(self.log(name) for name in self.functions.functions)

    def put_keys(self, keys: Keys) -> None:
        """Store a key pair in the stack's secret, as an operator does."""
        value = {"access_key_id": keys.access_key_id, "secret_access_key": keys.secret_access_key}
        if keys.session_token is not None:
            value["session_token"] = keys.session_token
        self.put_secret(json.dumps(value))

    def put_secret(self, text: str) -> None:
        """Store any text in the stack's secret."""
        secret_id = self.template.attributes("SigningKeysSecret")["Ref"]
        self.client("secretsmanager").put_secret_value(SecretId=secret_id, SecretString=text)

    def receive(self, at_least: int = 0, wait_seconds: float = 5, queue_url: str | None = None) -> list[dict[str, Any]]:
        """Take the raw messages off a queue: all there are, and waiting until there have been `at_least` so many."""
        sqs, url = self.client("sqs"), queue_url or self.queue_url
        received: list[dict[str, Any]] = []
        deadline = time.monotonic() + wait_seconds
        while True:
            answer = sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10, AttributeNames=["All"])
            batch = answer.get("Messages", [])
            for message in batch:
                sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
            received += batch
            if not batch and (len(received) >= at_least or time.monotonic() > deadline):
                return received
            if not batch:
                time.sleep(0.02)

    def receive_messages(self, at_least: int = 0) -> list[dict[str, Any]]:
        """Take the messages off the results queue, parsed."""
        return [json.loads(message["Body"]) for message in self.receive(at_least)]
