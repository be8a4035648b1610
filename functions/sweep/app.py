"""EventBridge schedule, rule or direct invoke: many targets to the queue."""

import os
from typing import TYPE_CHECKING, Any

from stream_state.lookup import deadline
from stream_state.observability import entry_point
from stream_state.settings import Settings
from stream_state.sweep import Sweep, SweepRequest

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext

settings = Settings.from_environment(os.environ)
sweep = Sweep.from_settings(settings)

# The last tenth of the time, at most half a minute, is kept to tell the queue what was not reached, and a sixth of that
# to end.
SHARE_KEPT = 0.1
MOST_KEPT_SECONDS = 30


@entry_point
def lambda_handler(event: Any, context: "LambdaContext") -> dict[str, Any]:
    """Sweep the targets of the event and sum up."""
    request = SweepRequest.parse(event, settings.rtc_app_ids)
    kept_seconds = min(context.get_remaining_time_in_millis() / 1000 * SHARE_KEPT, MOST_KEPT_SECONDS)
    return sweep.run(request, deadline(context, kept_seconds), deadline(context, kept_seconds / 6))
