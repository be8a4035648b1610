"""The templates as CloudFormation sees them: transformed by SAM, and resolved for one set of parameters."""

import logging
import re
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import boto3
from moto.cloudformation.parsing import ResourceMap, clean_json
from samtranslator.parser.parser import Parser
from samtranslator.translator.translator import Translator
from samtranslator.yaml_helper import yaml_parse

REPOSITORY = Path(__file__).parents[2]
PARAMETERS = {"RtcAppIds": "661e8f2a9b3c4d5e6f708192", "SweepScheduleExpression": "rate(1 minute)"}
NESTED = "AWS::CloudFormation::Stack"
AWS_IAM: list[dict[str, list[str]]] = [{"AWS_IAM": []}]


class Named(str):
    """A resource that is not made: Ref is its logical id, and GetAtt the logical id and the attribute's name."""

    __slots__ = ()

    @property
    def physical_resource_id(self) -> str:
        return str(self)

    def get_cfn_attribute(self, name: str) -> str:
        return f"{self}.{name}"


@cache
def parsed(path: Path) -> dict[str, Any]:
    """A template's content; whoever changes it takes a copy."""
    content: dict[str, Any] = yaml_parse(path.read_text())
    return content


class Given(dict[str, str]):
    """Values of parameters, with the names of those whose value SAM has read."""

    def __init__(self, source: dict[str, Any], parameters: dict[str, str]) -> None:
        defaults = {name: str(entry.get("Default", "")) for name, entry in source["Parameters"].items()}
        super().__init__(defaults | PARAMETERS | parameters)
        self.read: set[str] = set()

    def __deepcopy__(self, memo: Any) -> "Given":
        return self

    def __getitem__(self, name: str) -> str:
        self.read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.read.add(name)
        return super().get(name, default)


def transformed(file: str, parameters: dict[str, str]) -> tuple[dict[str, Any], Given]:
    """The template that SAM makes of a template for these parameters."""
    source = deepcopy(parsed(REPOSITORY / file))
    # SAM accepts code from S3 only: the path of each local file passes through it as the key of an object.
    of_functions = source.get("Globals", {}).get("Function", {})
    for properties in (of_functions, *(entry.get("Properties", {}) for entry in source["Resources"].values())):
        for name in properties.keys() & {"CodeUri", "ContentUri", "DefinitionUri"}:
            properties[name] = f"s3://local/{properties[name]}"
    given = Given(source, parameters)
    # SAM warns that it cannot publish metrics of its own.
    logging.getLogger("samtranslator").setLevel(logging.ERROR)
    session = boto3.Session(region_name="eu-central-1")
    return Translator({}, Parser(), boto_session=session).translate(source, given), given


class Template(ResourceMap):
    """The resources, those of the nested stack included, and outputs whose conditions hold, resolved by moto."""

    def __init__(self, file: str = "template.yaml", partition: str = "aws", **parameters: str) -> None:
        content, given = transformed(file, parameters)
        super().__init__("stack-id", "stack", given, {}, "eu-central-1", "123456789012", content, None)
        self._parsed_resources |= given | {"AWS::Partition": partition}
        self.load_mapping()
        self.load_conditions()
        self.conditions: dict[str, bool] = self.lazy_condition_map
        for kind in ("Resources", "Outputs"):
            entries = content.get(kind, {}).items()
            content[kind] = {name: of for name, of in entries if self.conditions.get(of.get("Condition"), True)}
        self.transformed: dict[str, Any] = content
        self.made: dict[str, Any] = clean_json(content["Resources"], self)
        self.outputs: dict[str, Any] = clean_json(content["Outputs"], self)
        self.nested = [Template(of["TemplateURL"], **of["Parameters"]) for of in self.of_type(NESTED).values()]
        for template in self.nested:
            self.made |= template.made

    def __getitem__(self, name: str) -> Any:
        return self._parsed_resources.get(name, Named(name))

    def of_type(self, kind: str) -> dict[str, dict[str, Any]]:
        """Properties by logical id."""
        return {name: entry.get("Properties", {}) for name, entry in self.made.items() if entry["Type"] == kind}

    def routes(self) -> dict[str, tuple[str, bool]]:
        """By route of either API: its function, and whether the route requires IAM."""
        found = {}
        (api,) = (of for of in self.of_type("AWS::ApiGatewayV2::Api").values() if "Body" in of)
        for path, methods in api["Body"]["paths"].items():
            for method, entry in (methods or {}).items():
                function = re.search(r"functions/(\w+?)Aliaslive/", entry["x-amazon-apigateway-integration"]["uri"])
                found[f"{method.upper()} {path}"] = (function[1] if function else "", entry["security"] == AWS_IAM)
        integrations = self.of_type("AWS::ApiGatewayV2::Integration")
        for route in self.of_type("AWS::ApiGatewayV2::Route").values():
            function = integrations[route["Target"].removeprefix("integrations/")]["IntegrationUri"]
            found[route["RouteKey"]] = (function.removesuffix("Aliaslive"), route.get("AuthorizationType") == "AWS_IAM")
        return found
