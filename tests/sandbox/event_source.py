"""An event source mapping: sends a queue's messages in batches to a function, which reports the failed messages."""

import threading
from collections.abc import Callable, Mapping
from typing import Any

from tests.sandbox.functions import Invocation

PAUSE_SECONDS = 0.3


class EventSource:
    """Polls from a thread of its own until `stop`; a failed message comes again from the queue."""

    def __init__(self, sqs: Any, mapping: Mapping[str, Any], invoke: Callable[[object], Invocation]) -> None:
        self._sqs = sqs
        self._arn = mapping["EventSourceArn"]
        self._batch_size = mapping["BatchSize"]
        self._url = sqs.get_queue_url(QueueName=self._arn.rpartition(":")[2])["QueueUrl"]
        self._invoke = invoke
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Poll no more, and wait for the batch under way."""
        self._ending.set()
        self._thread.join()

    def _poll(self) -> None:
        while not self._ending.wait(PAUSE_SECONDS):
            names = {"AttributeNames": ["All"], "MessageAttributeNames": ["All"]}
            answer = self._sqs.receive_message(QueueUrl=self._url, MaxNumberOfMessages=self._batch_size, **names)
            messages = answer.get("Messages", [])
            invocation = self._invoke({"Records": list(map(self._record, messages))}) if messages else None
            if invocation and not invocation.error:
                failed = {failure["itemIdentifier"] for failure in invocation.payload["batchItemFailures"]}
                for message in messages:
                    if message["MessageId"] not in failed:
                        self._sqs.delete_message(QueueUrl=self._url, ReceiptHandle=message["ReceiptHandle"])

    def _record(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """A message as Lambda hands it to the function."""
        attributes = {
            name: {"dataType": value["DataType"], "stringValue": value["StringValue"]}
            for name, value in message.get("MessageAttributes", {}).items()
        }
        return {
            "messageId": message["MessageId"],
            "receiptHandle": message["ReceiptHandle"],
            "body": message["Body"],
            "attributes": message["Attributes"],
            "messageAttributes": attributes,
            "md5OfBody": message["MD5OfBody"],
            "eventSource": "aws:sqs",
            "eventSourceARN": self._arn,
            "awsRegion": self._arn.split(":")[3],
        }
