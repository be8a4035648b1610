"""The examples of READMEs and pages: JSON keeps the schemas and is accepted, calculations print what is shown."""

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from typing import Any

import pytest
from botocore.session import Session
from samtranslator.yaml_helper import yaml_parse

from stream_state.domain.requests import SweepRequest, TaskRequest
from stream_state.domain.waits import WaitCondition
from tests.unit.memory import World
from tests.unit.test_documents import DOCUMENTS
from tests.unit.transformed import REPOSITORY

type Conforms = Callable[[str, Any], None]

APP_ID = "661e8f2a9b3c4d5e6f708192"
# Actions that are no operations of an API.
ACTIONS = {"execute-api:Invoke", "lambda:InvokeFunction", "kms:ReEncrypt*", "kms:GenerateDataKey*", "kms:Describe*"}
UNTIL = ("medium", "publishing", "timeout_seconds", "interval_seconds")
SERVICES = {"states": "stepfunctions"}
# States of workflows, which tests/integration/test_wait_for_stream.py executes.
EXECUTED = {"AskForHost", "IsHostLive", "WaitForHost"}


def examples() -> list[Any]:
    """Every JSON block of the documents, with its document; a block of named states is an object of them."""
    found: list[Any] = []
    for path in DOCUMENTS:
        for block in re.findall(r"^ *```json\n(.*?)^ *```$", path.read_text(), re.DOTALL | re.MULTILINE):
            text = f"{{{block}}}" if block.lstrip().startswith('"') else block
            found.append(pytest.param(json.loads(text), id=f"{path.name}-{len(found)}"))
    return found


def check_summary(summary: dict[str, Any], world: World) -> None:
    assert summary.keys() == world.run_sweep().keys()
    counts = (summary[name] for name in ("delivered", "unchanged", "failed", "remaining"))
    assert summary["targets"] == sum(counts)
    assert summary["failed"] >= len(summary["failures"])


def check_statement(statement: dict[str, Any]) -> None:
    """Fail unless AWS knows each action: IAM names most of them after operations of an API."""
    actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
    for service, action in (name.split(":") for name in actions):
        if f"{service}:{action}" not in ACTIONS:
            assert action in Session().get_service_model(SERVICES.get(service, service)).operation_names
    assert statement["Effect"] == "Allow"


def resolved(parameters: dict[str, Any]) -> dict[str, Any]:
    """Parameters of a state, with a text in place of each path."""
    values = {True: "2026-11-23T03:04:05Z", False: "class-1"}
    return {
        name.removesuffix(".$"): resolved(value)
        if isinstance(value, dict)
        else values["Time" in value]
        if name.endswith(".$")
        else value
        for name, value in parameters.items()
    }


def check_request(request: dict[str, Any]) -> None:
    """Fail unless task, sweep or state machine accept a request."""
    until = {name: request[name] for name in UNTIL if name in request}
    if until:
        target = {name: value for name, value in request.items() if name not in UNTIL}
        WaitCondition.parse({**until, "started_at": "2026-11-23T03:04:05Z"})
        TaskRequest.parse(target, [APP_ID])
    elif "emit" in request:
        SweepRequest.parse(request, [APP_ID])
    else:
        TaskRequest.parse(request, [APP_ID])


@pytest.mark.parametrize("example", examples())
def test_an_example_is_right_for_its_kind(conforms: Conforms, world: World, example: Any) -> None:
    for document in example if isinstance(example, list) else [example]:
        if "type" in document:
            problem = document["type"].startswith("urn:")
            conforms("problem" if problem else "message" if "version" in document else "answer", document)
        elif "delivered" in document:
            check_summary(document, world)
        elif "Effect" in document or "Statement" in document:
            for statement in document.get("Statement", [document]):
                check_statement(statement)
        elif "expires_at" in document:
            assert document.keys() == {"app_id", "room_id", "user_id", "expires_at"}
        elif "Parameters" in document:
            TaskRequest.parse(resolved(document["Parameters"]["Payload"]), [APP_ID])
        elif document.keys() <= EXECUTED:
            assert {state["Type"] for state in document.values()} <= {"Task", "Choice"}
        else:
            check_request(document)


def test_there_are_examples_of_every_kind() -> None:
    assert len(examples()) > 15


def test_the_calculations_of_the_cost_print_what_the_page_shows() -> None:
    page = (REPOSITORY / "docs" / "cost.md").read_text()
    found = re.findall(r"^python3 - <<'END'\n(.*?)^END\n```\n\n```\n(.*?)```", page, re.DOTALL | re.MULTILINE)

    for program, shown in found:
        printed = subprocess.run(
            [sys.executable, "-"], input=program, cwd=REPOSITORY, capture_output=True, text=True, check=True
        )
        assert printed.stdout == shown
    assert len(found) > 1


def test_both_readmes_have_the_costs_of_the_calculation() -> None:
    printed = re.findall(r"users: ask (.*), listen (.*), both (.*)", (REPOSITORY / "docs" / "cost.md").read_text())
    columns = {f"{few}, {many}" for few, many in zip(*[row for row in printed if "{" not in row[0]], strict=True)}

    for name in ("README.md", "README.zh-CN.md"):
        row = next(line for line in (REPOSITORY / name).read_text().splitlines() if "| $" in line)
        assert {cell.strip() for cell in row.split("|")[2:-1]} == columns


def test_the_version_is_the_same_everywhere() -> None:
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    metadata = yaml_parse((REPOSITORY / "template.yaml").read_text())["Metadata"]["AWS::ServerlessRepo::Application"]
    changelog = (REPOSITORY / "CHANGELOG.md").read_text()

    assert metadata["SemanticVersion"] == version
    assert re.findall(r"^## \[(\d.*?)\] - \d{4}-\d\d-\d\d$", changelog, re.MULTILINE)[0] == version
    assert f"`version {version}`" in (REPOSITORY / "README.md").read_text()
    assert f"`版本 {version}`" in (REPOSITORY / "README.zh-CN.md").read_text()
    assert f"| {version} |" in (REPOSITORY / "SECURITY.md").read_text()
    for file in ("LicenseUrl", "ReadmeUrl"):
        assert (REPOSITORY / metadata[file]).is_file()
