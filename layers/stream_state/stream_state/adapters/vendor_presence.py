"""The strict reading of who is in a room: a name that an answer leaves out has gone only if the answer is whole."""

from collections.abc import Collection
from typing import Any

from stream_state.adapters.vendor_answers import VendorAnswer, log_oddities
from stream_state.domain.callback_events import EARLIEST_MS, MAX_AHEAD_MS, parse_device
from stream_state.domain.observations import Observations, Presence, logged_in, offline, online
from stream_state.domain.parsing import is_id
from stream_state.domain.targets import Room
from stream_state.errors import RtcProtocolError

# The vendor lists no more invisible users than that.
MAX_INVISIBLE = 10_000
_LISTS, _TOTALS = ("VisibleUserList", "InvisibleUserList"), ("TotalUser", "TotalInvisibleUser")


def read_online_users(room: Room, answer: VendorAnswer) -> Presence:
    """Who is in a room by an answer of GetRoomOnlineUsers; the others have gone if the lists are whole.

    Raises `RtcProtocolError` if the answer does not say whether the room exists.
    """
    result = answer.result
    # RoomExist: as BytePlus spells it (docs.byteplus.com/api/docs/byteplus-rtc/docs-1188355).
    exists = result.get("RoomExists", result.get("RoomExist"))
    if not isinstance(exists, bool) or (not exists and any(result.get(name) for name in (*_LISTS, *_TOTALS))):
        detail = "Volcengine's answer does not say whether the room exists."
        raise RtcProtocolError(detail, rtc_request_id=answer.rtc_request_id)
    if not exists:
        return Presence({}, offline(answer.sent_at_ms), answer.rtc_request_id)
    visible, invisible = (_names(result.get(name)) for name in _LISTS)
    total, total_invisible = (result.get(name) for name in _TOTALS)
    is_whole = (
        None not in visible | invisible
        and type(total) is type(total_invisible) is int
        and len(invisible) == total_invisible < MAX_INVISIBLE
        and len(visible) == total - total_invisible
        and visible.isdisjoint(invisible)
    )
    log_oddities(room, answer, () if is_whole else ("the lists do not name each user of the room once",))
    users = dict.fromkeys((name for name in visible | invisible if name is not None), online(answer.sent_at_ms))
    return Presence(users, offline(answer.sent_at_ms) if is_whole else {}, answer.rtc_request_id)


def read_users_property(room: Room, user_ids: Collection[str], answer: VendorAnswer) -> Presence:
    """Who of some users is in a room by an answer of GetRoomUsersProperty; a user left out is not known.

    Raises `RtcProtocolError` if the answer has no list.
    """
    entries = answer.result.get("UserList")
    if not isinstance(entries, list):
        raise RtcProtocolError("Volcengine's answer has no UserList.", rtc_request_id=answer.rtc_request_id)
    found: dict[str, list[Observations]] = {user_id: [] for user_id in user_ids}
    oddities = set()
    for entry in entries:
        user_id = entry.get("UserID") if isinstance(entry, dict) else None
        if isinstance(user_id, str) and user_id in found:
            found[user_id].append(_observed(entry, answer.sent_at_ms))
        else:
            oddities.add("an entry is not about a user that was asked for")
    # An entry that repeats another says nothing more, and one that contradicts it leaves the user unknown.
    users = {user_id: all_[0] for user_id, all_ in found.items() if all_ and all(one == all_[0] for one in all_)}
    if not all(users.get(user_id) for user_id in found):
        oddities.add("a user is left out, or a Status is not 0 or 1")
    log_oddities(room, answer, oddities)
    return Presence(users, {}, answer.rtc_request_id)


def _names(value: object) -> set[str | None]:
    """The ids in a list; null is an empty list. None stands for anything else, and for an id that comes twice."""
    if not isinstance(value, list):
        return set() if value is None else {None}
    names: set[str | None] = {name if is_id(name) else None for name in value}
    return names if len(names) == len(value) else names | {None}


def _observed(entry: dict[str, Any], sent_at_ms: int) -> Observations:
    """What an entry of UserList says of its user; nothing if its Status is not plain."""
    status, login_ms = entry.get("Status"), entry.get("LoginTime")
    if type(status) is not int or status not in (0, 1):
        return {}
    if status == 0:
        return offline(sent_at_ms)
    if type(login_ms) is not int or not EARLIEST_MS <= login_ms <= sent_at_ms + MAX_AHEAD_MS:
        return online(sent_at_ms)
    return logged_in(sent_at_ms, login_ms, parse_device(entry.get("DeviceType")))
