"""The queues: batches within the limits of SQS, the fate of each message, callback events kept, and rechecks."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import ConnectionClosedError, EndpointConnectionError, ReadTimeoutError

from stream_state.adapters.queues import (
    MAX_TRIES,
    QueueMessage,
    ResultsQueue,
    RetryQueue,
    messages_of,
    parse_recheck,
)
from stream_state.domain.targets import Target
from stream_state.errors import DeliveryFailed, InvalidRequest
from stream_state.settings import Settings, SettingsError
from tests.unit.fakes import Clock, FakeQueue, Script, accepted, aws_error, refused
from tests.unit.memory import metrics

STANDARD = "https://sqs/results"
FIFO = "https://sqs/results.fifo"
RETRY = "https://sqs/retry"
DEADLINE = 1_030.0
FAILURES = [
    (aws_error("AWS.SimpleQueueService.NonExistentQueue"), "NonExistentQueue"),
    (aws_error("AccessDenied"), "AccessDenied"),
    (aws_error(""), "ClientError"),
    (ReadTimeoutError(endpoint_url="https://canary"), "ReadTimeoutError"),
    (EndpointConnectionError(endpoint_url="https://canary"), "EndpointConnectionError"),
]


@pytest.fixture
def make_queue(queue_client: FakeQueue, clock: Clock) -> Callable[[str], ResultsQueue]:
    """Makes a results queue at an address."""
    client: Any = queue_client
    return lambda url: ResultsQueue(client, url, clock)


@pytest.fixture
def queue(make_queue: Callable[[str], ResultsQueue]) -> ResultsQueue:
    return make_queue(STANDARD)


def messages(count: int, **more: object) -> list[dict[str, Any]]:
    ids = {"app_id": "app-1", "room_id": "class-1"}
    return [{**ids, "user_id": f"user-{i}", "id": f"{i:064x}", **more} for i in range(count)]


@pytest.mark.parametrize(("count", "sizes"), [(0, []), (1, [1]), (10, [10]), (11, [10, 1]), (25, [10, 10, 5])])
def test_messages_go_in_batches_of_ten_and_in_order(
    queue: ResultsQueue, queue_client: FakeQueue, count: int, sizes: list[int]
) -> None:
    sent = messages(count)

    outcomes = queue.send(sent, DEADLINE)

    assert [len(batch) for batch in queue_client.batches] == sizes
    assert [json.loads(entry["MessageBody"]) for batch in queue_client.batches for entry in batch] == sent
    assert outcomes == [f"id-of-{i}" for i in range(count)]
    assert queue_client.urls <= {STANDARD}
    for batch in queue_client.batches:
        assert len({entry["Id"] for entry in batch}) == len(batch)
        assert not any({"MessageGroupId", "MessageDeduplicationId"} & entry.keys() for entry in batch)


def test_a_body_has_only_characters_that_sqs_accepts(queue: ResultsQueue, queue_client: FakeQueue) -> None:
    queue.send(messages(1, note="密\x00\ud800\uffff"), DEADLINE)

    body = queue_client.batches[0][0]["MessageBody"]
    assert body.isascii()
    assert body.isprintable()


def test_a_fifo_queue_gets_a_group_for_each_target_and_drops_repeats_by_id(
    make_queue: Callable[[str], ResultsQueue], queue_client: FakeQueue
) -> None:
    long_ids = {"app_id": "a" * 128, "room_id": "r" * 128, "user_id": "u" * 128}
    sent = [{**long_ids, "id": f"{i:064x}"} for i in range(2)] + messages(2)

    make_queue(FIFO).send(sent, DEADLINE)

    entries = queue_client.batches[0]
    groups = [entry["MessageGroupId"] for entry in entries]
    assert groups[0] == groups[1] == hashlib.sha256("\n".join(long_ids.values()).encode()).hexdigest()
    assert len(set(groups)) == 3
    assert [entry["MessageDeduplicationId"] for entry in entries] == [message["id"] for message in sent]
    assert all(len(entry[name]) == 64 for entry in entries for name in ("MessageGroupId", "MessageDeduplicationId"))


def test_a_message_that_sqs_did_not_accept_is_sent_again_alone(
    queue: ResultsQueue, queue_client: FakeQueue, clock: Clock
) -> None:
    queue_client.script = Script(refused("1", "3"), refused("3"), lambda: accepted)

    outcomes = queue.send(messages(5), DEADLINE)

    assert outcomes == [f"id-of-{i}" for i in range(5)]
    assert [[entry["Id"] for entry in batch] for batch in queue_client.batches] == [list("01234"), ["1", "3"], ["3"]]
    assert clock.jitters[:2] == [(0, 0.4), (0, 0.8)]
    assert clock.slept == [0.4, 0.8]


def test_a_message_that_sqs_never_accepts_is_reported_alone(
    queue: ResultsQueue, queue_client: FakeQueue, conforms: Callable[[str, Any], None]
) -> None:
    queue_client.script = Script(refused("2"))

    outcomes = queue.send(messages(4), DEADLINE)

    assert [isinstance(outcome, DeliveryFailed) for outcome in outcomes] == [False, False, True, False]
    error = outcomes[2]
    assert isinstance(error, DeliveryFailed)
    conforms("problem", error.problem())
    assert error.retryable
    assert "Refused" in str(error)
    assert "canary" not in str(error)
    assert len(queue_client.batches) == MAX_TRIES


def test_a_message_that_is_at_fault_itself_is_not_sent_again(queue: ResultsQueue, queue_client: FakeQueue) -> None:
    queue_client.script = Script(refused("0", sender_fault=True))

    outcomes = queue.send(messages(2), DEADLINE)

    assert isinstance(outcomes[0], DeliveryFailed)
    assert (outcomes[0].problem()["retryable"], outcomes[1]) == (False, "id-of-1")
    assert len(queue_client.batches) == 1


@pytest.mark.parametrize(("failure", "shown"), FAILURES, ids=[shown for _, shown in FAILURES])
def test_a_batch_that_fails_as_a_whole_is_sent_again_and_then_reported(
    queue: ResultsQueue, queue_client: FakeQueue, capsys: pytest.CaptureFixture[str], failure: Exception, shown: str
) -> None:
    queue_client.script = Script(failure)
    metrics(capsys)

    outcomes = queue.send(messages(3), DEADLINE)

    assert len(outcomes) == 3
    for outcome in outcomes:
        assert isinstance(outcome, DeliveryFailed)
        assert shown in str(outcome)
        assert "canary" not in str(outcome)
    assert len(queue_client.batches) == MAX_TRIES
    # Once for each message, however often it was tried.
    assert metrics(capsys) == {"Errors": [3.0]}


def test_a_batch_that_failed_once_is_no_failure_of_the_others(queue: ResultsQueue, queue_client: FakeQueue) -> None:
    queue_client.script = Script(lambda: accepted, aws_error("InternalError"), lambda: accepted)

    assert queue.send(messages(15), DEADLINE) == [f"id-of-{i}" for i in range(15)]
    assert [len(batch) for batch in queue_client.batches] == [10, 5, 5]


def test_a_message_that_the_answer_leaves_out_was_not_accepted(queue: ResultsQueue, queue_client: FakeQueue) -> None:
    queue_client.script = Script(lambda: lambda entries: {})

    (outcome,) = queue.send(messages(1), DEADLINE)

    assert isinstance(outcome, DeliveryFailed)
    assert outcome.retryable


def test_nothing_is_sent_again_after_the_deadline(queue: ResultsQueue, queue_client: FakeQueue, clock: Clock) -> None:
    queue_client.script = Script(refused("0"))

    (outcome,) = queue.send(messages(1), clock.seconds + 0.1)

    assert isinstance(outcome, DeliveryFailed)
    assert (len(queue_client.batches), clock.slept) == (1, [])


def test_no_batch_is_begun_after_the_deadline(queue: ResultsQueue, queue_client: FakeQueue, clock: Clock) -> None:
    def slow() -> Any:
        clock.seconds += 3
        raise aws_error("InternalError")

    queue_client.script = Script(slow)

    outcomes = queue.send(messages(50), clock.seconds + 5)

    assert len(queue_client.batches) == 2
    assert all(isinstance(outcome, DeliveryFailed) and outcome.retryable for outcome in outcomes)
    assert len(outcomes) == 50


class FakeRetries:
    """SQS that takes single messages, each after the next of its failures; None takes the message."""

    def __init__(self, *failures: Exception | None) -> None:
        self.failures = [*failures, None]
        self.sent: list[dict[str, Any]] = []

    def send_message(self, **parameters: Any) -> dict[str, Any]:
        """As boto3 names it."""
        self.sent.append(parameters)
        failure = self.failures.pop(0) if len(self.failures) > 1 else self.failures[0]
        if failure:
            raise failure
        return {"MessageId": "id"}


def retry_queue(*failures: Exception | None) -> tuple[RetryQueue, FakeRetries]:
    client: Any = FakeRetries(*failures)
    return RetryQueue(lambda: client, RETRY), client


def test_a_callback_event_is_kept_as_it_was_received() -> None:
    queue, client = retry_queue()

    queue.keep('{"EventType": "密"}\n', 1_795_403_045_678)

    assert client.sent == [
        {
            "QueueUrl": RETRY,
            "MessageBody": '{"EventType": "密"}\n',
            "MessageAttributes": {"received_at_ms": {"DataType": "Number", "StringValue": "1795403045678"}},
        }
    ]


def test_a_recheck_comes_as_a_delayed_message(target: Target, capsys: pytest.CaptureFixture[str]) -> None:
    queue, client = retry_queue()
    metrics(capsys)

    queue.recheck(target, 1_795_403_045_678)

    (message,) = client.sent
    assert (message["QueueUrl"], message["DelaySeconds"]) == (RETRY, 6)
    ids = {"app_id": "app-1", "room_id": "class-1", "user_id": "teacher"}
    assert json.loads(message["MessageBody"]) == {"recheck": ids, "due_ms": 1_795_403_045_678}
    assert parse_recheck(message["MessageBody"], ["app-1"]) == (target, 1_795_403_045_678)
    assert metrics(capsys) == {"Rechecks": [1.0]}


@pytest.mark.parametrize(
    "body",
    [
        "",
        "not JSON",
        "[]",
        "7",
        '{"EventType": "UserJoinRoom", "EventData": "{}"}',
        '{"recheck": {"app_id": "a", "room_id": "r", "user_id": "u"}, "due_ms": 0, "EventType": "UserJoinRoom"}',
        '{"recheck": {"app_id": "app-1", "room_id": "r", "user_id": "u"}}',
    ],
)
def test_no_other_text_is_a_recheck(body: str) -> None:
    assert parse_recheck(body, ["app-1"]) is None


@pytest.mark.parametrize(
    ("target", "due_ms"),
    [
        ({"app_id": "app-1", "room_id": "r"}, 0),
        ({"app_id": "app-1", "room_id": "r", "user_id": 7}, 0),
        ({"app_id": "app-1", "room_id": "x&AppId=other", "user_id": "u"}, 0),
        ({"app_id": "another", "room_id": "r", "user_id": "u"}, 0),
        ({"app_id": "\ud800", "room_id": "r", "user_id": "u"}, 0),
        ({"app_id": "app-1", "room_id": "r", "user_id": "u"}, "0"),
        ({"app_id": "app-1", "room_id": "r", "user_id": "u"}, -1),
        ("u", 0),
    ],
)
def test_a_malformed_recheck_is_refused(target: object, due_ms: object) -> None:
    with pytest.raises(InvalidRequest):
        parse_recheck(json.dumps({"recheck": target, "due_ms": due_ms}), ["app-1"])


@pytest.mark.parametrize(("url", "moved"), [("https://sqs/dead", True), ("", False)], ids=["a queue", "none"])
def test_a_message_refused_for_good_moves_to_the_dead_letter_queue(url: str, moved: bool) -> None:  # noqa: FBT001
    client: Any = FakeRetries()

    assert RetryQueue(lambda: client, RETRY, url).dead_letter(QueueMessage("m", "{}", 1_795_403_045_678, 3)) is moved

    assert [(sent["QueueUrl"], sent["MessageBody"]) for sent in client.sent] == [(url, "{}")] * moved
    received = [sent["MessageAttributes"]["received_at_ms"]["StringValue"] for sent in client.sent]
    assert received == ["1795403045678"] * moved


def sqs_record(**fields: Any) -> dict[str, Any]:
    attributes = {"SentTimestamp": "7000", "ApproximateReceiveCount": "2"}
    return {"eventSource": "aws:sqs", "messageId": "m", "body": "{}", "attributes": attributes, **fields}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, QueueMessage("m", "{}", 7000, 2)),
        ({"messageAttributes": {"received_at_ms": {"stringValue": "5000"}}}, QueueMessage("m", "{}", 5000, 2)),
        ({"attributes": None}, QueueMessage("m", "", 0, 0)),
        ({"messageAttributes": {"received_at_ms": {"stringValue": "soon"}}}, QueueMessage("m", "", 0, 0)),
    ],
    ids=["sent", "received", "no attributes", "no number"],
)
def test_a_record_is_a_message_and_an_odd_one_is_empty(fields: dict[str, Any], message: QueueMessage) -> None:
    assert messages_of({"Records": [7, sqs_record(**fields)]}) == [message]


@pytest.mark.parametrize("records", [None, {}, "m", [7], [{}], [sqs_record(eventSource="aws:sns")]], ids=repr)
def test_records_of_anything_but_a_queue_are_refused(records: object) -> None:
    with pytest.raises(InvalidRequest, match="must be a request of API Gateway"):
        messages_of({"Records": records})


WORK: list[Callable[[RetryQueue], None]] = [
    lambda queue: queue.keep("{}", 0),
    lambda queue: queue.recheck(Target("app-1", "class-1", "teacher"), 0),
]


@pytest.mark.parametrize("work", WORK, ids=["keep", "recheck"])
def test_a_failed_request_is_tried_again_once(
    work: Callable[[RetryQueue], None], capsys: pytest.CaptureFixture[str]
) -> None:
    queue, client = retry_queue(ConnectionClosedError(endpoint_url="https://canary"))
    metrics(capsys)

    work(queue)

    assert len(client.sent) == 2
    assert client.sent[0] == client.sent[1]
    assert "Errors" not in metrics(capsys)


@pytest.mark.parametrize("work", WORK, ids=["keep", "recheck"])
@pytest.mark.parametrize(("failure", "shown"), FAILURES, ids=[shown for _, shown in FAILURES])
def test_two_failed_requests_are_an_error(
    work: Callable[[RetryQueue], None], capsys: pytest.CaptureFixture[str], failure: Exception, shown: str
) -> None:
    queue, client = retry_queue(failure, failure)
    metrics(capsys)

    with pytest.raises(DeliveryFailed, match=shown) as raised:
        work(queue)

    assert raised.value.retryable
    assert raised.value.__suppress_context__
    assert "canary" not in str(raised.value)
    assert len(client.sent) == 2
    assert metrics(capsys) == {"Errors": [1.0]}


@pytest.mark.parametrize(
    ("make", "name"),
    [(ResultsQueue.from_settings, "RESULTS_QUEUE_URL"), (RetryQueue.from_settings, "CALLBACK_RETRY_QUEUE_URL")],
)
def test_the_queue_must_be_named(settings: Settings, make: Callable[[Settings], object], name: str) -> None:
    with pytest.raises(SettingsError, match=f"{name} is not set"):
        make(settings)
