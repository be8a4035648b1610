"""What each role may do, action by action and resource by resource, and that something needs it."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from tests.unit.transformed import REPOSITORY, Template

TRACES = {"xray:PutTelemetryRecords", "xray:PutTraceSegments"}
LOG = {"logs:CreateLogStream", "logs:PutLogEvents"}
# By role, then by resource: the actions.
ALLOWED: Mapping[str, Mapping[str, set[str]]] = {
    "ApiFunctionRole": {
        "*": TRACES,
        "ApiFunctionLogGroup.Arn": LOG,
        "SigningKeysSecret": {"secretsmanager:GetSecretValue"},
        "StateTable.Arn": {
            "dynamodb:BatchGetItem",
            "dynamodb:BatchWriteItem",
            "dynamodb:DeleteItem",
            "dynamodb:GetItem",
            "dynamodb:PutItem",
            "dynamodb:Query",
            "dynamodb:UpdateItem",
        },
    },
    "TaskFunctionRole": {
        "*": TRACES,
        "InvocationDeadLetterQueue.Arn": {"sqs:SendMessage"},
        "ResultsQueue.Arn": {"sqs:SendMessage"},
        "SigningKeysSecret": {"secretsmanager:GetSecretValue"},
        "StateTable.Arn": {"dynamodb:BatchGetItem", "dynamodb:GetItem", "dynamodb:PutItem", "dynamodb:UpdateItem"},
        "TaskFunctionLogGroup.Arn": LOG,
    },
    "SweepFunctionRole": {
        "*": TRACES,
        "InvocationDeadLetterQueue.Arn": {"sqs:SendMessage"},
        "ResultsQueue.Arn": {"sqs:SendMessage"},
        "SigningKeysSecret": {"secretsmanager:GetSecretValue"},
        "StateTable.Arn": {
            "dynamodb:BatchGetItem",
            "dynamodb:GetItem",
            "dynamodb:PutItem",
            "dynamodb:Query",
            "dynamodb:UpdateItem",
        },
        "SweepFunctionLogGroup.Arn": LOG,
    },
    "SweepScheduleRole": {
        "ScheduleDeadLetterQueue.Arn": {"sqs:SendMessage"},
        "SweepFunction.Arn": {"lambda:InvokeFunction"},
    },
    "WaitForStreamRole": {
        "*": TRACES
        | {
            "logs:CreateLogDelivery",
            "logs:DeleteLogDelivery",
            "logs:DescribeLogGroups",
            "logs:DescribeResourcePolicies",
            "logs:GetLogDelivery",
            "logs:ListLogDeliveries",
            "logs:PutResourcePolicy",
            "logs:UpdateLogDelivery",
            "xray:GetSamplingRules",
            "xray:GetSamplingTargets",
        },
        "TaskFunction.Arn": {"lambda:InvokeFunction"},
    },
    "CallbackFunctionRole": {
        "*": TRACES,
        "CallbackFunctionLogGroup.Arn": LOG,
        "CallbackKeySecret": {"secretsmanager:GetSecretValue"},
        "CallbackRetryQueue.Arn": {
            "sqs:DeleteMessage",
            "sqs:GetQueueAttributes",
            "sqs:ReceiveMessage",
            "sqs:SendMessage",
        },
        "ResultsQueue.Arn": {"sqs:SendMessage"},
        "StateTable.Arn of state#*": {
            "dynamodb:GetItem",
            "dynamodb:PutItem",
            "dynamodb:Query",
            "dynamodb:UpdateItem",
        },
    },
}

KEY = "arn:aws:kms:eu-central-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"
BOUNDARY = "arn:aws:iam::123456789012:policy/boundary"
VPC = {"VpcSubnetIds": "subnet-12345678,subnet-23456789", "VpcSecurityGroupIds": "sg-12345678"}
# With a key: by role, then by the services through which it may be used.
READS = {f"{KEY} via dynamodb, secretsmanager": {"kms:Decrypt"}}
SENDS = {f"{KEY} via sqs": {"kms:Decrypt", "kms:GenerateDataKey"}}
WITH_KEY: Mapping[str, Mapping[str, set[str]]] = {
    "ApiFunctionRole": READS,
    "CallbackFunctionRole": READS | SENDS,
    "SweepFunctionRole": READS | SENDS,
    "SweepScheduleRole": SENDS,
    "TaskFunctionRole": READS | SENDS,
}
IN_VPC = {
    "ec2:AssignPrivateIpAddresses",
    "ec2:CreateNetworkInterface",
    "ec2:DeleteNetworkInterface",
    "ec2:DescribeNetworkInterfaces",
    "ec2:DescribeSubnets",
    "ec2:UnassignPrivateIpAddresses",
}
# What the Lambda service does with the queue that it reads for CallbackFunction.
OF_EVENT_SOURCE = {"sqs:DeleteMessage", "sqs:GetQueueAttributes", "sqs:ReceiveMessage"}
# Calls that are allowed by another name.
PERMISSIONS = {"SendMessageBatch": "SendMessage"}


@pytest.fixture(scope="module")
def template() -> Template:
    return Template(EnableCallbacks="true")


def as_list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def statements(template: Template, role: str) -> Iterator[dict[str, Any]]:
    properties = template.of_type("AWS::IAM::Role")[role]
    managed = template.of_type("AWS::IAM::ManagedPolicy")
    # AWS::NoValue leaves None in a list.
    documents = [managed[name]["PolicyDocument"] for name in filter(None, properties.get("ManagedPolicyArns", []))]
    documents += [policy["PolicyDocument"] for policy in properties.get("Policies", [])]
    for document in documents:
        yield from filter(None, document["Statement"])


def bounds(statement: Mapping[str, Any]) -> str:
    """Through which services, or to which partition keys, it holds, if not to all; any other condition fails."""
    for operator, condition in statement.get("Condition", {}).items():
        ((key, value),) = condition.items()
        if key == "dynamodb:LeadingKeys":
            assert operator == ("ForAllValues:StringLike" if "*" in value else "ForAllValues:StringEquals")
            return f" of {value}"
        assert (operator, key) == ("StringEquals", "kms:ViaService")
        names = as_list(value)
        assert all(re.fullmatch(r"[a-z]+\.eu-central-1\.amazonaws\.com", name) for name in names)
        return " via " + ", ".join(sorted(name.partition(".")[0] for name in names))
    return ""


def allowed(template: Template) -> dict[str, dict[str, set[str]]]:
    """By role, then by resource: the actions."""
    found: dict[str, dict[str, set[str]]] = {}
    for role in template.of_type("AWS::IAM::Role"):
        found[role] = {}
        for statement in statements(template, role):
            if statement["Effect"] == "Allow":
                for resource in as_list(statement["Resource"]):
                    place = found[role].setdefault(resource + bounds(statement), set())
                    # Nothing is allowed twice.
                    assert not place & set(as_list(statement["Action"]))
                    place.update(as_list(statement["Action"]))
    return found


def difference(template: Template, more: Template) -> dict[str, dict[str, set[str]]]:
    """What the roles of `more` may do beyond those of `template`, which may do nothing that these may not."""
    before, after = allowed(template), allowed(more)
    assert before.keys() == after.keys()
    found = {}
    for role, resources in after.items():
        assert before[role].keys() <= resources.keys()
        assert all(before[role].get(resource, set()) <= actions for resource, actions in resources.items())
        gained = {resource: actions - before[role].get(resource, set()) for resource, actions in resources.items()}
        found[role] = {resource: actions for resource, actions in gained.items() if actions}
    return {role: gained for role, gained in found.items() if gained}


def test_each_role_may_do_what_is_listed_and_no_more(template: Template) -> None:
    assert allowed(template) == ALLOWED


def test_nothing_is_denied_for_want_of_a_narrower_permission(template: Template) -> None:
    roles = template.of_type("AWS::IAM::Role")

    assert {statement["Effect"] for role in roles for statement in statements(template, role)} == {"Allow"}


@pytest.mark.parametrize(
    ("parameters", "gained"),
    [
        (
            {"AutoWatch": "true"},
            {"CallbackFunctionRole": {"StateTable.Arn of watch": {"dynamodb:BatchWriteItem", "dynamodb:DeleteItem"}}},
        ),
        ({"KmsKeyArn": KEY}, WITH_KEY),
        (VPC, {role: {"*": IN_VPC} for role in ALLOWED if role.endswith("FunctionRole")}),
        ({"PermissionsBoundaryArn": BOUNDARY}, {}),
        ({"AlarmTopicArn": "arn:aws:sns:eu-central-1:123456789012:alarms"}, {}),
    ],
    ids=["AutoWatch", "KmsKeyArn", "VPC", "PermissionsBoundaryArn", "AlarmTopicArn"],
)
def test_an_option_allows_what_it_needs_and_no_more(
    template: Template, parameters: dict[str, str], gained: dict[str, dict[str, set[str]]]
) -> None:
    assert difference(template, Template(EnableCallbacks="true", **parameters)) == gained


def test_the_code_of_a_function_in_a_vpc_may_not_do_what_the_service_does() -> None:
    template = Template(EnableCallbacks="true", **VPC)

    for role in template.of_type("AWS::IAM::Role"):
        denied = [statement for statement in statements(template, role) if statement["Effect"] == "Deny"]
        if not role.endswith("FunctionRole"):
            assert denied == []
            continue
        (statement,) = denied
        assert (statement["Action"], statement["Resource"]) == ("ec2:*", "*")
        # The service's own calls do not carry this key.
        assert statement["Condition"] == {"Null": {"lambda:SourceFunctionArn": "false"}}


@pytest.mark.parametrize("boundary", [BOUNDARY, ""])
def test_the_boundary_bounds_every_role(boundary: str) -> None:
    roles = Template(EnableCallbacks="true", PermissionsBoundaryArn=boundary).of_type("AWS::IAM::Role")

    assert roles.keys() == ALLOWED.keys()
    assert {role.get("PermissionsBoundary", "") for role in roles.values()} == {boundary}


def test_a_role_is_assumed_by_its_service_alone(template: Template) -> None:
    by_service = {"SweepScheduleRole": "scheduler", "WaitForStreamRole": "states"}
    for name, role in template.of_type("AWS::IAM::Role").items():
        (statement,) = role["AssumeRolePolicyDocument"]["Statement"]
        service = by_service.get(name, "lambda")
        assert statement["Principal"] == {"Service": f"{service}.amazonaws.com"}
        # Lambda's own trust needs no account; the others could be asked to act for a stranger's.
        account = {"StringEquals": {"aws:SourceAccount": "123456789012"}}
        assert statement.get("Condition") == (None if service == "lambda" else account)


def test_every_call_of_the_code_is_allowed_to_some_role_and_no_other_is() -> None:
    sources = [*REPOSITORY.glob("layers/stream_state/stream_state/*.py"), *REPOSITORY.glob("functions/*/app.py")]
    text = "\n".join(path.read_text() for path in sources)
    calls = {
        "".join(word.capitalize() for word in name.split("_"))
        for name in re.findall(r'_client\.([a-z_]+)\(|\.(?:call|batch)\(\s*"([a-z_]+)"', text)
        for name in filter(None, name)
    }

    functions = [role for role in ALLOWED if role.endswith("FunctionRole")]
    may = allowed(Template(EnableCallbacks="true", AutoWatch="true"))
    granted = {action for role in functions for actions in may[role].values() for action in actions}
    own = {
        action for action in granted - OF_EVENT_SOURCE if action.startswith(("dynamodb:", "secretsmanager:", "sqs:"))
    }
    assert len(calls) > len(own) > 5
    assert {PERMISSIONS.get(call, call) for call in calls} == {action.partition(":")[2] for action in own}


def commented_statements() -> list[tuple[str, str]]:
    """Each statement of a policy in the template's text, and the comment that stands before it."""
    lines = (REPOSITORY / "template.yaml").read_text().splitlines()
    found = []
    for number, line in enumerate(lines):
        if not re.match(r" +- Sid: ", line):
            continue
        start = number
        while re.match(r" +- (!If|Has|Watches|Runs)", lines[start - 1]):
            start -= 1
        first = start
        while lines[first - 1].lstrip().startswith("#"):
            first -= 1
        indent = len(line) - len(line.lstrip())
        end = number + 1
        while end < len(lines) and len(lines[end]) - len(lines[end].lstrip()) > indent:
            end += 1
        comment = " ".join(text.strip(" #") for text in lines[first:start])
        found.append((comment, "\n".join(lines[number:end])))
    return found


@pytest.mark.parametrize(("comment", "statement"), commented_statements())
def test_each_statement_says_which_call_needs_it_and_why_it_names_no_resource(comment: str, statement: str) -> None:
    granted = re.search(r"Action:(.*?)\n +Resource:", statement, re.DOTALL)

    assert granted
    # Either the comment names each action, or it says which service acts.
    named = [action in comment for action in re.findall(r"[a-z0-9]+:([A-Z]\w+)", granted[1])]
    assert all(named) or "service" in comment
    if 'Resource: "*"' in statement:
        assert re.search(r"no resources to name|not known before|none is for the code", comment)
