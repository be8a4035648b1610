"""docs/openapi.yaml is valid, agrees with the JSON Schemas and the template, and has API Gateway's own answers."""

import json
import re

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from tests.unit.contract import DOCS, Contract
from tests.unit.transformed import Template

CONTRACT = Contract()
MESSAGE = {"$ref": "#/components/schemas/GatewayMessage"}


def test_the_document_is_valid() -> None:
    OpenAPIV31SpecValidator(CONTRACT.document).validate()


@pytest.mark.parametrize("name", ["answer", "problem"])
def test_the_document_has_what_the_json_schemas_have(name: str) -> None:
    text = (DOCS / f"{name}.schema.json").read_text().replace('"#/$defs/', '"#/components/schemas/')
    # A page of reference would show a condition as two kinds of answers: the document has it in words alone.
    left_out = {"$schema", "$id", "if", "else"}
    schema = {key: value for key, value in json.loads(text).items() if key not in left_out}
    parts = schema.pop("$defs", {}) | {schema["title"]: schema}

    components = CONTRACT.document["components"]["schemas"]

    assert {name: components.get(name) for name in parts} == parts


def test_the_document_has_the_routes_of_the_template_and_their_authorization() -> None:
    routes = Template(EnableCallbacks="true").routes()
    needed = {route: requires_iam for route, (_, requires_iam) in routes.items()}

    default = CONTRACT.document["security"]
    assert needed == {
        route: operation.get("security", default) == [{"aws_signature": []}]
        for route, operation in CONTRACT.operations.items()
    }


@pytest.mark.parametrize("route", CONTRACT.operations)
def test_the_document_has_the_answers_of_api_gateway_itself(route: str) -> None:
    operation, content = CONTRACT.operations[route], CONTRACT.content(route)

    # API Gateway throttles, the function fails, or the function cannot be reached in time.
    expected = {429, 500, 503}
    expected |= {403} if operation.get("security") != [] else set()
    expected |= {404} if "{" in route else set()
    expected |= {413} if "requestBody" in operation else set()
    assert {status for status, kinds in content.items() if kinds.get("application/json") == MESSAGE} == expected
    for status in expected:
        CONTRACT.validate(route, status, "application/json", {"message": "Forbidden"})


def test_the_reference_page_shows_the_document_and_cannot_reach_the_network() -> None:
    page = (DOCS / "api-reference.html").read_text()
    shown = re.search(r'<script type="application/json" id="document">(.*?)</script>', page)
    policy = re.search(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', page)

    assert shown
    assert json.loads(shown[1]) == CONTRACT.document, "make reference writes the page"
    assert policy
    assert page.index(policy[0]) < page.index("<script")
    sources = {name: set(rest) for name, *rest in map(str.split, policy[1].split(";"))}
    assert sources.pop("default-src") == {"'none'"}
    assert set().union(*sources.values()) <= {"'unsafe-inline'", "data:", "blob:"}
