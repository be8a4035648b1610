"""State records as items of the table.

Keys: `state#<app>#<room>` / user, and for the end of a room `state#<app>#<room>#` / `room`. No room or user id holds
the `#`. The sparse index lists the items that have an undelivered change or a recheck.
"""

import json
from typing import Any

from stream_state.adapters.table import Item, Scalar, attributes, key_of
from stream_state.domain.merging import StateRecord, as_lists, from_lists
from stream_state.domain.targets import Room, Target

INDEX, LISTED = "Undelivered", "yes"
_NUMBERS = ("sequence", "delivered_sequence", "revision", "recheck_at_ms", "changed_at_ms", "expires_at")
_FLAGS = ("is_room_end_read", "has_waits")


def item_of(record: StateRecord) -> Item:
    """The item of a record."""
    values: dict[str, Scalar] = {
        **record.target.as_dict(),
        **{name: getattr(record, name) for name in _NUMBERS + _FLAGS},
        "observations": as_json(as_lists(record.observations)),
        "delivered": as_json(record.delivered),
    }
    if record.deliver_after_ms:
        values |= {"undelivered": LISTED, "deliver_after": record.deliver_after_ms}
    return {**key(record.target), **attributes(values)}


def record_of(target: Target, item: Item, skew_ms: int) -> StateRecord:
    """The record in an item."""
    plain: dict[str, Any] = {name: int(item[name]["N"]) for name in _NUMBERS}
    plain |= {name: item[name]["BOOL"] for name in _FLAGS}
    return StateRecord(
        target,
        from_lists(json.loads(item["observations"]["S"])),
        delivered=json.loads(item["delivered"]["S"]),
        deliver_after_ms=int(item["deliver_after"]["N"]) if "deliver_after" in item else 0,
        skew_ms=skew_ms,
        **plain,
    )


def partition(room: Room) -> str:
    """The partition of a room's records."""
    return f"state#{room.app_id}#{room.room_id}"


def key(target: Target) -> dict[str, Any]:
    """The key of a target's record."""
    return key_of(partition(target.room), target.user_id)


def room_key(room: Room) -> dict[str, Any]:
    """The key of the end of a room."""
    return key_of(f"{partition(room)}#", "room")


def place_after(room: Room) -> str:
    """The place after all users of a room in the list of rooms: no user id sorts after the tilde."""
    return f"{partition(room)}/~"


def target_of_key(item: Item) -> Target:
    """The target of a key; only an AppId can hold a `#`."""
    app_id, _, room_id = item["pk"]["S"].removeprefix("state#").rpartition("#")
    return Target(app_id, room_id, item["sk"]["S"])


def as_json(value: object) -> str:
    """JSON without spaces."""
    return json.dumps(value, separators=(",", ":"))
