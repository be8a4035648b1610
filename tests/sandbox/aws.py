"""AWS on loopback: moto's server, the resources of the template made in it, and the limits that moto lacks."""

import io
import json
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import boto3
from botocore.config import Config
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

from tests.sandbox.functions import ACCOUNT_ID, INVOKE_PREFIX
from tests.sandbox.server import Request, Response

MAX_BATCH_ENTRIES = 10
# Of one message, and of all messages of a batch: the smallest maximum that a queue has by default anywhere.
MAX_MESSAGE_BYTES = 256 * 1024
MAX_FIFO_ID_CHARACTERS = 128

# A reply stands in for AWS's: status and body. An interceptor sees the operation ("AmazonSQS.SendMessageBatch") and
# the request, and returns a reply, or None to let the call through.
Reply = tuple[int, dict[str, Any]]
Interceptor = Callable[[str, dict[str, Any]], Reply | None]


def failure(code: str, status: int = 400, message: str = "made by the sandbox") -> Reply:
    """An error of AWS's JSON protocols."""
    return status, {"__type": f"com.amazonaws#{code}", "message": message, "Message": message}


def _check_sqs(operation: str, call: dict[str, Any]) -> Reply | None:
    """What SQS refuses and moto would accept."""
    if operation not in ("AmazonSQS.SendMessage", "AmazonSQS.SendMessageBatch"):
        return None
    entries: list[dict[str, Any]] = call.get("Entries", [call])
    if len(entries) > MAX_BATCH_ENTRIES:
        return failure("TooManyEntriesInBatchRequest", message=f"{len(entries)} entries, {MAX_BATCH_ENTRIES} at most")
    size = sum(len(str(entry.get("MessageBody", "")).encode()) for entry in entries)
    if size > MAX_MESSAGE_BYTES:
        kind = "BatchRequestTooLong" if "Entries" in call else "InvalidParameterValue"
        return failure(kind, message=f"{size} bytes, {MAX_MESSAGE_BYTES} at most")
    for entry in entries:
        for name in ("MessageGroupId", "MessageDeduplicationId"):
            if len(entry.get(name, "")) > MAX_FIFO_ID_CHARACTERS:
                return failure("InvalidParameterValue", message=f"{name} has over {MAX_FIFO_ID_CHARACTERS} characters")
    return None


class Aws:
    """The server, its clients, and the interceptors that make a call fail."""

    def __init__(self, region: str, invoke_api: Callable[[Request], Response]) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.region = region
        self.intercept: Interceptor = lambda operation, call: None
        self._next: dict[str, deque[Reply]] = {}
        self._invoke_api = invoke_api
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._application, threaded=True, request_handler=MotoRequestHandler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop the server."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def client(self, service: str) -> Any:
        """A boto3 client that talks to this server."""
        connect: Any = boto3.client
        return connect(
            service,
            region_name=self.region,
            endpoint_url=self.url,
            aws_access_key_id="sandbox",
            aws_secret_access_key="sandbox",
            config=Config(proxies={}, retries={"total_max_attempts": 1}, read_timeout=900),
        )

    def fail_next(self, operation: str, *replies: Reply) -> None:
        """Let the next calls of an operation, such as "secretsmanager.GetSecretValue", get these replies."""
        self._next.setdefault(operation, deque()).extend(replies)

    def _application(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        operation = environ.get("HTTP_X_AMZ_TARGET", "")
        invocation = environ["PATH_INFO"].startswith(INVOKE_PREFIX)
        if not operation and not invocation:
            return self._moto(environ, start_response)
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        if invocation:
            kind = ("X-Amz-Invocation-Type", environ.get("HTTP_X_AMZ_INVOCATION_TYPE", ""))
            response = self._invoke_api(Request("POST", environ["PATH_INFO"], [kind], body))
            start_response(f"{response.status} -", response.headers)
            return [response.body]
        environ["wsgi.input"] = io.BytesIO(body)
        call = json.loads(body or b"{}")
        prepared = self._next.get(operation)
        reply = prepared.popleft() if prepared else self.intercept(operation, call) or _check_sqs(operation, call)
        if reply is None:
            return self._moto(environ, start_response)
        start_response(f"{reply[0]} -", [("Content-Type", "application/x-amz-json-1.1")])
        return [json.dumps(reply[1]).encode()]

    def create(self, stack_name: str, logical_id: str, kind: str, properties: dict[str, Any]) -> dict[str, str]:
        """Make one resource of the template; what Ref and GetAtt answer for it."""
        name = f"{stack_name}-{logical_id}"
        match kind:
            case "AWS::SQS::Queue":
                return self.create_queue(name, properties)
            case "AWS::SecretsManager::Secret":
                given = {key: properties[key] for key in ("Description", "SecretString") if key in properties}
                arn = self.client("secretsmanager").create_secret(Name=properties.get("Name", name), **given)["ARN"]
                return {"Ref": arn, "Id": arn}
            case "AWS::DynamoDB::Table":
                return self._create_table(properties.get("TableName", name), properties)
            case "AWS::Lambda::Function":
                return {"Ref": name, "Arn": f"arn:aws:lambda:{self.region}:{ACCOUNT_ID}:function:{name}"}
            case "AWS::ApiGatewayV2::Api":
                return {"Ref": "sandbox", "ApiEndpoint": f"https://sandbox.execute-api.{self.region}.amazonaws.com"}
        # The others (roles, log groups, layers, schedules) have no effect here; only their names are needed.
        service = kind.split("::")[1].lower()
        return {"Ref": name, "Arn": f"arn:aws:{service}:{self.region}:{ACCOUNT_ID}:{name}"}

    def create_queue(self, name: str, properties: dict[str, Any]) -> dict[str, str]:
        """Make a queue from CloudFormation's properties; a FIFO queue gets the suffix of its name."""
        suffix = ".fifo" if properties.get("FifoQueue") in (True, "true") else ""
        attributes = {
            key: value if isinstance(value, str) else json.dumps(value)
            for key, value in properties.items()
            if key not in ("QueueName", "Tags")
        }
        sqs = self.client("sqs")
        url = sqs.create_queue(QueueName=properties.get("QueueName", name + suffix), Attributes=attributes)["QueueUrl"]
        arn = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
        return {"Ref": url, "QueueUrl": url, "Arn": arn, "QueueName": arn.rpartition(":")[2]}

    def _create_table(self, name: str, properties: dict[str, Any]) -> dict[str, str]:
        dynamodb = self.client("dynamodb")
        known = ("AttributeDefinitions", "BillingMode", "GlobalSecondaryIndexes", "KeySchema", "LocalSecondaryIndexes")
        made = dynamodb.create_table(TableName=name, **{key: properties[key] for key in known if key in properties})
        if expiry := properties.get("TimeToLiveSpecification"):
            dynamodb.update_time_to_live(TableName=name, TimeToLiveSpecification=expiry)
        return {"Ref": name, "Arn": made["TableDescription"]["TableArn"]}
