"""Targets from input, and the answers and messages that tell what is known."""

import hashlib
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_state.errors import InvalidTarget, QuotaExceeded
from stream_state.model import PRESENT, Fact, Medium, StreamState, Target, iso_time, parse_targets, problem_message

APP_IDS = ("app-1", "app-2")
TARGET = Target("app-1", "class-1", "teacher")
NAMED = {"room_id": "class-1", "user_id": "teacher"}
OFF = dict.fromkeys(("audio", "video", "screen_audio", "screen_video"), False)
AT_MS = 1_795_403_045_678
AT = "2026-11-23T03:04:05.678Z"
Conforms = Callable[[str, Any], None]


def state(at_ms: int = AT_MS, **values: bool | None) -> StreamState:
    return StreamState(TARGET, {name: Fact(value, at_ms) for name, value in values.items()}, "query", "request-1")


def test_the_first_app_id_is_meant_where_none_is_named() -> None:
    assert Target.parse(NAMED, APP_IDS) == TARGET
    assert Target.parse({**NAMED, "app_id": "app-2"}, APP_IDS) == Target("app-2", "class-1", "teacher")
    assert TARGET.as_dict() == {"app_id": "app-1", **NAMED}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"room_id": ""}, "room_id must have 1 to 128 characters, not 0."),
        ({"room_id": "r" * 129}, "room_id must have 1 to 128 characters, not 129."),
        ({"user_id": "a b"}, "user_id may hold A-Z a-z 0-9 @ . _ - only; position 2 holds another."),
        ({"user_id": "teacher\n"}, "user_id may hold A-Z a-z 0-9 @ . _ - only; position 8 holds another."),
        ({"user_id": "../x"}, "user_id may hold A-Z a-z 0-9 @ . _ - only; position 3 holds another."),
        ({"user_id": "密" * 200}, "user_id may hold A-Z a-z 0-9 @ . _ - only; position 1 holds another."),
        ({"user_id": "%2e"}, "user_id may hold A-Z a-z 0-9 @ . _ - only; position 1 holds another."),
        ({"user_id": "\ud800"}, "user_id may hold A-Z a-z 0-9 @ . _ - only; position 1 holds another."),
        ({"user_id": "\u0661"}, "user_id may hold A-Z a-z 0-9 @ . _ - only; position 1 holds another."),
        ({"room_id": None}, "room_id is missing."),
        ({"room_id": 7}, "room_id must be text."),
        ({"room_id": ["class-1"]}, "room_id must be text."),
        ({"room_id": {}}, "room_id must be text."),
        ({"room_id": True}, "room_id must be text."),
        ({"app_id": "app-3"}, "app_id is not one of the AppIds"),
        ({"app_id": None}, "app_id is not one of the AppIds"),
        ({"app_id": ["app-1"]}, "app_id is not one of the AppIds"),
        ({"app_id": ""}, "app_id is not one of the AppIds"),
        ({"roomid": "x"}, "the request has a member ('roomid') that is not one of app_id, room_id, user_id."),
        ({"\n" * 50: 1}, "the request has a member ('" + r"\n" * 18 + "...)"),
    ],
)
def test_a_target_that_breaks_a_rule_is_refused_by_place_and_rule(change: dict[str, object], complaint: str) -> None:
    with pytest.raises(InvalidTarget) as raised:
        Target.parse({**NAMED, **change}, APP_IDS)

    assert str(raised.value).startswith(complaint)


@pytest.mark.parametrize("missing", ["room_id", "user_id"])
def test_a_target_without_an_id_is_refused(missing: str) -> None:
    rest = {name: value for name, value in NAMED.items() if name != missing}

    with pytest.raises(InvalidTarget, match=f"^{missing} is missing"):
        Target.parse(rest, APP_IDS)


@pytest.mark.parametrize("value", [None, "text", 7, 1.5, True, [], [NAMED], b"bytes"])
def test_a_target_that_is_no_object_is_refused(value: object) -> None:
    with pytest.raises(InvalidTarget, match=r"^the request must be an object\."):
        Target.parse(value, APP_IDS)
    with pytest.raises(InvalidTarget, match=r"^targets\[0\] must be an object\."):
        Target.parse(value, APP_IDS, "targets[0]")


def test_a_target_may_stand_beside_other_members() -> None:
    assert Target.parse({**NAMED, "emit": "all"}, APP_IDS, more_keys={"emit"}) == TARGET


@pytest.mark.parametrize("value", [None, {}, "x", [], [NAMED] * 4])
def test_a_list_of_targets_has_one_to_the_most_entries(value: object) -> None:
    with pytest.raises(InvalidTarget, match=r"^targets must be a list of 1 to 3 objects"):
        parse_targets(value, APP_IDS, 3)


def test_the_first_bad_target_of_a_list_is_named_by_its_index() -> None:
    assert parse_targets([NAMED, {**NAMED, "app_id": "app-2"}], APP_IDS, 3)[0] == TARGET

    for bad, complaint in ((None, "must be an object"), ({**NAMED, "user_id": ""}, "user_id must have")):
        with pytest.raises(InvalidTarget, match=rf"^targets\[1\].{complaint}"):
            parse_targets([NAMED, bad, None], APP_IDS, 3)


@pytest.mark.parametrize(
    ("values", "publishing", "present"),
    [
        ({**OFF, "video": True}, True, True),
        ({"screen_audio": True}, True, True),
        ({**OFF, "audio": True, "present": False}, True, True),
        (OFF, False, None),
        ({**OFF, "present": True}, False, True),
        ({**OFF, "present": False}, False, False),
        ({**OFF, "screen_video": None}, None, None),
        ({**OFF, "screen_video": None, "audio": True}, True, True),
        ({"audio": False, "video": False, "screen_audio": False}, None, None),
        ({"present": False}, None, False),
        ({}, None, None),
    ],
)
def test_publishing_and_present_say_no_more_than_is_known(
    values: dict[str, bool | None], publishing: object, present: object, conforms: Conforms
) -> None:
    answer = state(**values).answer()

    conforms("answer", answer)
    assert (answer["publishing"], answer["present"]) == (publishing, present)
    assert answer["media"] == {medium: values.get(medium) for medium in OFF}


def test_an_answer_tells_each_value_with_its_time(conforms: Conforms) -> None:
    facts = {"audio": Fact(value=True, at_ms=AT_MS), "video": Fact(value=False, at_ms=AT_MS - 1_000)}
    facts |= {"screen_audio": Fact(None, AT_MS - 5_000), PRESENT: Fact(value=True, at_ms=AT_MS - 9_000)}

    answer = StreamState(TARGET, facts, "table").answer()

    conforms("answer", answer)
    assert answer == {
        "type": "stream_state",
        "app_id": "app-1",
        **NAMED,
        "publishing": True,
        "present": True,
        "media": {"audio": True, "video": False, "screen_audio": None, "screen_video": None},
        "media_observed_at": {
            "audio": AT,
            "video": "2026-11-23T03:04:04.678Z",
            "screen_audio": None,
            "screen_video": None,
        },
        "observed_at": "2026-11-23T03:04:04.678Z",
        "source": "table",
        "rtc_request_id": None,
    }


def test_a_target_that_the_vendor_does_not_know_is_not_present(conforms: Conforms) -> None:
    answer = StreamState.not_found(TARGET, AT_MS, "request-1").answer()

    conforms("answer", answer)
    assert (answer["present"], answer["publishing"], set(answer["media"].values())) == (False, None, {None})
    assert (answer["observed_at"], answer["rtc_request_id"]) == (AT, "request-1")


@given(st.integers(0, 4_102_444_800_000))
def test_a_time_is_told_to_the_millisecond(at_ms: int) -> None:
    text = iso_time(at_ms)

    assert text is not None
    assert round(datetime.fromisoformat(text).timestamp() * 1000) == at_ms
    assert (len(text), text[-1]) == (24, "Z")
    assert iso_time(None) is None


facts = st.builds(Fact, st.none() | st.booleans(), st.integers(0, 4_102_444_800_000))


@given(st.dictionaries(st.sampled_from([*Medium, PRESENT]), facts))
def test_any_facts_make_an_answer_that_keeps_the_schema_and_the_rules(
    conforms: Conforms, told: dict[str, Fact]
) -> None:
    answer = StreamState(TARGET, told, "query").answer()
    media = list(answer["media"].values())

    conforms("answer", answer)
    assert answer["publishing"] is (True if True in media else None if None in media else False)
    assert [told[name].value if name in told else None for name in answer["media"]] == media
    times = [at for at in answer["media_observed_at"].values() if at]
    assert times == [] or answer["observed_at"] == min(times)


def test_a_problem_is_told_with_its_target(conforms: Conforms) -> None:
    error = QuotaExceeded("Later.", retry_after_seconds=1)

    message = problem_message(TARGET, error, AT_MS)

    conforms("message", message)
    assert message["problem"] == error.problem()
    assert (message["type"], message["room_id"], message["version"]) == ("stream_state_problem", "class-1", "1")
    assert message["id"] != problem_message(TARGET, error, AT_MS + 1)["id"]


def test_a_digest_tells_all_targets_apart() -> None:
    assert TARGET.digest() == hashlib.sha256(b"app-1\nclass-1\nteacher").hexdigest()
    assert (
        len({Target("a", "b", "cd").digest(), Target("a", "bc", "d").digest(), Target("a", "b", "c").digest("d")}) == 3
    )
