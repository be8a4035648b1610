"""What `make deploy` says before it builds and asks."""

import subprocess

import pytest

from tests.commands.deployment import say_where
from tests.sandbox.aws import Aws
from tests.sandbox.functions import ACCOUNT_ID
from tests.sandbox.stack import REPOSITORY

REGION = "ap-southeast-1"


@pytest.fixture(autouse=True)
def shell(monkeypatch: pytest.MonkeyPatch, aws: Aws) -> pytest.MonkeyPatch:
    """A shell with credentials and a region, in which AWS is the one of the sandbox."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "sandbox")
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    monkeypatch.setenv("AWS_ENDPOINT_URL", aws.url)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("no_proxy", "*")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, "/dev/null")
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    return monkeypatch


@pytest.mark.parametrize(("stage", "stack"), [("dev", "stream-state-dev"), ("prod", "stream-state")])
def test_it_says_where_the_stack_goes(capsys: pytest.CaptureFixture[str], stage: str, stack: str) -> None:
    assert say_where(stage) == 0

    assert capsys.readouterr() == (
        f"Stack {stack} (stage {stage}) goes to account {ACCOUNT_ID}, region {REGION}.\n",
        "",
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None},
            "make deploy needs AWS credentials: Unable to locate credentials.",
        ),
        (
            {"AWS_PROFILE": "nobody"},
            "make deploy needs AWS credentials: The config profile (nobody) could not be found.",
        ),
        (
            {"AWS_DEFAULT_REGION": None},
            "make deploy needs a region: export AWS_DEFAULT_REGION=eu-central-1, or yours.",
        ),
    ],
)
def test_it_fails_in_one_sentence(
    shell: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], settings: dict[str, str | None], said: str
) -> None:
    for name, value in settings.items():
        if value is None:
            shell.delenv(name)
        else:
            shell.setenv(name, value)

    assert say_where("dev") == 1

    assert capsys.readouterr() == ("", said + "\n")


def test_make_deploy_refuses_a_stage_that_is_not_there_before_it_builds() -> None:
    done = subprocess.run(
        ["/usr/bin/env", "-u", "MAKEFLAGS", "-u", "MAKELEVEL", "make", "deploy", "STAGE=qa"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )

    first, *_ = done.stderr.splitlines()
    assert done.returncode != 0
    assert (done.stdout, first) == ("", "samconfig.toml has no stage 'qa': use STAGE=dev or STAGE=prod.")
