"""Clients of AWS: what is no answer is taken for none."""

import io
from typing import Any

import pytest
from botocore.awsrequest import AWSResponse
from botocore.exceptions import BotoCoreError, ClientError

from stream_state import aws
from stream_state.aws import MalformedAnswer


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
    """What a call returns if this comes."""
    reply = AWSResponse("https://dynamodb", status, {}, Body(body))
    client.meta.events.register("before-send", lambda **_: reply)
    return client.get_item(TableName="states", Key={"pk": {"S": "a"}})


def test_an_answer_is_read(client: Any) -> None:
    assert answering(client, 200, b'{"Item": {"pk": {"S": "a"}}}')["Item"] == {"pk": {"S": "a"}}


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"Item": {', b"[]", b"null", b"\xff"])
def test_what_is_no_answer_is_not_read_as_an_empty_one(client: Any, body: bytes) -> None:
    with pytest.raises(MalformedAnswer) as raised:
        answering(client, 200, body)

    assert isinstance(raised.value, BotoCoreError)


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"__type": ["canary"]}'])
def test_an_error_that_says_nothing_is_one_of_its_status(client: Any, body: bytes) -> None:
    with pytest.raises(ClientError) as raised:
        answering(client, 502, body)

    assert raised.value.response["Error"]["Code"] == "502"


def test_an_error_keeps_its_code(client: Any) -> None:
    with pytest.raises(ClientError) as raised:
        answering(client, 400, b'{"__type": "com.amazonaws#AccessDeniedException"}')

    assert raised.value.response["Error"]["Code"] == "AccessDeniedException"
