"""The shared limit on a table that speaks DynamoDB's protocol, one process and many."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from time import monotonic, time
from typing import Any

import boto3
import pytest
from moto.moto_server.threaded_moto_server import ThreadedMotoServer

from stream_state.errors import QuotaExceeded
from stream_state.quota import Function, TableLimiter
from stream_state.settings import Settings
from tests.benchmarks.quota import AWS, Course, measure

KEY = {"pk": {"S": "limiter"}, "sk": {"S": "rtc"}}
TABLE = "quota-test"


@pytest.fixture(scope="module")
def server_url() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def dynamodb(server_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of an empty table, at the address that clients made from settings use too."""
    for name, value in {**AWS, "AWS_ENDPOINT_URL": server_url}.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("dynamodb")
    client.create_table(
        TableName=TABLE,
        KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}, {"AttributeName": "sk", "KeyType": "RANGE"}],
        AttributeDefinitions=[{"AttributeName": name, "AttributeType": "S"} for name in ("pk", "sk")],
        BillingMode="PAY_PER_REQUEST",
    )
    yield client
    client.delete_table(TableName=TABLE)
    client.close()


def make_limiter(
    function: Function = "api", mode: str = "closed", qps: int = 50, burst: int = 5, table: str = TABLE
) -> TableLimiter:
    environment = {"RTC_APP_IDS": "app", "TABLE_NAME": table, "QUOTA_FAILURE_MODE": mode}
    return TableLimiter.from_settings(
        Settings.from_environment(environment | {"RTC_QPS": str(qps), "RTC_BURST": str(burst)}), function
    )


def slots_taken(dynamodb: Any, interval_us: int, since_us: float) -> float:
    """How many slots the item has given out, if the first was due at a time."""
    item = dynamodb.get_item(TableName=TABLE, Key=KEY)["Item"]
    return (int(item["next_us"]["N"]) - since_us) / interval_us


def test_each_grant_takes_one_slot_of_an_item_that_does_not_expire(dynamodb: Any) -> None:
    # Given a rate so low that no slot comes free meanwhile
    limiter = make_limiter(qps=1, burst=60)
    began_us = time() * 1e6
    # When many threads take slots at once
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(limiter.acquire, [monotonic() + 20] * 40))
    # Then each has one
    assert 40 <= slots_taken(dynamodb, 1_000_000, began_us) < 41 + (time() * 1e6 - began_us) / 1e6
    item = dynamodb.get_item(TableName=TABLE, Key=KEY)["Item"]
    assert item.keys() == {"pk", "sk", "next_us"}


def test_a_denial_tells_when_to_come_back_without_a_read(dynamodb: Any) -> None:
    make_limiter(qps=1, burst=1).acquire(monotonic() + 1)
    other = make_limiter(qps=1, burst=1)
    operations: list[str] = []
    other._item._client.meta.events.register("before-call.dynamodb", lambda model, **_: operations.append(model.name))

    with pytest.raises(QuotaExceeded) as denied:
        other.acquire(monotonic() + 0.1)

    assert 0 < (denied.value.retry_after_seconds or 0) <= 1
    assert operations == ["UpdateItem"]


def test_a_busy_item_is_reserved_further_by_whoever_comes_next(dynamodb: Any) -> None:
    began_us = time() * 1e6
    for limiter in (make_limiter(qps=1, burst=60), make_limiter("task", qps=1, burst=60)):
        limiter.acquire(monotonic() + 5)

    assert slots_taken(dynamodb, 1_000_000, began_us) >= 2


def test_a_hold_stops_others_and_an_operator_can_set_and_lift_it(dynamodb: Any) -> None:
    # Given a hold after the vendor's throttle
    ours, other = make_limiter(), make_limiter("sweep")
    ours.acquire(monotonic() + 5)
    ours.hold(30)
    ours.hold(10)
    for limiter in (ours, other):
        with pytest.raises(QuotaExceeded, match="on hold"):
            limiter.acquire(monotonic() + 0.2)
    # When an operator lifts it
    dynamodb.update_item(TableName=TABLE, Key=KEY, UpdateExpression="REMOVE hold_until")
    # Then calls go on
    for limiter in (ours, other):
        limiter.acquire(monotonic() + 5)
    # And stop when the operator says so
    values = {":until": {"N": "9999999999"}}
    dynamodb.update_item(
        TableName=TABLE, Key=KEY, UpdateExpression="SET hold_until = :until", ExpressionAttributeValues=values
    )
    with pytest.raises(QuotaExceeded, match="on hold"):
        ours.acquire(monotonic() + 0.2)


@pytest.mark.parametrize("broken", ["no table", "no server"])
def test_without_the_table_calls_are_refused_or_go_on_at_a_tenth(
    dynamodb: Any, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    if broken == "no server":
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    table = "missing" if broken == "no table" else TABLE

    with pytest.raises(QuotaExceeded, match="does not answer"):
        make_limiter(table=table).acquire(monotonic() + 5)
    make_limiter(mode="open", table=table).acquire(monotonic() + 5)


def test_many_processes_share_one_limit() -> None:
    # When seven sweeps and a process with lookups use one table
    course = Course(seconds=5, sweeps=7, threads=4)
    outcome = measure(course)
    # Then together they get no more than the limit, however fast they were
    assert len(outcome.slots) <= course.qps * (course.seconds + 1) + course.burst
    assert len(outcome.arrivals) == len(outcome.slots)
    # And each its part, lookups all they asked for
    assert all(tally.slots for tally in outcome.tallies)
    assert outcome.of("api").counts["refused"] == 0
