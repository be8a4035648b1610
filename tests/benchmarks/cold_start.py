"""Measures cold starts, and requests to a warm instance, of the built API function, of the peers and of the floor.

All run under the same runtime client and ask the same simulator; moto and the simulator are in this process, the
function in another. Nothing may write bytecode, as on Lambda.
"""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.sandbox.functions import Functions
from tests.sandbox.stack import Sandbox

ROOM_ID, USER_ID = "class-1", "teacher"
HERE = Path(__file__).parent
PEER = HERE.parents[1] / ".aws-sam" / "peers" / "build" / "Peer"
OURS, FLOOR = "ApiFunction", "floor"
PEERS = {"volcengine": "first_sdk", "volcengine-python-sdk": "second_sdk"}
WITH_TABLE = " with a table"


def event() -> dict[str, Any]:
    """A request of an HTTP API for the state of one user."""
    path = f"/rooms/{ROOM_ID}/users/{USER_ID}/stream-state"
    return {
        "version": "2.0",
        "routeKey": "GET /rooms/{room_id}/users/{user_id}/stream-state",
        "rawPath": path,
        "rawQueryString": "",
        "headers": {"host": "api.example"},
        "pathParameters": {"room_id": ROOM_ID, "user_id": USER_ID},
        "requestContext": {"requestId": "r", "stage": "$default", "http": {"method": "GET", "path": path}},
        "isBase64Encoded": False,
    }


@contextmanager
def functions() -> Iterator[Functions]:
    """The functions to compare, in one sandbox."""
    with Sandbox() as sandbox, tempfile.TemporaryDirectory() as directory:
        sandbox.simulator.publish(ROOM_ID, USER_ID, "Audio")
        sandbox.simulator.calls_per_second = None
        ours = sandbox.functions.functions[OURS]
        peer = replace(ours, code_directory=PEER, layer_directories=(), handler="app.lambda_handler")
        compared = {OURS: ours}
        for name, sdk in PEERS.items():
            compared[name] = replace(peer, environment={**ours.environment, "SDK": sdk})
            compared[name + WITH_TABLE] = replace(compared[name], handler="app.handler_with_table")
        compared[FLOOR] = replace(peer, code_directory=HERE / "peers", handler="floor.lambda_handler")
        measured = Functions(compared, Path(directory))
        try:
            yield measured
        finally:
            measured.stop()


def processor_seconds(pid: int) -> float:
    """What the processor has worked for a process, by the clock that Linux has for each."""
    return time.clock_gettime(~pid << 3 | 2)


def ask(functions: Functions, name: str) -> tuple[float, float]:
    """Seconds until the answer of a function, and the processor's for it, its start included if it was cold."""
    before = sum(map(processor_seconds, functions.processes(name)))
    invocation = functions.invoke(name, event())
    if invocation.error or invocation.payload["statusCode"] != 200:
        raise RuntimeError(f"{name}: {invocation.payload}\n{functions.log(name)}")
    (process,) = functions.processes(name)
    return invocation.duration_ms / 1000, processor_seconds(process) - before


@dataclass(frozen=True)
class Times:
    """Of a function: seconds, and those of the processor, for each cold start and each warm request."""

    cold: list[tuple[float, float]] = field(default_factory=list)
    warm: list[tuple[float, float]] = field(default_factory=list)


def measure(rounds: int = 15, requests: int = 20) -> dict[str, Times]:
    """In each round every function starts cold and answers some more requests; the first round does not count."""
    with functions() as measured:
        found = {name: Times() for name in measured.functions}
        for number in range(rounds + 1):
            for name, times in found.items():
                measured.restart()
                cold = ask(measured, name)
                warm = [ask(measured, name) for _ in range(requests if number in {1, rounds} else 0)]
                if number:
                    times.cold.append(cold)
                    times.warm.extend(warm)
        return {"this project" if name == OURS else name: times for name, times in found.items()}
