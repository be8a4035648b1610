"""The vendor's pushed events, from API Gateway, and from the queue of those that could not be taken in at once."""

import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from stream_state.callback import REASONS, Callback
from stream_state.errors import DeliveryFailed, InvalidTarget, StreamStateError
from stream_state.gateway import Request, json_response, problem_response
from stream_state.lookup import deadline
from stream_state.observability import entry_point, log_error, logger, record
from stream_state.queue import ARRIVED, RetryQueue
from stream_state.settings import Settings

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext

# The vendor gives up after 5 s: what is not done before this is kept for later, which takes 1.4 s at most.
TAKE_SECONDS = 3
# The end of a room stops, and nothing more is sent, while there is time to answer.
STOP_SECONDS = 2.5

settings = Settings.from_environment(os.environ)
callback = Callback.from_settings(settings)
retry_queue = RetryQueue.from_settings(settings)
# Time-outs of the clients do not bound the whole: looking up a name has none, and an answer may come byte by byte. More
# than one thread, since one that hangs must not keep the next event waiting.
workers = ThreadPoolExecutor(4)


@entry_point
def lambda_handler(event: Any, context: "LambdaContext") -> dict[str, Any]:
    """Take in the event of a request, or those of a batch of the retry queue."""
    if "Records" in event:
        until = deadline(context, reserve_seconds=1)
        failed = [message["messageId"] for message in event["Records"] if not taken_again(message, until)]
        return {"batchItemFailures": [{"itemIdentifier": message_id} for message_id in failed]}
    try:
        take(Request(event).event_text())
    except StreamStateError as error:
        log_refusal(error)
        return problem_response(error, event)
    return json_response(HTTPStatus.OK, {})


def take(text: str) -> None:
    """Take in a pushed event; one that cannot be stored or told now is kept for later."""
    arrived_at_ms = int(time.time() * 1000)
    done = None
    try:
        done = workers.submit(callback.take, text, arrived_at_ms, time.monotonic() + STOP_SECONDS).result(TAKE_SECONDS)
    except InvalidTarget:
        raise
    except StreamStateError as error:
        log_error(error)
    except TimeoutError:
        logger.warning("The event could not be taken in in time.")
    if not done:
        retry_queue.park(text, arrived_at_ms)
    if done is False:
        detail = "The room has more users than there was time for. The event must come again."
        raise DeliveryFailed(detail)


def taken_again(message: Mapping[str, Any], until: float) -> bool:
    """Whether an event of the retry queue was taken in; it counts from when it first came."""
    arrived = message["messageAttributes"].get(ARRIVED, {}).get("stringValue")
    try:
        return callback.take(message["body"], int(arrived or message["attributes"]["SentTimestamp"]), until)
    except StreamStateError as error:
        log_refusal(error)
        return False


def log_refusal(error: StreamStateError) -> None:
    """Log why an event was not taken in, and count one that is not accepted."""
    log_error(error)
    if isinstance(error, InvalidTarget):
        record("CallbackRefused", reason=REASONS[error.http_status])
