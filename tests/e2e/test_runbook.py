"""The commands of the runbook, of operations and of other pages, typed with the AWS CLI against the sandbox."""

import ast
import io
import json
import re
import time
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jmespath
import pytest

from tests.e2e.commands import Page, blocks_of, within_lines
from tests.sandbox.stack import REPOSITORY, Sandbox

STACK = "stream-state"
LINES = {
    "info": json.dumps({"level": "INFO", "message": "as it should be"}),
    "warning": json.dumps({"level": "WARNING", "error": "RtcThrottled", "function_name": "task"}),
    "traceback": json.dumps({"level": "ERROR", "errorType": "KeyError", "stackTrace": ["app.py"]}),
    "time-out": json.dumps({"type": "platform.report", "record": {"status": "timeout"}}),
    "memory": json.dumps({"type": "platform.runtimeDone", "record": {"errorType": "Runtime.OutOfMemory"}}),
}
# Commands that no test types, and why.
NOT_TYPED = {
    "aws lambda get-account-settings": "moto has no limits of the account",
    "aws cloudformation update-termination-protection": "moto protects no stack",
    "aws configure export-credentials": "version 1 of the CLI does not have it",
}
# Parts of names, and of expressions of DynamoDB, of which one takes back what the other has done.
OPPOSITES = [("put", "delete"), ("start", "cancel"), ("disable", "enable"), ("add", "remove"), ("SET", "REMOVE")]


def archive(number: int) -> bytes:
    """The code of a function, another for each number."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr("app.py", f"# {number}")
    return content.getvalue()


@pytest.fixture(scope="module")
def parameters() -> Mapping[str, str]:
    return {"EnableCallbacks": "true"}


@pytest.fixture(scope="module")
def stack(started: Sandbox) -> Sandbox:
    """The sandbox with what the commands name: outputs of a stack, functions with an alias, log groups with lines."""
    outputs = {name: {"Value": value} for name, value in started.outputs.items()}
    body = {"Resources": {"Log": {"Type": "AWS::Logs::LogGroup"}}, "Outputs": outputs}
    started.client("cloudformation").create_stack(StackName=STACK, TemplateBody=json.dumps(body))
    role = started.client("iam").create_role(RoleName="function", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
    lambdas = started.client("lambda")
    for output in ("ApiFunctionName", "SweepFunctionName"):
        name, code = started.outputs[output], {"ZipFile": archive(1)}
        settings: dict[str, Any] = {"Runtime": "python3.13", "Role": role, "Handler": "app.lambda_handler"}
        lambdas.create_function(FunctionName=name, Code=code, Publish=True, **settings)
        lambdas.update_function_code(FunctionName=name, ZipFile=archive(2), Publish=True)
        # As in the middle of a gradual deployment.
        routing = {"AdditionalVersionWeights": {"1": 0.1}}
        lambdas.create_alias(FunctionName=name, Name="live", FunctionVersion="2", RoutingConfig=routing)
    logs = started.client("logs")
    for output in ("FunctionLogGroupName", "AccessLogGroupName", "WaitForStreamLogGroupName"):
        logs.create_log_group(logGroupName=started.outputs[output])
        logs.create_log_stream(logGroupName=started.outputs[output], logStreamName="stream")
    events = [{"timestamp": int(time.time() * 1000), "message": line} for line in LINES.values()]
    group = started.outputs["FunctionLogGroupName"]
    logs.put_log_events(logGroupName=group, logStreamName="stream", logEvents=events)
    return started


@pytest.fixture
def runbook(stack: Sandbox, sandbox: Sandbox, tmp_path: Path) -> Page:
    return Page("runbook.md", stack, tmp_path)


@pytest.fixture
def operations(stack: Sandbox, sandbox: Sandbox, tmp_path: Path) -> Page:
    return Page("operations.md", stack, tmp_path)


@pytest.fixture
def table(stack: Sandbox) -> Iterator[Any]:
    """Reads the hold of the rate limiter."""
    key = {"TableName": stack.outputs["StateTableName"], "Key": {"pk": {"S": "limiter"}, "sk": {"S": "rtc"}}}
    client = stack.client("dynamodb")
    yield lambda: float(client.get_item(**key).get("Item", {}).get("hold_until", {}).get("N", 0))
    client.delete_item(**key)


def test_the_raised_alarms_are_listed_with_their_descriptions(runbook: Page, stack: Sandbox) -> None:
    alarm = {"Namespace": "n", "MetricName": "m", "Period": 60, "EvaluationPeriods": 1, "Threshold": 1}
    # A stack whose name begins with the name of this one.
    for name in (f"{STACK}-FunctionErrorsAlarm", f"{STACK}-dev-ApiServerErrorsAlarm"):
        stack.client("cloudwatch").put_metric_alarm(
            AlarmName=name, ComparisonOperator="LessThanThreshold", AlarmDescription="Urgent: it fails.", **alarm
        )
        stack.client("cloudwatch").set_alarm_state(AlarmName=name, StateValue="ALARM", StateReason="a test")

    shown = runbook.type("describe-alarms")

    assert f"{STACK}-FunctionErrorsAlarm" in shown
    assert "Urgent: it fails." in shown
    assert "dev" not in shown


def test_the_kill_switch_stops_all_calls_and_is_lifted(
    runbook: Page, operations: Page, table: Any, stack: Sandbox
) -> None:
    stack.invoke("TaskFunction", {"room_id": "class-1", "user_id": "nobody"})

    runbook.type("SET hold_until")
    held = table()
    refused = stack.invoke("TaskFunction", {"room_id": "class-1", "user_id": "nobody"})
    shown = operations.type("REMOVE hold_until")
    lifted = table()
    operations.type("SET hold_until")

    assert 3500 < held - time.time() <= 3600
    assert refused.error_type == "QuotaExceeded"
    assert '"next_us"' in shown
    assert lifted == 0
    assert table() >= held


def test_a_function_is_stopped(runbook: Page, stack: Sandbox) -> None:
    runbook.type("put-function-concurrency")

    stopped = stack.client("lambda").get_function_concurrency(FunctionName=stack.outputs["SweepFunctionName"])
    assert stopped["ReservedConcurrentExecutions"] == 0


def test_a_function_is_taken_back_to_the_version_before(runbook: Page, stack: Sandbox) -> None:
    shown = runbook.type("update-alias", the_version_before="1")

    assert shown.split()[0] == "2"
    alias = stack.client("lambda").get_alias(FunctionName=stack.outputs["ApiFunctionName"], Name="live")
    assert alias["FunctionVersion"] == "1"
    assert not alias.get("RoutingConfig", {}).get("AdditionalVersionWeights")


def test_the_log_shows_warnings_tracebacks_and_what_lambda_ended(runbook: Page) -> None:
    shown = runbook.type("FunctionLogGroupName")

    # moto gives all lines whatever the pattern, in which each term behind a question mark may stand in a line.
    (pattern,) = (found for block in runbook.blocks for found in re.findall(r"--filter-pattern '(.*)'", block))
    wanted = {name for name, line in LINES.items() if any(term.lstrip("?") in line for term in pattern.split())}
    assert wanted == LINES.keys() - {"info"}
    assert all(LINES[name] in shown for name in wanted)


def test_the_access_log_is_asked(runbook: Page) -> None:
    # moto knows neither display nor patterns: the query is accepted, and what the lines ask for is judged apart.
    runbook.type("AccessLogGroupName")

    text = "\n".join(runbook.blocks)
    (pattern,) = re.findall(r"filter status like /(.*)/ ", text)
    assert [status for status in ("200", "405", "500", "503", "-") if re.search(pattern, status)] == ["500", "503"]
    (shown,) = re.findall(r"get-query-results .*--query '(.*?)'", text)
    row = [{"field": "@timestamp", "value": "2026-11-28 23:00:00.000"}, {"field": "status", "value": "503"}]
    answer = {"status": "Complete", "results": [row, row]}
    assert jmespath.search(shown, answer) == [["2026-11-28 23:00:00.000", "503"]] * 2


def test_dead_letters_are_moved_back(runbook: Page, stack: Sandbox) -> None:
    queues = stack.client("sqs")
    queues.send_message(QueueUrl=stack.outputs["CallbackDeadLetterQueueUrl"], MessageBody="an event")

    # moto moves nothing: the calls are looked at.
    asked: list[dict[str, Any]] = []

    def answer(operation: str, call: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
        if not operation.endswith("MessageMoveTask") and not operation.endswith("MessageMoveTasks"):
            return None
        asked.append(call)
        return 200, {}

    stack.aws.intercept = answer
    runbook.type("start-message-move-task")

    arns = [
        f"arn:aws:sqs:eu-central-1:123456789012:{stack.outputs[f'Callback{name}QueueUrl'].rpartition('/')[2]}"
        for name in ("DeadLetter", "Retry")
    ]
    assert asked == [
        {"SourceArn": arns[0], "DestinationArn": arns[1], "MaxNumberOfMessagesPerSecond": 10},
        {"SourceArn": arns[0]},
    ]


def test_an_invocation_is_repeated_and_its_message_alone_deleted(runbook: Page, stack: Sandbox, tmp_path: Path) -> None:
    queues, url = stack.client("sqs"), stack.outputs["InvocationDeadLetterQueueUrl"]
    (tmp_path / "event.json").write_text('{"room_id": "class-1", "user_id": "teacher"}')
    stack.simulator.publish("class-1", "teacher", "Audio")
    for number in range(12):
        queues.send_message(QueueUrl=url, MessageBody=f"letter {number}")
    (read,) = queues.receive_message(QueueUrl=url, VisibilityTimeout=600)["Messages"]

    shown = runbook.type(
        "delete-message", that_function=stack.outputs["TaskFunctionArn"], its_ReceiptHandle=read["ReceiptHandle"]
    )

    assert '"publishing": true' in shown or '"publishing":true' in shown
    left = queues.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
    counts = [int(left[f"ApproximateNumberOfMessages{name}"]) for name in ("", "NotVisible")]
    assert sum(counts) == 11


def test_the_commands_within_lines_are_carried_out(runbook: Page, stack: Sandbox) -> None:
    pages = [str(page.relative_to(REPOSITORY)) for page in (*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md"))]
    elsewhere = [name for name in pages if name not in {"docs/runbook.md", "docs/operations.md"}]
    of_blocks = [line.strip() for name in elsewhere for block in blocks_of(name) for line in block.splitlines()]
    commands = {line for name in pages for line in within_lines(name)}
    commands |= {line for line in of_blocks if re.search(r"\baws ", line)}
    lambdas, secrets, alarms = (stack.client(name) for name in ("lambda", "secretsmanager", "cloudwatch"))
    function, sweep, table = (stack.outputs[f"{name}Name"] for name in ("ApiFunction", "SweepFunction", "StateTable"))
    alarm = {"Namespace": "n", "MetricName": "m", "Period": 60, "EvaluationPeriods": 1, "Threshold": 1}
    alarms.put_metric_alarm(AlarmName=f"{STACK}-StalestStateAlarm", ComparisonOperator="LessThanThreshold", **alarm)
    lambdas.put_function_concurrency(FunctionName=sweep, ReservedConcurrentExecutions=0)
    stack.client("dynamodb").update_table(TableName=table, DeletionProtectionEnabled=True)
    version = lambdas.update_function_code(FunctionName=function, ZipFile=archive(3), Publish=True)["Version"]
    values = {**stack.outputs, "function": function, "version": version}
    key = '{"access_key_id": "new", "secret_access_key": "new", "callback_key": "new"}'

    typed = {line for line in commands if not any(name in line for name in NOT_TYPED)}
    for line in typed:
        runbook.carry_out(re.sub("<(\\w+)>", lambda found: values[found[1]], line), given=key)

    assert all(any(name in line for line in commands - typed) for name in NOT_TYPED)
    (quiet,) = alarms.describe_alarms(AlarmNames=[f"{STACK}-StalestStateAlarm"])["MetricAlarms"]
    assert quiet["ActionsEnabled"] is False
    assert "ReservedConcurrentExecutions" not in lambdas.get_function_concurrency(FunctionName=sweep)
    assert not stack.client("dynamodb").describe_table(TableName=table)["Table"]["DeletionProtectionEnabled"]
    left = lambdas.list_versions_by_function(FunctionName=function)["Versions"]
    assert version not in {of["Version"] for of in left}
    for output in ("SigningKeysSecretArn", "CallbackKeySecretArn"):
        assert secrets.get_secret_value(SecretId=stack.outputs[output])["SecretString"] == key


@pytest.mark.parametrize(
    ("text", "changes"),
    [
        # WaitsFailedAlarm: another log, another pattern.
        (
            "FunctionLogGroupName",
            {
                "FunctionLogGroupName": "WaitForStreamLogGroupName",
                "?WARNING ?ERROR ?CRITICAL ?platform": "ExecutionFailed",
            },
        ),
        # CallbackSilenceAlarm: every request.
        ("AccessLogGroupName", {"filter status like /^5/ | ": ""}),
    ],
)
def test_a_block_is_typed_as_an_alarm_asks(text: str, changes: Mapping[str, str], runbook: Page) -> None:
    (block,) = (block for block in runbook.blocks if text in block)

    for written, asked in changes.items():
        assert written in block
        block = block.replace(written, asked)
    runbook.carry_out(block)


@pytest.mark.parametrize("page", ["runbook", "operations"])
def test_every_block_is_typed(page: str) -> None:
    calls = [node for node in ast.walk(ast.parse(Path(__file__).read_text())) if isinstance(node, ast.Call)]
    typed = {ast.literal_eval(of.args[0]) for of in calls if ast.unparse(of.func) == f"{page}.type"}
    _, *blocks = blocks_of(f"docs/{page}.md")

    assert [block for block in blocks if not any(text in block for text in typed)] == []


@pytest.mark.parametrize("page", ["runbook", "operations"])
def test_no_command_of_the_triage_undoes_another_of_its_block(page: str) -> None:
    for block in blocks_of(f"docs/{page}.md"):
        found = re.findall(r"aws \S+ ([a-z]+)-(\S+)|'(SET|REMOVE) (\w+)", block)
        done = {(command or expression, noun or field) for command, noun, expression, field in found}
        for verb, opposite in OPPOSITES:
            assert not {(opposite, noun) for name, noun in done if name == verb} & done


def test_no_command_deletes_what_nobody_read() -> None:
    for name in ("runbook.md", "operations.md", "deploying.md", "events.md"):
        assert "purge" not in (REPOSITORY / "docs" / name).read_text()


def test_a_key_is_stored_and_taken_back(operations: Page, stack: Sandbox) -> None:
    secret, new = stack.outputs["SigningKeysSecretArn"], '{"access_key_id": "new", "secret_access_key": "new"}'
    client = stack.client("secretsmanager")
    old = client.get_secret_value(SecretId=secret)

    operations.type("put-secret-value", given=new)
    stored = client.get_secret_value(SecretId=secret)
    operations.type(
        "update-secret-version-stage",
        the_version_of_AWSPREVIOUS=old["VersionId"],
        the_version_of_AWSCURRENT=stored["VersionId"],
    )

    assert json.loads(stored["SecretString"]) == json.loads(new)
    current = client.get_secret_value(SecretId=secret, VersionStage="AWSCURRENT")
    assert current["SecretString"] == old["SecretString"]


def test_a_sweep_is_started_and_a_rule_of_ones_own_may_start_it(
    operations: Page, stack: Sandbox, tmp_path: Path
) -> None:
    (tmp_path / "event.json").write_text('{"targets": [{"room_id": "class-1", "user_id": "teacher"}]}')
    rule = "arn:aws:events:eu-central-1:123456789012:rule/mine"

    shown = operations.type("add-permission", ARN_of_the_rule=rule)

    assert '"targets": 1' in shown or '"targets":1' in shown
    assert "events.amazonaws.com" in shown
