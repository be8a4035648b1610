"""Rounds of workflows that wait with a task token, and whoever observes the condition and wakes them."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count, repeat
from typing import Any

import pytest
from botocore.exceptions import ReadTimeoutError

from stream_state import errors
from stream_state.adapters.wait_list import Workflows
from stream_state.domain.merging import StateRecord
from stream_state.domain.observations import Observations
from stream_state.domain.requests import TaskRequest
from stream_state.domain.targets import Medium, Target
from stream_state.domain.waits import Wait, WaitCondition
from stream_state.services.waits import begin_round
from tests.unit.callback_world import JOIN, LEAVE, TEACHER, VIDEO, VIDEO_STOP, Receiver, signed
from tests.unit.fakes import Clock, aws_error
from tests.unit.memory import TABLE, World, media, metrics, targets
from tests.unit.moto_table import table_client
from tests.unit.observed import event, query

UNKNOWN = errors.TargetNotFound("Unknown.", rtc_request_id="request-7")
RETIRED = errors.RtcActionRetired("Gone.", rtc_code="InvalidActionOrVersion")
PASSING = [errors.QuotaExceeded("Full."), errors.RtcThrottled("Slow."), errors.RtcUnavailable("Network.")]
LASTING = [errors.RtcAccessDenied("Key."), errors.RtcProtocolError("What?"), errors.CredentialsInvalid("Secret.")]
OFF = dict.fromkeys(["audio", "video", "screen_audio", "screen_video"], False)
IDS = {"room_id": "class-1", "user_id": "teacher"}
UNTIL = {"publishing": True, "started_at": "2026-11-23T03:04:05Z", "timeout_seconds": 600, "interval_seconds": 60}
NO_TEXTS: list[Any] = [None, "", 7, True, [], "\ud800", "\n"]
_numbers = count(1)


def wait_for(
    world: World,
    medium: str | None = "video",
    *,
    publishing: bool = True,
    wait_id: str = "execution-1",
    seconds: float = 600,
    interval: int = 60,
) -> Wait:
    """A wait with a token of its own."""
    now = world.clock.now()
    condition = WaitCondition(Medium(medium) if medium else None, publishing, now + seconds, interval, now)
    return Wait(wait_id, f"token-{next(_numbers)}", condition)


def begin(world: World, target: Target = TEACHER, **more: Any) -> str:
    """Begin a round; its token."""
    wait = wait_for(world, **more)
    begin_round(world.lookup, target, wait, world.in_seconds(10))
    return wait.token


def answered(world: World) -> list[str]:
    return [token for token, _ in world.workflows.answers]


def observe(world: World, observations: Observations, target: Target = TEACHER) -> None:
    """Let some function observe a target."""
    world.recorder.observe(target, observations, source="callback")


# A round


@pytest.mark.parametrize(("interval", "ago"), [(60, 119), (3600, 7199)])
@pytest.mark.parametrize("answer", [media(), UNKNOWN], ids=["off", "unknown"])
def test_a_round_asks_before_it_believes_a_record_that_is_not_fresh(
    world: World, interval: int, ago: int, answer: Any
) -> None:
    world.rtc.say(TEACHER, media("video"), answer)
    world.lookup.one(TEACHER, world.in_seconds(10))
    world.clock.seconds += ago

    begin(world, interval=interval)

    assert (answered(world), len(world.rtc.calls)) == ([], 2)


def test_a_wake_that_failed_is_made_good_by_the_next_round_without_a_call(world: World) -> None:
    wait = wait_for(world)
    begin_round(world.lookup, TEACHER, wait, world.in_seconds(10))
    world.clock.seconds += 10
    world.workflows.is_down = True
    observe(world, event("video.start", world.clock.now_ms()))
    world.workflows.is_down = False
    world.clock.seconds += 50

    begin_round(world.lookup, TEACHER, replace(wait, token="token-next"), world.in_seconds(10))

    assert (answered(world), world.rtc.calls) == (["token-next"], [TEACHER])


@pytest.mark.parametrize("error", LASTING, ids=lambda error: error.name)
def test_a_condition_that_was_just_observed_ends_the_wait_whatever_the_vendor_would_say(
    world: World, error: errors.StreamStateError
) -> None:
    observe(world, event("video.start", world.clock.now_ms()))
    world.clock.seconds += 1
    world.rtc.say(TEACHER, error)

    token = begin(world)

    assert (answered(world), world.rtc.calls) == ([token], [])


def test_a_user_who_is_unknown_fulfils_nothing_also_if_that_could_not_be_recorded(world: World) -> None:
    world.rtc.say(TEACHER, media("video"), UNKNOWN)
    world.lookup.one(TEACHER, world.in_seconds(10))
    world.clock.seconds += 100
    down = aws_error("ProvisionedThroughputExceededException")
    # The wait itself is stored.
    world.dynamodb.effects["put_item"] = iter([None, *[down] * 20])

    begin(world)

    assert answered(world) == []


def test_without_the_action_the_record_at_hand_counts_not_one_that_is_read_late(world: World) -> None:
    world.rtc.default = RETIRED
    observe(world.another(), event("video.start", world.clock.now_ms()))
    world.clock.seconds += 40
    world.dynamodb.effects["batch_get_item"] = iter([{"Responses": {TABLE: []}}])

    token = begin(world)

    assert answered(world) == [token]


def test_a_vendor_that_hangs_leaves_time_to_answer_from_the_record(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hang(_: Target, deadline: float, **__: object) -> None:
        world.clock.sleep(deadline - world.clock.monotonic())
        raise errors.RtcUnavailable("Too slow.")

    observe(world, event("video.start", world.clock.now_ms()))
    world.clock.seconds += 6
    started = world.clock.seconds
    monkeypatch.setattr(world.rtc, "stream_state", hang)

    token = begin(world, interval=5)

    assert (answered(world), world.clock.seconds - started < 4.5) == ([token], True)


def test_a_later_wait_of_the_same_execution_may_have_a_shorter_interval(world: World) -> None:
    world.rtc.say(TEACHER, media())
    world.workflows.dead.add(begin(world, interval=60, seconds=10))
    world.clock.seconds += 10

    token = begin(world, interval=5, medium="audio")
    world.clock.seconds += 1
    observe(world, event("audio.start", world.clock.now_ms()))

    assert answered(world) == [token]


def test_a_wait_for_off_ends_when_the_vendor_does_not_find_a_user_who_has_left(world: World) -> None:
    for kind, seconds in ((JOIN, 100), (LEAVE, 300)):
        Receiver(world).send(kind)
        world.clock.seconds += seconds
    world.rtc.say(TEACHER, UNKNOWN)

    token = begin(world, medium=None, publishing=False)

    assert answered(world) == [token]


def test_a_late_round_does_not_replace_a_newer_one(world: World) -> None:
    # Given a round whose first request takes longer than its interval, so that the next round begins
    other, tokens = world.another(), list[str]()

    def begin_the_next_round(_: object) -> None:
        world.clock.seconds += 5
        tokens.append(begin(other, interval=5))

    world.dynamodb.effects["put_item"] = iter([begin_the_next_round])
    begin(world, interval=5)

    # When the condition is observed
    world.clock.seconds += 1
    observe(other, event("video.start", world.clock.now_ms()))

    # Then the newer token is answered
    assert answered(world) == tokens


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
    world.lookup.recheck(StateRecord(TEACHER), world.in_seconds(10))


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
    assert world.dynamodb.made[-1][1].get("ConsistentRead", True) is True
    # The first observer after the token has died takes the mark away.
    world.clock.seconds += 62
    assert queries_of(lambda: observe(world, event("audio.stop", world.clock.now_ms()))) == 1
    assert queries_of(lambda: observe(world, event("audio.start", world.clock.now_ms() + 1))) == 0


def test_the_mark_goes_with_the_last_wait_and_the_change_is_delivered(world: World) -> None:
    begin(world)
    begin(world, medium="audio", wait_id="execution-2")
    world.clock.seconds += 20
    by_callback(world)
    assert world.record(TEACHER).has_waits is True  # type: ignore[union-attr]  # it was observed
    observe(world, event("audio.start", world.clock.now_ms()))

    assert len(answered(world)) == 2
    assert world.queue.users() == ["teacher"]
    assert world.record(TEACHER).has_waits is False  # type: ignore[union-attr]  # it was observed


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
            world.wait_list.add(TEACHER, wait, clock.now_ms())
        world.wait_list.add(targets(1)[0], old, clock.now_ms())

        world.wait_list.remove(TEACHER, old)
        kept = world.wait_list.of(TEACHER)
        assert {wait.id: wait.token for wait in kept} == {wait.id: wait.token for wait in (new, *others)}
        (condition,) = (wait.condition for wait in kept if wait.id == new.id)
        assert (condition.medium, condition.publishing) == (None, False)
        world.wait_list.remove(TEACHER, new)
        assert len(world.wait_list.of(TEACHER)) == len(others)
        clock.seconds += 61
        assert world.wait_list.of(TEACHER) == []


def test_a_record_of_a_wait_alone_is_no_known_state(world: World) -> None:
    world.rtc.say(TEACHER, errors.RtcUnavailable("Network."))
    begin(world)

    assert world.record(TEACHER) is None
    assert world.store.room(TEACHER.room).entries == []
    assert (world.queue.messages, world.store.undelivered(10).entries) == ([], [])


@pytest.mark.parametrize("publishing", [True, False])
def test_what_was_observed_long_ago_ends_no_wait(world: World, publishing: object) -> None:
    # Given a state of two hours ago, and a vendor that cannot be asked
    observe(world, query(world.clock.now_ms(), video=bool(publishing)))
    world.clock.seconds += 7200
    world.rtc.say(TEACHER, errors.RtcUnavailable("Network."))

    # When a wait begins, and something else is observed
    begin(world, publishing=bool(publishing))
    observe(world, event("audio.start", world.clock.now_ms()))

    # Then nobody has seen what the workflow waits for
    assert answered(world) == []


@pytest.mark.parametrize(("interval", "ago"), [(1, 3), (2, 4.9), (60, 4)])
def test_a_state_that_an_event_holds_up_within_the_skew_ends_a_wait_at_once(
    world: World, interval: int, ago: float
) -> None:
    # Given an event of some seconds ago, for which the vendor's answer stands back, however short the interval is
    observe(world, event("video.start", world.clock.now_ms()))
    world.clock.seconds += ago

    begin(world, interval=interval)

    assert len(answered(world)) == 1


def test_all_media_must_have_been_observed_off(world: World) -> None:
    observe(world, query(world.clock.now_ms(), video=True))
    world.clock.seconds += 7200
    world.rtc.say(TEACHER, errors.RtcUnavailable("Network."))
    begin(world, medium=None, publishing=False)

    observe(world, event("video.stop", world.clock.now_ms()))

    assert (world.values(TEACHER), answered(world)) == ({**OFF, "present": None}, [])


def test_each_round_asks_though_the_answer_of_the_last_came_late(world: World) -> None:
    for calls in range(1, 6):
        # The last round waited a second for its slot.
        world.rtc.say(TEACHER, UNKNOWN)
        begin(world)
        assert len(world.rtc.calls) == calls
        world.clock.seconds += 59


def test_waits_for_a_user_who_is_not_there_share_an_answer_too(world: World) -> None:
    world.rtc.say(TEACHER, UNKNOWN)

    for number in range(50):
        begin(world, wait_id=f"execution-{number}")

    assert world.rtc.calls == [TEACHER]


def test_a_wake_that_failed_is_repeated_by_a_round_that_cannot_ask(world: World) -> None:
    world.rtc.say(TEACHER, media("video"), errors.RtcUnavailable("Network."))
    begin(world, medium=None, publishing=False)
    world.clock.seconds += 20
    world.workflows.is_down = True
    observe(world, event("video.stop", world.clock.now_ms()))
    world.workflows.is_down = False
    world.clock.seconds += 41

    second = begin(world, medium=None, publishing=False)

    assert answered(world) == [second]


def test_a_round_that_finds_its_condition_answers_its_own_wait_alone(world: World) -> None:
    world.rtc.say(TEACHER, media("video"))
    tokens = [begin(world, wait_id=f"execution-{number}") for number in range(30)]

    assert answered(world) == tokens
    assert world.dynamodb.count("query") <= 2


def test_an_answer_that_cannot_be_recorded_is_an_answer(world: World) -> None:
    world.rtc.say(TEACHER, media("video"))
    begin(world, medium="audio")
    fails = repeat(aws_error("ProvisionedThroughputExceededException"))
    begun = count()
    # The item of the wait is written and its record is marked, but the answer is not written.
    world.dynamodb.effects["put_item"] = (None if next(begun) < 2 else next(fails) for _ in count())
    world.clock.seconds += 60

    token = begin(world, wait_id="execution-2")

    assert answered(world) == [token]


def test_many_waits_begin_on_one_target_at_once(clock: Clock) -> None:
    world = World(clock)

    with ThreadPoolExecutor(40) as pool:
        tokens = list(pool.map(lambda number: begin(world, wait_id=f"execution-{number}"), range(200)))

    assert {wait.token for wait in world.wait_list.of(TEACHER)} == {*tokens}


def test_a_workflow_service_that_hangs_keeps_no_observation_for_long(world: World) -> None:
    for number in range(30):
        begin(world, wait_id=f"execution-{number}")
    world.clock.seconds += 20
    world.workflows.seconds_per_answer, started = 1, world.clock.monotonic()
    world.workflows.clock = world.clock

    by_callback(world)

    # Ten threads that take a second each; what is left is for the next round.
    assert world.clock.monotonic() - started < 12
    assert len(world.wait_list.of(TEACHER)) >= 15
    assert world.queue.users() == ["teacher"]


def test_a_mark_is_not_taken_away_from_a_wait_that_began_meanwhile(world: World) -> None:
    begin(world)
    world.clock.seconds += 20

    def begin_another(_: Any) -> None:
        world.dynamodb.effects.clear()
        begin(world, medium="audio", wait_id="execution-2")

    world.dynamodb.effects["delete_item"] = iter([begin_another])
    by_callback(world)
    observe(world, event("audio.start", world.clock.now_ms()))

    assert len(answered(world)) == 2


def test_a_wait_does_not_prolong_the_life_of_what_was_observed(world: World) -> None:
    observe(world, event("video.start", world.clock.now_ms()))
    world.rtc.say(TEACHER, errors.RtcUnavailable("Network."))
    for _ in range(5):
        begin(world, medium="audio", seconds=10**6)
        world.clock.seconds += 6 * 3600

    assert world.record(TEACHER) is None
    begin(world, medium="audio", seconds=10**6)
    observe(world, event("audio.start", world.clock.now_ms()))
    assert len(answered(world)) == 1


# The answer to a token


class StepFunctions:
    """The client: raises what is said, one error after another."""

    def __init__(self, *effects: Exception | None) -> None:
        self.effects = iter(effects)
        self.sent: list[dict[str, Any]] = []

    def send_task_success(self, **parameters: Any) -> dict[str, Any]:
        if effect := next(self.effects, None):
            raise effect
        self.sent.append(parameters)
        return {}


@pytest.mark.parametrize(
    ("effects", "is_done", "sent"),
    [
        ([], True, 1),
        ([ReadTimeoutError(endpoint_url="")], True, 1),
        ([ReadTimeoutError(endpoint_url="")] * 2, False, 0),
        ([aws_error("ThrottlingException")], False, 0),
        ([aws_error("AccessDeniedException")], False, 0),
        ([aws_error("TaskTimedOut")], True, 0),
        ([aws_error("TaskDoesNotExist")], True, 0),
        ([aws_error("InvalidToken")], True, 0),
    ],
    ids=str,
)
def test_a_token_is_answered_once_unless_it_is_dead(
    effects: list[Exception], is_done: object, sent: int, capsys: pytest.CaptureFixture[str]
) -> None:
    client = StepFunctions(*effects)

    assert Workflows(lambda: client).answer("token-1", {"holds": True}) is is_done

    assert client.sent == [{"taskToken": "token-1", "output": '{"holds": true}'}] * sent
    counted = metrics(capsys)
    assert ("WaitsWoken" in counted, "Errors" in counted) == (bool(sent), not is_done)


@pytest.mark.parametrize("wait_id", ["arn:aws:states:eu-central-1:123456789012:execution:W:课堂-1", "x" * 1024])
def test_an_execution_may_have_a_name_in_any_script(world: World, wait_id: str) -> None:
    request = TaskRequest.parse({"wait": {**IDS, "until": UNTIL}, "wait_id": wait_id, "token": "t"}, ["app-1"])

    assert (request.wait and request.wait.id, request.wait and request.wait.condition) == (wait_id, request.condition)


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        *(({name: value}, name) for name in ("wait_id", "token") for value in NO_TEXTS),
        ({"wait_id": "x" * 1025}, "wait_id"),
        ({"token": "x" * 2049}, "token"),
        ({"wait": None}, "must be an object"),
        ({"wait": {**IDS}}, "wait"),
        ({"wait": {**IDS, "until": {**UNTIL, "interval_seconds": True}}}, "until.interval_seconds"),
        ({"wait": {"targets": [IDS]}}, "wait"),
        ({"max_age": 5}, "the event"),
        ({"input": {**IDS, "meduim": "video"}}, "the input has a field .'meduim'."),
        ({"input": []}, "the input"),
    ],
)
def test_a_round_that_breaks_a_rule_is_refused(more: dict[str, Any], complaint: str) -> None:
    with pytest.raises(errors.InvalidRequest, match=complaint):
        TaskRequest.parse({"wait": {**IDS, "until": UNTIL}, "wait_id": "w", "token": "t", **more}, ["app-1"])
