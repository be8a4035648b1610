"""The rules for input, each broken in every way."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_state.errors import InvalidTarget
from stream_state.validation import (
    parse_app_id,
    parse_id,
    parse_json,
    parse_max_age,
    parse_object,
    parse_path_id,
    shown,
)

APP_IDS = ("app-1", "app-2")


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


@pytest.mark.parametrize("value", [-1, 3601, 1.0, "5", True, None, [], float("nan")])
def test_an_age_is_in_whole_seconds_up_to_an_hour(value: object) -> None:
    assert [parse_max_age(age) for age in (0, 1, 3600)] == [0, 1, 3600]

    with pytest.raises(InvalidTarget, match=r"^max_age must be a whole number from 0 to 3600\."):
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
        "\ufeff{}",
    ],
    ids=lambda text: f"{text[:8]!r}...{text[-8:]!r}",
)
def test_text_that_is_not_strict_json_is_refused(text: str | bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (of any kind: callers say what they were reading)
        parse_json(text)


def test_json_is_read_as_it_is() -> None:
    assert parse_json(' {"a": [1, 1.0, true, null, "\\u5bc6"]} ') == {"a": [1, 1.0, True, None, "密"]}
    assert parse_json(b"{}") == {}


def test_an_object_may_hold_the_names_allowed_and_no_others() -> None:
    assert parse_object({"a": 1}, {"a", "b"}) == {"a": 1}
    assert parse_object({}, set()) == {}

    with pytest.raises(InvalidTarget, match=r"^the body has a member \('c'\) that is not one of a, b\."):
        parse_object({"a": 1, "c": 2}, {"b", "a"}, "the body")


@pytest.mark.parametrize("value", ["plain", "\r\n\x1b[31m", "密" * 100, 7, None, "x" * 1_000_000])
def test_what_came_in_is_shown_short_and_plain(value: object) -> None:
    text = shown(value)

    assert text.isascii()
    assert text.isprintable()
    assert len(text) <= 40
