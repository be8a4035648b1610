"""What a fault of the campaign is, and what faults are made of."""

import copy
import json
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

from tests.integration.world import CANARIES, World
from tests.sandbox import simulator
from tests.sandbox.server import Response
from tests.sandbox.simulator import Exchange

ECHO = " ".join(CANARIES)
ASKING = ("ask", "query", "task")
EVERY = (*ASKING, "sweep given", "sweep watched")
FEW = ("ask", "task", "sweep watched")
# For faults of which there are many alike, in turn.
IN_TURN = cycle((("ask", "sweep watched"), ("query",), ("task", "sweep given")))
# What a sweep does not go on after: the rest of the watch list has its turn later.
FOR_ALL = ("CredentialsInvalid", "CredentialsUnavailable", "RtcAccessDenied", "RtcActionRetired")
LONG = 40

type Call = Mapping[str, Any]
type Step = Callable[[str, Call], bool]


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong, or a pair; `expect` has the kinds that each way in may answer with."""

    kind: str
    name: str
    expect: Mapping[str, str]
    # What each call to the vendor meets, or the first ones.
    vendor: simulator.Fault | None = None
    once: tuple[simulator.Fault, ...] = ()
    # What the calls to AWS at a step meet, the first `times` of them if there is a number.
    aws: tuple[tuple[str, simulator.Fault, float], ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    prepare: Callable[[World], None] = lambda world: None
    # The time that the invocation has left.
    seconds: float | None = None
    # The vendor says that the users are not there.
    absent: bool = False
    slow: bool = False
    in_short: bool = False

    def begin(self, world: World) -> None:
        """Let it happen from now on."""
        left = [[STEPS[step], fault, times] for step, fault, times in self.aws]

        def at(operation: str, call: Call) -> simulator.Fault | None:
            for entry in left:
                step, fault, times = entry
                if times > 0 and step(operation, call):
                    entry[2] = times - 1
                    world.met += 1
                    return fault
            return None

        def from_vendor(exchange: Exchange) -> simulator.Fault | None:
            world.met += self.vendor is not None
            return self.vendor

        world.start_cold(self.environment)
        self.prepare(world)
        world.seconds, world.pauses = self.seconds, self.seconds is not None
        world.simulator.fail_next(*self.once)
        world.met = 0
        world.simulator.fault = from_vendor
        world.aws_fault = at
        world.is_faulty = True

    def was_met(self, world: World) -> bool:
        """Whether it happened at all, as far as that can be counted."""
        return (
            world.met > 0 or any(arrival.fault for arrival in world.simulator.arrivals) or not (self.aws or self.once)
        )


def everywhere(kind: str, ways: tuple[str, ...] = EVERY) -> dict[str, str]:
    """The same of each way in."""
    expected = dict.fromkeys(ways, kind)
    if kind.partition(" ")[0] in FOR_ALL and "sweep watched" in ways:
        expected["sweep watched"] += "|remaining"
    if kind == "TargetNotFound":
        expected |= dict.fromkeys(("sweep given", "sweep watched"), "answer")
    if kind == "RtcActionRetired":
        expected |= dict.fromkeys(ASKING, "answer") | {"sweep given": "answer|RtcActionRetired"}
    return {way: expected[way] for way in ways}


ALWAYS = float("inf")


def always(step: str, fault: simulator.Fault) -> tuple[tuple[str, simulator.Fault, float], ...]:
    """Each call at a step meets this."""
    return ((step, fault, ALWAYS),)


def once(step: str, fault: simulator.Fault) -> tuple[tuple[str, simulator.Fault, float], ...]:
    """The first call at a step meets this."""
    return ((step, fault, 1),)


def raw(data: bytes) -> simulator.Fault:
    """Send these bytes and close."""
    return lambda exchange: exchange.connection.sendall(data)


def silence(exchange: Exchange) -> None:
    """Wait until the client goes away."""
    exchange.connection.recv(1)


def lookup(result: Exception | float, host: str = "127.0.0.1") -> Callable[[World], None]:
    """Looking up the name of the vendor, or another host, fails or takes so many seconds."""

    def prepare(world: World) -> None:
        port = world.ports["vendor" if host == "127.0.0.1" else "aws"]

        def resolve(asked: str, asked_port: int) -> None:
            if (asked, asked_port) != (host, port):
                return
            world.met += 1
            if isinstance(result, Exception):
                raise result
            time.sleep(result)

        world.resolve = resolve

    return prepare


def altered(path: tuple[str | int, ...], value: object, status: int = 200) -> simulator.Fault:
    """The honest answer but for one value, or without it; an Error on the way is made."""

    def fault(exchange: Exchange) -> Response:
        envelope = copy.deepcopy(exchange.envelope)
        place: Any = envelope
        for name in path[:-1]:
            if name == "Error":
                place.setdefault("Error", {"CodeN": 100013, "Code": "AccessDenied", "Message": ECHO})
            if not isinstance(place, list) and name not in place:
                # Of a user who is not there the vendor says nothing that could be altered.
                return exchange.response()
            place = place[name]
        if value is MISSING:
            place.pop(path[-1], None)
        else:
            place[path[-1]] = value
        return Response(status, json.dumps(envelope).encode(), list(simulator.JSON.items()))

    return fault


def told(*entries: tuple[str, object]) -> simulator.Fault:
    """Answer for the user asked with these entries."""
    return simulator.states([{"MediaType": name, "State": state} for name, state in entries])


NAMES = {
    "name unknown": socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
    "name service asks to try again": socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"),
    "name service fails": socket.gaierror(socket.EAI_FAIL, "Non-recoverable failure in name resolution"),
    "no sockets left": OSError(24, "Too many open files"),
}
MISSING = object()
MEDIA_TYPES = ("Audio", "Video", "ScreenAudio", "ScreenVideo")


def updates(word: str, without: str = "nothing") -> Step:
    return lambda operation, call: (
        operation == "UpdateItem" and word in call["UpdateExpression"] and without not in call["UpdateExpression"]
    )


def of(operation: str, *words: str) -> Step:
    """The calls of an operation in which these words stand."""
    return lambda called, call: called == operation and all(word in json.dumps(call) for word in words)


def both(*steps: Step) -> Step:
    return lambda operation, call: any(step(operation, call) for step in steps)


def reads(user: str) -> Step:
    """The reads of what is known, to be merged, of any user or of one: of several at once, or of each."""

    def matches(operation: str, call: Mapping[str, Any]) -> bool:
        if operation == "BatchGetItem":
            return any(entry.get("ConsistentRead") for entry in call["RequestItems"].values()) and user in str(call)
        return operation == "GetItem" and call["Key"]["sk"]["S"] not in {"rtc", "room"} and user in str(call)

    return matches


STEPS: dict[str, Step] = {
    "read the keys": of("GetSecretValue", "SigningKeys"),
    "read the callback key": of("GetSecretValue", "CallbackKey"),
    "reserve a slot": updates("next_us"),
    "look for a hold": of("GetItem", '"limiter"'),
    "hold all calls": updates("hold_until = :until"),
    "read what is known": reads(""),
    "read the end of the room": of("GetItem", '"room"'),
    "write what is known": of("PutItem"),
    "write what was told": updates("told = :told"),
    "read several states": of("BatchGetItem"),
    "read a room": of("Query", '"state#'),
    "write watches": of("BatchWriteItem"),
    "delete a watch": of("DeleteItem"),
    "read the watches": lambda operation, call: of("Query", '"watch"')(operation, call) and "Select" not in call,
    "count the watches": of("Query", "COUNT"),
    "take the lease": updates("holder = :token"),
    "keep the lease": updates("#cursor"),
    "send": of("SendMessageBatch"),
    "park": of("SendMessage"),
}
STEPS["any call of DynamoDB"] = lambda operation, call: "TableName" in call or "RequestItems" in call
STEPS["any call of SQS"] = both(STEPS["send"], STEPS["park"])
STEPS["any state"] = both(*(STEPS[name] for name in ("read what is known", "write what is known")))
