"""The outside world in memory: a DynamoDB table, the results queue and the vendor, each failing as a test wants."""
# ruff: noqa: N803 (parameters are named as boto3 names them)

import importlib
import json
import math
import operator
import re
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import CodeType
from typing import Any, Literal

import pytest
from botocore.exceptions import ClientError

from stream_state.adapters.state_store import StateStore
from stream_state.adapters.table import Table
from stream_state.adapters.wait_list import WaitList
from stream_state.adapters.watch_list import WatchList
from stream_state.domain.merging import StateRecord
from stream_state.domain.observations import Observations, QueryResult
from stream_state.domain.requests import SweepRequest
from stream_state.domain.targets import Medium, Target
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
from stream_state.observability import publish_metrics
from stream_state.services.delivery import Delivery
from stream_state.services.lookup import Lookup
from stream_state.services.recording import Recorder
from stream_state.services.sweep import Sweep
from stream_state.settings import Settings
from tests.unit.fakes import Clock
from tests.unit.presence import MemoryPresence

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

_OPERATORS: Mapping[str, Callable[[Any, Any], bool]] = {
    "begins_with": str.startswith,
    "=": operator.eq,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}

type Item = dict[str, Any]
type Key = tuple[str, str]
type Media = dict[str, bool | None]
# None lets a call happen; an exception is raised; anything else is the answer.
type Effect = Exception | Mapping[str, Any] | None
type Answer = Media | StreamStateError | Callable[[], Media | StreamStateError]


def media(*on: str, unknown: Iterable[str] = ()) -> Media:
    """What the vendor says of the four media: on or unknown as named, else off."""
    return {medium.value: None if medium in unknown else medium in on for medium in Medium}


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


def samples(*functions: str) -> dict[str, Any]:
    """The sample events of functions, by their path below events/."""
    paths = sorted(path for function in functions for path in (EVENTS / function).glob("*.json"))
    return {f"{path.parent.name}/{path.stem}": json.loads(path.read_text()) for path in paths}


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
    codes: Any = {"rtc_code": "SomeCode", "rtc_request_id": "request-7"}
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
        self.max_query_items = self.max_scan_items = 1_000

    def get_item(self, *, Key: Item, TableName: str, ConsistentRead: bool = False) -> Any:
        item = self._item(Key)
        return {"Item": item} if item else {}

    def put_item(self, *, Item: Item, **more: Any) -> Any:
        self._check(self._item(Item), more.get("ConditionExpression", "True"), more)
        self.items[Item["pk"]["S"]][Item["sk"]["S"]] = Item
        return {}

    def update_item(self, *, Key: Item, UpdateExpression: str, ConditionExpression: str, **more: Any) -> Any:
        item = self._item(Key)
        values = more["ExpressionAttributeValues"]
        self._check(item, ConditionExpression, more)
        item = dict(item or Key)
        for assignment in UpdateExpression.removeprefix("SET ").split(", "):
            name, value = assignment.split(" = ")
            before, _, added = value.rpartition(" + ")
            number = {"N": str(int(item[before]["N"]) + int(values[added]["N"]))} if before else values[value]
            item[name] = number
        self.items[Key["pk"]["S"]][Key["sk"]["S"]] = item
        return {"Attributes": item} if more.get("ReturnValues") in {"ALL_NEW", "UPDATED_NEW"} else {}

    def delete_item(self, *, Key: Item, **more: Any) -> Any:
        self._check(self._item(Key), more.get("ConditionExpression", "True"), more)
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
        if "IndexName" in more:
            return self._undelivered(KeyConditionExpression, ExpressionAttributeValues, more)
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

    def scan(self, *, FilterExpression: str, ExpressionAttributeValues: Item, **more: Any) -> Any:
        start = more.get("ExclusiveStartKey", {"pk": {"S": ""}, "sk": {"S": ""}})
        last = start["pk"]["S"], start["sk"]["S"]
        keys = sorted((pk, sk) for pk, partition in self.items.items() for sk in partition if (pk, sk) > last)
        page = [self.items[pk][sk] for pk, sk in keys[: min(more["Limit"], self.max_scan_items)]]
        names = more["ProjectionExpression"].split(", ")
        shown = [item for item in page if _holds(FilterExpression, item, ExpressionAttributeValues)]
        end = (
            {"LastEvaluatedKey": {name: page[-1][name] for name in ("pk", "sk")}} if page and keys[len(page) :] else {}
        )
        return {"Items": [{name: item[name] for name in names} for item in shown], **end}

    def _undelivered(self, condition: str, values: Item, more: Mapping[str, Any]) -> Any:
        items = [item for partition in self.items.values() for item in partition.values()]
        listed = [item for item in items if {"undelivered", "deliver_after"} <= item.keys()]

        def order(item: Item) -> tuple[int, str, str]:
            return int(item["deliver_after"]["N"]), item["pk"]["S"], item["sk"]["S"]

        found = sorted((item for item in listed if _holds(condition, item, values)), key=order)
        after = [
            item for item in found if "ExclusiveStartKey" not in more or order(item) > order(more["ExclusiveStartKey"])
        ]
        page = after[: more["Limit"]]
        keys = [{name: item[name] for name in ("pk", "sk", "undelivered", "deliver_after")} for item in page]
        return {"Items": page} | ({"LastEvaluatedKey": keys[-1]} if len(page) == more["Limit"] else {})

    def _check(self, item: Item | None, condition: str, more: Mapping[str, Any]) -> None:
        if not _holds(condition, item or {}, more.get("ExpressionAttributeValues", {})):
            response: Any = {"Error": {"Code": "ConditionalCheckFailedException", "Message": "canary"}}
            if more.get("ReturnValuesOnConditionCheckFailure") == "ALL_OLD" and item:
                response["Item"] = item
            raise ClientError(response, "AnyWrite")

    def _item(self, key: Item) -> Item | None:
        return self.items[key["pk"]["S"]].get(key["sk"]["S"])


def _holds(condition: str, item: Item, values: Item) -> bool:
    """Whether a condition or filter holds for an item; a comparison with an attribute that is missing does not."""

    def has(name: str) -> bool:
        return name in item

    def compare(name: str, sign: str, value: str) -> bool:
        if not has(name):
            return False
        left, right = item[name], values[value]
        assert left.keys() == right.keys()
        parse = float if "N" in left else str
        return bool(_OPERATORS[sign](*(parse(next(iter(side.values()))) for side in (left, right))))

    return bool(eval(_compiled(condition), {"has": has, "compare": compare}))  # noqa: S307 (conditions of the code under test)


@cache
def _compiled(condition: str) -> CodeType:
    """A condition as Python: the truth campaign checks some of them a million times."""
    python = re.sub(r"attribute_(not_)?exists\((\w+)\)", lambda m: f"{'not ' * bool(m[1])}has('{m[2]}')", condition)
    python = re.sub(r"(begins_with)\((\w+), (:\w+)\)", r"\2 \1 \3", python)
    python = re.sub(r"(\w+) ([<>=]+|begins_with) (:\w+)", r"compare('\1', '\2', '\3')", python)
    return compile(python.replace(" AND ", " and ").replace(" OR ", " or "), "condition", "eval")


class MemoryWorkflows:
    """Workflows that wait with task tokens: those in `dead` are over, and all fail while `is_down`."""

    def __init__(self) -> None:
        self.answers: list[tuple[str, dict[str, Any]]] = []
        self.dead: set[str] = set()
        self.is_down = False
        self.clock: Clock | None = None
        self.seconds_per_answer = 0.0

    def answer(self, token: str, document: Mapping[str, Any]) -> bool:
        """See `Workflows`."""
        if self.clock:
            self.clock.sleep(self.seconds_per_answer)
        if self.is_down:
            return False
        if token not in self.dead:
            self.dead.add(token)
            self.answers.append((token, dict(document)))
        return True


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


class MemoryRetryQueue:
    """The retry queue: texts kept, and targets to recheck."""

    def __init__(self) -> None:
        self.kept: list[tuple[str, int]] = []
        self.rechecks: list[tuple[Target, int]] = []
        self.is_down = False

    def keep(self, text: str, received_at_ms: int) -> None:
        """See `RetryQueue`."""
        self._fail()
        self.kept.append((text, received_at_ms))

    def recheck(self, target: Target, due_ms: int) -> None:
        """See `RetryQueue`."""
        self._fail()
        self.rechecks.append((target, due_ms))

    def _fail(self) -> None:
        if self.is_down:
            raise DeliveryFailed("SQS did not accept the message (Down).")


class MemoryRtc(MemoryPresence):
    """The vendor: answers for each target from its script, the last entry for good, else that everything is off."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.calls: list[Target] = []
        self.waits: list[float] = []
        self.scripts: dict[Target, deque[Answer]] = {}
        self.default: Answer = media()
        self.seconds_per_call = 0.0
        self._lock = threading.Lock()

    @property
    def calls_made(self) -> int:
        """See `VolcengineClient`."""
        return len(self.calls) + len(self.presence_calls)

    def say(self, target: Target, *answers: Answer) -> None:
        """Answers for a target, in their order."""
        self.scripts[target] = deque(answers)

    def stream_state(
        self,
        target: Target,
        deadline: float,
        *,
        max_wait_seconds: float = math.inf,
        before_call: Callable[[], None] = lambda: None,
    ) -> QueryResult:
        """See `VolcengineClient`."""
        with self._lock:
            self.waits.append(max_wait_seconds)
            if self.clock.monotonic() > deadline:
                raise QuotaExceeded("No slot is free in time.", retry_after_seconds=2.5)
            before_call()
            self.calls.append(target)
            sent_at_ms = self.clock.now_ms()
            script = self.scripts.get(target)
            answer = self.default if script is None else script.popleft() if len(script) > 1 else script[0]
            answer = answer() if callable(answer) else answer
            self.clock.sleep(self.seconds_per_call)
        if isinstance(answer, TargetNotFound):
            codes: Any = {"rtc_code": answer.rtc_code, "rtc_request_id": answer.rtc_request_id}
            raise TargetNotFound(answer.detail, observed_at_ms=sent_at_ms, **codes)
        if isinstance(answer, StreamStateError):
            raise answer
        values = {Medium(name): value for name, value in answer.items()}
        return QueryResult(values, sent_at_ms, f"request-{len(self.calls)}")


def stands_in(fake: object) -> Any:
    """A fake where the product asks for the real thing."""
    return fake


class World:
    """The package's services on a table, queues and a vendor in memory, and one clock."""

    def __init__(
        self,
        clock: Clock,
        client: Any = None,
        *,
        rechecks: bool = True,
        query: str = "on",
        workflows: MemoryWorkflows | None = None,
    ) -> None:
        self.clock = clock
        self.dynamodb = Calls(client or MemoryTable())
        self.queue = stands_in(MemoryQueue())
        self.retry_queue = stands_in(MemoryRetryQueue())
        self.rtc = stands_in(MemoryRtc(clock))
        self.table = Table(stands_in(self.dynamodb), TABLE, clock)
        self.store = StateStore(self.table, recheck_after_ms=6000 if rechecks else None, delivers=True)
        self.watch_list = WatchList(self.table)
        self.workflows = workflows or MemoryWorkflows()
        self.wait_list = WaitList(self.table)
        self.recorder = Recorder(self.store, self.retry_queue, workflows=stands_in(self.workflows))
        self.lookup = Lookup(self.rtc, self.recorder, query)
        self.delivery = Delivery(self.queue, self.recorder)
        self.sweep = Sweep(self.lookup, self.delivery, self.watch_list)

    def another(self) -> "World":
        """Another instance on the same table, queues and workflows, which has kept no record."""
        other = World(self.clock, self.dynamodb.client, workflows=self.workflows)
        other.queue = other.delivery.queue = self.queue
        other.retry_queue = other.recorder.retry_queue = self.retry_queue
        return other

    def see(self, target: Target, observations: Observations) -> None:
        """Let an API function see something: it records the change and delivers nothing."""
        replace(self.store, delivers=False).observe(target, observations)

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
        replaced = {"settings", "table", "store", "watch_list", "lookup", "delivery", "sweep", "waits"}
        for attribute in own.keys() & vars(module).keys() & replaced:
            monkeypatch.setattr(module, attribute, own[attribute])
        monkeypatch.setattr("stream_state.clock.CLOCK", self.clock)
        return module

    def record(self, target: Target) -> StateRecord | None:
        """The state record of a target in the table."""
        return self.store.read([target]).get(target)

    def values(self, target: Target) -> dict[str, bool | None] | None:
        """The values of a target's record."""
        found = self.record(target)
        return found.state.values if found else None

    def in_seconds(self, seconds: float) -> float:
        """A deadline."""
        return self.clock.seconds + seconds

    def run_sweep(self, *given: Target, emits_all: bool = False, seconds: float = 600) -> dict[str, Any]:
        """Sweep given targets, or the watched ones, with so much time to ask and ten seconds more to send."""
        request = SweepRequest(given or None, emits_all)
        return self.sweep.run(request, self.in_seconds(seconds), self.in_seconds(seconds + 10))
