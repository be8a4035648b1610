"""What of the known state is news, how a message tells it, and what a workflow waits for."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_state.errors import InvalidTarget, StreamStateTimeout
from stream_state.model import PRESENT, Fact, Known, Medium, StreamState, Target, Until

TARGET = Target("app-1", "class-1", "teacher")
NOW_MS = 1_795_403_045_678
NAMES = [*(medium.value for medium in Medium), PRESENT]
OFF = dict.fromkeys(NAMES[:4], False)
Conforms = Callable[[str, Any], None]

values = st.none() | st.booleans()
observations = st.dictionaries(st.sampled_from(NAMES), st.builds(Fact, values, st.integers(NOW_MS, NOW_MS + 3)))


def told_at(at_ms: int, **facts: bool | None) -> dict[str, Fact]:
    return {name: Fact(value, at_ms) for name, value in facts.items()}


def merged(*several: Mapping[str, Fact]) -> Known:
    known = Known(TARGET)
    for facts in several:
        known = known.merged(facts, NOW_MS)
    return known


def test_a_later_time_alone_is_kept_and_is_no_news() -> None:
    first = merged(told_at(NOW_MS, **OFF))
    told = Known(TARGET, first.facts, first.sequence, first.state().values, first.sequence, first.revision)

    again = told.merged(told_at(NOW_MS + 5, **OFF), NOW_MS + 5)

    assert again.state().observed_at_ms == NOW_MS + 5
    assert (again.is_news, again.sequence, again.revision) == (False, first.sequence, 2)


def test_a_first_message_tells_all_that_is_known(conforms: Conforms) -> None:
    known = merged(told_at(NOW_MS, audio=True, video=False, screen_audio=False))

    message = known.message("query", "request-1")

    conforms("message", message)
    assert known.is_news
    assert message["changed"] == ["audio", "video", "screen_audio", "present"]
    assert (message["previous"], message["version"], message["sequence"]) == (None, "1", NOW_MS)
    assert (message["source"], message["rtc_request_id"]) == ("query", "request-1")


def test_a_later_message_tells_what_differs_from_the_last_one_told(conforms: Conforms) -> None:
    told = {"audio": True, "video": False, "screen_audio": False, "screen_video": None, "present": True}
    known = Known(TARGET, told_at(NOW_MS, **OFF), sequence=12, told=told, told_sequence=10)

    message = known.message("callback", None)

    conforms("message", message)
    assert message["changed"] == ["audio", "screen_video", "present"]
    assert message["previous"] == {"audio": True, "video": False, "screen_audio": False, "screen_video": None}


def test_the_same_news_has_the_same_id_and_other_news_another() -> None:
    def message_id(at_ms: int, sequence: int, told_sequence: int) -> str:
        known = Known(TARGET, told_at(at_ms, **OFF), sequence, {**OFF, "present": None}, told_sequence)
        return str(known.message("query", None)["id"])

    news = [message_id(at_ms, sequence, 1) for at_ms in (NOW_MS, NOW_MS + 1) for sequence in (2, 3)]
    nothing_new = [message_id(at_ms, 2, 2) for at_ms in (NOW_MS, NOW_MS, NOW_MS + 1)]

    assert news[0] == news[2] != news[1] == news[3]
    assert nothing_new[0] == nothing_new[1] != nothing_new[2]
    assert news[0] not in nothing_new


@given(st.lists(observations, min_size=1, max_size=4), st.none() | st.fixed_dictionaries(dict.fromkeys(NAMES, values)))
def test_any_message_keeps_the_schema(
    conforms: Conforms, observed: list[dict[str, Fact]], told: dict[str, bool | None] | None
) -> None:
    known = merged(*observed)

    conforms("message", Known(TARGET, known.facts, known.sequence, told, 0, known.revision).message("table", None))


@pytest.mark.parametrize(
    ("oldest_ms", "facts", "whole"),
    [
        (NOW_MS, told_at(NOW_MS, **OFF), True),
        (NOW_MS + 0.5, told_at(NOW_MS, **OFF), False),
        (NOW_MS, told_at(NOW_MS, **{**OFF, "video": None}), False),
        (NOW_MS, told_at(NOW_MS, audio=True, video=True, screen_audio=True), False),
        (NOW_MS, {**told_at(NOW_MS, **OFF), "audio": Fact(value=True, at_ms=NOW_MS - 1)}, False),
        (0, {}, False),
    ],
)
def test_a_state_serves_an_age_only_if_all_four_media_are_known_and_fresh(
    oldest_ms: float, facts: dict[str, Fact], whole: object
) -> None:
    assert StreamState(TARGET, facts, "table").is_whole_since(oldest_ms) is whole


UNTIL = {"publishing": True, "started_at": "2026-11-23T03:04:05.678Z", "timeout_seconds": 600}


@pytest.mark.parametrize(
    ("more", "state", "holds"),
    [
        ({}, {**OFF, "video": True}, True),
        ({}, OFF, False),
        ({}, {}, False),
        ({"publishing": False}, OFF, True),
        ({"publishing": False}, {**OFF, "video": None}, False),
        ({"medium": "video"}, {"video": True}, True),
        ({"medium": "video"}, {**OFF, "audio": True}, False),
        ({"medium": "video", "publishing": False}, {"video": None}, False),
        ({"medium": "video", "publishing": False}, {"video": False}, True),
        ({"medium": "screen_audio", "publishing": False}, {}, False),
    ],
)
def test_what_is_waited_for_holds_only_if_it_is_known(
    more: dict[str, object], state: dict[str, bool | None], holds: object
) -> None:
    until = Until.parse({**UNTIL, **more})

    assert until.ends_at == NOW_MS / 1000 + 600
    assert until.holds(StreamState(TARGET, told_at(NOW_MS, **state), "query")) is holds


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        ({"medium": "sound"}, "until.medium must be one of audio, video, screen_audio, screen_video."),
        ({"medium": ["video"]}, "until.medium must be one of"),
        ({"medium": "present"}, "until.medium must be one of"),
        ({"publishing": None}, "until.publishing must be true or false."),
        ({"publishing": 1}, "until.publishing must be true or false."),
        ({"timeout_seconds": 0}, "until.timeout_seconds must be a whole number from 1 to"),
        ({"timeout_seconds": 1.5}, "until.timeout_seconds must be a whole number from 1 to"),
        ({"timeout_seconds": None}, "until.timeout_seconds must be a whole number from 1 to"),
        ({"timeout_seconds": 10**12}, "until.timeout_seconds must be a whole number from 1 to"),
        ({"started_at": "2026-11-23T03:04:05"}, "until.started_at must be an ISO 8601 time with its zone"),
        ({"started_at": "soon"}, "until.started_at must be an ISO 8601 time with its zone"),
        ({"started_at": 1_795_403_045}, "until.started_at must be an ISO 8601 time with its zone"),
        ({"started_at": None}, "until.started_at must be an ISO 8601 time with its zone"),
        ({"often": 1}, "until has a member ('often')"),
    ],
)
def test_a_condition_that_breaks_a_rule_is_refused(more: dict[str, object], complaint: str) -> None:
    with pytest.raises(InvalidTarget) as raised:
        Until.parse({**UNTIL, **more})

    assert str(raised.value).startswith(complaint)


@pytest.mark.parametrize("value", [None, [], "text", True])
def test_a_condition_that_is_no_object_is_refused(value: object) -> None:
    with pytest.raises(InvalidTarget, match=r"^until must be an object\."):
        Until.parse(value)


@pytest.mark.parametrize(
    ("more", "waited_for"),
    [({}, "any medium on"), ({"medium": "video", "publishing": False}, "video off")],
)
def test_a_wait_that_is_over_says_what_did_not_come(more: dict[str, object], waited_for: str) -> None:
    error = Until.parse({**UNTIL, **more}).timeout()

    assert isinstance(error, StreamStateTimeout)
    assert waited_for in str(error)
    assert Until.parse({**UNTIL, "started_at": "0001-01-01T00:00:00+14:00"}).ends_at < 0
