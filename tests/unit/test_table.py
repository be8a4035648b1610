"""The table of states, watches, lease and cursor: against a table in memory, and the same against moto's."""

from collections.abc import Callable, Iterator, Mapping
from itertools import repeat
from typing import Any

import boto3
import pytest
from botocore.exceptions import ConnectTimeoutError, EndpointConnectionError, ReadTimeoutError
from moto import mock_aws

from stream_state.errors import StateUnavailable
from stream_state.model import Known, StreamState, Target
from stream_state.settings import Settings, SettingsError
from stream_state.table import MAX_TRIES, PAGE_ITEMS, STATE_LIFE_SECONDS, StateTable
from stream_state.watch_list import LEASE_SECONDS, Watch
from tests.unit.fakes import Clock, aws_error
from tests.unit.memory import APP_ID, TABLE, Item, World, media, metrics, query_facts, targets

TARGET = Target(APP_ID, "class-1", "teacher")
KEY_TYPES = {"pk": "HASH", "sk": "RANGE"}


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> None:
    """What boto3 needs to make a client."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, "eu-central-1")


@pytest.fixture
def moto_client(aws: None) -> Iterator[Any]:
    """A boto3 client of a table that moto holds in this process."""
    with mock_aws():
        client = boto3.client("dynamodb")
        client.create_table(
            TableName=TABLE,
            KeySchema=[{"AttributeName": name, "KeyType": kind} for name, kind in KEY_TYPES.items()],
            AttributeDefinitions=[{"AttributeName": name, "AttributeType": "S"} for name in KEY_TYPES],
            BillingMode="PAY_PER_REQUEST",
        )
        yield client


@pytest.fixture(params=["memory", "moto"])
def world(request: pytest.FixtureRequest, clock: Clock) -> World:
    return World(clock, request.getfixturevalue("moto_client") if request.param == "moto" else None)


@pytest.fixture
def memory(clock: Clock) -> World:
    return World(clock)


def observed(world: World, target: Target, *on: str, seconds_ago: float = 0) -> Known:
    at_ms = int((world.clock.wall() - seconds_ago) * 1000)
    known: Known = world.table.observe(StreamState(target, query_facts(media(*on), at_ms), "query"))
    return known


def test_what_is_observed_is_merged_written_and_read(world: World) -> None:
    first = observed(world, TARGET, "audio")
    older = observed(world, TARGET, "video", seconds_ago=5)
    again = observed(world, TARGET, "audio", "video")

    assert (first.sequence, first.revision) == (int(world.clock.wall() * 1000), 1)
    assert (older.state().values, older.sequence, older.revision) == (first.state().values, first.sequence, 2)
    assert (again.sequence, again.revision, again.is_news) == (first.sequence + 1, 3, True)
    found = world.known(TARGET)
    assert found is not None
    assert (found.facts, found.sequence, found.revision) == (again.facts, again.sequence, 3)


def test_of_a_concurrent_writer_nothing_is_lost(world: World) -> None:
    """Given a writer between each read and write, then both observations are merged."""
    for users_first in (True, False):
        target = Target(APP_ID, "class-1", f"first-{users_first}")
        if users_first:
            observed(world, target)

        def write_between(_: Mapping[str, Any], target: Target = target) -> None:
            world.dynamodb.effects.clear()
            observed(world, target, "video")

        world.clock.seconds += 1
        world.dynamodb.effects["put_item"] = iter([write_between])
        known = observed(world, target, "audio", seconds_ago=1)

        assert known.state().values["video"] is True
        assert known.revision == (3 if users_first else 2)


def test_reads_to_merge_are_consistent_and_a_race_costs_one_more_write_only(memory: World) -> None:
    def write_between(_: Mapping[str, Any]) -> None:
        memory.dynamodb.effects.clear()
        observed(memory, TARGET)

    memory.dynamodb.effects["put_item"] = iter([write_between])
    observed(memory, TARGET)

    reads = [parameters for name, parameters in memory.dynamodb.made if name == "get_item"]
    assert [parameters["ConsistentRead"] for parameters in reads] == [True] * 4
    # Of the target, and, once it is written, of the room, which may have ended before anything was known of the target.
    assert [parameters["Key"]["sk"]["S"] for parameters in reads] == [TARGET.user_id] * 2 + ["room"] * 2
    assert memory.dynamodb.count("put_item") == 3


def test_a_target_that_others_always_write_first_is_given_up(memory: World) -> None:
    memory.dynamodb.effects["put_item"] = repeat(aws_error("ConditionalCheckFailedException"))

    with pytest.raises(StateUnavailable, match="others wrote the same state each time"):
        observed(memory, TARGET)

    assert memory.dynamodb.count("put_item") == MAX_TRIES


def test_what_has_expired_is_not_read_though_it_is_not_deleted_yet(world: World) -> None:
    first = observed(world, TARGET, "audio")
    world.table.mark_told(first)
    world.watch_list.add([TARGET], STATE_LIFE_SECONDS)
    world.clock.seconds += STATE_LIFE_SECONDS - 2
    assert world.known(TARGET)
    assert world.watch_list.page(None).entries

    world.clock.seconds += 2

    assert world.known(TARGET) is None
    assert world.table.room(APP_ID, "class-1", None).entries == []
    assert world.watch_list.page(None).entries == []
    assert world.watch_list.count() == 0
    anew = observed(world, TARGET)
    assert (anew.state().values["audio"], anew.revision, anew.told) == (False, 3, first.state().values)
    assert anew.sequence > first.sequence


def test_an_observation_lets_an_item_live_for_another_day(world: World) -> None:
    observed(world, TARGET)
    world.clock.seconds += STATE_LIFE_SECONDS - 2
    observed(world, TARGET, "audio")
    world.clock.seconds += STATE_LIFE_SECONDS - 2

    assert world.known(TARGET)


def test_told_moves_forward_only(world: World) -> None:
    first, second = observed(world, TARGET), observed(world, TARGET, "audio")

    for told in (second, first, second):
        world.table.mark_told(told)

    known = world.known(TARGET)
    assert known is not None
    assert (known.told, known.told_sequence, known.is_news) == (second.state().values, second.sequence, False)
    third = observed(world, TARGET, "video", seconds_ago=-1)
    assert third.is_news
    assert third.told == second.state().values


def test_a_target_that_is_gone_is_not_marked_as_told(world: World) -> None:
    world.table.mark_told(Known(TARGET, sequence=5, revision=3))

    assert observed(world, TARGET).told is None


def test_many_targets_are_read_in_batches_and_the_unknown_are_left_out(world: World) -> None:
    asked = targets(230)
    for target in asked[::50]:
        observed(world, target)

    found = world.table.read([*asked, *asked])

    assert list(found) == asked[::50]
    assert world.dynamodb.count("batch_get_item") == 3


def test_a_room_lists_its_own_users(world: World) -> None:
    one, two = targets(2)
    for target in (two, Target(APP_ID, "class-11", "teacher"), Target("app-2", "class-1", "teacher"), one):
        observed(world, target)

    page = world.table.room(APP_ID, "class-1", None)

    assert ([known.target for known in page.entries], page.next_key) == ([one, two], None)
    assert [known.target for known in world.table.room(APP_ID, "class-1", one.user_id).entries] == [two]
    assert world.table.room(APP_ID, "nowhere", None).entries == []


def test_a_room_is_listed_page_by_page_in_the_order_of_ids(memory: World) -> None:
    users = targets(PAGE_ITEMS + 3)
    for target in reversed(users):
        observed(memory, target)

    first = memory.table.room(APP_ID, "class-1", None)
    second = memory.table.room(APP_ID, "class-1", first.next_key)

    assert [known.target for known in (*first.entries, *second.entries)] == users
    assert (first.next_key, second.next_key) == (users[PAGE_ITEMS - 1].user_id, None)


def test_a_page_on_which_all_has_expired_is_empty_and_goes_on(memory: World) -> None:
    memory.watch_list.add(targets(PAGE_ITEMS), 10)
    memory.watch_list.add(targets(1, "class-2"), 100)
    memory.clock.seconds += 10

    first = memory.watch_list.page(None)

    assert (first.entries, first.next_key is None) == ([], False)
    assert [watch.target for watch in memory.watch_list.page(first.next_key).entries] == targets(1, "class-2")


def test_a_watch_begins_anew_and_ends(world: World) -> None:
    one, two = targets(2)
    now = int(world.clock.wall())

    assert world.watch_list.add([two, one, two], 60) == [Watch(two, now, now + 60), Watch(one, now, now + 60)]
    world.clock.seconds += 30
    world.watch_list.add([one], 90)
    assert world.watch_list.page(None).entries == [Watch(one, now + 30, now + 120), Watch(two, now, now + 60)]
    world.watch_list.remove(one)
    world.watch_list.remove(one)

    assert [watch.target for watch in world.watch_list.page(None).entries] == [two]
    assert world.watch_list.count() == 1


def test_watches_are_listed_from_a_key_and_up_to_a_key(world: World) -> None:
    world.watch_list.add(targets(6), 60)
    keys = [Watch(target, 0, 0).key for target in targets(6)]

    assert [watch.key for watch in world.watch_list.page(keys[3]).entries] == keys[4:]
    assert [watch.key for watch in world.watch_list.page(None, keys[3]).entries] == keys[:4]
    assert [watch.key for watch in world.watch_list.page(keys[1], keys[3]).entries] == keys[2:4]


def test_ten_thousand_watches_are_listed_page_by_page_and_counted(memory: World) -> None:
    everyone = targets(10_000)
    memory.watch_list.add(everyone, 60)

    listed: list[Target] = []
    after: str | None = None
    while True:
        page = memory.watch_list.page(after)
        assert len(page.entries) <= PAGE_ITEMS
        listed += [watch.target for watch in page.entries]
        after = page.next_key
        if after is None:
            break

    assert listed == everyone
    assert memory.watch_list.count() == 10_000


def test_a_lease_whose_answer_was_lost_is_taken_by_the_next_try(world: World) -> None:
    assert world.watch_list.take_lease("one") == (True, None)
    assert world.watch_list.take_lease("one") == (True, None)


def test_a_lease_is_held_by_one_until_it_is_released_or_expires(world: World) -> None:
    assert world.watch_list.take_lease("one") == (True, None)
    assert world.watch_list.take_lease("two") == (False, None)
    assert world.watch_list.keep_lease("two", "stolen") is False

    world.clock.seconds += LEASE_SECONDS / 2
    assert world.watch_list.keep_lease("one", "cursor-1") is True
    world.clock.seconds += LEASE_SECONDS - 2
    assert world.watch_list.take_lease("two") == (False, None)
    world.clock.seconds += 4
    assert world.watch_list.take_lease("two") == (True, "cursor-1")
    assert world.watch_list.keep_lease("one", "cursor-0") is False

    assert world.watch_list.keep_lease("two", "cursor-2", release=True) is True
    assert world.watch_list.take_lease("three") == (True, "cursor-2")
    assert world.watch_list.keep_lease("three", None, release=True) is True
    assert world.watch_list.take_lease("four") == (True, None)


@pytest.mark.parametrize("fraction", [0.0, 0.4, 0.95])
def test_a_lease_lasts_as_long_as_its_holder_counts_on(memory: World, fraction: float) -> None:
    memory.clock.seconds += fraction - memory.clock.wall() % 1
    memory.watch_list.take_lease("one")

    memory.clock.seconds += LEASE_SECONDS - 0.01

    assert memory.watch_list.take_lease("two") == (False, None)


def unprocessed(operation: str, kind: str, times: int) -> Callable[[World], None]:
    """Lets DynamoDB leave the last of the items of a batch undone, so many times."""

    def prepare(world: World) -> None:
        def leave_one(parameters: Mapping[str, Any]) -> Mapping[str, Any]:
            batch = parameters["RequestItems"][TABLE]
            items: list[Item] = batch["Keys"] if operation == "batch_get_item" else batch
            done, left = items[:-1], items[-1:]
            request = {**batch, "Keys": done} if operation == "batch_get_item" else done
            answer = getattr(world.dynamodb.client, operation)(RequestItems={TABLE: request}) if done else {}
            return {**answer, kind: {TABLE: {"Keys": left} if operation == "batch_get_item" else left}}

        world.dynamodb.effects[operation] = iter([leave_one] * times)

    return prepare


@pytest.mark.parametrize("times", [1, MAX_TRIES - 1])
def test_what_dynamodb_leaves_undone_is_asked_for_again(memory: World, times: int) -> None:
    for target in targets(3):
        observed(memory, target)
    unprocessed("batch_get_item", "UnprocessedKeys", times)(memory)
    unprocessed("batch_write_item", "UnprocessedItems", times)(memory)

    memory.watch_list.add(targets(3), 60)

    assert list(memory.table.read(targets(3))) == targets(3)
    assert memory.watch_list.count() == 3


def test_what_dynamodb_leaves_undone_again_and_again_is_a_failure(memory: World) -> None:
    unprocessed("batch_get_item", "UnprocessedKeys", MAX_TRIES)(memory)
    unprocessed("batch_write_item", "UnprocessedItems", MAX_TRIES)(memory)

    with pytest.raises(StateUnavailable, match="part of a batch was left undone"):
        memory.table.read(targets(3))
    with pytest.raises(StateUnavailable, match="part of a batch was left undone"):
        memory.watch_list.add(targets(3), 60)


ENDPOINT = {"endpoint_url": "https://canary.example"}
FAILURES = [
    (aws_error("ProvisionedThroughputExceededException"), "ProvisionedThroughputExceededException"),
    (aws_error("AccessDeniedException"), "AccessDeniedException"),
    (aws_error("InternalServerError"), "InternalServerError"),
    (ReadTimeoutError(**ENDPOINT), "ReadTimeoutError"),
    (ConnectTimeoutError(**ENDPOINT), "ConnectTimeoutError"),
    (EndpointConnectionError(**ENDPOINT), "EndpointConnectionError"),
]
STEPS = [
    pytest.param("get_item", lambda world: observed(world, TARGET), id="read to merge"),
    pytest.param("put_item", lambda world: observed(world, TARGET), id="write"),
    pytest.param(
        "update_item", lambda world: world.table.mark_told(Known(TARGET, sequence=1, revision=1)), id="mark told"
    ),
    pytest.param("batch_get_item", lambda world: world.table.read([TARGET]), id="read"),
    pytest.param("query", lambda world: world.table.room(APP_ID, "class-1", None), id="room"),
    pytest.param("query", lambda world: world.watch_list.page(None), id="watches"),
    pytest.param("query", lambda world: world.watch_list.count(), id="count"),
    pytest.param("batch_write_item", lambda world: world.watch_list.add([TARGET], 60), id="watch"),
    pytest.param("delete_item", lambda world: world.watch_list.remove(TARGET), id="unwatch"),
    pytest.param("update_item", lambda world: world.watch_list.take_lease("one"), id="take lease"),
    pytest.param("update_item", lambda world: world.watch_list.keep_lease("one", None), id="keep lease"),
]


@pytest.mark.parametrize(("failure", "shown"), FAILURES, ids=[shown for _, shown in FAILURES])
@pytest.mark.parametrize(("operation", "step"), STEPS)
def test_a_failure_of_dynamodb_is_counted_and_named_without_what_it_said(
    memory: World,
    capsys: pytest.CaptureFixture[str],
    operation: str,
    step: Callable[[World], object],
    failure: Exception,
    shown: str,
) -> None:
    memory.dynamodb.effects[operation] = iter([failure])
    metrics(capsys)

    with pytest.raises(StateUnavailable) as raised:
        step(memory)

    assert shown in str(raised.value)
    assert "canary" not in f"{raised.value} {raised.value.problem()}"
    assert raised.value.__suppress_context__
    assert (raised.value.retryable, raised.value.http_status) == (True, 503)
    assert metrics(capsys) == {"RtcErrors": [1.0]}


def test_the_table_is_the_one_of_the_settings(aws: None) -> None:
    environment = {"RTC_APP_IDS": APP_ID}

    assert isinstance(
        StateTable.from_settings(Settings.from_environment({**environment, "TABLE_NAME": TABLE})), StateTable
    )
    with pytest.raises(SettingsError, match=r"^TABLE_NAME is not set\.$"):
        StateTable.from_settings(Settings.from_environment(environment))
