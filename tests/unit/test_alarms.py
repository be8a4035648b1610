"""Alarms and dashboard: they name only what the code and AWS emit, and the runbook has a paragraph for each alarm."""

import ast
import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, get_args

import pytest

from stream_state import errors
from stream_state.callback import REASONS
from stream_state.errors import StreamStateError
from stream_state.quota import Function
from tests.unit.transformed import REPOSITORY, Template

TOPIC = "arn:aws:sns:eu-central-1:123456789012:alarms"
NAMESPACE, SERVICE = "StreamState", {"service": "stack"}
# Which values a dimension may have.
VALUES: Mapping[str, set[str]] = {
    "function": set(get_args(Function.__value__)),
    "reason": set(REASONS.values()),
    "error": {name for name, of in vars(errors).items() if isinstance(of, type) and issubclass(of, StreamStateError)},
}
# What AWS emits: by namespace the dimension, the type of resource that it names, and what its reference adds.
OF_AWS = {
    "AWS/ApiGateway": ("ApiId", "AWS::ApiGatewayV2::Api", "", {"4xx", "5xx", "Count"}),
    "AWS/Lambda": ("FunctionName", "AWS::Lambda::Function", "", {"Duration", "Errors", "Invocations", "Throttles"}),
    "AWS/SQS": (
        "QueueName",
        "AWS::SQS::Queue",
        ".QueueName",
        {"ApproximateAgeOfOldestMessage", "ApproximateNumberOfMessagesVisible"},
    ),
    "AWS/States": (
        "StateMachineArn",
        "AWS::StepFunctions::StateMachine",
        "",
        {"ExecutionsFailed", "ExecutionsStarted", "ExecutionsSucceeded"},
    ),
}

type Metric = tuple[str, str, Mapping[str, str]]


@pytest.fixture(scope="module", params=["false", "true"], ids=["without events", "with events"])
def template(request: pytest.FixtureRequest) -> Template:
    return Template(EnableCallbacks=request.param, AlarmTopicArn=TOPIC)


@cache
def emitted() -> dict[str, tuple[str, ...]]:
    """By metric that the code records: its dimensions beside the service."""
    found = {}
    for path in [*REPOSITORY.glob("layers/stream_state/**/*.py"), *REPOSITORY.glob("functions/*/app.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "record":
                (name, *_), dimensions = node.args, tuple(str(keyword.arg) for keyword in node.keywords)
                assert isinstance(name, ast.Constant)
                # CloudWatch adds nothing up: a metric has the same dimensions wherever it is recorded.
                assert found.setdefault(str(name.value), dimensions) == dimensions
    return found


def alarms(template: Template) -> dict[str, dict[str, Any]]:
    return template.of_type("AWS::CloudWatch::Alarm")


def of_alarm(alarm: Mapping[str, Any]) -> Iterator[Metric]:
    """The metrics that an alarm names; AWS::NoValue leaves None in a list."""
    queries = [
        entry["MetricStat"]["Metric"] for entry in filter(None, alarm.get("Metrics", [])) if "MetricStat" in entry
    ]
    for metric in queries or [alarm]:
        dimensions = {entry["Name"]: entry["Value"] for entry in metric["Dimensions"]}
        yield metric["Namespace"], metric["MetricName"], dimensions


def widgets(template: Template) -> list[dict[str, Any]]:
    (dashboard,) = template.of_type("AWS::CloudWatch::Dashboard").values()
    found: list[dict[str, Any]] = json.loads(dashboard["DashboardBody"])["widgets"]
    return found


def of_widget(widget: Mapping[str, Any]) -> Iterator[Metric]:
    """The metrics that a widget names or searches for."""
    for namespace, *rest in widget["properties"].get("metrics", []):
        if isinstance(namespace, str):
            name, *dimensions = [entry for entry in rest if isinstance(entry, str)]
            yield namespace, name, dict(zip(dimensions[::2], dimensions[1::2], strict=True))
        elif search := re.fullmatch(
            r"SEARCH\('\{(\w+),([\w,]+)\} MetricName=\"(\w+)\" service=\"(\w+)\"', 'Sum', 60\)", namespace["expression"]
        ):
            # Of the dimension that is searched for, any value may be found.
            values = dict.fromkeys(search[2].split(","), "")
            yield search[1], search[3], {**values, "service": search[4]}
        else:
            assert "SEARCH" not in namespace["expression"]


def check(template: Template, metric: Metric) -> None:
    """Fail if nothing emits the metric."""
    namespace, name, dimensions = metric
    if namespace == NAMESPACE:
        assert {"service": dimensions["service"]} == SERVICE
        more = {key: value for key, value in dimensions.items() if key != "service"}
        assert tuple(more) == emitted()[name]
        assert all(value in VALUES[key] | {""} for key, value in more.items())
    else:
        dimension, kind, attribute, names = OF_AWS[namespace]
        assert name in names
        ((key, value),) = dimensions.items()
        assert (key, value.removesuffix(attribute)) in {(dimension, made) for made in template.of_type(kind)}


def test_each_alarm_names_what_is_emitted(template: Template) -> None:
    assert len(alarms(template)) > 10
    for alarm in alarms(template).values():
        for metric in of_alarm(alarm):
            check(template, metric)


def test_each_widget_names_what_is_emitted(template: Template) -> None:
    named = [metric for widget in widgets(template) for metric in of_widget(widget)]

    assert {NAMESPACE, *OF_AWS} == {namespace for namespace, _, _ in named}
    for metric in named:
        check(template, metric)


def test_what_is_emitted_is_shown_or_has_no_need_to_be() -> None:
    template = Template(EnableCallbacks="true")
    shown = {name for widget in widgets(template) for namespace, name, _ in of_widget(widget) if namespace == NAMESPACE}
    watched = {name for alarm in alarms(template).values() for namespace, name, _ in of_alarm(alarm)}

    # How often the secret is read tells nothing that the errors do not; slots given are shown by who took them.
    assert emitted().keys() - shown - {"QuotaGranted", "SecretRefreshes"} == set()
    assert emitted().keys() - watched - shown == {"SecretRefreshes"}


def names_in(expressions: list[str]) -> set[str]:
    """The ids that expressions name; functions are in capitals."""
    return {name for text in expressions for name in re.findall(r"\b[a-z]\w*\b", re.sub(r"SEARCH\(.*\)", "", text))}


def test_expressions_name_what_stands_beside_them(template: Template) -> None:
    for alarm in alarms(template).values():
        result, *queries = filter(None, alarm.get("Metrics", [{"Expression": "METRICS()"}]))
        assert "METRICS()" in result["Expression"] or names_in([result["Expression"]]) == {of["Id"] for of in queries}
    for widget in widgets(template):
        last = [metric[-1] for metric in widget["properties"].get("metrics", []) if isinstance(metric[-1], dict)]
        named = names_in([of["expression"] for of in last if "expression" in of])
        assert named == {of["id"] for of in last if "id" in of}


def test_every_alarm_tells_the_topic_if_there_is_one(template: Template) -> None:
    for alarm in alarms(template).values():
        assert (alarm["AlarmActions"], alarm["OKActions"]) == ([TOPIC], [TOPIC])
        assert alarm["TreatMissingData"] == "notBreaching"
    for alarm in alarms(Template(EnableCallbacks="true")).values():
        assert not {"AlarmActions", "OKActions"} & alarm.keys()


def test_the_dashboard_shows_every_alarm(template: Template) -> None:
    shown = [arn for widget in widgets(template) if widget["type"] == "alarm" for arn in widget["properties"]["alarms"]]

    assert sorted(shown) == sorted(f"{name}.Arn" for name in alarms(template))


def test_the_lines_of_widgets_are_the_limit_and_the_alarms_threshold() -> None:
    template = Template(RtcQps="7")
    drawn = [widget["properties"].get("annotations", {}).get("horizontal", []) for widget in widgets(template)]

    assert {line["label"]: line["value"] for lines in drawn for line in lines} == {
        "RtcQps": 7,
        "alarm": alarms(template)["StalestStateAlarm"]["Threshold"],
    }


def test_no_widget_lies_on_another(template: Template) -> None:
    cells = [
        (x, y)
        for widget in widgets(template)
        for x in range(widget["x"], widget["x"] + widget["width"])
        for y in range(widget["y"], widget["y"] + widget["height"])
    ]

    assert len(cells) == len(set(cells))
    assert {x for x, _ in cells} == set(range(24))


def test_dead_letters_of_every_dead_letter_queue_alarm(template: Template) -> None:
    queues = {f"{name}.QueueName" for name in template.of_type("AWS::SQS::Queue") if name.endswith("DeadLetterQueue")}

    assert {dimensions["QueueName"] for _, _, dimensions in of_alarm(alarms(template)["DeadLettersAlarm"])} == queues


def test_errors_and_throttles_of_every_function_alarm(template: Template) -> None:
    functions = set(template.of_type("AWS::Lambda::Function"))
    for metric in ("Errors", "Throttles", "Duration"):
        assert functions == {
            dimensions["FunctionName"]
            for alarm in alarms(template).values()
            for _, name, dimensions in of_alarm(alarm)
            if name == metric
        }


def test_alarms_of_duration_come_before_the_time_out() -> None:
    template = Template(EnableCallbacks="true")
    timeouts = {name: of["Timeout"] * 1000 for name, of in template.of_type("AWS::Lambda::Function").items()}
    found = alarms(template)

    parts = dict(re.findall(r"FILL\((\w+), 0\) / (\d+)", found["DurationAlarm"]["Metrics"][0]["Expression"]))
    assert {name: int(of) for name, of in parts.items()} == {
        "api": timeouts["ApiFunction"],
        "task": timeouts["TaskFunction"],
    }
    # A sweep ends by itself 5 s before its time-out.
    assert timeouts["SweepFunction"] - 5_000 < found["SweepDurationAlarm"]["Threshold"] < timeouts["SweepFunction"]
    # A batch of parked events ends by itself 1 s before.
    callback = timeouts["CallbackFunction"]
    assert callback - 1_000 < found["CallbackDurationAlarm"]["Threshold"] < callback


def test_the_runbook_has_a_paragraph_for_each_alarm_and_no_other() -> None:
    text = (REPOSITORY / "docs" / "runbook.md").read_text()
    headings = re.findall(r"^### (\w+Alarm)$", text, re.MULTILINE)

    assert sorted(headings) == sorted(alarms(Template(EnableCallbacks="true")))


def test_the_dashboard_is_named_for_its_region_and_linked() -> None:
    template = Template()
    (dashboard,) = template.of_type("AWS::CloudWatch::Dashboard").values()

    assert dashboard["DashboardName"] == "stack-eu-central-1"
    url = (
        "https://eu-central-1.console.aws.amazon.com/cloudwatch/home?region=eu-central-1#dashboards/dashboard/Dashboard"
    )
    assert template.outputs["DashboardUrl"]["Value"] == url


@pytest.mark.parametrize("queue", ["", "arn:aws:sqs:eu-central-1:123456789012:mine.fifo"])
def test_the_results_queue_is_shown_whoever_made_it(queue: str) -> None:
    template = Template(ResultsQueueArn=queue)
    named = [metric for widget in widgets(template) for metric in of_widget(widget)]

    shown = {of["QueueName"] for _, name, of in named if name == "ApproximateAgeOfOldestMessage"}
    assert shown == {"mine.fifo" if queue else "ResultsQueue.QueueName"}
