"""Measures the shared limiter: many processes call one service through one table, all on this machine.

The service counts each call after half of its delay, and answers after the other half.
"""

import argparse
import asyncio
import bisect
import os
import random
import socket
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path[:0] = [path for path in (str(Path(__file__).parents[2] / "layers" / "stream_state"),) if path not in sys.path]

from stream_state.errors import QuotaExceeded  # noqa: E402 - after the path to the package
from stream_state.quota import Function, TableLimiter  # noqa: E402 - as above
from stream_state.settings import Settings  # noqa: E402 - as above
from tests.benchmarks.table import AWS, SPAWN, TABLE, moto, table  # noqa: E402 - as above

DELAY_SECONDS = (0.020, 0.250)
LOOKUPS_PER_SECOND = 5
PATIENCE_SECONDS = 5


@dataclass
class Tally:
    """What one process did: counts, how long its calls waited, and when their slots came (epoch seconds)."""

    function: Function
    counts: Counter[str] = field(default_factory=Counter)
    waits_seconds: list[float] = field(default_factory=list)
    slots: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Course:
    """What to measure."""

    seconds: float = 60
    sweeps: int = 8
    threads: int = 8
    qps: float = 50
    burst: int = 5


@dataclass(frozen=True)
class Outcome:
    """What was measured; arrivals in monotonic seconds."""

    course: Course
    arrivals: list[float]
    tallies: list[Tally]

    def of(self, function: Function) -> Tally:
        """Sum of the processes of one kind."""
        total = Tally(function)
        for tally in self.tallies:
            if tally.function == function:
                total.counts += tally.counts
                total.waits_seconds += tally.waits_seconds
                total.slots += tally.slots
        return total

    @property
    def slots(self) -> list[float]:
        """When the slots of all processes came, in order."""
        return sorted(slot for tally in self.tallies for slot in tally.slots)


class Service:
    """Counts calls, each a line of text on a connection."""

    def __init__(self) -> None:
        self.arrivals: list[float] = []
        self._loop = asyncio.new_event_loop()
        self._server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port: int = self._server.sockets[0].getsockname()[1]
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readline():
            half_seconds = random.uniform(*DELAY_SECONDS) / 2  # noqa: S311 - no secret
            await asyncio.sleep(half_seconds)
            self.arrivals.append(time.monotonic())
            await asyncio.sleep(half_seconds)
            writer.write(b"\n")
        writer.close()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._server.close()
        self._loop.run_until_complete(self._server.wait_closed())
        self._loop.close()


class Caller:
    """The calls of one process: its limiter, and one connection for each thread."""

    def __init__(self, course: Course, function: Function, table_url: str, port: int) -> None:
        os.environ.update(AWS, AWS_ENDPOINT_URL=table_url)
        settings = Settings.from_environment(
            {"RTC_APP_IDS": "app", "RTC_QPS": str(course.qps), "RTC_BURST": str(course.burst), "TABLE_NAME": TABLE}
        )
        self.tally = Tally(function)
        self._course = course
        self._limiter = TableLimiter.from_settings(settings, function)
        self._port = port
        self._connections = threading.local()
        # The first request of a client takes its preparations along; a measured second must not.
        self._limiter._item._client.get_item(TableName=TABLE, Key={"pk": {"S": "warm"}, "sk": {"S": "up"}})
        events = self._limiter._item._client.meta.events
        events.register("before-call.dynamodb", lambda model, **_: self.tally.counts.update([model.name]))
        events.register("after-call.dynamodb", self._count_answer)

    def run(self) -> None:
        """Call for as long as the course says."""
        until = time.monotonic() + self._course.seconds
        if self.tally.function == "sweep":
            with ThreadPoolExecutor(self._course.threads) as pool:
                list(pool.map(self._sweep, [until] * self._course.threads))
            return
        with ThreadPoolExecutor(64) as pool:
            while time.monotonic() < until:
                time.sleep(random.expovariate(LOOKUPS_PER_SECOND))
                pool.submit(self._call, time.monotonic() + PATIENCE_SECONDS)

    def _sweep(self, until: float) -> None:
        while time.monotonic() < until:
            self._call(until)

    def _call(self, deadline: float) -> None:
        started = time.monotonic()
        try:
            self._limiter.acquire(deadline)
        except QuotaExceeded:
            self.tally.counts["refused"] += 1
            return
        self.tally.slots.append(time.time())
        self.tally.waits_seconds.append(time.monotonic() - started)
        if not hasattr(self._connections, "file"):
            self._connections.file = socket.create_connection(("127.0.0.1", self._port)).makefile("rwb")
        self._connections.file.write(b"call\n")
        self._connections.file.flush()
        self._connections.file.readline()

    def _count_answer(self, http_response: Any, **_: object) -> None:
        if http_response.status_code != 200:
            self.tally.counts["denials"] += 1


def _work(course: Course, function: Function, table_url: str, port: int, start: Any, tallies: Any) -> None:
    caller = Caller(course, function, table_url, port)
    start.wait()
    caller.run()
    tallies.put(caller.tally)


def measure(course: Course) -> Outcome:
    """Let sweeps and one process with lookups run side by side."""
    service = Service()
    functions: list[Function] = ["api", *["sweep"] * course.sweeps]
    start, tallies = SPAWN.Barrier(len(functions)), SPAWN.Queue()
    with table(moto) as url:
        processes = [
            SPAWN.Process(target=_work, args=(course, function, url, service.port, start, tallies), daemon=True)
            for function in functions
        ]
        for process in processes:
            process.start()
        found = [tallies.get(timeout=course.seconds + 120) for _ in processes]
        for process in processes:
            process.join()
    service.stop()
    return Outcome(course, sorted(service.arrivals), found)


def worst_window(times: list[float], seconds: float = 1) -> int:
    """The most events in any window of that length; `times` in order."""
    return max((bisect.bisect_left(times, at + seconds) - place for place, at in enumerate(times)), default=0)


def percentile(values: list[float], share: float) -> float:
    """The value that a share of the values does not exceed."""
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]


def report(outcome: Outcome) -> str:
    """The figures, one a line."""
    course, api, sweep = outcome.course, outcome.of("api"), outcome.of("sweep")
    span = outcome.arrivals[-1] - outcome.arrivals[0]
    writes = api.counts["UpdateItem"] + sweep.counts["UpdateItem"]
    left = course.qps * course.seconds - len(api.slots)
    each = sorted(len(tally.slots) for tally in outcome.tallies if tally.function == "sweep")
    lines = {
        "Course": f"{course.sweeps} sweeps and one process with {LOOKUPS_PER_SECOND} lookups a second, "
        f"{course.seconds:.0f} s, RTC_QPS={course.qps:g}, RTC_BURST={course.burst}",
        "Calls that arrived": f"{len(outcome.arrivals)} in {span:.1f} s",
        "Worst second of arrivals": f"{worst_window(outcome.arrivals)}",
        "Worst second of slots": f"{worst_window(outcome.slots)}",
        "Share of the configured rate": f"{len(outcome.slots) / (course.qps * course.seconds):.1%}",
        "Share that sweeps got of what lookups left": f"{len(sweep.slots) / left:.1%} ({each[0]} to {each[-1]} each)",
        "Lookups' wait": f"p50 {percentile(api.waits_seconds, 0.5) * 1000:.0f} ms, "
        f"p99 {percentile(api.waits_seconds, 0.99) * 1000:.0f} ms, "
        f"most {max(api.waits_seconds) * 1000:.0f} ms, of {len(api.slots)}",
        "Lookups refused": f"{api.counts['refused']}",
        "Writes for a slot": f"{writes / len(outcome.slots):.2f} "
        f"(lookups {api.counts['UpdateItem'] / len(api.slots):.2f}, "
        f"sweeps {sweep.counts['UpdateItem'] / len(sweep.slots):.2f})",
        "Writes denied": f"{api.counts['denials'] + sweep.counts['denials']}",
        "Reads": f"{api.counts['GetItem'] + sweep.counts['GetItem']}",
        "Load of this machine": f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} processors",
    }
    width = max(map(len, lines))
    return "\n".join(f"{name:{width}}  {value}" for name, value in lines.items())


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.quota", description="Measure the shared limiter.")
    parser.add_argument("--seconds", type=float, default=Course.seconds)
    parser.add_argument("--sweeps", type=int, default=Course.sweeps)
    parser.add_argument("--threads", type=int, default=Course.threads, help="of each sweep")
    parser.add_argument("--qps", type=float, default=Course.qps)
    parser.add_argument("--burst", type=int, default=Course.burst)
    os.environ["POWERTOOLS_METRICS_DISABLED"] = "true"
    outcome = measure(Course(**vars(parser.parse_args())))
    print(report(outcome))
    return 0


if __name__ == "__main__":
    sys.exit(main())
