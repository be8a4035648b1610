"""The items in the table of a sandbox."""

from itertools import batched
from typing import Any

from tests.sandbox.stack import Sandbox


def table_items(sandbox: Sandbox) -> list[dict[str, Any]]:
    """Every item of the table."""
    pages = sandbox.client("dynamodb").get_paginator("scan").paginate(TableName=sandbox.outputs["StateTableName"])
    return [item for page in pages for item in page["Items"]]


def empty_table(sandbox: Sandbox) -> None:
    """Delete every item."""
    dynamodb, name = sandbox.client("dynamodb"), sandbox.outputs["StateTableName"]
    for batch in batched(table_items(sandbox), 25, strict=False):
        requests = [{"DeleteRequest": {"Key": {key: item[key] for key in ("pk", "sk")}}} for item in batch]
        dynamodb.batch_write_item(RequestItems={name: requests})
