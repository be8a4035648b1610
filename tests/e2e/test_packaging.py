"""What `make deploy` uploads: the built stack, packaged by the SAM CLI into a bucket of the sandbox."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from samtranslator.yaml_helper import yaml_parse

from tests.sandbox.stack import REPOSITORY, Sandbox

BUCKET = "artifacts"
# Properties that name a file, by type of resource.
FILES = {
    "AWS::CloudFormation::Stack": "TemplateURL",
    "AWS::Serverless::Function": "CodeUri",
    "AWS::Serverless::LayerVersion": "ContentUri",
    "AWS::Serverless::StateMachine": "DefinitionUri",
}


def packaged(sandbox: Sandbox, directory: Path) -> dict[str, Any]:
    """The resources of the packaged template, whose files lie in the bucket."""
    command: list[str | Path] = [Path(sys.executable).with_name("sam"), "package", "--s3-bucket", BUCKET]
    command += ["--template-file", REPOSITORY / ".aws-sam/build/template.yaml"]
    command += ["--output-template-file", directory / "packaged.yaml"]
    environment = {
        "PATH": os.defpath,
        "HOME": str(directory),
        "AWS_ENDPOINT_URL": sandbox.aws.url,
        "AWS_ACCESS_KEY_ID": "sandbox",
        "AWS_SECRET_ACCESS_KEY": "sandbox",
        "AWS_DEFAULT_REGION": sandbox.aws.region,
        "NO_PROXY": "127.0.0.1",
        "SAM_CLI_TELEMETRY": "0",
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    resources: dict[str, Any] = yaml_parse((directory / "packaged.yaml").read_text())["Resources"]
    return resources


def test_every_part_of_the_built_stack_is_uploaded_alarms_and_dashboard_with_it(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    bucket = sandbox.client("s3")
    bucket.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": sandbox.aws.region})

    resources = packaged(sandbox, tmp_path)

    named = {name: of["Properties"][FILES[of["Type"]]] for name, of in resources.items() if of["Type"] in FILES}
    keys = {name: of["Key"] if isinstance(of, dict) else of.rpartition("/")[2] for name, of in named.items()}
    assert {resources[name]["Type"] for name in named} == FILES.keys()
    # Each part has a file of its own.
    assert len({*keys.values()}) == len(named)
    assert {of["Key"] for of in bucket.list_objects_v2(Bucket=BUCKET)["Contents"]} >= {*keys.values()}
    nested = bucket.get_object(Bucket=BUCKET, Key=keys["Observability"])["Body"].read().decode()
    # The build names each resource in its metadata too.
    made = {name: of["Properties"] for name, of in yaml_parse(nested)["Resources"].items()}
    written = yaml_parse((REPOSITORY / "observability.yaml").read_text())["Resources"]
    assert made == {name: of["Properties"] for name, of in written.items()}
    # CloudFormation takes a template of at most a megabyte.
    assert len(nested.encode()) < 1_000_000
