"""The only logger and the only metrics."""

import functools
import threading
from collections.abc import Callable
from typing import Any

from aws_lambda_powertools.logging import Logger
from aws_lambda_powertools.metrics import EphemeralMetrics
from aws_lambda_powertools.utilities.typing import LambdaContext

from stream_state.domain.targets import Room, Target
from stream_state.errors import StreamStateError

NAMESPACE = "StreamState"
# The embedded metric format allows so many values of one metric in one document.
MAX_VALUES = 100

logger = Logger(use_rfc3339=True)
_lock = threading.Lock()
# Powertools' metrics by their dimension, each safe within the lock alone.
_emitters: dict[tuple[tuple[str, str], ...], EphemeralMetrics] = {}

type Handler = Callable[[Any, LambdaContext], Any]


def add_metric(metric: str, value: float = 1, unit: str = "Count", **dimension: str) -> None:
    """Add a value to a metric, or to the metric with a dimension such as `error="RtcThrottled"`; counts are summed."""
    key = tuple(dimension.items())
    with _lock:
        if key not in _emitters:
            _emitters[key] = EphemeralMetrics(namespace=NAMESPACE)
            for name, text in key:
                _emitters[key].add_dimension(name, text)
        values = _emitters[key].metric_set.get(metric, {}).get("Value", [])
        if values and unit == "Count":
            values[0] += value
        elif values and len(values) < MAX_VALUES - 1:
            # Powertools formats all values for a debug message: that is a tenth of a call's processor time.
            values.append(value)
        else:
            # With the last value that a document holds, Powertools writes the document at once.
            _emitters[key].add_metric(metric, unit, value)


def publish_metrics() -> None:
    """Write all recorded values in CloudWatch's embedded metric format, and forget them."""
    with _lock:
        for emitter in _emitters.values():
            if emitter.metric_set:
                emitter.flush_metrics()
        _emitters.clear()


def entry_point(handler: Handler) -> Handler:
    """Give a handler the event's correlation id in its logs, one log line per error, and published metrics."""

    @logger.inject_lambda_context(clear_state=True)
    @functools.wraps(handler)
    def wrapper(event: Any, context: LambdaContext) -> Any:
        logger.set_correlation_id(_correlation_id(event) or context.aws_request_id)
        try:
            return handler(event, context)
        except StreamStateError as error:
            log_error(error)
            raise
        finally:
            publish_metrics()

    return wrapper


def log_error(error: StreamStateError, target: Target | Room | None = None) -> None:
    """Log an error with the vendor's code for it, and the target that it concerns."""
    codes = {"rtc_code": error.rtc_code, "rtc_request_id": error.rtc_request_id}
    keys = {"error": error.name, **{name: value for name, value in codes.items() if value}}
    logger.warning(error.detail, extra={**keys, **(target.as_dict() if target else {})})


def _correlation_id(event: Any) -> str | None:
    """API Gateway's request id, or the id of an EventBridge event."""
    if not isinstance(event, dict):
        return None
    request = event.get("requestContext")
    found = request.get("requestId") if isinstance(request, dict) else event.get("id")
    return found if isinstance(found, str) and found.isascii() else None
