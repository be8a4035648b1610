"""The consumer of docs/queue.md, run on real messages."""

import json
import re
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import boto3
import pytest

from tests.sandbox.aws import failure
from tests.sandbox.functions import REGION
from tests.sandbox.stack import REPOSITORY, Sandbox
from tests.vendor.faults import error

PAGE = REPOSITORY / "docs" / "queue.md"
TARGETS = [{"room_id": "class-1", "user_id": user} for user in ("teacher", "student", "nobody")]


@pytest.fixture
def consumer(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The page's code as a module, with a table of its own."""
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    (code,) = [block for block in blocks if "batchItemFailures" in block]
    dynamodb = sandbox.client("dynamodb")
    dynamodb.create_table(
        TableName="latest",
        AttributeDefinitions=[{"AttributeName": "pk", "AttributeType": "S"}],
        KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}],
        BillingMode="PAY_PER_REQUEST",
    )
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    own = {"LATEST_TABLE": "latest", "AWS_ENDPOINT_URL": sandbox.aws.url, "NO_PROXY": "127.0.0.1"}
    aws = dict.fromkeys(("AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), REGION)
    for name, value in {**own, **aws}.items():
        monkeypatch.setenv(name, value)
    module = ModuleType("consumer_of_the_page")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(code, PAGE, "exec"), vars(module))  # noqa: S102  # it is what the test is about
    yield module
    dynamodb.delete_table(TableName="latest")


def batch(raw: list[dict[str, Any]]) -> dict[str, Any]:
    """Messages as Lambda hands them to a consumer."""
    records = [
        {"messageId": message["MessageId"], "body": message["Body"], "eventSource": "aws:sqs"} for message in raw
    ]
    return {"Records": records}


def kept(sandbox: Sandbox) -> dict[str, dict[str, Any]]:
    """The message that the consumer's table holds of each user."""
    items = sandbox.client("dynamodb").scan(TableName="latest")["Items"]
    messages = [json.loads(item["last_message"]["S"]) for item in items if "last_message" in item]
    return {message["user_id"]: message for message in messages}


def sweep(sandbox: Sandbox) -> list[dict[str, Any]]:
    """The raw messages of a sweep."""
    sandbox.invoke("SweepFunction", {"targets": TARGETS, "emit": "changes"})
    return sandbox.receive()


@pytest.fixture
def history(sandbox: Sandbox) -> list[dict[str, Any]]:
    """The messages of the queue while the room changed."""
    sandbox.simulator.publish("class-1", "student")
    raw = []
    for on in (True, False, True):
        sandbox.simulator.publish("class-1", "teacher", "Audio", on=on)
        raw += sweep(sandbox)
    assert len(raw) == 5
    return raw


def test_it_keeps_the_latest_message_of_each_user(sandbox: Sandbox, consumer: ModuleType, history: list[Any]) -> None:
    newest_first = sorted(history, key=lambda message: -json.loads(message["Body"])["sequence"])

    # Repeats and older messages are dropped.
    for raw in (history, newest_first + history):
        assert consumer.lambda_handler(batch(raw), None) == {"batchItemFailures": []}

        publishing = {user: message["publishing"] for user, message in kept(sandbox).items()}
        assert publishing == {"teacher": True, "student": False, "nobody": None}
    before, message = kept(sandbox), json.loads(history[0]["Body"])
    assert before["nobody"]["present"] is False
    consumer.keep({**message, "id": "0" * 64, "sequence": message["sequence"] - 1, "publishing": None})
    assert kept(sandbox) == before


def test_it_accepts_problems_too(sandbox: Sandbox, consumer: ModuleType) -> None:
    sandbox.simulator.fault = lambda exchange: error("InvalidParameter", 400)
    raw = sweep(sandbox)

    assert len(raw) == 3
    assert consumer.lambda_handler(batch(raw), None) == {"batchItemFailures": []}
    assert kept(sandbox) == {}


def test_it_reports_the_messages_that_failed(sandbox: Sandbox, consumer: ModuleType, history: list[Any]) -> None:
    broken = {**history[0], "MessageId": "broken", "Body": "{"}
    event = batch([history[1], broken, history[2]])

    assert consumer.lambda_handler(event, None) == {"batchItemFailures": [{"itemIdentifier": "broken"}]}
    assert len(kept(sandbox)) == 2


def test_a_table_that_fails_leaves_the_message_in_the_queue(
    sandbox: Sandbox, consumer: ModuleType, history: list[Any]
) -> None:
    sandbox.aws.intercept = lambda operation, call: failure("AccessDeniedException")
    failed = consumer.lambda_handler(batch(history[:1]), None)
    sandbox.aws.intercept = lambda operation, call: None

    assert failed == {"batchItemFailures": [{"itemIdentifier": history[0]["MessageId"]}]}
    assert consumer.lambda_handler(batch(history[:1]), None) == {"batchItemFailures": []}
    assert len(kept(sandbox)) == 1
