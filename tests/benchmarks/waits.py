"""A model of scale: many workflows that wait, and callback events that wake them; what breaks first, and where.

It measures what one instance needs for an event, a round and a wake, against a table in memory over HTTP, and compares
the load with the quotas that AWS publishes.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

sys.path[:0] = [path for path in (str(Path(__file__).parents[2] / "layers" / "stream_state"),) if path not in sys.path]
os.environ.setdefault("POWERTOOLS_METRICS_DISABLED", "true")

from stream_state.adapters.credentials import CachedSecret, parse_callback_keys  # noqa: E402 - after the path
from stream_state.adapters.state_store import StateStore  # noqa: E402 - as above
from stream_state.adapters.table import Table  # noqa: E402 - as above
from stream_state.adapters.watch_list import WatchList  # noqa: E402 - as above
from stream_state.clock import CLOCK  # noqa: E402 - as above
from stream_state.domain.targets import Medium, Target  # noqa: E402 - as above
from stream_state.domain.waits import Wait, WaitCondition  # noqa: E402 - as above
from stream_state.services.callbacks import Callbacks  # noqa: E402 - as above
from stream_state.services.delivery import Delivery  # noqa: E402 - as above
from stream_state.services.lookup import Lookup  # noqa: E402 - as above
from stream_state.services.recording import Recorder  # noqa: E402 - as above
from stream_state.services.waits import begin_round  # noqa: E402 - as above
from tests.benchmarks.callbacks import APP_ID, over_http  # noqa: E402 - as above
from tests.benchmarks.table import in_memory, table  # noqa: E402 - as above
from tests.unit.callback_world import KEY, VIDEO, signed  # noqa: E402 - as above
from tests.unit.fakes import Clock, FakeSecrets  # noqa: E402 - as above
from tests.unit.memory import MemoryQueue, MemoryRtc, media  # noqa: E402 - as above

# A function with 512 MB has so much of a processor (1,769 MB are a whole one).
PROCESSOR_SHARE = 512 / 1769
# Assumptions about the time of one request to AWS, and of a call to the vendor with its wait for a slot.
AWS_SECONDS, VENDOR_SECONDS = 0.006, 1.2
REQUESTS = {"event": 5, "waking event": 9, "round": 6}
# Of these the first measurements open connections and do not count.
WARM = 20


@dataclass(frozen=True)
class Load:
    """Workflows that wait, all begun within `start_seconds`, and callback events of which a share are changes."""

    waits: int = 10_000
    start_seconds: float = 60
    interval_seconds: float = 60
    events_per_second: float = 2_000
    changes: float = 1

    @property
    def starts_per_second(self) -> float:
        """Also the waits that end in a second, if each ends as fast as it began."""
        return self.waits / self.start_seconds

    @property
    def rounds_per_second(self) -> float:
        return self.waits / self.interval_seconds


@dataclass(frozen=True)
class Quota:
    """A quota: the load's use of it, its default, what the load counts, and what an operator can do about it."""

    name: str
    used: float
    default: float
    drives: str
    driver: float
    remedy: str

    @property
    def breaks_at(self) -> float:
        """The driver's number at which the quota is used up."""
        return self.driver * self.default / self.used


def seconds_each(works: Iterator[Callable[[], object]]) -> float:
    """Median processor seconds of the works."""
    taken = []
    for work in works:
        started = time.process_time()
        work()
        taken.append(time.process_time() - started)
    return median(taken[WARM:])


def measure(table: Table, count: int) -> dict[str, float]:
    """Processor seconds of an event for which nobody waits, of a round that asks, and of an event that wakes."""
    queue: Any = MemoryQueue()
    secrets: Any = FakeSecrets({"callback_key": KEY})
    rtc: Any = MemoryRtc(Clock())
    rtc.default = media()
    store = StateStore(table, delivers=True)
    recorder = Recorder(store, None)
    secret = CachedSecret(secrets, "key", parse_callback_keys, 3600)
    delivery = Delivery(queue, recorder)
    callbacks = Callbacks(secret, delivery, WatchList(table), [APP_ID])
    lookup = Lookup(rtc, recorder)

    def event(user: str) -> Callable[[], object]:
        body = signed(VIDEO, CLOCK.now_ms(), user_id=user)
        return lambda: callbacks.receive(callbacks.verified(body, CLOCK.now_ms()), time.monotonic() + 3)

    def begin(user: str) -> Callable[[], object]:
        condition = WaitCondition(Medium.VIDEO, publishing=True, deadline=time.time() + 600, interval_seconds=60)
        wait, target = Wait("execution", f"token of {user}", condition), Target(APP_ID, "class-1", user)
        return lambda: begin_round(lookup, target, wait, time.monotonic() + 10)

    others, waiting = ([f"{kind}-{number}" for number in range(count + WARM)] for kind in ("other", "host"))
    return {
        "event": seconds_each(map(event, others)),
        "round": seconds_each(map(begin, waiting)),
        "waking event": seconds_each(map(event, waiting)),
    }


def duration(kind: str, measured: dict[str, float]) -> float:
    """The seconds of an invocation of 512 MB."""
    vendor = VENDOR_SECONDS if kind == "round" else 0
    return measured[kind] / PROCESSOR_SHARE + REQUESTS[kind] * AWS_SECONDS + vendor


def quotas(load: Load, measured: dict[str, float]) -> list[Quota]:
    """What the load uses of each quota, the scarcest first."""
    events, starts, rounds = load.events_per_second, load.starts_per_second, load.rounds_per_second
    woken = min(starts, events)
    asking = rounds * duration("round", measured)
    hearing = (events - woken) * duration("event", measured) + woken * duration("waking event", measured)
    changes = events * load.changes
    per_event, per_start, per_wait = "events a second", "waits begun a second", "waits open"
    raise_it = "Service Quotas"
    found = [
        Quota("Index `Undelivered`: 1,000 WCU of its one partition, 2 a change", 2 * changes, 1000, per_event, events,
              "a stack for each AppId: each has a table"),
        Quota("`CallbackRateLimit`: requests a second of the callbacks' route", events, 500, per_event, events,
              "the parameter, up to the account's quota"),
        Quota("API Gateway: requests a second of the account", events, 10_000, per_event, events, raise_it),
        Quota("Lambda: concurrent executions, callback events", hearing, 1000, per_event, events, raise_it),
        Quota("Lambda: concurrent executions, rounds", asking, 1000, per_wait, load.waits,
              f"{raise_it}; a longer interval"),
        Quota("DynamoDB: 40,000 WCU of a table", changes * 6 + rounds * 6, 40_000, per_event, events, raise_it),
        Quota("DynamoDB: 1,000 WCU of one target's partition", 6, 1000, "events a second of one user", 1, "not needed"),
        Quota("Step Functions: `StartExecution`, 150 a second (300 in the three largest regions)", starts, 150,
              per_start, starts, f"{raise_it}; a burst of 800 (1,300) is free"),
        Quota("Step Functions: `StateTransition`, 800 a second (5,000)", 12 * starts + 2 * rounds, 800, per_start,
              starts, f"{raise_it}; executions are slower, none fails"),
        Quota("Step Functions: `SendTaskSuccess`, 300 a second (500)", woken, 300, per_start, starts,
              f"{raise_it}; a burst of 1,500 (3,000) is free"),
        Quota("Vendor: 50 calls a second (`RtcQps`), one a round", rounds, 50, per_wait, load.waits,
              "a longer interval; a round without a slot waits for its event"),
    ]  # fmt: skip
    return sorted(found, key=lambda quota: -quota.used / quota.default)


def show(load: Load, measured: dict[str, float]) -> str:
    """The costs of one instance, and the table."""
    lines = [
        f"{load.waits:,} waits begun within {load.start_seconds:.0f} s, interval {load.interval_seconds:.0f} s;",
        f"{load.events_per_second:,.0f} callback events a second, {load.changes:.0%} of them changes.",
        "",
        "| measured for one instance | processor, ms | duration at 512 MB, ms |",
        "|---|---|---|",
        *(f"| {kind} | {measured[kind] * 1000:.1f} | {duration(kind, measured) * 1000:.0f} |" for kind in measured),
        "",
        "| quota | used | default | breaks at | raise |",
        "|---|---|---|---|---|",
    ]
    for quota in quotas(load, measured):
        at = f"{quota.breaks_at:,.0f} {quota.drives}"
        lines.append(f"| {quota.name} | {quota.used:,.0f} | {quota.default:,.0f} | {at} | {quota.remedy} |")
    return "\n".join(lines)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser("python -m tests.benchmarks.waits", description="A model of scale for waits.")
    for name, default in vars(Load()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    load = Load(**vars(parser.parse_args()))
    with over_http(table(in_memory)) as measured_table:
        print(show(load, measure(measured_table, 500)))
    print(f"\nLoad of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
    return 0


if __name__ == "__main__":
    sys.exit(main())
