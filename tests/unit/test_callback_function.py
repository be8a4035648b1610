"""The callback's entry point: requests and the retry queue, what is kept for later, and what is answered meanwhile."""

import base64
import hashlib
import io
import json
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import repeat
from types import SimpleNamespace
from typing import Any

import pytest

from stream_state.gateway import MAX_BODY_BYTES
from stream_state.model import Target
from stream_state.queue import RetryQueue
from stream_state.settings import Settings, SettingsError
from tests.unit.contract import PROBLEM, Contract
from tests.unit.fakes import Clock, aws_error
from tests.unit.memory import APP_ID, ENVIRONMENT, EVENTS, Context, World
from tests.unit.pushed import KEY, VENDOR_NAMES, Receiver, fields, pushed, sign, stream, text

TEACHER = Target(APP_ID, "class-1", "teacher")
AUDIO = "UserAudioStreamStart"
DOWN = aws_error("InternalServerError")

type Reply = tuple[int, Any]


class RetrySqs:
    """SQS with the retry queue, which takes every message while it works."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.works = True

    def send_message(self, **message: Any) -> None:
        if not self.works:
            raise DOWN
        self.sent.append(message)

    def batch(self, count: int = 10) -> dict[str, Any]:
        """The event with which Lambda hands on the oldest messages."""
        taken, self.sent = self.sent[:count], self.sent[count:]
        return {"Records": [_record(number, message) for number, message in enumerate(taken)]}


def _record(number: int, message: dict[str, Any]) -> dict[str, Any]:
    attributes = {
        name: {"stringValue": value["StringValue"], "dataType": value["DataType"]}
        for name, value in message["MessageAttributes"].items()
    }
    return {
        "messageId": f"message-{number}",
        "body": message["MessageBody"],
        "attributes": {"SentTimestamp": "0"},
        "messageAttributes": attributes,
    }


class Endpoint:
    """The function on a world in memory."""

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("RTC_CALLBACK_SECRET_ID", "CALLBACK_RETRY_QUEUE_URL"):
            monkeypatch.setenv(name, "https://sqs.example/123456789012/retry")
        self.world = world
        self.receiver = Receiver(world)
        self.retries = RetrySqs()
        self.module = world.function("callback", monkeypatch)
        monkeypatch.setattr(self.module, "callback", self.receiver.callback)
        monkeypatch.setattr(self.module, "retry_queue", RetryQueue(self.retries, "retry"))  # type: ignore[arg-type]  # a fake
        monkeypatch.setattr(
            self.module, "time", SimpleNamespace(time=world.clock.wall, monotonic=world.clock.monotonic)
        )

    def post(self, body: str | bytes, content_type: str | None = "application/json", **more: Any) -> Reply:
        """Status and document of the answer to a request."""
        event = json.loads((EVENTS / "callback/stream-start-http-api.json").read_text())
        event["headers"]["content-type"] = content_type
        if content_type is None:
            del event["headers"]["content-type"]
        if isinstance(body, bytes):
            more = {"isBase64Encoded": True, **more}
            body = base64.b64encode(body).decode()
        answer = self.module.lambda_handler({**event, "body": body, **more}, Context())
        return answer["statusCode"], json.loads(answer["body"])

    def drain(self) -> list[dict[str, Any]]:
        """Hand the function all parked events, ten at a time; the failures it reported."""
        failures = []
        while self.retries.sent:
            failures += self.module.lambda_handler(self.retries.batch(), Context())["batchItemFailures"]
        return failures

    def now(self, kind: str = AUDIO, **more: Any) -> str:
        """The body of an event that happens now."""
        return pushed(kind, self.receiver.now_ms, **more)

    def fail_table(self, *, fails: bool = True) -> None:
        effects = {name: repeat(DOWN) for name in ("get_item", "put_item", "update_item", "query")}
        self.world.dynamodb.effects = dict(effects) if fails else {}

    def audio(self, user_id: str = "teacher") -> bool | None:
        known = self.world.known(Target(APP_ID, "class-1", user_id))
        return known.state().values["audio"] if known else None


@pytest.fixture
def world(clock: Clock) -> World:
    return World(clock)


@pytest.fixture
def endpoint(world: World, monkeypatch: pytest.MonkeyPatch) -> Endpoint:
    return Endpoint(world, monkeypatch)


def test_every_sample_event_is_taken_in(endpoint: Endpoint, world: World) -> None:
    answers = {
        path.stem: endpoint.module.lambda_handler(json.loads(path.read_text()), Context())
        for path in sorted((EVENTS / "callback").glob("*.json"))
    }

    assert answers.pop("retry-queue") == {"batchItemFailures": []}
    assert [answer["statusCode"] for answer in answers.values()] == [200, 200]
    assert all(answer["headers"]["Cache-Control"] == "no-store" for answer in answers.values())
    # Those of the queue come first; what the requests tell is older, and no news any more.
    assert [message["changed"] for message in world.queue.messages] == [
        ["video", "present"],
        [*VENDOR_NAMES, "present"],
    ]
    assert world.queue.messages[-1]["media"] == dict.fromkeys(VENDOR_NAMES, False)
    assert endpoint.audio() is False


@pytest.mark.parametrize("name", ["stream-start-http-api", "stream-stop-rest-api"])
def test_a_refusal_is_a_problem(
    endpoint: Endpoint, world: World, conforms: Callable[[str, Any], None], name: str
) -> None:
    event = json.loads((EVENTS / "callback" / f"{name}.json").read_text())

    answer = endpoint.module.lambda_handler({**event, "body": "{}"}, Context())

    problem = json.loads(answer["body"])
    conforms("problem", problem)
    assert (answer["statusCode"], problem["error"], problem["instance"]) == (400, "InvalidTarget", "/callbacks/rtc")
    assert problem["request_id"] == event["requestContext"]["requestId"]
    assert answer["headers"]["Content-Type"] == "application/problem+json"
    assert world.is_untouched


def test_it_answers_with_the_problems_that_are_documented(world: World, endpoint: Endpoint) -> None:
    of_another = sign({**fields(AUDIO, endpoint.receiver.now_ms), "AppId": "another"})
    forged = {**of_another, "Signature": "0" * 64}
    bodies = [endpoint.now(), "{}", text(forged), text(of_another), "x" * 2**19]
    answered = [endpoint.post(body) for body in bodies]
    endpoint.fail_table()
    answered.append(endpoint.post(endpoint.now()))
    endpoint.retries.works = False
    answered.append(endpoint.post(endpoint.now()))

    route, contract = "POST /callbacks/rtc", Contract()
    assert {(status, body["error"]) for status, body in answered if status != 200} == contract.problems(route)
    for status, body in answered:
        contract.validate(route, status, "application/json" if status == 200 else PROBLEM, body)


@pytest.mark.parametrize(
    ("reason", "status", "change"),
    [
        ("malformed", 400, {"Nonce": None}),
        ("signature", 401, {"Nonce": "zzzz"}),
        ("too_large", 413, {"Nonce": "z" * MAX_BODY_BYTES}),
    ],
)
def test_refusals_are_counted_by_their_reason(
    endpoint: Endpoint,
    world: World,
    capsys: pytest.CaptureFixture[str],
    reason: str,
    status: int,
    change: dict[str, Any],
) -> None:
    answer = endpoint.post(text({**sign(fields(AUDIO, endpoint.receiver.now_ms)), **change}))

    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if "CallbackRefused" in line]
    assert [(line["reason"], line["CallbackRefused"]) for line in lines] == [(reason, [1])]
    assert (answer[0], world.is_untouched, endpoint.retries.sent) == (status, True, [])


def test_an_app_id_that_is_not_configured_is_refused(endpoint: Endpoint, capsys: pytest.CaptureFixture[str]) -> None:
    body = text(sign({**fields(AUDIO, endpoint.receiver.now_ms), "AppId": "another"}))

    assert endpoint.post(body)[0] == 403
    assert '"reason":"app_id"' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/json", 200),
        ("application/json; charset=utf-8", 200),
        ("Application/JSON", 200),
        (None, 200),
        ("text/plain", 400),
        ("application/x-www-form-urlencoded", 400),
        ("", 400),
    ],
)
def test_the_body_must_be_json_by_its_content_type(endpoint: Endpoint, content_type: str | None, status: int) -> None:
    assert endpoint.post(endpoint.now(), content_type)[0] == status


def test_a_body_may_be_encoded_and_must_be_utf_8(endpoint: Endpoint) -> None:
    assert endpoint.post(endpoint.now().encode())[0] == 200
    assert endpoint.post(b"\xff")[0] == 400
    assert endpoint.post("no base64!", isBase64Encoded=True)[0] == 400
    assert endpoint.post("é", isBase64Encoded=True)[0] == 400


@pytest.mark.parametrize("body", ["", "[" * 200_000, '{"a":' * 40_000, "9" * 200_000, "\ud800"])
def test_a_body_of_any_depth_is_refused_only(endpoint: Endpoint, world: World, body: str) -> None:
    assert endpoint.post(body)[0] == 400
    assert world.is_untouched


def _mutated(bodies: list[str], source: random.Random) -> bytes:
    """A body with some bytes, some fields or some values of its data changed, left out or put in."""
    body = source.choice(bodies)
    match source.randrange(4):
        case 0:
            raw = bytearray(body.encode())
            for _ in range(source.randint(1, 5)):
                at = source.randrange(len(raw))
                raw[at : at + source.randrange(3)] = source.randbytes(source.randrange(3))
            return bytes(raw)
        case 1:
            at = source.randrange(len(body))
            return (body[:at] + body[at + source.randrange(200) :]).encode()
        case 2:
            event = json.loads(body)
            event[source.choice(list(event))] = source.choice(ODD)
            return text(event).encode()
    # A signature that fits, of data that the vendor would not send.
    event = json.loads(body)
    data = json.loads(event["EventData"])
    data[source.choice([*data, "x"])] = source.choice(ODD)
    event |= {"EventData": text(data), "EventTime": str(source.choice(ODD))}
    return text(sign(event)).encode()


ODD = [None, True, -1, 0, 1e300, 10**30, "", "\ud800", "\x00", "a" * 200, "../..", [], {}, [[]], {"a": {}}]


def test_ten_thousand_mutated_bodies_are_refused_or_acknowledged_and_fail_nothing(endpoint: Endpoint) -> None:
    source = random.Random(69820)  # noqa: S311 (the same bodies each time)
    kinds = [AUDIO, "UserScreenVideoStreamStop", "UserJoinRoom", "UserLeaveRoom", "RoomDestroy", "RoomCreate"]
    bodies = [endpoint.now(kind) for kind in kinds]

    statuses = Counter(endpoint.post(_mutated(bodies, source))[0] for _ in range(10_000))

    assert statuses.keys() == {200, 400, 401}
    assert min(statuses.values()) > 100
    assert not endpoint.retries.sent


# What is kept for later


def test_what_cannot_be_stored_is_kept_as_it_came_and_taken_in_later(endpoint: Endpoint, world: World) -> None:
    # Given a table that fails
    body = json.dumps(json.loads(endpoint.now()), indent=3)
    arrived_at_ms = endpoint.receiver.now_ms
    endpoint.fail_table()
    # When an event comes
    assert endpoint.post(body) == (200, {})
    # Then its text is kept, with the time at which it came
    (parked,) = endpoint.retries.sent
    assert (parked["QueueUrl"], parked["MessageBody"]) == ("retry", body)
    assert parked["MessageAttributes"]["arrived_at_ms"]["StringValue"] == str(arrived_at_ms)
    # And it is taken in when the table works again
    endpoint.fail_table(fails=False)
    assert endpoint.drain() == []
    assert (endpoint.audio(), len(world.queue.messages)) == (True, 1)


def test_what_cannot_be_told_is_kept_and_told_later(endpoint: Endpoint, world: World) -> None:
    world.queue.refuses = lambda message: True
    assert endpoint.post(endpoint.now())[0] == 200
    assert endpoint.audio() is True
    world.queue.refuses = lambda message: False

    assert endpoint.drain() == []
    assert len(world.queue.messages) == 1


def test_without_a_readable_key_events_are_kept_and_verified_later(endpoint: Endpoint, world: World) -> None:
    answers = endpoint.receiver.secrets.script.answers
    answers[:] = [DOWN]
    bodies = [endpoint.now(), text({**json.loads(endpoint.now()), "Nonce": "zzzz"})]
    assert [endpoint.post(body)[0] for body in bodies] == [200, 200]
    assert world.is_untouched
    answers[:] = [{"callback_key": KEY}]

    failures = endpoint.module.lambda_handler(endpoint.retries.batch(), Context())

    assert failures == {"batchItemFailures": [{"itemIdentifier": "message-1"}]}
    assert endpoint.audio() is True


def test_only_if_an_event_cannot_be_kept_either_the_vendor_is_to_come_again(
    endpoint: Endpoint, world: World, conforms: Callable[[str, Any], None]
) -> None:
    endpoint.fail_table()
    endpoint.retries.works = False

    status, problem = endpoint.post(endpoint.now())

    conforms("problem", problem)
    assert (status, problem["error"], problem["retryable"]) == (503, "DeliveryFailed", True)


def test_an_event_that_takes_too_long_is_kept_and_answered(
    endpoint: Endpoint, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a table that does not answer
    released = threading.Event()
    monkeypatch.setattr(endpoint.module, "TAKE_SECONDS", 0.01)
    world.dynamodb.effects["get_item"] = repeat(lambda parameters: released.wait(60) and None)
    # When more events come than there are threads
    try:
        statuses = [endpoint.post(endpoint.now())[0] for _ in range(6)]
    finally:
        released.set()
    # Then each is kept and answered
    assert (statuses, len(endpoint.retries.sent)) == ([200] * 6, 6)
    # And taken in later, told once however often the threads that hung take it in too
    world.dynamodb.effects.clear()
    assert endpoint.drain() == []
    assert endpoint.audio() is True
    assert len({message["id"] for message in world.queue.messages}) == 1


def test_the_time_for_an_answer_adds_up_to_less_than_the_vendor_waits(endpoint: Endpoint) -> None:
    client = RetryQueue.from_settings(
        Settings.from_environment({**ENVIRONMENT, "CALLBACK_RETRY_QUEUE_URL": "https://sqs.example/retry"})
    )._client
    config = client.meta.config
    tries = config.retries["total_max_attempts"]

    assert endpoint.module.TAKE_SECONDS + tries * (config.connect_timeout + config.read_timeout) <= 4.5


def test_a_room_that_ends_with_more_users_than_there_was_time_for_must_come_again(
    endpoint: Endpoint, world: World
) -> None:
    # Given a room of many
    users = [f"user-{number:02}" for number in range(60)]
    for user in users:
        assert endpoint.post(endpoint.now(user_id=user))[0] == 200
    world.queue.take()
    world.clock.seconds += 1
    body = endpoint.now("RoomDestroy", user_id=None)
    # When its end takes longer than there is time for
    world.dynamodb.effects["put_item"] = repeat(lambda parameters: world.clock.sleep(0.1))
    statuses = [endpoint.post(body)[0] for _ in range(3)]
    # Then the vendor's next tries go on
    assert statuses[0] == 503
    assert len(set(world.queue.users())) == len(world.queue.messages)
    # And what is left after the last is done from the queue
    assert endpoint.drain() == []
    assert world.queue.users() == users
    assert not any(endpoint.audio(user) for user in users)


def test_of_a_batch_of_the_queue_each_event_fails_alone(
    endpoint: Endpoint, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    for user in ("one", "two", "three"):
        endpoint.module.retry_queue.park(endpoint.now(user_id=user), endpoint.receiver.now_ms)
    endpoint.module.retry_queue.park("not an event", endpoint.receiver.now_ms)
    world.queue.refuses = lambda message: message["user_id"] == "two"

    answer = endpoint.module.lambda_handler(endpoint.retries.batch(), Context())

    failed = [entry["itemIdentifier"] for entry in answer["batchItemFailures"]]
    assert failed == ["message-1", "message-3"]
    assert world.queue.users() == ["one", "three"]


def test_an_event_of_the_queue_that_tells_no_arrival_arrived_when_it_was_sent(endpoint: Endpoint) -> None:
    arrived_at_ms = endpoint.receiver.now_ms - 5000
    endpoint.module.retry_queue.park(endpoint.now(), 0)
    batch = endpoint.retries.batch()
    batch["Records"][0] |= {"messageAttributes": {}, "attributes": {"SentTimestamp": str(arrived_at_ms)}}

    assert endpoint.module.lambda_handler(batch, Context()) == {"batchItemFailures": []}
    known = endpoint.world.known(TEACHER)
    assert known is not None
    assert known.facts["audio"].at_ms == arrived_at_ms


def test_the_retry_queue_must_be_named() -> None:
    with pytest.raises(SettingsError, match="CALLBACK_RETRY_QUEUE_URL is not set"):
        RetryQueue.from_settings(Settings.from_environment({"RTC_APP_IDS": APP_ID}))


def test_neither_key_nor_signature_nor_data_is_logged(endpoint: Endpoint, world: World, logs: io.StringIO) -> None:
    event = sign(fields(AUDIO, endpoint.receiver.now_ms, Note="canary-data"))
    answers = [endpoint.post(text(event)), endpoint.post(text({**event, "Nonce": "zzzz"}))]
    endpoint.fail_table()
    answers += [endpoint.post(text(event))]
    endpoint.retries.works = False
    answers += [endpoint.post(text(event))]

    shown = logs.getvalue() + json.dumps(answers)
    assert [status for status, _ in answers] == [200, 401, 200, 503]
    assert not [canary for canary in (KEY, event["Signature"], "canary") if canary in shown]


# A thousand events while something is gone


class Vendor:
    """Pushes what 50 users do in a second each, and comes again up to two times with what was not answered 200."""

    def __init__(self, endpoint: Endpoint, count: int) -> None:
        self.endpoint = endpoint
        self.source = random.Random(75124)  # noqa: S311 (the same history each time)
        self.truth: dict[str, bool] = {}
        self.statuses: Counter[int] = Counter()
        self.waiting: list[tuple[str, int]] = []
        self._left = count

    def events(self) -> Iterator[str]:
        """The bodies, each as it happens."""
        for _ in range(self._left):
            self.endpoint.world.clock.seconds += 0.02
            user = f"user-{self.source.randrange(50):02}"
            self.truth[user] = self.source.random() < 0.5
            yield self.endpoint.now(stream("audio", starts=self.truth[user]), user_id=user)

    def push(self) -> None:
        """Push everything once."""
        for body in self.events():
            self._send(body, 1)

    def come_again(self) -> None:
        """Push again what may be, in another order."""
        waiting, self.waiting = self.waiting, []
        self.source.shuffle(waiting)
        for body, tries in waiting:
            if tries < 3:
                self._send(body, tries + 1)

    def _send(self, body: str, tries: int) -> None:
        status, _ = self.endpoint.post(body)
        self.statuses[status] += 1
        if status != 200:
            self.waiting.append((body, tries))


def ends_right(vendor: Vendor) -> None:
    """The state of each user is the true one, and the queue was told so."""
    world = vendor.endpoint.world
    told = {message["user_id"]: message for message in sorted(world.queue.messages, key=lambda one: one["sequence"])}
    for user, truth in vendor.truth.items():
        assert vendor.endpoint.audio(user) is truth
        assert told[user]["media"]["audio"] is truth


def test_while_the_table_is_gone_events_are_kept_and_none_is_lost(endpoint: Endpoint) -> None:
    vendor = Vendor(endpoint, 1000)
    endpoint.fail_table()
    vendor.push()
    assert vendor.statuses == {200: 1000}
    endpoint.fail_table(fails=False)

    assert endpoint.drain() == []
    ends_right(vendor)


def test_while_the_table_fails_now_and_then_none_is_lost_in_any_order(endpoint: Endpoint) -> None:
    """News that came through is not undone by older news that had to wait."""
    vendor = Vendor(endpoint, 1000)
    fails = random.Random(1)  # noqa: S311 (the same failures each time)
    endpoint.world.dynamodb.effects = {
        name: iter(lambda: DOWN if fails.random() < 0.2 else None, 0) for name in ("get_item", "put_item")
    }
    vendor.push()
    assert vendor.statuses == {200: 1000}
    endpoint.fail_table(fails=False)

    vendor.source.shuffle(endpoint.retries.sent)
    assert endpoint.drain() == []
    ends_right(vendor)


def test_while_all_queues_are_gone_states_are_stored_and_told_by_the_vendors_next_try(endpoint: Endpoint) -> None:
    vendor = Vendor(endpoint, 1000)
    endpoint.world.queue.refuses = lambda message: True
    endpoint.retries.works = False
    vendor.push()
    assert vendor.statuses[503] > 900
    assert all(endpoint.audio(user) is truth for user, truth in vendor.truth.items())
    endpoint.world.queue.refuses = lambda message: False

    vendor.come_again()
    ends_right(vendor)


def test_what_the_vendor_gave_up_is_told_by_the_next_observation(endpoint: Endpoint) -> None:
    vendor = Vendor(endpoint, 1000)
    endpoint.world.queue.refuses = lambda message: True
    endpoint.retries.works = False
    vendor.push()
    vendor.come_again()
    vendor.come_again()
    vendor.come_again()
    assert vendor.waiting == []
    assert not endpoint.world.queue.messages
    endpoint.world.queue.refuses = lambda message: False

    for user in vendor.truth:
        endpoint.post(endpoint.now("UserJoinRoom", user_id=user))
    ends_right(vendor)


def test_while_everything_is_gone_the_vendors_next_try_loses_none(endpoint: Endpoint) -> None:
    vendor = Vendor(endpoint, 1000)
    endpoint.fail_table()
    endpoint.retries.works = False
    vendor.push()
    assert vendor.statuses == {503: 1000}
    endpoint.retries.works = True
    vendor.come_again()
    assert vendor.statuses == {503: 1000, 200: 1000}
    endpoint.fail_table(fails=False)

    assert endpoint.drain() == []
    ends_right(vendor)


def test_the_published_way_to_sign_is_what_the_tests_sign_with() -> None:
    """So that a mistake in the tests' own code does not hide one in the function's."""
    published = {
        "EventType": "RoomCreate",
        "EventData": '{"RoomId":"room1","Timestamp":1679383924691}',
        "EventTime": "2023-03-21T15:32:04+08:00",
        "EventId": "123456",
        "Version": "2020-12-01",
        "AppId": "appId",
        "Nonce": "aaBc",
    }
    joined = "".join(sorted([*published.values(), "1234"]))
    assert sign(published, "1234")["Signature"] == hashlib.sha256(joined.encode()).hexdigest()
    assert sign(published, "1234")["Signature"].startswith("1c7200723842eff5")
