"""The commands of pages of docs, carried out by a shell with the AWS CLI against the sandbox."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.sandbox.stack import REPOSITORY, Sandbox

# Version 1 takes other addresses for SQS than the environment names; the option wins in both versions.
AWS = 'aws() { command aws --endpoint-url "$AWS_ENDPOINT_URL" "$@"; }\n'


def cli() -> Path:
    """The AWS CLI on the PATH, if it works: the name may be a shim without one. Else the CLI of the project."""
    for folder in os.environ["PATH"].split(os.pathsep):
        found = shutil.which("aws", path=folder)
        if found and subprocess.run([found, "--version"], capture_output=True, check=False).returncode == 0:
            return Path(found)
    return Path(sys.executable).with_name("aws")


CLI = cli()


def blocks_of(name: str) -> list[str]:
    """The blocks of commands of a page."""
    return re.findall(r"```sh\n(.*?)```", (REPOSITORY / name).read_text(), re.DOTALL)


def within_lines(name: str) -> list[str]:
    """The commands of the AWS CLI that stand within the lines of a page."""
    text = re.sub(r"```.*?```", "", (REPOSITORY / name).read_text(), flags=re.DOTALL)
    return [line.replace("\n", " ") for line in re.findall(r"`(aws [^`]+)`", text)]


class Page:
    """A page of docs whose commands a shell carries out, one block after another."""

    def __init__(self, name: str, sandbox: Sandbox, directory: Path) -> None:
        self.first, *self.blocks = blocks_of(f"docs/{name}")
        self._directory = directory
        self._environment = {
            "PATH": f"{CLI.parent}:{os.defpath}",
            "HOME": str(directory),
            "AWS_ENDPOINT_URL": sandbox.aws.url,
            "AWS_ACCESS_KEY_ID": "sandbox",
            "AWS_SECRET_ACCESS_KEY": "sandbox",
            "AWS_PAGER": "",
            "NO_PROXY": "127.0.0.1",
        }

    def type(self, text: str, given: str = "", **placeholders: str) -> str:
        """Type the block that holds a text, with placeholders filled in; its output. Every command succeeds."""
        (block,) = (block for block in self.blocks if text in block)
        for name, value in placeholders.items():
            assert f"<{name.replace('_', ' ')}>" in block
            block = block.replace(f"<{name.replace('_', ' ')}>", value)
        return self.carry_out(block, given)

    def carry_out(self, commands: str, given: str = "") -> str:
        """What commands print, typed after the first block of the page. Every command succeeds."""
        assert not re.search(r"<[a-zA-Z ]+>", commands)
        done = subprocess.run(
            ["/bin/bash", "-euo", "pipefail", "-c", AWS + self.first + commands],
            cwd=self._directory,
            env=self._environment,
            input=given,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        return done.stdout
