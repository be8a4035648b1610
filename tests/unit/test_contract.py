"""docs/openapi.yaml is valid, has the routes of the template, and says what API Gateway itself answers."""

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator
from samtranslator.yaml_helper import yaml_parse

from tests.unit.contract import DOCS, Contract

TEMPLATE = DOCS.parent / "template.yaml"
CONTRACT = Contract()
MESSAGE = {"$ref": "#/components/schemas/message"}


def test_it_is_an_openapi_document() -> None:
    OpenAPIV31SpecValidator(CONTRACT.document, base_uri=(DOCS / "openapi.yaml").as_uri()).validate()


def test_it_has_the_routes_of_the_template_and_the_same_of_them_need_a_signature() -> None:
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
def test_what_api_gateway_itself_answers_is_documented(route: str) -> None:
    operation, content = CONTRACT.operations[route], CONTRACT.content(route)

    # Throttling, a function that fails, and one that cannot be reached or is too late.
    expected = {429, 500, 503}
    expected |= {403} if operation.get("security") != [] else set()
    expected |= {404} if "{" in route else set()
    expected |= {413} if "requestBody" in operation else set()
    assert {status for status, kinds in content.items() if kinds.get("application/json") == MESSAGE} == expected
    for status in expected:
        CONTRACT.validate(route, status, "application/json", {"message": "Forbidden"})
