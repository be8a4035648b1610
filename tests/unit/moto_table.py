"""A table of the template's shape that moto holds in this process."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import boto3
from moto import mock_aws

from tests.unit.memory import ENVIRONMENT, TABLE

TYPES = {"pk": "S", "sk": "S", "undelivered": "S", "deliver_after": "N"}


def _keys(partition: str, sort: str) -> list[Any]:
    return [{"AttributeName": partition, "KeyType": "HASH"}, {"AttributeName": sort, "KeyType": "RANGE"}]


@contextmanager
def table_client(kind: str) -> Iterator[Any]:
    """A boto3 client of the table if the kind is moto, else None: the table in memory takes its place."""
    if kind != "moto":
        yield None
        return
    index = {"IndexName": "Undelivered", "Projection": {"ProjectionType": "KEYS_ONLY"}}
    with patch.dict("os.environ", ENVIRONMENT), mock_aws():
        client: Any = boto3.client("dynamodb")
        client.create_table(
            TableName=TABLE,
            KeySchema=_keys("pk", "sk"),
            AttributeDefinitions=[{"AttributeName": name, "AttributeType": type_} for name, type_ in TYPES.items()],
            GlobalSecondaryIndexes=[index | {"KeySchema": _keys("undelivered", "deliver_after")}],
            BillingMode="PAY_PER_REQUEST",
        )
        yield client
