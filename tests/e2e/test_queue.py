"""The messages of the queue when it is FIFO, and when it fails in part or as a whole."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from tests.sandbox.aws import Reply, failure
from tests.sandbox.functions import ACCOUNT_ID, REGION
from tests.sandbox.simulator import APP_ID
from tests.sandbox.stack import Sandbox
from tests.vendor import official_signer

TARGETS = [{"room_id": "class-1", "user_id": f"user-{number}"} for number in range(15)]
SEND = "AmazonSQS.SendMessageBatch"


@pytest.fixture(scope="module", params=["standard", "fifo"])
def started(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """A stack with a queue of its own, and one that was given the ARN of a FIFO queue."""
    given = f"arn:aws:sqs:{REGION}:{ACCOUNT_ID}:results.fifo" if request.param == "fifo" else ""
    with Sandbox({"ResultsQueueArn": given}, verify=official_signer.verify) as sandbox:
        if given:
            queue = sandbox.aws.create_queue("results", {"FifoQueue": True})
            assert (queue["Arn"], sandbox.outputs["ResultsQueueArn"]) == (given, given)
        yield sandbox


@pytest.fixture
def room(sandbox: Sandbox) -> Sandbox:
    for number, target in enumerate(TARGETS):
        sandbox.simulator.publish("class-1", target["user_id"], *["Audio"] * (number % 2))
    return sandbox


def fail_entries(sandbox: Sandbox, users: set[str], times: int, *, sender_fault: bool = False) -> None:
    """SQS refuses the messages about these users so many times each, and accepts the others of the same batch."""
    left = dict.fromkeys(users, times)
    sqs = sandbox.client("sqs")

    def refuse(operation: str, call: Mapping[str, Any]) -> Reply | None:
        if operation != SEND:
            return None
        entries = {entry["Id"]: entry for entry in call["Entries"]}
        about = {key: json.loads(entry["MessageBody"])["user_id"] for key, entry in entries.items()}
        refused = [key for key, user in about.items() if left.get(user)]
        for key in refused:
            left[about[key]] -= 1
        if not refused:
            return None
        others = [entry for key, entry in entries.items() if key not in refused]
        answer = sqs.send_message_batch(QueueUrl=call["QueueUrl"], Entries=others) if others else {}
        failed = [{"Id": key, "Code": "InternalError", "SenderFault": sender_fault} for key in refused]
        return 200, {"Successful": answer.get("Successful", []), "Failed": failed}

    sandbox.aws.intercept = refuse


def users_of(messages: list[dict[str, Any]]) -> list[str]:
    return sorted(message["user_id"] for message in messages)


def test_a_sweep_delivers_each_target_once(room: Sandbox, conforms: Callable[[str, Any], None]) -> None:
    summary = room.invoke("SweepFunction", {"targets": TARGETS}).payload

    raw = room.receive(len(TARGETS))
    messages = [json.loads(message["Body"]) for message in raw]
    assert summary["delivered"] == len(TARGETS)
    assert users_of(messages) == sorted(target["user_id"] for target in TARGETS)
    for message in messages:
        conforms("message", message)
    if room.queue_url.endswith(".fifo"):
        for message, body in zip(raw, messages, strict=True):
            ids = "\n".join((APP_ID, body["room_id"], body["user_id"]))
            assert message["Attributes"]["MessageGroupId"] == hashlib.sha256(ids.encode()).hexdigest()
            assert message["Attributes"]["MessageDeduplicationId"] == body["id"]


def test_ids_of_full_length_are_delivered(sandbox: Sandbox) -> None:
    target = {"room_id": "r" * 128, "user_id": "@" * 128}
    sandbox.simulator.publish(target["room_id"], target["user_id"], "Audio")

    sandbox.invoke("SweepFunction", target)

    (message,) = sandbox.receive_messages(1)
    assert (message["room_id"], message["user_id"]) == (target["room_id"], target["user_id"])


def test_a_change_that_is_sent_twice_has_the_same_id(room: Sandbox) -> None:
    # Given that the first delivery was not marked in the table.
    room.aws.intercept = lambda operation, call: (
        failure("InternalServerError", 500)
        if "sequence" in call.get("Item", {}) and "undelivered" not in call["Item"]
        else None
    )
    room.invoke("TaskFunction", {**TARGETS[1], "deliver": "queue"})
    (first,) = room.receive_messages(1)
    room.aws.intercept = lambda operation, call: None

    # When the target is delivered again.
    answer = room.invoke("TaskFunction", {**TARGETS[1], "deliver": "queue"}).payload

    # Then it is the same change, which a FIFO queue drops by itself.
    assert (answer["id"], answer["sequence"], answer["changed"]) == (first["id"], first["sequence"], first["changed"])
    again = room.receive_messages(0 if room.queue_url.endswith(".fifo") else 1)
    assert [message["id"] for message in again] in ([], [first["id"]])


def test_messages_that_are_refused_for_a_while_are_sent_again(room: Sandbox) -> None:
    fail_entries(room, {"user-0", "user-7", "user-14"}, 2)

    summary = room.invoke("SweepFunction", {"targets": TARGETS}).payload

    assert (summary["delivered"], summary["failed"]) == (len(TARGETS), 0)
    assert users_of(room.receive_messages(len(TARGETS))) == sorted(target["user_id"] for target in TARGETS)


@pytest.mark.parametrize("fault_of", ["sender", "service"])
def test_messages_that_stay_refused_are_named_target_by_target(room: Sandbox, fault_of: str) -> None:
    fail_entries(room, {"user-1", "user-2"}, 99, sender_fault=fault_of == "sender")

    results = room.invoke("TaskFunction", {"targets": TARGETS[:4], "deliver": "queue"}).payload["results"]
    single = room.invoke("TaskFunction", {**TARGETS[1], "deliver": "queue"})
    swept = room.invoke("SweepFunction", {"targets": TARGETS[:4]})

    assert [item.get("error") for item in results] == [None, "DeliveryFailed", "DeliveryFailed", None]
    assert [item["user_id"] for item in results] == [target["user_id"] for target in TARGETS[:4]]
    assert (results[1]["status"], results[1]["retryable"]) == (503, fault_of == "service")
    assert single.error_type == "DeliveryFailed"
    # The caller of the sweep is to repeat it.
    assert swept.error_type == "DeliveryFailed"
    assert users_of(room.receive_messages(4)) == ["user-0", "user-0", "user-3", "user-3"]


@pytest.mark.parametrize("reply", [failure("InternalError", 500), failure("QueueDoesNotExist")], ids=["fails", "gone"])
def test_changes_that_a_failing_queue_did_not_accept_are_delivered_by_the_next_sweep(
    room: Sandbox, reply: Reply
) -> None:
    room.aws.intercept = lambda operation, call: reply if operation == SEND else None

    assert room.invoke("SweepFunction", {"targets": TARGETS}).error_type == "DeliveryFailed"
    assert room.invoke("TaskFunction", {**TARGETS[0], "deliver": "queue"}).error_type == "DeliveryFailed"

    room.aws.intercept = lambda operation, call: None
    assert room.receive() == []
    summary = room.invoke("SweepFunction", {"targets": TARGETS, "emit": "changes"}).payload
    assert (summary["delivered"], summary["unchanged"]) == (len(TARGETS), 0)
    messages = room.receive_messages(len(TARGETS))
    assert users_of(messages) == sorted(target["user_id"] for target in TARGETS)
    assert {message["previous"] is None for message in messages} == {True}
