"""Clients of AWS: a body that is not an answer is an error, and an error has one code."""

import io
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest.mock import MagicMock

import pytest
from botocore.awsrequest import AWSResponse
from botocore.compat import HTTPHeaders
from botocore.exceptions import BotoCoreError, ClientError, ReadTimeoutError

from stream_state.adapters import aws
from tests.unit.fakes import aws_error


class Body(io.BytesIO):
    """A body as urllib3 gives it."""

    def stream(self, **_: Any) -> Any:
        yield self.read()


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client that tries once."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, "eu-central-1")
    return aws.client("dynamodb", retries={"total_max_attempts": 1})


def answering(client: Any, status: int, body: bytes) -> Any:
    """Result of a call that gets this response."""
    reply = AWSResponse("https://dynamodb", status, HTTPHeaders(), Body(body))
    client.meta.events.register("before-send", lambda **_: reply)
    return client.get_item(TableName="states", Key={"pk": {"S": "a"}})


def test_an_answer_is_read(client: Any) -> None:
    assert answering(client, 200, b'{"Item": {"pk": {"S": "a"}}}')["Item"] == {"pk": {"S": "a"}}


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"Item": {', b"[]", b"null", b"\xff"])
def test_a_body_that_is_not_an_answer_is_not_read_as_an_empty_one(client: Any, body: bytes) -> None:
    with pytest.raises(BotoCoreError) as raised:
        answering(client, 200, body)

    assert aws.error_code(raised.value) == "MalformedAnswer"


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (502, b"", "502"),
        (502, b"<html>", "502"),
        (502, b"[]", "502"),
        (502, b'{"__type": ["canary"]}', "502"),
        (400, b'{"__type": "com.amazonaws#AccessDeniedException"}', "AccessDeniedException"),
    ],
)
def test_an_error_has_the_code_of_its_body_or_else_its_status(client: Any, status: int, body: bytes, code: str) -> None:
    with pytest.raises(ClientError) as raised:
        answering(client, status, body)

    assert aws.error_code(raised.value) == code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (aws_error("AccessDenied"), "AccessDenied"),
        (aws_error(""), "ClientError"),
        (ClientError({}, "GetItem"), "ClientError"),
        (ReadTimeoutError(endpoint_url="https://canary"), "ReadTimeoutError"),
    ],
    ids=["a code", "an empty code", "no code", "no answer"],
)
def test_the_code_of_an_error_without_one_is_its_name(error: Exception, code: str) -> None:
    assert aws.error_code(error) == code


def test_a_client_on_demand_is_made_once_for_all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a client that takes a while to make
    made: list[str] = []

    def make(service: str, **options: Any) -> Any:
        time.sleep(0.05)
        made.append(f"{service} {options['config'].read_timeout}")
        return MagicMock()

    monkeypatch.setattr("boto3.client", make)
    client = aws.client_on_demand("sqs", read_timeout=7)
    assert made == []
    # When many threads ask for it at once, then they share one
    with ThreadPoolExecutor(8) as pool:
        clients = list(pool.map(lambda _: client(), range(8)))
    assert made == ["sqs 7"]
    assert all(each is clients[0] for each in clients)
