"""The outside world in memory: a DynamoDB table, the results queue and the vendor, each failing as it is told to."""

import copy
import re
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from botocore.exceptions import ClientError

from stream_state.errors import DeliveryFailed, QuotaExceeded, StreamStateError, TargetNotFound
from stream_state.lookup import Lookup, Teller
from stream_state.model import PRESENT, Fact, Known, Medium, StreamState, Target
from stream_state.sweep import Sweep
from stream_state.table import StateTable
from tests.unit.fakes import Clock

TABLE = "states"
APP_ID = "661e8f2a9b3c4d5e6f708192"

type Item = dict[str, Any]
type Key = tuple[str, str]
type Media = dict[str, bool | None]
# None lets a call happen; an exception is raised; anything else is the answer.
type Effect = Exception | Mapping[str, Any] | None
type Answer = Media | StreamStateError | Callable[[], Media | StreamStateError]


def media(*on: str, unknown: Iterable[str] = ()) -> Media:
    """What the vendor says of the four media: on or unknown as named, else off."""
    return {medium.value: None if medium in unknown else medium in on for medium in Medium}


def targets(count: int, room_id: str = "class-1") -> list[Target]:
    """As many targets of a room, in the order of the watch list."""
    return [Target(APP_ID, room_id, f"user-{index:05}") for index in range(count)]


class MemoryTable:
    """The calls of a DynamoDB client that the project makes, on one table."""

    def __init__(self) -> None:
        self.items: dict[str, dict[str, Item]] = defaultdict(dict)
        self.calls: list[tuple[str, Mapping[str, Any]]] = []
        self.effects: dict[str, Iterator[Effect | Callable[[Mapping[str, Any]], Effect]]] = {}
        self.max_query_items = 1_000
        self._lock = threading.Lock()

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        """A call of the client, after the next effect that a test wants it to have."""
        perform = getattr(type(self), f"_{operation}")

        def call(**parameters: Any) -> Any:
            self.calls.append((operation, parameters))
            effect = next(self.effects.get(operation, iter(())), None)
            if callable(effect):
                effect = effect(parameters)
            if isinstance(effect, Exception):
                raise effect
            with self._lock:
                return copy.deepcopy(perform(self, **parameters) if effect is None else effect)

        return call

    def count(self, operation: str) -> int:
        """How many calls of an operation were made."""
        return sum(name == operation for name, _ in self.calls)

    def _get_item(self, *, Key: Item, TableName: str, ConsistentRead: bool = False) -> Any:  # noqa: N803 (as boto3 names them)
        item = self._item(Key)
        return {"Item": item} if item else {}

    def _update_item(
        self,
        *,
        Key: Item,  # noqa: N803 (as boto3 names it)
        UpdateExpression: str,  # noqa: N803 (as boto3 names it)
        ConditionExpression: str,  # noqa: N803 (as boto3 names it)
        ExpressionAttributeValues: Item,  # noqa: N803 (as boto3 names it)
        **more: Any,
    ) -> Any:
        item = self._item(Key)
        names = more.get("ExpressionAttributeNames", {})
        if not _holds(ConditionExpression, item or {}, ExpressionAttributeValues, names):
            response: Any = {"Error": {"Code": "ConditionalCheckFailedException", "Message": "canary"}}
            if more.get("ReturnValuesOnConditionCheckFailure") == "ALL_OLD" and item:
                response["Item"] = copy.deepcopy(item)
            raise ClientError(response, "UpdateItem")
        item = item or dict(Key)
        for assignment in UpdateExpression.removeprefix("SET ").split(", "):
            name, value = assignment.split(" = ")
            item[names.get(name, name)] = ExpressionAttributeValues[value]
        self.items[Key["pk"]["S"]][Key["sk"]["S"]] = item
        return {"Attributes": item} if more.get("ReturnValues") == "ALL_NEW" else {}

    def _delete_item(self, *, Key: Item, TableName: str) -> Any:  # noqa: N803 (as boto3 names them)
        self.items[Key["pk"]["S"]].pop(Key["sk"]["S"], None)
        return {}

    def _batch_get_item(self, *, RequestItems: Mapping[str, Any]) -> Any:  # noqa: N803 (as boto3 names it)
        keys = RequestItems[TABLE]["Keys"]
        assert len({str(key) for key in keys}) == len(keys) <= 100
        return {"Responses": {TABLE: [item for key in keys if (item := self._item(key))]}}

    def _batch_write_item(self, *, RequestItems: Mapping[str, Any]) -> Any:  # noqa: N803 (as boto3 names it)
        items = [request["PutRequest"]["Item"] for request in RequestItems[TABLE]]
        assert len({item["sk"]["S"] for item in items}) == len(items) <= 25
        for item in items:
            self.items[item["pk"]["S"]][item["sk"]["S"]] = item
        return {}

    def _query(
        self,
        *,
        KeyConditionExpression: str,  # noqa: N803 (as boto3 names it)
        ExpressionAttributeValues: Item,  # noqa: N803 (as boto3 names it)
        **more: Any,
    ) -> Any:
        values = ExpressionAttributeValues
        partition = self.items[values[":pk"]["S"]]
        after = more["ExclusiveStartKey"]["sk"]["S"] if "ExclusiveStartKey" in more else ""
        limit = min(more.get("Limit", self.max_query_items), self.max_query_items)
        keys = sorted(sk for sk in partition if sk > after)
        if "AND" in KeyConditionExpression:
            keys = [sk for sk in keys if _holds(KeyConditionExpression, partition[sk], values)]
        page = [partition[sk] for sk in keys[:limit]]
        shown = [item for item in page if _holds(more.get("FilterExpression", "True"), item, values)]
        answer: dict[str, Any] = {"Count": len(shown)} | ({"Items": shown} if more.get("Select") != "COUNT" else {})
        # As DynamoDB does, also if nothing comes after the last item of a full page.
        return answer | ({"LastEvaluatedKey": {n: page[-1][n] for n in ("pk", "sk")}} if len(page) == limit else {})

    def _item(self, key: Item) -> Item | None:
        return self.items[key["pk"]["S"]].get(key["sk"]["S"])


def _holds(condition: str, item: Item, values: Item, names: Mapping[str, str] | None = None) -> bool:
    """Whether a condition or filter holds for an item; a comparison with an attribute that is missing does not."""

    def value(of: Item, name: str) -> Any:
        (kind, text), *_ = of.get(name, {"N": "nan"}).items()
        return float(text) if kind == "N" else text

    def python(token: re.Match[str]) -> str:
        word = token[0]
        if word in {"AND", "OR", "True"}:
            return word if word == "True" else word.lower()
        if word in {"attribute_exists", "attribute_not_exists"}:
            return "not known" if "not" in word else "known"
        if word.startswith(":"):
            return f"value(values, {word!r})"
        return f"value(item, {(names or {}).get(word, word)!r})"

    existence = re.sub(r"(attribute_\w+)\(([\w#]+)\)", lambda m: f"{m[1]}({(names or {}).get(m[2], m[2])!r})", condition)
    expression = re.sub(r"'\w+'|[:#\w]+", lambda m: m[0] if m[0].startswith("'") else python(m), existence)
    scope = {"value": value, "values": values, "item": item, "known": item.__contains__}
    return bool(eval(re.sub(r"(?<![<>])=", "==", expression), scope))  # noqa: S307 (conditions of the code under test)


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
        facts = {name: Fact(value, sent_at_ms) for name, value in answer.items()}
        if any(answer.values()):
            facts[PRESENT] = Fact(value=True, at_ms=sent_at_ms)
        return StreamState(target, facts, "query", f"request-{len(self.calls)}")


class World:
    """The package's upper levels on a table, a queue and a vendor in memory, and one clock."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.dynamodb = MemoryTable()
        self.queue = MemoryQueue()
        self.rtc = MemoryRtc(clock)
        self.table: Any = StateTable(self.dynamodb, TABLE, clock.wall)  # type: ignore[arg-type]  # the calls it makes
        self.lookup: Any = Lookup(self.rtc, self.table, clock.monotonic, clock.wall)  # type: ignore[arg-type]  # as above
        self.teller: Any = Teller(self.queue, self.table)  # type: ignore[arg-type]  # as above
        self.sweep = Sweep(self.lookup, self.teller, self.table, clock=clock.monotonic, wall_clock=clock.wall)

    def known(self, target: Target) -> Known | None:
        """What the table holds of a target."""
        found: Known | None = self.table.read([target]).get(target)
        return found

    def in_seconds(self, seconds: float) -> float:
        """A deadline."""
        return self.clock.seconds + seconds
