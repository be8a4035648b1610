"""Reading a page of the board from the table: rooms with their users, and how far the call limit is used."""

from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from stream_state.adapters.rate_limiter import reserved_until
from stream_state.adapters.record_items import place_after
from stream_state.adapters.state_store import StateStore
from stream_state.adapters.table import PAGE_ITEMS, entries_of
from stream_state.adapters.watch_list import WatchList
from stream_state.domain.board import Board, Limit, RoomTable, Row
from stream_state.domain.merging import StateRecord
from stream_state.domain.requests import BoardRequest
from stream_state.domain.targets import Room, Target
from stream_state.settings import Settings

# A page of this size has less than 1 MB of HTML; Lambda returns at most 6 MB.
ROOMS_OF_PAGE, USERS_OF_ROOM = 50, 20
# Bounds on what a page reads, watches, scans of 200 items and pages of expired users: a refresh must stay cheap.
MAX_WATCHES, MAX_SCANS, MAX_EXPIRED_PAGES = 2_000, 20, 5
CONCURRENCY = 8

# The watched users of each room, and the room itself if it is watched as a whole.
type Watched = dict[Room, set[Target | Room]]


def read_page(request: BoardRequest, store: StateStore, settings: Settings) -> Board:
    """The page that a request asks for; raises `StateUnavailable`."""
    now = store.table.clock.now()
    watched, has_more_watches = _watched(WatchList(store.table))
    keys, next_after = [Room(request.app_id, request.room)], None
    if not request.app_id:
        keys, next_after = _keys(request, watched, store, settings.rtc_app_ids)
    with ThreadPoolExecutor(CONCURRENCY) as readers:
        found = list(readers.map(lambda key: _room(key, watched.get(key, set()), request, store), keys))
    reserved, hold = reserved_until(store.table)
    return Board(
        now_ms=int(now * 1000),
        rooms=[room for room in found if room.rows or room.has_more],
        next_after=next_after,
        limit=Limit(settings.rtc_qps, settings.rtc_burst, reserved - now, hold - now),
        has_more_watches=has_more_watches,
    )


def _watched(watch_list: WatchList) -> tuple[Watched, bool]:
    """The watched users by room, and whether the list has more than a page of the board reads."""
    found: Watched = defaultdict(set)
    watches = entries_of(watch_list.page)
    for watch in islice(watches, MAX_WATCHES):
        found[Room(watch.target.app_id, watch.target.room_id)].add(watch.target)
    return found, next(watches, None) is not None


def _keys(
    request: BoardRequest, watched: Watched, store: StateStore, app_ids: Sequence[str]
) -> tuple[list[Room], str | None]:
    """The rooms of a page, watched rooms first, and the place where the next page begins."""
    kind, _, last = request.after.partition("#")
    # The rooms of the very name that was searched come first: a scan may not come as far.
    exact = [Room(app_id, request.room) for app_id in app_ids if request.room]
    found = [] if kind else [*exact]
    if kind != "known":
        app_id, _, room_id = last.rpartition("#")
        later = [room for room in sorted(watched) if room > Room(app_id, room_id) and room not in exact]
        found += [room for room in later if request.room in room.room_id]
        if len(found) > ROOMS_OF_PAGE:
            end = found[ROOMS_OF_PAGE - 1]
            return found[:ROOMS_OF_PAGE], f"watched#{end.app_id}#{end.room_id}"
        last = ""
    for _ in range(MAX_SCANS):
        page = store.rooms(last)
        for room in page.entries:
            if request.room in room.room_id and room not in watched and room not in exact:
                if len(found) == ROOMS_OF_PAGE:
                    return found, f"known#{last}"
                found.append(room)
            last = place_after(room)
        if page.next_key is None:
            return found, None
        last = page.next_key
    return found, f"known#{last}"


def _room(room: Room, watched: set[Target | Room], request: BoardRequest, store: StateStore) -> RoomTable:
    """A room with its users: all of a page if it is the room that was asked for, else some, the watched first."""
    is_alone = bool(request.app_id)
    after = request.after if is_alone else None
    page = store.room(room, after or None, most=PAGE_ITEMS if is_alone else USERS_OF_ROOM)
    for _ in range(MAX_EXPIRED_PAGES):
        # Users of yesterday, whom DynamoDB has not deleted yet, hide nobody.
        if page.entries or page.next_key is None:
            break
        page = store.room(room, page.next_key)
    records = {record.target: record for record in page.entries}
    missing = sorted(target for target in watched - records.keys() if isinstance(target, Target))
    if page.next_key is None and not after:
        records |= {target: StateRecord(target) for target in missing}
    elif not is_alone:
        records |= store.read(missing[:USERS_OF_ROOM])
    is_watched = room in watched
    rows = sorted((Row(record, is_watched or record.target in watched) for record in records.values()), key=_order)
    if is_alone:
        return RoomTable(room, rows, page.next_key, has_more=page.next_key is not None)
    return RoomTable(room, rows[:USERS_OF_ROOM], has_more=page.next_key is not None or len(rows) > USERS_OF_ROOM)


def _order(row: Row) -> tuple[bool, bool, str]:
    """Watched users first, those who have gone last."""
    return not row.is_watched, row.record.state.present.value is False, row.record.target.user_id
