"""docs/openapi.yaml held against the running API with schemathesis; `make contract` is the long form."""

import json
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from tests.e2e.http import Http
from tests.sandbox.gateway import Gateway
from tests.sandbox.samples import CLASSROOM, ROOM
from tests.sandbox.server import Request, Response
from tests.sandbox.stack import REPOSITORY, Sandbox

DOCUMENT = REPOSITORY / "docs" / "openapi.yaml"
COMMAND: list[str | Path] = [
    Path(sys.executable).with_name("schemathesis"),
    "--config-file",
    Path(__file__).with_suffix(".toml"),
]
IN_JSON = [("Content-Type", "application/json")]
# The arguments of `make contract`, and the number of cases that they must come to.
LONG_FORM = ("--max-examples", "600")
LEAST_CASES = 5_000


class Front(Gateway):
    """The HTTP API, which refuses unsigned requests as API Gateway does, and counts the answers."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.answers: Counter[tuple[str, int]] = Counter()
        super().__init__(sandbox.template.routes(), sandbox.invoke)

    def answer(self, request: Request, connection: socket.socket) -> Response:
        path = unquote(request.path)
        route = next((route for route in self._routes if route.match(request.method, path) is not None), None)
        signed = request.header("Authorization").startswith("AWS4-HMAC-SHA256 Credential=sandbox")
        if route and route.requires_iam and not signed:
            response = Response(403, b'{"message":"Forbidden"}', IN_JSON)
        else:
            response = super().answer(request, connection)
        self.answers[f"{route.method} {route.path}" if route else "no route", response.status] += 1
        return response


def check(sandbox: Sandbox, *arguments: str) -> tuple[dict[str, Any], dict[str, list[int]]]:
    """Run every check of schemathesis; its report, and the statuses of each route."""
    for user, media in CLASSROOM.items():
        sandbox.simulator.publish(ROOM, user, *media)
    Http(sandbox.api_url).post("/watches", {"targets": [{"room_id": ROOM, "user_id": user} for user in CLASSROOM]})
    with Front(sandbox) as front, tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "report.json"
        reports: list[str | Path] = ["--report", "json", "--report-json-path", report]
        command = [*COMMAND, "run", DOCUMENT, "--url", front.url, *reports, *arguments]
        subprocess.run(command, cwd=REPOSITORY, check=False)
        return json.loads(report.read_text()), statuses(front.answers)


def statuses(answers: Iterable[tuple[str, int]]) -> dict[str, list[int]]:
    """The statuses by route."""
    found: dict[str, list[int]] = {}
    for route, status in sorted(answers):
        found.setdefault(route, []).append(status)
    return found


def main() -> int:
    """Run the long form, and print the statuses of each route; 0 if nothing was found and the cases are enough."""
    with Sandbox({"EnableCallbacks": "true"}) as sandbox:
        report, answered = check(sandbox, *LONG_FORM)
    for route, found in answered.items():
        print(f"{route:<52} {', '.join(map(str, found))}")
    cases = report["test_cases"]["generated"]
    print(f"{cases} cases, {report['test_cases']['unique_failures']} failures.")
    return int(report["exit_code"]) or int(cases < LEAST_CASES)


if __name__ == "__main__":
    sys.exit(main())
