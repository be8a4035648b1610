"""The callback function: requests, the batches of the retry queue, and failures of everything around it."""

import base64
import io
import json
import random
import threading
from collections import Counter
from collections.abc import Callable
from itertools import repeat
from typing import Any

import pytest

from stream_state.adapters import api_gateway, aws
from stream_state.adapters.queues import RetryQueue
from stream_state.domain.targets import Target
from stream_state.errors import InvalidRequest, RtcUnavailable
from stream_state.services.delivery import Delivery
from stream_state.services.recording import Recorder
from stream_state.settings import Settings
from tests.unit import callback_world as sent
from tests.unit.callback_world import AUDIO, JOIN, KEY, LEAVE, ROOM_END, TEACHER, VIDEO, Receiver, counted, signed
from tests.unit.contract import PROBLEM, Contract
from tests.unit.fakes import Script, aws_error
from tests.unit.memory import APP_ID, ENVIRONMENT, Context, World, media, samples, targets

DOWN = aws_error("InternalServerError")
RETRY, DEAD = "https://sqs.example/123456789012/retry", "https://sqs.example/123456789012/dead"


class RetrySqs:
    """SQS with the retry queue and its dead-letter queue, which take every message while SQS works."""

    def __init__(self) -> None:
        self.waiting: list[dict[str, Any]] = []
        self.dead: list[dict[str, Any]] = []
        self.works = True

    def send_message(self, *, QueueUrl: str, MessageBody: str, **more: Any) -> None:  # noqa: N803 (as boto3 names them)
        """As boto3 names it."""
        if not self.works:
            raise DOWN
        queue = {RETRY: self.waiting, DEAD: self.dead}[QueueUrl]
        given = {
            name: {"stringValue": value["StringValue"]} for name, value in more.get("MessageAttributes", {}).items()
        }
        queue.append(record(f"message-{len(queue)}", MessageBody, messageAttributes=given))


def record(message_id: str, body: Any = "{}", *, receive_count: int = 1, **more: Any) -> dict[str, Any]:
    """A message as an event source mapping hands it on; `more` replaces fields."""
    times = {"SentTimestamp": "1795403040000", "ApproximateReceiveCount": str(receive_count)}
    return {"messageId": message_id, "eventSource": "aws:sqs", "body": body, "attributes": times, **more}


class Endpoint:
    """The function on a world in memory."""

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("RTC_CALLBACK_SECRET_ID", "CALLBACK_RETRY_QUEUE_URL"):
            monkeypatch.setenv(name, RETRY)
        self.world, self.sqs = world, RetrySqs()
        client: Any = self.sqs
        retry_queue = RetryQueue(lambda: client, RETRY, DEAD)
        world.recorder = Recorder(world.store, retry_queue)
        world.delivery = Delivery(world.queue, world.recorder)
        self.receiver = Receiver(world)
        self.module = world.function("callback", monkeypatch)
        monkeypatch.setattr(self.module, "callbacks", self.receiver.callbacks)
        monkeypatch.setattr(self.module, "retry_queue", retry_queue)
        monkeypatch.setattr(self.module, "lookup", lambda: world.lookup)
        monkeypatch.setattr(self.module, "CLOCK", world.clock)
        monkeypatch.setattr(api_gateway, "CLOCK", world.clock)
        self.request = samples("callback")["callback/stream-start-http-api"]

    def post(self, body: str | bytes, content_type: str | None = "application/json", **more: Any) -> tuple[int, Any]:
        """Status and document of the answer to a request; without a content type there is no such header."""
        context = {**self.request["requestContext"], "timeEpoch": self.receiver.now_ms}
        headers = {} if content_type is None else {"content-type": content_type}
        if isinstance(body, bytes):
            more = {"isBase64Encoded": True, **more}
            body = base64.b64encode(body).decode()
        answer = self.invoke({**self.request, "requestContext": context, "headers": headers, "body": body, **more})
        return answer["statusCode"], json.loads(answer["body"])

    def invoke(self, event: Any) -> Any:
        """The handler's answer."""
        return self.module.lambda_handler(event, Context())

    def failures(self, *records: Any) -> list[str]:
        """The ids of the messages of a batch that must come again."""
        return [failure["itemIdentifier"] for failure in self.invoke({"Records": list(records)})["batchItemFailures"]]

    def drain(self) -> list[str]:
        """Hand the function all that waits in the retry queue, ten at a time; the failures that it reported."""
        failed = []
        while self.sqs.waiting:
            batch, self.sqs.waiting[:] = self.sqs.waiting[:10], self.sqs.waiting[10:]
            failed += self.failures(*batch)
        return failed

    def now(self, kind: str = AUDIO, **more: Any) -> str:
        """The body of an event that happens now."""
        return signed(kind, self.receiver.now_ms, **more)

    def fail_table(self, *, fails: bool = True) -> None:
        """Let each request to DynamoDB fail, or none."""
        names = ("get_item", "put_item", "update_item", "query")
        self.world.dynamodb.effects = {name: repeat(DOWN) for name in names} if fails else {}

    def audio(self, user_id: str = "teacher") -> bool | None:
        """Whether a user's audio is on."""
        return (self.world.values(Target(APP_ID, "class-1", user_id)) or {}).get("audio")


@pytest.fixture
def endpoint(world: World, monkeypatch: pytest.MonkeyPatch) -> Endpoint:
    return Endpoint(world, monkeypatch)


def forged(endpoint: Endpoint) -> str:
    """An event whose signature fits no key."""
    return endpoint.now(key="another key")


# Requests


def test_every_sample_event_is_received(endpoint: Endpoint, world: World) -> None:
    answers = {name: endpoint.invoke(event) for name, event in samples("callback").items()}

    assert answers.pop("callback/retry-queue") == {"batchItemFailures": []}
    assert [answer["statusCode"] for answer in answers.values()] == [200, 200]
    assert all(answer["headers"]["Cache-Control"] == "no-store" for answer in answers.values())
    # The queue's start, and 410 ms later a leave that may be of an earlier connection; then a repeat, and a stop.
    values = [(message["media"]["video"], message["present"]) for message in world.queue.messages]
    assert values == [(True, True), (None, None), (False, None)]


RECORDS: list[Any] = [None, {}, [None], ["x"], [{}], [{"messageId": 7}], [{"messageId": "x", "eventSource": "aws:s3"}]]


@pytest.mark.parametrize(
    "event",
    [
        *(None, {}, [], [{}], 0, 1.5, "{}", True, {"requestContext": {}}, {"version": "2.0", "body": "{}"}),
        *({"Records": records} for records in RECORDS),
        *samples("sweep", "task").values(),
    ],
)
def test_any_other_event_is_an_invalid_request(endpoint: Endpoint, world: World, event: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"must be a request of API Gateway"):
        endpoint.invoke(event)
    assert world.is_untouched


REQUESTS = {name: event for name, event in samples("api", "callback").items() if "Records" not in event}


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_without_a_callback_event_is_a_problem(
    endpoint: Endpoint, world: World, conforms: Callable[[str, Any], None], name: str
) -> None:
    answer = endpoint.invoke({**REQUESTS[name], "body": "{}"})

    problem = json.loads(answer["body"])
    conforms("problem", problem)
    assert (answer["statusCode"], problem["error"], world.is_untouched) == (400, "InvalidRequest", True)
    assert problem["request_id"] == REQUESTS[name]["requestContext"]["requestId"]
    assert answer["headers"]["Content-Type"] == PROBLEM


def test_each_refusal_is_a_documented_problem_counted_by_its_reason_and_keeps_nothing(
    endpoint: Endpoint, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    of_another = endpoint.now(change={"AppId": "another"})
    answered = [endpoint.post(body) for body in ("{}", forged(endpoint), of_another, "x" * (256 * 1024 + 1))]
    # The secret of an instance that has read no key, or needs a new one, cannot be read.
    endpoint.receiver.secrets.script = Script(DOWN)
    world.clock.seconds += 10
    answered.append(endpoint.post(forged(endpoint)))
    reasons = [(reason, 1) for reason in ("app_id", "key_unreadable", "malformed", "signature", "too_large")]
    metrics = counted(capsys)
    assert (metrics["CallbackRefused"], metrics["Errors"]) == (reasons, [("CredentialsUnavailable", 1)])
    assert (world.is_untouched, endpoint.sqs.waiting) == (True, [])
    # A verified event that can neither be stored nor kept must come again.
    endpoint.fail_table()
    endpoint.sqs.works = False
    answered.append(endpoint.post(endpoint.now()))

    route, contract = "POST /callbacks/rtc", Contract()
    assert [status for status, _ in answered] == [400, 401, 403, 413, 503, 503]
    assert {(status, body["error"]) for status, body in answered} == contract.problems(route)
    for status, body in answered:
        contract.validate(route, status, PROBLEM, body)


@pytest.mark.parametrize(
    ("status", "content_types"),
    [
        (200, ["application/json", "application/json; charset=utf-8", "Application/JSON", None]),
        (400, ["text/plain", "application/x-www-form-urlencoded"]),
    ],
)
def test_the_body_must_be_json_by_its_content_type(
    endpoint: Endpoint, status: int, content_types: list[str | None]
) -> None:
    assert {endpoint.post(endpoint.now(), content_type)[0] for content_type in content_types} == {status}


ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    1e300,
    10**30,
    "",
    "\ud800",
    "\x00",
    "a" * 200,
    "9" * 5000,
    "../..",
    [],
    {},
    [[]],
    {"a": {}},
]


def _mutated(body: str, source: random.Random) -> bytes:
    """A body with some bytes, some fields or some values of its data changed, left out or put in."""
    event, raw, at = json.loads(body), bytearray(body.encode()), source.randrange(len(body))
    match source.randrange(4):
        case 0:
            raw[at : at + source.randrange(3)] = source.randbytes(source.randrange(3))
            return bytes(raw)
        case 1:
            return (body[:at] + body[at + source.randrange(200) :]).encode()
        case 2:
            return sent.text(event | {source.choice(list(event)): source.choice(ODD)}).encode()
    # A signature that fits, of data that the vendor would not send.
    data = json.loads(event["EventData"])
    data[source.choice([*data, "Reason"])] = source.choice(ODD)
    event |= {"EventData": sent.text(data), "EventTime": source.choice([event["EventTime"], str(source.choice(ODD))])}
    return sent.text(sent.sign(event)).encode()


def test_mutated_bodies_are_refused_or_received_and_fail_nothing(endpoint: Endpoint) -> None:
    source = random.Random(69820)  # noqa: S311 (the same bodies each time)
    kinds = [AUDIO, "UserScreenVideoStreamStop", JOIN, LEAVE, ROOM_END, "RoomCreate"]
    bodies = [endpoint.now(kind) for kind in kinds]

    statuses = Counter(endpoint.post(_mutated(source.choice(bodies), source))[0] for _ in range(2_000))

    assert statuses.keys() == {200, 400, 401}
    assert min(statuses.values()) > 50
    deep: list[str | bytes] = ["[" * 200_000, '{"a":' * 40_000, "9" * 200_000, "\ud800", b"\xff"]
    assert {endpoint.post(body)[0] for body in deep} == {400}
    assert endpoint.post("no base64!", isBase64Encoded=True)[0] == 400
    assert not [message for message in endpoint.sqs.waiting if "recheck" not in message["body"]]


# Events that must wait


@pytest.mark.parametrize("fails", ["table", "results queue"])
def test_an_event_that_cannot_be_stored_or_delivered_is_kept_as_it_came(
    endpoint: Endpoint, world: World, fails: str
) -> None:
    body = json.dumps(json.loads(endpoint.now()), indent=3)
    received_at = {"received_at_ms": {"stringValue": str(endpoint.receiver.now_ms)}}
    endpoint.fail_table(fails=fails == "table")
    world.queue.refuses = lambda message: fails != "table"

    assert endpoint.post(body) == (200, {})
    assert [(kept["body"], kept["messageAttributes"]) for kept in endpoint.sqs.waiting] == [(body, received_at)]
    # And it is received when all works again.
    endpoint.fail_table(fails=False)
    world.queue.refuses = lambda message: False
    world.clock.seconds += 60
    assert endpoint.drain() == []
    assert (endpoint.audio(), len(world.queue.messages)) == (True, 1)


def test_while_the_key_takes_too_long_to_read_nothing_is_kept(
    endpoint: Endpoint, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    monkeypatch.setattr(endpoint.module, "RECEIVE_SECONDS", 0.01)
    endpoint.receiver.secrets.script = Script(lambda: released.wait(60) and {"callback_key": KEY})
    try:
        status, problem = endpoint.post(endpoint.now())
    finally:
        released.set()

    assert (status, problem["error"], problem["retryable"]) == (503, "CredentialsUnavailable", True)
    assert (world.is_untouched, endpoint.sqs.waiting) == (True, [])


def test_an_event_that_takes_too_long_is_kept_and_answered(
    endpoint: Endpoint, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a table that does not answer
    endpoint.post(endpoint.now("RoomCreate"))
    released = threading.Event()
    monkeypatch.setattr(endpoint.module, "workers", endpoint.module.ThreadPoolExecutor(8))
    monkeypatch.setattr(endpoint.module, "RECEIVE_SECONDS", 0.05)
    world.dynamodb.effects["put_item"] = repeat(lambda parameters: None if released.wait(60) else DOWN)
    # When more events come than the function has threads
    try:
        statuses = [endpoint.post(endpoint.now())[0] for _ in range(6)]
    finally:
        released.set()
    # Then each is kept and answered
    assert (statuses, len(endpoint.sqs.waiting)) == ([200] * 6, 6)
    # And received later, with one id however often it is delivered
    world.dynamodb.effects.clear()
    assert endpoint.drain() == []
    assert (endpoint.audio(), len({message["id"] for message in world.queue.messages})) == (True, 1)


def test_the_time_for_an_answer_is_shorter_than_the_vendor_waits(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {}
    monkeypatch.setattr(aws, "client", lambda service, **given: options.update(given))
    environment = {**ENVIRONMENT, "CALLBACK_RETRY_QUEUE_URL": f"{RETRY}-of-another-stack"}
    RetryQueue.from_settings(Settings.from_environment(environment)).client()

    assert endpoint.module.STOP_SECONDS < endpoint.module.RECEIVE_SECONDS
    assert endpoint.module.RECEIVE_SECONDS + 2 * (options["connect_timeout"] + options["read_timeout"]) <= 4.5


def test_the_500_users_of_a_room_that_ends_are_delivered_by_the_event_and_the_retry_queue(
    endpoint: Endpoint, world: World
) -> None:
    # Given a room of many, three of whom came back after its end
    users = [target.user_id for target in targets(503)]
    for user in users:
        endpoint.receiver.send(AUDIO, ago_ms=0 if user in users[:500] else -2000, user_id=user)
    world.queue.take()
    world.clock.seconds += 1
    # When the end takes longer than there is time for
    world.dynamodb.effects["put_item"] = repeat(lambda parameters: world.clock.sleep(0.01))
    assert endpoint.post(endpoint.now(ROOM_END))[0] == 200
    assert 10 < len(world.queue.messages) < 500
    # Then the retry queue does the rest
    assert endpoint.drain() == []
    assert world.queue.users() == users[:500]
    assert [endpoint.audio(user) for user in users] == [False] * 500 + [True] * 3


# The retry queue


def test_each_message_of_a_batch_fails_alone(endpoint: Endpoint, world: World) -> None:
    world.queue.refuses = lambda message: message["user_id"] == "two"
    bodies: list[Any] = ["not an event", "", None, 7, {}]
    odd = [
        *(record(f"odd-{number}", body) for number, body in enumerate(bodies)),
        record("odd-5", endpoint.now(), attributes=None),
        {"messageId": "odd-6", "eventSource": "aws:sqs"},
        *(None, "x", {"messageId": None}, {"eventSource": "aws:sqs"}),
    ]

    failed = endpoint.failures(*odd, *(record(user, endpoint.now(user_id=user)) for user in ("one", "two", "three")))

    assert failed == [*(f"odd-{number}" for number in range(7)), "two"]
    assert world.queue.users() == ["one", "three"]


def test_a_message_that_is_refused_three_times_is_dead_lettered(
    endpoint: Endpoint, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    body = forged(endpoint)
    assert [endpoint.failures(record("id", body, receive_count=count)) for count in (1, 2, 3)] == [["id"], ["id"], []]
    assert [message["body"] for message in endpoint.sqs.dead] == [body]
    assert counted(capsys)["CallbackRefused"] == [("signature", 1)] * 3
    # A message that fails otherwise is never refused, and none is while no key can be read.
    world.queue.refuses = lambda message: True
    assert endpoint.failures(record("id", endpoint.now(), receive_count=40)) == ["id"]
    world.clock.seconds += 10
    endpoint.receiver.secrets.script = Script(DOWN)
    assert endpoint.failures(record("id", body, receive_count=40)) == ["id"]
    assert len(endpoint.sqs.dead) == 1


def test_a_message_that_cannot_be_dead_lettered_fails_alone(endpoint: Endpoint, world: World) -> None:
    endpoint.sqs.works = False

    messages = (record("forged", forged(endpoint), receive_count=3), record("good", endpoint.now()))

    assert (endpoint.failures(*messages), world.queue.users()) == (["forged"], ["teacher"])


def test_a_message_without_a_time_of_arrival_arrived_when_it_was_sent(endpoint: Endpoint, world: World) -> None:
    assert endpoint.failures(record("id", signed(AUDIO, 1_795_403_044_000))) == []

    (message,) = world.queue.messages
    assert message["media_observed_at"]["audio"] == "2026-11-23T03:04:00.000Z"


def test_a_recheck_goes_through_the_queue_and_comes_again_after_a_failure(endpoint: Endpoint, world: World) -> None:
    # Given a stream, an end that may be of an earlier connection, and a vendor that fails at first
    world.rtc.say(TEACHER, RtcUnavailable("Down."), media("video"))
    for kind in (VIDEO, LEAVE):
        endpoint.post(endpoint.now(kind, Reason="userLeave"))
        world.clock.seconds += 1
    world.clock.seconds += 5
    # When the recheck comes, and SQS brings it again
    recheck = endpoint.sqs.waiting[0]
    assert endpoint.drain() == ["message-0"]
    assert endpoint.failures(recheck) == []
    # Then the second try settles the doubt
    messages = [(message["media"]["video"], message["source"]) for message in world.queue.messages]
    assert messages == [(True, "callback"), (None, "callback"), (True, "query")]


def test_neither_key_nor_signature_nor_data_is_logged(endpoint: Endpoint, logs: io.StringIO) -> None:
    event = endpoint.now(Note="canary-data")
    answers = [endpoint.post(event), endpoint.post(forged(endpoint))]
    endpoint.fail_table()
    answers.append(endpoint.post(event))
    endpoint.sqs.works = False
    answers.append(endpoint.post(endpoint.now(VIDEO, Note="canary-data")))

    shown = logs.getvalue() + json.dumps(answers)
    assert [status for status, _ in answers] == [200, 401, 200, 503]
    assert not [canary for canary in (KEY, json.loads(event)["Signature"], "canary") if canary in shown]
