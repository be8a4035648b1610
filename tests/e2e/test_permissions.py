"""Each function calls AWS just as its role allows, and writes the metrics that alarms and widgets name."""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest

from tests.e2e.http import Http
from tests.sandbox.aws import failure
from tests.sandbox.demonstration import sample
from tests.sandbox.simulator import error
from tests.sandbox.stack import Sandbox
from tests.unit.test_alarms import alarms, of_alarm, of_widget, widgets
from tests.unit.test_policies import OF_EVENT_SOURCE, PERMISSIONS, allowed
from tests.unit.transformed import Template

ROOM = "class-1"
TARGET = {"room_id": ROOM, "user_id": "teacher"}
PATH = f"/rooms/{ROOM}/users/teacher"
SERVICES = {"AmazonSQS": "sqs", "DynamoDB_20120810": "dynamodb", "secretsmanager": "secretsmanager"}
# What is used without the function calling it: failed asynchronous invocations are kept by the Lambda service.
OF_LAMBDA = {("InvocationDeadLetterQueue.Arn", "sqs:SendMessage")}
RETIRED = error("InvalidActionOrVersion", 404)
REFUSALS = (
    error("AccessDenied", 403),
    error("InvalidParameter", 400),
    error("InternalError", 500),
    error("FlowLimitExceeded", 429),
    error("none that is listed", 418),
    RETIRED,
)
OPTIONS = {"EnableCallbacks": "true", "AutoWatch": "true"}

type Calls = dict[str, set[tuple[str, str]]]


@pytest.fixture(scope="module")
def parameters() -> Mapping[str, str]:
    return OPTIONS


@pytest.fixture(scope="module")
def environment() -> Mapping[str, str]:
    return {"SECRET_MAX_AGE": "0", "POWERTOOLS_SERVICE_NAME": "stack"}


@pytest.fixture
def calls(cold: Sandbox) -> Iterator[Calls]:
    """By function: the actions it has used, each with its resource. A function signs with its own name."""
    functions, application = cold.functions.functions, cold.aws._moto
    before = dict(functions)
    for name, function in before.items():
        functions[name] = replace(function, environment={**function.environment, "AWS_ACCESS_KEY_ID": name})
    outputs = cold.outputs
    resources = {
        outputs["StateTableName"]: "StateTable.Arn",
        outputs["ResultsQueueUrl"]: "ResultsQueue.Arn",
        outputs["SigningKeysSecretArn"]: "SigningKeysSecret",
        outputs["CallbackKeySecretArn"]: "CallbackKeySecret",
        functions["CallbackFunction"].environment["CALLBACK_RETRY_QUEUE_URL"]: "CallbackRetryQueue.Arn",
    }
    made: Calls = defaultdict(set)

    def record(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        body = environ["wsgi.input"].read()
        environ["wsgi.input"].seek(0)
        signer = re.search(r"Credential=(\w+)/", environ.get("HTTP_AUTHORIZATION", ""))
        service, _, operation = environ.get("HTTP_X_AMZ_TARGET", "").partition(".")
        if signer and signer[1] in before:
            call = json.loads(body)
            tables = call.get("RequestItems", {}).keys() or {call.get("TableName")}
            (named,) = {call.get("QueueUrl") or call.get("SecretId") or table for table in tables}
            action = f"{SERVICES[service]}:{PERMISSIONS.get(operation, operation)}"
            # Of the table, the others may use every partition.
            bounds = (
                f" of {partition(call)}" if service.startswith("Dynamo") and signer[1] == "CallbackFunction" else ""
            )
            made[signer[1]].add((resources[named] + bounds, action))
        return application(environ, start_response)  # type: ignore[no-any-return]

    cold.aws._moto = record
    yield made
    cold.aws._moto = application
    functions.update(before)


def partition(call: Mapping[str, Any]) -> str:
    """The partition key that a call to DynamoDB names, shortened as in the policies."""
    (found,) = set(re.findall(r"'pk': {'S': '([^']*)'}|':pk': {'S': '([^']*)'}", str(call)))
    return re.sub(r"^state#.*", "state#*", "".join(found))


def use_everything(sandbox: Sandbox, http: Http) -> None:
    """Let each function do all that it can."""
    simulator, aws = sandbox.simulator, sandbox.aws
    # Of whom nothing is known: then the end of the room is looked for.
    strangers = [{"room_id": ROOM, "user_id": f"stranger-{number}"} for number in range(2)]
    for stranger in strangers:
        simulator.publish(**stranger)
    simulator.push_to = f"{sandbox.api_url}/callbacks/rtc"
    for user in ("teacher", "student"):
        simulator.publish(ROOM, user, "Audio")
    assert http.get(f"{PATH}/stream-state").status == 200
    assert http.get(f"{PATH}/stream-state?max_age=60").body["source"] == "table"
    assert http.get(f"/rooms/{ROOM}/stream-states").status == 200
    assert http.put(f"{PATH}/watch").status == 200
    assert http.get("/watches").status == 200
    for function, event in (
        ("TaskFunction", {**TARGET, "max_age": 60}),
        ("TaskFunction", {**TARGET, "deliver": "queue"}),
        ("TaskFunction", strangers[0]),
        ("SweepFunction", {"targets": [TARGET]}),
        ("SweepFunction", strangers[1]),
        ("SweepFunction", {}),
    ):
        assert sandbox.invoke(function, event).error is None
    # What failed is looked up by the sweep; what the queue does not take is parked; the end of a room concerns all.
    simulator.fault = lambda exchange: error("AccessDenied", 403)
    sandbox.invoke("SweepFunction", {})
    simulator.fault = lambda exchange: None
    aws.intercept = lambda operation, call: failure("InternalError", 500) if "SendMessageBatch" in operation else None
    simulator.publish(ROOM, "student", "Video")
    aws.intercept = lambda operation, call: None
    for user in ("teacher", "student", "stranger-0", "stranger-1"):
        simulator.leave(ROOM, user)
    assert http.delete(f"{PATH}/watch").status == 204
    simulator.push_to = None


def test_each_function_uses_all_that_it_may_and_nothing_else(calls: Calls, cold: Sandbox, http: Http) -> None:
    use_everything(cold, http)

    may = allowed(Template(**OPTIONS))
    for function in cold.functions.functions:
        granted = {
            (resource, action)
            for resource, actions in may[f"{function}Role"].items()
            for action in actions - OF_EVENT_SOURCE
            if action.startswith(tuple(SERVICES.values()))
        }
        assert calls[function] == granted - OF_LAMBDA, function


def metrics(logs: str) -> Iterator[tuple[str, str, dict[str, str]]]:
    """The metrics in what functions have written, in CloudWatch's embedded metric format."""
    for line in logs.splitlines():
        document = json.loads(line) if line.startswith('{"_aws"') else {"_aws": {"CloudWatchMetrics": []}}
        for directive in document["_aws"]["CloudWatchMetrics"]:
            (names,) = directive["Dimensions"]
            for metric in directive["Metrics"]:
                yield directive["Namespace"], metric["Name"], {name: document[name] for name in names}


def use_what_fails(sandbox: Sandbox, http: Http) -> None:
    """Let the vendor, the keys, the limit and AWS fail in each way that an alarm is for."""
    simulator, aws = sandbox.simulator, sandbox.aws
    limiter = {"TableName": sandbox.outputs["StateTableName"], "Key": {"pk": {"S": "limiter"}, "sk": {"S": "rtc"}}}
    update = sandbox.client("dynamodb").update_item
    # Given an event that was followed by one that got lost.
    assert http.put(f"{PATH}/watch").status == 200
    simulator.push_to = f"{sandbox.api_url}/callbacks/rtc"
    simulator.publish(ROOM, "teacher", "Audio")
    simulator.push_to = None
    simulator.publish(ROOM, "teacher", "Audio", on=False)
    assert sandbox.invoke("SweepFunction", {}).error is None
    for refusal in REFUSALS:
        simulator.fault = lambda exchange, refusal=refusal: refusal
        assert http.get(f"{PATH}/stream-state").status >= 400 or refusal is RETIRED
        update(**limiter, UpdateExpression="REMOVE hold_until")
    simulator.fault = lambda exchange: None
    update(**limiter, UpdateExpression="SET hold_until = :until", ExpressionAttributeValues={":until": {"N": "9" * 10}})
    assert http.get(f"{PATH}/stream-state").status == 429
    update(**limiter, UpdateExpression="REMOVE hold_until")
    event = json.loads(sample("callback/stream-start-http-api.json")["body"])
    assert http.post("/callbacks/rtc", {**event, "Signature": "0"}).status == 401
    for operation in ("DynamoDB_20120810.PutItem", "AmazonSQS.SendMessageBatch"):
        aws.intercept = lambda called, call, operation=operation: (
            failure("InternalError", 500) if called == operation else None
        )
        sandbox.invoke("TaskFunction", {**TARGET, "deliver": "queue"})
    for code in ("InternalServiceError", "AccessDeniedException"):
        sandbox.functions.restart()
        aws.intercept = lambda called, call, code=code: failure(code) if called.startswith("secretsmanager") else None
        assert http.get(f"{PATH}/stream-state").status >= 500
    aws.intercept = lambda operation, call: None


def test_what_alarms_and_widgets_name_is_written_by_the_functions(cold: Sandbox, http: Http) -> None:
    use_everything(cold, http)
    use_what_fails(cold, http)

    template = Template(**OPTIONS)
    named = [metric for alarm in alarms(template).values() for metric in of_alarm(alarm)]
    named += [metric for widget in widgets(template) for metric in of_widget(widget)]
    written = [(name, of) for namespace, name, of in metrics(cold.logs) if namespace == "StreamState"]
    missing = {
        " ".join([name, *of.values()])
        for namespace, name, of in named
        if namespace == "StreamState"
        # A search finds every value of a dimension.
        and not any(
            name == other and of.keys() == found.keys() and all(found[key] == of[key] or not of[key] for key in of)
            for other, found in written
        )
    }
    assert missing == set()
