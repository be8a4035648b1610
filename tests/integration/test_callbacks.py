"""Pushed events against a table, queues and a secret over HTTP: one state from all senders, whatever fails."""

import importlib
import json
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from stream_state.model import StreamState, Target
from stream_state.sweep import SweepRequest
from tests.integration.conftest import Stack
from tests.sandbox.aws import Reply, failure
from tests.sandbox.simulator import APP_ID
from tests.unit.memory import Context, media, query_facts
from tests.unit.pushed import KEY, VENDOR_NAMES, pushed, sign, stream, text

USERS = [f"user-{number}" for number in range(8)]
DYNAMODB_DOWN = failure("InternalServerError", 500)
WATCHED = SweepRequest(None, "changes")


@dataclass
class Endpoint:
    """The function as it is deployed, on the stack's table and queues."""

    stack: Stack
    module: Any
    secret_id: str
    told: dict[str, dict[int, Any]] = field(default_factory=lambda: defaultdict(dict))

    def post(self, body: str) -> int:
        """Status of the answer to a request."""
        event = {"version": "2.0", "rawPath": "/callbacks/rtc", "headers": {}, "requestContext": {}, "body": body}
        status: int = self.module.lambda_handler(event, Context())["statusCode"]
        return status

    def drain(self) -> int:
        """Hand on what is parked as Lambda does; how many events that were."""
        sqs, url = self.stack.aws.client("sqs"), self.stack.settings.callback_retry_queue_url
        drained = 0
        while batch := sqs.receive_message(
            QueueUrl=url, MaxNumberOfMessages=10, AttributeNames=["All"], MessageAttributeNames=["All"]
        ).get("Messages"):
            records = [
                {
                    "messageId": message["MessageId"],
                    "body": message["Body"],
                    "attributes": message["Attributes"],
                    "messageAttributes": {
                        name: {"stringValue": value["StringValue"], "dataType": value["DataType"]}
                        for name, value in message["MessageAttributes"].items()
                    },
                }
                for message in batch
            ]
            assert self.module.lambda_handler({"Records": records}, Context()) == {"batchItemFailures": []}
            for message in batch:
                sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
            drained += len(batch)
        return drained

    def media(self, user_id: str) -> dict[str, bool | None]:
        """What the table holds, and the queue was told, of a user: the same."""
        target = Target(APP_ID, "class-1", user_id)
        known = self.stack.table().read([target])[target]
        self.consume()
        told = self.told[user_id]
        assert told[max(told)] == known.state().values
        return {name: told[max(told)][name] for name in VENDOR_NAMES}

    def consume(self) -> None:
        """Take all messages; those of one sequence tell the same, by however many senders."""
        sqs, url = self.stack.aws.client("sqs"), self.stack.settings.results_queue_url
        while batch := sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10).get("Messages"):
            for message in batch:
                body = json.loads(message["Body"])
                values = {**body["media"], "present": body["present"]}
                assert self.told[body["user_id"]].setdefault(body["sequence"], values) == values
                sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])


@pytest.fixture
def endpoint(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    # The clients of AWS wait between their tries.
    monkeypatch.setattr("botocore.endpoint.time", SimpleNamespace(sleep=lambda seconds: None, time=time.time))
    name = stack.settings.table_name
    key = json.dumps({"callback_key": KEY})
    secret_id = stack.aws.client("secretsmanager").create_secret(Name=f"{name}-key", SecretString=key)["ARN"]
    retry_url = stack.aws.create(f"{name}-retry", "queue", "AWS::SQS::Queue", {})["Ref"]
    stack.environment |= {"RTC_CALLBACK_SECRET_ID": secret_id, "CALLBACK_RETRY_QUEUE_URL": retry_url}
    for variable, value in stack.environment.items():
        monkeypatch.setenv(variable, value)
    stack.__post_init__()
    module = importlib.reload(importlib.import_module("functions.callback.app"))
    with ThreadPoolExecutor(4) as workers:
        monkeypatch.setattr(module, "workers", workers)
        yield Endpoint(stack, module, secret_id)


def now_ms() -> int:
    return int(time.time() * 1000)


def fails(*operations: str, service: str = "DynamoDB") -> Callable[[str, dict[str, Any]], Reply | None]:
    """Lets the operations of a service fail; all of them if none is named."""

    def intercept(operation: str, call: dict[str, Any]) -> Reply | None:
        prefix, _, name = operation.partition(".")
        return DYNAMODB_DOWN if prefix.startswith(service) and (not operations or name in operations) else None

    return intercept


def histories(seed: int, steps: int) -> tuple[list[str], dict[str, dict[str, bool]]]:
    """Events of several users in a random order with repeats, and what each user publishes in the end."""
    source = random.Random(seed)  # noqa: S311 (the same histories each time)
    start_ms = now_ms() - 600_000
    truth = {user: dict.fromkeys(VENDOR_NAMES, False) for user in USERS}
    events = [pushed("UserLeaveRoom", start_ms, user_id=user) for user in USERS]
    for step in range(1, steps):
        user, medium, starts = source.choice(USERS), source.choice([*VENDOR_NAMES]), source.random() < 0.6
        kind = stream(medium, starts=starts)
        if source.random() < 0.1:
            kind = "UserLeaveRoom"
            truth[user] = dict.fromkeys(VENDOR_NAMES, False)
        else:
            truth[user][medium] = starts
        events.append(pushed(kind, start_ms + step, user_id=user))
    events += source.choices(events, k=steps // 4)
    source.shuffle(events)
    return events, truth


@pytest.mark.parametrize("seed", [1, 2])
def test_many_senders_at_once_end_in_the_true_state_and_tell_it(endpoint: Endpoint, seed: int) -> None:
    events, truth = histories(seed, 120)

    with ThreadPoolExecutor(6) as pool:
        statuses = list(pool.map(endpoint.post, events))

    assert set(statuses) == {200}
    endpoint.drain()
    assert {user: endpoint.media(user) for user in USERS} == truth


def test_of_the_events_that_come_while_the_table_is_gone_none_is_lost(endpoint: Endpoint) -> None:
    # Given a table that is gone for a while
    events, truth = histories(3, 100)
    parts = [(events[:40], None), (events[40:80], fails()), (events[80:], None)]
    # When the events come
    for part, intercept in parts:
        endpoint.stack.aws.intercept = intercept or (lambda operation, call: None)
        with ThreadPoolExecutor(6) as pool:
            assert set(pool.map(endpoint.post, part)) == {200}
    # Then what was parked meanwhile is taken in later
    assert endpoint.drain() >= 40
    assert {user: endpoint.media(user) for user in USERS} == truth


@pytest.mark.parametrize("operation", ["GetItem", "PutItem"])
def test_an_event_that_fails_at_any_step_is_told_in_the_end(endpoint: Endpoint, operation: str) -> None:
    endpoint.stack.aws.intercept = fails(operation)
    assert endpoint.post(pushed(stream("audio", starts=True), now_ms(), user_id="user-1")) == 200
    endpoint.stack.aws.intercept = lambda _, call: None

    assert endpoint.drain() == 1
    assert endpoint.media("user-1")["audio"] is True


def test_while_sqs_is_gone_the_vendors_next_try_tells(endpoint: Endpoint) -> None:
    body = pushed(stream("audio", starts=True), now_ms(), user_id="user-1")
    endpoint.stack.aws.intercept = fails(service="AmazonSQS")
    assert endpoint.post(body) == 503
    endpoint.stack.aws.intercept = lambda operation, call: None

    assert endpoint.post(body) == 200
    assert endpoint.media("user-1")["audio"] is True


def test_a_table_that_hangs_does_not_keep_the_vendor_waiting(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    monkeypatch.setattr(endpoint.module, "TAKE_SECONDS", 0.05)

    def hang(operation: str, call: dict[str, Any]) -> None:
        if operation.startswith("DynamoDB"):
            released.wait(30)

    endpoint.stack.aws.intercept = hang
    try:
        status = endpoint.post(pushed(stream("audio", starts=True), now_ms(), user_id="user-1"))
    finally:
        released.set()
        endpoint.stack.aws.intercept = lambda operation, call: None

    assert status == 200
    assert endpoint.drain() == 1
    assert endpoint.media("user-1")["audio"] is True


def test_a_key_is_rotated_in_the_secret(endpoint: Endpoint) -> None:
    # Given events under the first key
    body = pushed(stream("audio", starts=True), now_ms(), user_id="user-1")
    assert endpoint.post(body) == 200
    # When the secret gets a second one, and the vendor signs with it a little later
    both = json.dumps({"callback_key": "new-key", "previous_callback_key": KEY})
    endpoint.stack.aws.client("secretsmanager").put_secret_value(SecretId=endpoint.secret_id, SecretString=both)
    new = text(sign({**json.loads(body), "EventId": "event-2"}, "new-key"))
    # Then both are believed, and no others
    assert [endpoint.post(new), endpoint.post(body)] == [200, 200]
    assert endpoint.post(text(sign(json.loads(body), "another-key"))) == 401


def test_a_room_ends_while_its_users_still_send(endpoint: Endpoint) -> None:
    # Given the events of a room up to its end, and the end
    events, _ = histories(4, 60)
    end = pushed("RoomDestroy", now_ms(), user_id=None)
    # When they come all at once
    with ThreadPoolExecutor(6) as pool:
        statuses = list(pool.map(endpoint.post, [*events[:30], end, *events[30:]]))
    assert set(statuses) == {200}
    endpoint.drain()
    # Then the end's repeat has nothing left to do, and all are off
    assert endpoint.post(end) == 200
    assert {user: endpoint.media(user) for user in USERS} == {user: media() for user in USERS}


def test_a_sweep_corrects_what_a_lost_event_left_wrong(endpoint: Endpoint) -> None:
    # Given a user who has left, of which no event came
    target = Target(APP_ID, "class-1", "user-1")
    assert endpoint.post(pushed(stream("audio", starts=True), now_ms() - 1000, user_id="user-1")) == 200
    endpoint.stack.watch_list().add([target], 3600)
    # When the watch list is swept
    endpoint.stack.sweep().run(WATCHED, time.monotonic() + 30, time.monotonic() + 40)
    # Then it is known and told that the user is not there
    state = endpoint.stack.table().read([target])[target].state()
    assert (state.values["present"], state.values["audio"]) == (False, None)
    assert endpoint.media("user-1")["audio"] is None


def test_events_and_queries_make_one_state(endpoint: Endpoint) -> None:
    """What an event told is not undone by a query that was sent before, and is by one that was sent after."""
    target = Target(APP_ID, "class-1", "user-1")
    at_ms = now_ms() - 10_000
    endpoint.stack.table().observe(StreamState(target, query_facts(media("video"), at_ms), "query"))
    assert endpoint.post(pushed(stream("video", starts=False), at_ms + 1000, user_id="user-1")) == 200
    endpoint.stack.table().observe(StreamState(target, query_facts(media("video"), at_ms + 500), "query"))

    assert endpoint.media("user-1") == media()
    endpoint.stack.table().observe(StreamState(target, query_facts(media("screen_video"), at_ms + 2000), "query"))
    assert endpoint.post(pushed("UserJoinRoom", at_ms, user_id="user-1")) == 200
    assert endpoint.media("user-1") == media("screen_video")
