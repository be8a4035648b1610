"""The options together: every combination leaves the templates valid and whole, and takes effect where it ought."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import pytest
from cfnlint.config import ConfigMixIn
from cfnlint.decode import decode_str
from cfnlint.runner import Runner

from tests.unit.test_policies import BOUNDARY, KEY, VPC
from tests.unit.transformed import REPOSITORY, Template, parsed, transformed

CERTIFICATE = "arn:aws:acm:eu-central-1:123456789012:certificate/1234abcd-12ab-34cd-56ef-1234567890ab"
SECRET = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:mine-AbCdEf"
TOPIC = "arn:aws:sns:eu-central-1:123456789012:alarms"
# A value of each parameter that may be empty.
GIVEN = {
    "AlarmTopicArn": TOPIC,
    "CallbackConcurrency": "20",
    "CallbackDomainName": "events.example.com",
    "CallbackKeySecretArn": SECRET,
    "CallbackPathSegment": "a-text-of-16-characters",
    "CertificateArn": CERTIFICATE,
    "DomainName": "state.example.com",
    "KmsKeyArn": KEY,
    "NoticeTopicArn": TOPIC,
    "PermissionsBoundaryArn": BOUNDARY,
    "ResultsQueueArn": "arn:aws:sqs:eu-central-1:123456789012:mine.fifo",
    "ResultsQueueKmsKeyArn": KEY,
    "SigningKeysKmsKeyArn": KEY,
    "SigningKeysSecretArn": SECRET,
    "SweepScheduleExpression": "rate(1 minute)",
    "TaskConcurrency": "5",
    **VPC,
}
# The only parameter whose value SAM reads: for all others together it makes one template for each of these values.
READ_BY_SAM = [{"GradualDeployment": "false"}, {"GradualDeployment": "true"}]
# The variables of a function do not depend on each other: the linter tries both branches of each.
LEFT_TO_THE_LINTER = "Variables"
PARTS = {"Resources", "Outputs"}
NO_VALUE = {"Ref": "AWS::NoValue"}
PSEUDO = {f"AWS::{name}" for name in ("AccountId", "NoValue", "Partition", "Region", "StackName", "URLSuffix")}

# By parameter: its value. Of all the values that a condition does not name, one stands for the others.
type Combination = Mapping[str, str]


@dataclass(frozen=True)
class Transformed:
    """A template without SAM's part, and the values of parameters for which SAM made it."""

    content: dict[str, Any]
    made_for: Combination

    @property
    def conditions(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.content["Conditions"]
        return found


# Where the key of the stack's owner is named.
KEY_OF: dict[str, Callable[[Any], Any]] = {
    "AWS::DynamoDB::Table": lambda properties: properties["SSESpecification"].get("KMSMasterKeyId"),
    "AWS::Lambda::Function": lambda properties: properties.get("KmsKeyArn"),
    "AWS::Logs::LogGroup": lambda properties: properties.get("KmsKeyId"),
    "AWS::SQS::Queue": lambda properties: properties.get("KmsMasterKeyId"),
    "AWS::SecretsManager::Secret": lambda properties: properties.get("KmsKeyId"),
}


@cache
def templates() -> list[Transformed]:
    """All that SAM makes of the outer template, and the nested one, which has no part of SAM's."""
    outer = [Transformed(transformed("template.yaml", values)[0], values) for values in READ_BY_SAM]
    return [*outer, Transformed(parsed(REPOSITORY / "observability.yaml"), {})]


def compared(node: Any, conditions: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Each parameter that decides about a part of a template, with each value that decides."""
    for name, of in node.items() if isinstance(node, dict) else [("", each) for each in node]:
        if name == "Fn::Equals":
            yield of[0]["Ref"], of[1]
        elif name == LEFT_TO_THE_LINTER:
            continue
        elif name == "Fn::If":
            yield from compared([conditions[of[0]], *of[1:]], conditions)
        elif name == "Condition" and isinstance(of, str):
            yield from compared(conditions[of], conditions)
        elif isinstance(of, dict | list):
            yield from compared(of, conditions)


def combinations(node: Any, template: Transformed) -> Iterator[Combination]:
    """Every combination of the parameters that decide about a part of a template: the others change nothing in it."""
    values = {parameter: {value} for parameter, value in template.made_for.items()}
    for parameter, value in compared(node, template.conditions):
        if parameter not in template.made_for:
            values.setdefault(parameter, {"another value"}).add(value)
    for combination in product(*values.values()):
        yield dict(zip(values, combination, strict=True))


def holds(node: Mapping[str, Any], given: Combination, conditions: Mapping[str, Any]) -> bool:
    ((function, of),) = node.items()
    match function:
        case "Condition":
            return holds(conditions[of], given, conditions)
        case "Fn::Equals":
            # Rules compare parameters with each other too.
            return bool(given[of[0]["Ref"]] == (given[of[1]["Ref"]] if isinstance(of[1], dict) else of[1]))
        case "Fn::Not":
            return not holds(of[0], given, conditions)
        case _:
            every = [holds(each, given, conditions) for each in of]
            return all(every) if function == "Fn::And" else any(every)


def chosen(node: Any, given: Combination, conditions: Mapping[str, Any]) -> Any:
    """What CloudFormation takes of a part: the branches whose conditions hold, and nothing that has no value."""
    match node:
        case {"Fn::If": [condition, yes, no]}:
            return chosen(yes if holds({"Condition": condition}, given, conditions) else no, given, conditions)
        case dict():
            # The condition of a policy's statement is a mapping.
            entries = {name: of for name, of in node.items() if name != "Condition" or isinstance(of, dict)}
            taken = {
                name: of if name == LEFT_TO_THE_LINTER else chosen(of, given, conditions)
                for name, of in entries.items()
            }
            return {name: of for name, of in taken.items() if of != NO_VALUE}
        case list():
            return [of for each in node if (of := chosen(each, given, conditions)) != NO_VALUE]
    return node


def variants(part: Any, template: Transformed) -> Iterator[Any]:
    """What CloudFormation takes of a resource or output in each combination that has it."""
    for given in combinations(part, template):
        if "Condition" not in part or holds({"Condition": part["Condition"]}, given, template.conditions):
            yield chosen(part, given, template.conditions)


def references(node: Any, *guards: Mapping[str, Any]) -> Iterator[tuple[str, tuple[Mapping[str, Any], ...]]]:
    """Each name that a part of a template refers to, with the conditions under which it does."""
    match node:
        case {"Fn::If": [condition, yes, no]}:
            yield from references(yes, *guards, {"Condition": condition})
            yield from references(no, *guards, {"Fn::Not": [{"Condition": condition}]})
        case {"Ref": name} | {"Fn::GetAtt": [name, *_]}:
            yield name, guards
        case {"Fn::Sub": of}:
            text, own = of if isinstance(of, list) else (of, {})
            yield from references(own, *guards)
            yield from ((name, guards) for name in re.findall(r"\$\{([\w:]+)", text) if name not in own)
        case dict():
            names = node.get("DependsOn", [])
            yield from ((name, guards) for name in ([names] if isinstance(names, str) else names))
            guard = node.get("Condition")
            for of in node.values():
                yield from references(of, *guards, *([{"Condition": guard}] if isinstance(guard, str) else []))
        case list():
            for of in node:
                yield from references(of, *guards)


def test_every_parameter_that_may_be_empty_is_given_a_value() -> None:
    declared = parsed(REPOSITORY / "template.yaml")["Parameters"]

    assert GIVEN.keys() == {name for name, entry in declared.items() if entry.get("Default") == ""}


def test_sam_makes_one_template_for_all_values_of_the_other_parameters() -> None:
    for template in templates()[:-1]:
        others = {**GIVEN, "EnableCallbacks": "true", "AutoWatch": "true", **template.made_for}

        made, given = transformed("template.yaml", others)

        assert given.read & given.keys() == template.made_for.keys()
        assert made == template.content


def test_the_templates_are_valid_in_every_combination() -> None:
    # The variants of a resource stand beside each other: more than a stack may have, with the same names. Parameters
    # and conditions without use are left in the template, and `sam deploy` packages the nested stack.
    ignored = ["E3010", "E3019", "W2001", "W3002", "W7001", "W8001"]
    linter = Runner(ConfigMixIn(regions=["eu-central-1"], ignore_checks=ignored))
    for alike in (templates()[:-1], templates()[-1:]):
        whole = deepcopy(alike[0].content)
        for name in whole["Parameters"].keys() & GIVEN.keys():
            whole["Parameters"][name]["Default"] = GIVEN[name]
        for kind in PARTS & whole.keys():
            found: dict[str, list[Any]] = {}
            for template in alike:
                for name, part in template.content[kind].items():
                    known = found.setdefault(name, [])
                    known += [taken for taken in variants(part, template) if taken not in known]
            whole[kind] = {f"{name}{i or ''}": taken for name, known in found.items() for i, taken in enumerate(known)}

        problems = list(linter.validate_template(decode_str(json.dumps(whole))[0]))

        assert [f"{match.rule.id} {match.path} {match.message}" for match in problems] == []


def test_nothing_refers_to_what_a_combination_leaves_out_or_empty() -> None:
    for template in templates():
        content = template.content
        for name, guards in references([content[kind] for kind in PARTS & content.keys()]):
            needs: list[Mapping[str, Any]] = []
            # The nested stack takes an empty topic.
            if name in GIVEN and name != "AlarmTopicArn":
                needs = [{"Fn::Not": [{"Fn::Equals": [{"Ref": name}, ""]}]}]
            elif name not in content["Parameters"].keys() | PSEUDO and "Condition" in content["Resources"][name]:
                needs = [{"Condition": content["Resources"][name]["Condition"]}]
            for given in combinations([*guards, *needs], template):
                if all(holds(guard, given, template.conditions) for guard in guards):
                    assert all(holds(need, given, template.conditions) for need in needs), (name, given)


def test_the_dashboard_is_json_in_every_combination() -> None:
    nested = templates()[-1]

    for given in combinations(nested.content["Resources"]["Dashboard"], nested):
        dashboard = Template("observability.yaml", RtcQps="50", **given).made["Dashboard"]
        assert json.loads(dashboard["Properties"]["DashboardBody"])["widgets"]


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
        ("DomainsDifferAndHaveACertificate", {"DomainName": "state.example.com"}, "HasDomain"),
        ("DomainsDifferAndHaveACertificate", {"CallbackDomainName": "events.example.com"}, "HasCallbackDomain"),
    ],
)
def test_half_an_option_is_refused_and_would_be_none(rule: str, half: dict[str, str], condition: str) -> None:
    template = Template(EnableCallbacks="true", **half)
    given = {name: template[name] for name in template.transformed["Parameters"]}

    assert not holds(template.transformed["Rules"][rule]["Assertions"][0]["Assert"], given, {})
    assert not template.conditions[condition]


@pytest.mark.parametrize(
    ("name", "of_callbacks", "is_accepted"),
    [
        ("", "", True),
        ("state.example.com", "", True),
        ("", "events.example.com", True),
        ("state.example.com", "events.example.com", True),
        ("state.example.com", "state.example.com", False),
    ],
)
def test_a_domain_name_leads_to_one_api(name: str, of_callbacks: str, is_accepted: bool) -> None:  # noqa: FBT001 (a case)
    template = Template(DomainName=name, CallbackDomainName=of_callbacks, CertificateArn=CERTIFICATE)
    given = {name: template[name] for name in template.transformed["Parameters"]}

    asserted = [of["Assert"] for rule in template.transformed["Rules"].values() for of in rule["Assertions"]]
    assert all(holds(each, given, {}) for each in asserted) is is_accepted


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
