"""EventBridge schedule, rule or direct invoke: many targets, delivered to the queue."""

import os
from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext

from stream_state.clock import deadline_of
from stream_state.domain.requests import SweepRequest
from stream_state.observability import entry_point
from stream_state.services.sweep import Sweep
from stream_state.settings import Settings

# The last tenth of the time, at most half a minute, is kept to send the problems of targets that were not reached. A
# sixth of that is kept to end.
SHARE_KEPT = 0.1
MOST_KEPT_SECONDS = 30

settings = Settings.from_environment(os.environ)
sweep = Sweep.from_settings(settings)


@entry_point
def lambda_handler(event: Any, context: LambdaContext) -> dict[str, Any]:
    """Sweep the targets of the event and sum up."""
    request = SweepRequest.parse(event, settings.rtc_app_ids)
    kept_seconds = min(context.get_remaining_time_in_millis() / 1000 * SHARE_KEPT, MOST_KEPT_SECONDS)
    return sweep.run(request, deadline_of(context, kept_seconds), deadline_of(context, kept_seconds / 6))
