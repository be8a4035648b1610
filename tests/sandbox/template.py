"""template.yaml as CloudFormation would see it: transformed by SAM, conditions and intrinsic functions resolved."""

import json
import logging
from collections.abc import Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any

import boto3
from moto.cloudformation.parsing import ResourceMap, clean_json
from samtranslator.parser.parser import Parser
from samtranslator.translator.translator import Translator
from samtranslator.yaml_helper import yaml_parse

from tests.sandbox.aws import Aws
from tests.sandbox.functions import ACCOUNT_ID, REGION, Function, name_of
from tests.sandbox.gateway import Route


class Made(dict[str, str]):
    """The answers of Ref and GetAtt for a resource that was made, as moto's resolver asks for them."""

    get_cfn_attribute = dict.__getitem__
    physical_resource_id = property(itemgetter("Ref"))


class Template(ResourceMap):
    """A built template, whose resources are made in `aws`."""

    def __init__(self, file: Path, parameters: Mapping[str, str], stack_name: str, aws: Aws) -> None:
        source = yaml_parse(file.read_text())
        # SAM accepts code from S3 only: the path of each local folder passes through it as the key of an object.
        of_functions = source.get("Globals", {}).get("Function", {})
        for properties in (of_functions, *(entry.get("Properties", {}) for entry in source["Resources"].values())):
            if definition := properties.pop("DefinitionUri", None):
                properties["Definition"] = json.loads((file.parent / definition).read_text())
            for name in properties.keys() & {"CodeUri", "ContentUri"}:
                properties[name] = f"s3://local/{properties[name]}"
        given = {name: str(entry.get("Default", "")) for name, entry in source["Parameters"].items()}
        given.update(parameters)
        # SAM warns that it cannot publish metrics of its own.
        logging.getLogger("samtranslator").setLevel(logging.ERROR)
        translator = Translator({}, Parser(), boto_session=boto3.Session(region_name=REGION))
        transformed = translator.translate(source, given)
        stack_id = f"arn:aws:cloudformation:{REGION}:{ACCOUNT_ID}:stack/{stack_name}/sandbox"
        super().__init__(stack_id, stack_name, given, {}, REGION, ACCOUNT_ID, transformed, None)
        self._directory = file.parent
        self._aws = aws
        self._source = source["Resources"]
        self._parsed_resources |= given
        self.load_mapping()
        self.load_conditions()
        self._resource_json_map = self._existing(transformed["Resources"])
        for logical_id in self.resources:
            self[logical_id]
        outputs = self._existing(transformed["Outputs"])
        self.outputs = {name: clean_json(entry["Value"], self) for name, entry in outputs.items()}

    def __getitem__(self, name: str) -> Any:
        """A parameter or resource; the resource is made if it does not exist yet."""
        if name not in self._parsed_resources:
            entry = self._resource_json_map[name]
            properties = clean_json(entry.get("Properties", {}), self)
            self._parsed_resources[name] = Made(
                self._aws.create(self["AWS::StackName"], name, entry["Type"], properties)
            )
        return self._parsed_resources[name]

    def _existing(self, entries: dict[str, Any]) -> dict[str, Any]:
        holds = self.lazy_condition_map
        return {name: entry for name, entry in entries.items() if "Condition" not in entry or holds[entry["Condition"]]}

    def _of_type(self, kind: str) -> dict[str, dict[str, Any]]:
        """Resolved properties by logical id."""
        found = {name: entry for name, entry in self._resource_json_map.items() if entry["Type"] == kind}
        return {name: clean_json(entry["Properties"], self) for name, entry in found.items()}

    def functions(self, environment: Mapping[str, str]) -> dict[str, Function]:
        """The Lambda functions by logical id, with `environment` laid over their own variables."""
        layers = {
            self[name]["Ref"]: self._directory / properties["Content"]["S3Key"]
            for name, properties in self._of_type("AWS::Lambda::LayerVersion").items()
        }
        return {
            logical_id: Function(
                arn=self[logical_id]["Arn"],
                handler=properties["Handler"],
                code_directory=self._directory / properties["Code"]["S3Key"],
                layer_directories=tuple(layers[layer] for layer in properties["Layers"]),
                timeout_seconds=int(properties["Timeout"]),
                memory_mb=int(properties["MemorySize"]),
                environment=properties["Environment"]["Variables"] | environment,
                log_format=properties["LoggingConfig"]["LogFormat"],
            )
            for logical_id, properties in self._of_type("AWS::Lambda::Function").items()
        }

    def event_sources(self) -> dict[str, dict[str, Any]]:
        """The event source mappings, each by the logical id of its function."""
        mappings = self._of_type("AWS::Lambda::EventSourceMapping").values()
        return {self._function(mapping["FunctionName"]): mapping for mapping in mappings}

    def routes(self) -> list[Route]:
        """The routes of both HTTP APIs, each with the function that answers it; CallbackHttpApi asks for no IAM."""
        routes = [
            Route(event["Properties"]["Method"], event["Properties"]["Path"], name)
            for name in self._of_type("AWS::Lambda::Function")
            for event in self._source[name]["Properties"].get("Events", {}).values()
            if event["Type"] == "HttpApi"
        ]
        integrations = {
            f"integrations/{self[name]['Ref']}": self._function(properties["IntegrationUri"])
            for name, properties in self._of_type("AWS::ApiGatewayV2::Integration").items()
        }
        for route in self._of_type("AWS::ApiGatewayV2::Route").values():
            method, _, path = route["RouteKey"].partition(" ")
            routes.append(Route(method, path, integrations[route["Target"]], requires_iam=False))
        return routes

    def _function(self, reference: str) -> str:
        """The logical id of the function that a name or ARN means."""
        (found,) = (name for name in self._of_type("AWS::Lambda::Function") if self[name]["Ref"] == name_of(reference))
        return found
