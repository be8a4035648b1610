"""The options together: the templates stay valid, and key, VPC and patterns take effect where they ought."""

import re
from collections.abc import Callable
from itertools import combinations, product
from typing import Any

import pytest
from cfnlint.config import ConfigMixIn
from cfnlint.decode.node import dict_node, list_node
from cfnlint.runner import Runner

from tests.unit.test_policies import BOUNDARY, KEY, VPC
from tests.unit.transformed import PARAMETERS, REPOSITORY, Template, parsed

CERTIFICATE = "arn:aws:acm:eu-central-1:123456789012:certificate/1234abcd-12ab-34cd-56ef-1234567890ab"
SECRET = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:mine-AbCdEf"
TOPIC = "arn:aws:sns:eu-central-1:123456789012:alarms"
# Eight, as the combinations below ask.
OPTIONS = {
    "callbacks": {"EnableCallbacks": "true", "AutoWatch": "true"},
    "own": {
        "SigningKeysSecretArn": SECRET,
        "CallbackKeySecretArn": SECRET,
        "SigningKeysKmsKeyArn": KEY,
        "ResultsQueueArn": "arn:aws:sqs:eu-central-1:123456789012:mine.fifo",
        "ResultsQueueKmsKeyArn": KEY,
    },
    "addresses": {
        "CallbackPathSegment": "a-text-of-16-characters",
        "DomainName": "state.example.com",
        "CallbackDomainName": "events.example.com",
        "CertificateArn": CERTIFICATE,
    },
    "operation": {
        "CallbackConcurrency": "20",
        "TaskConcurrency": "5",
        "GradualDeployment": "true",
        "TableDeletionProtection": "true",
    },
    "alarms": {
        "SweepScheduleExpression": "",
        "CallbackSilenceMinutes": "60",
        "AccessLogClass": "INFREQUENT_ACCESS",
        "AlarmTopicArn": TOPIC,
        "NoticeTopicArn": TOPIC,
    },
    "key": {"KmsKeyArn": KEY},
    "boundary": {"PermissionsBoundaryArn": BOUNDARY},
    "vpc": VPC,
}
# Of the 256 combinations 16, in which any three options are given and left out in each of the eight ways (an orthogonal
# array of strength 3: the parity of the bits that an option's number and a row share).
COMBINATIONS = [
    tuple(name for option, name in enumerate(OPTIONS, 8) if (option & row).bit_count() % 2) for row in range(16)
]
NO_VALUE = {"Ref": "AWS::NoValue"}
PLACE = (None, None)
# Where the key of the stack's owner is named.
KEY_OF: dict[str, Callable[[Any], Any]] = {
    "AWS::DynamoDB::Table": lambda properties: properties["SSESpecification"].get("KMSMasterKeyId"),
    "AWS::Lambda::Function": lambda properties: properties.get("KmsKeyArn"),
    "AWS::Logs::LogGroup": lambda properties: properties.get("KmsKeyId"),
    "AWS::SQS::Queue": lambda properties: properties.get("KmsMasterKeyId"),
    "AWS::SecretsManager::Secret": lambda properties: properties.get("KmsKeyId"),
}


@pytest.fixture(scope="module")
def linter() -> Runner:
    # The names of what this combination has no use for are left in the template, and `sam deploy` packages the nested
    # stack.
    return Runner(ConfigMixIn(regions=["eu-central-1"], ignore_checks=["W2001", "W3002", "W7001"]))


def chosen(node: Any, conditions: dict[str, bool]) -> Any:
    """What CloudFormation takes of a template: the branches whose conditions hold, and nothing that has no value.

    The linter asks for the place of what it finds, so a mapping and a list are of its own kinds.
    """
    if isinstance(node, dict):
        if "Fn::If" in node:
            condition, yes, no = node["Fn::If"]
            return chosen(yes if conditions[condition] else no, conditions)
        entries = {name: chosen(entry, conditions) for name, entry in node.items()}
        return dict_node({name: of for name, of in entries.items() if of != NO_VALUE and name != "Condition"}, *PLACE)
    if isinstance(node, list):
        return list_node([of for entry in node if (of := chosen(entry, conditions)) != NO_VALUE], *PLACE)
    return node


def test_any_three_options_meet_in_every_way() -> None:
    for three in combinations(OPTIONS, 3):
        assert {tuple(option in chosen for option in three) for chosen in COMBINATIONS} == {*product((0, 1), repeat=3)}


def test_the_options_cover_every_condition() -> None:
    # What an option does is under a condition: each is met and not met.
    held = [Template(**parameters_of(combination)).conditions for combination in COMBINATIONS]
    of_partition = {"InChina", "InEuropeanCloud", "InGovCloud"}

    for name in parsed(REPOSITORY / "template.yaml")["Conditions"].keys() - of_partition:
        assert {bool(conditions[name]) for conditions in held} == {False, True}, name


def parameters_of(combination: tuple[str, ...]) -> dict[str, str]:
    return {name: value for option in combination for name, value in OPTIONS[option].items()}


@pytest.mark.parametrize("combination", COMBINATIONS, ids=lambda names: "+".join(names) or "none")
def test_the_templates_are_valid_with_any_options(linter: Runner, combination: tuple[str, ...]) -> None:
    parameters = parameters_of(combination)

    outer = Template(**parameters)
    for template in (outer, *outer.nested):
        taken = chosen(template.transformed, template.conditions)
        del taken["Conditions"]
        for name in taken["Parameters"] if template in outer.nested else PARAMETERS | parameters:
            taken["Parameters"][name]["Default"] = template[name]
        found = list(linter.validate_template(taken))

        assert [f"{match.rule.id} {match.path} {match.message}" for match in found] == []


@pytest.mark.parametrize("parameters", [{}, {"KmsKeyArn": KEY}], ids=["without", "with"])
def test_everything_at_rest_is_encrypted_with_the_key_if_there_is_one(parameters: dict[str, str]) -> None:
    template = Template(EnableCallbacks="true", **parameters)

    for kind, key_of in KEY_OF.items():
        assert template.of_type(kind)
        for properties in template.of_type(kind).values():
            assert key_of(properties) == parameters.get("KmsKeyArn")
    for properties in template.of_type("AWS::DynamoDB::Table").values():
        assert properties["SSESpecification"]["SSEEnabled"] is True
    for properties in template.of_type("AWS::SQS::Queue").values():
        # SQS takes one of the two.
        assert ("KmsMasterKeyId" in properties) != (properties.get("SqsManagedSseEnabled") is True)


def test_the_functions_run_in_the_vpc_if_there_is_one() -> None:
    inside, outside = Template(EnableCallbacks="true", **VPC), Template(EnableCallbacks="true")

    for properties in inside.of_type("AWS::Lambda::Function").values():
        assert properties["VpcConfig"] == {
            "SubnetIds": ["subnet-12345678", "subnet-23456789"],
            "SecurityGroupIds": ["sg-12345678"],
        }
    assert not any("VpcConfig" in properties for properties in outside.of_type("AWS::Lambda::Function").values())


@pytest.mark.parametrize(
    ("rule", "half", "condition"),
    [
        ("SubnetsAndSecurityGroupsGoTogether", {"VpcSubnetIds": VPC["VpcSubnetIds"]}, "RunsInVpc"),
        ("SubnetsAndSecurityGroupsGoTogether", {"VpcSecurityGroupIds": VPC["VpcSecurityGroupIds"]}, "RunsInVpc"),
        ("DomainsHaveACertificate", {"DomainName": "state.example.com"}, "HasDomain"),
        ("DomainsHaveACertificate", {"CallbackDomainName": "events.example.com"}, "HasCallbackDomain"),
    ],
)
def test_half_an_option_is_refused_and_would_be_none(rule: str, half: dict[str, str], condition: str) -> None:
    template = Template(EnableCallbacks="true", **half)

    def holds(node: Any) -> bool:
        ((function, arguments),) = node.items()
        match function:
            case "Fn::Equals":
                return bool(template[arguments[0]["Ref"]] == arguments[1])
            case "Fn::Not":
                return not holds(arguments[0])
            case _:
                return {"Fn::And": all, "Fn::Or": any}[function](map(holds, arguments))

    assert not holds(template.transformed["Rules"][rule]["Assertions"][0]["Assert"])
    assert not template.conditions[condition]


@pytest.mark.parametrize(
    ("parameter", "good", "bad"),
    [
        ("KmsKeyArn", KEY, "arn:aws:kms:eu-central-1:123456789012:alias/mine"),
        ("KmsKeyArn", "arn:aws-cn:kms:cn-north-1:123456789012:key/mrk-1234", "1234abcd-12ab-34cd-56ef-1234567890ab"),
        ("AlarmTopicArn", TOPIC, "alarms"),
        ("NoticeTopicArn", TOPIC, "alarms"),
        ("CallbackKeySecretArn", SECRET, SECRET.removesuffix("-AbCdEf")),
        ("SigningKeysKmsKeyArn", KEY, "alias/mine"),
        ("ResultsQueueKmsKeyArn", KEY, "alias/mine"),
        ("CertificateArn", CERTIFICATE, "1234abcd"),
        ("DomainName", "state.example.com", "https://state.example.com"),
        ("CallbackDomainName", "events.example.com", "localhost"),
        ("CallbackPathSegment", "0123456789abcdef", "short"),
        ("CallbackPathSegment", "a_b-c" * 4, "a/b" * 8),
        ("CallbackConcurrency", "11", "10"),
        ("TaskConcurrency", "1", "0"),
        ("PermissionsBoundaryArn", BOUNDARY, "boundary"),
        ("PermissionsBoundaryArn", "arn:aws:iam::aws:policy/PowerUserAccess", "arn:aws:iam::123456789012:role/a"),
        ("VpcSubnetIds", VPC["VpcSubnetIds"], "subnet-12345678, subnet-23456789"),
        ("VpcSecurityGroupIds", "sg-0123456789abcdef0", "default"),
    ],
)
def test_a_parameter_takes_what_it_says(parameter: str, good: str, bad: str) -> None:
    pattern = Template().transformed["Parameters"][parameter]["AllowedPattern"]

    assert re.fullmatch(pattern, good)
    assert re.fullmatch(pattern, "")
    assert not re.fullmatch(pattern, bad)
