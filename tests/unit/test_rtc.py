"""What an answer of the vendor comes to: nothing that it does not say ever becomes False."""

import io
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_state.errors import RtcProtocolError, StreamStateError, TargetNotFound
from stream_state.model import Medium, StreamState, Target
from stream_state.rtc import MAX_BODY_BYTES, RtcClient
from stream_state.settings import Settings
from stream_state.signing import SigningKeys
from tests.sandbox.static_keys import StaticKeys
from tests.unit.fakes import Clock, FakeAdapter, FreeLimiter, Reply

DEADLINE = 1_010.0
MEDIA = {"Audio": "audio", "Video": "video", "ScreenAudio": "screen_audio", "ScreenVideo": "screen_video"}
IDS = {"RoomId": "class-1", "UserId": "teacher"}
METADATA = {"RequestId": "20261123AB", "Action": "GetUserStreamState", "Version": "2020-12-01", "Service": "rtc"}
SENT_AT = "2026-11-23T03:04:05.678Z"
UNKNOWN = dict.fromkeys(MEDIA.values())


def entries(**states: object) -> list[dict[str, object]]:
    return [{"MediaType": name, "State": state} for name, state in states.items()]


def success(stream_states: object) -> dict[str, Any]:
    return {"ResponseMetadata": METADATA, "Result": {**IDS, "StreamStates": stream_states}}


ALL_OFF = entries(Audio=0, Video=0, ScreenAudio=0, ScreenVideo=0)
ONE_ON = entries(Audio=1, Video=0, ScreenAudio=0, ScreenVideo=0)


def test_one_signed_get_asks_for_the_target(rtc: RtcClient, adapter: FakeAdapter, target: Target) -> None:
    adapter.answer(Reply(200, success(ALL_OFF)))

    rtc.stream_state(target, DEADLINE)

    (request,) = adapter.requests
    assert request.method == "GET"
    assert request.url == (
        "https://rtc.volcengineapi.com/?Action=GetUserStreamState&AppId=app-1&RoomId=class-1&UserId=teacher&Version=2020-12-01"
    )
    assert request.body is None
    assert request.headers["X-Date"] == "20261123T030405Z"
    assert request.headers["Authorization"].startswith(
        "HMAC-SHA256 Credential=unit-access-key/20261123/cn-north-1/rtc/request,"
        " SignedHeaders=host;x-content-sha256;x-date;x-security-token, Signature="
    )


@pytest.mark.parametrize(
    ("stream_states", "media", "publishing", "present"),
    [
        (ONE_ON, {"audio": True, "video": False, "screen_audio": False, "screen_video": False}, True, True),
        (ALL_OFF, dict.fromkeys(UNKNOWN, False), False, None),
        (entries(Video=1), {**UNKNOWN, "video": True}, True, True),
        (
            ONE_ON[::-1] + ONE_ON,
            {"audio": True, "video": False, "screen_audio": False, "screen_video": False},
            True,
            True,
        ),
    ],
)
def test_an_answer_tells_what_the_vendor_said_as_of_when_it_was_asked(
    rtc: RtcClient,
    adapter: FakeAdapter,
    clock: Clock,
    target: Target,
    conforms: Callable[[str, Any], None],
    stream_states: object,
    media: dict[str, bool | None],
    publishing: object,
    present: object,
) -> None:
    def later() -> Reply:
        clock.seconds += 1
        return Reply(200, success(stream_states))

    adapter.answer(later)

    answer = rtc.stream_state(target, DEADLINE).answer()

    conforms("answer", answer)
    assert (answer["media"], answer["publishing"], answer["present"]) == (media, publishing, present)
    assert {at for at in answer["media_observed_at"].values() if at} == {SENT_AT}
    assert (answer["source"], answer["rtc_request_id"], answer["observed_at"]) == ("query", "20261123AB", SENT_AT)


@pytest.mark.parametrize(
    "odd",
    [
        pytest.param(odd, id=repr(odd))
        for odd in (
            [entries(Audio=state)[0] for state in (0, 1)],
            [entries(Audio=state)[0] for state in (0, None)],
            [entries(Audio=state)[0] for state in (0, False)],
            *(
                entries(Audio=state)
                for state in (None, False, True, 0.0, 1.0, "0", "1", "", 2, -1, [], [0], {}, 10**30)
            ),
            [{"MediaType": "Audio"}],
            [{"mediatype": "Audio", "State": 0}],
            [{"MediaType": "audio", "State": 0}],
            [{"State": 0}],
            [{"MediaType": None, "State": 0}],
            [{"MediaType": ["Audio"], "State": 0}],
            [{"MediaType": "Whiteboard", "State": 0}],
            [None, 0, "Audio", [], ["Audio", 0]],
            None,
            {},
            {"Audio": 0},
            "Audio",
            0,
            False,
            [],
        )
    ],
)
def test_what_is_told_oddly_or_not_at_all_is_not_known_and_logged(
    rtc: RtcClient, adapter: FakeAdapter, target: Target, logs: io.StringIO, odd: object
) -> None:
    adapter.answer(Reply(200, success(odd)))

    state = rtc.stream_state(target, DEADLINE)

    assert state.answer()["media"] == UNKNOWN
    assert (state.publishing, state.answer()["present"], state.answer()["observed_at"]) == (None, None, None)
    (line,) = [json.loads(text) for text in logs.getvalue().splitlines()]
    assert (line["level"], line["room_id"], line["rtc_request_id"]) == ("WARNING", "class-1", "20261123AB")
    assert "audio is not told as 0 or 1" in line["odd"]


def test_a_new_medium_is_ignored_and_logged(
    rtc: RtcClient, adapter: FakeAdapter, target: Target, logs: io.StringIO
) -> None:
    adapter.answer(Reply(200, success([*ALL_OFF, *entries(Whiteboard=1)])))

    assert rtc.stream_state(target, DEADLINE).publishing is False
    assert "MediaType that is not known" in logs.getvalue()
    assert "Whiteboard" not in logs.getvalue()


def test_nothing_is_logged_where_nothing_is_odd(
    rtc: RtcClient, adapter: FakeAdapter, target: Target, logs: io.StringIO
) -> None:
    adapter.answer(Reply(200, success(ONE_ON)))

    rtc.stream_state(target, DEADLINE)

    assert logs.getvalue() == ""


def with_result(result: object) -> dict[str, Any]:
    return {"ResponseMetadata": METADATA, "Result": result}


GOOD_RESULT = {**IDS, "StreamStates": ALL_OFF}
GOOD = json.dumps(with_result(GOOD_RESULT))


@pytest.mark.parametrize(
    ("status", "body"),
    [
        *((200, with_result(result)) for result in (None, "", "text", [], [GOOD_RESULT], 0, True, {})),
        *(
            (200, with_result({**GOOD_RESULT, name: other}))
            for name in IDS
            for other in ("x", "", None, 7, ["teacher"])
        ),
        (200, with_result({**GOOD_RESULT, "UserId": "Teacher"})),
        *((200, with_result({name: GOOD_RESULT[name] for name in GOOD_RESULT if name != missing})) for missing in IDS),
        *((200, {"ResponseMetadata": metadata, "Result": GOOD_RESULT}) for metadata in (None, [], "text", 1)),
        (200, {"Result": GOOD_RESULT}),
        (200, {"ResponseMetadata": METADATA}),
        *(
            (200, {**with_result(GOOD_RESULT), "ResponseMetadata": {"Error": error}})
            for error in ({}, "text", [], 0, False)
        ),
        (200, {**with_result(GOOD_RESULT), "ResponseMetadata": {"Error": {"Code": ["InternalError"]}}}),
        *((status, with_result(GOOD_RESULT)) for status in (201, 206, 301, 302, 400, 404)),
        *((status, b"") for status in (204, 304)),
        *((200, body) for body in (b"", b"null", b"[]", b'"text"', b"<html>", b"\xff", GOOD.encode()[:-1])),
        (200, GOOD.replace('"State": 0', '"State": NaN').encode()),
        (200, GOOD.replace('"State": 0', '"State": 1, "State": 0').encode()),
        (200, GOOD.replace('"Result"', '"Result": {}, "Result"').encode()),
        (200, b'{"a":' * 100_000),
        (200, GOOD.replace("class-1", '"' + "[" * 100_000).encode()),
        (200, GOOD.encode("utf-16")[:-1]),
    ],
)
def test_an_answer_that_is_not_understood_is_an_error(
    rtc: RtcClient, adapter: FakeAdapter, target: Target, status: int, body: Any
) -> None:
    adapter.answer(Reply(status, body))

    with pytest.raises(RtcProtocolError):
        rtc.stream_state(target, DEADLINE)

    assert len(adapter.requests) == 1


def test_an_error_that_is_null_is_none(rtc: RtcClient, adapter: FakeAdapter, target: Target) -> None:
    adapter.answer(Reply(200, {**success(ALL_OFF), "ResponseMetadata": {**METADATA, "Error": None}}))

    assert rtc.stream_state(target, DEADLINE).publishing is False


@pytest.mark.parametrize("request_id", [None, 7, "", "two words", ["a"]])
def test_a_request_id_that_is_no_name_is_left_out(
    rtc: RtcClient, adapter: FakeAdapter, target: Target, request_id: object
) -> None:
    adapter.answer(Reply(200, {**success(ALL_OFF), "ResponseMetadata": {"RequestId": request_id}}))

    assert rtc.stream_state(target, DEADLINE).rtc_request_id is None


@pytest.mark.parametrize(("size", "understood"), [(MAX_BODY_BYTES, True), (MAX_BODY_BYTES + 1, False)])
def test_an_answer_may_have_one_mebibyte(
    rtc: RtcClient, adapter: FakeAdapter, target: Target, size: int, understood: object
) -> None:
    adapter.answer(Reply(200, GOOD.encode().ljust(size)))

    if understood:
        assert rtc.stream_state(target, DEADLINE).publishing is False
    else:
        with pytest.raises(RtcProtocolError, match="larger than 1048576 bytes"):
            rtc.stream_state(target, DEADLINE)


@pytest.mark.parametrize(
    "body",
    [
        with_result("User is not found."),
        with_result("Room is not found."),
        {"ResponseMetadata": {**METADATA, "Error": {"CodeN": 0, "Code": "InternalError.RoomNotFound"}}, "Result": {}},
        {"ResponseMetadata": {**METADATA, "Error": {"Code": "UserNotExist", "Message": "x"}}},
    ],
)
@pytest.mark.parametrize("status", [200, 400, 404, 500])
def test_a_target_that_the_vendor_does_not_know_is_not_found(
    rtc: RtcClient, adapter: FakeAdapter, target: Target, body: dict[str, Any], status: int
) -> None:
    adapter.answer(Reply(status, body))

    with pytest.raises(TargetNotFound) as raised:
        rtc.stream_state(target, DEADLINE)

    assert raised.value.rtc_request_id == "20261123AB"
    assert raised.value.observed_at_ms == 1_795_403_045_678
    assert len(adapter.requests) == 1


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
odd_entries = st.fixed_dictionaries(
    {},
    optional={
        "MediaType": st.sampled_from([*MEDIA, "Whiteboard"]) | json_values,
        "State": st.sampled_from([0, 1]) | json_values,
    },
)
stream_states = st.lists(odd_entries | json_values, max_size=8) | json_values
odd_results = st.fixed_dictionaries(
    {}, optional={"RoomId": st.just("class-1"), "UserId": st.just("teacher"), "StreamStates": stream_states}
)
likely_results = stream_states.map(lambda states: {**IDS, "StreamStates": states})
odd_envelopes = st.fixed_dictionaries(
    {},
    optional={
        "ResponseMetadata": st.just(METADATA) | json_values,
        "Result": likely_results | odd_results | json_values,
    },
)


@settings(max_examples=300, deadline=None)
@given(
    envelope=likely_results.map(with_result) | odd_envelopes | json_values, status=st.sampled_from([200, 200, 400, 500])
)
def test_no_medium_is_off_unless_the_vendor_said_so(envelope: Any, status: int) -> None:
    adapter, clock = FakeAdapter(), Clock()
    adapter.answer(Reply(status, envelope))
    rtc = RtcClient(
        Settings.from_environment({"RTC_APP_IDS": "app-1"}),
        StaticKeys(SigningKeys("unit-access-key", "unit-secret-key")),
        FreeLimiter(),
        adapter=adapter,
        clock=clock.monotonic,
        wall_clock=clock.wall,
        sleep=clock.sleep,
    )

    try:
        state: StreamState | None = rtc.stream_state(Target("app-1", "class-1", "teacher"), DEADLINE)
    except StreamStateError:
        state = None

    if state is not None:
        told = envelope["Result"].get("StreamStates")
        for name, medium in MEDIA.items():
            said = (
                [entry.get("State") for entry in told if isinstance(entry, dict) and entry.get("MediaType") == name]
                if isinstance(told, list)
                else []
            )
            plain = bool(said) and all(type(value) is int for value in said)
            assert state.values[Medium(medium)] is (
                False if plain and set(said) == {0} else True if plain and set(said) == {1} else None
            )
