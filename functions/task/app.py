"""Step Functions or direct invoke: one target or some, answered, or delivered to the queue."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stream_state.errors import StreamStateError
from stream_state.lookup import Lookup, deadline, item
from stream_state.model import Target, Until, parse_targets
from stream_state.observability import entry_point
from stream_state.settings import Settings
from stream_state.table import StateTable
from stream_state.telling import Teller
from stream_state.validation import invalid, parse_max_age, parse_object

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext

MAX_TARGETS = 100
# Kept of the time: to write what the last calls told and to answer, and to deliver before that.
ANSWER_SECONDS = 4
DELIVERY_SECONDS = 12

settings = Settings.from_environment(os.environ)
table = StateTable.from_settings(settings)
lookup = Lookup.from_settings(settings, table, "task")
teller = Teller.from_settings(settings, table)


@entry_point
def lambda_handler(event: Any, context: "LambdaContext") -> dict[str, Any]:
    """Answer for the target or targets of the event; a single target's error is raised by its name."""
    several = isinstance(event, Mapping) and "targets" in event
    options = {"max_age", "deliver"} if several else {"max_age", "deliver", "until"}
    names = {"targets"} if several else {"app_id", "room_id", "user_id"}
    request = parse_object(event, names | options, "the event")
    if several:
        targets = parse_targets(request["targets"], settings.rtc_app_ids, MAX_TARGETS)
    else:
        targets = [Target.parse(request, settings.rtc_app_ids, more_keys=options)]
    max_age_seconds = parse_max_age(request.get("max_age", 0))
    deliver = request.get("deliver", "return")
    if deliver not in ("return", "queue"):
        raise invalid("deliver", "must be return or queue")
    until = Until.parse(request["until"]) if "until" in request else None
    if until and deliver == "queue":
        raise invalid("until", "cannot be combined with deliver: queue")

    if until:
        state, holds = lookup.until(targets[0], until, deadline(context, ANSWER_SECONDS), max_age_seconds)
        return {**state.answer(), "holds": holds}
    if deliver == "queue":
        outcomes = lookup.some(targets, deadline(context, DELIVERY_SECONDS), max_age_seconds)
        results = teller.deliver(outcomes, deadline(context, ANSWER_SECONDS))
    else:
        outcomes = lookup.some(targets, deadline(context, ANSWER_SECONDS), max_age_seconds)
        results = [outcome.result() for outcome in outcomes]
    if several:
        return {"results": [item(target, result) for target, result in zip(targets, results, strict=True)]}
    if isinstance(results[0], StreamStateError):
        raise results[0]
    return results[0]
