"""The watch list, made by persons and by events, and the lease and the cursor of its sweep: in memory and in moto."""

from collections.abc import Iterator

import pytest

from stream_state.adapters.table import PAGE_ITEMS
from stream_state.adapters.watch_list import LEASE_SECONDS, PARTITIONS, Watch, partition_of
from stream_state.domain.targets import Target
from tests.unit.fakes import Clock
from tests.unit.memory import World, targets
from tests.unit.moto_table import table_client

ONE, TWO = targets(2)
DAY, LEFT = 86_400, 180


@pytest.fixture(params=["memory", "moto"])
def world(request: pytest.FixtureRequest, clock: Clock) -> Iterator[World]:
    with table_client(request.param) as client:
        yield World(clock, client)


def seconds_left(world: World, target: Target = ONE) -> int | None:
    """For how long a target is still watched; None if it is not."""
    found = {watch.target: watch.expires_at for watch in world.watch_list.page(None).entries}
    return found[target] - int(world.clock.now()) if target in found else None


def test_a_watch_gets_a_new_expiry_and_ends(world: World) -> None:
    now = int(world.clock.now())

    assert world.watch_list.add([TWO, ONE, TWO], 60) == [Watch(TWO, now, now + 60), Watch(ONE, now, now + 60)]
    world.clock.seconds += 30
    world.watch_list.add([ONE], 90)
    assert world.watch_list.page(None).entries == [Watch(ONE, now + 30, now + 120), Watch(TWO, now, now + 60)]
    world.watch_list.remove(ONE)
    world.watch_list.remove(ONE)
    assert (seconds_left(world), seconds_left(world, TWO), world.watch_list.count()) == (None, 30, 1)
    world.clock.seconds += 30
    assert (world.watch_list.page(None).entries, world.watch_list.count()) == ([], 0)


def test_watches_are_listed_from_a_key_and_up_to_a_key(world: World) -> None:
    world.watch_list.add(targets(6), 60)
    keys = [Watch(target, 0, 0).key for target in targets(6)]

    assert [watch.key for watch in world.watch_list.page(keys[3]).entries] == keys[4:]
    assert [watch.key for watch in world.watch_list.page(None, keys[3]).entries] == keys[:4]
    assert [watch.key for watch in world.watch_list.page(keys[1], keys[3]).entries] == keys[2:4]


def test_many_watches_are_listed_page_by_page_also_past_a_page_that_has_expired(clock: Clock) -> None:
    world, users = World(clock), targets(2 * PAGE_ITEMS + 3)
    expired, alive = users[:PAGE_ITEMS], users[PAGE_ITEMS:]
    world.watch_list.add(expired, 10)
    world.watch_list.add(alive, 100)
    clock.seconds += 10

    pages = [world.watch_list.page(None)]
    while pages[-1].next_key:
        pages.append(world.watch_list.page(pages[-1].next_key))

    assert [len(page.entries) for page in pages] == [0, PAGE_ITEMS, 3]
    assert [watch.target for page in pages for watch in page.entries] == alive
    assert world.watch_list.count() == PAGE_ITEMS + 3


def test_the_watches_of_many_rooms_lie_in_16_partitions_and_are_listed_once_each(world: World) -> None:
    # Given watches of many rooms, one of them with many users
    crowd = targets(PAGE_ITEMS + 50, "room-7")
    others = [Target("app", f"room-{number}", "user") for number in range(100)]
    world.watch_list.add([*crowd, *others], 60)

    # When the list is read page by page, and again in two parts around a cursor
    def keys(after: str | None, last: str | None = None) -> list[str]:
        page = world.watch_list.page(after, last)
        found = [watch.key for watch in page.entries]
        return found + (keys(page.next_key, last) if page.next_key else [])

    whole = keys(None)
    # Then each watch comes once, in one order, and the partitions share them
    assert sorted(whole) == sorted(Watch(target, 0, 0).key for target in [*crowd, *others])
    for cursor in (whole[0], whole[120], whole[-1]):
        assert [*keys(None, cursor), *keys(cursor)] == whole
    assert {partition_of(Watch(target, 0, 0).key) for target in others} == set(range(PARTITIONS))
    assert world.watch_list.count() == len(whole)


# Watches that events make


def test_a_join_watches_for_a_day_and_a_newer_leave_for_three_sweeps_more(world: World) -> None:
    world.watch_list.left(ONE, 900)
    assert seconds_left(world) is None
    world.watch_list.joined(ONE, 1000)
    assert seconds_left(world) == DAY
    world.clock.seconds += 3600
    world.watch_list.left(ONE, 1001)
    assert seconds_left(world) == LEFT
    world.clock.seconds += LEFT
    assert seconds_left(world) is None


@pytest.mark.parametrize(
    ("event", "at_ms", "seconds"),
    [("joined", 2000, DAY), ("joined", 1999, DAY - 60), ("left", 2001, LEFT), ("left", 2000, DAY - 60)],
)
def test_only_a_newer_event_changes_a_watch_that_events_made(
    world: World, event: str, at_ms: int, seconds: int
) -> None:
    """A join of the same time is a repeat, and a leave of the same time was of an earlier connection."""
    world.watch_list.joined(ONE, 2000)
    world.clock.seconds += 60

    getattr(world.watch_list, event)(ONE, at_ms)

    assert seconds_left(world) == seconds


def test_an_older_join_does_not_undo_a_leave(world: World) -> None:
    world.watch_list.joined(ONE, 1000)
    world.watch_list.left(ONE, 3000)
    world.watch_list.joined(ONE, 2000)
    assert seconds_left(world) == LEFT


@pytest.mark.parametrize("seconds", [60, DAY, 30 * DAY])
def test_an_event_only_extends_a_watch_that_a_person_made(world: World, seconds: int) -> None:
    world.watch_list.joined(ONE, 1000)
    world.watch_list.add([ONE], seconds)
    world.watch_list.left(ONE, 2000)
    assert seconds_left(world) == seconds
    world.watch_list.joined(ONE, 3000)
    world.watch_list.left(ONE, 4000)
    assert seconds_left(world) == max(seconds, DAY)


# The lease and the cursor


def test_a_lease_is_held_by_one_sweep_until_it_is_released_or_expires(world: World) -> None:
    assert world.watch_list.take_lease("one") == (True, None)
    # The answer to the first try was lost.
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
def test_a_lease_lasts_as_long_as_its_holder_counts_on(clock: Clock, fraction: float) -> None:
    world = World(clock)
    clock.seconds += fraction - clock.now() % 1
    world.watch_list.take_lease("one")

    clock.seconds += LEASE_SECONDS - 0.01

    assert world.watch_list.take_lease("two") == (False, None)
