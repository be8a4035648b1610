"""Each function calls AWS just as its role allows, and writes the metrics that alarms and widgets name."""

import json
import re
import socket
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.e2e.http import Http
from tests.sandbox.aws import Interceptor, Reply, failure
from tests.sandbox.samples import sample
from tests.sandbox.server import Request, Response
from tests.sandbox.signatures import signed
from tests.sandbox.simulator import Exchange, Fault
from tests.sandbox.stack import Sandbox
from tests.unit.test_alarms import in_alarms, in_widgets
from tests.unit.test_policies import OF_EVENT_SOURCE, PERMISSIONS, allowed
from tests.unit.transformed import Template
from tests.vendor.faults import error

# Waits are in a room of their own: what ends in the other would leave them in doubt.
ROOM, HALL = "class-1", "hall-1"
TARGET = {"room_id": ROOM, "user_id": "teacher"}
PATH = f"/rooms/{ROOM}/users/teacher"
SERVICES = {
    "AmazonSQS": "sqs",
    "AWSStepFunctions": "states",
    "DynamoDB_20120810": "dynamodb",
    "secretsmanager": "secretsmanager",
}
UNUSED_HERE = {
    # The Lambda service keeps failed asynchronous invocations itself.
    ("InvocationDeadLetterQueue.Arn", "sqs:SendMessage"),
    # A recheck reads the hold if its slot is more than a second away, as at a low RtcQps.
    ("StateTable.Arn of limiter", "dynamodb:GetItem"),
}
# A recheck comes 6 s after the doubt, and the settings' skew is 5 s.
RECHECK_SECONDS, SKEW_SECONDS = 20, 5.5
SERVER_ERROR = failure("InternalError", 500)
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
    """By function: the actions that it used, each with its resource. A function signs with its own name."""
    functions, answer = cold.functions.functions, cold.aws.server.answer
    before = dict(functions)
    for name, function in before.items():
        functions[name] = replace(function, environment={**function.environment, "AWS_ACCESS_KEY_ID": name})
    outputs, callback = cold.outputs, functions["CallbackFunction"].environment
    resources = {
        outputs["StateTableName"]: "StateTable.Arn",
        outputs["ResultsQueueUrl"]: "ResultsQueue.Arn",
        outputs["SigningKeysSecretArn"]: "SigningKeysSecret",
        outputs["CallbackKeySecretArn"]: "CallbackKeySecret",
        callback["CALLBACK_RETRY_QUEUE_URL"]: "CallbackRetryQueue.Arn",
        callback["CALLBACK_DEAD_LETTER_QUEUE_URL"]: "CallbackDeadLetterQueue.Arn",
    }
    made: Calls = defaultdict(set)

    def record(request: Request, connection: socket.socket) -> Response | None:
        signer = re.search(r"Credential=(\w+)/", request.header("Authorization"))
        service, _, operation = request.header("X-Amz-Target").partition(".")
        if signer and signer[1] in before:
            call = json.loads(request.body)
            tables = call.get("RequestItems", {}).keys() or {call.get("TableName")}
            (named,) = {call.get("QueueUrl") or call.get("SecretId") or table for table in tables}
            # A task token names no resource.
            resource = "WaitForStream" if "taskToken" in call else resources[named]
            resource += f"/index/{call['IndexName']}" if "IndexName" in call else ""
            # Of the table, the other functions may use every partition, and remove waits by a permission of its own.
            is_of_waits = operation in {"Query", "DeleteItem"} and "'wait#" in str(call)
            if resource == "StateTable.Arn" and (signer[1] == "CallbackFunction" or is_of_waits):
                resource += f" of {partition(call)}"
            made[signer[1]].add((resource, f"{SERVICES[service]}:{PERMISSIONS.get(operation, operation)}"))
        return answer(request, connection)

    cold.aws.server.answer = record
    yield made
    cold.aws.server.answer = answer
    functions.update(before)


def partition(call: Mapping[str, Any]) -> str:
    """The partition key that a call to DynamoDB names, shortened as in the policies."""
    keys = re.findall(r"'pk': {'S': '([^']*)'}|':pk': {'S': '([^']*)'}", str(call))
    (found,) = {re.sub(r"^(state|wait|watch)#.*", r"\1#*", "".join(key)) for key in keys}
    return found


def fail(failing: str, reply: Reply = SERVER_ERROR) -> Interceptor:
    return lambda operation, call: reply if operation == failing else None


def meet(fault: Fault) -> Callable[[Exchange], Fault | None]:
    return lambda exchange: fault


def wait_until(condition: Callable[[], object], seconds: float = RECHECK_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def begin_wait(sandbox: Sandbox, user: str) -> None:
    """Leave a task token for the user's screen, which is not shared yet."""
    until = {
        "medium": "screen_video",
        "publishing": True,
        "started_at": datetime.now(UTC).isoformat(),
        "timeout_seconds": 600,
        "interval_seconds": 60,
    }
    wait = {"room_id": HALL, "user_id": user, "until": until}
    assert sandbox.invoke("TaskFunction", {"wait": wait, "token": "token", "wait_id": user}).error is None


def use_waits(sandbox: Sandbox, http: Http) -> None:
    """Let each function observe what a workflow waits for."""
    observe: dict[str, Callable[[], object]] = {
        "waiter-0": lambda: http.get(f"/rooms/{HALL}/users/waiter-0/stream-state"),
        "waiter-1": lambda: sandbox.invoke("TaskFunction", {"room_id": HALL, "user_id": "waiter-1"}),
        "waiter-2": lambda: sandbox.invoke("SweepFunction", {"targets": [{"room_id": HALL, "user_id": "waiter-2"}]}),
        # The event itself is the observation.
        "waiter-3": lambda: None,
    }
    for user, look in observe.items():
        begin_wait(sandbox, user)
        sandbox.simulator.push_to = sandbox.callback_url if user == "waiter-3" else None
        sandbox.simulator.publish(HALL, user, "ScreenVideo")
        look()
    sandbox.simulator.push_to = None


def use_everything(sandbox: Sandbox, http: Http) -> None:
    """Let each function do all that it can, rechecks included."""
    simulator, aws = sandbox.simulator, sandbox.aws
    # The end of the room is looked for with the first record of a user.
    strangers = [{"room_id": ROOM, "user_id": f"stranger-{number}"} for number in range(3)]
    for stranger in strangers:
        simulator.publish(ROOM, stranger["user_id"])
    doubts = [{"room_id": ROOM, "user_id": f"doubt-{number}"} for number in range(3)]
    simulator.push_to = sandbox.callback_url
    for user in ("teacher", "student", *(doubt["user_id"] for doubt in doubts)):
        simulator.publish(ROOM, user, "Audio")
    # The stops are lost: each function sees a query that disagrees with an event of this moment.
    simulator.push_to = None
    for doubt in doubts:
        simulator.publish(ROOM, doubt["user_id"], "Audio", on=False)
    assert http.get(f"/rooms/{ROOM}/users/doubt-0/stream-state").status == 200
    for function, doubt in zip(("TaskFunction", "SweepFunction"), doubts[1:], strict=True):
        assert sandbox.invoke(function, doubt).error is None
    simulator.push_to = sandbox.callback_url
    assert http.get(f"{PATH}/stream-state").status == 200
    assert http.get(f"{PATH}/stream-state?max_age=60").body["source"] == "table"
    assert http.get(f"/rooms/{ROOM}/stream-states").status == 200
    assert http.put(f"{PATH}/watch").status == 200
    assert http.get("/watches").status == 200
    for function, event in (
        ("TaskFunction", {**TARGET, "max_age": 60}),
        ("TaskFunction", {**TARGET, "deliver": "queue"}),
        ("TaskFunction", strangers[1]),
        ("SweepFunction", {"targets": [TARGET]}),
        ("SweepFunction", strangers[2]),
        ("SweepFunction", {}),
    ):
        assert sandbox.invoke(function, event).error is None
    # The sweep looks up the records of users whose query failed.
    simulator.fault = meet(error("AccessDenied", 403))
    sandbox.invoke("SweepFunction", {})
    simulator.fault = lambda exchange: None
    # The retry queue keeps an event that the results queue does not accept.
    aws.intercept = fail("AmazonSQS.SendMessageBatch")
    simulator.publish(ROOM, "student", "Video")
    aws.intercept = lambda operation, call: None
    # A message of the retry queue whose signature fits no key is dead-lettered at its third receipt.
    batch = sample("callback/retry-queue.json")
    for carrier in batch["Records"]:
        carrier["body"] = json.dumps({**json.loads(carrier["body"]), "Signature": "0"})
        carrier["attributes"]["ApproximateReceiveCount"] = "3"
    assert sandbox.invoke("CallbackFunction", batch).payload == {"batchItemFailures": []}
    # The next callback event delivers the change that the API function saw.
    assert http.get(f"/rooms/{ROOM}/users/stranger-0/stream-state").status == 200
    # A leave just after a start leaves a doubt, and the callback function asks the vendor.
    before = len(simulator.arrivals)
    simulator.leave(ROOM, "student")
    wait_until(lambda: len(simulator.arrivals) > before)
    for other in (TARGET, *strangers, *doubts):
        simulator.leave(ROOM, other["user_id"])
    assert http.delete(f"{PATH}/watch").status == 204
    # The board looks up watched users who are not among the first of their room, and rooms without watches.
    for number in range(21):
        simulator.join("hall", f"user-{number}")
    assert sandbox.invoke("BoardFunction", {}).error is None
    simulator.push_to = None


def test_each_function_uses_all_that_it_may_and_nothing_else(calls: Calls, cold: Sandbox, http: Http) -> None:
    use_waits(cold, http)
    use_everything(cold, http)

    used = {(f"{function}Role", *call) for function, made in calls.items() for call in made}
    granted = {
        (role, resource, action)
        for role, resource, action in allowed(Template(**OPTIONS))
        if role.endswith("FunctionRole") and action.startswith(tuple(SERVICES.values()))
        if action not in OF_EVENT_SOURCE and (resource, action) not in UNUSED_HERE
    }
    assert used == granted


def metrics(logs: str) -> Iterator[tuple[str, str, dict[str, str]]]:
    """The metrics in the logs of functions, in CloudWatch's embedded metric format."""
    for line in logs.splitlines():
        document = json.loads(line) if line.startswith('{"_aws"') else {"_aws": {"CloudWatchMetrics": []}}
        for directive in document["_aws"]["CloudWatchMetrics"]:
            (names,) = directive["Dimensions"]
            for metric in directive["Metrics"]:
                yield directive["Namespace"], metric["Name"], {name: document[name] for name in names}


def use_what_fails(sandbox: Sandbox, http: Http) -> None:
    """Let the vendor, the keys, the rate limiter and AWS fail in each way that an alarm is for."""
    simulator, aws = sandbox.simulator, sandbox.aws
    limiter = {"TableName": sandbox.outputs["StateTableName"], "Key": {"pk": {"S": "limiter"}, "sk": {"S": "rtc"}}}
    update = sandbox.client("dynamodb").update_item
    for user, reply in (("waiter-4", SERVER_ERROR), ("waiter-5", (200, {}))):
        begin_wait(sandbox, user)
        aws.intercept = fail("AWSStepFunctions.SendTaskSuccess", reply)
        simulator.publish(HALL, user, "ScreenVideo")
        assert http.get(f"/rooms/{HALL}/users/{user}/stream-state").status == 200
    aws.intercept = lambda operation, call: None
    # The join has the user watched, and a sweep corrects the start later, since its stop gets lost.
    simulator.push_to = sandbox.callback_url
    simulator.publish(ROOM, "assistant", "Audio")
    simulator.push_to = None
    simulator.publish(ROOM, "assistant", "Audio", on=False)
    published_at = time.monotonic()
    for refusal in REFUSALS:
        simulator.fault = meet(refusal)
        assert http.get(f"{PATH}/stream-state").status >= 400 or refusal is RETIRED
        update(**limiter, UpdateExpression="REMOVE hold_until")
    simulator.fault = lambda exchange: None
    update(**limiter, UpdateExpression="SET hold_until = :until", ExpressionAttributeValues={":until": {"N": "9" * 10}})
    assert http.get(f"{PATH}/stream-state").status == 429
    update(**limiter, UpdateExpression="REMOVE hold_until")
    event, callback_http = (
        json.loads(sample("callback/stream-start-http-api.json")["body"]),
        Http(sandbox.callback_api_url),
    )
    assert callback_http.post("/callbacks/rtc", {**event, "Signature": "0"}).status == 401
    assert callback_http.post("/callbacks/rtc", []).status == 400
    assert callback_http.post("/callbacks/rtc", json.loads(signed({**event, "AppId": "another"}))).status == 403
    assert callback_http.post("/callbacks/rtc", {**event, "Nonce": "x" * 300_000}).status == 413
    assert callback_http.post("/callbacks/rtc", json.loads(signed({**event, "EventType": "RoomRenamed"}))).status == 200
    for operation in ("DynamoDB_20120810.PutItem", "AmazonSQS.SendMessageBatch"):
        aws.intercept = fail(operation)
        sandbox.invoke("TaskFunction", {**TARGET, "deliver": "queue"})
    for code in ("InternalServiceError", "AccessDeniedException"):
        sandbox.functions.restart()
        aws.intercept = fail("secretsmanager.GetSecretValue", failure(code))
        assert http.get(f"{PATH}/stream-state").status >= 500
        assert callback_http.post("/callbacks/rtc", event).status == 503
    aws.intercept = lambda operation, call: None
    time.sleep(max(published_at + SKEW_SECONDS - time.monotonic(), 0))
    assert sandbox.invoke("SweepFunction", {}).error is None


def test_what_alarms_and_widgets_name_is_written_by_the_functions(cold: Sandbox, http: Http) -> None:
    use_everything(cold, http)
    use_what_fails(cold, http)

    template = Template(**OPTIONS)
    written = [(name, of) for namespace, name, of in metrics(cold.logs) if namespace == "StreamState"]
    missing = {
        " ".join([name, *of.values()])
        for namespace, name, of in in_alarms(template) + in_widgets(template)
        if namespace == "StreamState"
        # A search finds every value of a dimension.
        and not any(
            name == other and of.keys() == found.keys() and all(found[key] == of[key] or not of[key] for key in of)
            for other, found in written
        )
    }
    assert missing == set()
