"""Pushed events: who is believed, what each tells, and that order, repeats and failures do not change the outcome."""

import hmac
import io
import json
from collections.abc import Callable, Mapping
from itertools import repeat
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_state import callback as callback_module
from stream_state.callback import KEYS_REREAD_SECONDS, MAX_AHEAD_SECONDS, Callback, signature
from stream_state.credentials import CallbackKeys
from stream_state.errors import (
    CredentialsInvalid,
    CredentialsUnavailable,
    DeliveryFailed,
    InvalidTarget,
    StateUnavailable,
)
from stream_state.model import StreamState, Target
from stream_state.settings import Settings, SettingsError
from stream_state.table import STATE_LIFE_SECONDS
from tests.unit.fakes import Clock, FakeSecrets, aws_error
from tests.unit.memory import APP_ID, World, media, metrics, query_facts, targets
from tests.unit.pushed import KEY, SIGNED, VENDOR_NAMES, Fields, Receiver, fields, pushed, sign, stream, text

TEACHER = Target(APP_ID, "class-1", "teacher")
UNKNOWN = dict.fromkeys(VENDOR_NAMES)
OFF = dict.fromkeys(VENDOR_NAMES, False)
AUDIO = "UserAudioStreamStart"
# Published by the vendor (volcengine.com/docs/6348/69820).
PUBLISHED = {
    "EventType": "RoomCreate",
    "EventData": '{"RoomId":"room1","Timestamp":1679383924691}',
    "EventTime": "2023-03-21T15:32:04+08:00",
    "EventId": "123456",
    "Version": "2020-12-01",
    "AppId": "appId",
    "Nonce": "aaBc",
    "Signature": "1c7200723842eff514b65fc3f065597432bbb4249e10d33db79b3853d05f3691",
}


@pytest.fixture
def world(clock: Clock) -> World:
    return World(clock)


@pytest.fixture
def receiver(world: World) -> Receiver:
    return Receiver(world)


def refusal(receiver: Receiver, body: str | bytes) -> tuple[int, str]:
    """The status with which an event is refused, and why."""
    with pytest.raises(InvalidTarget) as raised:
        receiver.callback.take(body, receiver.now_ms, receiver.world.in_seconds(60))
    return raised.value.http_status, raised.value.detail


def values(world: World, target: Target = TEACHER) -> tuple[dict[str, bool | None], bool | None]:
    """What is known: of the media, and of presence."""
    known = world.known(target)
    assert known is not None
    answer = known.state().answer()
    return answer["media"], answer["present"]


# Who is believed


def test_the_published_vector_verifies(world: World) -> None:
    keys = CallbackKeys(FakeSecrets({"callback_key": "1234"}), "key", 300)  # type: ignore[arg-type]  # a fake
    callback = Callback(keys, world.table, world.teller, ["appId"], wall_clock=lambda: 1679383925)

    assert signature(PUBLISHED, "1234") == PUBLISHED["Signature"]
    assert callback.take(text(PUBLISHED), 1679383925000, float("inf"))
    assert world.is_untouched


def changes(value: str) -> list[str]:
    """The value with any one byte changed, taken away or put in, for each place in it."""
    return [
        changed
        for at in range(len(value) + 1)
        for changed in (
            value[:at] + chr(ord(value[at]) ^ 1) + value[at + 1 :] if at < len(value) else value + "0",
            value[:at] + value[at].swapcase() + value[at + 1 :] if at < len(value) else f"{value} ",
            value[:at] + value[at + 1 :],
            f"{value[:at]}x{value[at:]}",
        )
        if changed != value
    ]


@pytest.mark.parametrize("name", [*SIGNED, "Signature"])
def test_any_byte_of_a_field_that_is_changed_makes_the_event_refused(
    receiver: Receiver, world: World, name: str
) -> None:
    event = sign(fields(AUDIO, receiver.now_ms))

    for changed in changes(event[name]):
        assert refusal(receiver, text({**event, name: changed})) == (
            401,
            "The event is not accepted: the signature fits no callback key.",
        )
    assert world.is_untouched
    assert receiver.take(text(event))


def test_any_byte_of_the_key_that_is_changed_makes_the_event_refused(receiver: Receiver, world: World) -> None:
    event = fields(AUDIO, receiver.now_ms)

    for key in changes(KEY):
        assert refusal(receiver, text(sign(event, key)))[0] == 401
    assert world.is_untouched


def test_any_byte_of_the_body_that_is_changed_makes_the_event_refused(receiver: Receiver, world: World) -> None:
    body = pushed(AUDIO, receiver.now_ms)

    for at in range(len(body)):
        for other in (chr(ord(body[at]) ^ 1), chr(ord(body[at]) ^ 4), "\\", '"', "é"):
            if other != body[at]:
                assert refusal(receiver, body[:at] + other + body[at + 1 :])[0] in (400, 401)
    assert world.is_untouched


@pytest.mark.parametrize("name", [*SIGNED, "Signature"])
@pytest.mark.parametrize("odd", ["\ud800", "\udfff\ud800", "é", "\x00", "", "直播"])
def test_odd_text_in_a_field_is_refused_and_fails_nothing(
    receiver: Receiver, world: World, name: str, odd: str
) -> None:
    assert refusal(receiver, text({**sign(fields(AUDIO, receiver.now_ms)), name: odd}))[0] == 401
    assert world.is_untouched


def test_the_values_are_sorted_by_their_bytes_and_signed_as_they_stand(receiver: Receiver) -> None:
    event = {**fields(AUDIO, receiver.now_ms), "EventId": "\U0001f600", "Nonce": "\uffee"}
    event["EventData"] = event["EventData"].replace(",", " ,\n\t")

    assert receiver.take(json.dumps(sign(event), indent=2))


@pytest.mark.parametrize(
    "body",
    [
        "",
        "null",
        "[]",
        '"text"',
        "{}",
        "{",
        "[" * 100_000,
        '{"EventType": NaN}',
        b"\xff\xfe\xfd",
        b'{"EventType": "\xff"}',
        text(PUBLISHED).replace('"EventType"', '"Nonce":"aaBc","EventType"'),
        *(text({name: value for name, value in PUBLISHED.items() if name != left_out}) for left_out in PUBLISHED),
        *(text({**PUBLISHED, name: odd}) for name in PUBLISHED for odd in (None, 1, True, [], {})),
    ],
)
def test_what_is_not_an_event_is_malformed(receiver: Receiver, world: World, body: str | bytes) -> None:
    status, why = refusal(receiver, body)

    assert status == 400
    assert any(rule in why for rule in ("JSON", "names a member twice", "must be an object with the texts EventType"))
    assert world.is_untouched


def test_the_signature_is_looked_at_before_the_app_id_and_that_before_anything_else(receiver: Receiver) -> None:
    wrong = {**fields(AUDIO, receiver.now_ms), "AppId": "another", "EventData": "not JSON"}

    assert refusal(receiver, text(sign(wrong, "another key")))[0] == 401
    assert refusal(receiver, text(sign(wrong)))[0] == 403
    assert refusal(receiver, text(sign({**wrong, "AppId": "app-2"})))[0] == 400


def test_both_keys_are_compared_in_constant_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever fits, so that the time tells neither how much of a signature was right nor which key made it."""
    compared: list[tuple[bytes, bytes]] = []
    compare = hmac.compare_digest

    def compare_digest(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return compare(one, other)

    receiver = Receiver(world, {"callback_key": "new-key", "previous_callback_key": KEY})
    monkeypatch.setattr(callback_module.hmac, "compare_digest", compare_digest)
    for key in ("new-key", KEY):
        assert receiver.take(text(sign(fields(AUDIO, receiver.now_ms), key)))
    assert len(compared) == 4


# The keys


def test_a_key_is_rotated_without_an_event_refused(world: World) -> None:
    # Given a secret that gets a new key while the vendor still signs with the old one
    both = {"callback_key": "new-key", "previous_callback_key": KEY}
    receiver = Receiver(world, {"callback_key": KEY}, both, {"callback_key": "new-key"})
    assert receiver.push(AUDIO)
    # When the vendor changes over, then the secret is read anew
    assert receiver.take(text(sign(fields(AUDIO, receiver.now_ms), "new-key")))
    # And events that were signed before are still believed
    assert receiver.push(AUDIO)
    assert receiver.secrets.reads == 2


def test_wrong_signatures_have_the_secret_read_every_ten_seconds_at_most(receiver: Receiver) -> None:
    wrong = text(sign(fields(AUDIO, receiver.now_ms), "another key"))
    for _ in range(100):
        assert refusal(receiver, wrong)[0] == 401
    assert receiver.secrets.reads == 2

    receiver.world.clock.seconds += KEYS_REREAD_SECONDS
    for _ in range(100):
        assert refusal(receiver, wrong)[0] == 401
    assert receiver.secrets.reads == 3


def test_the_earlier_keys_serve_on_while_the_secret_cannot_be_read(world: World) -> None:
    receiver = Receiver(world, {"callback_key": KEY}, aws_error("InternalServiceError"))
    assert receiver.push(AUDIO)
    world.clock.seconds += 301

    assert receiver.push(AUDIO)
    assert receiver.secrets.reads == 2


@pytest.mark.parametrize(
    ("secret", "error", "complaint"),
    [
        (aws_error("InternalServiceError"), CredentialsUnavailable, "did not return"),
        (aws_error("ResourceNotFoundException"), CredentialsInvalid, "has no value yet"),
        ("canary", CredentialsInvalid, "is not JSON"),
        ({}, CredentialsInvalid, "must hold callback_key"),
        ({"callback_key": ""}, CredentialsInvalid, "must hold callback_key as text"),
        ({"callback_key": None}, CredentialsInvalid, "must hold callback_key as text"),
        ({"callback_key": "can ary"}, CredentialsInvalid, "must hold callback_key as text"),
        ({"previous_callback_key": "canary"}, CredentialsInvalid, "must hold callback_key"),
        ({"callback_key": "canary", "previous_callback_key": 1}, CredentialsInvalid, "must hold previous_callback_key"),
    ],
)
def test_without_a_key_nobody_is_believed_and_the_event_must_come_again(
    world: World, secret: Any, error: type[Exception], complaint: str
) -> None:
    with pytest.raises(error, match=complaint) as raised:
        Receiver(world, secret).push(AUDIO)

    assert "canary" not in str(raised.value)
    assert world.is_untouched


@pytest.mark.parametrize("previous", [{}, {"previous_callback_key": ""}, {"previous_callback_key": None}])
def test_the_previous_key_may_be_missing(world: World, previous: dict[str, Any]) -> None:
    assert Receiver(world, {"callback_key": KEY, **previous}).push(AUDIO)


def test_the_secret_of_the_keys_must_be_named() -> None:
    with pytest.raises(SettingsError, match="RTC_CALLBACK_SECRET_ID is not set"):
        CallbackKeys.from_settings(Settings.from_environment({"RTC_APP_IDS": APP_ID}))


def test_no_key_and_no_signature_is_logged(receiver: Receiver, logs: io.StringIO) -> None:
    event = sign(fields(AUDIO, receiver.now_ms))
    _, why = refusal(receiver, text({**event, "Nonce": "other"}))
    receiver.take(text(event))

    assert KEY not in logs.getvalue() + why
    assert event["Signature"] not in logs.getvalue() + why


# What an event tells


@pytest.mark.parametrize("medium", VENDOR_NAMES)
def test_a_stream_that_starts_is_on_and_its_user_present(
    receiver: Receiver, world: World, conforms: Callable[[str, Any], None], medium: str
) -> None:
    receiver.push(stream(medium, starts=True))

    assert values(world) == ({**UNKNOWN, medium: True}, True)
    (message,) = world.queue.messages
    conforms("message", message)
    assert (message["source"], message["rtc_request_id"]) == ("callback", None)
    assert message["changed"] == [medium, "present"]


@pytest.mark.parametrize("medium", VENDOR_NAMES)
@pytest.mark.parametrize("reason", [{}, {"Reason": "StreamStop"}, {"Reason": "LeaveRoom"}])
def test_a_stream_that_stops_is_off(receiver: Receiver, world: World, medium: str, reason: dict[str, str]) -> None:
    receiver.push(stream(medium, starts=False), **reason)

    assert values(world) == ({**UNKNOWN, medium: False}, None)


@pytest.mark.parametrize("kind", ["UserJoinRoom", "InvisibleUserJoinRoom"])
def test_who_joins_is_present(receiver: Receiver, world: World, kind: str) -> None:
    receiver.push(kind)

    assert values(world) == (UNKNOWN, True)


@pytest.mark.parametrize("kind", ["UserLeaveRoom", "InvisibleUserLeaveRoom", "RoomDestroy"])
def test_leaving_and_the_end_of_the_room_turn_off_what_is_not_newer(
    receiver: Receiver, world: World, kind: str
) -> None:
    # Given a user whose sound is on, and whose picture is on by news that came earlier than the older event
    receiver.push(AUDIO, ago_ms=2000)
    receiver.push("UserVideoStreamStart", ago_ms=0)
    # When it turns out that the user had left in between
    receiver.push(kind, ago_ms=1000, user_id=None if kind == "RoomDestroy" else "teacher")
    # Then what started later is still on
    assert values(world) == ({**OFF, "video": True}, True)
    # And all is off when the user leaves now
    world.clock.seconds += 1
    receiver.push(kind, user_id=None if kind == "RoomDestroy" else "teacher")
    assert values(world) == (OFF, False)
    assert world.queue.messages[-1]["media"] == OFF


@pytest.mark.parametrize("kind", ["RoomCreate", "UserAudioStream", "UserHandRaised", "", "RoomDestroyed"])
def test_other_events_are_acknowledged_and_counted(
    receiver: Receiver, world: World, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    assert receiver.take(text(sign({**fields(kind, 0), "EventData": "not even JSON"})))

    assert world.is_untouched
    assert metrics(capsys)["CallbackEvents"] == [1]


@pytest.mark.parametrize(
    "data",
    [
        "",
        "null",
        "[]",
        "{}",
        '{"RoomId":"class-1","UserId":"teacher","Timestamp":NaN}',
        '{"RoomId":"class-1","UserId":"teacher","Timestamp":1e999}',
        '{"RoomId":"class-1","UserId":"teacher","Timestamp":"%s"}' % ("9" * 5000),
        '{"RoomId":"class-1","UserId":"teacher","Timestamp":1795403045678,"x":%s}' % ("[" * 100_000),
        '{"RoomId":"class-1","RoomId":"class-1","UserId":"teacher","Timestamp":1795403045678}',
        '{"UserId":"teacher","Timestamp":1795403045678}',
        '{"RoomId":"class-1","Timestamp":1795403045678}',
        '{"RoomId":"class-1","UserId":7,"Timestamp":1795403045678}',
        '{"RoomId":"class 1","UserId":"teacher","Timestamp":1795403045678}',
        '{"RoomId":"class-1","UserId":"%s","Timestamp":1795403045678}' % ("u" * 129),
    ],
)
def test_data_that_is_not_as_expected_is_refused(receiver: Receiver, world: World, data: str) -> None:
    status, why = refusal(receiver, text(sign({**fields(AUDIO, receiver.now_ms), "EventData": data})))

    assert (status, why.startswith("The event is not accepted: EventData")) == (400, True)
    assert world.is_untouched


# Times

AT_MS = 1_795_403_044_123
AT = {"EventTime": "2026-11-23T03:04:04.123456789Z"}


@pytest.mark.parametrize(
    ("timestamp", "event"),
    [
        (AT_MS, {"EventTime": "of no use"}),
        (AT_MS + 0.9, {"EventTime": "of no use"}),
        (str(AT_MS), {"EventTime": "of no use"}),
        *((missing, AT) for missing in (None, True, "", "soon", "-1", "²", [], {})),
        (None, {"EventTime": "2026-11-23T11:04:04.123+08:00"}),
        (None, {"EventTime": "2026-11-22T19:34:04.123-07:30"}),
    ],
)
def test_an_event_is_true_of_its_timestamp_else_of_its_event_time(
    receiver: Receiver, world: World, timestamp: object, event: Fields
) -> None:
    receiver.take(text(sign({**fields(AUDIO, 0, Timestamp=timestamp), **event})))

    known = world.known(TEACHER)
    assert known is not None
    assert known.facts["audio"].at_ms == AT_MS


@pytest.mark.parametrize(
    "event_time", ["", "soon", "2026-11-23T03:04:04", "2026-13-23T03:04:04Z", "9" * 400, "\ud800", "0001-01-01T00:00Z!"]
)
def test_an_event_without_a_time_is_refused_without_an_echo(receiver: Receiver, event_time: str) -> None:
    event = {**fields(AUDIO, 0, Timestamp=None), "EventTime": event_time}

    status, why = refusal(receiver, text(sign(event)))

    assert (status, len(why) < 150) == (400, True)


@pytest.mark.parametrize("event_time", ["0001-01-01T00:00:00+14:00", "1970-01-01T00:00:00Z"])
def test_an_event_of_long_ago_is_acknowledged(receiver: Receiver, world: World, event_time: str) -> None:
    assert receiver.take(text(sign({**fields(AUDIO, 0, Timestamp=None), "EventTime": event_time})))
    assert receiver.take(text(sign(fields(AUDIO, 0, Timestamp=-(10**30)))))
    assert world.is_untouched


@pytest.mark.parametrize("ahead_ms", [1, MAX_AHEAD_SECONDS * 1000 - 10])
def test_an_event_that_is_ahead_counts_from_its_arrival(receiver: Receiver, world: World, ahead_ms: int) -> None:
    arrived_at_ms = receiver.now_ms

    receiver.push(AUDIO, ago_ms=-ahead_ms)

    known = world.known(TEACHER)
    assert known is not None
    assert {fact.at_ms for fact in known.facts.values()} == {arrived_at_ms}


@pytest.mark.parametrize("ahead_ms", [MAX_AHEAD_SECONDS * 1000 + 10, 10**15, 10**400])
def test_an_event_that_is_further_ahead_is_refused(receiver: Receiver, world: World, ahead_ms: int) -> None:
    status, why = refusal(receiver, text(sign(fields(AUDIO, 0, Timestamp=receiver.now_ms + ahead_ms))))

    assert (status, "more than 900 seconds ahead" in why) == (400, True)
    assert world.is_untouched


@pytest.mark.parametrize("ahead_ms", [0, 1, 60_000, 899_000])
@pytest.mark.parametrize("later", ["event", "fast event", "query"])
def test_a_fast_clock_cannot_hold_back_later_news(receiver: Receiver, world: World, ahead_ms: int, later: str) -> None:
    # Given an event of a clock that is fast
    receiver.push(AUDIO, ago_ms=-ahead_ms)
    # When the next news comes a moment later
    world.clock.seconds += 0.01
    if later == "query":
        world.table.observe(StreamState(TEACHER, query_facts(media(), receiver.now_ms), "query"))
    else:
        receiver.push("UserAudioStreamStop", ago_ms=-ahead_ms if later == "fast event" else 0)
    # Then it counts
    assert values(world)[0]["audio"] is False


def test_a_fast_event_that_waited_in_the_queue_cannot_hold_back_what_came_meanwhile(
    receiver: Receiver, world: World
) -> None:
    arrived_at_ms = receiver.now_ms
    event = pushed(AUDIO, arrived_at_ms + 600_000)
    world.clock.seconds += 5
    receiver.push("UserAudioStreamStop")
    world.clock.seconds += 3600

    receiver.callback.take(event, arrived_at_ms, world.in_seconds(60))

    assert values(world)[0]["audio"] is False


def test_a_week_old_event_changes_nothing(receiver: Receiver, world: World, capsys: pytest.CaptureFixture[str]) -> None:
    event = pushed(AUDIO, receiver.now_ms)
    world.clock.seconds += 7 * 86_400

    assert receiver.take(event)

    assert world.is_untouched
    assert metrics(capsys)["CallbackEvents"] == [1]


def test_an_event_that_is_a_day_old_is_ignored_also_if_it_waited_in_the_queue(receiver: Receiver, world: World) -> None:
    """What was newer may be forgotten by then."""
    arrived_at_ms = receiver.now_ms
    event = pushed(AUDIO, arrived_at_ms - 5_000)
    receiver.push("UserAudioStreamStop")
    world.clock.seconds += STATE_LIFE_SECONDS + 1
    made = len(world.dynamodb.made)

    assert receiver.callback.take(event, arrived_at_ms, world.in_seconds(60))
    assert len(world.dynamodb.made) == made


# Repeats and failures


def test_a_repeat_changes_and_tells_nothing(receiver: Receiver, world: World) -> None:
    event = pushed(AUDIO, receiver.now_ms)
    receiver.take(event)
    known = world.known(TEACHER)
    world.clock.seconds += 3600

    receiver.take(event)

    again = world.known(TEACHER)
    assert known is not None
    assert again is not None
    assert (again.facts, again.sequence) == (known.facts, known.sequence)
    assert len(world.queue.messages) == 1


def test_a_repeat_sends_what_an_earlier_try_did_not(receiver: Receiver, world: World) -> None:
    event = pushed(AUDIO, receiver.now_ms)
    world.queue.refuses = lambda message: True
    with pytest.raises(DeliveryFailed):
        receiver.take(event)
    assert values(world)[0]["audio"] is True
    world.queue.refuses = lambda message: False

    receiver.take(event)
    receiver.take(event)

    assert [message["changed"] for message in world.queue.messages] == [["audio", "present"]]


@pytest.mark.parametrize("operation", ["get_item", "put_item"])
def test_an_event_that_cannot_be_stored_must_come_again(receiver: Receiver, world: World, operation: str) -> None:
    event = pushed(AUDIO, receiver.now_ms)
    world.dynamodb.effects[operation] = iter([aws_error("InternalServerError")])
    with pytest.raises(StateUnavailable):
        receiver.take(event)
    assert not world.queue.messages

    receiver.take(event)

    assert len(world.queue.messages) == 1


# Any order

MEDIA = st.sampled_from(sorted(VENDOR_NAMES))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["start", "stop"]), MEDIA),
        st.tuples(st.sampled_from(["join", "leave", "end", "query", "lost"]), st.just("")),
    ),
    min_size=1,
    max_size=12,
)
KINDS = {"join": "UserJoinRoom", "leave": "UserLeaveRoom", "end": "RoomDestroy"}


class Life:
    """What one user does, a second apart, and what the vendor tells of it: pushed events and answers to queries."""

    def __init__(self, steps: list[tuple[str, str]], start_ms: int) -> None:
        self.in_room = False
        self.on: set[str] = set()
        self.news: list[str | StreamState] = []
        for number, (step, medium) in enumerate(steps):
            self._do(step, medium, start_ms + number * 1000)

    def _do(self, step: str, medium: str, at_ms: int) -> None:
        if step == "query":
            state = StreamState(TEACHER, query_facts(media(*self.on), at_ms), "query")
            self.news.append(state if self.in_room else StreamState.not_found(TEACHER, at_ms, None))
        elif step in ("leave", "end"):
            self.in_room = False
            self.on.clear()
            self.news.append(pushed(KINDS[step], at_ms, user_id=None if step == "end" else "teacher"))
        else:
            # A stop may come after the leave that caused it; of a join that is lost nothing is told.
            self.in_room = self.in_room or step != "stop"
            self.on = self.on | {medium} if step == "start" else self.on - {medium}
            if step != "lost":
                kind = KINDS.get(step) or stream(medium, starts=step == "start")
                self.news.append(pushed(kind, at_ms))


def deliver(receiver: Receiver, news: list[str | StreamState]) -> None:
    """Let news arrive in this order: events as they are pushed, answers as a sweep takes them."""
    for entry in news:
        receiver.world.clock.seconds += 1
        if isinstance(entry, str):
            receiver.take(entry)
        else:
            known = receiver.world.table.observe(entry)
            if known.is_news:
                message = known.message("query", None)
                receiver.world.teller.tell([callback_module.Outgoing(message, known)], receiver.world.in_seconds(60))


@settings(deadline=None, max_examples=300)
@given(STEPS, st.data())
def test_any_history_in_any_order_ends_as_the_true_order_does_and_that_is_told(
    steps: list[tuple[str, str]], data: st.DataObject
) -> None:
    # Given the history of a user, in its true order
    in_order, shuffled = (Receiver(World(Clock())) for _ in range(2))
    in_order.push("UserJoinRoom", user_id="another")
    life = Life(steps, in_order.now_ms)
    for each in (in_order, shuffled):
        each.world.clock.seconds += 1000
    deliver(in_order, life.news)
    truth = in_order.world.known(TEACHER)
    # When it comes in any order, with repeats, while the queue fails now and then
    repeats = data.draw(st.lists(st.sampled_from(life.news), max_size=5)) if life.news else []
    order = data.draw(st.permutations(life.news + repeats))
    failures = iter(data.draw(st.lists(st.booleans(), max_size=10)))
    shuffled.world.queue.refuses = lambda message: next(failures, False)
    again = []
    for entry in order:
        try:
            deliver(shuffled, [entry])
        except DeliveryFailed:
            again.append(entry)
    shuffled.world.queue.refuses = lambda message: False
    deliver(shuffled, again + life.news[-1:])
    # Then the end is the same
    known = shuffled.world.known(TEACHER)
    assert (known is None) == (truth is None)
    if known is None or truth is None:
        return
    assert known.state().values == truth.state().values
    # And it is what the user does, as far as it was told
    told = known.state().values
    assert all(told[medium] in (None, medium in life.on) for medium in VENDOR_NAMES)
    assert told["present"] in (None, life.in_room) or ("lost", "") in steps
    # And each change of it reached the queue: the newest message tells the end, and messages repeat or change
    assert not known.is_news
    messages = [message for message in shuffled.world.queue.messages if message["user_id"] == "teacher"]
    if any(value is not None for value in told.values()):
        newest = max(messages, key=lambda message: message["sequence"])
        assert {**newest["media"], "present": newest["present"]} == told
    assert len({message["id"] for message in messages}) == len({message["sequence"] for message in messages})


# The end of a room


def fill(receiver: Receiver, count: int) -> list[Target]:
    users = targets(count)
    for user in users:
        receiver.push(AUDIO, user_id=user.user_id)
    receiver.world.queue.take()
    receiver.world.clock.seconds += 1
    return users


def test_the_end_of_a_room_turns_all_its_users_off_in_batches(receiver: Receiver, world: World) -> None:
    users = fill(receiver, 450)
    receiver.push(AUDIO, room_id="class-2")
    world.queue.take()

    assert receiver.push("RoomDestroy", user_id=None)

    assert world.queue.users() == [user.user_id for user in users]
    assert all(message["media"] == OFF and message["present"] is False for message in world.queue.messages)
    assert values(world, Target(APP_ID, "class-2", "teacher"))[0]["audio"] is True
    reads = [parameters for name, parameters in world.dynamodb.made if name == "query"]
    assert [read["ConsistentRead"] for read in reads] == [True] * 3


@pytest.mark.parametrize(("operation", "call"), [("get_item", 1), ("put_item", 1), ("get_item", 2)])
@pytest.mark.parametrize("dies", [False, True])
def test_a_room_that_ends_while_its_first_event_is_taken_in_ends_for_all(
    receiver: Receiver, world: World, operation: str, call: int, *, dies: bool
) -> None:
    """Given the end of a room before any step of an older event, and a process that may die then, all is off."""
    start = pushed(stream("audio", starts=True), receiver.now_ms - 1000)
    end = pushed("RoomDestroy", receiver.now_ms, user_id=None)

    def end_now(_: Mapping[str, Any]) -> Exception | None:
        world.dynamodb.effects.clear()
        assert receiver.take(end)
        return aws_error("InternalServerError") if dies else None

    world.dynamodb.effects[operation] = iter([*[None] * (call - 1), end_now])
    try:
        receiver.take(start)
    except StateUnavailable:
        receiver.take(start)

    assert values(world) == (OFF, False)
    assert world.queue.messages[-1]["publishing"] is False


def test_the_end_of_a_room_holds_for_one_of_whom_nothing_is_known_any_more(receiver: Receiver, world: World) -> None:
    # Given a user of whom all that was known has expired, though it is not deleted yet
    for starts in (True, False, True):
        receiver.push(stream("audio", starts=starts), user_id="teacher")
        world.clock.seconds += 1
    world.clock.seconds += STATE_LIFE_SECONDS
    # When the room ends, and an older event arrives after that
    assert receiver.push("RoomDestroy", user_id=None)
    assert receiver.push(stream("video", starts=True), ago_ms=1000, user_id="teacher")
    # Then all is off
    assert values(world) == (OFF, False)


def test_the_end_of_a_large_room_goes_on_with_the_next_try(receiver: Receiver, world: World) -> None:
    # Given a room that takes longer than there is time for
    users = fill(receiver, 95)
    event = pushed("RoomDestroy", receiver.now_ms, user_id=None)
    for operation in ("put_item", "update_item"):
        world.dynamodb.effects[operation] = repeat(lambda parameters: world.clock.sleep(0.1))
    # When the vendor tries again
    tries = [receiver.take(event, seconds=4.5)]
    done_first = len(world.queue.messages)
    while not tries[-1]:
        tries.append(receiver.take(event, seconds=4.5))
    # Then each try goes on where the one before ended, and each user is told of once
    assert 0 < done_first < len(users)
    assert 2 < len(tries) < 10
    assert world.queue.users() == [user.user_id for user in users]
    # And the next try finds nothing to do
    assert receiver.take(event)
    assert len(world.queue.messages) == len(users)


def test_a_try_without_time_still_gets_on(receiver: Receiver, world: World) -> None:
    fill(receiver, 25)
    event = pushed("RoomDestroy", receiver.now_ms, user_id=None)

    assert [receiver.take(event, seconds=-1) for _ in range(3)] == [False, False, True]


def test_the_end_of_a_room_tells_again_of_users_whose_message_was_not_sent(receiver: Receiver, world: World) -> None:
    users = fill(receiver, 25)
    event = pushed("RoomDestroy", receiver.now_ms, user_id=None)
    world.queue.refuses = lambda message: message["user_id"] == users[3].user_id
    with pytest.raises(DeliveryFailed):
        receiver.take(event)
    world.queue.refuses = lambda message: False

    assert receiver.take(event)
    assert world.queue.users() == [user.user_id for user in users]


def test_what_comes_after_the_end_of_a_room_but_happened_before_does_not_turn_anyone_on(
    receiver: Receiver, world: World
) -> None:
    # Given the end of a room of which nothing was known
    receiver.push("RoomDestroy", user_id=None)
    # When older news of its users comes
    receiver.push(AUDIO, ago_ms=1000)
    world.table.observe(StreamState(targets(1)[0], query_facts(media("audio"), receiver.now_ms - 1000), "query"))
    # Then they are off
    assert values(world) == (OFF, False)
    assert values(world, targets(1)[0]) == (OFF, False)
    assert world.table.room(APP_ID, "class-1", None).entries[-1].target == targets(1)[0]
    # And who starts in a room of the same name later is on
    world.clock.seconds += 1
    receiver.push(AUDIO, user_id="later")
    assert values(world, Target(APP_ID, "class-1", "later")) == ({**OFF, "audio": True}, True)


# Watching who is there


def test_who_joins_is_watched_and_who_leaves_is_not(world: World) -> None:
    receiver = Receiver(world, auto_watch=True)
    receiver.push("UserJoinRoom")
    receiver.push("InvisibleUserJoinRoom", user_id="guest")
    receiver.push("UserJoinRoom", user_id="student")
    assert len(world.watch_list.page(None).entries) == 3
    world.clock.seconds += 1

    receiver.push("UserLeaveRoom")
    assert [watch.target.user_id for watch in world.watch_list.page(None).entries] == ["guest", "student"]
    receiver.push("RoomDestroy", user_id=None)
    assert world.watch_list.page(None).entries == []


def test_the_order_in_which_join_and_leave_come_does_not_matter(world: World) -> None:
    receiver = Receiver(world, auto_watch=True)
    receiver.push("UserLeaveRoom", user_id="gone")
    receiver.push("UserJoinRoom", ago_ms=1000, user_id="gone")
    receiver.push("UserJoinRoom", user_id="back")
    receiver.push("UserLeaveRoom", ago_ms=1000, user_id="back")

    assert [watch.target.user_id for watch in world.watch_list.page(None).entries] == ["back"]


@pytest.mark.parametrize("kind", [AUDIO, "UserAudioStreamStop"])
def test_streams_do_not_watch(world: World, kind: str) -> None:
    Receiver(world, auto_watch=True).push(kind)
    assert world.watch_list.page(None).entries == []


def test_without_auto_watch_nothing_is_watched(receiver: Receiver, world: World) -> None:
    receiver.push("UserJoinRoom")
    receiver.push("UserLeaveRoom", ago_ms=1)
    assert {"batch_write_item", "delete_item"}.isdisjoint(name for name, _ in world.dynamodb.made)


def test_a_watch_that_cannot_be_written_has_the_event_come_again(world: World) -> None:
    receiver = Receiver(world, auto_watch=True)
    event = pushed("UserJoinRoom", receiver.now_ms)
    world.dynamodb.effects["batch_write_item"] = iter([aws_error("InternalServerError")])
    with pytest.raises(StateUnavailable):
        receiver.take(event)

    assert receiver.take(event)
    assert len(world.watch_list.page(None).entries) == len(world.queue.messages) == 1
