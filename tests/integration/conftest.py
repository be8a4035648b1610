"""The package in this process, against moto over HTTP and the simulator, without Lambda."""

import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import boto3
import pytest

from stream_state.lookup import Lookup
from stream_state.model import Target
from stream_state.queue import ResultsQueue
from stream_state.rtc import RtcClient
from stream_state.settings import Settings
from stream_state.signing import SigningKeys
from stream_state.sweep import Sweep
from stream_state.table import StateTable
from stream_state.telling import Teller
from stream_state.watch_list import WatchList
from tests.integration.consumer import Consumer
from tests.sandbox.aws import Aws
from tests.sandbox.server import Response
from tests.sandbox.simulator import APP_ID, KEYS, Simulator
from tests.sandbox.static_keys import StaticKeys
from tests.unit.fakes import FreeLimiter

REGION = "eu-central-1"
# The vendor's names of the media, and ours.
MEDIA = {"Audio": "audio", "Video": "video", "ScreenAudio": "screen_audio", "ScreenVideo": "screen_video"}
TABLE: dict[str, Any] = {
    "AttributeDefinitions": [{"AttributeName": name, "AttributeType": "S"} for name in ("pk", "sk")],
    "KeySchema": [{"AttributeName": "pk", "KeyType": "HASH"}, {"AttributeName": "sk", "KeyType": "RANGE"}],
    "BillingMode": "PAY_PER_REQUEST",
}


@dataclass
class Stack:
    """One table, one queue and one room, and the package's parts that work on them."""

    aws: Aws
    simulator: Simulator
    environment: dict[str, str]
    settings: Settings = field(init=False)
    consumer: Consumer = field(default_factory=Consumer)

    def __post_init__(self) -> None:
        self.settings = Settings.from_environment(self.environment)

    def table(self) -> StateTable:
        return StateTable.from_settings(self.settings)

    def watch_list(self) -> WatchList:
        return WatchList(self.table())

    def lookup(self) -> Lookup:
        keys = StaticKeys(SigningKeys(KEYS.access_key_id, KEYS.secret_access_key))
        return Lookup(RtcClient(self.settings, keys, FreeLimiter(), sleep=self.skip), self.table())

    def teller(self) -> Teller:
        queue = ResultsQueue.from_settings(self.settings)
        queue._sleep = self.skip
        return Teller(queue, self.table())

    def skip(self, seconds: float) -> None:
        """Stands in for the pause between two tries."""

    def sweep(self) -> Sweep:
        return Sweep(self.lookup(), self.teller(), self.table())

    def consume(self) -> list[dict[str, Any]]:
        """Let the consumer take all messages that are there; those it was given."""
        sqs = self.aws.client("sqs")
        taken: list[dict[str, Any]] = []
        while batch := sqs.receive_message(QueueUrl=self.settings.results_queue_url, MaxNumberOfMessages=10).get(
            "Messages"
        ):
            for message in batch:
                taken.append(self.consumer.take(message["Body"]))
                sqs.delete_message(QueueUrl=self.settings.results_queue_url, ReceiptHandle=message["ReceiptHandle"])
        return taken

    def truth(self, target: Target) -> dict[str, bool] | None:
        """What the target publishes in fact; None if it is not in the room."""
        users = self.simulator._rooms.get((target.app_id, target.room_id), {})
        if target.user_id not in users:
            return None
        return {name: vendor in users[target.user_id] for vendor, name in MEDIA.items()}

    def let_lease_end(self) -> None:
        """As if the minute had passed for which a sweep that died holds the lease."""
        self.aws.client("dynamodb").update_item(
            TableName=self.settings.table_name,
            Key={"pk": {"S": "sweep"}, "sk": {"S": "lease"}},
            UpdateExpression="SET held_until = :past",
            ExpressionAttributeValues={":past": {"N": "0"}},
        )


class _OneAtATime:
    """Moto reads and writes an item in two steps; DynamoDB's conditional writes are atomic."""

    def __init__(self, application: Callable[..., Any]) -> None:
        self._application = application
        self._lock = threading.Lock()

    def __call__(self, *arguments: Any) -> Any:
        with self._lock:
            return self._application(*arguments)


class _Closing:
    """An interceptor that raises ConnectionResetError ends the connection: the server would leave it open."""

    def __init__(self, application: Callable[..., Any]) -> None:
        self._application = application

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        try:
            return self._application(environ, start_response)
        except ConnectionResetError:
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise


@pytest.fixture(scope="module")
def aws() -> Iterator[Aws]:
    running = Aws(REGION, lambda request: Response(404))
    running._moto = _OneAtATime(running._moto)  # type: ignore[assignment]  # called in the same way
    running._server.app = _Closing(running._server.app)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(boto3, "DEFAULT_SESSION", None)
        for name, value in {
            "AWS_ENDPOINT_URL": running.url,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_REGION": REGION,
            "AWS_ACCESS_KEY_ID": "sandbox",
            "AWS_SECRET_ACCESS_KEY": "sandbox",
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": "127.0.0.1",
        }.items():
            patch.setenv(name, value)
        try:
            yield running
        finally:
            running.stop()


@pytest.fixture
def stack(aws: Aws) -> Iterator[Stack]:
    """A table and a queue of the test's own, and a simulator without a limit."""
    name = f"stack-{uuid4().hex[:8]}"
    aws.intercept = lambda operation, call: None
    with Simulator() as simulator:
        simulator.calls_per_second = None
        environment = {
            "RTC_APP_IDS": APP_ID,
            "RTC_ENDPOINT": simulator.url,
            "TABLE_NAME": aws.create(name, "table", "AWS::DynamoDB::Table", TABLE)["Ref"],
            "RESULTS_QUEUE_URL": aws.create(name, "queue", "AWS::SQS::Queue", {})["Ref"],
        }
        yield Stack(aws, simulator, environment)
        aws.intercept = lambda operation, call: None
