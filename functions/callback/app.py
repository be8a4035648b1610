"""The vendor's callback events, from API Gateway and from the retry queue, and the rechecks in that queue."""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from aws_lambda_powertools.utilities.typing import LambdaContext

from stream_state.adapters.api_gateway import Request, json_response, problem_response
from stream_state.adapters.queues import QueueMessage, RetryQueue, messages_of, parse_recheck
from stream_state.clock import CLOCK, deadline_of
from stream_state.domain.parsing import invalid
from stream_state.errors import CredentialsUnavailable, InvalidRequest, StreamStateError
from stream_state.observability import add_metric, entry_point, log_error, logger
from stream_state.services.callbacks import Callbacks
from stream_state.settings import Settings

if TYPE_CHECKING:
    from stream_state.services.lookup import Lookup

PATH = "/callbacks/rtc"
# The vendor gives up after 5 s: an event that is not done before this goes to the retry queue, which takes 1.4 s.
RECEIVE_SECONDS = 3
# The end of a room stops, and nothing more is sent, while there is time to answer.
STOP_SECONDS = 2.5
# The function's own time that is kept to answer for a batch of the retry queue: at least a request to the table.
RESERVE_SECONDS = 3
# The dimension of `CallbackRefused`, by the HTTP status of the refusal.
REASONS = {400: "malformed", 401: "signature", 403: "app_id", 413: "too_large", 503: "key_unreadable"}
# A message of the retry queue that is refused so often is refused for good.
MAX_REFUSALS = 3

settings = Settings.from_environment(os.environ)
callbacks = Callbacks.from_settings(settings)
retry_queue = RetryQueue.from_settings(settings)
# Time-outs of the clients do not bound the whole. With several threads, one that hangs keeps no other event waiting.
workers = ThreadPoolExecutor(4)


@entry_point
def lambda_handler(event: Any, context: LambdaContext) -> dict[str, Any]:
    """Receive the event of a request, or the messages of a batch of the retry queue."""
    if isinstance(event, Mapping) and "Records" in event:
        deadline = deadline_of(context, RESERVE_SECONDS)
        messages = sorted(messages_of(event), key=lambda message: message.is_recheck)
        failed = [message.id for message in messages if not receive_again(message, deadline)]
        return {"batchItemFailures": [{"itemIdentifier": message_id} for message_id in failed]}
    is_request = isinstance(event, Mapping) and isinstance(event.get("requestContext"), Mapping)
    if not (is_request and event.keys() & {"rawPath", "path"}):
        raise invalid("the event", "must be a request of API Gateway, or a batch of CallbackRetryQueue's messages")
    try:
        request = Request(event)
        if not request.path.endswith(PATH):
            raise InvalidRequest(f"The request is not accepted: this function answers POST {PATH} only.")
        receive(request.event_text(), request.received_at_ms)
    except StreamStateError as error:
        log_refusal(error)
        return problem_response(error, event)
    return json_response(HTTPStatus.OK, {})


def receive(text: str, received_at_ms: int) -> None:
    """Receive a callback event; a verified event that cannot be stored or delivered now goes to the retry queue."""
    started = CLOCK.monotonic()
    try:
        event = workers.submit(callbacks.verified, text, received_at_ms).result(RECEIVE_SECONDS)
    except TimeoutError:
        raise CredentialsUnavailable("The callback key could not be read in time. Send the event again.") from None
    is_done = False
    try:
        received = workers.submit(callbacks.receive, event, started + STOP_SECONDS)
        is_done = received.result(max(started + RECEIVE_SECONDS - CLOCK.monotonic(), 0))
    except StreamStateError as error:
        log_error(error)
    except TimeoutError:
        logger.warning("The event could not be stored and delivered in time.")
    if not is_done:
        retry_queue.keep(text, received_at_ms)


def receive_again(message: QueueMessage, deadline: float) -> bool:
    """Whether a message of the retry queue is done: an event, which counts from its first arrival, or a recheck."""
    try:
        if recheck := parse_recheck(message.body, settings.rtc_app_ids):
            return callbacks.recheck(*recheck, lookup(), deadline)
        return callbacks.receive(callbacks.verified(message.body, message.received_at_ms), deadline)
    except StreamStateError as error:
        log_refusal(error)
        is_final = isinstance(error, InvalidRequest) and message.receive_count >= MAX_REFUSALS
    try:
        return is_final and retry_queue.dead_letter(message)
    except StreamStateError as error:
        log_error(error)
        return False


def log_refusal(error: StreamStateError) -> None:
    """Log why an event was not received, and count the reason."""
    log_error(error)
    if isinstance(error, InvalidRequest | CredentialsUnavailable):
        add_metric("CallbackRefused", reason=REASONS[error.status])
    if isinstance(error, CredentialsUnavailable):
        add_metric("Errors", error=error.name)


@cache
def lookup() -> "Lookup":
    """The client of the vendor, loaded for the first recheck only."""
    from stream_state.services.lookup import Lookup  # noqa: PLC0415 (most events need no vendor client)

    return Lookup.from_settings(settings, callbacks.recorder.store, "callback")
