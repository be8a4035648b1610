"""Neither the callback key nor a signature appears in a log, an answer, a message or the table."""

import json
from collections.abc import Callable, Mapping

import pytest

from tests.e2e.contents import table_items
from tests.e2e.http import Http
from tests.sandbox import signatures
from tests.sandbox.aws import failure
from tests.sandbox.signatures import signed
from tests.sandbox.simulator import APP_ID
from tests.sandbox.stack import Sandbox

KEY, OTHER_KEY = "CANARYcallback0123456789", "CANARYother0123456789"
EVENT = {"EventType": "UserAudioStreamStart", "AppId": APP_ID, "EventId": "1", "Version": "2020-12-01", "Nonce": "aaBc"}
DATA = {"RoomId": "class-1", "UserId": "teacher"}
type Push = Callable[..., int]


@pytest.fixture(scope="module")
def parameters() -> Mapping[str, str]:
    return {"EnableCallbacks": "true"}


@pytest.fixture(scope="module")
def environment() -> Mapping[str, str]:
    return {"POWERTOOLS_LOG_LEVEL": "DEBUG", "SECRET_MAX_AGE": "0"}


@pytest.fixture
def push(cold: Sandbox, callback_http: Http, monkeypatch: pytest.MonkeyPatch) -> Push:
    """Pushes an event signed with a key, and fails if key or signature can be seen anywhere; the status."""
    put_secret(cold, json.dumps({"callback_key": KEY, "previous_callback_key": OTHER_KEY + "0"}))

    def push(key: str = KEY, **changes: str) -> int:
        monkeypatch.setattr(signatures, "CALLBACK_KEY", key)
        sent = {**json.loads(signed({**EVENT, "EventData": json.dumps(DATA)})), **changes}
        reply = callback_http.post("/callbacks/rtc", sent)
        seen = f"{reply}{cold.logs}{cold.receive()}{table_items(cold)}"
        assert "CANARY" not in seen
        assert sent["Signature"] not in seen
        return reply.status

    return push


def put_secret(sandbox: Sandbox, text: str) -> None:
    secret_id = sandbox.outputs["CallbackKeySecretArn"]
    sandbox.client("secretsmanager").put_secret_value(SecretId=secret_id, SecretString=text)


def test_a_key_that_fits_is_not_shown(push: Push, cold: Sandbox) -> None:
    assert push() == 200

    assert [item["pk"]["S"] for item in table_items(cold)] == [f"state#{APP_ID}#class-1"]


def test_a_key_that_does_not_fit_is_not_shown(push: Push) -> None:
    assert [push(OTHER_KEY), push(Signature=KEY), push(AppId=KEY)] == [401, 401, 401]


@pytest.mark.parametrize("text", [f'{{"callback_key": "{KEY}"', KEY, json.dumps({"callback_key": f"{KEY} "})])
def test_a_malformed_secret_is_not_shown_and_keeps_no_event(push: Push, cold: Sandbox, text: str) -> None:
    put_secret(cold, text)

    assert push() == 503

    assert "CredentialsUnavailable" in cold.log("CallbackFunction")
    retry_queue = cold.functions.functions["CallbackFunction"].environment["CALLBACK_RETRY_QUEUE_URL"]
    assert "Messages" not in cold.client("sqs").receive_message(QueueUrl=retry_queue)


# An event that cannot be verified, or that neither the results queue nor the retry queue accepts, must come again.
@pytest.mark.parametrize(
    ("service", "status"), [("DynamoDB_20120810", 200), ("AmazonSQS", 503), ("secretsmanager", 503)]
)
def test_a_message_of_aws_is_not_shown(push: Push, cold: Sandbox, service: str, status: int) -> None:
    reply = failure("InternalFailure", 500, message=f"{KEY} {OTHER_KEY}")
    reading = ("AmazonSQS.ReceiveMessage", "AmazonSQS.DeleteMessage", "DynamoDB_20120810.Scan")
    cold.aws.intercept = lambda operation, call: (
        reply if operation.startswith(service) and operation not in reading else None
    )

    assert push() == status
