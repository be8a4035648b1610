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

from tests.sandbox.functions import ACCOUNT_ID, Function
from tests.sandbox.gateway import Route

# SAM takes code from S3 only; the place of each local folder is passed through it in this form.
LOCAL_CODE = "s3://local/"
NOTHING = object()
# Functions of their resolved arguments alone.
PURE: Mapping[str, Callable[..., Any]] = {
    "Fn::Join": lambda separator, parts: separator.join(map(str, parts)),
    "Fn::Split": lambda separator, text: str(text).split(separator),
    "Fn::Select": lambda index, items: items[int(index)],
    "Fn::Equals": lambda one, other: str(one) == str(other),
    "Fn::Not": lambda value: not value,
    "Fn::And": lambda *values: all(values),
    "Fn::Or": lambda *values: any(values),
}


class Template:
    """The resources of a built template; `create(logical id, type, properties)` gives what Ref and GetAtt answer."""

    def __init__(
        self,
        file: Path,
        parameters: Mapping[str, str],
        stack_name: str,
        region: str,
        create: Callable[[str, str, dict[str, Any]], dict[str, str]],
    ) -> None:
        source = yaml_parse(file.read_text())
        for resource in source["Resources"].values():
            properties = resource.get("Properties", {})
            for name in ("CodeUri", "ContentUri"):
                if name in properties:
                    properties[name] = f"{LOCAL_CODE}{properties[name]}"
        declared = source.get("Parameters", {})
        if unknown := set(parameters) - set(declared):
            raise ValueError(f"the template has no parameter {', '.join(sorted(unknown))}")
        defaults = {name: str(entry["Default"]) for name, entry in declared.items() if "Default" in entry}
        self._values: dict[str, Any] = {
            **defaults,
            **parameters,
            "AWS::NoValue": NOTHING,
            "AWS::AccountId": ACCOUNT_ID,
            "AWS::Partition": "aws",
            "AWS::Region": region,
            "AWS::StackName": stack_name,
            "AWS::StackId": f"arn:aws:cloudformation:{region}:{ACCOUNT_ID}:stack/{stack_name}/sandbox",
            "AWS::URLSuffix": "amazonaws.com",
        }
        # It warns that it has nowhere to publish metrics of itself to.
        logging.getLogger("samtranslator").setLevel(logging.ERROR)
        session = boto3.Session(region_name=region)
        transformed = Translator({}, Parser(), boto_session=session).translate(source, {**defaults, **parameters})
        self._directory = file.parent
        self._region = region
        self._conditions: dict[str, Any] = transformed.get("Conditions", {})
        self._outputs: dict[str, Any] = transformed.get("Outputs", {})
        self._create = create
        self._created: dict[str, dict[str, str]] = {}
        self.resources: dict[str, dict[str, Any]] = {
            name: entry
            for name, entry in transformed["Resources"].items()
            if "Condition" not in entry or self._holds(entry["Condition"])
        }

    def of_type(self, kind: str) -> dict[str, dict[str, Any]]:
        """Resolved properties by logical id."""
        return {
            name: self.resolve(entry.get("Properties", {}))
            for name, entry in self.resources.items()
            if entry["Type"] == kind
        }

    def attributes(self, logical_id: str) -> dict[str, str]:
        """What the resource is known by, `Ref` among it; it is made if it does not exist yet."""
        if logical_id not in self._created:
            entry = self.resources[logical_id]
            properties = self.resolve(entry.get("Properties", {}))
            self._created[logical_id] = self._create(logical_id, entry["Type"], properties)
        return self._created[logical_id]

    def outputs(self) -> dict[str, str]:
        """The stack's outputs, as far as their conditions hold."""
        return {
            name: str(self.resolve(entry["Value"]))
            for name, entry in self._outputs.items()
            if "Condition" not in entry or self._holds(entry["Condition"])
        }

    def functions(self, environment: Mapping[str, str]) -> dict[str, Function]:
        """The Lambda functions by logical id, with `environment` laid over their own variables."""
        layers = {
            self.attributes(name)["Ref"]: self._directory / properties["Content"]["S3Key"]
            for name, properties in self.of_type("AWS::Lambda::LayerVersion").items()
        }
        functions = {}
        for logical_id, properties in self.of_type("AWS::Lambda::Function").items():
            variables = properties.get("Environment", {}).get("Variables", {}) | environment
            functions[logical_id] = Function(
                name=self.attributes(logical_id)["Ref"],
                handler=properties["Handler"],
                code_directory=self._directory / properties["Code"]["S3Key"],
                layer_directories=tuple(layers[layer] for layer in properties.get("Layers", [])),
                timeout_seconds=int(properties.get("Timeout", 3)),
                memory_mb=int(properties.get("MemorySize", 128)),
                environment={name: str(value) for name, value in variables.items()},
                region=self._region,
            )
        return functions

    def routes(self) -> list[Route]:
        """The routes of the HTTP API, each with the function that answers it."""
        functions = {self.attributes(name)["Arn"]: name for name in self.of_type("AWS::Lambda::Function")}
        routes = []
        for api in self.of_type("AWS::ApiGatewayV2::Api").values():
            for path, methods in api["Body"]["paths"].items():
                for method, entry in methods.items():
                    uri = entry["x-amazon-apigateway-integration"]["uri"]
                    function = next(name for arn, name in functions.items() if f"{arn}/" in uri)
                    key = "ANY" if method.startswith("x-amazon") else method.upper()
                    requires_iam = any("AWS_IAM" in way for way in entry.get("security", []))
                    routes.append(Route(key, path, function, requires_iam))
        return routes

    def resolve(self, value: Any) -> Any:
        """The value with every intrinsic function in it replaced by its result."""
        if isinstance(value, list):
            return [item for item in map(self.resolve, value) if item is not NOTHING]
        if not isinstance(value, dict):
            return value
        name = next(iter(value), "")
        # A policy may hold an ordinary member of the name Condition.
        if len(value) == 1 and (
            name.startswith(("Ref", "Fn::")) or (name == "Condition" and isinstance(value[name], str))
        ):
            return self._call(name, value[name])
        resolved = {key: self.resolve(item) for key, item in value.items()}
        return {key: item for key, item in resolved.items() if item is not NOTHING}

    def _call(self, name: str, argument: Any) -> Any:
        if name in PURE:
            return PURE[name](*self.resolve(argument))
        match name, argument:
            case "Ref", _:
                return self._values[argument] if argument in self._values else self.attributes(argument)["Ref"]
            case "Condition", _:
                return self._holds(argument)
            case "Fn::GetAtt", _:
                logical_id, attribute = argument.split(".", 1) if isinstance(argument, str) else argument
                return self.attributes(logical_id)[attribute]
            case "Fn::If", [condition, first, second]:
                return self.resolve(first if self._holds(condition) else second)
            case "Fn::Sub", _:
                text, given = argument if isinstance(argument, list) else (argument, {})
                values = self.resolve(given)
                return re.sub(r"\$\{([^}]+)\}", lambda found: str(self._substitute(found[1], values)), text)
        raise NotImplementedError(f"the sandbox does not know {name}")

    def _substitute(self, name: str, values: dict[str, Any]) -> Any:
        if name.startswith("!"):
            return f"${{{name[1:]}}}"
        return values[name] if name in values else self._call("Fn::GetAtt" if "." in name else "Ref", name)

    def _holds(self, condition: str) -> bool:
        return bool(self.resolve(self._conditions[condition]))
