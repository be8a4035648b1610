"""The reading of the vendor's answer: nothing that it does not say plainly ever becomes False."""

import io
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_state.adapters import vendor_answers
from stream_state.adapters.vendor_answers import VendorResponse, read_answer
from stream_state.domain.observations import QueryResult
from stream_state.domain.targets import Medium, Target
from stream_state.errors import RtcProtocolError, RtcThrottled, StreamStateError, TargetNotFound

MEDIA = {"Audio": "audio", "Video": "video", "ScreenAudio": "screen_audio", "ScreenVideo": "screen_video"}
IDS = {"RoomId": "class-1", "UserId": "teacher"}
METADATA = {"RequestId": "20261123AB", "Action": "GetUserStreamState", "Version": "2020-12-01", "Service": "rtc"}
# 2026-11-23T03:04:05.678Z
SENT_AT_MS = 1_795_403_045_678
UNKNOWN = dict.fromkeys(MEDIA.values())


def entries(**states: object) -> list[dict[str, object]]:
    return [{"MediaType": name, "State": state} for name, state in states.items()]


ALL_OFF = entries(Audio=0, Video=0, ScreenAudio=0, ScreenVideo=0)
ONE_ON = entries(Audio=1, Video=0, ScreenAudio=0, ScreenVideo=0)
ONE_ON_READ = {"audio": True, "video": False, "screen_audio": False, "screen_video": False}
GOOD_RESULT = {**IDS, "StreamStates": ALL_OFF}
NO_STATES: list[Any] = [None, False, True, 0.0, 1.0, "0", "1", "", 2, -1, [], [0], {}, 10**30]
NO_RESULTS: list[Any] = [None, "", "User not found.", [], [GOOD_RESULT], 0, True, {}]
NO_METADATA: list[Any] = [None, [], "text", 1]
NO_ERRORS: list[Any] = [{}, "text", [], 0, False, {"Code": ["InternalError"]}]


def envelope(result: object, **metadata: object) -> dict[str, Any]:
    return {"ResponseMetadata": {**METADATA, **metadata}, "Result": result}


GOOD = json.dumps(envelope(GOOD_RESULT))


def read(body: Any, status: int = 200, **headers: str) -> QueryResult:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = read_answer(SENT_AT_MS, VendorResponse(status, names, data), ("secret",))
    return vendor_answers.read_states(Target("app-1", "class-1", "teacher"), answer)


def read_states(stream_states: object) -> QueryResult:
    return read(envelope({**IDS, "StreamStates": stream_states}))


@pytest.mark.parametrize(
    ("stream_states", "media"),
    [
        (ONE_ON, ONE_ON_READ),
        (ALL_OFF, dict.fromkeys(UNKNOWN, False)),
        (ONE_ON[::-1] + ONE_ON, ONE_ON_READ),
    ],
    ids=["one on", "all off", "each twice"],
)
def test_each_medium_is_read_as_of_the_time_of_the_call(
    stream_states: object, media: object, logs: io.StringIO
) -> None:
    assert read_states(stream_states) == QueryResult(media, SENT_AT_MS, "20261123AB")  # type: ignore[arg-type]
    assert logs.getvalue() == ""


@pytest.mark.parametrize(
    "odd",
    [
        *(entries(Audio=0) + entries(Audio=other) for other in (1, None, False)),
        *(entries(Audio=state) for state in NO_STATES),
        [{"MediaType": "Audio"}],
        [{"mediatype": "Audio", "State": 0}],
        *([{"MediaType": name, "State": 0}] for name in ("audio", None, ["Audio"], "Whiteboard")),
        [{"State": 0}],
        [None, 0, "Audio", [], ["Audio", 0]],
        *(None, {}, {"Audio": 0}, "Audio", 0, False, []),
    ],
    ids=repr,
)
def test_an_odd_or_missing_state_is_not_known_and_logged(odd: object, logs: io.StringIO) -> None:
    assert read_states(odd).media == UNKNOWN

    (line,) = [json.loads(text) for text in logs.getvalue().splitlines()]
    assert (line["level"], line["room_id"], line["rtc_request_id"]) == ("WARNING", "class-1", "20261123AB")
    assert "audio is not 0 or 1" in line["odd"]


def test_a_new_medium_is_ignored_and_logged_without_its_name(logs: io.StringIO) -> None:
    assert read_states([*ONE_ON, *entries(Whiteboard=1)]).media == ONE_ON_READ
    assert "no MediaType that this project knows" in logs.getvalue()
    assert "Whiteboard" not in logs.getvalue()


@pytest.mark.parametrize(
    ("status", "body"),
    [
        *((200, envelope(result)) for result in NO_RESULTS),
        *((200, envelope(GOOD_RESULT | {name: other})) for name in IDS for other in ("x", "", None, 7, ["teacher"])),
        (200, envelope(GOOD_RESULT | {"UserId": "Teacher"})),
        *((200, envelope({name: GOOD_RESULT[name] for name in GOOD_RESULT if name != missing})) for missing in IDS),
        *((200, {"ResponseMetadata": metadata, "Result": GOOD_RESULT}) for metadata in NO_METADATA),
        (200, {"ResponseMetadata": None, "Result": "User is not found."}),
        (200, {"Result": GOOD_RESULT}),
        (200, {"ResponseMetadata": METADATA}),
        *((200, envelope(GOOD_RESULT, Error=error)) for error in NO_ERRORS),
        *((status, envelope(GOOD_RESULT)) for status in (201, 206, 301, 302, 400, 404)),
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
def test_an_answer_that_is_not_understood_is_an_error(status: int, body: Any) -> None:
    with pytest.raises(RtcProtocolError):
        read(body, status)


def test_an_error_that_is_null_is_none() -> None:
    assert read(envelope(GOOD_RESULT, Error=None)).media == dict.fromkeys(UNKNOWN, False)


@pytest.mark.parametrize("request_id", [None, 7, "", "two words", ["a"], "a-secret"])
def test_a_request_id_that_is_no_name_is_left_out(request_id: object) -> None:
    assert read(envelope(GOOD_RESULT, RequestId=request_id)).rtc_request_id is None


@pytest.mark.parametrize(
    "body",
    [
        envelope("User is not found."),
        envelope("Room is not found."),
        envelope({}, Error={"CodeN": 0, "Code": "InternalError.RoomNotFound"}),
        envelope({}, Error={"Code": "UserNotExist", "Message": "x"}),
    ],
)
@pytest.mark.parametrize("status", [200, 400, 404, 500])
def test_a_target_that_the_vendor_does_not_know_is_not_found(body: object, status: int) -> None:
    with pytest.raises(TargetNotFound) as raised:
        read(body, status)

    assert (raised.value.rtc_request_id, raised.value.observed_at_ms) == ("20261123AB", SENT_AT_MS)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("60", 60),
        ("0", 0),
        ("9" * 400, 3600),
        ("Mon, 23 Nov 2026 03:04:08 GMT", pytest.approx(2.322)),
        ("Tue, 24 Nov 2026 03:04:05 GMT", 3600),
        ("Sun, 22 Nov 2026 03:04:05 GMT", 0),
        *((header, None) for header in ("", "soon", "-1", "1.5", "²", "Mon, 99 Nov 2026 03:04:05 GMT")),
        ("Mon, 23 Nov 99999999999999999999 03:04:05 GMT", None),
        ("Mon, 23 Nov 2026 03:04:05 +99999999999999999999", None),
        ("Mon, 23 Nov 2026 03:04:05 +9999", None),
    ],
)
def test_any_retry_after_is_read_bounded_or_ignored(header: str, seconds: object) -> None:
    with pytest.raises(RtcThrottled) as raised:
        read(envelope({}, Error={"Code": "FlowLimitExceeded"}), 429, Retry_After=header)

    assert raised.value.retry_after_seconds == seconds


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
@given(body=likely_results.map(envelope) | odd_envelopes | json_values, status=st.sampled_from([200, 200, 400, 500]))
def test_no_medium_is_off_unless_the_vendor_said_so(body: Any, status: int) -> None:
    try:
        media = read(body, status).media
    except StreamStateError:
        return

    states = body["Result"].get("StreamStates")
    for name, medium in MEDIA.items():
        said = [
            entry.get("State")
            for entry in (states if isinstance(states, list) else [])
            if isinstance(entry, dict) and entry.get("MediaType") == name
        ]
        is_plain = said and all(type(value) is int and value == said[0] in (0, 1) for value in said)
        assert media[Medium(medium)] is (bool(said[0]) if is_plain else None)
