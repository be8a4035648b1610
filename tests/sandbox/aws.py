"""AWS on loopback: moto's server, the resources of the template in it, and limits that moto does not enforce."""

import json
import logging
import os
import re
import socket
import threading
from collections import defaultdict, deque
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from typing import Any
from uuid import uuid4

import boto3
import moto.sqs.models
from botocore.config import Config
from moto.core.config import default_user_config
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.stepfunctions.parser.asl.component.state.exec.state_task import lambda_eval_utils
from moto.stepfunctions.parser.asl.parse.asl_parser import AmazonStateLanguageParser
from moto.stepfunctions.parser.asl.utils import json_path
from werkzeug.test import EnvironBuilder, run_wsgi_app

from tests.sandbox.functions import ACCOUNT_ID, FUNCTION_PREFIX, INVOKE_PREFIX
from tests.sandbox.server import LoopbackServer, Request, Response

MAX_FIFO_ID_CHARACTERS = 128
# Moto checks its form and no more.
ROLE = f"arn:aws:iam::{ACCOUNT_ID}:role/sandbox"
# Some partitions of AWS still have this maximum by default.
vars(moto.sqs.models)["MAXIMUM_MESSAGE_LENGTH"] = 256 * 1024
# Moto parses the definition for each execution and a path for each state, and makes a client for each task.
AmazonStateLanguageParser.parse = staticmethod(cache(AmazonStateLanguageParser.parse))  # type: ignore[method-assign]
vars(json_path)["parse"] = cache(vars(json_path)["parse"])
_make_client: Callable[..., Any] = vars(lambda_eval_utils)["boto_client_for"]
_client_on_port = cache(lambda port, **names: _make_client(**names))
vars(lambda_eval_utils)["boto_client_for"] = lambda *, region, service, **_: _client_on_port(
    os.environ["MOTO_PORT"], region=region, service=service
)

# A reply is an answer in place of AWS's: status and body. An interceptor gets the operation, such as
# "AmazonSQS.SendMessageBatch", and the request, and returns a reply, or None to let the call through.
Reply = tuple[int, dict[str, Any]]
Interceptor = Callable[[str, dict[str, Any]], Reply | None]


def failure(code: str, status: int = 400, message: str = "made by the sandbox") -> Reply:
    """An error of AWS's JSON protocols."""
    return status, {"__type": f"com.amazonaws#{code}", "message": message, "Message": message}


def _check_fifo_ids(operation: str, call: dict[str, Any]) -> Reply | None:
    """Refuse ids that SQS refuses and moto accepts."""
    entries = call.get("Entries", [call]) if operation.startswith("AmazonSQS.SendMessage") else []
    ids = [entry.get(name, "") for entry in entries for name in ("MessageGroupId", "MessageDeduplicationId")]
    return failure("InvalidParameterValue") if any(len(text) > MAX_FIFO_ID_CHARACTERS for text in ids) else None


class Aws:
    """The server, its clients, and an interceptor that can make a call fail."""

    def __init__(self, region: str, invoke_api: Callable[[Request], Response], port: int = 0) -> None:
        # Moto reports each error that a state machine raises, caught errors included.
        logging.getLogger("moto.stepfunctions").setLevel(logging.CRITICAL)
        default_user_config["stepfunctions"]["execute_state_machine"] = True
        self.region = region
        self.intercept: Interceptor = lambda operation, call: None
        self.next_replies: dict[str, deque[Reply]] = defaultdict(deque)
        self.invoke_api = invoke_api
        self._table_lock = threading.Lock()
        self._moto = DomainDispatcherApplication(create_backend_app)
        # As AWS does, it keeps connections; the server that moto brings does not.
        self.server = LoopbackServer(self._answer, port)
        self.url, self.stop = self.server.url, self.server.stop

    def client(self, service: str) -> Any:
        """A boto3 client that talks to this server."""
        make: Callable[..., Any] = boto3.client
        return make(
            service,
            region_name=self.region,
            endpoint_url=self.url,
            aws_access_key_id="sandbox",
            aws_secret_access_key="sandbox",
            config=Config(proxies={}, retries={"total_max_attempts": 1}, read_timeout=900),
        )

    def fail_next(self, operation: str, *replies: Reply) -> None:
        """Answer the next calls of an operation, such as "secretsmanager.GetSecretValue", with these replies."""
        self.next_replies[operation].extend(replies)

    def _answer(self, request: Request, _: socket.socket) -> Response:
        operation, path, body = request.header("X-Amz-Target"), request.path, request.body
        if path.startswith(INVOKE_PREFIX) and path.endswith("/invocations"):
            return self.invoke_api(request)
        call = json.loads(body or b"{}") if operation else {}
        if operation == "AWSStepFunctions.StartExecution":
            # The state machine's own calls go there.
            os.environ |= {"MOTO_PORT": self.url.rpartition(":")[2], "no_proxy": "localhost"}
            # Moto gives all executions without a name the same name.
            body = json.dumps({"name": uuid4().hex, **call}).encode()
        prepared = self.next_replies[operation]
        reply = prepared.popleft() if prepared else self.intercept(operation, call) or _check_fifo_ids(operation, call)
        if reply:
            return Response(reply[0], json.dumps(reply[1]).encode(), [("Content-Type", "application/x-amz-json-1.1")])
        headers = [(name, value) for name, value in request.headers if name.lower() != "content-length"]
        asked = EnvironBuilder(request.target, self.url, method=request.method, headers=headers, data=body)
        # Moto reads and writes an item in two steps; DynamoDB's conditional writes are atomic.
        with self._table_lock if operation.startswith("DynamoDB") else nullcontext():
            parts, status, answer_headers = run_wsgi_app(self._moto, asked.get_environ(), buffered=True)
        return Response(int(status.split()[0]), b"".join(parts), list(answer_headers))

    def create(self, stack_name: str, logical_id: str, kind: str, properties: dict[str, Any]) -> dict[str, str]:
        """Make one resource of the template; returns the answers of Ref and GetAtt."""
        name = f"{stack_name}-{logical_id}"
        match kind:
            case "AWS::SQS::Queue":
                return self.create_queue(name, properties)
            case "AWS::SecretsManager::Secret":
                return {"Ref": self.client("secretsmanager").create_secret(Name=name)["ARN"]}
            case "AWS::DynamoDB::Table":
                supported = {"AttributeDefinitions", "BillingMode", "GlobalSecondaryIndexes", "KeySchema"}
                given = {key: properties[key] for key in properties.keys() & supported}
                table = self.client("dynamodb").create_table(TableName=name, **given)["TableDescription"]
                return {"Ref": name, "Arn": table["TableArn"]}
            case "AWS::StepFunctions::StateMachine":
                values = properties["DefinitionSubstitutions"]
                definition = re.sub(r"\$\{(\w+)\}", lambda found: values[found[1]], properties["DefinitionString"])
                make = self.client("stepfunctions").create_state_machine
                return {"Ref": make(name=name, definition=definition, roleArn=ROLE)["stateMachineArn"]}
            case "AWS::Lambda::Alias":
                return {"Ref": f"{FUNCTION_PREFIX}{properties['FunctionName']}:{properties['Name']}"}
        # Functions run elsewhere; roles, log groups, layers and schedules have no effect here: their names are enough.
        _, service, resource = kind.lower().split("::")
        endpoint = f"https://sandbox.execute-api.{self.region}.amazonaws.com"
        arn = f"arn:aws:{service}:{self.region}:{ACCOUNT_ID}:{resource}:{name}"
        return {"Ref": name, "Arn": arn, "ApiEndpoint": endpoint, "Version": "1"}

    def create_queue(self, name: str, properties: dict[str, Any]) -> dict[str, str]:
        """Make a queue from CloudFormation's properties; a FIFO queue gets the suffix of its name."""
        texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in properties.items()}
        sqs = self.client("sqs")
        url = sqs.create_queue(QueueName=name + ".fifo" * ("FifoQueue" in texts), Attributes=texts)["QueueUrl"]
        arn = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
        return {"Ref": url, "Arn": arn, "QueueName": arn.rpartition(":")[2]}
