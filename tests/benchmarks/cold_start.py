"""Measures cold starts, and requests to a warm instance, of the built API function, of the peers and of the floor.

All run under the same runtime client and ask the same simulator; moto and the simulator are in this process, the
function in another. Nothing may write bytecode, as on Lambda.
"""

import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from tests.sandbox.functions import Function, Functions
from tests.sandbox.simulator import APP_ID, KEYS
from tests.sandbox.stack import Sandbox

ROOM_ID, USER_ID = "class-1", "teacher"
HERE = Path(__file__).parent
PEER = HERE.parents[1] / ".aws-sam" / "peers" / "build" / "Peer"
OURS, FLOOR = "ApiFunction", "floor"
PEERS = {"volcengine": "first_sdk", "volcengine-python-sdk": "second_sdk"}


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
def functions() -> Iterator[tuple[Sandbox, Functions]]:
    """A sandbox, and the functions to compare in it."""
    with Sandbox() as sandbox, tempfile.TemporaryDirectory() as directory:
        sandbox.simulator.publish(ROOM_ID, USER_ID, "Audio")
        sandbox.simulator.calls_per_second = None
        ours = sandbox.functions.functions[OURS]
        peer = replace(ours, code_directory=PEER, layer_directories=(), handler="app.lambda_handler")
        compared = {OURS: ours} | {
            name: replace(peer, environment={**ours.environment, "SDK": sdk}) for name, sdk in PEERS.items()
        }
        compared[FLOOR] = replace(peer, code_directory=HERE / "peers", handler="floor.lambda_handler")
        measured = Functions(compared, Path(directory))
        try:
            yield sandbox, measured
        finally:
            measured.stop()


def processor_seconds(pid: int) -> float:
    """What the processor has worked for a process, by the clock that Linux has for each."""
    return time.clock_gettime(~pid << 3 | 2)


def ask(functions: Functions, name: str) -> tuple[float, float]:
    """Seconds until the answer of a function, and the processor's for it, its start included if it was cold."""
    before = sum(processor_seconds(environment.process.pid) for environment in functions._idle[name])
    invocation = functions.invoke(name, event())
    if invocation.error or invocation.payload["statusCode"] != 200:
        raise RuntimeError(f"{name}: {invocation.payload}\n{functions.log(name)}")
    (environment,) = functions._idle[name]
    return invocation.duration_ms / 1000, processor_seconds(environment.process.pid) - before


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    with functions() as (_, measured):
        wall, work = defaultdict(list), defaultdict(list)
        for n in range(rounds):
            for name in measured.functions:
                measured.restart()
                seconds, worked = ask(measured, name)
                if n:
                    wall[name].append(seconds)
                    work[name].append(worked)
        for what, times in (("wall", wall), ("cpu", work)):
            for stat in (median, min):
                f = stat(times[FLOOR])
                for name in times:
                    above = stat(times[name]) - f
                    ratio = (stat(times[OURS]) - f) / above if above else 0
                    print(f"{what:5} {stat.__name__:7} {name:24} {stat(times[name]) * 1000:7.1f} ms  above {above * 1000:7.1f}  ours/it {ratio:.3f}")


if __name__ == "__main__":
    main()
