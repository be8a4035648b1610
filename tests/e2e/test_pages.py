"""The HTTP requests of docs/integrate.md, sent to the running API in the order of the page."""

import json
import re
from typing import Any

import pytest

from tests.e2e.http import Http
from tests.e2e.schemas import conforms
from tests.sandbox.stack import REPOSITORY, Sandbox
from tests.unit.contract import Contract

PAGE = (REPOSITORY / "docs" / "integrate.md").read_text()
# A request, its body if there is one, and the answer if the page shows it.
EXAMPLES = re.findall(r"^```http\n(\w+) (\S+)\n(.*?)^```\n(?:```json\n(.*?)^```\n)?", PAGE, re.DOTALL | re.MULTILINE)


def keys(document: Any) -> Any:
    """The names of fields, in fields of fields too."""
    return {name: keys(value) for name, value in document.items()} if isinstance(document, dict) else None


@pytest.mark.parametrize(("method", "path", "body", "shown"), EXAMPLES, ids=range(len(EXAMPLES)))
def test_a_request_of_the_page_gets_what_the_page_shows(
    sandbox: Sandbox, http: Http, method: str, path: str, body: str, shown: str
) -> None:
    sandbox.simulator.publish("class-1", "teacher", "Audio", "Video")

    reply = http.send(method, path, json.loads(body) if body else b"")

    if shown:
        expected = json.loads(shown)
        assert (reply.status, keys(reply.body)) == (expected.get("status", 200), keys(expected))
    else:
        assert reply.status == (204 if method == "DELETE" else 200)
    for result in reply.body.get("results", []) if reply.body else []:
        conforms("problem" if "status" in result else "answer", result)


def test_the_page_shows_every_route() -> None:
    shown = [f"{method} {path.partition('?')[0]}" for method, path, *_ in EXAMPLES]

    for route in Contract().operations.keys() - {"POST /callbacks/rtc"}:
        pattern = re.sub(r"\{\w+\}", "[^/]+", route)
        assert any(re.fullmatch(pattern, request) for request in shown), route
