"""Sweeps of the watch list: their messages, where the next one goes on, and that two never overlap."""

import io
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import repeat
from typing import Any

import pytest

from stream_state import errors
from stream_state.adapters.table import PAGE_ITEMS
from stream_state.adapters.watch_list import LEASE_SECONDS, Watch
from stream_state.domain.documents import Outcome
from stream_state.domain.targets import Target
from stream_state.services import in_order
from stream_state.services.rooms import READ_AHEAD
from tests.unit.fakes import aws_error
from tests.unit.memory import Media, World, media, metrics, targets

ONE, TWO, THREE = targets(3)
FAILS = aws_error("ProvisionedThroughputExceededException")
LEASE = {"pk": {"S": "sweep"}, "sk": {"S": "lease"}}


def watch(world: World, watched: list[Target], seconds: int = 3600) -> None:
    world.watch_list.add(watched, seconds)


def key(target: Target) -> str:
    return Watch(target, 0, 0).key


def pass_a_third_of_the_lease(world: World) -> None:
    """Pass the time, and wait while a sweep renews its lease."""
    world.clock.seconds += LEASE_SECONDS / 3
    renewed_until = world.clock.now() + LEASE_SECONDS - 1
    waits = iter(range(1000))
    lease = world.dynamodb.client.items["sweep"]
    while int(lease["lease"]["held_until"]["N"]) < renewed_until and next(waits, None) is not None:
        time.sleep(0.001)


def test_changes_of_watched_targets_are_delivered_and_a_second_sweep_is_silent(world: World) -> None:
    watch(world, targets(450))

    first = world.run_sweep()
    world.clock.seconds += 60
    second = world.run_sweep()

    assert (first["targets"], first["delivered"], first["remaining"]) == (450, 450, 0)
    assert (second["delivered"], second["unchanged"], second["failed"]) == (0, 450, 0)
    assert sorted(world.rtc.calls) == sorted(targets(450) * 2)
    assert len(world.queue.messages) == 450


def test_a_message_that_is_not_accepted_and_a_change_that_a_lookup_saw_are_delivered_by_the_next_sweep(
    world: World,
) -> None:
    watch(world, [ONE, TWO, THREE])
    world.queue.refuses = lambda message: message["user_id"] == ONE.user_id
    first = world.run_sweep()
    world.queue.take()
    world.queue.refuses = lambda message: False
    world.clock.seconds += 1
    world.rtc.say(TWO, media("audio"))
    world.lookup.one(TWO, world.in_seconds(10))

    second = world.run_sweep()

    assert (first["delivered"], first["failed"]) == (2, 1)
    assert [failure["problem"]["error"] for failure in first["failures"]] == ["DeliveryFailed"]
    assert (second["delivered"], second["unchanged"]) == (2, 1)
    changed = {message["user_id"]: message["changed"] for message in world.queue.messages}
    assert changed == {ONE.user_id: list(media()), TWO.user_id: ["audio", "present"]}


def test_a_target_that_fails_neither_stops_nor_starves_the_others_and_is_asked_again(world: World) -> None:
    watch(world, targets(300))
    world.rtc.say(ONE, errors.RtcUnavailable("Network."), errors.RtcUnavailable("Network."), media("video"))

    summaries = []
    for _ in range(3):
        summaries.append(world.run_sweep())
        world.clock.seconds += 60

    assert [(summary["failed"], summary["delivered"]) for summary in summaries] == [(1, 299), (1, 0), (0, 1)]
    assert world.queue.users("stream_state_problem") == []
    assert sorted(world.rtc.calls) == sorted(targets(300) * 3)


def test_a_sweep_that_finds_the_lease_held_ends_and_says_so(world: World, one_at_a_time: None) -> None:
    # Given a lease that another sweep took, which was killed after some targets
    everyone = targets(10)
    watch(world, everyone)
    world.watch_list.take_lease("another")
    world.watch_list.keep_lease("another", key(everyone[7]))

    summary = world.run_sweep()

    assert summary["skipped"] == "another sweep of the watch list is under way"
    assert (world.rtc.calls, world.queue.messages, summary["targets"]) == ([], [], 0)
    # A sweep of given targets takes no lease.
    assert world.run_sweep(TWO)["delivered"] == 1
    world.clock.seconds += LEASE_SECONDS + 2
    assert world.run_sweep()["targets"] == 10
    assert world.rtc.calls == [TWO, *everyone[8:], *everyone[:8]]


def test_the_next_sweep_goes_on_where_one_stopped_and_passes_once(world: World, one_at_a_time: None) -> None:
    everyone = targets(10)
    watch(world, everyone)
    world.rtc.seconds_per_call = 1

    first, second = world.run_sweep(seconds=3.5), world.run_sweep(seconds=3.5)
    world.rtc.calls.append(ONE)
    third = world.run_sweep()

    assert world.rtc.calls == [*everyone[:4], *everyone[4:8], ONE, *everyone[8:], *everyone[:8]]
    assert [(s["targets"], s["remaining"]) for s in (first, second, third)] == [(10, 6), (10, 6), (10, 0)]


def test_targets_without_a_slot_remain_and_the_next_sweep_begins_there(world: World, one_at_a_time: None) -> None:
    everyone = targets(6)
    watch(world, everyone)
    for target in (everyone[2], everyone[5]):
        world.rtc.say(target, errors.QuotaExceeded("On hold."), media())

    summary = world.run_sweep()
    world.rtc.calls.clear()
    world.run_sweep()

    assert (summary["delivered"], summary["failed"]) == (4, 0)
    assert world.rtc.calls[0] == everyone[2]
    assert (summary["targets"], summary["remaining"]) == (6, 2)


def test_a_refusal_that_concerns_all_stops_a_sweep_of_watched_targets(world: World, one_at_a_time: None) -> None:
    watch(world, targets(10))
    world.rtc.say(TWO, errors.CredentialsInvalid("No secret."))

    summary = world.run_sweep()

    assert world.rtc.calls == [ONE, TWO]
    assert (summary["delivered"], summary["failed"], summary["remaining"]) == (1, 1, 8)
    assert world.queue.users("stream_state_problem") == []
    assert world.watch_list.take_lease("next") == (True, key(ONE))


def test_the_cursor_is_stored_after_every_page_and_at_the_end(world: World, one_at_a_time: None) -> None:
    everyone = targets(PAGE_ITEMS + 50)
    watch(world, everyone)

    world.run_sweep()

    values = [made["ExpressionAttributeValues"] for name, made in world.dynamodb.made if name == "update_item"]
    cursors = [value[":cursor_key"]["S"] for value in values if ":cursor_key" in value]
    assert cursors == [key(everyone[PAGE_ITEMS - 1]), key(everyone[PAGE_ITEMS + 49])]


def test_a_sweep_keeps_its_lease_also_while_no_answer_comes(
    world: World, one_at_a_time: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given calls that are on hold for minutes
    monkeypatch.setattr(in_order, "IDLE_SECONDS", 0.001)
    watch(world, targets(3))
    others: list[bool] = []

    def hold() -> Media:
        for _ in range(10):
            pass_a_third_of_the_lease(world)
            others.append(world.watch_list.take_lease("another")[0])
        return media()

    world.rtc.default = hold

    assert world.run_sweep(seconds=3600)["delivered"] == 3
    # Then the lease is renewed all the while
    assert others == [False] * 30


def test_a_sweep_that_lost_the_lease_ends_and_leaves_the_cursor_to_the_other(
    world: World, one_at_a_time: None, logs: io.StringIO
) -> None:
    def steal() -> Media:
        """A pause of the whole function, in which another sweep takes the lease."""
        world.clock.seconds += LEASE_SECONDS + 2
        assert world.watch_list.take_lease("another")[0]
        return media()

    watch(world, targets(READ_AHEAD + 7))
    world.rtc.say(THREE, steal)

    summary = world.run_sweep()

    # Those whose records were read together are still asked about.
    assert world.rtc.calls == targets(READ_AHEAD)
    assert "lost the lease" in logs.getvalue()
    assert (summary["delivered"], summary["remaining"]) == (READ_AHEAD, 7)
    assert world.watch_list.keep_lease("another", "cursor-of-another") is True


def test_a_lease_that_cannot_be_renewed_is_tried_again_and_at_last_lost(
    world: World, one_at_a_time: None, logs: io.StringIO
) -> None:
    watch(world, targets(60))
    world.rtc.seconds_per_call = 3
    # Given that the renewal after 15 s fails, the one after 18 s does not, and all after that fail
    writes = iter([None, FAILS, None])
    world.dynamodb.effects["update_item"] = repeat(lambda made: next(writes, FAILS) if made["Key"] == LEASE else None)

    summary = world.run_sweep()

    # Then the records of 25 targets are read after 75 s, and no more after 150 s.
    assert (summary["delivered"], summary["remaining"]) == (50, 10)
    assert "lost the lease" in logs.getvalue()


@pytest.mark.parametrize("call", [1, 2], ids=["first page", "later page"])
def test_a_watch_list_that_cannot_be_read_is_a_failure_that_lets_go_of_the_lease(world: World, call: int) -> None:
    watch(world, targets(PAGE_ITEMS + 1))
    world.dynamodb.effects["query"] = iter([None] * (call - 1) + [FAILS])

    with pytest.raises(errors.StateUnavailable):
        world.run_sweep()

    assert world.watch_list.take_lease("next")[0] is True
    world.watch_list.keep_lease("next", None, release=True)
    world.clock.seconds += 1
    assert world.run_sweep()["failed"] == 0
    assert world.queue.users() == [target.user_id for target in targets(PAGE_ITEMS + 1)]


def test_what_is_under_way_when_the_watch_list_cannot_be_read_is_delivered_under_the_lease(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_order, "IDLE_SECONDS", 0.001)
    everyone, is_read, others = targets(PAGE_ITEMS + 1), threading.Event(), list[bool]()

    def read(made: Mapping[str, Any]) -> Exception | None:
        if "ExclusiveStartKey" not in made:
            return None
        is_read.set()
        return FAILS

    def hold() -> Media:
        """A call that is on hold since before the second page is read, for longer than the lease."""
        is_read.wait()
        for _ in range(4):
            pass_a_third_of_the_lease(world)
            others.append(world.watch_list.take_lease("another")[0])
        return media()

    watch(world, everyone)
    world.dynamodb.effects["query"] = repeat(read)
    world.rtc.say(everyone[PAGE_ITEMS - 1], hold)

    with pytest.raises(errors.StateUnavailable):
        world.run_sweep()

    assert world.queue.users() == [target.user_id for target in everyone[:PAGE_ITEMS]]
    assert others == [False] * 4
    assert world.watch_list.take_lease("next") == (True, key(everyone[PAGE_ITEMS - 1]))


def test_a_sweep_keeps_its_lease_also_while_calls_of_a_withdrawn_action_end(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch(world, [ONE])
    gone, others = errors.RtcActionRetired("Gone."), list[bool]()

    def each(asked: Iterable[Target], deadline: float, query: str = "on") -> Iterator[Outcome | None]:
        for target in [] if query == "presence" else asked:
            yield Outcome(target, gone, gone)
            for _ in range(4):
                world.clock.seconds += LEASE_SECONDS / 3
                yield None
                others.append(world.watch_list.take_lease("another")[0])

    monkeypatch.setattr(world.lookup, "each", each)
    world.run_sweep()

    assert others == [False] * 4


def stalest_seconds(world: World, capsys: pytest.CaptureFixture[str]) -> float:
    capsys.readouterr()
    metrics(capsys)
    world.run_sweep()
    (seconds,) = metrics(capsys)["StalestState"]
    return seconds


def test_the_age_of_the_stalest_state_is_recorded(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """The age of a target that failed counts from the last answer, or from the watch if there was none."""
    assert (world.run_sweep()["targets"], "StalestState" in metrics(capsys)) == (0, False)
    watch(world, [ONE, TWO])
    world.clock.seconds += 10
    assert stalest_seconds(world, capsys) == pytest.approx(10, abs=1)
    world.clock.seconds += 60
    assert stalest_seconds(world, capsys) == pytest.approx(60, abs=1)
    world.rtc.say(TWO, errors.RtcUnavailable("Network."))
    world.clock.seconds += 60
    assert stalest_seconds(world, capsys) == pytest.approx(60, abs=1)
    world.clock.seconds += 60
    assert stalest_seconds(world, capsys) == pytest.approx(120, abs=1)
    # If the record cannot be read, the age counts from the watch.
    world.dynamodb.effects["batch_get_item"] = iter([FAILS])
    assert stalest_seconds(world, capsys) == pytest.approx(190, abs=1)
