"""The documents: AWS CLI lines name what AWS knows, placeholders are outputs of the stack, links lead somewhere."""

import functools
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from botocore import xform_name
from botocore.session import Session

from stream_state.adapters.rate_limiter import RateLimiter
from stream_state.domain.observations import Mark
from stream_state.domain.targets import Target
from stream_state.domain.waits import Wait, WaitCondition
from stream_state.settings import Settings
from tests.sandbox.ports import FIRST_PORT, PORTS
from tests.unit.memory import World
from tests.unit.transformed import REPOSITORY, Template

DOCUMENTS = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md")])
# The words of docs/architecture.md have these meanings.
OTHER_WORDS = r"\b(?:told|teller|mends?|anew|pushed events?|parked|kill ?button|stop button)\b"
DOMAINS = {"DomainName": "a.example.com", "CallbackDomainName": "b.example.com", "CertificateArn": "arn"}
TEMPLATE = Template(EnableCallbacks="true", **DOMAINS)
# Commands that the CLI has itself, beside those of AWS's services, and options that all commands have.
OWN_COMMANDS = {("configure", "export-credentials")}
OWN_OPTIONS = {"cli-read-timeout", "output", "query"}
*_, VENDOR_PORT, AWS_PORT = range(FIRST_PORT, FIRST_PORT + PORTS)
# Programs whose lines have a test here, and others: of the shell, and one that tests/e2e/test_generated_client.py runs.
CHECKED = {"aws", "make", ".venv/bin/sam", ".venv/bin/python", "curl"}
UNCHECKED = {"export", "eval", "python3", "openapi-python-client"}


def commands(name: str) -> list[tuple[str, str]]:
    """Every command of that name in the shell blocks and the inline code of the documents, with its document."""
    found = []
    for path in DOCUMENTS:
        text = path.read_text()
        blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
        lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
        lines += [line.replace("\n", " ") for line in re.findall(rf"(?<!`)`({name} [^`]+)`(?!`)", text)]
        found += [(path.name, line) for line in lines if line.startswith(f"{name} ")]
    return list(dict.fromkeys(found))


@pytest.mark.parametrize(("document", "line"), commands("aws"))
def test_a_line_of_the_aws_cli_names_what_aws_knows(document: str, line: str) -> None:
    _, service, command, *rest = shlex.split(line, comments=True)
    if (service, command) in OWN_COMMANDS:
        return
    model = Session().get_service_model(service)
    operation = model.operation_model({xform_name(name, "-"): name for name in model.operation_names}[command])
    members = operation.input_shape.members if operation.input_shape else {}
    required = operation.input_shape.required_members if operation.input_shape else []

    given = {word.removeprefix("--").removeprefix("no-") for word in rest if word.startswith("--")}

    assert given - OWN_OPTIONS <= {xform_name(name, "-") for name in members}
    assert {xform_name(name, "-") for name in required} <= given


@pytest.mark.parametrize("path", ["README.md", "docs/waiting.md"])
def test_a_workflow_that_starts_a_wait_and_gets_its_answer_may_do_all_that_this_takes(path: str) -> None:
    blocks = re.findall(r"```json\n(.*?)```", (REPOSITORY / path).read_text(), re.DOTALL)
    (policy,) = (json.loads(block) for block in blocks if "events:PutRule" in block)
    statements = policy["Statement"] if isinstance(policy, dict) else policy
    granted = [
        (action, of["Resource"])
        for of in statements
        for action in ([of["Action"]] if isinstance(of["Action"], str) else of["Action"])
    ]

    # As AWS documents it for startExecution.sync:2: a rule of Step Functions' own tells it the end of the execution.
    for actions, resource in (
        (["states:StartExecution"], "<WaitForStreamArn>"),
        (["states:DescribeExecution", "states:StopExecution"], r"arn:aws:states:.*:execution:[^:]+:\*"),
        (
            ["events:PutTargets", "events:PutRule", "events:DescribeRule"],
            "arn:aws:events:.*:rule/StepFunctionsGetEventsForStepFunctionsExecutionRule",
        ),
    ):
        named = [of for action, of in granted if action in actions]
        assert len(named) == len(actions)
        assert all(re.fullmatch(resource, of) for of in named)


def test_the_cli_waits_for_a_sweep_as_long_as_it_takes() -> None:
    invoking = [line for _, line in commands("aws") if line.startswith("aws lambda invoke ")]

    assert len(invoking) >= 2
    assert all("--cli-read-timeout 0 " in line for line in invoking)


@pytest.mark.parametrize(("document", "line"), commands("make"))
def test_a_target_of_make_is_one(document: str, line: str) -> None:
    targets = set(re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))

    assert line.split()[1] in targets


@functools.cache
def options_of_sam(group: str, command: str) -> set[str]:
    """The options that the SAM CLI itself shows for a command."""
    program, environment = Path(sys.executable).with_name("sam"), {**os.environ, "SAM_CLI_TELEMETRY": "0"}
    shown = subprocess.run([program, group, command, "--help"], env=environment, capture_output=True, check=True)
    return set(re.findall(r"--[a-z-]+", shown.stdout.decode()))


@pytest.mark.parametrize(("document", "line"), commands(".venv/bin/sam"))
def test_a_line_of_the_sam_cli_names_a_command_and_its_options(document: str, line: str) -> None:
    _, *words = shlex.split(line)

    assert {word for word in words if word.startswith("--")} <= options_of_sam(*words[:2])


@pytest.mark.parametrize(("document", "line"), commands(".venv/bin/python"))
def test_a_line_of_python_names_a_module_and_its_options(document: str, line: str) -> None:
    _, option, module, *words = shlex.split(line)
    assert option == "-m"
    if module == "pytest":
        assert all((REPOSITORY / word).exists() for word in words if word.startswith("tests/"))
        return
    source = importlib.util.find_spec(module)
    assert source
    assert source.origin

    for option in (word for word in words if word.startswith("--")):
        assert f'"{option}"' in Path(source.origin).read_text()


@pytest.mark.parametrize(("document", "line"), commands("curl"))
def test_a_line_of_curl_asks_for_something_that_is_there(document: str, line: str) -> None:
    words = shlex.split(line)
    (address,) = (word for word in words if re.match("<ApiUrl>|http://127", word))

    host, path = re.fullmatch("(<ApiUrl>|http://[^/]+)(/.*)", address).groups()  # type: ignore[union-attr]  # it is one
    if host == "<ApiUrl>":
        assert any(re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", route), f"GET {path}") for route in TEMPLATE.routes())
    elif path.startswith("/2015-03-31/"):
        assert host == f"http://127.0.0.1:{AWS_PORT}"
        assert path.split("/")[3] in TEMPLATE.made
        assert json.loads((REPOSITORY / words[words.index("-d") + 1].removeprefix("@")).read_text())
    else:
        assert address.startswith(f"http://127.0.0.1:{VENDOR_PORT}/_simulator/rooms/")


def test_every_command_is_of_a_program_that_is_checked() -> None:
    blocks = [block for path in DOCUMENTS for block in re.findall(r"```sh\n(.*?)```", path.read_text(), re.DOTALL)]
    lines = "\n".join(re.sub(r"<<'END'\n.*?\nEND", "", block, flags=re.DOTALL) for block in blocks)

    programs = {line.split()[0] for line in lines.replace("\\\n", " ").splitlines() if line.strip()}

    # Functions and variables of the shell are lines too; commands in them are read as text.
    assert {name for name in programs if not re.match(r"#|\w+\(\)|\w+=", name)} <= CHECKED | UNCHECKED


def test_there_are_commands_to_check() -> None:
    assert {name: len(commands(name)) for name in CHECKED if not commands(name)} == {}
    assert len(commands("aws")) > 15
    assert len(commands("make")) > 10


def test_what_documents_name_of_the_stack_is_there() -> None:
    text = "\n".join(path.read_text() for path in DOCUMENTS)

    outputs = TEMPLATE.outputs.keys()
    assert set(re.findall(r"<([A-Z]\w+)>|\$\((?:out|arn) (\w+)\)", text)) <= {
        pair for name in outputs for pair in ((name, ""), ("", name))
    }
    assert set(re.findall(r"--logical-resource-id (\w+)", text)) <= TEMPLATE.made.keys()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_a_document_has_one_word_for_one_thing_and_is_short(path: Path) -> None:
    text = path.read_text()

    assert re.findall(OTHER_WORDS, text, re.IGNORECASE) == []
    assert len(text.splitlines()) <= 200


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_a_file_and_a_heading(path: Path) -> None:
    for file, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", path.read_text()):
        linked = (path.parent / file) if file else path
        assert linked.exists(), file
        headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE) if linked.suffix == ".md" else []
        # As GitHub makes them.
        assert not anchor or anchor in {re.sub(r"[^\w -]", "", name.lower()).replace(" ", "-") for name in headings}


def test_the_table_tells_of_every_parameter() -> None:
    page = (REPOSITORY / "docs" / "deploying.md").read_text()
    table = page[page.index("| parameter |") : page.index("## From a pipeline")]

    assert set(re.findall(r"`([A-Z]\w+)`", table)) >= Template().transformed["Parameters"].keys()


def test_the_architecture_names_every_module() -> None:
    named = set(re.findall(r"`(\w+)`", (REPOSITORY / "docs" / "architecture.md").read_text()))

    modules = {path.stem for path in (REPOSITORY / "layers" / "stream_state" / "stream_state").rglob("*.py")}

    assert modules - {"__init__"} <= named


def test_the_architecture_names_every_attribute_of_the_table(world: World) -> None:
    # Given each kind of item: a record with an undelivered change, the end of a room, watches, a wait, lease, limiter
    target, now_ms = Target("app", "class-1", "teacher"), world.clock.now_ms()
    world.store.observe(target, {"join": Mark(now_ms, now_ms)})
    world.store.end_room(target.room, Mark(now_ms, now_ms))
    world.watch_list.add([target.room], 60)
    world.watch_list.joined(target, now_ms)
    world.watch_list.take_lease("token")
    world.wait_list.add(target, Wait("wait", "token", WaitCondition(None, True, 60, 60)), now_ms)  # noqa: FBT003
    limiter = RateLimiter(world.table, Settings.from_environment({"RTC_APP_IDS": "app", "TABLE_NAME": "states"}), "api")
    limiter.acquire(world.in_seconds(1))
    limiter.hold(1)
    # Then the table of the page has every attribute
    page = (REPOSITORY / "docs" / "architecture.md").read_text()
    named = set(re.findall(r"`(\w+)`", page[page.index("## The table") :]))
    items = [item for partition in world.dynamodb.client.items.values() for item in partition.values()]
    assert {name for item in items for name in item} <= named | {"app_id", "room_id", "user_id"}
    assert len(items) == 7
