"""Faults of the presence calls: odd answers leave things unknown, and failed calls have their error."""

from collections.abc import Iterator

from tests.integration.faults import ECHO, MISSING, RECHECKED, Fault, altered
from tests.sandbox.server import Response
from tests.sandbox.simulator import ONLINE_USERS, STREAM_STATE, USERS_PROPERTY, Exchange
from tests.sandbox.simulator import Fault as VendorFault
from tests.vendor.faults import error, reset, result

BY_PRESENCE = {"RTC_QUERY": "presence"}
ROOM_WAYS = ("query room", "sweep room")
# Answers of GetRoomOnlineUsers that do not say whether the room exists.
NO_ROOM = [None, 0, 1, "true", "false", [], {}, MISSING]
# What may stand in place of a number or a list.
ODD: dict[str, list[object]] = {
    "TotalUser": [None, "5", 5.0, True, -1, 0, 99, MISSING],
    "TotalInvisibleUser": [None, "0", False, -1, 1, MISSING],
    "VisibleUserList": [None, {}, "teacher", [], ["teacher"], ["teacher", None, 7], MISSING],
    "InvisibleUserList": [None, {}, "teacher", ["no id"], MISSING],
    "New": [ECHO],
}
NO_LISTS = [None, {}, "teacher", 0, MISSING]
ENTRIES: list[object] = [
    [],
    [None, 0, "teacher"],
    [{"UserID": "teacher"}],
    [{"UserID": "teacher", "Status": 2}],
    [{"UserID": "teacher", "Status": "0"}],
    [{"UserID": "teacher", "Status": False}],
    [{"UserID": "stranger", "Status": 0}],
    [{"UserID": "teacher", "Status": 0}, {"UserID": "teacher", "Status": 1}],
    [{"UserID": "teacher", "Status": 1, "LoginTime": "soon", "DeviceType": ECHO}],
]
ERRORS = {
    "InternalError": "RtcUnavailable",
    "LackProjectPolicy": "RtcAccessDenied",
    "InvalidParameter": "RtcRequestRefused",
    "UserNotExist": "RtcProtocolError",
}


def of(action: str, fault: VendorFault) -> VendorFault:
    """The fault for the calls of one action alone."""

    def met(exchange: Exchange) -> Response | None:
        return fault(exchange) if exchange.params.get("Action") == action else exchange.response()

    return met


def presence_faults() -> Iterator[Fault]:
    kind = "vendor: presence"
    for value in NO_ROOM:
        fault, name = of(ONLINE_USERS, altered(("Result", "RoomExists"), value)), f"RoomExists {value!r}"[:60]
        yield Fault(kind, name, dict.fromkeys(ROOM_WAYS, "RtcProtocolError"), fault)
    for field, values in ODD.items():
        for value in values:
            fault, name = of(ONLINE_USERS, altered(("Result", field), value)), f"{field} {value!r}"[:60]
            yield Fault(kind, name, dict.fromkeys(ROOM_WAYS, "answer"), fault)
            yield Fault(kind, f"{name} by presence", dict.fromkeys(ROOM_WAYS, "answer"), fault, environment=BY_PRESENCE)
    for code, expected in ERRORS.items():
        fault = of(ONLINE_USERS, error(code, 400, 0, ECHO))
        yield Fault(kind, f"the room: {code}", dict.fromkeys(ROOM_WAYS, expected), fault, slow=code == "InternalError")
    yield Fault(kind, "the room: reset, once", {"query room": "answer"}, once=(reset,))
    kind = "vendor: users' presence"
    for value in NO_LISTS:
        fault, name = of(USERS_PROPERTY, altered(("Result", "UserList"), value)), f"UserList {value!r}"[:60]
        ways = {"sweep given": "RtcProtocolError", "sweep watched": "RtcProtocolError", "recheck": RECHECKED}
        yield Fault(kind, name, ways, fault, environment=BY_PRESENCE)
    for entries in ENTRIES:
        fault = of(USERS_PROPERTY, result({"UserList": entries}))
        ways = {"sweep given": "answer", "sweep watched": "answer", "recheck": RECHECKED}
        yield Fault(kind, f"{entries!r}"[:60], ways, fault, environment=BY_PRESENCE)
    # The sweeps go on by presence; lookups answer from the table.
    gone = of(STREAM_STATE, error("InvalidActionOrVersion", 404, 100008, ECHO))
    ways = {**dict.fromkeys(("ask", "query room", "sweep given", "sweep watched", "sweep room"), "answer")}
    yield Fault(kind, "GetUserStreamState is withdrawn", {**ways, "recheck": RECHECKED}, gone, absent=True)
