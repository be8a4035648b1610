"""Alarms and dashboard: they name only what the code and AWS record, and the runbook has a paragraph for each alarm."""

import ast
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from stream_state import errors
from stream_state.adapters.queues import RECHECK_DELAY_SECONDS
from tests.unit.transformed import REPOSITORY, Template, parsed

TOPIC = "arn:aws:sns:eu-central-1:123456789012:alarms"
NOTICES = "arn:aws:sns:eu-central-1:123456789012:notices"
# The alarms that are raised where nothing happens any more.
SILENCES = {"CallbackSilenceAlarm", "SweepSilenceAlarm"}
NAMESPACE, SERVICE = "StreamState", {"service": "stack"}
# The contract: by metric the dimension beside the service, or None.
METRICS: Mapping[str, str | None] = {
    **dict.fromkeys(["RtcCalls", "RtcLatency", "RtcActionRetired", "QuotaGranted", "QuotaDenied", "StatesDelivered"]),
    **dict.fromkeys(["StateChanges", "StateDrift", "StalestState", "Rechecks", "CallbackEvents", "SecretRefreshes"]),
    **dict.fromkeys(["WaitsOpen", "WaitsWoken"]),
    "CallbackEventsIgnored": "reason",
    "CallbackRefused": "reason",
    "Errors": "error",
    "QuotaWait": "function",
}
# The values that an alarm or widget may name; a search finds every value.
VALUES: Mapping[str, set[str]] = {
    "error": {"", "WakeFailed", *(name for name in vars(errors) if name[0].isupper())},
    "function": {"api", "callback", "sweep", "task"},
    "reason": {"", "app_id", "key_unreadable", "malformed", "signature", "too_large"},
}
# AWS's own: by namespace the dimension, the type of resource that it names, the suffix of its reference, the metrics.
OF_AWS = {
    "AWS/ApiGateway": ("ApiId", "AWS::ApiGatewayV2::Api", "", "4xx 5xx Count"),
    "AWS/Lambda": (
        "FunctionName",
        "AWS::Lambda::Function",
        "",
        "AsyncEventsDropped DestinationDeliveryFailures Duration Errors Invocations Throttles",
    ),
    "AWS/SQS": (
        "QueueName",
        "AWS::SQS::Queue",
        ".QueueName",
        "ApproximateAgeOfOldestMessage ApproximateNumberOfMessagesVisible",
    ),
    "AWS/States": (
        "StateMachineArn",
        "AWS::StepFunctions::StateMachine",
        "",
        "ExecutionThrottled ExecutionsFailed ExecutionsStarted ExecutionsSucceeded",
    ),
}

SILENCE = {"CallbackSilenceMinutes": "30", "SweepSilenceMinutes": "15"}

type Metric = tuple[str, str, Mapping[str, str]]


@pytest.fixture(scope="module", params=["false", "true"], ids=["without events", "with events"])
def template(request: pytest.FixtureRequest) -> Template:
    return Template(EnableCallbacks=request.param, AlarmTopicArn=TOPIC, NoticeTopicArn=NOTICES, **SILENCE)


def alarms(template: Template) -> dict[str, dict[str, Any]]:
    return template.of_type("AWS::CloudWatch::Alarm")


def of_alarm(alarm: Mapping[str, Any]) -> Iterator[Metric]:
    """The metrics that an alarm names; AWS::NoValue leaves None in a list."""
    entries = filter(None, alarm.get("Metrics", []))
    queries = [entry["MetricStat"]["Metric"] for entry in entries if "MetricStat" in entry]
    for metric in queries or [alarm]:
        dimensions = {entry["Name"]: entry["Value"] for entry in metric.get("Dimensions", [])}
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
            r"SEARCH\('\{(\w+),(\w+),service\} MetricName=\"(\w+)\" service=\"(\w+)\"', 'Sum', 60\)",
            namespace["expression"],
        ):
            yield search[1], search[3], {search[2]: "", "service": search[4]}
        else:
            assert "SEARCH" not in namespace["expression"]


def in_alarms(template: Template) -> list[Metric]:
    return [metric for alarm in alarms(template).values() for metric in of_alarm(alarm)]


def in_widgets(template: Template) -> list[Metric]:
    return [metric for widget in widgets(template) for metric in of_widget(widget)]


def test_alarms_and_widgets_name_metrics_that_are_recorded(template: Template) -> None:
    (waits,) = template.of_type("AWS::Logs::MetricFilter").values()
    (filtered,) = waits["MetricTransformations"]
    assert {namespace for namespace, _, _ in in_alarms(template)} == {NAMESPACE, filtered["MetricNamespace"], *OF_AWS}
    assert {namespace for namespace, _, _ in in_widgets(template)} == {NAMESPACE, *OF_AWS}
    for namespace, name, dimensions in in_alarms(template) + in_widgets(template):
        if namespace == filtered["MetricNamespace"]:
            assert (name, dimensions) == (filtered["MetricName"], {})
        elif namespace == NAMESPACE:
            own = METRICS[name]
            assert dimensions == {**SERVICE, **({own: dimensions[own]} if own else {})}
            assert own is None or dimensions[own] in VALUES[own]
        else:
            dimension, kind, suffix, names = OF_AWS[namespace]
            assert name in names.split()
            assert dimensions in [{dimension: made + suffix} for made in template.of_type(kind)]


def test_every_metric_is_shown_or_has_no_need_to_be() -> None:
    template = Template(EnableCallbacks="true")
    shown = {name for namespace, name, _ in in_widgets(template) if namespace == NAMESPACE}

    # Reads of the secret say nothing that the errors do not; slots are shown by the function that got them.
    assert METRICS.keys() - shown == {"QuotaGranted", "SecretRefreshes"}
    assert METRICS.keys() - shown - {name for _, name, _ in in_alarms(template)} == {"SecretRefreshes"}


def test_the_code_records_the_metrics_of_the_contract_and_no_other() -> None:
    recorded = set()
    for path in [*REPOSITORY.glob("layers/stream_state/**/*.py"), *REPOSITORY.glob("functions/*/app.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "add_metric":
                dimensions = [keyword.arg for keyword in node.keywords if keyword.arg not in {"value", "unit"}]
                recorded.add((ast.literal_eval(node.args[0]), *dimensions))

    # CloudWatch adds nothing up: a metric has the same dimensions wherever it is recorded.
    assert recorded == {(name, dimension) if dimension else (name,) for name, dimension in METRICS.items()}


def names_in(*expressions: str) -> set[str]:
    """The ids that expressions name; functions are in capitals."""
    return {name for text in expressions for name in re.findall(r"\b[a-z]\w*\b", re.sub(r"SEARCH\(.*\)", "", text))}


def test_expressions_name_what_stands_beside_them(template: Template) -> None:
    for alarm in alarms(template).values():
        result, *queries = filter(None, alarm.get("Metrics", [{"Expression": "METRICS()"}]))
        assert "METRICS()" in result["Expression"] or names_in(result["Expression"]) == {of["Id"] for of in queries}
    for widget in widgets(template):
        last = [metric[-1] for metric in widget["properties"].get("metrics", []) if isinstance(metric[-1], dict)]
        named = names_in(*(of["expression"] for of in last if "expression" in of))
        assert named == {of["id"] for of in last if "id" in of}


def test_every_alarm_tells_its_topic_impact_first_action_and_paragraph(template: Template) -> None:
    for name, alarm in alarms(template).items():
        found = re.fullmatch(r"(Urgent|Notice): .+\. First .+\. Runbook: (\w+)", alarm["AlarmDescription"])
        assert found
        assert found[2] == name
        topic = {"Urgent": TOPIC, "Notice": NOTICES}[found[1]]
        assert (alarm["AlarmActions"], alarm["OKActions"]) == ([topic], [topic])
        # A name that the commands of the runbook and CodeDeploy know.
        assert alarm["AlarmName"] == f"stack-{name}"
        assert alarm["TreatMissingData"] == ("breaching" if name in SILENCES else "notBreaching")


@pytest.mark.parametrize(
    ("topics", "sent"),
    [
        ({}, {None}),
        ({"AlarmTopicArn": TOPIC}, {TOPIC}),
        ({"NoticeTopicArn": NOTICES}, {None, NOTICES}),
    ],
    ids=["no topic", "one topic", "notices alone"],
)
def test_without_a_second_topic_the_first_is_for_all(topics: dict[str, str], sent: set[str | None]) -> None:
    found = alarms(Template(EnableCallbacks="true", **topics)).values()

    assert {alarm.get("AlarmActions", [None])[0] for alarm in found} == sent


def test_silence_is_an_alarm_for_the_time_that_the_operator_sets() -> None:
    found = alarms(Template(EnableCallbacks="true", CallbackSilenceMinutes="45", SweepSilenceMinutes="45"))

    for alarm in (found[name] for name in SILENCES):
        periods = {query["MetricStat"]["Period"] for query in alarm.get("Metrics", []) if "MetricStat" in query}
        assert periods | {alarm.get("Period", 60)} == {60}
        assert alarm["EvaluationPeriods"] == "45"
        assert (alarm["ComparisonOperator"], alarm["Threshold"]) == ("LessThanThreshold", 1)
    # CloudWatch looks back over a day at most.
    declared = parsed(REPOSITORY / "template.yaml")["Parameters"]
    assert {declared[name]["MaxValue"] * 60 for name in SILENCE} == {86_400}


def test_zero_minutes_of_silence_are_no_alarm() -> None:
    found = alarms(Template(EnableCallbacks="true", CallbackSilenceMinutes="0", SweepSilenceMinutes="0"))

    assert not SILENCES & found.keys()


def test_what_is_not_there_cannot_fall_silent() -> None:
    # Neither a schedule nor callback events
    assert not SILENCES & alarms(Template(SweepScheduleExpression="", **SILENCE)).keys()


def test_every_reason_of_a_refused_event_has_its_alarm() -> None:
    reasons = re.search(r"REASONS = (\{.*\})", (REPOSITORY / "functions" / "callback" / "app.py").read_text())
    assert reasons
    watched = {of["reason"] for _, name, of in in_alarms(Template(EnableCallbacks="true")) if name == "CallbackRefused"}

    assert watched == set(ast.literal_eval(reasons[1]).values())


@pytest.mark.parametrize(
    ("counts", "is_raised"),
    [
        ({"accepted": 50, "api": 9, "signature": 9}, False),
        ({"accepted": 50, "api": 10, "appId": 10}, True),
        # The API throttled events.
        ({"accepted": 50, "api": 10}, True),
        # A wrong key where a class sends few events.
        ({"api": 1, "signature": 1}, True),
        # Strangers who ask the API for pages that it does not have.
        ({"api": 9}, False),
        ({}, False),
    ],
)
def test_refused_events_are_many_or_all(counts: Mapping[str, int], is_raised: bool) -> None:  # noqa: FBT001 (a case)
    alarm = alarms(Template(EnableCallbacks="true"))["CallbackRefusedAlarm"]
    result, *queries = alarm["Metrics"]
    functions = {"FILL": max, "IF": lambda condition, yes, no: yes if condition else no, "MAX": max, "SUM": sum}
    values = {query["Id"]: counts.get(query["Id"], 0) for query in queries}

    # The functions of CloudWatch that it uses are written as in Python.
    value = eval(result["Expression"], {**functions, **values})  # noqa: S307 (a text of the template)

    assert counts.keys() <= values.keys()
    assert (value >= alarm["Threshold"]) is is_raised
    assert alarm["ComparisonOperator"] == "GreaterThanOrEqualToThreshold"


def test_the_alarms_of_an_api_look_at_no_other() -> None:
    found = alarms(Template(EnableCallbacks="true"))

    watched = {
        name: {of["ApiId"] for namespace, _, of in of_alarm(alarm) if namespace == "AWS/ApiGateway"}
        for name, alarm in found.items()
    }
    assert {name: apis for name, apis in watched.items() if apis} == {
        "ApiServerErrorsAlarm": {"HttpApi"},
        # The API alone knows which events it throttled.
        "CallbackRefusedAlarm": {"CallbackHttpApi"},
        "CallbackServerErrorsAlarm": {"CallbackHttpApi"},
    }


def test_queues_that_wait_and_invocations_that_are_lost_have_their_alarms() -> None:
    watched = {(name, value) for _, name, of in in_alarms(Template(EnableCallbacks="true")) for value in of.values()}

    assert watched >= {
        ("ApproximateAgeOfOldestMessage", "ResultsQueue.QueueName"),
        ("ApproximateAgeOfOldestMessage", "CallbackRetryQueue.QueueName"),
        *(
            (name, function)
            for name in ("AsyncEventsDropped", "DestinationDeliveryFailures")
            for function in ("SweepFunction", "TaskFunction")
        ),
        ("ExecutionThrottled", "WaitForStream"),
    }


def test_a_wait_whose_time_is_over_is_no_failure() -> None:
    (waits,) = Template().of_type("AWS::Logs::MetricFilter").values()

    assert waits["LogGroupName"] == "WaitForStreamLogGroup"
    # The state machine's log level keeps how executions ended: ExecutionFailed, ExecutionAborted, ExecutionTimedOut.
    assert waits["FilterPattern"] == '{ $.type = "ExecutionFailed" && $.details.error != "StreamStateTimeout" }'
    (machine,) = Template().of_type("AWS::StepFunctions::StateMachine").values()
    assert machine["LoggingConfiguration"]["Level"] == "FATAL"
    assert machine["LoggingConfiguration"]["IncludeExecutionData"] is True


def test_the_dashboard_shows_every_alarm(template: Template) -> None:
    shown = [arn for widget in widgets(template) if widget["type"] == "alarm" for arn in widget["properties"]["alarms"]]

    assert sorted(shown) == sorted(f"{name}.Arn" for name in alarms(template))


def test_the_dashboard_shows_the_board(template: Template) -> None:
    (board,) = (widget["properties"] for widget in widgets(template) if widget["type"] == "custom")

    alias = "arn:aws:lambda:eu-central-1:123456789012:function:BoardFunction:live"
    assert (board["endpoint"], board["params"], board["updateOn"]["refresh"]) == (alias, {}, True)


def test_the_lines_of_widgets_are_the_limit_and_the_alarms_threshold() -> None:
    template = Template(RtcQps="7")
    drawn = [widget["properties"].get("annotations", {}).get("horizontal", []) for widget in widgets(template)]

    threshold = alarms(template)["StalestStateAlarm"]["Threshold"]
    assert {line["label"]: line["value"] for lines in drawn for line in lines} == {"RtcQps": 7, "alarm": threshold}


def test_no_widget_lies_on_another(template: Template) -> None:
    cells = [
        (x, y)
        for widget in widgets(template)
        for x in range(widget["x"], widget["x"] + widget["width"])
        for y in range(widget["y"], widget["y"] + widget["height"])
    ]

    assert len(cells) == len(set(cells))
    assert {x for x, _ in cells} == set(range(24))


def test_every_dead_letter_queue_and_every_function_has_its_alarms(template: Template) -> None:
    queues = {name for name in template.of_type("AWS::SQS::Queue") if name.endswith("DeadLetterQueue")}
    functions = template.of_type("AWS::Lambda::Function").keys()
    # Whoever looks at the board sees that it is slow.
    waited_for = functions - {"BoardFunction"}

    watched = {(name, value) for _, name, dimensions in in_alarms(template) for value in dimensions.values()}
    assert watched >= {("ApproximateNumberOfMessagesVisible", f"{queue}.QueueName") for queue in queues}
    assert watched >= {("Errors", of) for of in functions}
    assert watched >= {(name, of) for name in ("Throttles", "Duration") for of in waited_for}


def test_alarms_of_duration_come_before_the_time_out() -> None:
    template = Template(EnableCallbacks="true")
    timeouts = {name: of["Timeout"] * 1000 for name, of in template.of_type("AWS::Lambda::Function").items()}
    found = alarms(template)

    parts = re.findall(r"FILL\((\w+), 0\) / (\d+)", found["DurationAlarm"]["Metrics"][0]["Expression"])
    assert parts == [("api", str(timeouts["ApiFunction"])), ("task", str(timeouts["TaskFunction"]))]
    # A sweep ends by itself 5 s before its time-out, a batch of the retry queue 1 s before.
    for name, reserve_ms in (("Sweep", 5_000), ("Callback", 1_000)):
        timeout = timeouts[f"{name}Function"]
        assert timeout - reserve_ms < found[f"{name}DurationAlarm"]["Threshold"] < timeout


def test_a_message_of_the_retry_queue_that_keeps_failing_raises_its_alarm() -> None:
    template = Template(EnableCallbacks="true")
    alarm, queue = alarms(template)["RetryAgeAlarm"], template.of_type("AWS::SQS::Queue")["CallbackRetryQueue"]
    pause, threshold = queue["VisibilityTimeout"], alarm["Threshold"]
    ends = template.of_type("AWS::Lambda::Function")["CallbackFunction"]["Timeout"]

    # It is received at once and after each pause. SQS leaves it out of the age of the oldest message at the third
    # receipt, and tells CloudWatch that age once a minute.
    assert threshold + 60 <= 2 * pause
    assert queue["RedrivePolicy"]["maxReceiveCount"] >= 3
    # A message that succeeds at the second receipt raises nothing, nor does a recheck, which begins with a delay.
    assert RECHECK_DELAY_SECONDS + pause + ends <= threshold
    # One value is enough.
    assert (alarm["Statistic"], alarm["ComparisonOperator"]) == ("Maximum", "GreaterThanThreshold")
    assert (alarm["EvaluationPeriods"], alarm.get("DatapointsToAlarm", 1)) == (1, 1)


def test_a_callback_key_that_cannot_be_read_is_urgent() -> None:
    alarm = alarms(Template(EnableCallbacks="true"))["CallbackKeyUnreadableAlarm"]

    assert list(of_alarm(alarm)) == [(NAMESPACE, "CallbackRefused", {**SERVICE, "reason": "key_unreadable"})]
    assert (alarm["ComparisonOperator"], alarm["Threshold"]) == ("GreaterThanThreshold", 0)
    # The vendor tries an event three times.
    assert (alarm["Period"], alarm["EvaluationPeriods"]) == (60, 1)
    assert alarm["AlarmDescription"].startswith("Urgent: ")


def test_the_runbook_has_a_paragraph_for_each_alarm_and_no_other() -> None:
    text = (REPOSITORY / "docs" / "runbook.md").read_text()
    headings = re.findall(r"^### (\w+Alarm)$", text, re.MULTILINE)

    assert sorted(headings) == sorted(alarms(Template(EnableCallbacks="true", **SILENCE)))


def test_the_dashboard_is_named_for_its_region_and_linked() -> None:
    template = Template()
    (dashboard,) = template.of_type("AWS::CloudWatch::Dashboard").values()

    assert dashboard["DashboardName"] == "stack-eu-central-1"
    console = "https://eu-central-1.console.aws.amazon.com/cloudwatch/home?region=eu-central-1"
    assert template.outputs["DashboardUrl"]["Value"] == f"{console}#dashboards/dashboard/stack-eu-central-1"


@pytest.mark.parametrize("queue", ["", "arn:aws:sqs:eu-central-1:123456789012:mine.fifo"])
def test_the_results_queue_is_shown_whoever_made_it(queue: str) -> None:
    named = in_widgets(Template(ResultsQueueArn=queue))

    shown = {of["QueueName"] for _, name, of in named if name == "ApproximateAgeOfOldestMessage"}
    assert shown == {"mine.fifo" if queue else "ResultsQueue.QueueName"}


def test_the_page_on_operations_names_every_metric() -> None:
    text = (REPOSITORY / "docs" / "operations.md").read_text()

    assert set(re.findall(r"^\| `(\w+)` \| (?:count|seconds|milliseconds) \|", text, re.MULTILINE)) == METRICS.keys()
