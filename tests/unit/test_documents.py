"""The documents: AWS CLI lines name what AWS knows, placeholders are outputs of the stack, links lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest
from botocore import xform_name
from botocore.session import Session

from tests.unit.transformed import REPOSITORY, Template

DOCUMENTS = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md")])
# Commands that the CLI has itself, beside those of AWS's services, and options that all commands have.
OWN_COMMANDS = {("configure", "export-credentials")}
OWN_OPTIONS = {"output", "query"}


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

    given = {word.removeprefix("--") for word in rest if word.startswith("--")}

    assert given - OWN_OPTIONS <= {xform_name(name, "-") for name in members}
    assert {xform_name(name, "-") for name in required} <= given


@pytest.mark.parametrize(("document", "line"), commands("make"))
def test_a_target_of_make_is_one(document: str, line: str) -> None:
    targets = set(re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))

    assert line.split()[1] in targets


def test_there_are_commands_to_check() -> None:
    assert len(commands("aws")) > 15
    assert len(commands("make")) > 10


def test_what_documents_name_of_the_stack_is_there() -> None:
    template = Template(EnableCallbacks="true")
    text = "\n".join(path.read_text() for path in DOCUMENTS)

    given = {"DomainName": "a.example.com", "CallbackDomainName": "b.example.com", "CertificateArn": "arn"}
    outputs = Template(EnableCallbacks="true", **given).outputs.keys()
    assert set(re.findall(r"<([A-Z]\w+)>|\$\((?:out|arn) (\w+)\)", text)) <= {
        pair for name in outputs for pair in ((name, ""), ("", name))
    }
    assert set(re.findall(r"--logical-resource-id (\w+)", text)) <= template.made.keys()


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
