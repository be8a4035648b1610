"""Each role may do the listed actions, resource by resource, and some call needs each of them."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from botocore import xform_name
from botocore.session import get_session

from tests.unit.transformed import REPOSITORY, Template

# Role, resource with the bounds of a condition, action.
type Permission = tuple[str, str, str]
# By role, then by resource: actions, each word with a colon the service of those that follow.
type Listed = Mapping[str, Mapping[str, str]]

MERGE = "dynamodb: BatchGetItem GetItem PutItem UpdateItem"
SEND = "sqs: SendMessage"
READ_SECRET = "secretsmanager: GetSecretValue"
WRITE_LOG = "logs: CreateLogStream PutLogEvents"
SEND_TRACES = "xray: PutTelemetryRecords PutTraceSegments"
WAKES = {"StateTable.Arn of wait#*": "dynamodb: DeleteItem Query", "WaitForStream": "states: SendTaskSuccess"}
RUNS = {"*": SEND_TRACES, "FunctionLogGroup.Arn": WRITE_LOG, **WAKES}
ASKS_VENDOR = {**RUNS, "SigningKeysSecret": READ_SECRET, "StateTable.Arn": MERGE}
DELIVERS = {"InvocationDeadLetterQueue.Arn": SEND, "ResultsQueue.Arn": SEND}
WITHOUT_CALLBACKS: Listed = {
    "ApiFunctionRole": {
        **ASKS_VENDOR,
        "StateTable.Arn": f"{MERGE} BatchWriteItem DeleteItem Query",
    },
    "TaskFunctionRole": {**ASKS_VENDOR, **DELIVERS},
    "SweepFunctionRole": {
        **ASKS_VENDOR,
        **DELIVERS,
        "StateTable.Arn": f"{MERGE} Query",
        "StateTable.Arn/index/Undelivered": "dynamodb: Query",
    },
    "BoardFunctionRole": {
        "*": SEND_TRACES,
        "FunctionLogGroup.Arn": WRITE_LOG,
        "StateTable.Arn": "dynamodb: BatchGetItem GetItem Query Scan",
    },
    "SweepScheduleRole": {"ScheduleDeadLetterQueue.Arn": SEND, "SweepFunctionAliaslive": "lambda: InvokeFunction"},
    "WaitForStreamRole": {
        "*": f"{SEND_TRACES} GetSamplingRules GetSamplingTargets logs: CreateLogDelivery DeleteLogDelivery "
        "DescribeLogGroups DescribeResourcePolicies GetLogDelivery ListLogDeliveries PutResourcePolicy "
        "UpdateLogDelivery",
        "TaskFunctionAliaslive": "lambda: InvokeFunction",
    },
}
OF_CALLBACKS: Listed = {
    **{f"{name}FunctionRole": {"CallbackRetryQueue.Arn": SEND} for name in ("Api", "Task", "Sweep")},
    # Its route is open to everybody: of the table it may use state records, slots and undelivered changes alone.
    "CallbackFunctionRole": {
        **RUNS,
        "CallbackDeadLetterQueue.Arn": SEND,
        "CallbackKeySecret": READ_SECRET,
        "CallbackRetryQueue.Arn": f"{SEND} ReceiveMessage DeleteMessage GetQueueAttributes",
        "ResultsQueue.Arn": SEND,
        "SigningKeysSecret": READ_SECRET,
        "StateTable.Arn of state#*": f"{MERGE} Query",
        "StateTable.Arn of limiter": "dynamodb: GetItem UpdateItem",
        "StateTable.Arn/index/Undelivered": "dynamodb: Query",
    },
}
CALLBACKS = {"EnableCallbacks": "true"}
KEY = "arn:aws:kms:eu-central-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"
BOUNDARY = "arn:aws:iam::123456789012:policy/boundary"
VPC = {"VpcSubnetIds": "subnet-12345678,subnet-23456789", "VpcSecurityGroupIds": "sg-12345678"}
# With a key: the services through which a role may use it.
OTHER_KEY = KEY.replace("1234abcd", "5678abcd")
USE = "kms: Decrypt GenerateDataKey"
USES = " via dynamodb, secretsmanager, sqs"
WITH_KEY: Listed = {
    **{f"{name}FunctionRole": {KEY + USES: USE} for name in ("Api", "Board", "Task", "Sweep")},
    "SweepScheduleRole": {f"{KEY} via sqs": USE},
}
USES_OTHER_KEY: Listed = {
    f"{name}FunctionRole": {OTHER_KEY + USES: USE} for name in ("Api", "Board", "Callback", "Task", "Sweep")
}
CALLBACKS_WITH_KEY: Listed = {**WITH_KEY, "CallbackFunctionRole": {KEY + USES: USE}}
IN_VPC = {
    "*": "ec2: AssignPrivateIpAddresses CreateNetworkInterface DeleteNetworkInterface DescribeNetworkInterfaces "
    "DescribeSubnets UnassignPrivateIpAddresses"
}
ROLES = WITHOUT_CALLBACKS.keys() | OF_CALLBACKS.keys()
FUNCTION_ROLES = sorted(role for role in ROLES if role.endswith("FunctionRole"))
# The Lambda service uses these on the queue that it reads for CallbackFunction.
OF_EVENT_SOURCE = {"sqs:DeleteMessage", "sqs:GetQueueAttributes", "sqs:ReceiveMessage"}
# Calls that are allowed by another name.
PERMISSIONS = {"SendMessageBatch": "SendMessage"}


@pytest.fixture(scope="module")
def template() -> Template:
    return Template(**CALLBACKS)


def listed(roles: Listed) -> set[Permission]:
    found, service = set(), ""
    for role, resources in roles.items():
        for resource, words in resources.items():
            for word in words.split():
                if word.endswith(":"):
                    service = word
                else:
                    found.add((role, resource, service + word))
    return found


def as_list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def statements(template: Template, role: str) -> Iterator[dict[str, Any]]:
    properties = template.of_type("AWS::IAM::Role")[role]
    managed = template.of_type("AWS::IAM::ManagedPolicy")
    # AWS::NoValue leaves None in a list.
    documents = [managed[name]["PolicyDocument"] for name in filter(None, properties.get("ManagedPolicyArns", []))]
    documents += [policy["PolicyDocument"] for policy in managed.values() if role in policy.get("Roles", [])]
    documents += [policy["PolicyDocument"] for policy in properties.get("Policies", [])]
    for document in documents:
        yield from filter(None, document["Statement"])


def bounds(statement: Mapping[str, Any]) -> str:
    """The services or the partition keys to which a statement is bound, if any; any other condition fails."""
    for operator, condition in statement.get("Condition", {}).items():
        ((key, value),) = condition.items()
        if key == "dynamodb:LeadingKeys":
            assert operator == ("ForAllValues:StringLike" if "*" in value else "ForAllValues:StringEquals")
            return f" of {value}"
        names = as_list(value)
        # A given secret may be of another region.
        elsewhere = "secretsmanager.*.amazonaws.com" in names
        assert (operator, key) == ("StringLike" if elsewhere else "StringEquals", "kms:ViaService")
        pattern = r"(dynamodb|sqs)\.eu-central-1\.amazonaws\.com|secretsmanager\.\*\.amazonaws\.com"
        assert all(re.fullmatch(pattern, name) for name in names)
        return " via " + ", ".join(sorted(name.partition(".")[0] for name in names))
    return ""


def allowed(template: Template) -> set[Permission]:
    found = [
        (role, resource + bounds(statement), action)
        for role in template.of_type("AWS::IAM::Role")
        for statement in statements(template, role)
        if statement["Effect"] == "Allow"
        # AWS::NoValue leaves None in a list.
        for resource in filter(None, as_list(statement["Resource"]))
        for action in as_list(statement["Action"])
    ]
    # Nothing is allowed twice.
    assert len(found) == len(set(found))
    return set(found)


def test_each_role_may_do_what_is_listed_and_no_more() -> None:
    assert allowed(Template()) == listed(WITHOUT_CALLBACKS)


@pytest.mark.parametrize(
    ("given", "option", "gained"),
    [
        ({}, CALLBACKS, OF_CALLBACKS),
        (
            CALLBACKS,
            {"AutoWatch": "true"},
            {"CallbackFunctionRole": {"StateTable.Arn of watch#*": "dynamodb: UpdateItem"}},
        ),
        ({}, {"KmsKeyArn": KEY}, WITH_KEY),
        (
            {**CALLBACKS, "KmsKeyArn": KEY},
            {"SigningKeysKmsKeyArn": OTHER_KEY},
            USES_OTHER_KEY,
        ),
        (CALLBACKS, {"ResultsQueueKmsKeyArn": OTHER_KEY}, USES_OTHER_KEY),
        (CALLBACKS, {"KmsKeyArn": KEY}, CALLBACKS_WITH_KEY),
        (CALLBACKS, VPC, dict.fromkeys(FUNCTION_ROLES, IN_VPC)),
        (CALLBACKS, {"PermissionsBoundaryArn": BOUNDARY}, {}),
        (CALLBACKS, {"AlarmTopicArn": "arn:aws:sns:eu-central-1:123456789012:alarms"}, {}),
    ],
    ids=[
        "callbacks",
        "AutoWatch",
        "key",
        "a secret's key",
        "a queue's key",
        "key and callbacks",
        "VPC",
        "boundary",
        "topic",
    ],
)
def test_an_option_allows_what_it_needs_and_no_more(
    given: dict[str, str], option: dict[str, str], gained: Listed
) -> None:
    before, after = allowed(Template(**given)), allowed(Template(**given, **option))

    assert before <= after
    assert after - before == listed(gained)


@pytest.mark.parametrize(("vpc", "roles"), [({}, []), (VPC, FUNCTION_ROLES)], ids=["outside", "VPC"])
def test_the_code_of_a_function_in_a_vpc_may_not_do_what_the_service_does(
    vpc: dict[str, str], roles: list[str]
) -> None:
    template = Template(**CALLBACKS, **vpc)

    found = [(role, statement) for role in sorted(ROLES) for statement in statements(template, role)]
    denied = [(role, statement) for role, statement in found if statement["Effect"] != "Allow"]
    assert [role for role, _ in denied] == roles
    for _, statement in denied:
        assert (statement["Effect"], statement["Action"], statement["Resource"]) == ("Deny", "ec2:*", "*")
        # The service's own calls do not carry this key.
        assert statement["Condition"] == {"Null": {"lambda:SourceFunctionArn": "false"}}


@pytest.mark.parametrize("boundary", [BOUNDARY, ""])
def test_the_boundary_bounds_every_role(boundary: str) -> None:
    template = Template(**CALLBACKS, GradualDeployment="true", PermissionsBoundaryArn=boundary)
    roles = template.of_type("AWS::IAM::Role")

    assert roles.keys() == ROLES | {"DeploymentRole"}
    assert {role.get("PermissionsBoundary", "") for role in roles.values()} == {boundary}


def test_a_role_is_assumed_by_its_service_alone(template: Template) -> None:
    by_service = {"SweepScheduleRole": "scheduler", "WaitForStreamRole": "states"}
    for name, role in template.of_type("AWS::IAM::Role").items():
        (statement,) = role["AssumeRolePolicyDocument"]["Statement"]
        service = by_service.get(name, "lambda")
        assert statement["Principal"] == {"Service": f"{service}.amazonaws.com"}
        # Lambda's own trust needs no account; a stranger's account could make the other services act.
        account = {"StringEquals": {"aws:SourceAccount": "123456789012"}}
        assert statement.get("Condition") == (None if service == "lambda" else account)


def test_every_call_of_the_code_is_allowed_to_some_role_and_no_other_is() -> None:
    sources = [*REPOSITORY.glob("layers/stream_state/stream_state/**/*.py"), *REPOSITORY.glob("functions/*/app.py")]
    words = {word for path in sources for word in re.findall(r'[."]([a-z_]+)[(",]', path.read_text())}
    services = {"dynamodb": "dynamodb", "secretsmanager": "secretsmanager", "sqs": "sqs", "states": "stepfunctions"}
    calls = {
        f"{service}:{PERMISSIONS.get(operation, operation)}"
        for service, model in services.items()
        for operation in get_session().get_service_model(model).operation_names
        if xform_name(operation) in words
    }

    may = allowed(Template(**CALLBACKS, AutoWatch="true"))
    used = {action for role, _, action in may if role in FUNCTION_ROLES and action.startswith(tuple(services))}
    assert calls == used - OF_EVENT_SOURCE


def commented_statements() -> list[tuple[str, str]]:
    """The comment before each statement of the template's text, and the statement; no comment is an empty one."""
    text = (REPOSITORY / "template.yaml").read_text()
    pattern = r"((?: +#.*\n)*)(?: +- (?:!If|[A-Z]\w+)\n)*( +)- Sid: .*\n((?:\2 +.*\n)+)"
    found = [(match[1].replace("#", ""), match[3]) for match in re.finditer(pattern, text)]
    assert len(found) == text.count("- Sid: ")
    return found


@pytest.mark.parametrize(("comment", "statement"), commented_statements())
def test_each_statement_says_which_call_needs_it_and_why_it_names_no_resource(comment: str, statement: str) -> None:
    granted = re.search(r"Action:(.*?)\n +Resource:", statement, re.DOTALL)

    assert granted
    # Either the comment names each action, or it says which service acts.
    named = [action in comment for action in re.findall(r"[a-z0-9]+:([A-Z]\w+)", granted[1])]
    assert all(named) or "service" in comment
    if 'Resource: "*"' in statement:
        assert re.search(r"no resources to name|do not exist before|none is for the code", comment)
