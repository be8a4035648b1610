"""State records as items of the table.

Keys: `state#<app>#<room>` / user, and for the end of a room `state#<app>#<room>#` / `room`. No room or user id holds
the `#`. The sparse index lists the items that have an undelivered change or a recheck.
"""

import json
from typing import Any

from stream_state.adapters.table import Item, Scalar, attributes, key_of
from stream_state.domain.merging import StateRecord, as_lists, from_lists
from stream_state.domain.targets import Target

INDEX, LISTED = "Undelivered", "yes"


def item_of(record: StateRecord, expires_at: int, listed_after_ms: int | None) -> Item:
    """The item of a record; `listed_after_ms`: when the list shows it, None if the list does not."""
    values: dict[str, Scalar] = {
        **record.target.as_dict(),
        "observations": as_json(as_lists(record.observations)),
        "sequence": record.sequence,
        "delivered": as_json(record.delivered),
        "delivered_sequence": record.delivered_sequence,
        "revision": record.revision,
        "is_room_end_read": record.is_room_end_read,
        "recheck_at_ms": record.recheck_at_ms,
        "has_waits": record.has_waits,
        "changed_at_ms": record.changed_at_ms,
        "expires_at": expires_at,
    }
    if listed_after_ms is not None:
        values |= {"undelivered": LISTED, "deliver_after": listed_after_ms}
    return {**key(record.target), **attributes(values)}


def record_of(target: Target, item: Item, skew_ms: int) -> StateRecord:
    """The record in an item."""
    return StateRecord(
        target,
        from_lists(json.loads(item["observations"]["S"])),
        int(item["sequence"]["N"]),
        json.loads(item["delivered"]["S"]),
        int(item["delivered_sequence"]["N"]),
        int(item["revision"]["N"]),
        item["is_room_end_read"]["BOOL"],
        int(item["recheck_at_ms"]["N"]),
        item["has_waits"]["BOOL"],
        int(item["changed_at_ms"]["N"]),
        skew_ms,
    )


def partition(app_id: str, room_id: str) -> str:
    """The partition of a room's records."""
    return f"state#{app_id}#{room_id}"


def key(target: Target) -> dict[str, Any]:
    """The key of a target's record."""
    return key_of(partition(target.app_id, target.room_id), target.user_id)


def room_key(app_id: str, room_id: str) -> dict[str, Any]:
    """The key of the end of a room."""
    return key_of(f"{partition(app_id, room_id)}#", "room")


def target_of_key(item: Item) -> Target:
    """The target of a key; only an AppId can hold a `#`."""
    app_id, _, room_id = item["pk"]["S"].removeprefix("state#").rpartition("#")
    return Target(app_id, room_id, item["sk"]["S"])


def as_json(value: object) -> str:
    """JSON without spaces."""
    return json.dumps(value, separators=(",", ":"))
