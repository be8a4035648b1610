"""Rounds of workflows that wait with a task token, and whoever observes the condition and wakes them."""

from collections.abc import Callable
from itertools import count
from typing import Any

import pytest

from stream_state import errors
from stream_state.domain.observations import Observations
from stream_state.domain.targets import Medium, Target
from stream_state.domain.waits import Wait, WaitCondition
from tests.unit.callback_world import JOIN, TEACHER, VIDEO, VIDEO_STOP, Receiver, signed
from tests.unit.fakes import Clock, aws_error
from tests.unit.memory import World, media, metrics, targets
from tests.unit.moto_table import table_client
from tests.unit.observed import event, query

UNKNOWN = errors.TargetNotFound("Unknown.", rtc_request_id="request-7")
RETIRED = errors.RtcActionRetired("Gone.", rtc_code="InvalidActionOrVersion")
PASSING = [errors.QuotaExceeded("Full."), errors.RtcThrottled("Slow."), errors.RtcUnavailable("Network.")]
LASTING = [errors.RtcAccessDenied("Key."), errors.RtcProtocolError("What?"), errors.CredentialsInvalid("Secret.")]
_numbers = count(1)


def wait_for(
    world: World,
    medium: str | None = "video",
    *,
    publishing: bool = True,
    wait_id: str = "execution-1",
    seconds: float = 600,
) -> Wait:
    """A wait with a token of its own."""
    condition = WaitCondition(Medium(medium) if medium else None, publishing, world.clock.now() + seconds, 60)
    return Wait(wait_id, f"token-{next(_numbers)}", condition)


def begin(world: World, target: Target = TEACHER, **more: Any) -> str:
    """Begin a round; its token."""
    wait = wait_for(world, **more)
    world.waits.begin_round(target, wait, world.in_seconds(10))
    return wait.token


def answered(world: World) -> list[str]:
    return [token for token, _ in world.workflows.answers]


def observe(world: World, observations: Observations, target: Target = TEACHER) -> None:
    """Let some function observe a target."""
    world.recorder.observe(target, observations, source="callback")


# A round


def test_a_round_asks_once_and_leaves_its_token_until_the_condition_is_observed(
    world: World, conforms: Callable[[str, Any], None]
) -> None:
    # Given a teacher whose camera is off
    token = begin(world)
    assert (answered(world), world.rtc.calls) == ([], [TEACHER])

    # When the camera goes on
    world.clock.seconds += 20
    observe(world, event("video.start", world.clock.now_ms()))

    # Then the workflow gets the answer, once
    ((woken, answer),) = world.workflows.answers
    assert (woken, answer.pop("holds"), answer["media"]["video"], answer["source"]) == (token, True, True, "callback")
    conforms("answer", answer)
    observe(world, event("video.start", world.clock.now_ms() + 1))
    assert answered(world) == [token]


@pytest.mark.parametrize(
    ("says", "medium", "publishing"),
    [(media("video"), "video", True), (media("audio"), None, True), (media(), None, False), (media(), "video", False)],
    ids=["video on", "any on", "all off", "video off"],
)
def test_a_condition_that_holds_is_answered_at_once(world: World, says: Any, medium: str, publishing: object) -> None:
    world.rtc.say(TEACHER, says)

    token = begin(world, medium=medium, publishing=bool(publishing))

    ((woken, answer),) = world.workflows.answers
    assert (woken, answer["source"], answer["rtc_request_id"]) == (token, "query", "request-1")


def test_waits_for_one_target_share_an_answer_for_an_interval(world: World) -> None:
    tokens = [begin(world, wait_id=f"execution-{number}") for number in range(3)]
    assert world.rtc.calls == [TEACHER]
    world.clock.seconds += 61
    world.rtc.say(TEACHER, media("video"))

    tokens.append(begin(world, wait_id="execution-3"))

    # The rounds before have timed out: their tokens are dead.
    assert (world.rtc.calls, answered(world)) == ([TEACHER] * 2, tokens[3:])
    begin(world, wait_id="execution-4")
    assert (world.rtc.calls, world.workflows.answers[-1][1]["source"]) == ([TEACHER] * 2, "table")


@pytest.mark.parametrize("error", [*PASSING, UNKNOWN], ids=lambda error: error.name)
def test_an_error_that_may_pass_leaves_the_token(world: World, error: errors.StreamStateError) -> None:
    world.rtc.say(TEACHER, error)

    token = begin(world)
    world.clock.seconds += 1
    observe(world, event("video.start", world.clock.now_ms()))

    assert answered(world) == [token]
    # A token costs nothing while it waits, so that a round does not wait long for a slot.
    assert world.rtc.waits == [1]


@pytest.mark.parametrize("error", LASTING, ids=lambda error: error.name)
def test_an_error_that_lasts_ends_the_wait_and_leaves_nothing(world: World, error: errors.StreamStateError) -> None:
    world.rtc.say(TEACHER, error)

    with pytest.raises(type(error)):
        begin(world)

    assert world.wait_list.of(TEACHER) == []


@pytest.mark.parametrize("publishing", [True, False])
def test_a_user_who_is_not_found_is_neither_on_nor_off(world: World, publishing: object) -> None:
    world.rtc.say(TEACHER, UNKNOWN)

    begin(world, medium=None, publishing=bool(publishing))

    assert answered(world) == []


@pytest.mark.parametrize("query", ["on", "presence", "off"], ids=["withdrawn", "presence", "off"])
def test_without_the_action_callback_events_fulfil_the_wait(world: World, query: str) -> None:
    world.rtc.default, world.lookup.query = RETIRED, query
    observe(world, event("audio.start", world.clock.now_ms()))
    first = begin(world)
    observe(world, event("video.start", world.clock.now_ms()))
    world.clock.seconds += 3600

    # What an event said an hour ago is the last known state.
    second = begin(world, wait_id="execution-2")

    assert answered(world) == [first, second]


def test_without_the_action_a_user_of_whom_nothing_is_known_is_not_waited_for(world: World) -> None:
    world.rtc.default = RETIRED

    with pytest.raises(errors.RtcActionRetired):
        begin(world)


def test_a_wait_past_its_deadline_ends_before_anything_is_called(world: World) -> None:
    with pytest.raises(errors.StreamStateTimeout):
        begin(world, seconds=0)
    assert world.is_untouched


def test_rounds_of_one_wait_leave_one_item_and_the_newest_token(world: World) -> None:
    tokens = [begin(world) for _ in range(500)]

    (wait,) = world.wait_list.of(TEACHER)
    assert wait.token == tokens[-1]
    assert len(world.record(TEACHER).observations) < 10  # type: ignore[union-attr]  # it was asked about


# Waking


def test_a_wait_for_off_is_woken_as_a_wait_for_on(world: World) -> None:
    receiver = Receiver(world)
    receiver.receive(signed(JOIN, receiver.now_ms))
    receiver.receive(signed(VIDEO, receiver.now_ms + 1))
    world.rtc.say(TEACHER, media("video"))
    world.clock.seconds += 60
    token = begin(world, publishing=False)
    assert answered(world) == []

    world.clock.seconds += 60
    receiver.receive(signed(VIDEO_STOP, receiver.now_ms))

    assert answered(world) == [token]


def by_callback(world: World) -> None:
    Receiver(world).receive(signed(VIDEO, world.clock.now_ms()))


def by_sweep(world: World) -> None:
    world.rtc.say(TEACHER, media("video"))
    world.run_sweep(TEACHER)


def by_lookup(world: World) -> None:
    world.rtc.say(TEACHER, media("video"))
    world.lookup.one(TEACHER, world.in_seconds(10))


def by_recheck(world: World) -> None:
    world.rtc.say(TEACHER, media("video"))
    world.lookup.recheck(TEACHER, world.in_seconds(10))


@pytest.mark.parametrize("observer", [by_callback, by_sweep, by_lookup, by_recheck])
def test_whoever_observes_the_condition_wakes_all_waits_for_it(
    world: World, observer: Callable[[World], None], capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = {begin(world, wait_id=f"execution-{number}") for number in range(20)}
    begin(world, medium="audio", wait_id="for audio")
    world.clock.seconds += 20

    observer(world)

    assert set(answered(world)) == tokens
    assert [wait.id for wait in world.wait_list.of(TEACHER)] == ["for audio"]
    assert metrics(capsys)["WaitsOpen"] == [21]


def test_an_observation_looks_for_waits_with_one_request_and_with_none_if_nobody_waits(world: World) -> None:
    def queries_of(action: Callable[[], None]) -> int:
        before = world.dynamodb.count("query")
        action()
        return world.dynamodb.count("query") - before

    other = targets(1)[0]
    assert queries_of(lambda: observe(world, event("audio.start", world.clock.now_ms()))) == 0
    begin(world)
    world.clock.seconds += 20
    assert queries_of(lambda: observe(world, event("audio.start", world.clock.now_ms()))) == 1
    assert queries_of(lambda: observe(world, event("audio.start", world.clock.now_ms()), other)) == 0
    # The mark lasts as long as the token.
    world.clock.seconds += 61
    assert queries_of(lambda: observe(world, event("audio.stop", world.clock.now_ms()))) == 0


def test_a_delivery_takes_the_mark_away_if_no_wait_is_left(world: World) -> None:
    begin(world)
    world.clock.seconds += 20
    by_callback(world)

    assert world.record(TEACHER).waits_until == 0  # type: ignore[union-attr]  # it was observed


def test_a_dead_token_is_removed_quietly(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    dead = begin(world)
    world.workflows.dead.add(dead)
    world.clock.seconds += 20

    observe(world, event("video.start", world.clock.now_ms()))

    assert (answered(world), world.wait_list.of(TEACHER)) == ([], [])
    assert "Errors" not in metrics(capsys)


def test_a_wake_that_fails_is_repeated_by_the_next_observer_and_by_the_next_round(world: World) -> None:
    begin(world)
    world.clock.seconds += 20
    world.workflows.is_down = True
    observe(world, event("video.start", world.clock.now_ms()))
    world.workflows.is_down = False
    assert [wait.id for wait in world.wait_list.of(TEACHER)] == ["execution-1"]

    second = begin(world)

    assert answered(world) == [second]


def test_waits_that_cannot_be_read_fail_no_observation(world: World) -> None:
    begin(world)
    world.clock.seconds += 20
    world.dynamodb.effects["query"] = iter([aws_error("ProvisionedThroughputExceededException")])

    observe(world, event("video.start", world.clock.now_ms()))

    assert world.values(TEACHER)["video"] is True  # type: ignore[index]  # it was observed
    begin(world)
    assert len(answered(world)) == 1


# Registering and a change at the same moment


class Crash(BaseException):
    """The end of an instance."""


@pytest.mark.parametrize("place", range(8))
@pytest.mark.parametrize("crashes", [False, True], ids=["goes on", "crashes"])
def test_a_change_between_any_two_steps_of_a_round_is_not_missed(clock: Clock, place: int, crashes: object) -> None:
    # Given a round during which, before its nth request to the table, the camera goes on
    world = World(clock)
    other = World(clock, world.dynamodb.client, workflows=world.workflows)
    world.rtc.say(TEACHER, errors.RtcUnavailable("Network."))
    passed = count()

    def effect(_: Any) -> None:
        if next(passed) == place:
            by_callback(other)
            if crashes:
                raise Crash

    for operation in ("put_item", "update_item", "get_item", "query", "delete_item"):
        world.dynamodb.effects[operation] = iter(lambda: effect, None)

    # When it ends, or crashes there and the next round begins
    try:
        begin(world)
    except Crash:
        world.dynamodb.effects.clear()
        begin(world)
    if next(passed) <= place:
        by_callback(other)

    # Then the workflow is answered, though the vendor cannot be reached
    assert len(answered(world)) == 1


@pytest.mark.parametrize("place", range(6))
def test_an_observer_that_crashes_at_any_step_is_made_good_by_the_next_round(clock: Clock, place: int) -> None:
    world = World(clock)
    world.rtc.say(TEACHER, media(), errors.RtcUnavailable("Network."))
    begin(world)
    clock.seconds += 20
    passed = count()

    def effect(_: Any) -> None:
        if next(passed) == place:
            raise Crash

    for operation in ("put_item", "update_item", "query", "delete_item"):
        world.dynamodb.effects[operation] = iter(lambda: effect, None)
    try:
        by_callback(world)
    except Crash:
        world.dynamodb.effects.clear()
        # The vendor sends an event without an answer again.
        if not world.values(TEACHER)["video"]:  # type: ignore[index]  # it was asked about
            by_callback(world)
        begin(world)

    assert len(set(answered(world))) >= 1


def test_waits_are_kept_by_target_and_removed_by_token_alone(clock: Clock) -> None:
    with table_client("moto") as client:
        world = World(clock, client)
        old, new = wait_for(world), wait_for(world, None, publishing=False)
        others = [wait_for(world, wait_id=f"execution-{number}") for number in range(2, 250)]
        for wait in (old, new, *others):
            world.wait_list.add(TEACHER, wait, int(clock.now()) + 60)
        world.wait_list.add(targets(1)[0], old, int(clock.now()) + 60)

        world.wait_list.remove(TEACHER, old)
        kept = world.wait_list.of(TEACHER)
        assert {wait.id: wait.token for wait in kept} == {wait.id: wait.token for wait in (new, *others)}
        (condition,) = (wait.condition for wait in kept if wait.id == new.id)
        assert (condition.medium, condition.publishing) == (None, False)
        world.wait_list.remove(TEACHER, new)
        assert len(world.wait_list.of(TEACHER)) == len(others)
        clock.seconds += 60
        assert world.wait_list.of(TEACHER) == []


def test_a_record_of_a_wait_alone_is_no_known_state(world: World) -> None:
    world.rtc.say(TEACHER, errors.RtcUnavailable("Network."))
    begin(world)

    assert world.record(TEACHER) is None
    assert world.store.room(TEACHER.app_id, TEACHER.room_id, None).entries == []
    assert (world.queue.messages, world.store.undelivered(10).entries) == ([], [])


def test_a_state_older_than_an_interval_does_not_end_a_wait(world: World) -> None:
    observe(world, query(world.clock.now_ms(), video=True))
    world.clock.seconds += 61
    world.rtc.say(TEACHER, errors.RtcUnavailable("Network."))

    begin(world)

    assert answered(world) == []
