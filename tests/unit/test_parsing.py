"""The rules for input, each broken in every way."""

import hashlib
import string
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_state.domain import parsing
from stream_state.domain.parsing import parse_max_age, parse_target, parse_target_or_room, parse_targets
from stream_state.domain.targets import Room, Target
from stream_state.errors import InvalidRequest

APP_IDS = ("app-1", "app-2")
TARGET = Target("app-1", "class-1", "teacher")
IDS = {"room_id": "class-1", "user_id": "teacher"}
ILLEGAL = "may hold A-Z a-z 0-9 @ . _ - only; position"


def refusal(parse: Callable[..., object], *arguments: object) -> str:
    with pytest.raises(InvalidRequest) as raised:
        parse(*arguments)
    return str(raised.value)


@given(st.text() | st.text(string.ascii_letters + "@._-", min_size=120, max_size=135))
def test_an_id_is_accepted_exactly_by_the_vendors_rule(text: str) -> None:
    is_legal = 1 <= len(text) <= 128 and set(text) <= set(string.ascii_letters + string.digits + "@._-")

    if is_legal:
        assert parsing.parse_id(text, "room_id") == text
    else:
        assert refusal(parsing.parse_id, text, "room_id").startswith("room_id m")


@pytest.mark.parametrize("id_", [".", ".."])
def test_an_id_that_no_path_can_carry_is_refused_in_a_path_alone(id_: str) -> None:
    assert parsing.parse_id(id_, "room_id") == id_
    assert refusal(parsing.parse_path_id, id_, "room_id").startswith("room_id cannot be . or .. in a path")
    assert parsing.parse_path_id("...", "room_id") == "..."


def test_a_target_is_of_the_first_app_unless_it_names_another() -> None:
    assert parse_target(IDS, APP_IDS) == TARGET
    assert parse_target({**IDS, "app_id": "app-2"}, APP_IDS) == Target("app-2", "class-1", "teacher")
    assert parse_target_or_room({**IDS, "emit": "all"}, APP_IDS, more={"emit"}) == TARGET
    assert parsing.parse_app_id("app-2", APP_IDS) == "app-2"
    assert TARGET.as_dict() == {"app_id": "app-1", **IDS}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"room_id": ""}, "room_id must have 1 to 128 characters, not 0."),
        ({"room_id": "r" * 129}, "room_id must have 1 to 128 characters, not 129."),
        ({"user_id": "teacher\n"}, f"user_id {ILLEGAL} 8 holds another."),
        ({"user_id": "密" * 200}, f"user_id {ILLEGAL} 1 holds another."),
        ({"user_id": "\ud800"}, f"user_id {ILLEGAL} 1 holds another."),
        ({"room_id": 7}, "room_id must be text."),
        ({"room_id": ["class-1"]}, "room_id must be text."),
        ({"app_id": "app-3"}, "app_id is not one of the AppIds"),
        ({"app_id": None}, "app_id is not one of the AppIds"),
        ({"app_id": ["app-1"]}, "app_id is not one of the AppIds"),
        ({"roomid": "x"}, "the request has a field ('roomid') that is not one of app_id, room_id, user_id."),
        ({"\n" * 50: 1}, "the request has a field ('" + r"\n" * 18 + "...)"),
    ],
)
def test_a_target_that_breaks_a_rule_is_refused_by_place_and_rule(change: dict[str, object], complaint: str) -> None:
    assert refusal(parse_target, {**IDS, **change}, APP_IDS).startswith(complaint)


@pytest.mark.parametrize("value", [None, "text", 7, 1.5, True, [], [IDS], b"bytes"])
def test_a_target_is_an_object_with_both_ids(value: object) -> None:
    assert refusal(parse_target, {"user_id": "teacher"}, APP_IDS) == "room_id is missing."
    assert refusal(parse_target, {"room_id": "class-1"}, APP_IDS) == "user_id is missing."
    assert refusal(parse_target, value, APP_IDS) == "the request must be an object."
    assert refusal(parse_target, value, APP_IDS, "targets[0]") == "targets[0] must be an object."


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        (None, "targets must be a list of 1 to 3 objects"),
        ([], "targets must be a list of 1 to 3 objects"),
        ([IDS] * 4, "targets must be a list of 1 to 3 objects"),
        ([IDS, None, None], "targets[1] must be an object."),
        ([IDS, {**IDS, "user_id": ""}], "targets[1].user_id must have"),
        ([{**IDS, "app_id": ""}], "targets[0].app_id is not"),
    ],
)
def test_a_list_of_targets_is_refused_by_its_first_fault(value: object, complaint: str) -> None:
    assert parse_targets([IDS] * 3, APP_IDS, 3, parse_target) == [TARGET] * 3
    assert refusal(parse_targets, value, APP_IDS, 3, parse_target).startswith(complaint)
    assert refusal(parse_targets, value, APP_IDS, 3, parse_target_or_room).startswith(complaint)


def test_a_target_without_a_user_is_a_room_where_rooms_are_accepted() -> None:
    room = {"room_id": "class-1"}

    assert parse_target_or_room(room, APP_IDS) == Room("app-1", "class-1")
    assert parse_target_or_room({**room, "app_id": "app-2"}, APP_IDS) == Room("app-2", "class-1")
    assert parse_target_or_room({**room, "user_id": "teacher"}, APP_IDS) == TARGET
    assert refusal(parse_target, room, APP_IDS) == "user_id is missing."
    assert refusal(parse_target, room, APP_IDS, "recheck") == "recheck.user_id is missing."
    assert refusal(parse_target_or_room, {**room, "user_id": None}, APP_IDS) == "user_id is missing."
    assert refusal(parse_target_or_room, {"user_id": "teacher"}, APP_IDS) == "room_id is missing."


def test_a_digest_keeps_all_targets_apart() -> None:
    targets = [Target("a", "b", "cd").digest(), Target("a", "bc", "d").digest(), Target("a", "b", "c").digest("d")]

    assert TARGET.digest() == hashlib.sha256(b"app-1\nclass-1\nteacher").hexdigest()
    assert len({*targets}) == 3


@pytest.mark.parametrize("value", [-1, 3601, 1.5, "5", True, False, None, [], float("nan"), float("inf"), 10**400])
def test_an_age_is_in_whole_seconds_up_to_an_hour(value: object) -> None:
    assert [repr(parse_max_age(age)) for age in (0, 10.0, 3600)] == ["0", "10", "3600"]
    assert refusal(parse_max_age, value) == "max_age must be a whole number from 0 to 3600."


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "is not JSON at line 1, column 1"),
        ('{\n"secret": x', "is not JSON at line 2, column 11"),
        ('{"a": 1,}', "is not JSON at line 1"),
        ('{"a": 1, "a": 1}', "names a field twice"),
        ("NaN", "holds NaN, which is not JSON"),
        ('{"a": -Infinity}', "holds -Infinity, which is not JSON"),
        ("1e999", "holds a number that is too large"),
        ("[" * 100_000, "is not JSON that can be read"),
        ('{"a":' * 100_000, "is not JSON that can be read"),
        ("9" * 5_000, "is not JSON that can be read"),
        (b"\xff", "is not JSON that can be read"),
        ("\ufeff{}", "begins with a byte order mark"),
        (b"\xef\xbb\xbf{}", "begins with a byte order mark"),
    ],
    ids=lambda value: f"{value[:8]!r}{len(value)}",
)
def test_text_that_is_not_strict_json_is_refused_by_its_rule(text: str | bytes, rule: str) -> None:
    with pytest.raises(parsing.JsonError) as raised:
        parsing.parse_json(text)

    assert str(raised.value).startswith(rule)
    # An error that shows the text would show what is secret in it.
    assert (raised.value.__cause__, "secret" in str(raised.value)) == (None, False)


def test_json_is_read_as_it_is() -> None:
    assert parsing.parse_json(' {"a": [1, 1.0, true, null, "\\u5bc6"]} ') == {"a": [1, 1.0, True, None, "密"]}
    assert parsing.parse_json(b"{}") == {}
    assert parsing.parse_json("null") is None


def test_an_object_has_no_other_fields_than_those_allowed() -> None:
    assert parsing.parse_object({"a": 1}, {"a", "b"}) == {"a": 1}
    assert parsing.parse_object({}, set()) == {}

    assert refusal(parsing.parse_object, {"c": 2}, {"b", "a"}, "the body") == (
        "the body has a field ('c') that is not one of a, b."
    )
    assert refusal(parsing.parse_object, {"c": 2}, set()) == "the request has a field ('c') that is not one of none."
    assert refusal(parsing.parse_object, None, set(), "the body") == "the body must be an object."


@pytest.mark.parametrize("value", ["plain", "\r\n\x1b[31m", "密" * 100, 7, None, "x" * 1_000_000])
def test_a_name_from_the_input_is_shown_short_and_plain(value: object) -> None:
    text = parsing.shown(value)

    assert (text.isascii(), text.isprintable(), len(text) <= 40) == (True, True, True)
