"""Key, topic, boundary and VPC in every combination: the template stays valid, and each takes effect where it ought."""

import re
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
from cfnlint.config import ConfigMixIn
from cfnlint.decode.node import dict_node, list_node
from cfnlint.runner import Runner

from tests.unit.test_policies import BOUNDARY, KEY, VPC
from tests.unit.transformed import PARAMETERS, Template

OPTIONS = {
    "key": {"KmsKeyArn": KEY},
    "topic": {"AlarmTopicArn": "arn:aws:sns:eu-central-1:123456789012:alarms"},
    "boundary": {"PermissionsBoundaryArn": BOUNDARY},
    "vpc": VPC,
}
COMBINATIONS = [
    tuple(name for name, is_given in zip(OPTIONS, given, strict=True) if is_given)
    for given in product((False, True), repeat=len(OPTIONS))
]
OWN = {
    "ResultsQueueArn": "arn:aws:sqs:eu-central-1:123456789012:mine.fifo",
    "SigningKeysSecretArn": "arn:aws:secretsmanager:eu-central-1:123456789012:secret:mine-AbCdEf",
}
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


@pytest.mark.parametrize("combination", COMBINATIONS, ids=lambda names: "+".join(names) or "none")
def test_every_combination_is_valid(linter: Runner, combination: tuple[str, ...]) -> None:
    # Given each with and without callback events, and with and without a queue and a secret of one's own, in turn.
    parameters = {name: value for option in combination for name, value in OPTIONS[option].items()}
    parameters |= {"EnableCallbacks": "true"} if len(combination) % 2 else {}
    parameters |= OWN if {"key", "vpc"} & {*combination} == {"key"} or combination == ("vpc",) else {}

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


@pytest.mark.parametrize("half", VPC)
def test_half_a_vpc_is_refused_and_would_be_none(half: str) -> None:
    template = Template(**{half: VPC[half]})
    ((_, rule),) = template.transformed["Rules"].items()

    def holds(node: Any) -> bool:
        ((function, arguments),) = node.items()
        match function:
            case "Fn::Equals":
                return bool(template[arguments[0]["Ref"]] == arguments[1])
            case "Fn::Not":
                return not holds(arguments[0])
            case _:
                return {"Fn::And": all, "Fn::Or": any}[function](map(holds, arguments))

    assert not holds(rule["Assertions"][0]["Assert"])
    assert not template.conditions["RunsInVpc"]


@pytest.mark.parametrize(
    ("parameter", "good", "bad"),
    [
        ("KmsKeyArn", KEY, "arn:aws:kms:eu-central-1:123456789012:alias/mine"),
        ("KmsKeyArn", "arn:aws-cn:kms:cn-north-1:123456789012:key/mrk-1234", "1234abcd-12ab-34cd-56ef-1234567890ab"),
        ("AlarmTopicArn", OPTIONS["topic"]["AlarmTopicArn"], "alarms"),
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
