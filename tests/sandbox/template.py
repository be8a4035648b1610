"""template.yaml as CloudFormation would see it: transformed by SAM, conditions and intrinsic functions resolved."""

import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import boto3
from samtranslator.parser.parser import Parser
from samtranslator.translator.translator import Translator
from samtranslator.yaml_helper import yaml_parse

from tests.sandbox.functions import ACCOUNT_ID, REGION, Function
from tests.sandbox.gateway import Route

NOTHING = object()


class Template:
    """The resources of a built template; `create(logical id, type, properties)` gives what Ref and GetAtt answer."""

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
            "AWS::NoValue": NOTHING,
            "AWS::AccountId": ACCOUNT_ID,
            "AWS::Partition": "aws",
            "AWS::Region": REGION,
            "AWS::StackName": stack_name,
            "AWS::StackId": f"arn:aws:cloudformation:{REGION}:{ACCOUNT_ID}:stack/{stack_name}/sandbox",
            "AWS::URLSuffix": "amazonaws.com",
        }
        self._directory = file.parent
        self._create = create
        self._created: dict[str, dict[str, str]] = {}
        self._source = source["Resources"]
        self._conditions = transformed.get("Conditions", {})
        self._outputs = transformed["Outputs"]
        self.resources = self._existing(transformed["Resources"])

    def _existing(self, entries: dict[str, Any]) -> dict[str, Any]:
        return {
            name: entry for name, entry in entries.items() if "Condition" not in entry or self._holds(entry["Condition"])
        }

    def _holds(self, condition: str) -> bool:
        return bool(self.resolve(self._conditions[condition]))

    def attributes(self, logical_id: str) -> dict[str, str]:
        """What the resource is known by, `Ref` among it; it is made if it does not exist yet."""
        if logical_id not in self._created:
            entry = self.resources[logical_id]
            properties = self.resolve(entry.get("Properties", {}))
            self._created[logical_id] = self._create(logical_id, entry["Type"], properties)
        return self._created[logical_id]

    def outputs(self) -> dict[str, str]:
        """The stack's outputs, as far as their conditions hold."""
        return {name: self.resolve(entry["Value"]) for name, entry in self._existing(self._outputs).items()}

    def _of_type(self, kind: str) -> dict[str, dict[str, Any]]:
        """Resolved properties by logical id."""
        found = {name: entry for name, entry in self.resources.items() if entry["Type"] == kind}
        return {name: self.resolve(entry["Properties"]) for name, entry in found.items()}

    def functions(self, environment: Mapping[str, str]) -> dict[str, Function]:
        """The Lambda functions by logical id, with `environment` laid over their own variables."""
        layers = {
            self.attributes(name)["Ref"]: self._directory / properties["Content"]["S3Key"]
            for name, properties in self._of_type("AWS::Lambda::LayerVersion").items()
        }
        return {
            logical_id: Function(
                name=self.attributes(logical_id)["Ref"],
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

    def resolve(self, value: Any) -> Any:
        """The value with every intrinsic function in it replaced by its result."""
        match value:
            case {"Ref": name}:
                return self._values[name] if name in self._values else self.attributes(name)["Ref"]
            case {"Fn::GetAtt": [logical_id, attribute]}:
                return self.attributes(logical_id)[attribute]
            case {"Condition": str(name)}:
                return self._holds(name)
            case {"Fn::If": [condition, first, second]}:
                return self.resolve(first if self._holds(condition) else second)
            case {"Fn::Equals": [one, other]}:
                return str(self.resolve(one)) == str(self.resolve(other))
            case {"Fn::Not": [condition]}:
                return not self.resolve(condition)
            case {"Fn::And": conditions}:
                return all(map(self.resolve, conditions))
            case {"Fn::Or": conditions}:
                return any(map(self.resolve, conditions))
            case {"Fn::Join": [separator, parts]}:
                return separator.join(map(str, self.resolve(parts)))
            case {"Fn::Split": [separator, text]}:
                return self.resolve(text).split(separator)
            case {"Fn::Select": [index, items]}:
                return self.resolve(items)[int(index)]
            case {"Fn::Sub": [text, values]}:
                return self._substitute(text, self.resolve(values))
            case {"Fn::Sub": text}:
                return self._substitute(text, {})
            case dict():
                resolved = {key: self.resolve(item) for key, item in value.items()}
                return {key: item for key, item in resolved.items() if item is not NOTHING}
            case list():
                return [item for item in map(self.resolve, value) if item is not NOTHING]
        return value

    def _substitute(self, text: str, values: dict[str, Any]) -> str:
        def resolved(found: re.Match[str]) -> str:
            name, _, attribute = found[1].partition(".")
            if attribute:
                return self.attributes(name)[attribute]
            return str(values[name] if name in values else self.resolve({"Ref": name}))

        return re.sub(r"\$\{([^!}]+)\}", resolved, text)
