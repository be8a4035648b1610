"""Callback events on a world in memory: verified, merged in any order, delivered, rechecked, and watched."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import repeat
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_state.adapters.state_store import STATE_LIFE_SECONDS
from stream_state.domain.observations import Presence, online
from stream_state.domain.targets import Target
from stream_state.errors import (
    CredentialsUnavailable,
    DeliveryFailed,
    InvalidRequest,
    RtcActionRetired,
    StateUnavailable,
    TargetNotFound,
)
from stream_state.errors import StreamStateError as Failure
from tests.unit import callback_world as sent
from tests.unit.callback_world import AUDIO, JOIN, KEY, LEAVE, ROOM_END, TEACHER, VIDEO, VIDEO_STOP, Receiver, signed
from tests.unit.fakes import Clock, aws_error
from tests.unit.memory import APP_ID, World, media, metrics, targets

DOWN = aws_error("InternalServerError")
GONE = {**media(), "present": False}
DAY, LEFT = 86_400, 180
ABSENT = TargetNotFound("Unknown.")


@pytest.fixture
def receiver(world: World) -> Receiver:
    return Receiver(world)


@pytest.fixture
def watching(world: World) -> Receiver:
    return Receiver(world, auto_watch=True)


def refusal(receiver: Receiver, body: str) -> tuple[int, str]:
    """The status with which an event is refused, and why."""
    with pytest.raises(InvalidRequest) as raised:
        receiver.receive(body)
    return raised.value.status, raised.value.detail


def video(world: World) -> bool | None:
    """Whether the teacher's video is on."""
    return (world.values(TEACHER) or {})["video"]


# Verification


EVENT = json.loads(signed(AUDIO, 0))
ODD: list[Any] = [None, 1, True, [], {}]


@pytest.mark.parametrize(
    ("body", "rule"),
    [
        *((body, "JSON") for body in ("", "{", "[" * 100_000, '{"EventType": NaN}')),
        *((body, "must be an object with the texts EventType") for body in ("null", "[]", '"text"', "{}")),
        *((sent.text({**EVENT, name: odd}), "must be an object") for name in EVENT for odd in ODD),
        (sent.text(EVENT).replace('"Nonce"', '"Nonce":"aaBc","Nonce"'), "names a field twice"),
        ("\ufeff{}", "byte order mark"),
    ],
)
def test_a_text_that_is_no_event_is_malformed(receiver: Receiver, world: World, body: str, rule: str) -> None:
    status, why = refusal(receiver, body)

    assert (status, rule in why, world.is_untouched) == (400, True, True)


def test_the_signature_is_checked_before_the_app_id_and_the_app_id_before_the_data(receiver: Receiver) -> None:
    wrong = {"AppId": "another", "EventData": "not JSON"}

    assert refusal(receiver, signed(AUDIO, 0, wrong, "another key"))[0] == 401
    assert refusal(receiver, signed(AUDIO, 0, wrong))[0] == 403
    assert refusal(receiver, signed(AUDIO, 0, {**wrong, "AppId": "app-2"}))[0] == 400


def test_a_key_is_rotated_without_an_event_refused(world: World) -> None:
    # Given a secret that gets a new key while the vendor still signs with the old one
    both = {"callback_key": "new-key", "previous_callback_key": KEY}
    receiver = Receiver(world, {"callback_key": KEY}, both, {"callback_key": "new-key"})
    assert receiver.send(AUDIO)
    # When the vendor changes over, then the secret is read again
    assert receiver.send(AUDIO, key="new-key")
    # And events that were signed before are still accepted
    assert receiver.send(AUDIO)
    assert receiver.secrets.reads == 2


def test_wrong_signatures_have_the_secret_read_every_ten_seconds_at_most(receiver: Receiver) -> None:
    reads = []
    for _ in range(2):
        assert {refusal(receiver, signed(AUDIO, 0, key="another key"))[0] for _ in range(100)} == {401}
        reads.append(receiver.secrets.reads)
        receiver.world.clock.seconds += 10
    assert reads == [2, 3]


@pytest.mark.parametrize("secret", [DOWN, aws_error("ResourceNotFoundException"), "canary", {"previous": "canary"}])
def test_without_a_key_no_event_is_accepted_and_all_must_come_again(world: World, secret: Any) -> None:
    with pytest.raises(CredentialsUnavailable) as raised:
        Receiver(world, secret).send(AUDIO)

    assert (raised.value.status, "canary" in str(raised.value), world.is_untouched) == (503, False, True)


# Events that are ignored


def test_unknown_types_are_counted_by_name_as_long_as_the_names_are_few(
    receiver: Receiver, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    kinds = [f"UserHandRaised{number:02}" for number in range(21)]
    for kind in (*kinds, kinds[0], "RoomCreate", "", "not a name", "x" * 65):
        assert receiver.send(kind, change={"EventData": "not even JSON"})

    counted = sent.counted(capsys)["CallbackEventsIgnored"]
    assert counted == [(kinds[0], 2), *((kind, 1) for kind in kinds[1:20]), ("unknown_type", 4)]
    assert world.is_untouched


@pytest.mark.parametrize("timestamp", [1_795_403_045, 0, -1, 1_795_403_045_678 - 3_600_001])
def test_an_implausible_timestamp_is_counted_and_the_event_time_counts(
    receiver: Receiver, world: World, capsys: pytest.CaptureFixture[str], timestamp: int
) -> None:
    receiver.send(AUDIO, Timestamp=timestamp)

    (message,) = world.queue.messages
    assert message["media_observed_at"]["audio"] == "2026-11-23T03:04:05.678Z"
    assert sent.counted(capsys)["CallbackEventsIgnored"] == [("implausible_time", 1)]


@pytest.mark.parametrize("waited", [True, False])
def test_an_event_that_is_a_day_old_is_ignored_also_if_it_waited_in_the_queue(
    receiver: Receiver, world: World, capsys: pytest.CaptureFixture[str], *, waited: bool
) -> None:
    """The table may have forgotten what was newer."""
    received_at_ms = receiver.now_ms
    event = signed(AUDIO, received_at_ms)
    world.clock.seconds += DAY

    assert receiver.receive(event, received_at_ms=received_at_ms if waited else None)
    assert world.is_untouched
    assert sent.counted(capsys)["CallbackEventsIgnored"] == [("too_old", 1)]


# Histories: `<arrival in ms> <event>[@<Timestamp>] [<Reason>]`, and queries by their answer

KINDS = {"join": JOIN, "leave": LEAVE, "video": VIDEO, "stop": VIDEO_STOP, "audio": AUDIO, "end": ROOM_END}
ANSWERS: dict[str, Any] = {"off": media(), "on": media("video"), "absent": ABSENT}
STREAMS, SHOWN = "1000 join, 1100 video", {True: "+", False: "-", None: "?"}
# By name: the history, video and presence in each message, the watch in seconds, and the number of rechecks.
HISTORIES: dict[str, tuple[str, str, int | None, int]] = {
    "leave of an earlier connection": (f"{STREAMS}, 1101 leave userLeave", "?+ ++ ??", LEFT, 1),
    "stop of an earlier connection": ("100000 video, 100100 stop LeaveRoom", "++ ?+", DAY, 1),
    "leave, join and start at once": ("9000 leave userLeave, 9000 join, 9000 video", "-- ?+ ++", DAY, 1),
    "older stop by a clock 2 s ahead": ("100 video@2100, 200 stop@2000", "++", DAY, 0),
    "older stop again": ("1000 stop, 2000 video, 2100 stop@1000", "-? ++", DAY, 0),
    "room's end again": (f"{STREAMS}, 2000 end, 3000 join, 3100 video, 3200 end@2000", "?+ ++ -- ?+ ++", DAY, 1),
    "query, then a start by a clock 800 ms behind": ("0 off, 400 video@-400", "-? ++", DAY, 1),
    "query 300 ms after a start": ("1000 video, 1300 off", "++ ++", DAY, 1),
    "first start an hour after the end of the room": ("0 end, 3600000 audio", "?+", DAY, 0),
    "found after a late leave": ("1000 join, 20000 leave, 30000 off, 40000 off, 50000 off", "?+ ?? -?", LEFT - 30, 1),
    "found after a leave": ("1000 join, 20000 leave userLeave, 30000 off, 40000 off", "?+ -- -?", LEFT - 20, 1),
    "left, then not found": (f"{STREAMS}, 20000 leave userLeave, 30000 absent", "?+ ++ --", LEFT - 10, 0),
    # Surely off.
    "left": (f"{STREAMS}, 6100 leave userLeave", "?+ ++ --", LEFT, 0),
    "lost": (f"{STREAMS}, 41100 leave connectionLost", "?+ ++ --", LEFT, 0),
    "kicked": (f"{STREAMS}, 1101 leave kickedByAdmin", "?+ ++ --", LEFT, 0),
    "stopped": (f"{STREAMS}, 1101 stop", "?+ ++ -+", DAY, 0),
    "room ended": (f"{STREAMS}, 1101 end", "?+ ++ --", LEFT, 0),
}


def ask(receiver: Receiver, answer: Any) -> None:
    """Ask the vendor about the teacher, and deliver a change, as a sweep of the watch list does."""
    world = receiver.world
    world.rtc.say(TEACHER, answer)
    outcomes = world.lookup.some([TEACHER], world.in_seconds(10))
    merge = outcomes[0].merge
    if isinstance(merge, Failure):
        raise merge
    if merge.after.is_undelivered:
        world.delivery.deliver(outcomes, world.in_seconds(10))
        world.delivery.drain(world.in_seconds(10))


def play(receiver: Receiver, history: str) -> None:
    for step in history.split(", "):
        arrives_ms, event, *reason = step.split()
        receiver.move_to(int(arrives_ms))
        kind, _, at_ms = event.partition("@")
        if kind in ANSWERS:
            ask(receiver, ANSWERS[kind])
        else:
            data: dict[str, Any] = {"Reason": reason[0]} if reason else {}
            receiver.receive(signed(KINDS[kind], receiver.start_ms + int(at_ms or arrives_ms), **data))


@pytest.mark.parametrize("name", HISTORIES)
def test_a_history_gives_the_right_state_messages_watch_and_rechecks(
    watching: Receiver, world: World, conforms: Callable[[str, Any], None], name: str
) -> None:
    history, expected, watched, rechecks = HISTORIES[name]

    play(watching, history)

    for message in world.queue.messages:
        conforms("message", message)
    shown = [SHOWN[message["media"]["video"]] + SHOWN[message["present"]] for message in world.queue.messages]
    assert " ".join(shown) == expected
    assert SHOWN[video(world)] + SHOWN[(world.values(TEACHER) or {})["present"]] == shown[-1]
    assert (watching.watches.get("teacher"), len(world.retry_queue.rechecks)) == (watched, rechecks)


# Repeats and failures


def test_a_repeat_delivers_a_change_that_an_earlier_try_did_not_and_changes_nothing(
    receiver: Receiver, world: World
) -> None:
    event = signed(AUDIO, receiver.now_ms)
    world.queue.refuses = lambda message: True
    with pytest.raises(DeliveryFailed):
        receiver.receive(event)
    world.queue.refuses = lambda message: False
    receiver.receive(event)
    before = world.record(TEACHER)
    world.clock.seconds += 3600
    receiver.receive(event)

    after = world.record(TEACHER)
    assert before
    assert after
    assert replace(after, revision=before.revision, expires_at=before.expires_at) == before
    (message,) = world.queue.messages
    assert (message["changed"], message["source"]) == (["audio", "present"], "callback")


@pytest.mark.parametrize("operation", ["get_item", "put_item", "update_item"])
def test_an_event_that_cannot_be_stored_must_come_again(watching: Receiver, world: World, operation: str) -> None:
    """A watch that cannot be written is such an event too."""
    event = signed(JOIN, watching.now_ms)
    world.dynamodb.effects[operation] = iter([DOWN])
    with pytest.raises(StateUnavailable):
        watching.receive(event)
    assert not world.queue.messages

    watching.receive(event)
    assert (len(world.queue.messages), watching.watches) == (1, {"teacher": DAY})


def test_a_leave_that_neither_queue_accepted_is_delivered_by_the_next_event_of_anybody(
    watching: Receiver, world: World
) -> None:
    # Given three tries of the vendor on a leave while SQS is down
    play(watching, STREAMS)
    world.queue.take()
    world.queue.refuses = lambda message: True
    for at_ms in (20_000, 21_000, 22_000):
        with pytest.raises(DeliveryFailed):
            play(watching, f"{at_ms} leave@20000 userLeave")
    # Then the user is still watched
    assert watching.watches == {"teacher": DAY - 21}
    # And the next event delivers the leave
    world.queue.refuses = lambda message: False
    world.clock.seconds += 10
    watching.send(AUDIO, user_id="guest")
    delivered = [(message["user_id"], message["present"]) for message in world.queue.messages]
    assert delivered == [("guest", True), ("teacher", False)]


ENDS = ["leave userLeave", "leave connectionLost", "leave kickedByAdmin", "stop StreamStop", "stop LeaveRoom"]
type Said = tuple[int, str, str]


def hear(receiver: Receiver, said: Said) -> None:
    """Receive an event long after it happened, or the answer to a query that was sent long ago."""
    at_ms, kind, body = said
    if kind not in ANSWERS:
        receiver.receive(body)
        return
    now = receiver.world.clock.seconds
    receiver.move_to(at_ms)
    try:
        ask(receiver, ANSWERS[kind])
    finally:
        receiver.world.clock.seconds = now


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_any_order_of_a_history_ends_in_the_same_state_and_all_of_it_is_delivered(data: st.DataObject) -> None:
    # Given the history of a user, with ties in it
    in_order, shuffled = (Receiver(World(Clock())) for _ in range(2))
    history: list[Said] = [(0, "join", signed(JOIN, in_order.start_ms))]
    steps = st.tuples(st.integers(0, 90), st.sampled_from(["join", "video", "audio", "end", *ENDS, *ANSWERS]))
    for seconds, step in data.draw(st.lists(steps, max_size=10)):
        kind, *reason = step.split()
        at_ms = in_order.start_ms + seconds * 1000
        body = "" if kind in ANSWERS else signed(KINDS[kind], at_ms, Reason="".join(reason))
        history.append((seconds * 1000, kind, body))
    for each in (in_order, shuffled):
        each.world.clock.seconds += 1000
    for said in history:
        hear(in_order, said)
    # When it comes in any order, with repeats, while SQS and DynamoDB fail now and then
    failures = iter(data.draw(st.lists(st.booleans(), max_size=20)))
    shuffled.world.queue.refuses = lambda message: next(failures, False)
    for operation in ("put_item", "get_item", "update_item"):
        shuffled.world.dynamodb.effects[operation] = iter(lambda: DOWN if next(failures, False) else None, 0)
    repeats = data.draw(st.lists(st.sampled_from(history), max_size=5))
    failed = []
    for said in data.draw(st.permutations([*history, *repeats])):
        try:
            hear(shuffled, said)
        except (DeliveryFailed, StateUnavailable):
            failed.append(said)
    # And the retry queue brings what failed
    failures = iter([])
    for said in failed:
        hear(shuffled, said)
    shuffled.world.clock.seconds += 60
    shuffled.world.delivery.drain(shuffled.world.in_seconds(10))
    # Then the state is the same, and the newest message has it
    record, messages = shuffled.world.record(TEACHER), shuffled.world.queue.messages
    assert record is not None
    assert (record.state.values, record.is_undelivered) == (in_order.world.values(TEACHER), False)
    if record.state.is_known:
        newest = max(messages, key=lambda message: message["sequence"])
        assert {**newest["media"], "present": newest["present"]} == record.state.values
    # And each change has one id
    assert len({message["id"] for message in messages}) == len({message["sequence"] for message in messages})


# The end of a room


def fill(receiver: Receiver, count: int) -> list[str]:
    users = [target.user_id for target in targets(count)]
    for user in users:
        receiver.send(AUDIO, user_id=user)
    receiver.world.queue.take()
    receiver.world.clock.seconds += 1
    return users


def test_the_end_of_a_room_turns_its_users_off_and_leaves_who_came_back_on(receiver: Receiver, world: World) -> None:
    users = fill(receiver, 205)
    receiver.send(AUDIO, ago_ms=-2000, user_id="back")
    receiver.send(AUDIO, room_id="class-2")
    world.queue.take()

    assert receiver.send(ROOM_END, ago_ms=-1000)

    assert world.queue.users() == users
    assert all({**message["media"], "present": message["present"]} == GONE for message in world.queue.messages)
    others = (Target(APP_ID, "class-1", "back"), Target(APP_ID, "class-2", "teacher"))
    assert [(world.values(other) or {})["audio"] for other in others] == [True, True]
    pages = [request for name, request in world.dynamodb.made if name == "query" and "IndexName" not in request]
    assert [page["ConsistentRead"] for page in pages] == [True, True]


@pytest.mark.parametrize(("operation", "call"), [("get_item", 1), ("put_item", 1), ("put_item", 2)])
@pytest.mark.parametrize("dies", [False, True])
def test_a_room_that_ends_while_events_are_received_ends_for_all(
    receiver: Receiver, world: World, operation: str, call: int, *, dies: bool
) -> None:
    """Given the end of a room before any step of two older events, in a process that may die there, all is off."""
    events = [signed(AUDIO, receiver.now_ms - ago_ms) for ago_ms in (2000, 1000)]
    other = Receiver(World(world.clock, world.dynamodb.client))

    def end_now(_: Mapping[str, Any]) -> Exception | None:
        world.dynamodb.effects.clear()
        assert other.send(ROOM_END)
        return DOWN if dies else None

    world.dynamodb.effects[operation] = iter([*[None] * (call - 1), end_now])
    for event in events:
        try:
            receiver.receive(event)
        except StateUnavailable:
            receiver.receive(event)

    assert world.values(TEACHER) == GONE


@pytest.mark.parametrize("failures", [0, 3])
def test_the_end_of_a_room_holds_after_writes_that_failed_midway_and_for_expired_records(
    receiver: Receiver, world: World, failures: int
) -> None:
    receiver.send(VIDEO)
    world.clock.seconds += DAY + 10
    receiver.send(ROOM_END)
    world.dynamodb.effects["get_item"] = iter([DOWN] * failures)
    for ago_ms in range(4000, 4000 - failures, -1):
        with pytest.raises(StateUnavailable):
            receiver.send(VIDEO, ago_ms=ago_ms, user_id="late")

    receiver.send(AUDIO, ago_ms=1000)
    receiver.send(AUDIO, ago_ms=1000, user_id="late")

    assert [world.values(Target(APP_ID, "class-1", user)) for user in ("teacher", "late")] == [GONE, GONE]


def test_the_end_of_a_room_writes_each_record_of_another_instance_twice(receiver: Receiver, world: World) -> None:
    for number in range(20):
        receiver.send(JOIN, user_id=f"user-{number}")
    world.clock.seconds += 100
    other = world.another()

    Receiver(other).send(ROOM_END)

    # The change, and the mark of its delivery.
    assert other.dynamodb.count("put_item") == 40


@pytest.mark.parametrize("hours", [2, 25])
def test_a_room_that_ends_again_and_again_forgets_who_was_there_a_day_ago(
    receiver: Receiver, world: World, hours: int
) -> None:
    written, messages = list[int](), list[int]()
    for number in range(30):
        receiver.send(JOIN, 60_000, user_id=f"user-{number}")
        receiver.send(LEAVE, user_id=f"user-{number}", Reason="userLeave")
        world.queue.take()
        before = world.dynamodb.count("put_item")
        world.clock.seconds += 60
        receiver.send(ROOM_END)
        written.append(world.dynamodb.count("put_item") - before)
        messages.append(len(world.queue.take()))
        # DynamoDB deletes nothing in this time.
        world.clock.seconds += hours * 3600

    assert max(written) <= 24 / hours + 1
    assert set(messages) == {0}


@pytest.mark.parametrize("kind", [VIDEO, JOIN])
def test_the_end_of_a_room_turns_off_what_was_not_off_in_a_record_that_has_expired(
    receiver: Receiver, world: World, kind: str
) -> None:
    receiver.send(kind, 1_000)
    world.queue.take()
    world.clock.seconds += 90_000

    receiver.send(ROOM_END)

    (message,) = world.queue.take()
    assert ({*message["media"].values()}, message["present"]) == ({False}, False)


def test_a_kick_is_remembered_for_a_day(receiver: Receiver, world: World) -> None:
    receiver.send(JOIN, 1_000)
    receiver.send(LEAVE, Reason="userLeave")
    world.clock.seconds += STATE_LIFE_SECONDS - 6
    receiver.send(LEAVE, Reason="kickedByAdmin")
    world.clock.seconds += 10

    # An event of before the kick, which comes late
    receiver.send(VIDEO, 20_000)

    assert video(world) is False


def test_the_end_of_a_large_room_goes_on_with_the_next_try(receiver: Receiver, world: World) -> None:
    # Given a room whose end takes longer than there is time for
    users = fill(receiver, 45)
    event = signed(ROOM_END, receiver.now_ms)
    world.dynamodb.effects["put_item"] = repeat(lambda parameters: world.clock.sleep(0.05))
    # When the vendor tries again, even without time
    tries = [receiver.receive(event, seconds) for seconds in (1.5, 1.5, -1, -1)]
    # Then each try goes on where the one before ended, and each user is delivered once
    assert tries == [False, False, True, True]
    assert world.queue.users() == users


# Rechecks

DOUBT = f"{STREAMS}, 1101 leave userLeave"


def test_a_target_in_doubt_is_rechecked_once_and_the_outcome_is_delivered(receiver: Receiver, world: World) -> None:
    play(receiver, f"{DOUBT}, 1200 leave connectionLost")
    assert [target for target, _ in world.retry_queue.rechecks] == [TEACHER]
    world.queue.take()
    world.rtc.say(TEACHER, media("video"))
    receiver.recheck_all()

    (message,) = world.queue.messages
    assert (message["media"]["video"], message["source"], message["rtc_request_id"]) == (True, "query", "request-1")
    assert (world.rtc.calls, world.retry_queue.rechecks) == ([TEACHER], [])
    # And the next doubt is rechecked too.
    play(receiver, "20000 video, 20001 stop LeaveRoom")
    assert [target for target, _ in world.retry_queue.rechecks] == [TEACHER]


def test_a_recheck_leaves_one_that_was_asked_for_meanwhile(receiver: Receiver, world: World) -> None:
    # Given a user who comes and goes once more, seen by another instance, while the first recheck asks
    receiver.send(JOIN)
    world.clock.seconds += 2
    receiver.send(LEAVE, Reason="userLeave")
    other = Receiver(world.another())

    def answer_late() -> dict[str, bool | None]:
        for kind in (JOIN, LEAVE):
            world.clock.seconds += 1
            other.send(kind, Reason="userLeave")
        return media()

    world.rtc.say(TEACHER, answer_late, ABSENT)

    # When both rechecks have been carried out
    for _ in range(2):
        receiver.recheck_all()

    # Then no doubt is left
    assert (world.values(TEACHER), world.retry_queue.rechecks) == (GONE, [])


@pytest.mark.parametrize("fails", ["SQS", "the watch list"])
def test_a_recheck_whose_outcome_could_not_be_delivered_or_watched_lets_sweeps_ask_again(
    watching: Receiver, world: World, fails: str
) -> None:
    # Given a user who is there although a leave in doubt has shortened the watch
    watching.send(JOIN)
    world.clock.seconds += 2
    watching.send(LEAVE, Reason="userLeave")
    assert watching.watches["teacher"] <= LEFT
    world.rtc.say(TEACHER, media("video"))

    # When the recheck fails after its write, and comes again
    ((_, due_ms),) = world.retry_queue.rechecks
    world.queue.refuses = lambda _: fails == "SQS"
    world.dynamodb.effects["update_item"] = repeat(DOWN if fails == "the watch list" else None)
    with pytest.raises((StateUnavailable, DeliveryFailed)):
        watching.recheck_all()
    world.queue.refuses = lambda _: False
    world.dynamodb.effects.clear()
    assert watching.callbacks.recheck(TEACHER, due_ms, world.lookup, world.in_seconds(20))

    # Then the user is watched for a day again
    assert (video(world), watching.watches["teacher"]) == (True, DAY)


def test_a_write_whose_answer_was_lost_asks_for_its_recheck(receiver: Receiver, world: World) -> None:
    def apply_and_refuse_the_second_try(put: Mapping[str, Any]) -> Any:
        world.dynamodb.client.put_item(**put)
        error: Any = aws_error("ConditionalCheckFailedException")
        error.response["Item"] = put["Item"]
        return error

    receiver.send(JOIN)
    world.clock.seconds += 2
    world.dynamodb.effects["put_item"] = iter([apply_and_refuse_the_second_try])

    receiver.send(LEAVE, Reason="userLeave")

    assert [target for target, _ in world.retry_queue.rechecks] == [TEACHER]


def test_an_event_that_two_instances_receive_asks_for_one_recheck(receiver: Receiver, world: World) -> None:
    other = Receiver(world.another())
    for kind in (JOIN, LEAVE):
        body = signed(kind, receiver.now_ms, Reason="userLeave")
        receiver.receive(body)
        other.receive(body)
        world.clock.seconds += 2

    assert [target for target, _ in world.retry_queue.rechecks] == [TEACHER]


def test_a_recheck_that_does_not_find_the_user_ends_the_doubt(receiver: Receiver, world: World) -> None:
    play(receiver, DOUBT)
    world.rtc.say(TEACHER, ABSENT)
    receiver.recheck_all()

    message = world.queue.messages[-1]
    assert ({**message["media"], "present": message["present"]}, message["source"]) == (GONE, "query")


def test_doubt_that_an_event_renews_before_its_recheck_is_settled_by_another_one(
    receiver: Receiver, world: World
) -> None:
    play(receiver, f"{DOUBT}, 4000 stop LeaveRoom, 1200 leave@1000")
    world.rtc.say(TEACHER, media("video"))
    for _ in range(2):
        receiver.recheck_all()

    assert video(world) is True


def test_without_queries_doubt_stays(clock: Clock) -> None:
    """A recheck that was asked for before queries were switched off makes no call either."""
    world = World(clock, rechecks=False, query="off")
    receiver = Receiver(world)
    play(receiver, DOUBT)
    assert world.retry_queue.rechecks == []

    due_ms = world.clock.now_ms()
    for state_record in world.store.read([TEACHER]).values():
        world.store.set_recheck(state_record, due_ms)
    world.retry_queue.recheck(TEACHER, due_ms)
    receiver.recheck_all()
    assert (world.rtc.calls, video(world)) == ([], None)


@pytest.mark.parametrize("retryable", [True, False])
@pytest.mark.parametrize("is_busy", [True, False])
def test_a_recheck_that_fails_comes_again_until_the_doubt_is_settled(
    receiver: Receiver, world: World, *, retryable: bool, is_busy: bool
) -> None:
    # Given a vendor that throttles, or refuses the keys
    play(receiver, DOUBT)
    world.rtc.say(TEACHER, Failure("No slot.", retryable=retryable))
    # When two hours pass, in which the queue brings failed messages again, and events drain the list
    for _ in range(40):
        receiver.recheck_all()
        world.clock.seconds += 174
        receiver.send(AUDIO, user_id="guest")
        if is_busy:
            # The same doubt, again and again
            receiver.send(VIDEO, 1_000)
            receiver.send(LEAVE, Reason="userLeave")
    # Then neither messages nor calls pile up
    assert len(world.retry_queue.rechecks) <= 2
    assert len(world.rtc.calls) <= 41
    # And one answer settles the doubt, wherever its message is
    world.rtc.say(TEACHER, media())
    world.rtc.calls.clear()
    for _ in range(2):
        receiver.recheck_all()
        world.clock.seconds += 1200
        receiver.send(AUDIO, user_id="guest")
    receiver.recheck_all()
    assert (video(world), world.rtc.calls) == (False, [TEACHER])
    world.clock.seconds += 7200
    receiver.send(AUDIO, user_id="guest")
    assert (world.retry_queue.rechecks, world.store.undelivered(10).entries) == ([], [])


def test_a_recheck_that_another_message_stands_for_makes_no_call(receiver: Receiver, world: World) -> None:
    play(receiver, DOUBT)
    world.clock.seconds += 120
    receiver.send(AUDIO, user_id="guest")
    assert len(world.retry_queue.rechecks) == 2

    receiver.recheck_all()

    assert (world.rtc.calls, world.retry_queue.rechecks) == ([TEACHER], [])


def test_a_recheck_whose_time_is_up_comes_again_without_a_call(receiver: Receiver, world: World) -> None:
    play(receiver, DOUBT)
    ((target, due_ms),) = world.retry_queue.rechecks

    assert not receiver.callbacks.recheck(target, due_ms, world.lookup, world.in_seconds(-1))
    assert world.rtc.calls == []


@pytest.mark.parametrize("query", ["on", "presence"])
def test_a_user_who_left_soon_after_a_presence_call_is_rechecked_once(clock: Clock, query: str) -> None:
    # Given a vendor that answers four zeros about a user who has left
    world = World(clock, query=query)
    receiver = Receiver(world)
    receiver.send(JOIN, 600_000)
    world.rtc.rooms[TEACHER.room] = {"teacher"}
    world.lookup.room(TEACHER.room, None, world.in_seconds(20), is_refreshed=True, with_absent=False)
    world.rtc.rooms[TEACHER.room] = set()
    # When the user leaves two seconds after the room was looked up
    clock.seconds += 2
    receiver.send(LEAVE, Reason="userLeave")
    world.rtc.calls.clear()
    for _ in range(10):
        receiver.recheck_all()
    # Then the vendor is asked once more, and not forever
    assert len(world.rtc.calls) == (1 if query == "on" else 0)
    assert (world.values(TEACHER) or {})["video"] is False
    assert len(world.rtc.presence_calls) <= 2


def test_a_doubt_that_presence_cannot_settle_is_rechecked_a_few_times(receiver: Receiver, world: World) -> None:
    # Given a stream that a query saw soon after the leave, and a vendor that then withdraws the action
    for kind in (JOIN, VIDEO):
        receiver.send(kind, 600_000)
    receiver.send(LEAVE, Reason="userLeave")
    world.clock.seconds += 3
    world.rtc.say(TEACHER, media("video"), RtcActionRetired("Gone."))
    world.lookup.one(TEACHER, world.in_seconds(20))
    world.rtc.rooms[TEACHER.room] = {"teacher"}

    for _ in range(10):
        receiver.recheck_all()

    assert len(world.rtc.calls) <= 3
    assert (world.values(TEACHER) or {})["present"] is True


def test_a_recheck_whose_answer_leaves_the_user_out_asks_for_no_other_one(clock: Clock) -> None:
    # Given a doubt about a user who left soon after a presence call, and a vendor that says nothing of the user
    world = World(clock, query="presence")
    receiver = Receiver(world)
    receiver.send(JOIN, 60_000)
    world.store.observe(TEACHER, online(clock.now_ms()))
    clock.seconds += 2
    receiver.send(LEAVE, Reason="userLeave")
    world.rtc.users_property = lambda *_, **__: Presence({}, {}, "request-1")
    assert world.retry_queue.rechecks

    receiver.recheck_all()

    assert world.retry_queue.rechecks == []


@pytest.mark.parametrize("sqs_was_down", [True, False])
def test_a_recheck_that_was_lost_is_asked_for_again_by_a_drain(
    receiver: Receiver, world: World, *, sqs_was_down: bool
) -> None:
    world.retry_queue.is_down = sqs_was_down
    play(receiver, DOUBT)
    world.retry_queue.is_down = False
    world.retry_queue.rechecks.clear()
    play(receiver, "68000 join, 68001 join")

    assert [target for target, _ in world.retry_queue.rechecks] == [TEACHER]


def test_a_recheck_that_sqs_does_not_deliver_must_come_again(receiver: Receiver, world: World) -> None:
    play(receiver, DOUBT)
    world.rtc.say(TEACHER, media("video"))
    world.queue.refuses = lambda message: True
    with pytest.raises(DeliveryFailed):
        receiver.recheck_all()
    assert video(world) is True


# Watching users who are there


def test_joins_and_starts_watch_and_leaves_shorten(watching: Receiver) -> None:
    for user, kind in {"one": JOIN, "two": "InvisibleUserJoinRoom", "three": AUDIO, "four": VIDEO_STOP}.items():
        watching.send(kind, user_id=user)
    assert watching.watches == {"one": DAY, "two": DAY, "three": DAY}
    watching.world.clock.seconds += 60

    watching.send(LEAVE, user_id="one")
    assert watching.watches == {"one": LEFT, "two": DAY - 60, "three": DAY - 60}
    watching.send(ROOM_END)
    assert watching.watches == {"one": LEFT, "two": LEFT, "three": LEFT}


@pytest.mark.parametrize(
    ("history", "is_there"),
    [("60000 leave@0 userLeave, 60000 join@-50000", False), ("60000 join@50000, 60000 leave@0 userLeave", True)],
)
def test_the_order_in_which_join_and_leave_arrive_does_not_matter(
    watching: Receiver, history: str, *, is_there: bool
) -> None:
    play(watching, history)

    assert (watching.watches.get("teacher", 0) > LEFT) is is_there


def test_the_recheck_of_a_user_of_whom_no_event_came_watches_nobody(watching: Receiver, world: World) -> None:
    world.rtc.say(TEACHER, media("video"), ABSENT, media("video"))
    world.lookup.one(TEACHER, world.in_seconds(20))
    world.clock.seconds += 10
    with pytest.raises(TargetNotFound):
        world.lookup.one(TEACHER, world.in_seconds(20))

    watching.recheck_all()

    assert video(world) is True
    assert watching.watches == {}


def test_without_auto_watch_no_watch_is_touched(receiver: Receiver, world: World) -> None:
    world.watch_list.add([TEACHER], 1000)
    play(receiver, f"{STREAMS}, 20000 leave userLeave")

    assert receiver.watches == {"teacher": 980}


# Requests


@pytest.mark.parametrize("is_kept", [True, False])
def test_the_requests_of_an_event_are_few(receiver: Receiver, world: World, *, is_kept: bool) -> None:
    """By an instance that has written the record before, or by another one."""
    other = receiver if is_kept else Receiver(World(world.clock, world.dynamodb.client))

    def requests(each: Receiver, body: str) -> tuple[list[str], int]:
        each.world.dynamodb.made.clear()
        each.world.queue.deadlines.clear()
        each.receive(body)
        return [name for name, _ in each.world.dynamodb.made], len(each.world.queue.deadlines)

    start, refused = signed(AUDIO, receiver.now_ms), [] if is_kept else ["put_item"]
    assert requests(receiver, start) == (["put_item", "get_item", "put_item", "query"], 1)
    assert requests(other, start) == (["put_item", "query"], 0)
    assert requests(other, signed(VIDEO, receiver.now_ms + 1)) == ([*refused, "put_item", "put_item", "query"], 1)


def test_the_end_of_a_room_costs_two_requests_a_user(
    receiver: Receiver, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(receiver, 20)
    world.dynamodb.made.clear()
    world.queue.deadlines.clear()
    metrics(capsys)

    receiver.send(ROOM_END)

    assert [world.dynamodb.count(name) for name in ("put_item", "update_item", "query", "get_item")] == [40, 1, 2, 0]
    assert len(world.queue.deadlines) == 2
    assert metrics(capsys) == {"CallbackEvents": [1], "StatesDelivered": [20], "StateChanges": [20]}
