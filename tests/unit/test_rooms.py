"""Whole rooms and presence: who is in a room is asked about, who has gone is off, and a cut list proves nothing."""

import io
import time
from collections.abc import Callable
from itertools import repeat
from typing import Any

import pytest

from stream_state import errors
from stream_state.domain.documents import Outcome
from stream_state.domain.merging import StateRecord
from stream_state.domain.observations import Presence, offline, online
from stream_state.domain.requests import SweepRequest
from stream_state.domain.targets import Room, Target
from stream_state.services.rooms import ROOMS_AT_ONCE
from tests.unit.fakes import aws_error
from tests.unit.memory import APP_ID, World, media, metrics, targets
from tests.unit.observed import event

ROOM, HALL = Room(APP_ID, "class-1"), Room(APP_ID, "hall-1")
TEACHER, GUEST, NEW = (Target(APP_ID, "class-1", user_id) for user_id in ("teacher", "guest", "new"))
RETIRED = errors.RtcActionRetired("Gone.")
REFUSED = errors.RtcAccessDenied("The policy does not name the action.", rtc_code="LackPolicy")
OFF = dict.fromkeys(["audio", "video", "screen_audio", "screen_video"], False)
Conforms = Callable[[str, Any], None]


@pytest.fixture
def room(world: World) -> World:
    """A minute ago callback events described two users with audio; since then the guest's leave was lost."""
    for target in (TEACHER, GUEST):
        world.see(target, event("audio.start", world.clock.now_ms()))
    world.delivery.drain(world.in_seconds(10), is_whole=True)
    world.queue.take()
    world.clock.seconds += 60
    world.rtc.rooms[ROOM] = {"teacher", "new"}
    world.rtc.say(TEACHER, media("audio", "video"))
    return world


def some(world: World, *asked: Target | Room, seconds: float = 10, max_age_seconds: int = 0) -> list[Outcome]:
    return world.lookup.some(asked, world.in_seconds(seconds), max_age_seconds)


def shown(outcomes: list[Outcome]) -> dict[str, Any]:
    """Publishing and presence, or the error, by user; of a room by its own id."""
    results = [outcome.target.as_dict() | outcome.problem_or_answer for outcome in map(_Shown, outcomes)]
    return {
        result.get("user_id") or result["room_id"]: result.get("error") or (result["publishing"], result["present"])
        for result in results
    }


class _Shown:
    def __init__(self, outcome: Outcome) -> None:
        self.target, result = outcome.target, outcome.result()
        self.problem_or_answer = result.problem() if isinstance(result, errors.StreamStateError) else result


def sweep(world: World, *given: Target | Room, emits_all: bool = False, seconds: float = 600) -> dict[str, Any]:
    request = SweepRequest(given or None, emits_all)
    return world.sweep.run(request, world.in_seconds(seconds), world.in_seconds(seconds + 10))


def test_those_in_a_room_are_asked_about_and_those_who_have_gone_are_off(room: World, conforms: Conforms) -> None:
    outcomes = some(room, ROOM)

    assert shown(outcomes) == {"guest": (False, False), "new": (False, True), "teacher": (True, True)}
    assert room.rtc.presence_calls == [(ROOM, None)]
    assert sorted(room.rtc.calls) == [NEW, TEACHER]
    for outcome in outcomes:
        conforms("answer", outcome.result())
    # Who has gone is news once.
    assert shown(some(room, ROOM)).keys() == {"new", "teacher"}


@pytest.mark.parametrize("query", ["on", "presence", "off"])
def test_a_room_stands_among_targets_in_its_place_by_its_users(room: World, query: str) -> None:
    room.lookup.query = query
    room.rtc.rooms[HALL] = {"a", "b"}
    other = Target(APP_ID, "hall-2", "c")

    outcomes = some(room, other, ROOM, TEACHER, HALL)

    places = [outcome.target.as_dict().get("user_id") for outcome in outcomes]
    in_class = ["guest", "teacher"] if query == "off" else ["guest", "new", "teacher"]
    assert places == ["c", *in_class, "teacher", *([] if query == "off" else ["a", "b"])]
    assert len(room.rtc.presence_calls) == (0 if query == "off" else 2)
    assert bool(room.rtc.calls) is (query == "on")


@pytest.mark.parametrize("query", ["on", "presence"])
def test_a_user_who_is_named_beside_the_room_costs_no_call_more(room: World, query: str) -> None:
    room.lookup.query = query
    stranger = Target(APP_ID, "class-1", "stranger")

    outcomes = some(room, TEACHER, ROOM, stranger)
    room.watch_list.add([ROOM, TEACHER, stranger], 3600)
    calls = len(room.rtc.calls)
    summary = sweep(room)

    named = [outcome.target.as_dict()["user_id"] for outcome in outcomes]
    assert named == ["teacher", "guest", "new", "teacher", "stranger"]
    assert room.rtc.presence_calls == [(ROOM, None)] * 2
    assert (calls, len(room.rtc.calls)) == ((2, 4) if query == "on" else (0, 0))
    assert (summary["failed"], summary["remaining"]) == (0, 0)
    assert (room.values(stranger) or {})["present"] is False


def test_a_named_user_whom_the_vendor_does_not_know_yet_is_no_result_of_the_room(world: World) -> None:
    # Given a user who joined by an event a moment ago, and a list of the room that is not whole
    world.see(TEACHER, event("join", world.clock.now_ms()))
    world.clock.seconds += 2
    world.rtc.online_users = lambda *_, **__: Presence({"new": online(world.clock.now_ms())}, {}, None)
    world.rtc.say(TEACHER, errors.TargetNotFound("Unknown."))

    outcomes = some(world, TEACHER, ROOM)

    assert [outcome.target.as_dict().get("user_id") for outcome in outcomes] == ["teacher", "new"]


def test_the_users_of_a_room_whose_call_fails_are_asked_about_all_the_same(room: World) -> None:
    room.rtc.presence_error = errors.RtcUnavailable("Down.")

    assert shown(some(room, TEACHER, ROOM)) == {"teacher": (True, True), "class-1": "RtcUnavailable"}


@pytest.mark.parametrize("error", [RETIRED, REFUSED], ids=type)
def test_a_room_call_that_is_refused_or_withdrawn_stops_no_user(room: World, error: errors.StreamStateError) -> None:
    users, rooms = targets(300, "class-9"), [Room(APP_ID, f"a-{number}") for number in range(100)]
    room.rtc.presence_error = error

    outcomes = some(room, ROOM, *users[:5])
    given = sweep(room, *rooms, *users)
    room.rtc.calls.clear()
    room.watch_list.add([*rooms, *users], 3600)
    passes = [sweep(room) for _ in range(2)]

    # Each user is asked about in each sweep, and the call is not repeated for each room.
    assert [isinstance(outcome.answer, errors.StreamStateError) for outcome in outcomes] == [True] + [False] * 5
    assert [(done["failed"], done["remaining"]) for done in (given, *passes)] == [(100, 0)] * 3
    assert sorted(room.rtc.calls) == sorted(users * 2)
    assert len(room.queue.messages) >= 400
    assert len(room.rtc.presence_calls) <= 1 + 3 * ROOMS_AT_ONCE


def test_a_room_whose_records_cannot_be_listed_is_not_done(room: World) -> None:
    room.rtc.rooms[HALL] = {"user-00000"}
    for target in targets(300, "hall-1"):
        room.see(target, event("audio.start", room.clock.now_ms()))
    room.clock.seconds += 60
    room.queue.take()
    room.dynamodb.effects["query"] = iter([None, aws_error("InternalServerError")])

    summary = sweep(room, HALL)

    assert [failure["problem"]["error"] for failure in summary["failures"]] == ["StateUnavailable"]
    problems = [message for message in room.queue.messages if message["type"] == "stream_state_problem"]
    assert [(problem["room_id"], "user_id" in problem) for problem in problems] == [("hall-1", False)]
    # Those who were listed are served all the same.
    room.dynamodb.effects["query"] = iter([None, aws_error("InternalServerError")])
    *users, last = some(room, HALL)
    assert (last.target, last.error and last.error.name) == (HALL, "StateUnavailable")
    assert {outcome.target.room for outcome in users if isinstance(outcome.target, Target)} == {HALL}


def test_a_refreshed_page_shows_a_user_whose_record_could_not_be_written(room: World) -> None:
    def fail(call: Any) -> Exception | None:
        return aws_error("InternalServerError") if call["Item"]["sk"]["S"] == "new" else None

    room.dynamodb.effects["put_item"] = repeat(fail)
    refresh = {"is_refreshed": True, "with_absent": False}

    page = room.lookup.room(ROOM, None, room.in_seconds(10), **refresh)

    assert shown(list(page.entries)) == {"new": (False, True), "teacher": (True, True)}


def test_with_presence_the_media_stay_as_events_have_them(room: World) -> None:
    room.lookup.query = "presence"

    outcomes = some(room, ROOM)

    assert shown(outcomes) == {"guest": (False, False), "new": (None, True), "teacher": (True, True)}
    assert room.rtc.calls == []
    assert room.values(GUEST) == {**OFF, "present": False}


def test_a_list_that_may_be_cut_proves_no_absence(room: World) -> None:
    room.rtc.answers.append(Presence({"new": online(room.clock.now_ms())}, {}, "cut-1"))
    room.rtc.say(GUEST, media("audio"))

    assert shown(some(room, ROOM)) == {"guest": (True, True), "new": (False, True), "teacher": (True, True)}


def test_everybody_has_gone_from_a_room_that_does_not_exist(room: World) -> None:
    del room.rtc.rooms[ROOM]

    assert shown(some(room, ROOM)) == {"guest": (False, False), "teacher": (False, False)}
    assert some(room, ROOM) == some(room, HALL) == []
    assert room.rtc.calls == []


def test_who_joined_just_before_the_call_is_still_there(room: World) -> None:
    room.store.observe(GUEST, event("join", room.clock.now_ms() - 4_000))

    assert shown(some(room, ROOM))["guest"] == (None, True)
    # The two are so close that neither is sure.
    assert [target for target, _ in room.retry_queue.rechecks] == [GUEST]


@pytest.mark.parametrize("error", [errors.RtcUnavailable("Down."), errors.RtcProtocolError("What?")], ids=str)
def test_a_room_whose_call_fails_has_one_problem_and_stays_as_it_was(room: World, error: Any) -> None:
    before = room.values(GUEST)
    room.rtc.answers.append(error)

    assert shown(some(room, ROOM)) == {"class-1": error.name}
    assert (room.values(GUEST), room.rtc.calls) == (before, [])


def test_a_room_whose_records_cannot_be_read_is_not_an_empty_one(room: World) -> None:
    room.lookup.query = "off"
    room.dynamodb.effects["query"] = iter([aws_error("ProvisionedThroughputExceededException")])

    assert shown(some(room, ROOM)) == {"class-1": "StateUnavailable"}


def test_a_room_with_more_users_than_can_be_asked_about_in_time_is_refused(room: World, clock: Any) -> None:
    room.lookup = type(room.lookup)(room.rtc, room.recorder, max_wait_seconds=3, qps=50)
    room.rtc.rooms[HALL] = {f"user-{number}" for number in range(501)}

    assert shown(some(room, HALL, ROOM, seconds=10)).keys() == {"hall-1", "guest", "new", "teacher"}
    with pytest.raises(errors.InvalidRequest, match=r"^room_id names a room of 501 users, .* give it to a sweep\.$"):
        raise some(room, HALL, seconds=10)[0].answer  # type: ignore[misc]  # an error it is
    room.lookup.query = "presence"
    assert len(some(room, HALL, seconds=10)) == 501
    room.lookup.query = "on"
    assert len(some(room, HALL, seconds=10.1)) == 501


def test_a_room_that_is_not_done_in_time_says_so(room: World, one_at_a_time: None) -> None:
    room.rtc.seconds_per_call = 6

    outcomes = some(room, ROOM, seconds=5)

    assert shown(outcomes)["class-1"] == "QuotaExceeded"
    assert len(room.rtc.calls) == 1


def test_a_known_state_of_a_room_may_serve(room: World) -> None:
    some(room, ROOM)
    room.rtc.calls.clear()
    room.clock.seconds += 20

    assert [outcome.answer.source for outcome in some(room, ROOM, max_age_seconds=30)] == ["table", "table"]  # type: ignore[union-attr]
    assert room.rtc.calls == []


def test_when_the_action_is_withdrawn_a_room_is_answered_by_presence(room: World) -> None:
    room.rtc.default = RETIRED
    room.rtc.scripts.clear()

    assert shown(some(room, ROOM)) == {"guest": (False, False), "new": (None, True), "teacher": (True, True)}


# Sweeps


@pytest.mark.parametrize("query", ["on", "presence"])
def test_a_sweep_delivers_the_users_of_a_given_room(room: World, query: str, conforms: Conforms) -> None:
    room.lookup.query = query

    summary = sweep(room, ROOM, emits_all=True)

    assert (summary["targets"], summary["delivered"], summary["failed"], summary["remaining"]) == (3, 3, 0, 0)
    messages = {message["user_id"]: message for message in room.queue.take()}
    assert messages.keys() == {"teacher", "guest", "new"}
    assert (messages["guest"]["changed"], messages["guest"]["present"]) == (
        ["audio", "video", "screen_audio", "screen_video", "present"],
        False,
    )
    for message in messages.values():
        conforms("message", message)


def test_a_given_room_that_fails_has_a_problem_message(room: World, conforms: Conforms) -> None:
    room.rtc.answers.append(errors.RtcUnavailable("Down."))

    summary = sweep(room, ROOM, TEACHER, emits_all=True)

    problem, state = room.queue.take()
    conforms("message", problem)
    assert (problem["type"], problem["room_id"], "user_id" in problem) == ("stream_state_problem", "class-1", False)
    assert (state["user_id"], summary["failures"][0]["room_id"]) == ("teacher", "class-1")


def test_a_refusal_of_the_keys_for_the_user_of_a_given_room_is_the_problem_of_all_others(
    room: World, one_at_a_time: None
) -> None:
    room.rtc.rooms[ROOM] = {"teacher"}
    room.rtc.say(TEACHER, errors.CredentialsInvalid("No secret."))

    sweep(room, ROOM, HALL, emits_all=True)

    problems = [message["problem"]["error"] for message in room.queue.take() if "problem" in message]
    assert problems == ["CredentialsInvalid"] * 3


def test_a_given_room_that_was_not_finished_remains(room: World, one_at_a_time: None) -> None:
    room.rtc.seconds_per_call = 6

    summary = sweep(room, ROOM, emits_all=True, seconds=5)

    assert summary["remaining"] == 1
    assert [message["type"] for message in room.queue.take()].count("stream_state_problem") == 1


@pytest.mark.parametrize("query", ["on", "presence"])
def test_a_sweep_of_the_watch_list_looks_at_watched_rooms(room: World, query: str) -> None:
    room.lookup.query = query
    everyone = {f"user-{number:03}" for number in range(450)}
    room.rtc.rooms[HALL] = set(everyone)
    room.watch_list.add([ROOM, HALL], 3600)

    first = sweep(room)
    room.clock.seconds += 60
    room.rtc.rooms[HALL] -= {"user-000"}
    room.queue.take()
    second = sweep(room)

    # By presence nothing is new about the teacher.
    assert (first["delivered"], first["remaining"]) == (453 if query == "on" else 452, 0)
    assert (second["delivered"], second["remaining"]) == (1, 0)
    assert [message["user_id"] for message in room.queue.messages] == ["user-000"]
    assert sorted(room.rtc.presence_calls) == [(ROOM, None), (ROOM, None), (HALL, None), (HALL, None)]
    assert len(room.rtc.calls) == (2 + 450 + 2 + 449 if query == "on" else 0)


def test_a_watched_room_that_was_not_finished_is_first_in_the_next_sweep(room: World, one_at_a_time: None) -> None:
    room.watch_list.add([ROOM, *targets(3, "hall-1")], 3600)
    room.rtc.seconds_per_call = 6
    order = [watch.target for watch in room.watch_list.page(None).entries]

    sweep(room, seconds=5 + 6 * order.index(ROOM))

    taken, cursor = room.watch_list.take_lease("next")
    last_done = order[order.index(ROOM) - 1] if order.index(ROOM) else None
    assert taken
    assert cursor == (f"{APP_ID}#hall-1#{last_done.as_dict()['user_id']}" if last_done else None)


def test_with_presence_up_to_ten_watched_users_of_a_room_cost_one_call(room: World) -> None:
    room.lookup.query = "presence"
    few, many = targets(10, "hall-1"), targets(11, "hall-2")
    room.rtc.rooms |= {HALL: {"user-00000"}, many[0].room: {"user-00001"}}
    room.watch_list.add([*few, *many, TEACHER], 3600)

    summary = sweep(room)

    calls = {called.room_id: users for called, users in room.rtc.presence_calls}
    assert (len(room.rtc.presence_calls), summary["targets"], summary["remaining"]) == (3, 22, 0)
    assert calls == {"class-1": ("teacher",), "hall-1": tuple(user.user_id for user in few), "hall-2": None}
    assert [(room.values(user) or {})["present"] for user in (few[0], few[1], many[0], many[1])] == [
        True,
        False,
        False,
        True,
    ]


def test_what_an_odd_answer_leaves_unknown_stays_as_it_was(room: World) -> None:
    room.lookup.query = "presence"
    room.rtc.answers.append(Presence({"guest": offline(room.clock.now_ms())}, {}, "odd-1"))
    before = room.values(TEACHER)

    summary = sweep(room, TEACHER, GUEST, NEW)

    assert (room.values(TEACHER), (room.values(GUEST) or {})["present"], room.values(NEW)) == (before, False, None)
    assert (summary["failed"], summary["failures"][0]["problem"]["error"]) == (1, "RtcProtocolError")


@pytest.mark.parametrize("watched", [True, False], ids=["watched", "given"])
def test_a_sweep_in_which_the_action_is_withdrawn_asks_about_nobody_twice(room: World, watched: object) -> None:
    asked = targets(300, "hall-1")
    room.rtc.default = lambda: media() if len(room.rtc.calls) <= 200 else RETIRED
    room.rtc.rooms[HALL] = {target.user_id for target in asked}
    room.watch_list.add(asked, 3600)

    summary = sweep(room) if watched else sweep(room, *asked)

    assert (summary["targets"], summary["failed"], summary["remaining"]) == (300, 0, 0)
    assert summary["delivered"] + summary["unchanged"] == 300
    assert len(room.queue.users()) == len({*room.queue.users()})


@pytest.mark.parametrize("watched", [True, False], ids=["watched", "given"])
def test_when_the_action_is_withdrawn_a_sweep_goes_on_by_presence(
    room: World, logs: io.StringIO, capsys: pytest.CaptureFixture[str], watched: object
) -> None:
    room.rtc.default = RETIRED
    room.rtc.scripts.clear()
    asked = [TEACHER, GUEST, *targets(300, "hall-1")]
    room.rtc.rooms[HALL] = {"user-00000"}
    room.watch_list.add(asked, 3600)

    summary = sweep(room) if watched else sweep(room, *asked, emits_all=False)

    assert (summary["targets"], summary["failed"], summary["remaining"]) == (302, 0, 0)
    assert (room.values(GUEST), (room.values(TEACHER) or {})["audio"]) == ({**OFF, "present": False}, True)
    assert len(room.rtc.presence_calls) == 2
    assert len(room.rtc.calls) < 100
    assert "presence calls take its place" in logs.getvalue()
    assert metrics(capsys)["RtcActionRetired"] == [1]


def test_a_refusal_of_the_keys_ends_a_sweep_by_presence(room: World) -> None:
    room.lookup.query = "presence"
    room.rtc.answers.extend([errors.CredentialsInvalid("No secret.")] * 1000)
    room.watch_list.add([Room(APP_ID, f"hall-{number}") for number in range(100)], 3600)

    summary = sweep(room)

    assert (summary["failed"], len(room.rtc.presence_calls) <= 2 * 16) == (1, True)
    assert summary["remaining"] == 99


def test_users_whose_presence_call_fails_keep_their_state_and_their_age(
    room: World, capsys: pytest.CaptureFixture[str]
) -> None:
    room.lookup.query = "presence"
    room.watch_list.add([TEACHER, GUEST], 3600)
    metrics(capsys)
    room.rtc.presence_error = errors.RtcUnavailable("Down.")

    summary = sweep(room)

    assert (summary["failed"], summary["remaining"], (room.values(GUEST) or {})["present"]) == (2, 0, True)
    assert metrics(capsys)["StalestState"] == [pytest.approx(60, abs=1)]


def test_when_the_presence_calls_are_withdrawn_too_given_targets_are_answered_from_the_table(room: World) -> None:
    room.lookup.query = "presence"
    room.rtc.presence_error = RETIRED

    summary = sweep(room, TEACHER, NEW, emits_all=True)

    messages = {message["user_id"]: message for message in room.queue.take()}
    assert messages["teacher"]["source"] == "table"
    assert messages["new"]["problem"]["error"] == "RtcActionRetired"
    assert (summary["delivered"], summary["failed"]) == (1, 1)


@pytest.mark.parametrize("query", ["on", "presence"])
@pytest.mark.parametrize("user_id", ["newcomer", "back"])
def test_a_user_who_joins_a_watched_room_is_no_old_state(
    world: World, capsys: pytest.CaptureFixture[str], query: str, user_id: str
) -> None:
    world.lookup.query = query
    world.watch_list.add([HALL], 86_400)
    world.rtc.rooms[HALL] = {"a", "back"}
    for _ in range(60):
        sweep(world)
        world.clock.seconds += 60
        world.rtc.rooms[HALL] = {"a"}
    metrics(capsys)
    world.rtc.rooms[HALL] = {"a", user_id}

    sweep(world)

    assert metrics(capsys)["StalestState"] == [pytest.approx(60, abs=2)]


@pytest.mark.parametrize("target", [HALL, Target(APP_ID, "hall-1", "a")], ids=["room", "user"])
def test_calls_that_fail_for_an_hour_show_in_the_age(
    world: World, capsys: pytest.CaptureFixture[str], target: Room | Target
) -> None:
    world.watch_list.add([target], 86_400)
    world.rtc.rooms[HALL] = {"a"}
    sweep(world)
    world.rtc.default = errors.RtcUnavailable("Down.")
    for _ in range(60):
        world.clock.seconds += 60
        metrics(capsys)
        sweep(world)

    assert metrics(capsys)["StalestState"] == [pytest.approx(3600, abs=5)]


def test_a_room_whose_last_user_was_refused_keeps_its_turn(world: World) -> None:
    def refuse_after_the_room_was_read() -> errors.StreamStateError:
        time.sleep(0.1)
        return errors.CredentialsInvalid("No secret.")

    world.watch_list.add([HALL], 86_400)
    world.rtc.rooms[HALL] = {"a"}
    world.rtc.say(Target(APP_ID, "hall-1", "a"), refuse_after_the_room_was_read)

    sweep(world)

    assert world.watch_list.take_lease("next") == (True, None)


def test_one_presence_action_that_is_refused_stops_no_user_of_the_other(world: World) -> None:
    def refuse(*_: object, **__: object) -> Presence:
        raise REFUSED

    world.lookup.query = "presence"
    small = [Target(APP_ID, f"room-{number}", "user") for number in range(40)]
    world.watch_list.add([*targets(11, "hall-1"), *small], 86_400)
    world.rtc.online_users = refuse

    summary = sweep(world)

    assert (summary["failed"], summary["remaining"]) == (11, 0)
    assert [(world.values(target) or {}).get("present") for target in small] == [False] * 40


# Rechecks


def test_a_recheck_by_presence_settles_whose_leave_it_was(room: World) -> None:
    room.lookup.query = "presence"
    started_ms = room.clock.now_ms()
    for kind, at_ms in {"join": started_ms, "video.start": started_ms + 100, "lost": started_ms + 20_000}.items():
        room.store.observe(TEACHER, event(kind, at_ms))
    room.clock.seconds += 26
    assert (room.values(TEACHER) or {})["video"] is None
    room.rtc.logins[TEACHER] = started_ms

    outcome = room.lookup.recheck(StateRecord(TEACHER), room.in_seconds(10))

    assert (room.rtc.calls, room.rtc.presence_calls) == ([], [(ROOM, ("teacher",))])
    assert ((room.values(TEACHER) or {})["video"], shown([outcome])) == (True, {"teacher": (True, True)})


@pytest.mark.parametrize("query", ["on", "presence"])
def test_a_recheck_without_the_action_finds_who_has_gone(room: World, query: str) -> None:
    room.lookup.query = query
    room.rtc.default = RETIRED

    room.lookup.recheck(StateRecord(GUEST), room.in_seconds(10))

    assert room.values(GUEST) == {**OFF, "present": False}
    assert len(room.rtc.calls) == (1 if query == "on" else 0)


def test_a_recheck_that_an_odd_answer_leaves_open_is_done(room: World) -> None:
    room.lookup.query = "presence"
    record = room.record(TEACHER)
    assert record is not None
    room.store.set_recheck(record, room.clock.now_ms())
    room.rtc.answers.append(Presence({}, {}, None))

    room.lookup.recheck(room.record(TEACHER) or record, room.in_seconds(10))

    assert (room.record(TEACHER) or record).recheck_at_ms == 0
