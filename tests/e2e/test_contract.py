"""The running API keeps docs/openapi.yaml: the short form of `make contract`, and what a gateway answers by itself."""

from collections.abc import Mapping

import pytest

from tests.e2e.contract import Front, check
from tests.e2e.http import Http
from tests.sandbox.functions import Invocation
from tests.sandbox.stack import Sandbox
from tests.unit.contract import Contract

CONTRACT = Contract()


@pytest.fixture(scope="module")
def parameters() -> Mapping[str, str]:
    return {"EnableCallbacks": "true"}


def test_schemathesis_finds_nothing(sandbox: Sandbox) -> None:
    report, answered = check(sandbox, "--max-examples", "10", "--generation-deterministic")

    assert (report["failures"], report["errors"], report["exit_code"]) == ([], [], 0)
    assert report["operations"]["tested"] == len(CONTRACT.operations)
    assert [name for name, found in report["warnings"].items() if found] == []
    assert report["test_cases"]["generated"] >= 300
    # Each route accepted some requests, and refused others.
    for route in CONTRACT.operations:
        accepted = min(CONTRACT.content(route))
        assert {accepted, 400, 403} <= set(answered[route]) <= set(CONTRACT.content(route))


def test_a_gateway_answers_by_itself_as_documented(sandbox: Sandbox) -> None:
    signed = {"Authorization": "AWS4-HMAC-SHA256 Credential=sandbox"}
    with Front(sandbox) as front:
        unsigned = Http(front.url).get("/watches")
        no_route = Http(front.url).send("GET", "/rooms/a%2Fb/users/teacher/stream-state", headers=signed)
        front.invoke = lambda function, event: Invocation({"errorType": "MemoryError"}, "Unhandled", 1)
        failed = Http(front.url).send("GET", "/watches", headers=signed)

    state = "GET /rooms/{room_id}/users/{user_id}/stream-state"
    for route, status, reply in (
        ("GET /watches", 403, unsigned),
        (state, 404, no_route),
        ("GET /watches", 500, failed),
    ):
        assert reply.status == status
        CONTRACT.validate(route, status, reply.headers["content-type"], reply.body)
