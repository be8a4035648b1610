"""The settings of `make deploy`: what they give the stack, and how a parameter is emptied."""

import subprocess
import tomllib
from typing import Any

import pytest
from samcli.cli.types import CfnParameterOverridesType
from samcli.commands.deploy.deploy_context import DeployContext

from tests.unit.transformed import REPOSITORY, Template

SETTINGS = tomllib.loads((REPOSITORY / "samconfig.toml").read_text())


def overrides(text: str) -> dict[str, str]:
    """Parameters as the SAM CLI reads them."""
    found: dict[str, str] = CfnParameterOverridesType().convert(text, None, None)
    return found


@pytest.mark.parametrize(("stage", "protected"), [("dev", "false"), ("prod", "true")])
def test_a_stage_names_parameters_of_the_template(stage: str, protected: str) -> None:
    settings = SETTINGS[stage]["deploy"]["parameters"]
    template = Template(**overrides(settings["parameter_overrides"]))

    assert overrides(settings["parameter_overrides"]).keys() <= template.transformed["Parameters"].keys()
    assert template.made["StateTable"]["Properties"]["DeletionProtectionEnabled"] == protected
    # The nested stack, and the roles.
    assert settings["capabilities"] == "CAPABILITY_IAM CAPABILITY_AUTO_EXPAND"
    assert f"stage={stage}" in settings["tags"]


def test_the_rates_of_both_stages_add_up_to_less_than_the_vendor_allows_and_the_readmes_say_them() -> None:
    given = [overrides(SETTINGS[stage]["deploy"]["parameters"]["parameter_overrides"]) for stage in ("dev", "prod")]

    assert sum(int(parameters["RtcQps"]) for parameters in given) <= 50
    for readme in ("README.md", "README.zh-CN.md"):
        text = (REPOSITORY / readme).read_text()
        assert all(f"`RtcQps={parameters['RtcQps']}`" in text for parameters in given)


def test_a_parameter_is_emptied_as_documented_and_another_keeps_its_value() -> None:
    (line,) = (line for line in (REPOSITORY / "docs" / "deploying.md").read_text().splitlines() if '=\\"\\"' in line)
    given = overrides(tomllib.loads(line)["parameter_overrides"])

    sent: list[dict[str, Any]] = DeployContext.merge_parameters(Template().transformed, given)

    values = {entry["ParameterKey"]: entry.get("ParameterValue") for entry in sent}
    assert values["SweepScheduleExpression"] == ""
    assert {"ParameterKey": "KmsKeyArn", "UsePreviousValue": True} in sent


@pytest.mark.parametrize(
    ("guided", "given", "left_out"),
    [("1", "--guided", "--no-confirm-changeset"), ("0", "--no-confirm-changeset", "--guided")],
)
def test_a_pipeline_is_asked_nothing(guided: str, given: str, left_out: str) -> None:
    command = ["/usr/bin/make", "--dry-run", "deploy", "STAGE=prod", f"GUIDED={guided}"]
    shown = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout

    (line,) = (line for line in shown.splitlines() if "sam deploy" in line)
    assert f"--config-env prod {given}" in line
    assert left_out not in line
