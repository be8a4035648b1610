"""The template as CloudFormation sees it: what belongs to pushed events is made as a whole or not at all."""

import json
import re
from collections.abc import Iterable, Mapping

import pytest

from tests.unit.transformed import REPOSITORY, Template

OF_CALLBACKS = {
    "CallbackDurationAlarm",
    "CallbackRefusedAlarm",
    "CallbackDeadLetterQueue",
    "CallbackFunction",
    "CallbackFunctionLogGroup",
    "CallbackFunctionParkedEvent",
    "CallbackFunctionPushedEventPermission",
    "CallbackFunctionRole",
    "CallbackKeySecret",
    "CallbackRetryQueue",
}
CALLBACK_VARIABLES = {"AUTO_WATCH", "CALLBACK_RETRY_QUEUE_URL", "RTC_CALLBACK_SECRET_ID"}
CALLBACK_OUTPUTS = {"CallbackKeySecretArn", "CallbackUrl"}


@pytest.fixture(scope="module")
def without() -> Template:
    return Template()


@pytest.fixture(scope="module")
def template() -> Template:
    return Template(EnableCallbacks="true")


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
