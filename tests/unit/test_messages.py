"""The answer and the messages: what they say, their ids, and the schemas in docs."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from stream_state.domain.documents import Answer, iso_time, problem_message
from stream_state.domain.merging import StateRecord
from stream_state.domain.states import State, Value
from stream_state.domain.targets import Medium
from stream_state.errors import QuotaExceeded
from tests.unit.observed import NOW_MS, TARGET, audio, join, query, record_of, stop

type Values = Mapping[str, bool | None]
Conforms = Callable[[str, Any], None]

NOW = "2026-11-23T03:04:05.678Z"
OFF = dict.fromkeys(("audio", "video", "screen_audio", "screen_video"), False)
MAYBE = st.none() | st.booleans()
VALUE = st.builds(
    lambda value, at_ms: Value(value, None if value is None else at_ms), MAYBE, st.integers(0, 4 * 10**12)
)
STATES = st.builds(State, st.fixed_dictionaries(dict.fromkeys(Medium, VALUE)), VALUE)


def test_an_answer_gives_each_value_with_its_time(conforms: Conforms) -> None:
    record = record_of(join(NOW_MS - 9_000), audio(NOW_MS), stop(NOW_MS - 1_000))

    answer = Answer(record).document()

    conforms("answer", answer)
    assert answer == {
        "type": "stream_state",
        "app_id": "app-1",
        "room_id": "class-1",
        "user_id": "teacher",
        "publishing": True,
        "present": True,
        "media": {"audio": True, "video": False, "screen_audio": None, "screen_video": None},
        "media_observed_at": {
            "audio": NOW,
            "video": "2026-11-23T03:04:04.678Z",
            "screen_audio": None,
            "screen_video": None,
        },
        "observed_at": "2026-11-23T03:04:04.678Z",
        "source": "table",
        "rtc_request_id": None,
    }


@given(st.integers(0, 4_102_444_800_000))
def test_a_time_is_in_utc_to_the_millisecond(at_ms: int) -> None:
    text = iso_time(at_ms)

    assert text is not None
    assert round(datetime.fromisoformat(text).timestamp() * 1000) == at_ms
    assert (len(text), text[-1]) == (24, "Z")
    assert iso_time(None) is None


@given(STATES, st.none() | st.fixed_dictionaries(dict.fromkeys([*OFF, "present"], MAYBE)))
def test_any_state_keeps_the_schemas(conforms: Conforms, state: State, delivered: Values) -> None:
    record = replace(record_of(query(NOW_MS, video=None)), delivered=delivered)
    shown = replace(record)
    vars(shown)["state"] = state
    answer = Answer(shown, "query", "request-1").document()

    conforms("answer", answer)
    conforms("message", Answer(record, "table").message())
    media, times = [*answer["media"].values()], [at for at in answer["media_observed_at"].values() if at]
    assert answer["publishing"] is (True if True in media else None if None in media else False)
    assert times == [] or answer["observed_at"] == min(times)


def test_a_first_message_names_all_that_is_known_as_changed(conforms: Conforms) -> None:
    record = record_of(query(NOW_MS, audio=True, screen_video=None))

    message = Answer(record, "query", "request-1").message()

    conforms("message", message)
    assert message["changed"] == ["audio", "video", "screen_audio", "present"]
    assert (message["previous"], message["version"], message["sequence"]) == (None, "1", NOW_MS)
    assert (message["source"], message["rtc_request_id"]) == ("query", "request-1")


def test_a_later_message_names_the_differences_from_the_last_one_delivered(conforms: Conforms) -> None:
    last = {"audio": True, "video": False, "screen_audio": False, "screen_video": None, "present": True}
    # Given two changes since the last delivery, of which the second took the first one back in part
    record = record_of(query(NOW_MS, video=True)).with_delivery(last, NOW_MS - 10)
    record = record.merged(query(NOW_MS + 1), NOW_MS).after

    message = Answer(record, "callback").message()

    conforms("message", message)
    assert message["changed"] == ["audio", "screen_video", "present"]
    assert message["previous"] == {"audio": True, "video": False, "screen_audio": False, "screen_video": None}


def test_a_change_has_one_id_and_another_change_another() -> None:
    def message_id(at_ms: int, sequence: int, delivered_sequence: int) -> str:
        record = StateRecord(TARGET, query(at_ms), sequence, {**OFF, "present": None}, delivered_sequence)
        return str(Answer(record, "query").message()["id"])

    # A change has its id by the sequence, a state that was delivered before also by its time.
    assert message_id(5, 2, 1) == message_id(6, 2, 1)
    assert len({message_id(5, 2, 1), message_id(5, 3, 1), message_id(5, 2, 2), message_id(6, 2, 2)}) == 4


def test_a_problem_names_its_target(conforms: Conforms) -> None:
    error = QuotaExceeded("Later.", retry_after_seconds=1)

    message = problem_message(TARGET, error, NOW_MS)

    conforms("message", message)
    assert message["problem"] == error.problem()
    assert (message["type"], message["room_id"], message["version"]) == ("stream_state_problem", "class-1", "1")
    assert message["id"] != problem_message(TARGET, error, NOW_MS + 1)["id"]
