"""Measures sweeps of watched users: how long at the configured rate, and how much memory by the length of the list.

The first part runs against the simulator, with answers that take 20 to 250 ms, a table in memory and a queue that takes
all, each in a process of its own. (Moto's own take as long for a new target as the rate leaves for it.)
The second raises the rate and replaces table, queue and vendor by stand-ins that keep nothing, so that what grows would
be the sweep's own.
"""

import argparse
import json
import logging
import os
import random
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path[:0] = [path for path in (str(Path(__file__).parents[2] / "layers" / "stream_state"),) if path not in sys.path]

import boto3  # noqa: E402 - after the path to the package

from stream_state.adapters.queues import ResultsQueue  # noqa: E402 - as above
from stream_state.adapters.state_store import StateStore  # noqa: E402 - as above
from stream_state.adapters.table import PAGE_ITEMS, Table  # noqa: E402 - as above
from stream_state.adapters.watch_list import Watch, WatchList, partition_of  # noqa: E402 - as above
from stream_state.domain.observations import QueryResult  # noqa: E402 - as above
from stream_state.domain.requests import SweepRequest  # noqa: E402 - as above
from stream_state.domain.targets import Medium, Target  # noqa: E402 - as above
from stream_state.services.delivery import Delivery  # noqa: E402 - as above
from stream_state.services.lookup import Lookup  # noqa: E402 - as above
from stream_state.services.recording import Recorder  # noqa: E402 - as above
from stream_state.services.sweep import Sweep  # noqa: E402 - as above
from stream_state.settings import Settings  # noqa: E402 - as above
from tests.benchmarks.table import AWS, SPAWN, TABLE, in_memory, table  # noqa: E402 - as above

APP_ID = "app-1"
DELAY_SECONDS = (0.020, 0.250)


@contextmanager
def quiet() -> Iterator[None]:
    """Throw away the metrics, which Powertools prints."""
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        yield


def simulate(ready: Any, done: Any) -> None:
    """Be the vendor until the end is asked for; give the worst second then."""
    from tests.sandbox.signatures import KEYS
    from tests.sandbox.simulator import STREAM_STATE, Simulator

    with Simulator() as simulator:
        simulator.app_ids = (APP_ID,)
        simulator.calls_per_second = None
        simulator.unknown_is_error = False
        simulator.delay_seconds = lambda: random.uniform(*DELAY_SECONDS)  # noqa: S311 - no secret
        ready.put((simulator.url, KEYS.access_key_id, KEYS.secret_access_key))
        done.get()
        ready.put(simulator.worst_seconds[STREAM_STATE])


def serve_aws(ready: Any, done: Any) -> None:
    """Be AWS until the end is asked for."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    ready.put("http://{}:{}".format(*server.get_host_and_port()))
    done.get()
    server.stop()


@contextmanager
def process(job: Any) -> Iterator[tuple[Any, Any]]:
    """Run a job in a process of its own; what it is ready with, and how to end it and hear more."""
    ready, done = SPAWN.Queue(), SPAWN.Queue()
    child = SPAWN.Process(target=job, args=(ready, done), daemon=True)
    child.start()
    try:
        yield ready, done
    finally:
        done.put(None)
        child.join(10)


def throughput(targets: int, qps: float, serve_table: Callable[[Any], None] = in_memory) -> dict[str, Any]:
    """Sweep watched users at the rate, through the shared limiter, and compare with the time the rate allows."""
    with (
        # What comes after this has a table of its own.
        patch.dict(os.environ, AWS),
        process(serve_aws) as (aws, _),
        process(simulate) as (vendor, end_vendor),
        table(serve_table) as table_url,
        quiet(),
    ):
        # Moto's queue takes longer with each message in it.
        own = dict.fromkeys(("AWS_ENDPOINT_URL_DYNAMODB", "AWS_ENDPOINT_URL_SQS"), table_url)
        os.environ |= {"AWS_ENDPOINT_URL": aws.get(), **own}
        url, access_key_id, secret_access_key = vendor.get()
        secret = json.dumps({"access_key_id": access_key_id, "secret_access_key": secret_access_key})
        boto3.client("secretsmanager").create_secret(Name="keys", SecretString=secret)
        settings = Settings.from_environment(
            {
                "RTC_APP_IDS": APP_ID,
                "RTC_ENDPOINT": url,
                "RTC_SECRET_ID": "keys",
                "RTC_QPS": str(qps),
                "TABLE_NAME": TABLE,
                "RESULTS_QUEUE_URL": f"{table_url}/results",
            }
        )
        everyone = [Target(APP_ID, "hall", f"user-{number:05}") for number in range(targets)]
        WatchList(Table.from_settings(settings)).add(everyone, 86_400)
        deadline = time.monotonic() + 10 * targets / qps
        summary = Sweep.from_settings(settings).run(SweepRequest(None, emits_all=False), deadline, deadline)
        end_vendor.put(None)
        ratio = summary["duration_seconds"] / (targets / qps)
        return {**summary, "duration / (targets / rate)": round(ratio, 3), "worst second at the vendor": vendor.get()}


class NothingKept:
    """DynamoDB and SQS that accept everything and keep nothing, with a watch list of so many users."""

    def __init__(self, targets: int) -> None:
        self._targets = targets

    def query(self, ExclusiveStartKey: Mapping[str, Any] | None = None, **more: Any) -> dict[str, Any]:  # noqa: N803 - boto3's
        # All watches are of one room, so they lie in one partition.
        first = Watch(Target(APP_ID, "hall", "user-0"), 0, 0)
        if "IndexName" in more or more["ExpressionAttributeValues"][":pk"]["S"] != f"watch#{partition_of(first.key)}":
            return {"Items": []}
        start = int(ExclusiveStartKey["sk"]["S"].rpartition("-")[2]) + 1 if ExclusiveStartKey else 0
        end = min(start + PAGE_ITEMS, self._targets)
        watches = [Watch(Target(APP_ID, "hall", f"user-{number}"), 0, 2**40) for number in range(start, end)]
        items = [
            {
                "pk": {"S": f"watch#{partition_of(watch.key)}"},
                "sk": {"S": watch.key},
                "watched_at": {"N": "0"},
                "expires_at": {"N": str(2**40)},
            }
            | {name: {"S": value} for name, value in watch.target.as_dict().items()}
            for watch in watches
        ]
        return {"Items": items} | ({"LastEvaluatedKey": items[-1]} if end < self._targets else {})

    def get_item(self, **_: Any) -> dict[str, Any]:
        return {}

    batch_get_item = put_item = get_item

    def update_item(self, **_: Any) -> dict[str, Any]:
        return {"Attributes": {}}

    def send_message_batch(self, Entries: list[dict[str, Any]], **_: Any) -> dict[str, Any]:  # noqa: N803 - boto3's
        return {"Successful": [{"Id": entry["Id"], "MessageId": entry["Id"]} for entry in Entries]}


class Vendor:
    """A client of the vendor that knows an answer for everyone."""

    calls_made = 0

    def stream_state(self, target: Target, *_: Any, **__: Any) -> QueryResult:
        self.calls_made += 1
        return QueryResult(dict.fromkeys(Medium, False), int(time.time() * 1000), None)


def peak_memory(targets: int, found: Any) -> None:
    """Sweep so many watched users with stand-ins; give the peak memory in MiB before and after."""
    logging.disable(logging.CRITICAL)
    client: Any = NothingKept(targets)
    vendor: Any = Vendor()
    keeper = Table(client, TABLE)
    store = StateStore(keeper, delivers=True)
    lookup = Lookup(vendor, Recorder(store, None))
    sweep = Sweep(lookup, Delivery(ResultsQueue(client, "https://queue"), lookup.recorder), WatchList(keeper))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with quiet():
        summary = sweep.run(SweepRequest(None, emits_all=False), time.monotonic() + 600, time.monotonic() + 600)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1024 if sys.platform == "linux" else 1024 * 1024
    found.put((summary["delivered"], before / unit, after / unit, summary["calls_per_second"]))


def memory(targets: int) -> tuple[int, float, float, float]:
    """Run `peak_memory` in a process of its own."""
    found = SPAWN.Queue()
    child = SPAWN.Process(target=peak_memory, args=(targets, found))
    child.start()
    result: tuple[int, float, float, float] = found.get()
    child.join()
    return result


def main() -> None:
    """Print both parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--targets", type=int, default=3000)
    parser.add_argument("--qps", type=float, default=50)
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    print(f"Sweep of {arguments.targets} watched users at {arguments.qps:g} a second")
    for name, value in throughput(arguments.targets, arguments.qps).items():
        if name != "failures":
            print(f"  {name:28} {value}")
    print("Memory of a sweep, peak in MiB")
    for targets in (1_000, 40_000):
        delivered, before, after, rate = memory(targets)
        print(f"  {targets:6} users: {before:6.1f} before, {after:6.1f} after ({delivered} delivered, {rate:.0f}/s)")


if __name__ == "__main__":
    main()
