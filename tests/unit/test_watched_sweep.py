"""Sweeps of the watch list: what is told, where the next one goes on, and that two never overlap."""

import io
from queue import SimpleQueue
from typing import Any

import pytest

from stream_state import lookup as lookup_module
from stream_state import sweep_round
from stream_state.errors import (
    CredentialsInvalid,
    QuotaExceeded,
    RtcActionRetired,
    RtcUnavailable,
    StateUnavailable,
    StreamStateError,
)
from stream_state.lookup import READ_AHEAD
from stream_state.model import Target
from stream_state.sweep import SweepRequest
from stream_state.table import PAGE_ITEMS
from stream_state.watch_list import LEASE_SECONDS, Watch
from tests.unit.fakes import Clock, aws_error
from tests.unit.memory import World, media, metrics, targets

ONE, TWO, THREE = targets(3)
WATCHED = SweepRequest(None, "changes")
FAILS = aws_error("ProvisionedThroughputExceededException")


@pytest.fixture
def world(clock: Clock) -> World:
    return World(clock)


@pytest.fixture
def one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Targets are asked in their order."""
    monkeypatch.setattr(lookup_module, "MAX_CONCURRENCY", 1)


def run(world: World, request: SweepRequest = WATCHED, seconds: float = 600) -> dict[str, Any]:
    return world.sweep.run(request, world.in_seconds(seconds), world.in_seconds(seconds + 10))


def watch(world: World, watched: list[Target], seconds: int = 3600) -> None:
    world.watch_list.add(watched, seconds)


def test_watched_targets_are_told_when_they_changed_and_a_second_sweep_is_silent(world: World) -> None:
    watch(world, targets(450))

    first = run(world)
    world.clock.seconds += 60
    second = run(world)

    assert (first["targets"], first["delivered"], first["remaining"]) == (450, 450, 0)
    assert (second["delivered"], second["unchanged"], second["failed"]) == (0, 450, 0)
    assert sorted(world.rtc.calls) == sorted(targets(450) * 2)
    assert len(world.queue.messages) == 450


def test_an_empty_watch_list_is_no_failure(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    summary = run(world)

    assert (summary["targets"], summary["calls_per_second"], "skipped" in summary) == (0, 0.0, False)
    assert "StalestState" not in metrics(capsys)


def test_watches_that_expired_or_were_removed_are_not_asked_and_new_ones_are(world: World) -> None:
    watch(world, [ONE], 30)
    watch(world, [TWO, THREE])
    run(world)
    world.clock.seconds += 30
    world.watch_list.remove(TWO)
    watch(world, targets(5)[4:])
    world.rtc.calls.clear()

    run(world)

    assert sorted(world.rtc.calls) == [THREE, targets(5)[4]]


def test_a_change_that_a_lookup_saw_first_is_told_by_the_sweep(world: World) -> None:
    watch(world, [ONE, TWO])
    run(world)
    world.queue.take()
    world.clock.seconds += 1
    world.rtc.say(ONE, media("audio"))
    world.lookup.one(ONE, world.in_seconds(10))
    world.clock.seconds += 1

    run(world)

    assert [message["changed"] for message in world.queue.messages] == [["audio", "present"]]


def test_a_message_of_a_watched_target_that_is_not_accepted_is_told_by_the_next_sweep(world: World) -> None:
    watch(world, [ONE, TWO])
    world.queue.refuses = lambda message: message["user_id"] == ONE.user_id
    first = run(world)
    world.queue.refuses = lambda message: False
    world.clock.seconds += 1

    second = run(world)

    assert (first["delivered"], first["failed"]) == (1, 1)
    assert [failure["problem"]["error"] for failure in first["failures"]] == ["DeliveryFailed"]
    assert (second["delivered"], second["unchanged"]) == (1, 1)


def test_a_watched_target_that_fails_neither_stops_nor_starves_the_others_and_is_asked_again(world: World) -> None:
    watch(world, targets(300))
    world.rtc.say(ONE, RtcUnavailable("Network."), RtcUnavailable("Network."), media("video"))

    summaries = [run(world) for _ in range(3) for world.clock.seconds in [world.clock.seconds + 60]]

    assert [(summary["failed"], summary["delivered"]) for summary in summaries] == [(1, 299), (1, 0), (0, 1)]
    assert world.queue.users("stream_state_problem") == []
    assert sorted(world.rtc.calls) == sorted(targets(300) * 3)


def test_a_sweep_that_finds_the_lease_held_ends_and_says_so(world: World) -> None:
    watch(world, [ONE])
    world.watch_list.take_lease("another")

    summary = run(world)

    assert summary["skipped"] == "another sweep of the watch list is under way"
    assert (world.rtc.calls, world.queue.messages, summary["targets"]) == ([], [], 0)
    world.clock.seconds += LEASE_SECONDS + 2
    assert run(world)["delivered"] == 1
    assert run(world, SweepRequest([TWO], "all"))["delivered"] == 1


def test_given_targets_take_no_lease(world: World) -> None:
    world.watch_list.take_lease("another")

    assert run(world, SweepRequest([ONE], "all"))["delivered"] == 1


def test_the_next_sweep_goes_on_where_one_stopped_once_round(world: World, one_at_a_time: None) -> None:
    everyone = targets(10)
    watch(world, everyone)
    world.rtc.seconds_per_call = 1

    first = run(world, seconds=3.5)
    second = run(world, seconds=3.5)
    world.rtc.calls.append(ONE)
    third = run(world)

    assert world.rtc.calls == [*everyone[:4], *everyone[4:8], ONE, *everyone[8:], *everyone[:8]]
    assert [(s["targets"], s["remaining"]) for s in (first, second, third)] == [(10, 6), (10, 6), (10, 0)]


def test_a_sweep_that_was_not_given_slots_for_all_counts_the_rest_as_remaining(
    world: World, one_at_a_time: None
) -> None:
    """Given a limiter that refuses the last targets of the list, then they remain, and the next sweep begins there."""
    everyone = targets(6)
    watch(world, everyone)
    for target in everyone[4:]:
        world.rtc.say(target, QuotaExceeded("On hold."), media())

    summary = run(world)
    world.rtc.calls.clear()
    run(world)

    assert (summary["delivered"], summary["failed"]) == (4, 0)
    assert world.rtc.calls[0] == everyone[4]
    assert (summary["targets"], summary["remaining"]) == (6, 2)


@pytest.mark.parametrize("error", [CredentialsInvalid("No secret."), RtcActionRetired("Gone.")], ids=str)
def test_a_refusal_that_concerns_all_stops_a_sweep_of_watched_targets(
    world: World, one_at_a_time: None, error: StreamStateError
) -> None:
    watch(world, targets(10))
    world.rtc.say(TWO, error)

    summary = run(world)

    assert world.rtc.calls == [ONE, TWO]
    assert (summary["delivered"], summary["failed"], summary["remaining"]) == (1, 1, 8)
    assert world.queue.users("stream_state_problem") == []
    assert world.watch_list.take_lease("next") == (True, Watch(ONE, 0, 0).key)


class Ticks:
    """Stands in for the events that the threads which keep a lease wait for: time passes when a test says so."""

    def __init__(self) -> None:
        self._ends: SimpleQueue[str] = SimpleQueue()
        self._waits: SimpleQueue[None] = SimpleQueue()

    def wait(self, seconds: float) -> bool:
        """As `threading.Event.wait`."""
        self._waits.put(None)
        return self._ends.get() == "end"

    def set(self) -> None:
        """As `threading.Event.set`."""
        self._ends.put("end")

    def tick(self) -> None:
        """Let the time to wait pass, and the lease be kept, once."""
        self._waits.get()
        self._ends.put("time is up")
        self._waits.get()
        self._waits.put(None)


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch) -> Ticks:
    ticks = Ticks()
    monkeypatch.setattr(sweep_round, "Event", lambda: ticks)
    return ticks


def test_the_cursor_is_stored_after_every_page_and_at_the_end(world: World, one_at_a_time: None) -> None:
    everyone = targets(PAGE_ITEMS + 50)
    watch(world, everyone)
    cursors: list[str | None] = []
    keep_lease = world.sweep._watch_list.keep_lease
    world.sweep._watch_list.keep_lease = lambda token, cursor, **more: (
        cursors.append(cursor) or keep_lease(token, cursor, **more)
    )

    run(world)

    assert cursors == [Watch(everyone[index], 0, 0).key for index in (PAGE_ITEMS - 1, PAGE_ITEMS + 49)]


def test_a_sweep_after_one_that_was_killed_goes_on_from_the_stored_cursor(world: World, one_at_a_time: None) -> None:
    everyone = targets(10)
    watch(world, everyone)
    world.watch_list.take_lease("killed")
    world.watch_list.keep_lease("killed", Watch(everyone[7], 0, 0).key)
    world.clock.seconds += LEASE_SECONDS + 2

    run(world)

    assert world.rtc.calls == everyone[8:] + everyone[:8]


def test_a_sweep_keeps_its_lease_also_while_no_answer_comes(world: World, one_at_a_time: None, ticks: Ticks) -> None:
    """Given calls that are on hold for minutes, then the lease is renewed all the while."""
    watch(world, targets(3))
    others: list[bool] = []

    def hold() -> dict[str, bool | None]:
        for _ in range(10):
            world.clock.seconds += LEASE_SECONDS / 3
            ticks.tick()
            others.append(world.watch_list.take_lease("another")[0])
        return media()

    world.rtc.default = hold

    assert run(world, seconds=3600)["delivered"] == 3
    assert others == [False] * 30


def test_a_sweep_that_lost_the_lease_ends_and_leaves_the_cursor_to_the_other(
    world: World, one_at_a_time: None, logs: io.StringIO
) -> None:
    watch(world, targets(READ_AHEAD + 7))
    world.rtc.say(THREE, lambda: steal(world))

    summary = run(world)

    # Those whose known states were read together are still asked for.
    assert world.rtc.calls == targets(READ_AHEAD)
    assert "lost the lease" in logs.getvalue()
    assert (summary["delivered"], summary["remaining"]) == (READ_AHEAD, 7)
    assert world.watch_list.keep_lease("another", "cursor-of-another") is True


def steal(world: World) -> dict[str, bool | None]:
    """A pause of the whole function, in which another sweep takes the lease."""
    world.clock.seconds += LEASE_SECONDS + 2
    assert world.watch_list.take_lease("another")[0]
    return media()


def test_a_lease_that_cannot_be_renewed_is_tried_again_and_at_last_lost(
    world: World, one_at_a_time: None, logs: io.StringIO
) -> None:
    watch(world, targets(60))
    world.rtc.seconds_per_call = 5
    keep_lease = world.sweep._watch_list.keep_lease
    fails = iter([True, False])
    kept_at: list[float] = []

    def keep(*arguments: Any, **options: Any) -> Any:
        if next(fails, True):
            raise StateUnavailable("The table did not answer.")
        kept_at.append(world.clock.seconds)
        return keep_lease(*arguments, **options)

    world.sweep._watch_list.keep_lease = keep

    summary = run(world)

    # Those whose known states were read together are still asked for.
    assert LEASE_SECONDS <= world.clock.seconds - kept_at[0] < LEASE_SECONDS + READ_AHEAD * 5
    assert summary["remaining"] == 60 - summary["delivered"] > 0
    assert "lost the lease" in logs.getvalue()


@pytest.mark.parametrize("call", [1, 2], ids=["first page", "later page"])
def test_a_watch_list_that_cannot_be_read_is_a_failure_that_lets_go_of_the_lease(world: World, call: int) -> None:
    watch(world, targets(PAGE_ITEMS + 1))
    world.dynamodb.effects["query"] = iter([None] * (call - 1) + [FAILS])

    with pytest.raises(StateUnavailable):
        run(world)

    assert world.watch_list.take_lease("next")[0] is True
    world.watch_list.keep_lease("next", None, release=True)
    world.clock.seconds += 1
    world.queue.take()
    assert run(world)["failed"] == 0
    assert all(not known.is_news for known in map(world.known, targets(PAGE_ITEMS + 1)) if known)


def test_a_table_that_fails_for_the_lease_is_a_failure_before_any_call(world: World) -> None:
    watch(world, [ONE])
    world.dynamodb.effects["update_item"] = iter([FAILS])

    with pytest.raises(StateUnavailable):
        run(world)

    assert world.rtc.calls == []


def stalest_seconds(world: World, capsys: pytest.CaptureFixture[str]) -> float:
    capsys.readouterr()
    metrics(capsys)
    run(world)
    (seconds,) = metrics(capsys)["StalestState"]
    return seconds


def test_the_age_of_the_stalest_state_is_told(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """Given a target that failed, then its age counts from the last answer, or from the watch if there was none."""
    watch(world, [ONE, TWO])
    world.clock.seconds += 10
    assert stalest_seconds(world, capsys) == pytest.approx(10, abs=1)
    world.clock.seconds += 60
    assert stalest_seconds(world, capsys) == pytest.approx(60, abs=1)
    world.rtc.say(TWO, RtcUnavailable("Network."))
    world.clock.seconds += 60
    assert stalest_seconds(world, capsys) == pytest.approx(60, abs=1)
    world.clock.seconds += 60
    assert stalest_seconds(world, capsys) == pytest.approx(120, abs=1)
    world.dynamodb.effects["batch_get_item"] = iter([None, FAILS])
    assert stalest_seconds(world, capsys) == pytest.approx(190, abs=1)
