"""Logs and metrics: what they carry, and that none is lost."""

import io
import json
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from stream_state.errors import RtcThrottled, TargetNotFound
from stream_state.model import Target
from stream_state.observability import entry_point, log_error, logger, publish_metrics, record

CONTEXT = SimpleNamespace(
    aws_request_id="invocation-1",
    function_name="a-function",
    memory_limit_in_mb=256,
    invoked_function_arn="arn:aws:lambda:eu-central-1:123456789012:function:a-function",
)


@pytest.fixture
def published(capsys: pytest.CaptureFixture[str]) -> Callable[[], list[dict[str, Any]]]:
    """The metrics that were written since the last look."""
    return lambda: [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.fixture(autouse=True)
def no_log_keys_left() -> None:
    """Start without what an earlier invocation gave the logger."""
    logger.structure_logs()


def lines(logs: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in logs.getvalue().splitlines()]


def values(documents: list[dict[str, Any]], metric: str) -> list[float]:
    return [value for document in documents for value in document.get(metric, ())]


def test_a_metric_is_published_once_in_the_embedded_format(published: Callable[[], list[dict[str, Any]]]) -> None:
    record("RtcCalls")
    record("RtcLatency", 12.5, "Milliseconds")
    record("RtcErrors", error="RtcThrottled")
    record("RtcErrors", error="RtcUnavailable")
    record("RtcErrors", error="RtcUnavailable")

    publish_metrics()
    documents = published()
    publish_metrics()

    assert published() == []
    assert values(documents, "RtcCalls") == [1]
    assert values(documents, "RtcLatency") == [12.5]
    by_error = {document["error"]: sum(document["RtcErrors"]) for document in documents if "error" in document}
    assert by_error == {"RtcThrottled": 1, "RtcUnavailable": 2}
    for document in documents:
        metrics = document["_aws"]["CloudWatchMetrics"][0]
        assert metrics["Namespace"] == "StreamState"
        assert metrics["Dimensions"] in ([[]], [["error"]])


def test_no_value_is_lost_among_many_threads(published: Callable[[], list[dict[str, Any]]]) -> None:
    def work() -> None:
        for _ in range(50):
            record("RtcCalls")
            record("RtcErrors", error="RtcThrottled")
            record("RtcLatency", 1, "Milliseconds")

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    publish_metrics()

    documents = published()
    assert [sum(values(documents, name)) for name in ("RtcCalls", "RtcErrors", "RtcLatency")] == [400, 400, 400]
    assert all(document["error"] == "RtcThrottled" for document in documents if "RtcErrors" in document)


@pytest.mark.parametrize(
    ("event", "correlation_id"),
    [
        ({"requestContext": {"requestId": "api-1"}}, "api-1"),
        ({"id": "event-1", "source": "aws.scheduler"}, "event-1"),
        ({"requestContext": {}, "id": "event-1"}, "invocation-1"),
        ({"requestContext": None, "id": "event-1"}, "event-1"),
        ({"id": 7}, "invocation-1"),
        ({}, "invocation-1"),
        (None, "invocation-1"),
        ([{"id": "event-1"}], "invocation-1"),
    ],
)
def test_what_an_invocation_logs_carries_its_correlation_id(
    event: object, correlation_id: str, logs: io.StringIO
) -> None:
    @entry_point
    def handler(event: Any, context: Any) -> str:
        logger.info("At work.")
        return "done"

    assert handler(event, CONTEXT) == "done"
    (line,) = lines(logs)
    assert (line["message"], line["correlation_id"]) == ("At work.", correlation_id)
    assert line["function_request_id"] == "invocation-1"


def test_an_invocation_keeps_nothing_of_the_one_before(logs: io.StringIO) -> None:
    @entry_point
    def handler(event: Any, context: Any) -> None:
        logger.info("At work.")
        logger.append_keys(room_id="class-1")

    handler({"id": "event-1"}, CONTEXT)
    handler({}, CONTEXT)

    assert [line["correlation_id"] for line in lines(logs)] == ["event-1", "invocation-1"]
    assert "room_id" not in lines(logs)[1]


def test_an_error_is_logged_once_and_metrics_are_published_all_the_same(
    logs: io.StringIO, published: Callable[[], list[dict[str, Any]]]
) -> None:
    @entry_point
    def handler(event: Any, context: Any) -> None:
        record("RtcCalls")
        raise RtcThrottled("Later.", rtc_code="FlowLimitExceeded", rtc_request_id="request-1")

    with pytest.raises(RtcThrottled):
        handler({}, CONTEXT)

    (line,) = lines(logs)
    expected = {"level": "WARNING", "message": "Later.", "error": "RtcThrottled"}
    assert expected.items() <= line.items()
    assert (line["rtc_code"], line["rtc_request_id"]) == ("FlowLimitExceeded", "request-1")
    assert values(published(), "RtcCalls") == [1]


def test_an_unforeseen_error_passes_and_metrics_are_published(
    logs: io.StringIO, published: Callable[[], list[dict[str, Any]]]
) -> None:
    @entry_point
    def handler(event: Any, context: Any) -> None:
        record("RtcCalls")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        handler({}, CONTEXT)

    assert values(published(), "RtcCalls") == [1]


def test_an_error_is_logged_with_its_target_and_without_what_is_not_known(logs: io.StringIO) -> None:
    log_error(TargetNotFound("Unknown."), Target("app-1", "class-1", "teacher"))

    (line,) = lines(logs)
    assert (line["app_id"], line["room_id"], line["user_id"]) == ("app-1", "class-1", "teacher")
    assert not {"rtc_code", "rtc_request_id"} & line.keys()
    assert line["timestamp"][-6:].startswith(("+", "-")) or line["timestamp"].endswith("Z")
