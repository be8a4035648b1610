"""Before `make deploy` builds and asks: the stage must be there, and AWS must accept the credentials."""

import argparse
import sys
import tomllib
from pathlib import Path

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

SETTINGS = Path(__file__).parents[2] / "samconfig.toml"
BRIEFLY = Config(connect_timeout=5, read_timeout=5, retries={"total_max_attempts": 2})


def say_where(stage: str) -> int:
    """Say which stack goes to which account and region; the exit code."""
    settings = tomllib.loads(SETTINGS.read_text())
    stages = [name for name, section in settings.items() if isinstance(section, dict)]
    if stage not in stages:
        print(f"samconfig.toml has no stage {stage!r}: use STAGE={' or STAGE='.join(stages)}.", file=sys.stderr)
        return 1
    given = settings[stage]["deploy"]["parameters"]
    try:
        session = boto3.Session(profile_name=given.get("profile"), region_name=given.get("region"))
        if not session.region_name:
            print("make deploy needs a region: export AWS_DEFAULT_REGION=eu-central-1, or yours.", file=sys.stderr)
            return 1
        account = session.client("sts", config=BRIEFLY).get_caller_identity()["Account"]
    except (BotoCoreError, ClientError) as error:
        print(f"make deploy needs AWS credentials: {str(error).rstrip('.')}.", file=sys.stderr)
        return 1
    print(f"Stack {given['stack_name']} (stage {stage}) goes to account {account}, region {session.region_name}.")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.commands.deployment", description=__doc__)
    parser.add_argument("stage")
    sys.exit(say_where(parser.parse_args().stage))
