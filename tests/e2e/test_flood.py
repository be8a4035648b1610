"""A flood of strangers' requests on the public route: refused and counted, while the vendor's events get through."""

import json
import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.e2e.contents import table_items
from tests.e2e.http import Http
from tests.sandbox.samples import sample
from tests.sandbox.signatures import signed
from tests.sandbox.simulator import APP_ID
from tests.sandbox.stack import Sandbox

REAL, MALFORMED, TOO_LARGE, FORGED, OF_ANOTHER_APP = 40, 420, 80, 420, 80
SENDERS = 8
ROOM = "class-1"


@pytest.fixture(scope="module")
def parameters() -> Mapping[str, str]:
    return {"EnableCallbacks": "true", "CallbackPathSegment": "a-segment-that-nobody-guesses"}


def event(user: str, **changes: str) -> str:
    """An event that the vendor could send: a user joins with video."""
    fields = json.loads(sample("callback/stream-start-http-api.json")["body"])
    data = json.dumps({**json.loads(fields["EventData"]), "RoomId": ROOM, "UserId": user})
    return signed({**fields, "EventId": user, "EventData": data, **changes})


def forged(user: str, chance: random.Random) -> str:
    """An event whose signature, or a field under it, is another one."""
    fields = json.loads(event(user))
    field = chance.choice(["Signature", "EventData", "EventTime", "EventId", "Nonce"])
    fields[field] = fields[field][:-1] + ("0" if fields[field][-1] != "0" else "1")
    return json.dumps(fields)


def malformed(user: str, chance: random.Random) -> str:
    """An event that lacks a field or has it as another type, a body that is no event, or no JSON."""
    fields = json.loads(event(user))
    name = chance.choice([*fields])
    without = {key: value for key, value in fields.items() if key != name}
    cut = json.dumps(fields)[: chance.randrange(1, 40)]
    return chance.choice([json.dumps(without), json.dumps({**fields, name: 7}), "[]", "null", cut, "{" * 9, ""])


def flood() -> Iterator[tuple[int, str]]:
    """The requests, each with the status of its answer."""
    chance = random.Random(15)  # noqa: S311 (chance in a test)
    for number in range(REAL):
        yield 200, event(f"student-{number}")
    for number in range(MALFORMED):
        yield 400, malformed(f"stranger-{number}", chance)
    for number in range(TOO_LARGE):
        yield 413, event(f"stranger-{number}", Nonce="x" * (257 * 1024))
    for number in range(FORGED):
        yield 401, forged(f"stranger-{number}", chance)
    for number in range(OF_ANOTHER_APP):
        yield 403, event(f"stranger-{number}", AppId="another-app")


def counted(logs: str, metric: str) -> Counter[str]:
    """The sums of a metric by its reason, from the functions' logs."""
    found: Counter[str] = Counter()
    # Processes share the file, and write a document and the end of its line one after the other.
    for start in re.finditer(r'\{"_aws"', logs):
        document, _ = json.JSONDecoder().raw_decode(logs, start.start())
        if metric in document:
            values = document[metric]
            found[document.get("reason", "")] += int(sum(values) if isinstance(values, list) else values)
    return found


def test_a_flood_is_refused_and_counted_while_every_real_event_is_received(cold: Sandbox) -> None:
    requests = list(flood())
    random.Random(1).shuffle(requests)  # noqa: S311 (chance in a test)
    http, path = Http(cold.callback_api_url), cold.callback_url.removeprefix(cold.callback_api_url)

    with ThreadPoolExecutor(SENDERS) as senders:
        answers = list(senders.map(lambda request: http.send("POST", path, request[1].encode()).status, requests))

    assert len(requests) - REAL == 1000
    assert [status for status, _ in requests] == answers
    # Counted by reason.
    cold.functions.restart()
    assert counted(cold.logs, "CallbackRefused") == {
        "malformed": MALFORMED,
        "too_large": TOO_LARGE,
        "signature": FORGED,
        "app_id": OF_ANOTHER_APP,
    }
    assert counted(cold.logs, "CallbackEvents").total() == REAL
    # Nothing of it is stored, and nothing waits.
    users = {f"student-{number}" for number in range(REAL)}
    assert {item["sk"]["S"] for item in table_items(cold)} == users
    assert {item["pk"]["S"] for item in table_items(cold)} == {f"state#{APP_ID}#{ROOM}"}
    queues = cold.client("sqs")
    for name in ("CallbackRetryQueueUrl", "CallbackDeadLetterQueueUrl", "InvocationDeadLetterQueueUrl"):
        kept = queues.get_queue_attributes(QueueUrl=cold.outputs[name], AttributeNames=["All"])["Attributes"]
        assert {value for key, value in kept.items() if key.startswith("ApproximateNumberOfMessages")} == {"0"}
    # Each real event is delivered, once.
    assert sorted(message["user_id"] for message in cold.receive_messages(REAL)) == sorted(users)
    assert "stranger" not in cold.logs


def test_a_stranger_who_does_not_know_the_segment_meets_no_function(cold: Sandbox) -> None:
    before = cold.logs

    answers = [
        Http(cold.callback_api_url).send("POST", path, event("student-0").encode()).status
        for path in ("/callbacks/rtc", "/another-segment-of-that-length/callbacks/rtc")
    ]

    assert answers == [404, 404]
    assert cold.logs == before
