"""template.yaml as CloudFormation would see it: transformed by SAM, conditions and intrinsic functions resolved."""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import boto3
from moto.cloudformation.parsing import LazyDict, clean_json, parse_condition
from samtranslator.parser.parser import Parser
from samtranslator.translator.translator import Translator
from samtranslator.yaml_helper import yaml_parse

from tests.sandbox.functions import ACCOUNT_ID, REGION, Function
from tests.sandbox.gateway import Route


class Made(dict[str, str]):
    """What Ref and GetAtt answer for a resource that was made, as moto's resolver asks for it."""

    get_cfn_attribute = dict.__getitem__

    @property
    def physical_resource_id(self) -> str:
        """What Ref answers."""
        return self["Ref"]


class Template:
    """A built template; moto's resolver looks up in it what `create(logical id, type, properties)` answers."""

    def __init__(
        self,
        file: Path,
        parameters: Mapping[str, str],
        stack_name: str,
        create: Callable[[str, str, dict[str, Any]], dict[str, str]],
    ) -> None:
        source = yaml_parse(file.read_text())
        # SAM takes code from S3 only: the place of each local folder passes through it as the key of an object.
        for resource in source["Resources"].values():
            for name in resource.get("Properties", {}).keys() & {"CodeUri", "ContentUri"}:
                resource["Properties"][name] = f"s3://local/{resource['Properties'][name]}"
        given = {name: str(entry.get("Default", "")) for name, entry in source["Parameters"].items()} | parameters
        # It warns that it has nowhere to publish metrics of itself to.
        logging.getLogger("samtranslator").setLevel(logging.ERROR)
        session = boto3.Session(region_name=REGION)
        transformed = Translator({}, Parser(), boto_session=session).translate(source, given)
        self._values: dict[str, Any] = {
            **given,
            "AWS::NoValue": None,
            "AWS::AccountId": ACCOUNT_ID,
            "AWS::Partition": "aws",
            "AWS::Region": REGION,
            "AWS::StackName": stack_name,
            "AWS::StackId": f"arn:aws:cloudformation:{REGION}:{ACCOUNT_ID}:stack/{stack_name}/sandbox",
            "AWS::URLSuffix": "amazonaws.com",
        }
        self._directory = file.parent
        self._create = create
        self._source = source["Resources"]
        self.lazy_condition_map = LazyDict()
        for name, condition in transformed.get("Conditions", {}).items():
            self.lazy_condition_map[name] = partial(parse_condition, condition, self, self.lazy_condition_map)
        self.resources = self._existing(transformed["Resources"])
        for logical_id in self.resources:
            self.get(logical_id)
        outputs = self._existing(transformed["Outputs"])
        self.outputs = {name: self._resolve(entry["Value"]) for name, entry in outputs.items()}

    def get(self, name: str) -> Any:
        """A parameter or resource; the resource is made if it does not exist yet."""
        if name not in self._values:
            entry = self.resources[name]
            properties = self._resolve(entry.get("Properties", {}))
            self._values[name] = Made(self._create(name, entry["Type"], properties))
        return self._values[name]

    __getitem__ = get

    def _resolve(self, value: object) -> Any:
        return clean_json(value, self)

    def _existing(self, entries: dict[str, Any]) -> dict[str, Any]:
        conditions = self.lazy_condition_map
        return {
            name: entry for name, entry in entries.items() if "Condition" not in entry or conditions[entry["Condition"]]
        }

    def _of_type(self, kind: str) -> dict[str, dict[str, Any]]:
        """Resolved properties by logical id."""
        found = {name: entry for name, entry in self.resources.items() if entry["Type"] == kind}
        return {name: self._resolve(entry["Properties"]) for name, entry in found.items()}

    def functions(self, environment: Mapping[str, str]) -> dict[str, Function]:
        """The Lambda functions by logical id, with `environment` laid over their own variables."""
        layers = {
            self.get(name)["Ref"]: self._directory / properties["Content"]["S3Key"]
            for name, properties in self._of_type("AWS::Lambda::LayerVersion").items()
        }
        return {
            logical_id: Function(
                arn=self.get(logical_id)["Arn"],
                handler=properties["Handler"],
                code_directory=self._directory / properties["Code"]["S3Key"],
                layer_directories=tuple(layers[layer] for layer in properties["Layers"]),
                timeout_seconds=int(properties["Timeout"]),
                memory_mb=int(properties["MemorySize"]),
                environment=properties["Environment"]["Variables"] | environment,
            )
            for logical_id, properties in self._of_type("AWS::Lambda::Function").items()
        }

    def routes(self) -> list[Route]:
        """The routes of the HTTP API, each with the function that answers it."""
        routes = []
        for name in self._of_type("AWS::Lambda::Function"):
            for event in self._source[name]["Properties"].get("Events", {}).values():
                if event["Type"] == "HttpApi":
                    route = event["Properties"]
                    requires_iam = route.get("Auth", {}).get("Authorizer") != "NONE"
                    routes.append(Route(route["Method"], route["Path"], name, requires_iam))
        return routes
