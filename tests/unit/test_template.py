"""The template as CloudFormation sees it: the parts for callback events are made as a whole or not at all."""

import json
import re

import pytest

from tests.unit.transformed import REPOSITORY, Template

OF_CALLBACKS = {
    "CallbackDurationAlarm",
    "CallbackKeyUnreadableAlarm",
    "CallbackRefusedAlarm",
    "CallbackDeadLetterQueue",
    "CallbackFunction",
    "CallbackFunctionCallbackEventPermission",
    "CallbackFunctionLogGroup",
    "CallbackFunctionRetryMessage",
    "CallbackFunctionRole",
    "CallbackKeySecret",
    "CallbackRetryQueue",
}


@pytest.fixture(scope="module")
def without() -> Template:
    return Template()


@pytest.fixture(scope="module")
def template() -> Template:
    return Template(EnableCallbacks="true")


def environments(template: Template) -> dict[str, dict[str, str]]:
    functions = template.of_type("AWS::Lambda::Function")
    return {name: properties["Environment"]["Variables"] for name, properties in functions.items()}


def test_the_parts_for_callback_events_are_made_as_a_whole_or_not_at_all(template: Template, without: Template) -> None:
    assert template.made.keys() - without.made.keys() == OF_CALLBACKS
    assert without.made.keys() <= template.made.keys()
    assert template.outputs.keys() - without.outputs.keys() == {"CallbackKeySecretArn", "CallbackUrl"}
    assert "WaitForStream" in without.made


def test_without_callback_events_nothing_names_them(without: Template) -> None:
    inner = without.made["Observability"]["Properties"]["Parameters"]
    others = {name: entry for name, entry in without.made.items() if name != "Observability"}

    assert not re.search("callback", json.dumps(others), re.IGNORECASE)
    assert {value for name, value in inner.items() if "Callback" in name} == {""}


def test_the_route_of_callback_events_alone_is_without_iam(template: Template, without: Template) -> None:
    open_routes = {key: function for key, (function, asks_iam) in template.routes().items() if not asks_iam}

    assert open_routes == {"POST /callbacks/rtc": "CallbackFunction"}
    assert without.routes()
    assert all(asks_iam for _, asks_iam in without.routes().values())


def test_the_route_of_callback_events_may_be_called_more_often(template: Template, without: Template) -> None:
    (stage,), (other,) = (entry.of_type("AWS::ApiGatewayV2::Stage").values() for entry in (template, without))

    assert stage["RouteSettings"]["POST /callbacks/rtc"]["ThrottlingRateLimit"] == 500
    assert stage["DefaultRouteSettings"]["ThrottlingRateLimit"] == 100
    assert "RouteSettings" not in other


def test_each_function_has_a_role_and_a_log_of_its_own(template: Template) -> None:
    for name, properties in template.of_type("AWS::Lambda::Function").items():
        assert properties["Role"] == f"{name}Role.Arn"
        assert properties["LoggingConfig"] == {"LogGroup": f"{name}LogGroup"}
        assert template.of_type("AWS::Logs::LogGroup")[f"{name}LogGroup"]["RetentionInDays"] == "30"


def test_settings_reach_the_functions() -> None:
    found = environments(Template(EnableCallbacks="true", AutoWatch="true", RtcQuery="off"))

    assert len(found) == 4
    # Every function sends rechecks, and the callback function asks the vendor on one.
    common = {
        "CALLBACK_RETRY_QUEUE_URL": "CallbackRetryQueue",
        "RTC_QUERY": "off",
        "RTC_SECRET_ID": "SigningKeysSecret",
    }
    assert all(common.items() <= variables.items() for variables in found.values())
    own = {name: variables.keys() - found["ApiFunction"].keys() for name, variables in found.items()}
    assert {name: names for name, names in own.items() if names} == {
        "CallbackFunction": {"AUTO_WATCH", "CALLBACK_DEAD_LETTER_QUEUE_URL", "RTC_CALLBACK_SECRET_ID"}
    }
    callback = found["CallbackFunction"]
    assert (callback["AUTO_WATCH"], callback["RTC_CALLBACK_SECRET_ID"]) == ("true", "CallbackKeySecret")
    assert callback["CALLBACK_DEAD_LETTER_QUEUE_URL"] == "CallbackDeadLetterQueue"


def test_messages_of_the_retry_queue_come_again_and_are_dead_lettered(template: Template) -> None:
    (source,) = template.of_type("AWS::Lambda::EventSourceMapping").values()
    queues = template.of_type("AWS::SQS::Queue")
    function = template.of_type("AWS::Lambda::Function")["CallbackFunction"]

    assert source == {
        "FunctionName": "CallbackFunction",
        "EventSourceArn": "CallbackRetryQueue.Arn",
        "BatchSize": 10,
        "FunctionResponseTypes": ["ReportBatchItemFailures"],
        "ScalingConfig": {"MaximumConcurrency": 10},
    }
    retry = queues["CallbackRetryQueue"]
    assert retry["VisibilityTimeout"] >= 6 * function["Timeout"]
    assert retry["RedrivePolicy"] == {"deadLetterTargetArn": "CallbackDeadLetterQueue.Arn", "maxReceiveCount": 40}
    assert queues["CallbackDeadLetterQueue"]["MessageRetentionPeriod"] > retry["MessageRetentionPeriod"]


def test_the_table_lists_undelivered_changes(template: Template) -> None:
    (table,) = template.of_type("AWS::DynamoDB::Table").values()

    types = {attribute["AttributeName"]: attribute["AttributeType"] for attribute in table["AttributeDefinitions"]}
    assert types == {"pk": "S", "sk": "S", "undelivered": "S", "deliver_after": "N"}
    assert table["GlobalSecondaryIndexes"] == [
        {
            "IndexName": "Undelivered",
            "KeySchema": [
                {"AttributeName": "undelivered", "KeyType": "HASH"},
                {"AttributeName": "deliver_after", "KeyType": "RANGE"},
            ],
            "Projection": {"ProjectionType": "KEYS_ONLY"},
        }
    ]


def test_secrets_are_made_without_a_value_and_kept(template: Template) -> None:
    secrets = template.of_type("AWS::SecretsManager::Secret")

    assert secrets.keys() == {"CallbackKeySecret", "SigningKeysSecret"}
    for name, properties in secrets.items():
        assert properties.keys() <= {"Description", "Tags"}
        assert template.made[name]["DeletionPolicy"] == "Retain"
        assert template.made[name]["UpdateReplacePolicy"] == "Retain"


def test_the_state_machine_gets_the_names_that_its_definition_uses(template: Template) -> None:
    (machine,) = template.of_type("AWS::StepFunctions::StateMachine").values()
    definition = (REPOSITORY / machine["DefinitionS3Location"]["Key"]).read_text()

    assert set(re.findall(r"\$\{(\w+)\}", definition)) == machine["DefinitionSubstitutions"].keys()
    assert machine["DefinitionSubstitutions"]["TaskFunctionArn"] == "TaskFunction.Arn"
    assert machine["RoleArn"] == "WaitForStreamRole.Arn"
    (destination,) = machine["LoggingConfiguration"]["Destinations"]
    assert destination == {"CloudWatchLogsLogGroup": {"LogGroupArn": "WaitForStreamLogGroup.Arn"}}
    assert machine["TracingConfiguration"] == {"Enabled": True}
