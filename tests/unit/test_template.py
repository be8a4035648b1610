"""The template as CloudFormation sees it: the parts for callback events are made as a whole or not at all."""

import json
import re
from pathlib import Path

import pytest

from tests.unit.transformed import REPOSITORY, Template, parsed

OF_CALLBACKS = {
    "CallbackDeadLetterQueue",
    "CallbackDurationAlarm",
    "CallbackFunction",
    "CallbackFunctionAliaslive",
    "CallbackFunctionRetryMessage",
    "CallbackFunctionRole",
    "CallbackFunctionVersion",
    "CallbackHttpApi",
    "CallbackIntegration",
    "CallbackKeySecret",
    "CallbackKeyUnreadableAlarm",
    "CallbackPermission",
    "CallbackRefusedAlarm",
    "CallbackRetryQueue",
    "CallbackRoute",
    "CallbackServerErrorsAlarm",
    "CallbackStage",
    "RetryAgeAlarm",
}
CALLBACK_OUTPUTS = {
    "CallbackDeadLetterQueueUrl",
    "CallbackFunctionName",
    "CallbackKeySecretArn",
    "CallbackRetryQueueUrl",
    "CallbackUrl",
}
# The deployment role of SAM's making, and the resources of CodeDeploy for each function.
OF_GRADUAL_DEPLOYMENT = {
    "DeploymentRole",
    "ServerlessDeploymentApplication",
    *(f"{function}FunctionDeploymentGroup" for function in ("Api", "Board", "Callback", "Sweep", "Task")),
}
DOMAINS = {
    "DomainName": "state.example.com",
    "CallbackDomainName": "events.example.com",
    "CertificateArn": "arn:aws:acm:eu-central-1:123456789012:certificate/1234abcd-12ab-34cd-56ef-1234567890ab",
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


def names(template: Template) -> set[str]:
    """The logical ids, without the hash of what a version holds."""
    return {re.sub(r"Version\w{10}$", "Version", name) for name in template.made}


def test_the_parts_for_callback_events_are_made_as_a_whole_or_not_at_all(template: Template, without: Template) -> None:
    assert names(template) - names(without) == OF_CALLBACKS
    assert names(without) <= names(template)
    assert template.outputs.keys() - without.outputs.keys() == CALLBACK_OUTPUTS
    assert without.outputs.keys() <= template.outputs.keys()
    assert "WaitForStream" in without.made


def test_callback_events_change_the_other_parts_only_as_listed(template: Template, without: Template) -> None:
    changed = {
        name: sorted(key for key in properties | other if properties.get(key) != other.get(key))
        for name in without.made.keys() & template.made.keys()
        if (properties := template.made[name]["Properties"]) != (other := without.made[name]["Properties"])
    }

    # The API and its stage are not among them: switching events off takes nothing from either.
    assert changed == {
        # Every function gets the retry queue's address, and the permission to send rechecks to it.
        **{f"{name}Function": ["Environment"] for name in ("Api", "Board", "Sweep", "Task")},
        "FunctionPolicy": ["PolicyDocument"],
        # The callback function wakes who waits, and a wait asks less often.
        "WakePolicy": ["Roles"],
        "WaitForStream": ["DefinitionSubstitutions"],
        "Observability": ["Parameters"],
        "Dashboard": ["DashboardBody"],
        **{name: ["Metrics"] for name in ("DeadLettersAlarm", "FunctionErrorsAlarm", "FunctionThrottlesAlarm")},
    }


def test_without_callback_events_nothing_names_them(without: Template) -> None:
    inner = without.made["Observability"]["Properties"]["Parameters"]
    texts = {"AlarmDescription", "Description"}
    others = {
        name: {key: value for key, value in entry["Properties"].items() if key not in texts}
        for name, entry in without.made.items()
        if name != "Observability"
    }

    assert not re.search("callback", json.dumps(others), re.IGNORECASE)
    assert {value for name, value in inner.items() if "Callback" in name} == {"", "0"}


def test_the_route_of_callback_events_alone_is_without_iam(template: Template, without: Template) -> None:
    open_routes = {key: function for key, (function, asks_iam) in template.routes().items() if not asks_iam}

    assert open_routes == {"POST /callbacks/rtc": "CallbackFunction"}
    assert without.routes()
    assert all(asks_iam for _, asks_iam in without.routes().values())


def test_callback_events_have_an_api_with_a_throttle_of_its_own() -> None:
    template = Template(EnableCallbacks="true", CallbackRateLimit="70")
    stages = {stage["ApiId"]: stage for stage in template.of_type("AWS::ApiGatewayV2::Stage").values()}
    permission = template.made["CallbackPermission"]["Properties"]

    assert stages.keys() == {"HttpApi", "CallbackHttpApi"}
    assert stages["CallbackHttpApi"]["DefaultRouteSettings"] == {
        "ThrottlingRateLimit": "70",
        "ThrottlingBurstLimit": "70",
    }
    # Metrics by route cost, and no alarm or widget asks for them.
    assert stages["HttpApi"]["DefaultRouteSettings"] == {"ThrottlingRateLimit": 100, "ThrottlingBurstLimit": 100}
    assert not any("RouteSettings" in stage for stage in stages.values())
    assert template.outputs["CallbackUrl"]["Value"] == "CallbackHttpApi.ApiEndpoint/callbacks/rtc"
    assert "CallbackHttpApi" in permission["SourceArn"]
    assert permission["FunctionName"] == "CallbackFunctionAliaslive"


def test_the_address_of_callback_events_can_have_a_segment_that_nobody_guesses() -> None:
    template = Template(EnableCallbacks="true", CallbackPathSegment="s3gment-of_16-chars")

    assert "POST /s3gment-of_16-chars/callbacks/rtc" in template.routes()
    url = template.outputs["CallbackUrl"]["Value"]
    assert url == "CallbackHttpApi.ApiEndpoint/s3gment-of_16-chars/callbacks/rtc"


@pytest.mark.parametrize("callbacks", ["false", "true"])
def test_a_domain_name_of_ones_own_stands_before_each_api(callbacks: str) -> None:
    template = Template(EnableCallbacks=callbacks, **DOMAINS)
    domains = template.of_type("AWS::ApiGatewayV2::DomainName")
    mappings = template.of_type("AWS::ApiGatewayV2::ApiMapping").values()

    apis = {"ApiDomain": "HttpApi"} | ({"CallbackDomain": "CallbackHttpApi"} if callbacks == "true" else {})
    assert domains.keys() == apis.keys()
    assert {mapping["DomainName"]: mapping["ApiId"] for mapping in mappings} == apis
    for properties in domains.values():
        (configuration,) = properties["DomainNameConfigurations"]
        assert configuration["CertificateArn"] == DOMAINS["CertificateArn"]
    assert template.outputs["ApiUrl"]["Value"] == "https://state.example.com"
    if callbacks == "true":
        assert template.outputs["CallbackUrl"]["Value"] == "https://events.example.com/callbacks/rtc"
        assert template.outputs["CallbackDomainTarget"]["Value"] == "CallbackDomain.RegionalDomainName"


def test_every_line_of_the_access_log_is_json_whatever_a_request_lacks(template: Template) -> None:
    formats = {stage["AccessLogSettings"]["Format"] for stage in template.of_type("AWS::ApiGatewayV2::Stage").values()}

    (line,) = formats
    # API Gateway writes a dash for what a request does not have.
    entry = json.loads(re.sub(r"\$context\.[\w.]+", "-", line))
    assert set(entry.values()) == {"-"}
    assert {"status", "gateway_error", "source_ip", "route"} <= entry.keys()
    # A text of the caller could hold quotes, and $context.error.messageString brings quotes of its own.
    assert not re.search(r"context\.(path|error\.messageString|identity\.userAgent|domainName)\b", line)


def test_log_groups_that_other_services_write_to_have_the_prefix_for_them(template: Template) -> None:
    groups = template.of_type("AWS::Logs::LogGroup")

    assert groups.keys() == {"AccessLogGroup", "FunctionLogGroup", "WaitForStreamLogGroup"}
    for name in ("AccessLogGroup", "WaitForStreamLogGroup"):
        assert groups[name]["LogGroupName"].startswith("/aws/vendedlogs/")
    assert {properties["RetentionInDays"] for properties in groups.values()} == {"30"}


def test_another_class_of_the_access_log_asks_for_another_log_group() -> None:
    groups = [
        Template(AccessLogClass=name).made["AccessLogGroup"]["Properties"] for name in ("STANDARD", "INFREQUENT_ACCESS")
    ]

    # Not every partition knows the property: the usual class does without.
    assert [group.get("LogGroupClass") for group in groups] == [None, "INFREQUENT_ACCESS"]
    # CloudWatch changes the class of no log group: the name makes CloudFormation replace it.
    assert groups[0]["LogGroupName"] != groups[1]["LogGroupName"]


def test_the_template_can_be_read_in_one_go() -> None:
    assert len((REPOSITORY / "template.yaml").read_text().splitlines()) <= 1_100


def test_each_function_has_a_role_of_its_own_and_all_share_a_log(template: Template) -> None:
    for name, properties in template.of_type("AWS::Lambda::Function").items():
        assert properties["Role"] == f"{name}Role.Arn"
        # Below INFO Lambda would drop the metrics, which have no level; its own lines about successes cost.
        assert properties["LoggingConfig"] == {
            "LogGroup": "FunctionLogGroup",
            "LogFormat": "JSON",
            "ApplicationLogLevel": "INFO",
            "SystemLogLevel": "WARN",
        }


def test_everything_invokes_the_alias(template: Template) -> None:
    functions = template.of_type("AWS::Lambda::Function")
    aliases = template.of_type("AWS::Lambda::Alias")

    assert {alias["FunctionName"] for alias in aliases.values()} == functions.keys()
    invoked = [
        *(permission["FunctionName"] for permission in template.of_type("AWS::Lambda::Permission").values()),
        *(source["FunctionName"] for source in template.of_type("AWS::Lambda::EventSourceMapping").values()),
        *(schedule["Target"]["Arn"] for schedule in template.of_type("AWS::Scheduler::Schedule").values()),
        template.outputs["TaskFunctionArn"]["Value"],
        template.outputs["SweepFunctionArn"]["Value"],
        # The dashboard's widget.
        "BoardFunctionAliaslive",
    ]
    assert set(invoked) == aliases.keys()
    # The settings of asynchronous invocations belong to what is invoked.
    configs = template.of_type("AWS::Lambda::EventInvokeConfig").values()
    assert {(config["FunctionName"], config["Qualifier"]) for config in configs} == {
        ("SweepFunction", "live"),
        ("TaskFunction", "live"),
    }


def test_every_deployment_publishes_a_version_of_each_function(template: Template, tmp_path: Path) -> None:
    # SAM looks at the text of the template alone: a parameter's new value by itself would never reach the alias.
    later = tmp_path / "template.yaml"
    text = (REPOSITORY / "template.yaml").read_text()
    later.write_text(text.replace("DEPLOYED: never", "DEPLOYED: 20261128T224300Z"))

    stamped = Template(str(later), EnableCallbacks="true")
    before, after = (each.of_type("AWS::Lambda::Version").keys() for each in (template, stamped))

    functions = template.of_type("AWS::Lambda::Function")
    assert len(before) == len(after) == len(functions)
    assert not before & after
    # Lambda publishes no version of a function that only differs in what a version does not hold.
    for name, properties in stamped.of_type("AWS::Lambda::Function").items():
        changed = {key for key in properties | functions[name] if properties.get(key) != functions[name].get(key)}
        assert changed - {"Tags", "ReservedConcurrentExecutions", "CodeSigningConfigArn"}


def test_make_stamps_what_it_deploys() -> None:
    recipe = (REPOSITORY / "Makefile").read_text().partition("\ndeploy:")[2].partition("\n\n")[0]

    assert "DEPLOYED: never" in (REPOSITORY / "template.yaml").read_text()
    assert re.search(r"sed .*DEPLOYED: .*\.aws-sam/build/template\.yaml", recipe)


@pytest.mark.parametrize("gradual", ["false", "true"])
def test_a_deployment_is_gradual_if_asked(gradual: str) -> None:
    template = Template(EnableCallbacks="true", GradualDeployment=gradual)

    made = names(template) - names(Template(EnableCallbacks="true"))
    assert made == (OF_GRADUAL_DEPLOYMENT if gradual == "true" else set())


@pytest.mark.parametrize("callbacks", ["false", "true"])
def test_a_gradual_deployment_lasts_until_its_alarms_can_take_it_back(callbacks: str) -> None:
    template = Template(EnableCallbacks=callbacks, GradualDeployment="true")
    alarms = {alarm["AlarmName"]: alarm for alarm in template.of_type("AWS::CloudWatch::Alarm").values()}
    groups = template.of_type("AWS::CodeDeploy::DeploymentGroup")

    assert len(groups) == len(template.of_type("AWS::Lambda::Function"))
    for name, group in groups.items():
        assert group["ServiceRoleArn"] == "DeploymentRole.Arn"
        assert group["AutoRollbackConfiguration"]["Enabled"] is True
        watched = {alarm["Name"].removeprefix("stack-") for alarm in group["AlarmConfiguration"]["Alarms"]}
        assert watched == {
            "FunctionErrorsAlarm",
            "ApiServerErrorsAlarm",
            *(["CallbackServerErrorsAlarm"] if name.startswith("Callback") else []),
        }
        canary = re.search(r"Canary10Percent(\d+)Minutes", str(group["DeploymentConfigName"]))
        assert canary
        for alarm in (alarms[f"stack-{watching}"] for watching in watched):
            stats = [query["MetricStat"] for query in alarm.get("Metrics", []) if query and "MetricStat" in query]
            (period,) = {stat["Period"] for stat in stats or [alarm]}
            # The period in which the deployment begins is not a whole one of the new version.
            datapoints = alarm.get("DatapointsToAlarm", alarm["EvaluationPeriods"]) + 1
            assert period * datapoints <= int(canary[1]) * 60


def test_a_new_layer_asks_for_new_versions() -> None:
    layers = parsed(REPOSITORY / "template.yaml")["Resources"]

    for name in ("DependenciesLayer", "StreamStateLayer"):
        assert layers[name]["Properties"]["PublishLambdaVersion"] is True


def test_concurrent_executions_are_reserved_only_if_asked() -> None:
    limited = Template(EnableCallbacks="true", CallbackConcurrency="50", TaskConcurrency="20")
    free = Template(EnableCallbacks="true")

    reserved = {
        name: properties.get("ReservedConcurrentExecutions")
        for name, properties in limited.of_type("AWS::Lambda::Function").items()
    }
    assert reserved == {
        "ApiFunction": None,
        "BoardFunction": None,
        "CallbackFunction": "50",
        "SweepFunction": None,
        "TaskFunction": "20",
    }
    for properties in free.of_type("AWS::Lambda::Function").values():
        assert "ReservedConcurrentExecutions" not in properties


@pytest.mark.parametrize("protected", ["false", "true"])
def test_the_table_is_protected_if_asked(protected: str) -> None:
    (table,) = Template(TableDeletionProtection=protected).of_type("AWS::DynamoDB::Table").values()

    assert table["DeletionProtectionEnabled"] == protected
    assert table["PointInTimeRecoverySpecification"] == {"PointInTimeRecoveryEnabled": True}


def test_a_callback_secret_of_ones_own_takes_the_place_of_the_stacks() -> None:
    own = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:mine-AbCdEf"
    template = Template(EnableCallbacks="true", CallbackKeySecretArn=own)

    assert "CallbackKeySecret" not in template.made
    assert environments(template)["CallbackFunction"]["RTC_CALLBACK_SECRET_ID"] == own
    assert template.outputs["CallbackKeySecretArn"]["Value"] == own


@pytest.mark.parametrize(
    ("partition", "console"),
    [
        ("aws", "console.aws.amazon.com"),
        ("aws-cn", "console.amazonaws.cn"),
        ("aws-us-gov", "console.amazonaws-us-gov.com"),
        ("aws-eusc", "console.amazonaws-eusc.eu"),
        ("aws-iso", "console.aws.amazon.com"),
    ],
)
def test_no_partition_fails_the_template(partition: str, console: str) -> None:
    template = Template(partition=partition)

    assert template.outputs["DashboardUrl"]["Value"].startswith(f"https://eu-central-1.{console}/cloudwatch/")


def test_settings_reach_the_functions() -> None:
    found = environments(Template(EnableCallbacks="true", AutoWatch="true", RtcQuery="off"))

    assert len(found) == 5
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
        "FunctionName": "CallbackFunctionAliaslive",
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
        # A first deployment that fails leaves no empty secret behind.
        assert template.made[name]["DeletionPolicy"] == "RetainExceptOnCreate"
        assert template.made[name]["UpdateReplacePolicy"] == "Retain"


def test_the_state_machine_gets_the_names_that_its_definition_uses(template: Template) -> None:
    (machine,) = template.of_type("AWS::StepFunctions::StateMachine").values()
    definition = (REPOSITORY / machine["DefinitionS3Location"]["Key"]).read_text()

    assert set(re.findall(r"\$\{(\w+)\}", definition)) == machine["DefinitionSubstitutions"].keys()
    assert machine["DefinitionSubstitutions"]["TaskFunctionArn"] == "TaskFunctionAliaslive"
    assert machine["RoleArn"] == "WaitForStreamRole.Arn"
    (destination,) = machine["LoggingConfiguration"]["Destinations"]
    assert destination == {"CloudWatchLogsLogGroup": {"LogGroupArn": "WaitForStreamLogGroup.Arn"}}
    assert machine["TracingConfiguration"] == {"Enabled": True}
