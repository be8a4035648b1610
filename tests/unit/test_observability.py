"""Logs and metrics: what they carry, and that no value is lost."""

import io
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from stream_state.domain.targets import Target
from stream_state.errors import RtcThrottled, TargetNotFound
from stream_state.observability import add_metric, entry_point, log_error, logger, publish_metrics
from tests.unit.memory import Context

type Documents = list[dict[str, Any]]


@pytest.fixture
def published(capsys: pytest.CaptureFixture[str]) -> Callable[[], Documents]:
    """The metric documents that were written since the last look."""
    return lambda: [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.fixture(autouse=True)
def no_log_keys_left() -> None:
    """Start without the keys that an earlier invocation gave the logger."""
    logger.structure_logs()


def lines(logs: io.StringIO) -> Documents:
    return [json.loads(line) for line in logs.getvalue().splitlines()]


def values(documents: Documents, metric: str) -> list[float]:
    return [value for document in documents for value in document.get(metric, ())]


def test_a_metric_is_published_once_in_the_embedded_format(published: Callable[[], Documents]) -> None:
    add_metric("RtcCalls")
    add_metric("RtcLatency", 12.5, "Milliseconds")
    add_metric("Errors", error="RtcThrottled")
    add_metric("Errors", error="RtcUnavailable")
    add_metric("Errors", 2, error="RtcUnavailable")

    publish_metrics()
    documents = published()
    publish_metrics()

    assert published() == []
    assert (values(documents, "RtcCalls"), values(documents, "RtcLatency")) == ([1], [12.5])
    by_error = {document["error"]: document["Errors"] for document in documents if "error" in document}
    assert by_error == {"RtcThrottled": [1], "RtcUnavailable": [3]}
    found = [document["_aws"]["CloudWatchMetrics"][0] for document in documents]
    assert {metrics["Namespace"] for metrics in found} == {"StreamState"}
    assert sorted(metrics["Dimensions"] for metrics in found) == [[[]], [["error"]], [["error"]]]


def test_a_metric_with_as_many_values_as_a_document_holds_is_published_at_once(
    published: Callable[[], Documents],
) -> None:
    for milliseconds in range(250):
        add_metric("RtcLatency", milliseconds, "Milliseconds")
    full = published()
    publish_metrics()

    assert [len(document["RtcLatency"]) for document in full] == [100, 100]
    assert values(full + published(), "RtcLatency") == list(range(250))


def test_no_value_is_lost_among_many_threads(published: Callable[[], Documents]) -> None:
    def work(_: int) -> None:
        for _ in range(50):
            add_metric("RtcCalls")
            add_metric("Errors", error="RtcThrottled")
            add_metric("RtcLatency", 1, "Milliseconds")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    publish_metrics()

    documents = published()
    assert [sum(values(documents, name)) for name in ("RtcCalls", "Errors", "RtcLatency")] == [400, 400, 400]
    assert all(document["error"] == "RtcThrottled" for document in documents if "Errors" in document)


@pytest.mark.parametrize(
    ("event", "correlation_id"),
    [
        ({"requestContext": {"requestId": "api-1"}}, "api-1"),
        ({"id": "event-1", "source": "aws.scheduler"}, "event-1"),
        ({"requestContext": None, "id": "event-1"}, "event-1"),
        *(
            (event, "invocation-1")
            for event in ({"requestContext": {}, "id": "event-1"}, {"id": 7}, {}, None, 7, "text", [{"id": "event-1"}])
        ),
    ],
)
def test_an_invocation_logs_its_correlation_id_and_keeps_nothing_of_the_one_before(
    event: object, correlation_id: str, logs: io.StringIO
) -> None:
    @entry_point
    def handler(event: Any, context: Any) -> str:
        logger.info("At work.")
        logger.append_keys(room_id="class-1")
        return "done"

    handler({"id": "event-0"}, Context())  # type: ignore[arg-type]  # a fake
    assert handler(event, Context()) == "done"  # type: ignore[arg-type]  # a fake

    assert [line["correlation_id"] for line in lines(logs)] == ["event-0", correlation_id]
    for line in lines(logs):
        assert (line["message"], line["function_request_id"]) == ("At work.", "invocation-1")
        assert "room_id" not in line


@pytest.mark.parametrize(
    "error", [RtcThrottled("Later.", rtc_code="Flow", rtc_request_id="request-1"), ZeroDivisionError()]
)
def test_an_error_passes_is_logged_once_and_loses_no_metric(
    error: Exception, logs: io.StringIO, published: Callable[[], Documents]
) -> None:
    @entry_point
    def handler(event: Any, context: Any) -> None:
        add_metric("RtcCalls")
        raise error

    with pytest.raises(type(error)):
        handler({}, Context())  # type: ignore[arg-type]  # a fake

    expected = {"level": "WARNING", "message": "Later.", "error": "RtcThrottled"}
    expected |= {"rtc_code": "Flow", "rtc_request_id": "request-1"}
    # Lambda itself logs an error that nobody foresaw.
    assert [line | expected == line for line in lines(logs)] == [True] * isinstance(error, RtcThrottled)
    assert values(published(), "RtcCalls") == [1]


def test_an_error_is_logged_with_its_target_and_without_what_is_not_known(logs: io.StringIO) -> None:
    log_error(TargetNotFound("Unknown."), Target("app-1", "class-1", "teacher"))

    (line,) = lines(logs)
    assert (line["app_id"], line["room_id"], line["user_id"]) == ("app-1", "class-1", "teacher")
    assert not {"rtc_code", "rtc_request_id"} & line.keys()
    assert line["timestamp"][-6:].startswith(("+", "-")) or line["timestamp"].endswith("Z")
