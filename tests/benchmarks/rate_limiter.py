"""Measures the rate limiter: many processes call one service through one table, all on this machine.

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

from stream_state.adapters.rate_limiter import (  # noqa: E402 - after the path to the package
    MAIN,
    OWN_LIMITS,
    Function,
    RateLimiter,
)
from stream_state.adapters.table import Table  # noqa: E402 - as above
from stream_state.errors import QuotaExceeded  # noqa: E402 - as above
from stream_state.settings import Settings  # noqa: E402 - as above
from tests.benchmarks.sweep import quiet  # noqa: E402 - as above
from tests.benchmarks.table import AWS, SPAWN, TABLE, in_memory, moto, table  # noqa: E402 - as above

DELAY_SECONDS = (0.020, 0.250)
LOOKUPS_PER_SECOND = 5
PATIENCE_SECONDS = 3


@dataclass
class Tally:
    """What one process did: counts, how long its calls waited, and when their slots came (epoch seconds)."""

    function: Function
    counts: Counter[str] = field(default_factory=Counter)
    waits_seconds: list[float] = field(default_factory=list)
    refusals_seconds: list[float] = field(default_factory=list)
    slots: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Course:
    """Processes that run side by side: sweeps with lookups now and then, or, if `callers` is set, only callers.

    The callers are threads of as many processes; each asks again as soon as it has its answer or may come back. They
    share the rate limiter of their process, or each has one, as the instances of a function do. `item` is that of
    GetUserStreamState, or of a call with a rate of its own.
    """

    seconds: float = 60
    sweeps: int = 8
    threads: int = 8
    callers: int = 0
    instances: bool = False
    qps: float = 50
    burst: int = 5
    item: str = MAIN

    @classmethod
    def of(cls, item: str, **more: Any) -> "Course":
        """A course of a call with a rate of its own."""
        qps, burst = OWN_LIMITS[item.partition("#")[0]]
        return cls(item=item, qps=qps, burst=burst, **more)


@dataclass(frozen=True)
class Outcome:
    """What was measured; arrivals in monotonic seconds."""

    course: Course
    arrivals: list[float]
    tallies: list[Tally]

    def of(self, *functions: Function) -> Tally:
        """Sum of the processes of some kinds."""
        total = Tally(functions[0])
        for tally in self.tallies:
            if tally.function in functions:
                total.counts += tally.counts
                total.waits_seconds += tally.waits_seconds
                total.refusals_seconds += tally.refusals_seconds
                total.slots += tally.slots
        return total

    @property
    def slots(self) -> list[float]:
        """When the slots of all processes came, in order."""
        return sorted(slot for tally in self.tallies for slot in tally.slots)

    @property
    def share(self) -> float:
        """The share of the configured rate that was used while all processes ran."""
        slots, seconds = self.slots, self.course.seconds
        return bisect.bisect_left(slots, slots[0] + seconds) / (self.course.qps * seconds)


class Service:
    """Counts calls, each a line of text on a connection."""

    def __init__(self) -> None:
        self.arrivals: list[float] = []
        self._loop = asyncio.new_event_loop()
        self._server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=1000))
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
    """The calls of one process: its rate limiter, and one connection for each thread."""

    def __init__(self, course: Course, function: Function, table_url: str, port: int) -> None:
        os.environ.update(AWS, AWS_ENDPOINT_URL=table_url)
        settings = Settings.from_environment(
            {"RTC_APP_IDS": "app", "RTC_QPS": str(course.qps), "RTC_BURST": str(course.burst), "TABLE_NAME": TABLE}
        )
        self.tally = Tally(function)
        self._course = course
        self._table, self._settings = Table.from_settings(settings), settings
        client = self._table.client
        self._limiter = self._make_limiter()
        self._port = port
        self._own = threading.local()
        # The first request of a client takes its preparations along; a measured second must not.
        client.get_item(TableName=TABLE, Key={"pk": {"S": "warm"}, "sk": {"S": "up"}})
        client.meta.events.register("before-call.dynamodb", lambda model, **_: self.tally.counts.update([model.name]))
        client.meta.events.register("after-call.dynamodb", self._count_answer)

    def _make_limiter(self) -> RateLimiter:
        function, item = self.tally.function, self._course.item
        main = RateLimiter(self._table, self._settings, function)
        return main if item == MAIN else RateLimiter(self._table, self._settings, function, name=item, main=main)

    def run(self) -> None:
        """Call for as long as the course says."""
        end = time.monotonic() + self._course.seconds
        if self.tally.function == "sweep":
            self._run_threads(self._course.threads, self._sweep, end)
        elif self._course.callers:
            self._run_threads(self._course.callers // self._course.sweeps, self._ask, end)
        else:
            with ThreadPoolExecutor(64) as pool:
                while time.monotonic() < end:
                    time.sleep(random.expovariate(LOOKUPS_PER_SECOND))
                    pool.submit(self._call, time.monotonic() + PATIENCE_SECONDS)

    def _run_threads(self, count: int, job: Any, end: float) -> None:
        with ThreadPoolExecutor(count) as pool:
            list(pool.map(job, [end] * count))

    def _sweep(self, end: float) -> None:
        while time.monotonic() < end:
            self._call(end)

    def _ask(self, end: float) -> None:
        if self._course.instances:
            self._own.limiter = self._make_limiter()
        while time.monotonic() < end:
            time.sleep(self._call(time.monotonic() + PATIENCE_SECONDS))

    def _call(self, deadline: float) -> int:
        """Make one call; the seconds after which to come back."""
        started = time.monotonic()
        try:
            getattr(self._own, "limiter", self._limiter).acquire(deadline)
        except QuotaExceeded as error:
            self.tally.counts["refused"] += 1
            self.tally.refusals_seconds.append(time.monotonic() - started)
            return error.retry_after or 0
        self.tally.slots.append(time.time())
        self.tally.waits_seconds.append(time.monotonic() - started)
        if not hasattr(self._own, "file"):
            self._own.file = socket.create_connection(("127.0.0.1", self._port)).makefile("rwb")
        self._own.file.write(b"call\n")
        self._own.file.flush()
        self._own.file.readline()
        return 0

    def _count_answer(self, http_response: Any, **_: object) -> None:
        if http_response.status_code != 200:
            self.tally.counts["denials"] += 1


def _work(course: Course, function: Function, table_url: str, port: int, start: Any, tallies: Any) -> None:
    caller = Caller(course, function, table_url, port)
    start.wait()
    with quiet():
        caller.run()
    tallies.put(caller.tally)


def measure(course: Course) -> Outcome:
    """Let the processes of a course run side by side."""
    service = Service()
    functions: list[Function] = ["api"]
    functions += (
        ["api" for _ in range(course.sweeps - 1)] if course.callers else ["sweep" for _ in range(course.sweeps)]
    )
    start, tallies = SPAWN.Barrier(len(functions)), SPAWN.Queue()
    # Moto does not bear so many connections.
    with table(in_memory if course.instances else moto) as url:
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
    course, api, sweep, total = outcome.course, outcome.of("api"), outcome.of("sweep"), outcome.of("api", "sweep")
    lines = {
        "Course": f"{course.callers} {'instances' if course.instances else 'callers'} in {course.sweeps} processes"
        if course.callers
        else f"{course.sweeps} sweeps and one process with {LOOKUPS_PER_SECOND} lookups a second",
        "Rate": f"{course.seconds:.0f} s, {course.item}: {course.qps:g} a second, burst {course.burst}",
        "Calls in the worst second": f"{worst_window(outcome.arrivals)} of {len(outcome.arrivals)}",
        "Slots in the worst second": f"{worst_window(outcome.slots)}",
        "Share of the rate that was used": f"{outcome.share:.1%}",
        "Wait of api callers": f"p50 {percentile(api.waits_seconds, 0.5) * 1000:.0f} ms, "
        f"p99 {percentile(api.waits_seconds, 0.99) * 1000:.0f} ms, of {len(api.slots)}",
        "Api callers refused": f"{api.counts['refused']}, after {max(api.refusals_seconds, default=0):.1f} s at most",
        "Writes for a slot": f"{total.counts['UpdateItem'] / len(total.slots):.2f}",
        "Writes denied": f"{total.counts['denials']}",
        "Reads": f"{total.counts['GetItem']}",
        "Load of this machine": f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} processors",
    }
    if sweep.slots:
        each = sorted(len(tally.slots) for tally in outcome.tallies if tally.function == "sweep")
        left = course.qps * course.seconds - len(api.slots)
        lines["Share that sweeps got of the rest"] = f"{len(sweep.slots) / left:.1%} ({each[0]} to {each[-1]} each)"
    width = max(map(len, lines))
    return "\n".join(f"{name:{width}}  {value}" for name, value in lines.items())


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.rate_limiter", description=__doc__)
    parser.add_argument("--seconds", type=float, default=Course.seconds)
    parser.add_argument("--sweeps", type=int, default=Course.sweeps, help="processes")
    parser.add_argument("--threads", type=int, default=Course.threads, help="of each sweep")
    parser.add_argument("--callers", type=int, default=Course.callers, help="threads of api, in place of sweeps")
    parser.add_argument("--instances", action="store_true", help="a rate limiter for each caller")
    parser.add_argument("--qps", type=float, default=Course.qps)
    parser.add_argument("--burst", type=int, default=Course.burst)
    parser.add_argument("--item", default=MAIN, help=f"rtc, or with a rate of its own: {', '.join(OWN_LIMITS)}#APP")
    options = vars(parser.parse_args())
    own = options["item"].partition("#")[0] in OWN_LIMITS
    course = Course.of(**{k: v for k, v in options.items() if k not in ("qps", "burst")}) if own else Course(**options)
    print(report(measure(course)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
