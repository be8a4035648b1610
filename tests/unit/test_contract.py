"""docs/openapi.yaml is valid, has the routes of the template, and documents API Gateway's own answers."""

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator
from samtranslator.yaml_helper import yaml_parse

from tests.unit.contract import DOCS, Contract

TEMPLATE = DOCS.parent / "template.yaml"
CONTRACT = Contract()
MESSAGE = {"$ref": "#/components/schemas/message"}


def test_the_document_is_valid() -> None:
    OpenAPIV31SpecValidator(CONTRACT.document, base_uri=(DOCS / "openapi.yaml").as_uri()).validate()


def test_the_document_has_the_routes_of_the_template_and_their_authorization() -> None:
    resources = yaml_parse(TEMPLATE.read_text())["Resources"].values()
    events = [event for resource in resources for event in resource["Properties"].get("Events", {}).values()]
    routes = [event["Properties"] for event in events if event["Type"] == "HttpApi"]

    needed = {f"{route['Method']} {route['Path']}": route.get("Auth") != {"Authorizer": "NONE"} for route in routes}

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
