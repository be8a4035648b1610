"""State records in the table, the list of undelivered changes, and failures: in memory, and the same in moto."""

from collections.abc import Callable, Iterator, Mapping
from itertools import repeat
from typing import Any

import pytest
from botocore.exceptions import ConnectTimeoutError, EndpointConnectionError, ReadTimeoutError

from stream_state.adapters.state_store import STATE_LIFE_SECONDS, StateStore
from stream_state.adapters.table import MAX_TRIES, PAGE_ITEMS, Table
from stream_state.domain.merging import Merge, StateRecord
from stream_state.domain.observations import Mark, QueryResult
from stream_state.domain.targets import Medium, Room, Target
from stream_state.errors import StateUnavailable
from stream_state.settings import Settings, SettingsError
from tests.unit.fakes import Clock, aws_error
from tests.unit.memory import APP_ID, ENVIRONMENT, World, media, metrics, targets
from tests.unit.moto_table import table_client

TARGET = Target(APP_ID, "class-1", "teacher")


@pytest.fixture(params=["memory", "moto"])
def world(request: pytest.FixtureRequest, clock: Clock) -> Iterator[World]:
    with table_client(request.param) as client:
        yield World(clock, client)


@pytest.fixture
def memory(clock: Clock) -> World:
    return World(clock)


def observe(world: World, target: Target, *on: str, seconds_ago: float = 0) -> Merge:
    """Write the answer to a query."""
    at_ms = world.clock.now_ms() - int(seconds_ago * 1000)
    values = {Medium(name): value for name, value in media(*on).items()}
    return world.store.observe(target, QueryResult(values, at_ms, None).observations())


def another(world: World) -> World:
    """Another instance on the same table and clock, which has kept no record."""
    return World(world.clock, world.dynamodb.client)


def found(world: World, target: Target = TARGET) -> StateRecord:
    return world.store.read([target])[target]


def listed(world: World) -> list[str]:
    """The users on the list of undelivered changes whose writers have had their time."""
    return [record.target.user_id for record in world.store.undelivered(100).entries]


# Merging, writing and reading


def test_observations_are_merged_written_and_read(world: World) -> None:
    first = observe(world, TARGET, "audio").after
    older = observe(world, TARGET, "video", seconds_ago=5).after
    newer = observe(world, TARGET, "audio", "video", seconds_ago=-1).after

    assert (first.sequence, first.revision, first.state.values["video"]) == (world.clock.now_ms(), 1, False)
    assert (older.state.values, older.sequence) == (first.state.values, first.sequence)
    assert (newer.sequence, newer.is_undelivered) == (first.sequence + 1, True)
    assert (found(world).observations, found(world).sequence) == (newer.observations, newer.sequence)


def test_marks_of_many_workflows_do_not_meet(world: World) -> None:
    # Given instances that each know an older record, whose own puts would be refused
    instances = [another(world) for _ in range(20)]
    for number, instance in enumerate(instances):
        observe(instance, TARGET, "audio", seconds_ago=-number)

    marked = [instance.store.mark_waits(TARGET) for instance in instances]

    assert [record.has_waits for record in marked] == [True] * 20
    assert [record.revision for record in marked] == list(range(marked[0].revision, marked[0].revision + 20))
    assert all(instance.dynamodb.made[-1][0] == "update_item" for instance in instances)


@pytest.mark.parametrize("is_first", [True, False])
def test_an_observation_of_a_concurrent_writer_is_not_lost(world: World, *, is_first: bool) -> None:
    if not is_first:
        observe(world, TARGET)

    def write_between(_: Mapping[str, Any]) -> None:
        world.dynamodb.effects.clear()
        observe(another(world), TARGET, "video", seconds_ago=-1)

    world.dynamodb.effects["put_item"] = iter([write_between])
    merge = world.store.observe(TARGET, {"audio.start": Mark(1, 1), "join": Mark(2, 2)})

    assert found(world).observations == merge.after.observations
    assert (merge.after.state.values["video"], "join" in merge.after.observations) == (True, True)
    assert found(world).revision == (2 if is_first else 3)


def test_others_who_write_in_every_pause_keep_no_writer_out(memory: World, monkeypatch: pytest.MonkeyPatch) -> None:
    others = another(memory)

    def write(*_: object) -> None:
        others.store.mark_waits(TARGET)

    memory.dynamodb.effects["put_item"] = iter([write, write])
    monkeypatch.setattr(memory.clock, "sleep", write)
    merge = memory.store.observe(TARGET, {"join": Mark(1, 1)})

    assert found(memory).observations == merge.after.observations


def test_a_record_that_others_always_write_first_is_an_error(memory: World) -> None:
    memory.dynamodb.effects["put_item"] = repeat(aws_error("ConditionalCheckFailedException"))

    with pytest.raises(StateUnavailable, match="others wrote the same state each time"):
        observe(memory, TARGET)
    assert memory.dynamodb.count("put_item") == MAX_TRIES


def test_nothing_is_read_before_a_write_and_a_record_of_its_own_costs_one_write(memory: World) -> None:
    """The end of the room is read once, after the record's first write; a refused write brings the record."""
    made = []
    for instance, seconds_ago in ((memory, 0), (memory, 0), (memory, -1), (another(memory), -2), (memory, -3)):
        before = len(instance.dynamodb.made)
        record = observe(instance, TARGET, seconds_ago=seconds_ago).after
        made.append([name for name, _ in instance.dynamodb.made[before:]])
        instance.store.mark_delivered(record)

    assert made == [["put_item", "get_item"], ["put_item"], ["put_item"], ["put_item"] * 2, ["put_item"] * 2]
    (room,) = [parameters for name, parameters in memory.dynamodb.made if name == "get_item"]
    assert (room["ConsistentRead"], room["Key"]["sk"]["S"]) == (True, "room")


def test_a_record_lives_for_a_day_after_its_last_observation(world: World) -> None:
    first = observe(world, TARGET, "audio").after
    world.clock.seconds += STATE_LIFE_SECONDS - 2
    second = observe(world, TARGET).after
    world.clock.seconds += STATE_LIFE_SECONDS - 2
    world.store.mark_delivered(second)
    assert found(world).delivered == second.state.values

    # A delivery lets no record live longer, for the instance that delivered it either.
    world.clock.seconds += 2
    assert (world.store.read([TARGET]), world.store.room(Room(APP_ID, "class-1")).entries) == ({}, [])
    later = world.store.observe(TARGET, {"join": Mark(world.clock.now_ms(), world.clock.now_ms())}).after
    assert [name for name, value in later.state.values.items() if value is not None] == ["present"]
    assert (later.delivered, later.sequence > second.sequence > first.sequence) == (second.state.values, True)


def test_many_targets_are_read_in_batches_and_targets_without_a_record_are_left_out(world: World) -> None:
    asked = targets(230)
    for target in asked[::50]:
        observe(world, target)

    assert list(world.store.read([*asked, *asked])) == asked[::50]
    assert world.dynamodb.count("batch_get_item") == 3
    assert list(world.store.read(asked[:2], to_merge=True)) == asked[:2]


def test_a_room_lists_its_own_users_page_by_page_in_the_order_of_ids(memory: World) -> None:
    users = targets(PAGE_ITEMS + 3)
    for target in (Target(APP_ID, "class-11", "teacher"), Target("app-2", "class-1", "teacher"), *reversed(users)):
        observe(memory, target)
    memory.store.end_room(Room(APP_ID, "class-1"), Mark(0, 0))

    first = memory.store.room(Room(APP_ID, "class-1"))
    second = memory.store.room(Room(APP_ID, "class-1"), first.next_key)

    assert [record.target for record in (*first.entries, *second.entries)] == users
    assert (first.next_key, second.next_key) == (users[PAGE_ITEMS - 1].user_id, None)
    assert memory.store.room(Room(APP_ID, "nowhere")).entries == []


def test_the_newest_end_of_a_room_is_merged_into_records_that_are_written_later(world: World) -> None:
    now_ms = world.clock.now_ms()
    for at_ms in (now_ms + 1000, now_ms - 5000):
        world.store.end_room(Room(APP_ID, "class-1"), Mark(at_ms, at_ms))

    merge = world.store.observe(TARGET, {"audio.start": Mark(now_ms, now_ms)})

    assert merge.after.state.values == {**media(), "present": False}
    assert found(world).observations["end"].at_ms == now_ms + 1000


def test_of_an_end_that_arrived_twice_the_first_arrival_counts(world: World) -> None:
    now_ms = world.clock.now_ms()
    for seen_ms in (now_ms - 2000, now_ms - 3000, now_ms - 1000):
        world.store.end_room(Room(APP_ID, "class-1"), Mark(now_ms, seen_ms))

    world.store.observe(TARGET, {"audio.start": Mark(now_ms - 9000, now_ms - 9000)})

    assert found(world).observations["end"] == Mark(now_ms, now_ms - 3000)


# Deliveries and rechecks


def test_the_delivered_sequence_never_goes_back(world: World) -> None:
    world.store.mark_delivered(StateRecord(TARGET, sequence=5, revision=3))
    assert world.store.read([TARGET]) == {}
    first = observe(world, TARGET).after
    second = observe(world, TARGET, "audio", seconds_ago=-1).after

    for delivered in (second, first, second):
        world.store.mark_delivered(delivered)

    assert (found(world).delivered, found(world).delivered_sequence) == (second.state.values, second.sequence)
    assert (found(world).is_undelivered, listed(world)) == (False, [])


def test_a_record_that_was_deleted_while_it_was_on_the_list_is_not_made_again(world: World) -> None:
    world.store.mark_delivered(world.store.read([TARGET], to_merge=True)[TARGET])

    assert world.dynamodb.count("put_item") == 0


def test_a_change_is_on_the_list_from_its_write_to_its_delivery(world: World) -> None:
    """The oldest comes first, and a change that its writer delivers stays with the writer for 10 s."""
    one, two = targets(2)
    first = observe(world, one).after
    world.store.delivers = False
    observe(world, two)
    lists = []
    for seconds in (9.9, 0.1):
        lists.append(listed(world))
        world.clock.seconds += seconds
    assert [*lists, listed(world)] == [[two.user_id], [two.user_id], [two.user_id, one.user_id]]
    assert [record.target for record in world.store.undelivered(1).entries] == [two]
    assert {"undelivered", "deliver_after"} <= world.dynamodb.made[0][1]["Item"].keys()

    # A change that others write between send and mark stays.
    observe(another(world), one, "audio", seconds_ago=-1)
    world.store.mark_delivered(first)
    world.clock.seconds += 10
    assert (listed(world), found(world, one).delivered_sequence) == ([two.user_id, one.user_id], first.sequence)


def test_a_recheck_that_is_overdue_by_a_minute_is_on_the_list(world: World) -> None:
    now_ms = world.clock.now_ms()
    for kind, at_ms in (("join", now_ms), ("leave", now_ms + 1)):
        merge = world.store.observe(TARGET, {kind: Mark(at_ms, at_ms)})
        world.store.mark_delivered(merge.after)
    world.clock.seconds += 65.9
    assert listed(world) == []
    world.clock.seconds += 0.1
    assert listed(world) == ["teacher"]
    world.store.set_recheck(found(world), world.clock.now_ms())
    assert listed(world) == []


@pytest.mark.parametrize(
    ("environment", "delay_ms"),
    [({}, 6000), ({"RTC_SKEW_SECONDS": "2"}, 3000), ({"RTC_QUERY": "off"}, 0), ({"CALLBACK_RETRY_QUEUE_URL": ""}, 0)],
)
def test_a_recheck_is_asked_for_where_it_can_be_sent_and_carried_out(
    memory: World, environment: dict[str, str], delay_ms: int
) -> None:
    queue = {"CALLBACK_RETRY_QUEUE_URL": "https://sqs.example/retry"}
    store = StateStore.from_settings(Settings.from_environment({**ENVIRONMENT, **queue, **environment}), memory.table)
    merges = [store.observe(TARGET, {kind: Mark(at_ms, at_ms)}) for kind, at_ms in (("join", 5000), ("leave", 5001))]

    assert [merge.asks_recheck for merge in merges] == [False, delay_ms > 0]
    assert merges[1].after.recheck_at_ms == (memory.clock.now_ms() + delay_ms if delay_ms else 0)


# Failures


@pytest.mark.parametrize("times", [1, MAX_TRIES - 1, MAX_TRIES])
def test_requests_that_dynamodb_leaves_undone_are_sent_again(memory: World, times: int) -> None:
    for operation, undone in (("batch_get_item", "UnprocessedKeys"), ("batch_write_item", "UnprocessedItems")):
        effect = lambda parameters, undone=undone: {undone: parameters["RequestItems"]}  # noqa: E731 (short)
        memory.dynamodb.effects[operation] = iter([effect] * times)
    observe(memory, TARGET)

    if times < MAX_TRIES:
        memory.watch_list.add(targets(3), 60)
        assert (list(memory.store.read([TARGET])), memory.watch_list.count()) == ([TARGET], 3)
        assert memory.clock.slept == [0.2] * times * 2
        return
    for request in (lambda: memory.store.read([TARGET]), lambda: memory.watch_list.add(targets(3), 60)):
        with pytest.raises(StateUnavailable, match="part of a batch was left undone"):
            request()


CODES = ("ProvisionedThroughputExceededException", "AccessDeniedException")
LOST = (ReadTimeoutError, ConnectTimeoutError, EndpointConnectionError)
FAILURES: dict[str, Exception] = {code: aws_error(code) for code in CODES}
FAILURES |= {error.__name__: error(endpoint_url="https://canary.example") for error in LOST}
STEPS: dict[str, Callable[[World], object]] = {
    "put_item": lambda world: observe(world, TARGET),
    "get_item": lambda world: observe(world, TARGET),
    "update_item": lambda world: world.store.end_room(TARGET.room, Mark(0, 0)),
    "query": lambda world: world.store.undelivered(10),
    "batch_get_item": lambda world: world.store.read([TARGET]),
    "batch_write_item": lambda world: world.watch_list.add([TARGET], 60),
    "delete_item": lambda world: world.watch_list.remove(TARGET),
}


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("operation", STEPS)
def test_a_failure_of_dynamodb_is_counted_and_named_without_its_message(
    memory: World, capsys: pytest.CaptureFixture[str], operation: str, failure: str
) -> None:
    memory.dynamodb.effects[operation] = iter([FAILURES[failure]])

    with pytest.raises(StateUnavailable, match=failure) as raised:
        STEPS[operation](memory)

    assert "canary" not in f"{raised.value} {raised.value.problem()}"
    assert (raised.value.__suppress_context__, raised.value.retryable, raised.value.status) == (True, True, 503)
    assert metrics(capsys) == {"Errors": [1.0]}


def test_the_table_must_be_named() -> None:
    with pytest.raises(SettingsError, match=r"^TABLE_NAME is not set\.$"):
        Table.from_settings(Settings.from_environment({"RTC_APP_IDS": APP_ID}))
