"""Step Functions or direct invoke: one target or several, answered, or delivered to the queue."""

import os
from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext

from stream_state.adapters.state_store import StateStore
from stream_state.adapters.table import RESERVE_SECONDS, Table
from stream_state.clock import deadline_of
from stream_state.domain.documents import item
from stream_state.domain.requests import TaskRequest
from stream_state.domain.targets import Target
from stream_state.errors import StreamStateError
from stream_state.observability import entry_point, logger
from stream_state.services import waits
from stream_state.services.delivery import Delivery
from stream_state.services.lookup import Lookup
from stream_state.settings import Settings

# The part of the time that is kept for delivery, recording included.
DELIVERY_SECONDS = 12

settings = Settings.from_environment(os.environ)
store = StateStore.from_settings(settings, Table.from_settings(settings))
lookup = Lookup.from_settings(settings, store, "task")
delivery = Delivery.from_settings(settings, lookup.recorder)


@entry_point
def lambda_handler(event: Any, context: LambdaContext) -> dict[str, Any]:
    """Answer for the target or targets of the event; a single target's error is raised by its name."""
    request = TaskRequest.parse(event, settings.rtc_app_ids)
    first = request.targets[0]
    if request.is_single:
        logger.append_keys(**first.as_dict())
    deadline = deadline_of(context, RESERVE_SECONDS)
    if request.wait and isinstance(first, Target):
        waits.begin_round(lookup, first, request.wait, deadline)
        return {}
    if request.condition and isinstance(first, Target):
        answer, holds = waits.check(lookup, first, request.condition, deadline, request.max_age_seconds)
        return {**answer.document(), "holds": holds}
    calls_deadline = deadline_of(context, DELIVERY_SECONDS) if request.to_queue else deadline
    is_user = request.is_single and isinstance(first, Target)
    outcomes = lookup.some(request.targets, calls_deadline, request.max_age_seconds, logs_errors=not is_user)
    results = delivery.deliver(outcomes, deadline) if request.to_queue else [outcome.result() for outcome in outcomes]
    if request.is_single and [outcome.target for outcome in outcomes] == [first]:
        if isinstance(results[0], StreamStateError):
            raise results[0]
        return results[0]
    return {"results": [item(outcome.target, result) for outcome, result in zip(outcomes, results, strict=True)]}
