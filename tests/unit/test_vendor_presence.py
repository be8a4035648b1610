"""The reading of the presence calls: nobody has gone whom an answer does not plainly leave out."""

import io
import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_state.adapters.vendor_answers import VendorAnswer
from stream_state.adapters.vendor_presence import read_online_users, read_users_property
from stream_state.domain.observations import Observations, Presence, logged_in, offline, online
from stream_state.domain.targets import Room
from stream_state.errors import RtcProtocolError

# 2026-11-23T03:04:05.678Z
SENT_AT_MS = 1_795_403_045_678
ROOM = Room("app-1", "class-1")
THERE, GONE = online(SENT_AT_MS), offline(SENT_AT_MS)
LISTED = {
    "RoomExists": True,
    "TotalUser": 3,
    "TotalInvisibleUser": 1,
    "VisibleUserList": ["teacher", "guest"],
    "InvisibleUserList": ["robot"],
}
NO_BOOLS: list[Any] = [None, 0, 1, "true", "false", "", [], {}]
NO_NUMBERS: list[Any] = [None, "3", 3.0, True, -1, 2, 4, [], {}]
NO_LISTS: list[Any] = [None, {}, "teacher", 0, False]
STRANGERS: list[Any] = ["somebody", "Teacher", None, 7, ["teacher"]]
NO_IDS: list[Any] = [None, 7, "", "a b", ["guest"], "x" * 129, "teacher"]
NO_STATUS: list[Any] = [None, 2, -1, "0", "1", 0.0, 1.0, True, False, [], {}]
LOGIN_MS = SENT_AT_MS - 60_000
type Others = dict[str, Any]


def listed(result: Mapping[str, Any]) -> Presence:
    return read_online_users(ROOM, VendorAnswer(result, SENT_AT_MS, "request-1"))


def property_of(*entries: Any, user_ids: tuple[str, ...] = ("teacher", "guest")) -> Presence:
    return read_users_property(ROOM, user_ids, VendorAnswer({"UserList": list(entries)}, SENT_AT_MS, "request-1"))


def entry(user_id: Any = "teacher", status: Any = 1, **more: Any) -> dict[str, Any]:
    return {"UserID": user_id, "Status": status, **more}


def test_the_field_may_be_spelled_as_byteplus_spells_it() -> None:
    result = {name.removesuffix("s"): value for name, value in LISTED.items()}

    assert listed(result) == listed(LISTED)


@pytest.mark.parametrize("none", [{"InvisibleUserList": None}, {}], ids=["null", "left out"])
def test_a_list_of_nobody_may_be_null_or_left_out(none: Others) -> None:
    result = {"RoomExists": True, "TotalUser": 1, "TotalInvisibleUser": 0, "VisibleUserList": ["teacher"], **none}

    assert (listed(result).of("teacher"), listed(result).of("guest")) == (THERE, GONE)


def test_whole_lists_say_who_is_there_and_that_the_others_have_gone(logs: io.StringIO) -> None:
    presence = listed({**LISTED, "Unknown": {"field": 1}})

    assert [presence.of(name) for name in ("teacher", "guest", "robot", "nobody")] == [THERE, THERE, THERE, GONE]
    assert (presence.rtc_request_id, logs.getvalue()) == ("request-1", "")


@pytest.mark.parametrize(
    "result",
    [
        {"RoomExists": False},
        {"RoomExists": False, "TotalUser": 0, "VisibleUserList": None},
        {"RoomExists": True, "TotalUser": 0, "TotalInvisibleUser": 0, "VisibleUserList": [], "InvisibleUserList": []},
    ],
    ids=["no room", "no room, empty fields", "empty room"],
)
def test_nobody_is_in_a_room_that_does_not_exist_or_is_empty(result: dict[str, Any], logs: io.StringIO) -> None:
    assert listed(result) == Presence({}, GONE, "request-1")
    assert logs.getvalue() == ""


@pytest.mark.parametrize(
    "result",
    [
        *({**LISTED, "RoomExists": other} for other in NO_BOOLS),
        {name: value for name, value in LISTED.items() if name != "RoomExists"},
        {**LISTED, "RoomExists": False},
        {"RoomExists": False, "VisibleUserList": ["teacher"]},
        {},
    ],
    ids=repr,
)
def test_an_answer_that_does_not_say_whether_the_room_exists_is_an_error(result: dict[str, Any]) -> None:
    with pytest.raises(RtcProtocolError):
        listed(result)


@pytest.mark.parametrize(
    "odd",
    [
        *({"TotalUser": other} for other in NO_NUMBERS),
        *({"TotalInvisibleUser": other} for other in [*NO_NUMBERS[:5], 0, 2]),
        *({"VisibleUserList": other} for other in [*NO_LISTS, ["teacher"], []]),
        *({"InvisibleUserList": other} for other in [*NO_LISTS, []]),
        *({"VisibleUserList": ["teacher", other]} for other in NO_IDS),
        {"VisibleUserList": ["teacher", "guest", None], "TotalUser": 4},
        {"VisibleUserList": ["teacher", "robot"]},
        {"VisibleUserList": ["teacher", "guest", "teacher"]},
    ],
    ids=repr,
)
def test_lists_that_may_be_cut_prove_no_absence_but_say_who_is_there(odd: Others, logs: io.StringIO) -> None:
    result = {**LISTED, **odd}
    presence = listed(result)

    lists = (result["VisibleUserList"], result["InvisibleUserList"])
    named = [name for names in lists if isinstance(names, list) for name in names if name in ("teacher", "guest")]
    assert {name for name in presence.users if name in ("teacher", "guest")} == set(named)
    assert [presence.of(name) for name in ("nobody", *named)] == [{}, *[THERE] * len(named)]
    (line,) = [json.loads(text) for text in logs.getvalue().splitlines()]
    assert (line["level"], line["room_id"], line["rtc_request_id"]) == ("WARNING", "class-1", "request-1")


@pytest.mark.parametrize("missing", [name for name in LISTED if name != "RoomExists"])
def test_a_missing_field_proves_no_absence(missing: str) -> None:
    assert listed({name: value for name, value in LISTED.items() if name != missing}).of("nobody") == {}


@pytest.mark.parametrize(("count", "proved"), [(9_999, GONE), (10_000, {})])
def test_a_full_list_of_invisible_users_proves_no_absence(count: int, proved: Observations) -> None:
    more = {"InvisibleUserList": [f"robot-{number}" for number in range(count)], "TotalInvisibleUser": count}

    assert listed({**LISTED, **more, "TotalUser": count + 2}).of("nobody") == proved


def test_a_users_property_says_whether_the_user_is_there_and_since_when(logs: io.StringIO) -> None:
    there = entry(LoginTime=LOGIN_MS, DeviceType="web", Role=1, PlatformType="x", MediaProcessingType=None)

    presence = property_of(entry("guest", 0), there, there)

    assert presence == Presence({"teacher": logged_in(SENT_AT_MS, LOGIN_MS, "web"), "guest": GONE}, {}, "request-1")
    assert logs.getvalue() == ""


@pytest.mark.parametrize("login", [None, "1795402985678", 1_795_402_985.0, 1_795_402_985, 0, -1, True, 10**14, [], {}])
def test_a_login_time_that_is_none_in_milliseconds_is_left_out(login: Any) -> None:
    assert property_of(entry(LoginTime=login)).of("teacher") == THERE


@pytest.mark.parametrize("device", [None, 7, "", "a web", "x" * 33, ["web"]])
def test_a_device_that_is_no_name_is_left_out(device: Any) -> None:
    presence = property_of(entry(LoginTime=LOGIN_MS, DeviceType=device))

    assert presence.of("teacher") == logged_in(SENT_AT_MS, LOGIN_MS)


@pytest.mark.parametrize(
    "entries",
    [
        *([entry(status=other)] for other in NO_STATUS),
        [{"UserID": "teacher"}],
        [{"Status": 0}],
        *([entry(other, 0)] for other in STRANGERS),
        [entry(status=0), entry(status=1)],
        [entry(LoginTime=LOGIN_MS), entry(LoginTime=LOGIN_MS + 1)],
        [None, 0, "teacher", [], ["teacher", 0]],
        [],
    ],
    ids=repr,
)
def test_an_odd_entry_leaves_its_user_unknown(entries: list[Any], logs: io.StringIO) -> None:
    presence = property_of(entry("guest", 0), *entries)

    assert (presence.of("teacher"), presence.of("somebody"), presence.of("guest")) == ({}, {}, GONE)
    assert "WARNING" in logs.getvalue()


@pytest.mark.parametrize("entries", NO_LISTS)
def test_an_answer_without_a_list_is_an_error(entries: Any) -> None:
    with pytest.raises(RtcProtocolError):
        read_users_property(ROOM, ["teacher"], VendorAnswer({"UserList": entries}, SENT_AT_MS, None))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 3) | st.floats(0, 3) | st.sampled_from(["teacher", "guest", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
odd_listed = st.fixed_dictionaries(
    {"RoomExists": st.just(value=True) | json_values},
    optional={name: json_values for name in LISTED if name != "RoomExists"},
)
odd_entries = st.fixed_dictionaries(
    {"UserID": st.sampled_from(["teacher", "guest"])}, optional={"Status": json_values, "LoginTime": json_values}
)


@given(odd_listed)
def test_nobody_has_gone_unless_the_counts_say_that_all_are_named(result: dict[str, Any]) -> None:
    try:
        presence = listed(result)
    except RtcProtocolError:
        return

    if presence.of("nobody") == GONE and result["RoomExists"]:
        names = [*result["VisibleUserList"], *result["InvisibleUserList"]]
        assert len(set(names)) == len(names) == result["TotalUser"]
        assert all(presence.of(name) == THERE for name in names)


@given(st.lists(odd_entries | json_values, max_size=4))
def test_nobody_has_gone_unless_the_status_is_0(entries: list[Any]) -> None:
    said = [one.get("Status") for one in entries if isinstance(one, dict) and one.get("UserID") == "teacher"]

    if property_of(*entries).of("teacher") == GONE:
        assert all(type(status) is int and status == 0 for status in said)
