"""The results queue: messages in batches within the limits of SQS, standard or FIFO."""

import hashlib
import json
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from botocore.exceptions import BotoCoreError, ClientError

from stream_state import aws
from stream_state.errors import DeliveryFailed
from stream_state.observability import logger, record
from stream_state.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient
    from mypy_boto3_sqs.type_defs import MessageAttributeValueTypeDef, SendMessageBatchRequestEntryTypeDef

MAX_BATCH_ENTRIES = 10
MAX_BATCH_BYTES = 256 * 1024
MAX_TRIES = 3
BACKOFF_SECONDS = 0.2
# Name of the attribute of a parked event that tells when it came, in milliseconds since 1970.
ARRIVED = "arrived_at_ms"

type Message = Mapping[str, Any]
type Entry = SendMessageBatchRequestEntryTypeDef


class ResultsQueue:
    """Sends messages to one queue; safe to share among threads."""

    def __init__(
        self,
        client: "SQSClient",
        url: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._client = client
        self._url = url
        self._fifo = url.endswith(".fifo")
        self._clock = clock
        self._sleep = sleep
        self._jitter = jitter

    @classmethod
    def from_settings(cls, settings: Settings, timeout_seconds: float = 3) -> Self:
        """The queue that `RESULTS_QUEUE_URL` names, with the time-out of each request."""
        url = settings.require("results_queue_url")
        return cls(sqs_client(timeout_seconds), url)

    def send(self, messages: Sequence[Message], deadline: float) -> list[str | DeliveryFailed]:
        """For each message, in order: the id that SQS gave it, or why it was not accepted.

        What SQS may accept later is tried again, with full jitter, until `deadline` (monotonic seconds).
        """
        outcomes: dict[int, str | DeliveryFailed] = {}
        waiting = {index: self._entry(index, message) for index, message in enumerate(messages)}
        for tries in range(1, MAX_TRIES + 1):
            for batch in _batches(waiting.values()):
                in_time = self._clock() <= deadline
                outcomes |= self._send_batch(batch) if in_time else _all(batch, "NoTimeLeft")
            waiting = {i: entry for i, entry in waiting.items() if _may_be_tried_again(outcomes[i])}
            pause = self._jitter(0, BACKOFF_SECONDS * 2**tries)
            if not waiting or tries == MAX_TRIES or self._clock() + pause > deadline:
                break
            self._sleep(pause)
        if failed := sum(isinstance(outcome, DeliveryFailed) for outcome in outcomes.values()):
            record("RtcErrors", failed, error="DeliveryFailed")
        return [outcomes[index] for index in range(len(messages))]

    def _entry(self, index: int, message: Message) -> "Entry":
        entry: Entry = {"Id": str(index), "MessageBody": json.dumps(message, separators=(",", ":"))}
        if self._fifo:
            ids = "\n".join(message[name] for name in ("app_id", "room_id", "user_id"))
            entry["MessageGroupId"] = hashlib.sha256(ids.encode()).hexdigest()
            entry["MessageDeduplicationId"] = message["id"]
        return entry

    def _send_batch(self, batch: list["Entry"]) -> dict[int, str | DeliveryFailed]:
        try:
            answer = self._client.send_message_batch(QueueUrl=self._url, Entries=batch)
        except (ClientError, BotoCoreError) as error:
            reason = _code(error)
            logger.warning("SQS did not accept a batch.", extra={"reason": reason, "messages": len(batch)})
            return _all(batch, reason)
        sent = {int(entry["Id"]): entry["MessageId"] for entry in answer.get("Successful", ())}
        failed = {
            int(entry["Id"]): _failure(entry["Code"], retryable=not entry["SenderFault"])
            for entry in answer.get("Failed", ())
        }
        return _all(batch, "NotAnswered") | sent | failed


class RetryQueue:
    """Where pushed events are kept that could not be taken in yet, as the text that was sent."""

    def __init__(self, client: "SQSClient", url: str) -> None:
        self._client = client
        self._url = url

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """The queue that `CALLBACK_RETRY_QUEUE_URL` names."""
        url = settings.require("callback_retry_queue_url")
        return cls(sqs_client(timeout_seconds=0.7), url)

    def park(self, text: str, arrived_at_ms: int) -> None:
        """Keep an event for later, and when it came; raises `DeliveryFailed`."""
        arrived: MessageAttributeValueTypeDef = {"DataType": "Number", "StringValue": str(arrived_at_ms)}
        try:
            self._client.send_message(QueueUrl=self._url, MessageBody=text, MessageAttributes={ARRIVED: arrived})
        except (ClientError, BotoCoreError) as error:
            record("RtcErrors", error="DeliveryFailed")
            raise _failure(_code(error), retryable=True) from None


def sqs_client(timeout_seconds: float) -> "SQSClient":
    """A client that tries once: what is tried again is decided here, message by message."""
    client: SQSClient = aws.client(
        "sqs",
        connect_timeout=min(1, timeout_seconds),
        read_timeout=timeout_seconds,
        retries={"mode": "standard", "total_max_attempts": 1},
    )
    return client


def _batches(entries: Iterable["Entry"]) -> Iterator[list["Entry"]]:
    """The entries in order, in batches of at most 10 and 256 KiB."""
    batch: list[Entry] = []
    size = 0
    for entry in entries:
        entry_size = len(entry["MessageBody"].encode())
        if batch and (len(batch) == MAX_BATCH_ENTRIES or size + entry_size > MAX_BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(entry)
        size += entry_size
    if batch:
        yield batch


def _all(batch: "list[Entry]", reason: str) -> dict[int, str | DeliveryFailed]:
    return {int(entry["Id"]): _failure(reason, retryable=True) for entry in batch}


def _may_be_tried_again(outcome: str | DeliveryFailed) -> bool:
    return isinstance(outcome, DeliveryFailed) and outcome.retryable


def _failure(reason: str, *, retryable: bool) -> DeliveryFailed:
    error = DeliveryFailed(f"SQS did not accept the message ({reason}). Check the queue and the function's policy.")
    error.retryable = retryable
    return error


def _code(error: Exception) -> str:
    """The error code of SQS, or the kind of failure that kept its answer away; never its message."""
    code = error.response.get("Error", {}).get("Code") if isinstance(error, ClientError) else None
    return code or type(error).__name__
