"""The only logger and the only metrics."""

import functools
import threading
from collections.abc import Callable, Iterable, Mapping
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
_values: dict[tuple[Any, ...], list[float]] = {}

type Handler = Callable[[Any, LambdaContext], Any]


def record(metric: str, value: float = 1, unit: str = "Count", **dimension: str) -> None:
    """Add a value to a metric, or to the metric with a dimension such as `error="RtcThrottled"`; counts are summed."""
    key = (unit, metric, *dimension.items())
    with _lock:
        values = _values.setdefault(key, [])
        if unit == "Count" and values:
            values[0] += value
        else:
            values.append(value)
        # A full metric is written at once, so that a long sweep does not collect values without bound.
        if len(values) == MAX_VALUES:
            _write({key: _values.pop(key)})


def record_error(error: StreamStateError | str, count: int = 1) -> None:
    """Count an error, by its name."""
    record("Errors", count, error=error if isinstance(error, str) else error.name)


def publish_metrics() -> None:
    """Write all recorded values in CloudWatch's embedded metric format, and forget them."""
    with _lock:
        _write(_values)
        _values.clear()


def _write(recorded: Mapping[tuple[Any, ...], Iterable[float]]) -> None:
    """Print documents; the caller holds the lock, so that the lines of two threads do not mix."""
    emitters: dict[tuple[tuple[str, str], ...], EphemeralMetrics] = {}
    for (unit, metric, *dimensions), values in recorded.items():
        emitter = emitters.get(tuple(dimensions))
        if emitter is None:
            emitter = emitters[tuple(dimensions)] = EphemeralMetrics(namespace=NAMESPACE)
            for name, value in dimensions:
                emitter.add_dimension(name, value)
        first, *others = values
        emitter.add_metric(metric, unit, first)
        # `add_metric` formats all values for a debug message with each value that it adds.
        emitter.metric_set[metric]["Value"] += others
    for emitter in emitters.values():
        if emitter.metric_set:
            emitter.flush_metrics()


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
