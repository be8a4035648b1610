"""The results queue for messages, and the retry queue for callback events that must come again and for rechecks."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import batched
from typing import Any, Self

from botocore.exceptions import BotoCoreError, ClientError

from stream_state.adapters import aws
from stream_state.clock import CLOCK, Clock
from stream_state.domain.parsing import JsonError, invalid, parse_json, parse_target, parse_whole_number
from stream_state.domain.targets import Target
from stream_state.errors import DeliveryFailed
from stream_state.observability import add_metric, logger
from stream_state.settings import Settings

# A batch of the longest messages has a tenth of the size that SQS accepts.
MAX_BATCH_ENTRIES = 10
MAX_TRIES = 3
BACKOFF_SECONDS = 0.2
# The attribute of a kept callback event that says when it was received, in milliseconds since 1970.
RECEIVED = "received_at_ms"
RECHECK_DELAY_SECONDS = 6

type Message = Mapping[str, Any]
type Entry = dict[str, Any]
type Outcome = str | DeliveryFailed


@dataclass(eq=False)
class ResultsQueue:
    """Sends messages to one queue, standard or FIFO; safe to share among threads."""

    client: Any
    url: str
    clock: Clock = CLOCK

    @classmethod
    def from_settings(cls, settings: Settings, timeout_seconds: float = 3) -> Self:
        """The queue that `RESULTS_QUEUE_URL` names; `timeout_seconds` bounds each request."""
        url = settings.require("results_queue_url")
        connect_timeout = min(1, timeout_seconds)
        client = aws.client("sqs", connect_timeout=connect_timeout, read_timeout=timeout_seconds, retries=aws.ONE_TRY)
        return cls(client, url)

    def send(self, messages: Sequence[Message], deadline: float) -> list[Outcome]:
        """For each message, in order: the id that SQS gave it, or why SQS did not accept it.

        SQS gets a message that it may accept later again, with full jitter, until `deadline` (monotonic seconds).
        """
        outcomes: dict[str, Outcome] = {}
        failed: dict[str, DeliveryFailed] = {}
        waiting = [self._entry(index, message) for index, message in enumerate(messages)]
        for tries in range(1, MAX_TRIES + 1):
            for batch in batched(waiting, MAX_BATCH_ENTRIES, strict=False):
                in_time = self.clock.monotonic() <= deadline
                outcomes |= self._send_batch(batch) if in_time else _all(batch, "NoTimeLeft")
            failed = {name: to for name, to in outcomes.items() if isinstance(to, DeliveryFailed)}
            waiting = [entry for entry in waiting if entry["Id"] in failed and failed[entry["Id"]].retryable]
            pause = self.clock.jitter(0, BACKOFF_SECONDS * 2**tries)
            if not waiting or tries == MAX_TRIES or self.clock.monotonic() + pause > deadline:
                break
            self.clock.sleep(pause)
        if failed:
            add_metric("Errors", len(failed), error="DeliveryFailed")
        return [outcomes[str(index)] for index in range(len(messages))]

    def _entry(self, index: int, message: Message) -> Entry:
        entry: Entry = {"Id": str(index), "MessageBody": json.dumps(message, separators=(",", ":"))}
        if self.url.endswith(".fifo"):
            # A problem about a whole room names no user.
            target = Target(message["app_id"], message["room_id"], message.get("user_id", ""))
            entry |= {"MessageGroupId": target.digest(), "MessageDeduplicationId": message["id"]}
        return entry

    def _send_batch(self, batch: Sequence[Entry]) -> dict[str, Outcome]:
        try:
            answer = self.client.send_message_batch(QueueUrl=self.url, Entries=list(batch))
        except (ClientError, BotoCoreError) as error:
            reason = aws.error_code(error)
            logger.warning("SQS did not accept a batch.", extra={"reason": reason, "messages": len(batch)})
            return _all(batch, reason)
        sent = {entry["Id"]: entry["MessageId"] for entry in answer.get("Successful", ())}
        failed = {
            entry["Id"]: _failure(entry["Code"], retryable=not entry["SenderFault"])
            for entry in answer.get("Failed", ())
        }
        return _all(batch, "NotAnswered") | sent | failed


@dataclass(eq=False)
class RetryQueue:
    """Keeps callback events for later, and carries rechecks; safe to share among threads."""

    client: Callable[[], Any]
    url: str
    dead_letter_url: str = ""
    recheck_delay_seconds: int = RECHECK_DELAY_SECONDS

    @classmethod
    @cache
    def from_settings(cls, settings: Settings) -> "RetryQueue":
        """The queue that `CALLBACK_RETRY_QUEUE_URL` names, one for all services; two tries take at most 1.4 s."""
        url = settings.require("callback_retry_queue_url")
        # A recheck must be sent later than the observation by more than the skew.
        delay = math.ceil(settings.rtc_skew_seconds) + 1
        client = aws.client_on_demand("sqs", connect_timeout=0.3, read_timeout=0.4, retries=aws.ONE_TRY)
        return cls(client, url, settings.callback_dead_letter_queue_url, delay)

    def keep(self, text: str, received_at_ms: int, *, url: str = "") -> None:
        """Keep the text of a callback event, here or in another queue; raises `DeliveryFailed`."""
        received = {"DataType": "Number", "StringValue": str(received_at_ms)}
        self._send(url or self.url, MessageBody=text, MessageAttributes={RECEIVED: received})

    def dead_letter(self, message: "QueueMessage") -> bool:
        """Move a message to the dead-letter queue; whether there is one. Raises `DeliveryFailed`."""
        if self.dead_letter_url:
            self.keep(message.body, message.received_at_ms, url=self.dead_letter_url)
        return bool(self.dead_letter_url)

    def recheck(self, target: Target, due_ms: int) -> None:
        """Ask, by a delayed message, to look at a target again at a time since 1970; raises `DeliveryFailed`."""
        body = json.dumps({"recheck": target.as_dict(), "due_ms": due_ms}, separators=(",", ":"))
        self._send(self.url, MessageBody=body, DelaySeconds=self.recheck_delay_seconds)
        add_metric("Rechecks")

    def _send(self, url: str, **parameters: Any) -> None:
        try:
            try:
                self.client().send_message(QueueUrl=url, **parameters)
            except (ClientError, BotoCoreError):
                # The first request after a pause may meet a kept connection that is dead.
                self.client().send_message(QueueUrl=url, **parameters)
        except (ClientError, BotoCoreError) as error:
            add_metric("Errors", error="DeliveryFailed")
            raise _failure(aws.error_code(error), retryable=True) from None


def parse_recheck(body: str, app_ids: Sequence[str]) -> tuple[Target, int] | None:
    """The target of a recheck message, and when it is due; None for any other text, such as a callback event."""
    try:
        message = parse_json(body)
    except JsonError:
        return None
    # A callback event may have any fields that its signature does not cover, but never these alone.
    if not isinstance(message, dict) or message.keys() != {"recheck", "due_ms"}:
        return None
    target = parse_target(message["recheck"], app_ids, "recheck")
    return target, parse_whole_number(message["due_ms"], "due_ms", 0, 10**15)


@dataclass(frozen=True, slots=True)
class QueueMessage:
    """A message of the retry queue, as an event source mapping hands it to a function."""

    id: str
    body: str
    received_at_ms: int
    receive_count: int

    @property
    def is_recheck(self) -> bool:
        """Whether the message looks like a recheck, which may wait for its slot while events must not."""
        return self.body.startswith('{"recheck":')


def messages_of(event: Mapping[str, Any]) -> list[QueueMessage]:
    """The messages of a batch; raises `InvalidRequest` for records of anything but a queue.

    A record that is not formed as SQS forms it has an empty body, so that it fails alone.
    """
    records, messages = event["Records"], []
    for entry in records if isinstance(records, list) else ():
        match entry:
            case {"eventSource": "aws:sqs", "messageId": str(message_id)}:
                messages.append(_message(message_id, entry))
    if not messages and records != []:
        raise invalid("the event", "must be a request of API Gateway, or a batch of CallbackRetryQueue's messages")
    return messages


def _message(message_id: str, entry: Mapping[str, Any]) -> QueueMessage:
    try:
        attributes, own = entry["attributes"], entry.get("messageAttributes") or {}
        received = own.get(RECEIVED, {}).get("stringValue", attributes["SentTimestamp"])
        count = int(attributes["ApproximateReceiveCount"])
        return QueueMessage(message_id, str(entry["body"]), int(received), count)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return QueueMessage(message_id, "", 0, 0)


def _all(batch: Sequence[Entry], reason: str) -> dict[str, Outcome]:
    return {entry["Id"]: _failure(reason, retryable=True) for entry in batch}


def _failure(reason: str, *, retryable: bool) -> DeliveryFailed:
    detail = f"SQS did not accept the message ({reason}). Check the queue and the function's policy."
    return DeliveryFailed(detail, retryable=retryable)
