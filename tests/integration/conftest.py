"""The package in this process, against moto over HTTP and the simulator, without Lambda."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import boto3
import pytest

from stream_state.adapters.signing import SigningKeys
from stream_state.adapters.state_store import StateStore
from stream_state.adapters.table import Table
from stream_state.adapters.volcengine import VolcengineClient
from stream_state.adapters.watch_list import WatchList
from stream_state.clock import CLOCK
from stream_state.domain.requests import SweepRequest, TaskRequest
from stream_state.domain.targets import Target
from stream_state.services.callbacks import Callbacks
from stream_state.services.delivery import Delivery
from stream_state.services.lookup import Lookup
from stream_state.services.recording import Recorder
from stream_state.services.sweep import Sweep
from stream_state.services.waits import begin_round
from stream_state.settings import Settings
from tests.integration.consumer import Consumer
from tests.sandbox.aws import Aws
from tests.sandbox.server import Response
from tests.sandbox.signatures import KEYS
from tests.sandbox.simulator import APP_ID, MEDIA, Simulator
from tests.unit import callback_world
from tests.unit.fakes import FreeLimiter
from tests.vendor.static_keys import StaticKeys

REGION = "eu-central-1"
TYPES = {"pk": "S", "sk": "S", "undelivered": "S", "deliver_after": "N"}
TABLE_KEYS, INDEX_KEYS = (
    [{"AttributeName": name, "KeyType": kind} for name, kind in zip(names, ("HASH", "RANGE"), strict=True)]
    for names in (("pk", "sk"), ("undelivered", "deliver_after"))
)
INDEX = {"IndexName": "Undelivered", "KeySchema": INDEX_KEYS, "Projection": {"ProjectionType": "KEYS_ONLY"}}
TABLE: dict[str, Any] = {
    "AttributeDefinitions": [{"AttributeName": name, "AttributeType": kind} for name, kind in TYPES.items()],
    "KeySchema": TABLE_KEYS,
    "GlobalSecondaryIndexes": [INDEX],
    "BillingMode": "PAY_PER_REQUEST",
}


@dataclass
class Stack:
    """One table, one queue and one room, and the package's parts that work on them."""

    aws: Aws
    simulator: Simulator
    environment: dict[str, str]
    consumer: Consumer = field(default_factory=Consumer)
    # How far the package's clock is ahead of the machine's.
    ahead_seconds: float = 0

    @property
    def settings(self) -> Settings:
        return Settings.from_environment(self.environment)

    def store(self, *, delivers: bool = True) -> StateStore:
        return StateStore.from_settings(self.settings, Table.from_settings(self.settings), delivers=delivers)

    def watch_list(self) -> WatchList:
        return WatchList(Table.from_settings(self.settings))

    def lookup(self, store: StateStore) -> Lookup:
        keys = StaticKeys(SigningKeys(KEYS.access_key_id, KEYS.secret_access_key))
        rtc = VolcengineClient(self.settings, keys, lambda _: FreeLimiter())
        return Lookup(rtc, Recorder.from_settings(self.settings, store))

    def delivery(self, store: StateStore) -> Delivery:
        return Delivery.from_settings(self.settings, Recorder.from_settings(self.settings, store))

    def sweep(self) -> Sweep:
        store = self.store()
        return Sweep(self.lookup(store), self.delivery(store), self.watch_list())

    def run_sweep(self, *given: Target) -> dict[str, Any]:
        """Sweep given targets, or the watched ones, with a minute's time."""
        return self.sweep().run(SweepRequest(given or None, emits_all=False), soon(), soon())

    def receive_event(self, text: str) -> None:
        """Receive a callback event, in an instance of its own."""
        receive(Callbacks.from_settings(self.settings), text)

    def begin_round(self, event: object) -> None:
        """Begin a round of a workflow that waits, in an instance of its own."""
        store, request = self.store(), TaskRequest.parse(event, self.settings.rtc_app_ids)
        (target,) = request.targets
        assert isinstance(target, Target)
        assert request.wait
        begin_round(self.lookup(store), target, request.wait, soon())

    def consume(self) -> list[dict[str, Any]]:
        """Let the consumer take all messages that are there."""
        sqs, messages = self.aws.client("sqs"), []
        queue = {"QueueUrl": self.settings.results_queue_url}
        while batch := sqs.receive_message(**queue, MaxNumberOfMessages=10).get("Messages"):
            for message in batch:
                messages.append(self.consumer.take(message["Body"]))
                sqs.delete_message(**queue, ReceiptHandle=message["ReceiptHandle"])
        return messages

    def assert_consumer_has_the_records(self, targets: list[Target]) -> None:
        """The last message about each target says the same as its record, and all changes are marked as delivered."""
        for target, record in self.store().read(targets).items():
            kept = self.consumer.kept[target.room_id, target.user_id]
            assert {**kept["media"], "present": kept["present"]} == record.state.values
            assert not record.is_undelivered

    def assert_consumer_has_the_truth(self, targets: list[Target]) -> None:
        """The last message about each target says what the room holds."""
        for target in targets:
            kept = self.consumer.kept[target.room_id, target.user_id]
            users = self.simulator.rooms.get((target.app_id, target.room_id), {})
            assert (kept["present"] is False) is (target.user_id not in users)
            if target.user_id in users:
                assert kept["media"] == {name: vendor in users[target.user_id].media for vendor, name in MEDIA.items()}
            else:
                assert True not in kept["media"].values()


def soon() -> float:
    """A deadline."""
    return time.monotonic() + 60


def receive(callbacks: Callbacks, text: str) -> None:
    """Receive a callback event that arrives now."""
    callbacks.receive(callbacks.verified(text, CLOCK.now_ms()), soon())


@pytest.fixture(scope="module")
def aws() -> Iterator[Aws]:
    running = Aws(REGION, lambda request: Response(404))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(boto3, "DEFAULT_SESSION", None)
        keys = {"AWS_ACCESS_KEY_ID": "sandbox", "AWS_SECRET_ACCESS_KEY": "sandbox", "AWS_EC2_METADATA_DISABLED": "true"}
        place = {"AWS_ENDPOINT_URL": running.url, "AWS_DEFAULT_REGION": REGION, "AWS_REGION": REGION}
        for name, value in {**keys, **place, "NO_PROXY": "127.0.0.1"}.items():
            patch.setenv(name, value)
        try:
            yield running
        finally:
            running.stop()


@pytest.fixture
def stack(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    """Table, queue and secrets of the test's own, a simulator without limits, and a clock that a test moves on."""
    name = f"stack-{uuid4().hex[:8]}"
    make_secret = aws.client("secretsmanager").create_secret
    keys, callback_key = json.dumps(vars(KEYS)), json.dumps({"callback_key": callback_world.KEY})
    with Simulator() as simulator:
        simulator.calls_per_second = None
        environment = {
            "RTC_APP_IDS": APP_ID,
            "RTC_ENDPOINT": simulator.url,
            "RTC_SECRET_ID": make_secret(Name=f"{name}-keys", SecretString=keys)["ARN"],
            "RTC_CALLBACK_SECRET_ID": make_secret(Name=f"{name}-callback-key", SecretString=callback_key)["ARN"],
            "TABLE_NAME": aws.create(name, "table", "AWS::DynamoDB::Table", TABLE)["Ref"],
            "RESULTS_QUEUE_URL": aws.create(name, "queue", "AWS::SQS::Queue", {})["Ref"],
        }
        stack = Stack(aws, simulator, environment)
        monkeypatch.setattr("tests.sandbox.simulator.CLOCK_WINDOW_SECONDS", 86_400)
        monkeypatch.setattr(CLOCK, "now", lambda: time.time() + stack.ahead_seconds)
        monkeypatch.setattr(CLOCK, "sleep", lambda seconds: time.sleep(min(seconds, 0.01)))
        yield stack
        aws.intercept = lambda operation, call: None
