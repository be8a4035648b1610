"""The results queue: batches within the limits of SQS, and what becomes of each message."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import EndpointConnectionError, ReadTimeoutError

from stream_state.errors import DeliveryFailed
from stream_state.queue import MAX_BATCH_BYTES, MAX_TRIES, ResultsQueue
from stream_state.settings import Settings, SettingsError
from tests.unit.fakes import Clock, FakeQueue, Script, accepted, aws_error, refused
from tests.unit.memory import metrics

STANDARD = "https://sqs/results"
FIFO = "https://sqs/results.fifo"
DEADLINE = 1_030.0


@pytest.fixture
def make_queue(
    queue_client: FakeQueue, clock: Clock, longest: Callable[[float, float], float]
) -> Callable[[str], ResultsQueue]:
    """Makes a queue at an address."""
    return lambda url: ResultsQueue(queue_client, url, clock=clock.monotonic, sleep=clock.sleep, jitter=longest)


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


@pytest.mark.parametrize(("size", "sizes"), [(100_000, [2, 2, 1]), (MAX_BATCH_BYTES, [1] * 5), (20_000, [5])])
def test_a_batch_is_no_larger_than_sqs_accepts(
    queue: ResultsQueue, queue_client: FakeQueue, size: int, sizes: list[int]
) -> None:
    room = size - len(json.dumps(messages(1, more="")[0], separators=(",", ":")))

    outcomes = queue.send(messages(5, more="x" * room), DEADLINE)

    assert [len(batch) for batch in queue_client.batches] == sizes
    assert all(sum(len(entry["MessageBody"]) for entry in batch) <= MAX_BATCH_BYTES for batch in queue_client.batches)
    assert outcomes == [f"id-of-{i}" for i in range(5)]


def test_a_body_is_sent_in_characters_that_sqs_accepts(queue: ResultsQueue, queue_client: FakeQueue) -> None:
    queue.send(messages(1, note="密\x00\ud800\uffff"), DEADLINE)

    body = queue_client.batches[0][0]["MessageBody"]
    assert body.isascii()
    assert body.isprintable()


def test_a_fifo_queue_gets_a_group_for_each_target_and_drops_repeats_by_id(
    make_queue: Callable[[str], ResultsQueue], queue_client: FakeQueue
) -> None:
    long_ids = {"app_id": "a" * 128, "room_id": "r" * 128, "user_id": "u" * 128}
    first, second, *others = [{**long_ids, "id": f"{i:064x}"} for i in range(2)] + messages(2)

    make_queue(FIFO).send([first, second, *others], DEADLINE)

    entries = queue_client.batches[0]
    groups = [entry["MessageGroupId"] for entry in entries]
    assert groups[0] == hashlib.sha256("\n".join(long_ids.values()).encode()).hexdigest()
    assert groups[0] == groups[1]
    assert len(set(groups)) == 3
    assert [entry["MessageDeduplicationId"] for entry in entries] == [m["id"] for m in (first, second, *others)]
    assert all(len(entry[name]) == 64 for entry in entries for name in ("MessageGroupId", "MessageDeduplicationId"))


def test_what_sqs_did_not_accept_is_sent_again_alone(
    queue: ResultsQueue, queue_client: FakeQueue, clock: Clock, jitters: list[tuple[float, float]]
) -> None:
    queue_client.script = Script(refused("1", "3"), refused("3"), lambda: accepted)

    outcomes = queue.send(messages(5), DEADLINE)

    assert outcomes == [f"id-of-{i}" for i in range(5)]
    assert [[entry["Id"] for entry in batch] for batch in queue_client.batches] == [list("01234"), ["1", "3"], ["3"]]
    assert clock.slept == [high for _, high in jitters[:2]]
    assert all(low == 0 for low, _ in jitters)
    assert jitters[0][1] < jitters[1][1]


def test_what_sqs_never_accepts_is_reported_message_by_message(
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


@pytest.mark.parametrize(
    ("failure", "shown"),
    [
        (aws_error("AWS.SimpleQueueService.NonExistentQueue"), "NonExistentQueue"),
        (aws_error("AccessDenied"), "AccessDenied"),
        (aws_error(""), "ClientError"),
        (ReadTimeoutError(endpoint_url="https://canary"), "ReadTimeoutError"),
        (EndpointConnectionError(endpoint_url="https://canary"), "EndpointConnectionError"),
    ],
    ids=lambda value: str(value)[-20:],
)
def test_a_batch_that_fails_as_a_whole_is_sent_again_and_then_reported(
    queue: ResultsQueue,
    queue_client: FakeQueue,
    capsys: pytest.CaptureFixture[str],
    failure: Exception,
    shown: str,
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
    assert metrics(capsys) == {"RtcErrors": [3.0]}


def test_a_batch_that_failed_once_is_no_failure_of_the_others(queue: ResultsQueue, queue_client: FakeQueue) -> None:
    queue_client.script = Script(lambda: accepted, aws_error("InternalError"), lambda: accepted)

    assert queue.send(messages(15), DEADLINE) == [f"id-of-{i}" for i in range(15)]
    assert [len(batch) for batch in queue_client.batches] == [10, 5, 5]


def test_a_message_that_sqs_says_nothing_of_was_not_accepted(queue: ResultsQueue, queue_client: FakeQueue) -> None:
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


def test_the_client_tries_once_since_retries_are_decided_here(
    monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, "eu-central-1")
    named = Settings.from_environment({"RTC_APP_IDS": "app-1", "RESULTS_QUEUE_URL": FIFO})

    config = ResultsQueue.from_settings(named)._client.meta.config

    assert config.retries["total_max_attempts"] == 1
    assert config.connect_timeout + config.read_timeout <= 5
    with pytest.raises(SettingsError, match="RESULTS_QUEUE_URL is not set"):
        ResultsQueue.from_settings(settings)
