"""Wait conditions: what holds, which are refused, and the error after the deadline."""

import re

import pytest

from stream_state.domain.observations import Observations
from stream_state.domain.waits import WaitCondition
from stream_state.errors import InvalidRequest, StreamStateTimeout
from tests.unit.observed import NOW_MS, query, record_of, start, stop

UNTIL = {"publishing": True, "started_at": "2026-11-23T03:04:05.678Z", "timeout_seconds": 600}
VIDEO_OFF = {"medium": "video", "publishing": False}


@pytest.mark.parametrize(
    ("more", "observations", "holds"),
    [
        ({}, query(NOW_MS, video=True), True),
        ({}, query(NOW_MS), False),
        ({}, {}, False),
        ({"publishing": False}, query(NOW_MS, video=None), False),
        ({"medium": "video"}, start(NOW_MS), True),
        ({"medium": "video"}, query(NOW_MS, audio=True), False),
        (VIDEO_OFF, query(NOW_MS, video=None), False),
        (VIDEO_OFF, stop(NOW_MS), True),
        (VIDEO_OFF, {}, False),
        ({"publishing": False}, query(NOW_MS), True),
    ],
)
def test_a_condition_holds_only_if_its_value_is_known(
    more: dict[str, object], observations: Observations, holds: object
) -> None:
    assert WaitCondition.parse({**UNTIL, **more}).holds(record_of(observations).state) is holds


@pytest.mark.parametrize(
    ("more", "deadline"),
    [
        ({}, 1_795_403_645.678),
        ({"timeout_seconds": 600.0}, 1_795_403_645.678),
        ({"started_at": "2026-11-23T11:04:05.678+08:00"}, 1_795_403_645.678),
        ({"timeout_seconds": 2_000, "interval_seconds": 1}, 1_795_405_045.678),
        ({"started_at": "0001-01-01T00:00:00+14:00"}, -62_135_646_600),
    ],
)
def test_the_deadline_is_the_time_to_wait_after_the_start(more: dict[str, object], deadline: float) -> None:
    assert WaitCondition.parse({**UNTIL, **more}).deadline == deadline


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        ({"medium": "sound"}, "until.medium must be one of audio, video, screen_audio, screen_video."),
        ({"medium": None}, "until.medium must be one of"),
        ({"publishing": 1}, "until.publishing must be true or false."),
        ({"timeout_seconds": 0}, "until.timeout_seconds must be a whole number from 1 to"),
        ({"timeout_seconds": 1.5}, "until.timeout_seconds must be a whole number from 1 to"),
        ({"timeout_seconds": 10**12}, "until.timeout_seconds must be a whole number from 1 to"),
        ({"interval_seconds": 0}, "until.interval_seconds must be a whole number from 1 to"),
        ({"interval_seconds": 3_601}, "until.interval_seconds must be a whole number from 1 to"),
        ({"timeout_seconds": 2_001, "interval_seconds": 1}, "until.interval_seconds must be longer: timeout_seconds"),
        ({"started_at": "2026-11-23T03:04:05"}, "until.started_at must be an ISO 8601 time with its zone"),
        ({"started_at": "soon"}, "until.started_at must be an ISO 8601 time with its zone"),
        ({"started_at": None}, "until.started_at must be an ISO 8601 time with its zone"),
        ({"often": 1}, "until has a field ('often')"),
    ],
)
def test_a_condition_that_breaks_a_rule_is_refused(more: dict[str, object], complaint: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^{re.escape(complaint)}"):
        WaitCondition.parse({**UNTIL, **more})
    with pytest.raises(InvalidRequest, match=r"^until must be an object\."):
        WaitCondition.parse([UNTIL])


def test_a_wait_past_its_deadline_names_its_condition() -> None:
    errors = [WaitCondition.parse({**UNTIL, **more}).timeout() for more in ({}, VIDEO_OFF)]

    assert [type(error) for error in errors] == [StreamStateTimeout] * 2
    assert ["any medium on" in str(errors[0]), "video off" in str(errors[1])] == [True, True]
