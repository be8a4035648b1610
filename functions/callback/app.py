"""The vendor's pushed events, from API Gateway, and from the queue of those that could not be taken in at once."""

import os
import time
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext

from stream_state.callback import Callback
from stream_state.errors import DeliveryFailed, InvalidTarget, StreamStateError
from stream_state.gateway import Request, json_response, problem_response
from stream_state.lookup import deadline
from stream_state.observability import entry_point, log_error
from stream_state.queue import RetryQueue
from stream_state.settings import Settings

# The vendor gives up after 5 s: what took longer than this is kept for later instead.
TAKE_SECONDS = 3

settings = Settings.from_environment(os.environ)
callback = Callback.from_settings(settings)
retry_queue = RetryQueue.from_settings(settings)


@entry_point
def lambda_handler(event: Any, context: LambdaContext) -> dict[str, Any]:
    """Take in the event of a request, or those of a batch of the retry queue."""
    if "Records" in event:
        failed = [
            record for record in event["Records"] if not taken_again(record, deadline(context, reserve_seconds=1))
        ]
        return {"batchItemFailures": [{"itemIdentifier": record["messageId"]} for record in failed]}
    try:
        take(Request(event).event_text())
    except StreamStateError as error:
        log_error(error)
        response = problem_response(error, {**event, "asked_path": event.get("rawPath") or event.get("path")})
    else:
        response = json_response(HTTPStatus.OK, {})
    return {"statusCode": response.status_code, "headers": response.headers, "body": response.body}


def take(text: str) -> None:
    """Take in a pushed event; one that cannot be stored or told now is kept for later."""
    arrived = time.time()
    try:
        done = callback.take(text, int(arrived * 1000), time.monotonic() + TAKE_SECONDS)
    except InvalidTarget:
        raise
    except StreamStateError as error:
        log_error(error)
        retry_queue.park(text)
    else:
        if not done:
            detail = "The room has more users than there was time for. The event must come again."
            raise DeliveryFailed(detail)


def taken_again(record: Mapping[str, Any], until: float) -> bool:
    """Whether an event of the retry queue was taken in; it counts as arrived when it was put there."""
    try:
        return callback.take(record["body"], int(record["attributes"]["SentTimestamp"]), until)
    except StreamStateError as error:
        log_error(error)
        return False
