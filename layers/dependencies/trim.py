"""Removes from a folder of packages the files that the functions never read: `python trim.py FOLDER`.

botocore brings the descriptions of 400 services, with their documentation, and searches all of them for each client.
The services that the functions use stay, in all regions and partitions.
"""

import gzip
import json
import shutil
import sys
from pathlib import Path
from typing import Any

SERVICES = ("dynamodb", "secretsmanager", "sqs", "stepfunctions")
# Services whose endpoints have another name.
ENDPOINT_NAMES = ("states",)
# Of a service, the newest version: its operations, and how its endpoint follows from region, partition and settings.
# Left out: examples, paginators, waiters.
PARTS = ("service-2", "endpoint-rule-set-1")


def without_documentation(node: Any) -> Any:
    """The description without its texts for people; a field of a service that has the name of such a text stays."""
    if isinstance(node, dict):
        kept = {name: value for name, value in node.items() if name != "documentation" or not isinstance(value, str)}
        return {name: without_documentation(value) for name, value in kept.items()}
    return [without_documentation(value) for value in node] if isinstance(node, list) else node


def trim_botocore(data: Path) -> None:
    """Rewrite botocore's data, unpacked, so that no cold start has to unpack it."""
    endpoints = json.loads((data / "endpoints.json").read_bytes())
    for partition in endpoints["partitions"]:
        named = {name: entry for name, entry in partition["services"].items() if name in (*SERVICES, *ENDPOINT_NAMES)}
        partition["services"] = named
    kept = {"endpoints.json": endpoints}
    for service in SERVICES:
        newest = max(data.glob(f"{service}/*"))
        for file in (file for part in PARTS for file in newest.glob(f"{part}*.json*")):
            text = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
            kept[str(file.relative_to(data)).removesuffix(".gz")] = without_documentation(json.loads(text))
    for folder in filter(Path.is_dir, data.iterdir()):
        shutil.rmtree(folder)
    for name, content in kept.items():
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_text(json.dumps(content, separators=(",", ":")))


if __name__ == "__main__":
    packages = Path(sys.argv[1])
    trim_botocore(packages / "botocore" / "data")
    for folder in ("data", "examples"):
        # boto3 reads them for resources alone, and the functions use clients.
        shutil.rmtree(packages / "boto3" / folder)
