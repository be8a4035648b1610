"""The rooms of which the table has state records."""

from stream_state.adapters.table import PAGE_ITEMS, Page, Table, attributes, key_of
from stream_state.domain.targets import Room

_IS_RECORD = "begins_with(pk, :state) AND attribute_exists(user_id) AND expires_at > :now"
# Sorts after every user id: a scan that begins there leaves out the rest of a room.
_AFTER_ALL_USERS = "~"


def rooms(table: Table, after: str) -> Page[Room]:
    """A page of rooms with a record that has not expired, in the table's own order.

    The page begins after the partition key `after`. It can be empty before the end of the list.
    """
    answer = table.call(
        "scan",
        Limit=PAGE_ITEMS,
        FilterExpression=_IS_RECORD,
        ProjectionExpression="app_id, room_id",
        ExpressionAttributeValues=attributes({":state": "state#", ":now": int(table.clock.now())}),
        **({"ExclusiveStartKey": key_of(after, _AFTER_ALL_USERS)} if after else {}),
    )
    found = dict.fromkeys(Room(item["app_id"]["S"], item["room_id"]["S"]) for item in answer["Items"])
    end = answer.get("LastEvaluatedKey")
    return Page(list(found), end["pk"]["S"] if end else None)
