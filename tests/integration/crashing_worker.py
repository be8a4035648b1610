"""The work of a process that is killed between two steps, before or after a request to the vendor or to AWS."""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import botocore.httpsession

from stream_state.adapters.vendor_http import OneOriginAdapter
from stream_state.clock import CLOCK
from stream_state.domain.targets import Target
from tests.integration.conftest import Stack, soon


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
    """Name of a call to AWS: the operation, of an update the attribute, and whether a record has nothing to deliver."""
    target = request.headers.get("X-Amz-Target", b"")
    operation = (target if isinstance(target, str) else target.decode()).partition(".")[2]
    body = json.loads(request.body) if operation in {"PutItem", "UpdateItem"} else {}
    if "sequence" in body.get("Item", {}) and "undelivered" not in body["Item"]:
        return "settled"
    expression = body.get("UpdateExpression", "")
    return next((word for word in ("holder", "cursor") if word in expression), operation)


def work(
    environment: dict[str, str], ahead_seconds: float, targets: list[Target], mode: str, die_at: int | str
) -> None:
    """Do what a function would do, up to the step `die_at`, a number or a name.

    `mode` is given, watched, task, api, drain, the event of a wait's round, or the text of a callback event;
    `ahead_seconds` is of the clock.
    """
    # The logs would stand among the results of the tests.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    os.environ.update(environment)
    steps = Steps(die_at)
    session = botocore.httpsession.URLLib3Session
    session.send = steps.around(aws_call, session.send)  # type: ignore[method-assign]  # counted, then sent
    query = steps.around(lambda request: "query", OneOriginAdapter.send)
    OneOriginAdapter.send = query  # type: ignore[method-assign]  # as above
    CLOCK.now = lambda: time.time() + ahead_seconds  # type: ignore[method-assign]  # as in the test
    # Nothing but the environment of the test's stack is used here.
    stack = Stack(None, None, environment)  # type: ignore[arg-type]  # as said
    store = stack.store(delivers=mode != "api")
    lookup, delivery = stack.lookup(store), stack.delivery(store)
    match mode:
        case "task":
            delivery.deliver(lookup.some(targets, soon()), soon())
        case "api":
            lookup.some(targets, soon())
        case "drain":
            delivery.drain(soon(), is_whole=True)
        case "given":
            stack.run_sweep(*targets)
        case "watched":
            stack.run_sweep()
        case event if '"wait_id"' in event:
            stack.begin_round(json.loads(event))
        case event:
            stack.receive_event(event)
