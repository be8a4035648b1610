"""Measures how many callback events one process receives, one after another on one core, as a function's instance does.

Against three tables: moto's DynamoDB in another process; a faster one in another process, so that it is not moto that
is measured; and one in memory without boto3, which leaves the package alone. The queue is in memory each time.
"""

import argparse
import os
import random
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path[:0] = [path for path in (str(Path(__file__).parents[2] / "layers" / "stream_state"),) if path not in sys.path]
os.environ.setdefault("POWERTOOLS_METRICS_DISABLED", "true")

from stream_state.adapters.credentials import CachedSecret, parse_callback_keys  # noqa: E402 - after the path
from stream_state.adapters.state_store import StateStore  # noqa: E402 - as above
from stream_state.adapters.table import Table  # noqa: E402 - as above
from stream_state.adapters.watch_list import WatchList  # noqa: E402 - as above
from stream_state.services.callbacks import Callbacks  # noqa: E402 - as above
from stream_state.services.delivery import Delivery  # noqa: E402 - as above
from stream_state.services.recording import Recorder  # noqa: E402 - as above
from stream_state.settings import Settings  # noqa: E402 - as above
from tests.benchmarks.rate_limiter import percentile  # noqa: E402 - as above
from tests.benchmarks.table import AWS, TABLE, in_memory, moto, table  # noqa: E402 - as above
from tests.unit.callback_world import KEY, VENDOR_NAMES, signed, stream  # noqa: E402 - as above
from tests.unit.fakes import FakeSecrets  # noqa: E402 - as above
from tests.unit.memory import TABLE as MEMORY  # noqa: E402 - as above
from tests.unit.memory import MemoryQueue, MemoryTable  # noqa: E402 - as above

PROMISED_PER_SECOND = 200
APP_ID = "661e8f2a9b3c4d5e6f708192"


@dataclass(frozen=True)
class Outcome:
    """The time of each event, the processor time of all of them, and the number of messages."""

    seconds: list[float]
    processor_seconds: float
    messages: int

    @property
    def per_second(self) -> float:
        """Events a second, one after another."""
        return len(self.seconds) / sum(self.seconds)

    def __str__(self) -> str:
        p50_ms, p99_ms = (percentile(self.seconds, share) * 1000 for share in (0.5, 0.99))
        return (
            f"{len(self.seconds)} events, {self.per_second:.0f} a second; p50 {p50_ms:.1f} ms, p99 {p99_ms:.1f} ms; "
            f"{self.processor_seconds / len(self.seconds) * 1000:.2f} ms of the processor each; "
            f"{self.messages} messages"
        )


def bodies(count: int, users: int) -> Iterator[str]:
    """Signed events as they happen: users of one room start and stop a medium at random."""
    source = random.Random(200)  # noqa: S311 - the same events each time
    for _ in range(count):
        kind = stream(source.choice([*VENDOR_NAMES]), starts=source.random() < 0.5)
        yield signed(kind, int(time.time() * 1000), user_id=f"user-{source.randrange(users)}")


def measure(table: Table, count: int, users: int) -> Outcome:
    """Receive so many events; the first ones, which open the connections, do not count."""
    queue: Any = MemoryQueue()
    secrets: Any = FakeSecrets({"callback_key": KEY})
    store = StateStore(table, delivers=True)
    callbacks = Callbacks(
        CachedSecret(secrets, "key", parse_callback_keys, 3600),
        Delivery(queue, Recorder(store, None)),
        WatchList(table),
        [APP_ID],
    )
    seconds: list[float] = []
    processor_seconds = 0.0
    for number, body in enumerate(bodies(count + 20, users)):
        started, worked = time.perf_counter(), time.process_time()
        callbacks.receive(callbacks.verified(body, int(time.time() * 1000)), time.monotonic() + 3)
        if number >= 20:
            seconds.append(time.perf_counter() - started)
            processor_seconds += time.process_time() - worked
    return Outcome(seconds, processor_seconds, len(queue.messages))


@contextmanager
def over_http(server: AbstractContextManager[str]) -> Iterator[Table]:
    """A table with a real client, used on one core; the server has started before and may have the others."""
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    with server as url, patch.dict(os.environ, {**AWS, "AWS_ENDPOINT_URL": url}):
        if cores:
            os.sched_setaffinity(0, {min(cores)})
        settings = Settings.from_environment({"RTC_APP_IDS": APP_ID, "TABLE_NAME": TABLE})
        yield Table.from_settings(settings, read_timeout_seconds=0.5)
    if cores:
        os.sched_setaffinity(0, cores)


def measure_over_http(server: AbstractContextManager[str], count: int, users: int) -> Outcome:
    """Measure with such a table."""
    with over_http(server) as table:
        return measure(table, count, users)


def main() -> int:
    """Measure and print; 1 if fewer events than promised were received over HTTP."""
    parser = argparse.ArgumentParser("python -m tests.benchmarks.callbacks", description="Measure callback events.")
    parser.add_argument("--events", type=int, default=3000)
    parser.add_argument("--users", type=int, default=200)
    asked = parser.parse_args()
    memory: Any = MemoryTable()
    print(f"moto's DynamoDB:     {measure_over_http(table(moto), asked.events, asked.users)}")
    fast = measure_over_http(table(in_memory), asked.events, asked.users)
    print(f"A faster table:      {fast}")
    print(f"In memory, no boto3: {measure(Table(memory, MEMORY), asked.events, asked.users)}")
    print(f"Load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
    return int(fast.per_second < PROMISED_PER_SECOND)


if __name__ == "__main__":
    sys.exit(main())
