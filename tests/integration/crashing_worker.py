"""A process that is killed between two steps: reads one order a line from its input, and forks a child for each.

An order is JSON: `environment`, `mode` (given, watched or task), `targets`, and `die_at`, the number of the step or
its name. Steps are counted before and after each request to the vendor or to AWS. The answer is a line: killed, done
or failed.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import botocore.httpsession

from stream_state.lookup import Lookup
from stream_state.model import Target
from stream_state.queue import ResultsQueue
from stream_state.rtc import RtcClient
from stream_state.settings import Settings
from stream_state.signing import SigningKeys
from stream_state.sweep import Sweep, SweepRequest
from stream_state.table import StateTable
from stream_state.telling import Teller
from stream_state.transport import BoundedAdapter
from tests.sandbox.simulator import KEYS
from tests.sandbox.static_keys import StaticKeys
from tests.unit.fakes import FreeLimiter


class Steps:
    """Counts the steps of this process, and kills it at one of them."""

    def __init__(self, die_at: int | str) -> None:
        self._die_at = die_at
        self._count = 0
        self._lock = threading.Lock()

    def step(self, name: str) -> None:
        with self._lock:
            self._count += 1
            if self._die_at in (self._count, name):
                # No handler, no flush, no unwinding: as the kernel does it.
                os.kill(os.getpid(), signal.SIGKILL)

    def around(self, name: Callable[[Any], str], send: Callable[..., Any]) -> Callable[..., Any]:
        def counted(session: Any, request: Any, *more: Any, **options: Any) -> Any:
            called = name(request)
            self.step(f"before {called}")
            answer = send(session, request, *more, **options)
            self.step(f"after {called}")
            return answer

        return counted


def aws_call(request: Any) -> str:
    """Name of a call to AWS: the operation, of an update also what it writes."""
    target = request.headers.get("X-Amz-Target", b"")
    operation = (target if isinstance(target, str) else target.decode()).partition(".")[2]
    if operation == "PutItem":
        return "facts"
    if operation == "UpdateItem":
        expression = json.loads(request.body)["UpdateExpression"]
        return next((word for word in ("told", "holder", "cursor") if word in expression), operation)
    return operation


def work(order: dict[str, Any]) -> None:
    """Do what a function would do."""
    steps = Steps(order["die_at"])
    session, adapter = botocore.httpsession.URLLib3Session, BoundedAdapter
    session.send = steps.around(aws_call, session.send)  # type: ignore[method-assign]  # counted, then sent
    adapter.send = steps.around(lambda request: "query", adapter.send)  # type: ignore[method-assign]  # as above
    settings = Settings.from_environment(order["environment"])
    table = StateTable.from_settings(settings)
    keys = StaticKeys(SigningKeys(KEYS.access_key_id, KEYS.secret_access_key))
    lookup = Lookup(RtcClient(settings, keys, FreeLimiter()), table)
    teller = Teller(ResultsQueue.from_settings(settings), table)
    targets = [Target(*target) for target in order["targets"]]
    deadline = time.monotonic() + 30
    if order["mode"] == "task":
        teller.deliver(lookup.some(targets, deadline), deadline)
    else:
        request = SweepRequest(targets if order["mode"] == "given" else None, "changes")
        Sweep(lookup, teller, table).run(request, deadline, deadline)


def main() -> None:
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            # What the work logs is not an answer.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = 1
            try:
                work(json.loads(line))
                code = 0
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        print("killed" if killed else "done" if status == 0 else "failed", flush=True)


if __name__ == "__main__":
    main()
