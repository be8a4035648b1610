"""The rate limiter on a table that speaks DynamoDB's protocol, in one process and in many."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from time import monotonic, time
from typing import Any

import boto3
import pytest

from stream_state.adapters.rate_limiter import Function, RateLimiter, rate_limiters
from stream_state.adapters.table import Table
from stream_state.errors import QuotaExceeded
from stream_state.settings import Settings
from tests.benchmarks.rate_limiter import Course, measure, worst_window
from tests.benchmarks.table import AWS
from tests.sandbox.aws import Aws
from tests.sandbox.server import Request, Response

KEY = {"pk": {"S": "limiter"}, "sk": {"S": "rtc"}}
TABLE = "limits"


@pytest.fixture(scope="module")
def server_url() -> Iterator[str]:
    # The sandbox's server makes conditional writes atomic, as DynamoDB does; moto alone loses one of two at once.
    def refuse(request: Request) -> Response:
        raise AssertionError(request)

    server = Aws("us-east-1", refuse)
    yield server.url
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


def make_settings(qps: int = 50, burst: int = 5, table: str = TABLE) -> Settings:
    limits = {"RTC_QPS": str(qps), "RTC_BURST": str(burst)}
    return Settings.from_environment({"RTC_APP_IDS": "app", "TABLE_NAME": table, **limits})


def make_limiter(
    function: Function = "api", qps: int = 50, burst: int = 5, table: str = TABLE, name: str = "rtc"
) -> RateLimiter:
    settings = make_settings(qps, burst, table)
    return rate_limiters(Table.from_settings(settings), settings, function)(name)


def test_each_grant_takes_one_slot_of_an_item_that_does_not_expire(dynamodb: Any) -> None:
    # Given two processes, and a rate so low that no slot comes free meanwhile
    limiters = [make_limiter(qps=1, burst=60), make_limiter("task", qps=1, burst=60)]
    began_us = time() * 1e6
    # When many threads of each take slots at once
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda place: limiters[place % 2].acquire(monotonic() + 20), range(40)))
    # Then each thread has one slot
    item = dynamodb.get_item(TableName=TABLE, Key=KEY)["Item"]
    assert 40 <= (int(item["next_us"]["N"]) - began_us) / 1e6 < 41 + (time() * 1e6 - began_us) / 1e6
    assert item.keys() == {"pk", "sk", "next_us"}


def test_a_denial_says_when_to_come_back_and_costs_one_write_and_no_read(dynamodb: Any) -> None:
    make_limiter(qps=1, burst=1).acquire(monotonic() + 1)
    settings = make_settings(qps=1, burst=1)
    table = Table.from_settings(settings)
    operations: list[str] = []
    table.client.meta.events.register("before-call.dynamodb", lambda model, **_: operations.append(model.name))
    limiter = RateLimiter(table, settings, "api")

    with pytest.raises(QuotaExceeded) as denied:
        limiter.acquire(monotonic() + 0.1)

    assert 0 < (denied.value.retry_after_seconds or 0) <= 1
    assert operations == ["UpdateItem"]


def test_a_hold_stops_all_processes_and_an_operator_can_set_and_lift_it(dynamodb: Any) -> None:
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
    lifted_at = monotonic()
    # Then calls go on within seconds
    for limiter in (ours, other):
        while True:
            try:
                limiter.acquire(monotonic() + 0.5)
                break
            except QuotaExceeded:
                assert monotonic() - lifted_at < 5
    # And stop again when the operator says so
    values = {":until": {"N": "9999999999"}}
    dynamodb.update_item(
        TableName=TABLE, Key=KEY, UpdateExpression="SET hold_until = :until", ExpressionAttributeValues=values
    )
    with pytest.raises(QuotaExceeded, match="on hold"):
        ours.acquire(monotonic() + 0.2)


@pytest.mark.parametrize("broken", ["no table", "no server"])
def test_without_the_table_calls_are_refused(dynamodb: Any, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    if broken == "no server":
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")

    with pytest.raises(QuotaExceeded, match="does not answer"):
        make_limiter(table="missing" if broken == "no table" else TABLE).acquire(monotonic() + 2)


@pytest.mark.parametrize(("item", "limit"), [("GetRoomOnlineUsers", 40), ("GetRoomUsersProperty#app", 10)])
def test_eight_processes_keep_the_limit_of_a_presence_call(item: str, limit: int) -> None:
    # When seven sweeps and one process of lookups make as many calls as they can
    outcome = measure(Course.of(item, seconds=6, sweeps=7, threads=4))
    # Then no second holds more of them than the vendor allows, and the rate is used as far as this machine can
    assert worst_window(outcome.arrivals) <= limit
    assert outcome.share > 0.5


def test_a_thousand_callers_leave_the_rate_as_it_is() -> None:
    # When a thousand callers ask again and again
    outcome = measure(Course(seconds=6, sweeps=4, callers=1000))
    api = outcome.of("api")
    # Then they use the rate, the others are refused soon, and few writes are in vain
    assert outcome.share > 0.9
    assert max(api.refusals_seconds) < 6
    assert api.counts["UpdateItem"] <= 3 * len(outcome.slots)


@pytest.mark.parametrize("course", [Course(seconds=5, sweeps=7, threads=4), Course(seconds=5, sweeps=3, callers=400)])
def test_many_processes_share_one_limit(course: Course) -> None:
    # When processes use one table, with or without callers who cannot all be served
    outcome = measure(course)
    # Then together they get no more than the limit, however fast they were
    assert len(outcome.slots) <= course.qps * (outcome.slots[-1] - outcome.slots[0] + 1) + course.burst
    assert worst_window(outcome.slots, 4) <= course.qps * 4 + 2 * course.burst + course.qps * 0.2
    assert len(outcome.arrivals) == len(outcome.slots)
    # And each process gets its part, lookups beside sweeps all that they asked for, and nothing spins
    assert all(tally.slots for tally in outcome.tallies)
    assert course.callers or outcome.of("api").counts["refused"] == 0
    assert outcome.of("api", "sweep").counts["UpdateItem"] <= 4 * len(outcome.slots)
