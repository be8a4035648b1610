"""The parts that the faults of the campaign are made of."""

import copy
import json
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from typing import Any

from tests.integration.world import CANARIES, FaultyWorld
from tests.sandbox import simulator
from tests.sandbox.server import Response
from tests.sandbox.simulator import Exchange
from tests.vendor.faults import states

ECHO = " ".join(CANARIES)
ASKING = ("ask", "query", "task")
EVERY = (*ASKING, "sweep given", "sweep watched", "recheck")
FEW = ("ask", "task", "sweep watched")
# For faults of which there are many alike, in turn.
IN_TURN = cycle((("ask", "sweep watched"), ("query", "recheck"), ("task", "sweep given")))
# After these a sweep does not go on: the rest of the watch list has its turn later.
FOR_ALL = ("CredentialsInvalid", "CredentialsUnavailable", "RtcAccessDenied", "RtcActionRetired")
LONG = 3.5

type Call = Mapping[str, Any]
type Step = Callable[[str, Call], bool]
# A step, what the calls to AWS at it meet, and how many of them.
type AtStep = tuple[str, simulator.Fault, float]


@dataclass(frozen=True)
class Fault:
    """One fault, or a pair; `expect` has the kinds that each way in may answer with."""

    kind: str
    name: str
    expect: Mapping[str, str]
    # The fault that each call to the vendor meets, or the faults of the first ones.
    vendor: simulator.Fault | None = None
    once: tuple[simulator.Fault, ...] = ()
    aws: tuple[AtStep, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    prepare: Callable[[FaultyWorld], None] = lambda world: None
    # The time that the invocation has left.
    seconds: float | None = None
    # The vendor says that the users are not there.
    absent: bool = False
    slow: bool = False
    in_short: bool = False

    def begin(self, world: FaultyWorld) -> None:
        """Let the fault be from now on."""
        left = [times for _, _, times in self.aws]

        def at(operation: str, call: Call) -> simulator.Fault | None:
            for place, (step, fault, _) in enumerate(self.aws):
                if left[place] > 0 and STEPS[step](operation, call):
                    left[place] -= 1
                    world.met += 1
                    return fault
            return None

        def from_vendor(exchange: Exchange) -> simulator.Fault | None:
            world.met += self.vendor is not None
            return self.vendor

        world.start_cold(self.environment)
        world.met = 0
        self.prepare(world)
        world.kept = frozenset(world.connections)
        world.seconds, world.pauses = self.seconds, self.seconds is not None
        world.simulator.fail_next(*self.once)
        world.simulator.fault = from_vendor
        world.aws_fault = at
        world.is_faulty = True

    def was_met(self, world: FaultyWorld) -> bool:
        """Whether anything met the fault, as far as that can be counted."""
        is_counted = bool(self.aws or self.once)
        return not is_counted or world.met > 0 or any(arrival.fault for arrival in world.simulator.arrivals)


# A recheck that fails in a way that may pass stays in the queue; else the list asks for it later.
RECHECKED = "received|item failure"


def everywhere(kind: str, ways: tuple[str, ...] = EVERY) -> dict[str, str]:
    """The same of each way in, as far as it says so; a recheck that fails comes again, now or later."""
    expected = dict.fromkeys(ways, kind) | {"recheck": RECHECKED}
    if kind.partition(" ")[0] in FOR_ALL and "sweep watched" in ways:
        expected["sweep watched"] += "|remaining"
    if kind == "TargetNotFound":
        expected |= dict.fromkeys(("sweep given", "sweep watched"), "answer")
    if kind == "RtcActionRetired":
        expected |= dict.fromkeys(ASKING, "answer") | {"sweep given": "answer|RtcActionRetired"}
    return {way: expected[way] for way in ways}


ALWAYS = float("inf")


def always(step: str, fault: simulator.Fault, times: float = ALWAYS) -> tuple[AtStep, ...]:
    """Each call at a step meets this, or the first ones."""
    return ((step, fault, times),)


once = partial(always, times=1)


def raw(data: bytes) -> simulator.Fault:
    """Send these bytes and close."""
    return lambda exchange: exchange.connection.sendall(data)


def silence(exchange: Exchange) -> None:
    """Wait until the client goes away."""
    exchange.connection.recv(1)


def lookup(result: Exception | float, host: str = "127.0.0.1") -> Callable[[FaultyWorld], None]:
    """Looking up the name of the vendor, or of another host, fails or takes so many seconds."""

    def prepare(world: FaultyWorld) -> None:
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
        envelope: Any = copy.deepcopy(exchange.envelope)
        place = envelope
        for name in path[:-1]:
            if name == "Error":
                place.setdefault("Error", {"CodeN": 100013, "Code": "AccessDenied", "Message": ECHO})
            if type(place) is dict and name not in place:
                # Of a user who is not there the vendor says nothing that could be altered.
                return exchange.response()
            place = place[name]
        if value is MISSING:
            place.pop(path[-1], None)
        else:
            place[path[-1]] = value
        return Response(status, json.dumps(envelope).encode(), list(simulator.JSON.items()))

    return fault


def stated(*entries: tuple[str, object]) -> simulator.Fault:
    """Answer for the user asked with these entries."""
    return states([{"MediaType": name, "State": state} for name, state in entries])


NAMES = {
    "name unknown": socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
    "name service asks to try again": socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"),
    "name service fails": socket.gaierror(socket.EAI_FAIL, "Non-recoverable failure in name resolution"),
    "no sockets left": OSError(24, "Too many open files"),
}
MISSING = object()
MEDIA_TYPES = ("Audio", "Video", "ScreenAudio", "ScreenVideo")


def updates(word: str) -> Step:
    """The updates of an item in whose expression a word stands."""
    return lambda operation, call: operation == "UpdateItem" and word in call["UpdateExpression"]


def either(*steps: Step) -> Step:
    """Any of these steps."""
    return lambda operation, call: any(step(operation, call) for step in steps)


def puts(*written: str) -> Step:
    """The writes of a state record that change this part of it; see `Wire`."""
    return lambda operation, call: call["written"] in written


def of(operation: str, *words: str, without: str = "nothing") -> Step:
    """The calls of an operation in which these words stand, and not another one."""

    def matches(called: str, call: Call) -> bool:
        words_of_call = json.dumps(call)
        return called == operation and all(word in words_of_call for word in words) and without not in words_of_call

    return matches


def to(service: str, *, kept: bool = False) -> Step:
    """The calls to a service, or those on connections that were kept from before the fault."""

    def matches(operation: str, call: Call) -> bool:
        is_of_table = "TableName" in call or "RequestItems" in call
        called = {"GetSecretValue": "Secrets Manager", "SendTaskSuccess": "Step Functions"}.get(operation)
        called = called or ("DynamoDB" if is_of_table else "SQS")
        return called == service and (call["kept"] or not kept)

    return matches


STEPS: dict[str, Step] = {
    "read the keys": of("GetSecretValue", "SigningKeys"),
    "read the callback key": of("GetSecretValue", "CallbackKey"),
    "reserve a slot": updates("next_us"),
    "hold all calls": updates("hold_until = :until"),
    "read records to merge": of("BatchGetItem", '"ConsistentRead": true'),
    "read the end of the room": of("GetItem", '"room"'),
    "write the record": puts("observations"),
    "mark the delivery": puts("delivered_sequence"),
    "list undelivered changes": of("Query", "IndexName"),
    "read several records": of("BatchGetItem"),
    "read a room": of("Query", '"state#'),
    "write watches": of("BatchWriteItem"),
    "delete a watch": of("DeleteItem", '"watch#'),
    "register a wait": of("PutItem", '"wait#'),
    "mark the record of a wait": either(updates("has_waits"), puts("has_waits")),
    "take the mark away": puts("no waits"),
    "find the waits": of("Query", '"wait#'),
    "remove a wait": of("DeleteItem", '"wait#'),
    "answer a wait": of("SendTaskSuccess"),
    "read the watches": of("Query", '"watch#', without="Select"),
    "count the watches": of("Query", "COUNT"),
    "take the lease": updates("SET holder"),
    "keep the lease": updates("cursor_key"),
    "send": of("SendMessageBatch"),
    "keep the event": of("SendMessage", without="DelaySeconds"),
    "ask for a recheck": of("SendMessage", "DelaySeconds"),
}
for _service in ("DynamoDB", "SQS", "Secrets Manager"):
    STEPS[f"any call of {_service}"] = to(_service)
    STEPS[f"a kept connection to {_service}"] = to(_service, kept=True)
