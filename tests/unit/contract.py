"""docs/openapi.yaml: the statuses, problems and schemas that it documents for each route."""

import json
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012
from samtranslator.yaml_helper import yaml_parse

DOCS = Path(__file__).parents[2] / "docs"
PROBLEM = "application/problem+json"


class Contract:
    """The document, its references resolved; a route is such as `GET /watches`."""

    def __init__(self) -> None:
        self.document: dict[str, Any] = yaml_parse((DOCS / "openapi.yaml").read_text())
        resource = Resource.from_contents(self.document, default_specification=DRAFT202012)
        self._registry: Registry[Any] = Registry().with_resource("openapi.yaml", resource)
        self.operations: dict[str, dict[str, Any]] = {
            f"{method.upper()} {path}": operation
            for path, item in self.document["paths"].items()
            for method, operation in item.items()
            if method != "parameters"
        }

    def content(self, route: str) -> dict[int, dict[str, Any]]:
        """The schemas by media type, by status."""
        responses = {int(status): self._resolve(given) for status, given in self.operations[route]["responses"].items()}
        return {
            status: {kind: entry["schema"] for kind, entry in response.get("content", {}).items()}
            for status, response in responses.items()
        }

    def problems(self, route: str) -> set[tuple[int, str]]:
        """Status and error of each problem."""
        found = set()
        for status, content in self.content(route).items():
            if PROBLEM in content:
                problem = content[PROBLEM].get("anyOf", [content[PROBLEM]])[0]
                error = problem["properties"]["error"]
                found |= {(status, name) for name in error.get("enum", [error.get("const")])}
        return found

    def validate(self, route: str, status: int, kind: str, document: object) -> None:
        """Fail unless the document keeps the schema of a route's responses with that status and media type."""
        schema = json.dumps(self.content(route)[status][kind]).replace('"#/', '"openapi.yaml#/')
        Draft202012Validator(json.loads(schema), registry=self._registry).validate(document)

    def _resolve(self, response: dict[str, Any]) -> dict[str, Any]:
        """The response, also if a reference names it."""
        name = response.get("$ref", "").removeprefix("#/components/responses/")
        return dict(self.document["components"]["responses"][name]) if name else response
