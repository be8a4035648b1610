"""The template as CloudFormation sees it: what belongs to pushed events is made as a whole or not at all, and what each
function and the state machine may do is exactly what stands here."""

import json
import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.cloudformation.parsing import ResourceMap, clean_json
from samtranslator.parser.parser import Parser
from samtranslator.translator.translator import Translator
from samtranslator.yaml_helper import yaml_parse

REPOSITORY = Path(__file__).parents[2]
PARAMETERS = {"RtcAppIds": "661e8f2a9b3c4d5e6f708192", "SweepScheduleExpression": "rate(1 minute)"}
OF_CALLBACKS = {
    "CallbackDeadLetterQueue",
    "CallbackFunction",
    "CallbackFunctionLogGroup",
    "CallbackFunctionParkedEvent",
    "CallbackFunctionPushedEventPermission",
    "CallbackFunctionRole",
    "CallbackKeySecret",
    "CallbackRetryQueue",
}
AWS_IAM = [{"AWS_IAM": []}]
CALLBACK_VARIABLES = {"AUTO_WATCH", "CALLBACK_RETRY_QUEUE_URL", "RTC_CALLBACK_SECRET_ID"}
CALLBACK_OUTPUTS = {"CallbackKeySecretArn", "CallbackUrl"}

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
    "SweepFunctionSweepScheduleRole": {
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
        "StateTable.Arn": {"dynamodb:GetItem", "dynamodb:PutItem", "dynamodb:Query", "dynamodb:UpdateItem"},
    },
}


class Named(str):
    """A resource that is not made: its reference is its logical id, and an attribute that and its name."""

    __slots__ = ()

    @property
    def physical_resource_id(self) -> str:
        return str(self)

    def get_cfn_attribute(self, name: str) -> str:
        return f"{self}.{name}"


class Template(ResourceMap):
    """The resources and outputs whose conditions hold, transformed by SAM and resolved by moto."""

    def __init__(self, **parameters: str) -> None:
        source = yaml_parse((REPOSITORY / "template.yaml").read_text())
        # SAM takes what it uploads from S3 only: the place of each local file passes through it as a key.
        for resource in source["Resources"].values():
            for name in resource.get("Properties", {}).keys() & {"CodeUri", "ContentUri", "DefinitionUri"}:
                resource["Properties"][name] = f"s3://local/{resource['Properties'][name]}"
        given = {name: str(entry.get("Default", "")) for name, entry in source["Parameters"].items()}
        given |= PARAMETERS | parameters
        # It warns that it has nowhere to publish metrics of itself to.
        logging.getLogger("samtranslator").setLevel(logging.ERROR)
        session = boto3.Session(region_name="eu-central-1")
        transformed = Translator({}, Parser(), boto_session=session).translate(source, given)
        super().__init__("stack-id", "stack", given, {}, "eu-central-1", "123456789012", transformed, None)
        self._parsed_resources |= given
        self.load_conditions()
        holds = {None: True, **self.lazy_condition_map}
        for kind in ("Resources", "Outputs"):
            entries = transformed[kind].items()
            transformed[kind] = {name: entry for name, entry in entries if holds[entry.get("Condition")]}
        self.made: dict[str, Any] = clean_json(transformed["Resources"], self)
        self.outputs: dict[str, Any] = clean_json(transformed["Outputs"], self)

    def __getitem__(self, name: str) -> Any:
        return self._parsed_resources.get(name, Named(name))

    def of_type(self, kind: str) -> dict[str, dict[str, Any]]:
        """Properties by logical id."""
        return {name: entry.get("Properties", {}) for name, entry in self.made.items() if entry["Type"] == kind}

    def routes(self) -> dict[str, tuple[str, bool]]:
        """By route: its function, and whether IAM is asked."""
        (api,) = self.of_type("AWS::ApiGatewayV2::Api").values()
        found = {}
        for path, methods in api["Body"]["paths"].items():
            for method, entry in (methods or {}).items():
                function = re.search(r"functions/(\w+)", entry["x-amazon-apigateway-integration"]["uri"])
                found[f"{method.upper()} {path}"] = (function[1] if function else "", entry["security"] == AWS_IAM)
        return found


@pytest.fixture(scope="module")
def without() -> Template:
    return Template()


@pytest.fixture(scope="module")
def template() -> Template:
    return Template(EnableCallbacks="true")


def allowed(template: Template, role: Mapping[str, Any]) -> dict[str, set[str]]:
    """What a role may do, by resource."""
    managed = template.of_type("AWS::IAM::ManagedPolicy")
    documents = [managed[name]["PolicyDocument"] for name in role.get("ManagedPolicyArns", [])]
    documents += [policy["PolicyDocument"] for policy in role.get("Policies", [])]
    found: dict[str, set[str]] = {}
    # AWS::NoValue leaves None in a list.
    for statement in filter(None, (statement for document in documents for statement in document["Statement"])):
        assert statement["Effect"] == "Allow"
        for resource in as_list(statement["Resource"]):
            found.setdefault(resource, set()).update(as_list(statement["Action"]))
    return found


def as_list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def variables(template: Template) -> Iterable[tuple[str, Mapping[str, str]]]:
    for name, properties in template.of_type("AWS::Lambda::Function").items():
        yield name, properties["Environment"]["Variables"]


def test_what_belongs_to_pushed_events_is_made_as_a_whole_or_not_at_all(template: Template, without: Template) -> None:
    assert template.made.keys() - without.made.keys() == OF_CALLBACKS
    assert without.made.keys() <= template.made.keys()
    assert template.outputs.keys() - without.outputs.keys() == CALLBACK_OUTPUTS
    assert "WaitForStream" in without.made


def test_without_pushed_events_nothing_names_them(without: Template) -> None:
    assert not re.search("callback", json.dumps(without.made), re.IGNORECASE)


def test_the_route_of_pushed_events_alone_is_without_iam(template: Template, without: Template) -> None:
    open_routes = {key: function for key, (function, asks_iam) in template.routes().items() if not asks_iam}

    assert open_routes == {"POST /callbacks/rtc": "CallbackFunction"}
    assert without.routes()
    assert all(asks_iam for _, asks_iam in without.routes().values())


def test_the_route_of_pushed_events_may_be_called_more_often(template: Template, without: Template) -> None:
    (stage,), (other,) = (entry.of_type("AWS::ApiGatewayV2::Stage").values() for entry in (template, without))

    (key,) = stage["RouteSettings"]
    assert key in template.routes()
    assert stage["RouteSettings"][key]["ThrottlingRateLimit"] > stage["DefaultRouteSettings"]["ThrottlingRateLimit"]
    assert "RouteSettings" not in other


def test_each_role_may_do_what_is_listed_and_no_more(template: Template) -> None:
    roles = template.of_type("AWS::IAM::Role")

    assert {name: allowed(template, role) for name, role in roles.items()} == ALLOWED


def test_watching_by_itself_needs_two_actions_more() -> None:
    template = Template(EnableCallbacks="true", AutoWatch="true")

    may = allowed(template, template.of_type("AWS::IAM::Role")["CallbackFunctionRole"])

    more = {"dynamodb:BatchWriteItem", "dynamodb:DeleteItem"}
    assert may["StateTable.Arn"] == ALLOWED["CallbackFunctionRole"]["StateTable.Arn"] | more


def test_each_function_has_a_role_and_a_log_of_its_own(template: Template) -> None:
    for name, properties in template.of_type("AWS::Lambda::Function").items():
        assert properties["Role"] == f"{name}Role.Arn"
        assert properties["LoggingConfig"] == {"LogGroup": f"{name}LogGroup"}
        assert template.of_type("AWS::Logs::LogGroup")[f"{name}LogGroup"]["RetentionInDays"] == "30"


def test_settings_reach_the_functions() -> None:
    template = Template(EnableCallbacks="true", AutoWatch="true", RtcQuery="off")

    environments = dict(variables(template))

    assert {name: values["RTC_QUERY"] for name, values in environments.items()} == dict.fromkeys(environments, "off")
    having = [name for name, values in environments.items() if CALLBACK_VARIABLES & values.keys()]
    assert having == ["CallbackFunction"]
    assert {name: environments["CallbackFunction"][name] for name in CALLBACK_VARIABLES} == {
        "AUTO_WATCH": "true",
        "CALLBACK_RETRY_QUEUE_URL": "CallbackRetryQueue",
        "RTC_CALLBACK_SECRET_ID": "CallbackKeySecret",
    }


def test_parked_events_come_again_and_are_given_up_into_a_queue(template: Template) -> None:
    ((_, source),) = template.of_type("AWS::Lambda::EventSourceMapping").items()
    queues = template.of_type("AWS::SQS::Queue")
    function = template.of_type("AWS::Lambda::Function")["CallbackFunction"]

    assert (source["FunctionName"], source["EventSourceArn"]) == ("CallbackFunction", "CallbackRetryQueue.Arn")
    assert source["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
    retry = queues["CallbackRetryQueue"]
    assert retry["VisibilityTimeout"] >= 6 * function["Timeout"]
    assert retry["RedrivePolicy"]["deadLetterTargetArn"] == "CallbackDeadLetterQueue.Arn"
    assert queues["CallbackDeadLetterQueue"]["MessageRetentionPeriod"] > retry["MessageRetentionPeriod"]


def test_secrets_are_made_without_a_value_and_kept(template: Template) -> None:
    secrets = template.of_type("AWS::SecretsManager::Secret")

    assert secrets.keys() == {"CallbackKeySecret", "SigningKeysSecret"}
    for name, properties in secrets.items():
        assert properties.keys() <= {"Description", "Tags"}
        assert template.made[name]["DeletionPolicy"] == "Retain"
        assert template.made[name]["UpdateReplacePolicy"] == "Retain"


def test_the_definition_of_the_state_machine_is_given_what_it_names(template: Template) -> None:
    (machine,) = template.of_type("AWS::StepFunctions::StateMachine").values()
    definition = (REPOSITORY / machine["DefinitionS3Location"]["Key"]).read_text()

    assert set(re.findall(r"\$\{(\w+)\}", definition)) == machine["DefinitionSubstitutions"].keys()
    assert machine["DefinitionSubstitutions"]["TaskFunctionArn"] == "TaskFunction.Arn"
    assert machine["RoleArn"] == "WaitForStreamRole.Arn"
    assert machine["LoggingConfiguration"]["Destinations"] == [
        {"CloudWatchLogsLogGroup": {"LogGroupArn": "WaitForStreamLogGroup.Arn"}}
    ]
    assert machine["TracingConfiguration"] == {"Enabled": True}
