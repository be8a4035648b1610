"""The outside world in memory: a DynamoDB table, the results queue and the vendor, each failing as it is told to."""
# ruff: noqa: N803 (parameters are named as boto3 names them)

import importlib
import json
import operator
import re
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
from botocore.exceptions import ClientError

from stream_state import lookup as lookup_module
from stream_state.errors import (
    CredentialsInvalid,
    CredentialsUnavailable,
    DeliveryFailed,
    QuotaExceeded,
    RtcAccessDenied,
    RtcActionRetired,
    RtcProtocolError,
    RtcRequestRefused,
    RtcThrottled,
    RtcUnavailable,
    StreamStateError,
    TargetNotFound,
)
from stream_state.lookup import Lookup
from stream_state.model import FOUND, Fact, Known, Medium, StreamState, Target
from stream_state.observability import publish_metrics
from stream_state.settings import Settings
from stream_state.sweep import Sweep
from stream_state.table import StateTable
from stream_state.telling import Teller
from stream_state.watch_list import WatchList
from tests.unit.fakes import Clock

TABLE = "states"
APP_ID = "661e8f2a9b3c4d5e6f708192"
ENVIRONMENT = {
    "RTC_APP_IDS": f"{APP_ID},app-2",
    "RTC_SECRET_ID": "keys",
    "TABLE_NAME": TABLE,
    "RESULTS_QUEUE_URL": "https://sqs.example/123456789012/results",
    "AWS_ACCESS_KEY_ID": "made-up",
    "AWS_SECRET_ACCESS_KEY": "made-up",
    "AWS_DEFAULT_REGION": "eu-central-1",
}
EVENTS = Path(__file__).parents[2] / "events"

_OPERATORS = {"=": operator.eq, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}

type Item = dict[str, Any]
type Key = tuple[str, str]
type Media = dict[str, bool | None]
# None lets a call happen; an exception is raised; anything else is the answer.
type Effect = Exception | Mapping[str, Any] | None
type Answer = Media | StreamStateError | Callable[[], Media | StreamStateError]


def media(*on: str, unknown: Iterable[str] = ()) -> Media:
    """What the vendor says of the four media: on or unknown as named, else off."""
    return {medium.value: None if medium in unknown else medium in on for medium in Medium}


def query_facts(values: Media, sent_at_ms: int) -> dict[str, Fact]:
    """What a query tells that found the user."""
    return {**{name: Fact(value, sent_at_ms) for name, value in values.items()}, FOUND: Fact(None, sent_at_ms)}


def metrics(capsys: pytest.CaptureFixture[str]) -> dict[str, list[float]]:
    """The values of the metrics that were recorded, by name."""
    publish_metrics()
    documents = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    values: dict[str, list[float]] = {}
    for document in documents:
        for metric in document["_aws"]["CloudWatchMetrics"][0]["Metrics"]:
            values.setdefault(metric["Name"], []).extend(document[metric["Name"]])
    return values


def targets(count: int, room_id: str = "class-1") -> list[Target]:
    """As many targets of a room, in the order of the watch list."""
    return [Target(APP_ID, room_id, f"user-{index:05}") for index in range(count)]


@dataclass(frozen=True)
class Context:
    """The context of an invocation that has half a minute left."""

    aws_request_id: str = "invocation-1"
    function_name: str = "a-function"
    memory_limit_in_mb: int = 256
    invoked_function_arn: str = "arn:aws:lambda:eu-central-1:123456789012:function:a-function"
    remaining_ms: int = 30_000

    def get_remaining_time_in_millis(self) -> int:
        """As Lambda names it."""
        return self.remaining_ms


def every_error() -> list[StreamStateError]:
    """One of each kind that asking can end with."""
    codes = {"rtc_code": "SomeCode", "rtc_request_id": "request-7"}
    return [
        TargetNotFound("Unknown.", **codes),
        QuotaExceeded("No slot.", retry_after_seconds=2.1),
        RtcThrottled("Throttled.", retry_after_seconds=7, **codes),
        CredentialsInvalid("No secret."),
        CredentialsUnavailable("No answer."),
        RtcAccessDenied("Denied.", **codes),
        RtcRequestRefused("Refused.", **codes),
        RtcActionRetired("Gone.", **codes),
        RtcProtocolError("What?", rtc_request_id="request-7"),
        RtcUnavailable("Down."),
        RtcUnavailable("Too slow.", status=504),
    ]


class Calls:
    """A DynamoDB client whose calls are recorded, and have the effects that a test wants."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.lock = threading.Lock()
        self.made: list[tuple[str, Mapping[str, Any]]] = []
        self.effects: dict[str, Iterator[Effect | Callable[[Mapping[str, Any]], Effect]]] = {}

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        """A call of the client, after the next effect for it."""

        def call(**parameters: Any) -> Any:
            self.made.append((operation, parameters))
            effect = next(self.effects.get(operation, iter(())), None)
            if callable(effect):
                effect = effect(parameters)
            if isinstance(effect, Exception):
                raise effect
            with self.lock:
                return getattr(self.client, operation)(**parameters) if effect is None else effect

        return call

    def count(self, operation: str) -> int:
        """How many calls of an operation were made."""
        return sum(name == operation for name, _ in self.made)


class MemoryTable:
    """The calls of a DynamoDB client that the project makes, on one table."""

    def __init__(self) -> None:
        self.items: dict[str, dict[str, Item]] = defaultdict(dict)
        self.max_query_items = 1_000

    def get_item(self, *, Key: Item, TableName: str, ConsistentRead: bool = False) -> Any:
        item = self._item(Key)
        return {"Item": item} if item else {}

    def put_item(self, *, Item: Item, ConditionExpression: str, **more: Any) -> Any:
        self._check(self._item(Item), ConditionExpression, more)
        self.items[Item["pk"]["S"]][Item["sk"]["S"]] = Item
        return {}

    def update_item(self, *, Key: Item, UpdateExpression: str, ConditionExpression: str, **more: Any) -> Any:
        item = self._item(Key)
        names, values = more.get("ExpressionAttributeNames", {}), more["ExpressionAttributeValues"]
        self._check(item, ConditionExpression, more)
        item = dict(item or Key)
        for assignment in UpdateExpression.removeprefix("SET ").split(", "):
            name, value = assignment.split(" = ")
            before, _, added = value.rpartition(" + ")
            number = {"N": str(int(item[before]["N"]) + int(values[added]["N"]))} if before else values[value]
            item[names.get(name, name)] = number
        self.items[Key["pk"]["S"]][Key["sk"]["S"]] = item
        return {"Attributes": item} if more.get("ReturnValues") in {"ALL_NEW", "UPDATED_NEW"} else {}

    def delete_item(self, *, Key: Item, TableName: str) -> Any:
        self.items[Key["pk"]["S"]].pop(Key["sk"]["S"], None)
        return {}

    def batch_get_item(self, *, RequestItems: Mapping[str, Any]) -> Any:
        keys = RequestItems[TABLE]["Keys"]
        assert len({str(key) for key in keys}) == len(keys) <= 100
        return {"Responses": {TABLE: [item for key in keys if (item := self._item(key))]}}

    def batch_write_item(self, *, RequestItems: Mapping[str, Any]) -> Any:
        items = [request["PutRequest"]["Item"] for request in RequestItems[TABLE]]
        assert len({item["sk"]["S"] for item in items}) == len(items) <= 25
        for item in items:
            self.items[item["pk"]["S"]][item["sk"]["S"]] = item
        return {}

    def query(
        self,
        *,
        KeyConditionExpression: str,
        ExpressionAttributeValues: Item,
        **more: Any,
    ) -> Any:
        partition = self.items[ExpressionAttributeValues[":pk"]["S"]]
        after = more["ExclusiveStartKey"]["sk"]["S"] if "ExclusiveStartKey" in more else ""
        limit = min(more.get("Limit", self.max_query_items), self.max_query_items)
        last = ExpressionAttributeValues.get(":last", {}).get("S")
        assert KeyConditionExpression == ("pk = :pk AND sk <= :last" if last else "pk = :pk")
        keys = sorted(sk for sk in partition if after < sk and not (last and sk > last))
        page = [partition[sk] for sk in keys[:limit]]
        shown = page
        if "FilterExpression" in more:
            shown = [item for item in page if _holds(more["FilterExpression"], item, ExpressionAttributeValues)]
        answer: dict[str, Any] = {"Count": len(shown)} | ({"Items": shown} if more.get("Select") != "COUNT" else {})
        # As DynamoDB does, also if nothing comes after the last item of a full page.
        return answer | ({"LastEvaluatedKey": {n: page[-1][n] for n in ("pk", "sk")}} if len(page) == limit else {})

    def _check(self, item: Item | None, condition: str, more: Mapping[str, Any]) -> None:
        values, names = more.get("ExpressionAttributeValues", {}), more.get("ExpressionAttributeNames", {})
        if not _holds(condition, item or {}, values, names):
            response: Any = {"Error": {"Code": "ConditionalCheckFailedException", "Message": "canary"}}
            if more.get("ReturnValuesOnConditionCheckFailure") == "ALL_OLD" and item:
                response["Item"] = item
            raise ClientError(response, "AnyWrite")

    def _item(self, key: Item) -> Item | None:
        return self.items[key["pk"]["S"]].get(key["sk"]["S"])


def _holds(condition: str, item: Item, values: Item, names: Mapping[str, str] | None = None) -> bool:
    """Whether a condition or filter holds for an item; a comparison with an attribute that is missing does not."""

    def has(name: str) -> bool:
        return (names or {}).get(name, name) in item

    def compare(name: str, sign: str, value: str) -> bool:
        if not has(name):
            return False
        left, right = item[(names or {}).get(name, name)], values[value]
        assert left.keys() == right.keys()
        parse = float if "N" in left else str
        return bool(_OPERATORS[sign](*(parse(next(iter(side.values()))) for side in (left, right))))

    python = re.sub(r"attribute_(not_)?exists\(([#\w]+)\)", lambda m: f"{'not ' * bool(m[1])}has('{m[2]}')", condition)
    python = re.sub(r"([#\w]+) ([<>=]+) (:\w+)", r"compare('\1', '\2', '\3')", python)
    python = python.replace(" AND ", " and ").replace(" OR ", " or ")
    return bool(eval(python, {"has": has, "compare": compare}))  # noqa: S307 (conditions of the code under test)


class MemoryQueue:
    """The results queue: takes every message but those that `refuses` picks."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.refuses: Callable[[Mapping[str, Any]], bool] = lambda message: False
        self.deadlines: list[float] = []

    def send(self, messages: Sequence[Mapping[str, Any]], deadline: float) -> list[str | DeliveryFailed]:
        """See `ResultsQueue`."""
        self.deadlines.append(deadline)
        outcomes: list[str | DeliveryFailed] = []
        for message in messages:
            if self.refuses(message):
                outcomes.append(DeliveryFailed("SQS did not accept the message (Refused)."))
            else:
                self.messages.append(dict(message))
                outcomes.append(f"message-{len(self.messages)}")
        return outcomes

    def users(self, kind: Literal["stream_state", "stream_state_problem"] = "stream_state") -> list[str]:
        """The users that the messages of a kind are about, in order of their ids."""
        return sorted(message["user_id"] for message in self.messages if message["type"] == kind)

    def take(self) -> list[dict[str, Any]]:
        """The messages since the last look."""
        taken, self.messages = self.messages, []
        return taken


class MemoryRtc:
    """The vendor: says of each target what its script holds, the last entry for good, else that everything is off."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.calls: list[Target] = []
        self.scripts: dict[Target, deque[Answer]] = {}
        self.default: Answer = media()
        self.seconds_per_call = 0.0
        self._lock = threading.Lock()

    def say(self, target: Target, *answers: Answer) -> None:
        """Answers for a target, in their order."""
        self.scripts[target] = deque(answers)

    def stream_state(
        self, target: Target, deadline: float, before_call: Callable[[], None] = lambda: None
    ) -> StreamState:
        """See `RtcClient`."""
        with self._lock:
            if self.clock.monotonic() > deadline:
                raise QuotaExceeded("No slot is free in time.", retry_after_seconds=2.5)
            before_call()
            self.calls.append(target)
            sent_at_ms = int(self.clock.wall() * 1000)
            script = self.scripts.get(target)
            answer = self.default if script is None else script.popleft() if len(script) > 1 else script[0]
            answer = answer() if callable(answer) else answer
            self.clock.sleep(self.seconds_per_call)
        if isinstance(answer, TargetNotFound):
            answer.observed_at_ms = sent_at_ms
        if isinstance(answer, StreamStateError):
            raise answer
        return StreamState(target, query_facts(answer, sent_at_ms), "query", f"request-{len(self.calls)}")


class World:
    """The package's upper levels on a table, a queue and a vendor in memory, and one clock."""

    def __init__(self, clock: Clock, client: Any = None) -> None:
        self.clock = clock
        self.dynamodb = Calls(client or MemoryTable())
        self.queue = MemoryQueue()
        self.rtc = MemoryRtc(clock)
        self.table: Any = StateTable(self.dynamodb, TABLE, clock.wall)  # type: ignore[arg-type]  # the calls it makes
        self.watch_list = WatchList(self.table)
        self.lookup: Any = Lookup(self.rtc, self.table, clock.monotonic, clock.wall)  # type: ignore[arg-type]  # as above
        self.teller: Any = Teller(self.queue, self.table)  # type: ignore[arg-type]  # as above
        self.sweep = Sweep(self.lookup, self.teller, self.table, clock=clock.monotonic, wall_clock=clock.wall)

    @property
    def is_untouched(self) -> bool:
        """Whether nothing was called, sent, read or stored."""
        return not (self.rtc.calls or self.queue.messages or self.dynamodb.made)

    def function(self, name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
        """The module of a function, on this world."""
        for variable, value in ENVIRONMENT.items():
            monkeypatch.setenv(variable, value)
        module = importlib.import_module(f"functions.{name}.app")
        own = {"settings": Settings.from_environment(ENVIRONMENT), **vars(self)}
        for attribute in (
            own.keys() & vars(module).keys() & {"settings", "table", "watch_list", "lookup", "teller", "sweep"}
        ):
            monkeypatch.setattr(module, attribute, own[attribute])
        monkeypatch.setattr(lookup_module, "time", SimpleNamespace(monotonic=self.clock.monotonic))
        return module

    def known(self, target: Target) -> Known | None:
        """What the table holds of a target."""
        found: Known | None = self.table.read([target]).get(target)
        return found

    def in_seconds(self, seconds: float) -> float:
        """A deadline."""
        return self.clock.seconds + seconds
