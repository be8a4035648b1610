"""Targets from input, and the answers and messages that tell what is known."""

import hashlib
import string
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_state.errors import InvalidTarget, QuotaExceeded
from stream_state.model import (
    PRESENT,
    Fact,
    Medium,
    StreamState,
    Target,
    iso_time,
    parse_app_id,
    parse_id,
    parse_json,
    parse_max_age,
    parse_object,
    parse_path_id,
    parse_targets,
    problem_message,
    state_message,
)

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
        ({"user_id": "١"}, "user_id may hold A-Z a-z 0-9 @ . _ - only; position 1 holds another."),
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


def test_an_object_may_hold_what_it_is_allowed_to() -> None:
    assert Target.parse({**NAMED, "emit": "all"}, APP_IDS, more_keys={"emit"}) == TARGET
    assert parse_object({}, set()) == {}


@pytest.mark.parametrize("id_", ["a", "x" * 128, "a@b.c_d-e", ".", "..", "-", string.ascii_letters + string.digits])
def test_a_legal_id_is_kept_as_it_is(id_: str) -> None:
    assert parse_id(id_, "room_id") == id_


@pytest.mark.parametrize("id_", [".", ".."])
def test_an_id_that_no_path_can_carry_is_refused_in_a_path(id_: str) -> None:
    with pytest.raises(InvalidTarget, match=r"^room_id cannot be \. or \.\. in a path"):
        parse_path_id(id_, "room_id")

    assert parse_path_id("...", "room_id") == "..."


@given(st.text())
def test_an_id_is_accepted_exactly_by_the_vendors_rule(text: str) -> None:
    legal = 1 <= len(text) <= 128 and set(text) <= set(string.ascii_letters + string.digits + "@._-")
    try:
        assert parse_id(text, "room_id") == text
        accepted = True
    except InvalidTarget:
        accepted = False

    assert accepted is legal


@pytest.mark.parametrize("value", [None, {}, "x", [], [NAMED] * 4])
def test_a_list_of_targets_has_one_to_the_most_entries(value: object) -> None:
    with pytest.raises(InvalidTarget, match=r"^targets must be a list of 1 to 3 objects"):
        parse_targets(value, APP_IDS, 3)


def test_the_first_bad_target_of_a_list_is_named_by_its_index() -> None:
    assert parse_targets([NAMED, {**NAMED, "app_id": "app-2"}], APP_IDS, 3)[0] == TARGET

    for bad, complaint in ((None, "must be an object"), ({**NAMED, "user_id": ""}, "user_id must have")):
        with pytest.raises(InvalidTarget, match=rf"^targets\[1\].{complaint}"):
            parse_targets([NAMED, bad, None], APP_IDS, 3)


@pytest.mark.parametrize("value", [-1, 3601, 1.0, "5", True, None, [], float("nan")])
def test_an_age_is_in_whole_seconds_up_to_an_hour(value: object) -> None:
    assert [parse_max_age(age) for age in (0, 1, 3600)] == [0, 1, 3600]

    with pytest.raises(InvalidTarget, match=r"^max_age must be a whole number of seconds from 0 to 3600\."):
        parse_max_age(value)


def test_an_app_id_of_the_stack_is_accepted() -> None:
    assert parse_app_id("app-2", APP_IDS) == "app-2"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "{'a': 1}",
        '{"a": 1,}',
        '{"a": 1, "a": 1}',
        '[{"a": {"b": 1, "b": 2}}]',
        "NaN",
        "[Infinity]",
        '{"a": -Infinity}',
        "1e999",
        "[" * 100_000,
        '{"a":' * 100_000,
        "[" * 100_000 + "]" * 100_000,
        "9" * 5_000,
        b"\xff",
        b'"\xed\xa0\x80"',
        "\ufeff{}",
    ],
    ids=lambda text: repr(text[:12]),
)
def test_text_that_is_not_strict_json_is_refused(text: str | bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (of any kind: callers say what they were reading)
        parse_json(text)


def test_json_is_read_as_it_is() -> None:
    assert parse_json(' {"a": [1, 1.0, true, null, "\\u5bc6"]} ') == {"a": [1, 1.0, True, None, "密"]}
    assert parse_json(b"{}") == {}


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
    values: dict[str, bool | None], publishing: bool | None, present: bool | None, conforms: Conforms
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
    conforms("message", state_message(StreamState(TARGET, told, "query"), 7, None))
    assert answer["publishing"] is (True if True in media else None if None in media else False)
    assert [told[name].value if name in told else None for name in answer["media"]] == media
    times = [at for at in answer["media_observed_at"].values() if at]
    assert times == [] or answer["observed_at"] == min(times)


def test_a_first_message_tells_all_that_is_known(conforms: Conforms) -> None:
    message = state_message(state(audio=True, video=False, screen_audio=False), 1, None)

    conforms("message", message)
    assert message["changed"] == ["audio", "video", "screen_audio", "present"]
    assert message["previous"] is None
    assert (message["version"], message["sequence"]) == ("1", 1)


def test_a_later_message_tells_what_differs_from_the_last(conforms: Conforms) -> None:
    told = {"audio": True, "video": False, "screen_audio": False, "screen_video": None, "present": True}

    message = state_message(state(**OFF), 2, told)

    conforms("message", message)
    assert message["changed"] == ["audio", "screen_video", "present"]
    assert message["previous"] == {"audio": True, "video": False, "screen_audio": False, "screen_video": None}
    assert state_message(state(**OFF), 2, told)["id"] == message["id"]


def test_the_same_news_has_the_same_id_and_other_news_another() -> None:
    news = [state_message(state(at, audio=True), sequence, None)["id"] for at in (AT_MS, AT_MS + 1) for sequence in (1, 2)]
    told = state(**OFF).values
    nothing_new = [state_message(state(at, **OFF), 1, told)["id"] for at in (AT_MS, AT_MS, AT_MS + 1)]

    assert news[0] == news[2] != news[1] == news[3]
    assert nothing_new[0] == nothing_new[1] != nothing_new[2]
    assert news[0] not in nothing_new


def test_a_problem_is_told_with_its_target(conforms: Conforms) -> None:
    error = QuotaExceeded("Later.", retry_after_seconds=1)

    message = problem_message(TARGET, error, AT_MS)

    conforms("message", message)
    assert message["problem"] == error.problem()
    assert (message["type"], message["room_id"], message["version"]) == ("stream_state_problem", "class-1", "1")
    assert message["id"] != problem_message(TARGET, error, AT_MS + 1)["id"]


def test_a_digest_tells_all_targets_apart() -> None:
    assert TARGET.digest() == hashlib.sha256(b"app-1\nclass-1\nteacher").hexdigest()
    assert len({Target("a", "b", "cd").digest(), Target("a", "bc", "d").digest(), Target("a", "b", "c").digest("d")}) == 3
