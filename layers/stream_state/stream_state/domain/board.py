"""The board as HTML for a CloudWatch custom widget: no script, nothing external, all text from outside escaped."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from stream_state.domain.documents import iso_time
from stream_state.domain.merging import StateRecord, is_of_query
from stream_state.domain.requests import BoardRequest
from stream_state.domain.states import Value
from stream_state.domain.targets import Medium, Room

# A change is marked for so long: the shortest period in which a dashboard refreshes itself.
CHANGED_SECONDS = 10
DOCUMENTATION = """### Stream State: the board
Shows which users publish audio, video and screen in the rooms of Volcengine RTC, from the state table alone: watched
rooms first, then the other rooms of the last 24 hours. *not known* is never *off*.

Optional parameters:
```yaml
room: class   # rooms whose names hold this text; with app_id the room of exactly this name, with all its users
app_id: 661e8f2a9b3c4d5e6f708192
```
"""
# A shape and a word for each value: colour alone says nothing.
_MEDIUM = {True: ("on", "● on"), False: ("off", "○ off"), None: ("unknown", "? not known")}
_PRESENT = {True: ("on", "▲ present"), False: ("off", "▽ gone"), None: ("unknown", "? not known")}
_HEADINGS = (
    "User",
    *(medium.replace("_", " ").capitalize() for medium in Medium),
    "In the room",
    "Changed",
    "Observed",
)
_DARK = "--ink:#e4e8ec;--soft:#a3adb8;--line:#414d5c;--ground:#0f1b2a;--on:#6fd08c;--unknown:#f0b849;--mark:#1f3a52"
_STYLE = (
    """<style>
.board{--ink:#16191f;--soft:#545b64;--line:#d5dbdb;--ground:#fff;--on:#116d2f;--unknown:#8a5300;--mark:#e6f2fb;
color:var(--ink);background:var(--ground);font:14px/1.4 sans-serif;padding:8px}
@media (prefers-color-scheme:dark){.board:not(.light){DARK}}
.board.dark{DARK}
.board h2,.board p,.board form{margin:4px 0 8px}.board h2{font-size:16px}.board p span{color:var(--soft)}
.board table{border-collapse:collapse;width:100%;margin-bottom:16px;table-layout:fixed;color:inherit}
.board caption{text-align:left;font-weight:bold;padding:4px 0}
.board th,.board td{text-align:left;padding:3px 8px;border-bottom:1px solid var(--line);overflow:hidden;
text-overflow:ellipsis;white-space:nowrap;font-weight:normal;color:inherit;background:none}
.board thead th{color:var(--soft)}.board th:first-child{width:18%}.board th:last-child{width:14%}
.board .on{color:var(--on);font-weight:bold}.board .off{color:var(--soft)}
.board .unknown{color:var(--unknown);font-style:italic}.board .changed{background:var(--mark)}
.board cwdb-action{display:none}
</style>"""
).replace("DARK", _DARK)


@dataclass(frozen=True, slots=True)
class Row:
    """A user of a room."""

    record: StateRecord
    is_watched: bool


@dataclass(frozen=True, slots=True)
class RoomTable:
    """Users of a room; `next_after`: the user after whom the next page of the room begins."""

    room: Room
    rows: Sequence[Row]
    next_after: str | None = None
    has_more: bool = False


@dataclass(frozen=True, slots=True)
class Limit:
    """The rate limiter: its rate and burst, and for how many seconds slots are reserved and calls are on hold."""

    calls_per_second: float
    burst: int
    reserved_seconds: float
    hold_seconds: float


@dataclass(frozen=True, slots=True)
class Board:
    """A page of the board; `has_more_watches`: not all watches were read."""

    now_ms: int
    rooms: Sequence[RoomTable]
    next_after: str | None
    limit: Limit
    has_more_watches: bool


def html_of(board: Board, request: BoardRequest, endpoint: str) -> str:
    """A page as HTML; `endpoint` is the ARN of the function that answers its buttons."""
    theme = request.theme if request.theme in ("light", "dark") else "auto"
    buttons = [_button("Search", endpoint), _button("Refresh", endpoint, **_shown(request))]
    if request.room or request.after:
        buttons.append(_button("All rooms", endpoint, room=""))
    if board.next_after:
        buttons.append(_button("Next page", endpoint, room=request.room, after=board.next_after))
    rooms = "".join(_room(room, board.now_ms, endpoint, is_alone=bool(request.app_id)) for room in board.rooms)
    return (
        f'{_STYLE}<div class="board {theme}"><h2>Who publishes what</h2>{_summary(board)}'
        f'<form><label>Room <input name="room" value="{_text(request.room)}" maxlength="128"></label> '
        f"{' '.join(buttons)}</form>"
        f"{rooms or '<p>No room is known here.</p>'}</div>"
    )


def _shown(request: BoardRequest) -> dict[str, str]:
    """The fields of an event that asks for the same page again."""
    fields = {"app_id": request.app_id, "room": request.room, "after": request.after}
    return {name: value for name, value in fields.items() if value}


def _summary(board: Board) -> str:
    """Counts, the stalest watched state and the last change of the page, and the use of the call limit."""
    rows = [row for room in board.rooms for row in room.rows]
    on = sum(row.record.state.publishing is True for row in rows)
    lines = [f"{_count(len(board.rooms), 'room')} on this page, {_count(len(rows), 'user')}, {on} publishing"]
    watched = [row.record for row in rows if row.is_watched]
    observed = [(record.state.observed_at_ms or 0, record) for record in watched]
    if observed:
        at_ms, record = min(observed, key=lambda entry: entry[0])
        age = f"{_age(board.now_ms, at_ms)} old" if at_ms else "never observed"
        lines.append(f"Stalest watched state on this page: {age} ({_name_of(record)})")
    if last := max((row.record for row in rows), key=lambda record: record.changed_at_ms, default=None):
        lines.append(f"Last change on this page: {_age(board.now_ms, last.changed_at_ms)} ago ({_name_of(last)})")
    lines.append(_limit(board.limit))
    if board.has_more_watches:
        lines.append("The watch list is longer than the board reads: some watched rooms are not marked")
    as_of = f"<span>As of {iso_time(board.now_ms)}.</span>"
    return "".join(f"<p>{line}.</p>" for line in lines) + f"<p>{as_of}</p>"


def _limit(limit: Limit) -> str:
    slots = max(round(limit.reserved_seconds * limit.calls_per_second), 0)
    wait = max(limit.reserved_seconds - (limit.burst - 1) / limit.calls_per_second, 0)
    share = f'<meter min="0" max="{limit.burst}" value="{min(slots, limit.burst)}"></meter>'
    used = f"Call limit: {share} {_count(slots, 'call')} reserved ahead of now"
    hold = f"<b>■ On hold</b> for {_duration(limit.hold_seconds)}" if limit.hold_seconds > 0 else "Not on hold"
    rate = f"{limit.calls_per_second:g} a second, {limit.burst} at once"
    return f"{used} ({rate}); the next one waits {wait:.1f} s. {hold}"


def _room(table: RoomTable, now_ms: int, endpoint: str, *, is_alone: bool) -> str:
    app_id, room_id = table.room.app_id, table.room.room_id
    on = sum(row.record.state.publishing is True for row in table.rows)
    caption = f'<bdi title="{_text(app_id)}">{_text(room_id)}</bdi>: {_count(len(table.rows), "user")}, {on} publishing'
    if not is_alone:
        caption += f" {_button('Open', endpoint, app_id=app_id, room=room_id)}"
    elif table.next_after:
        caption += f" {_button('More users', endpoint, app_id=app_id, room=room_id, after=table.next_after)}"
    if table.has_more:
        caption += " (it has more)"
    heads = "".join(f'<th scope="col">{heading}</th>' for heading in _HEADINGS)
    rows = "".join(_row(row, now_ms) for row in table.rows)
    return f"<table><caption>{caption}</caption><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"


def _row(row: Row, now_ms: int) -> str:
    record, state = row.record, row.record.state
    asked_ms = {mark.at_ms for kind, mark in record.observations.items() if is_of_query(kind)}

    def observed(at_ms: int | None) -> str:
        if at_ms is None:
            return "never"
        return f"{_age(now_ms, at_ms)} ago, {'query' if at_ms in asked_ms else 'event'}"

    def cell(value: Value, words: dict[bool | None, tuple[str, str]]) -> str:
        kind, word = words[value.value]
        if value.value is None:
            return f'<td class="{kind}">{word}</td>'
        return f'<td class="{kind}" title="{observed(value.at_ms)}">{word}</td>'

    cells = "".join(cell(state.media[medium], _MEDIUM) for medium in Medium) + cell(state.present, _PRESENT)
    is_new = now_ms - record.changed_at_ms < CHANGED_SECONDS * 1000
    changed = f"{_age(now_ms, record.changed_at_ms)} ago" if record.changed_at_ms else "never"
    name = f"<bdi>{_text(record.target.user_id)}</bdi>{' (watched)' if row.is_watched else ''}"
    return (
        f'<tr{" class=changed" if is_new else ""}><th scope="row" title="{_text(record.target.user_id)}">{name}</th>'
        f"{cells}<td>{'◆ ' if is_new else ''}{changed}</td><td>{observed(state.observed_at_ms)}</td></tr>"
    )


def _button(label: str, endpoint: str, **event: str) -> str:
    """A button that calls the function with an event: CloudWatch reads the element that follows the button."""
    call = json.dumps(event).replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e")
    action = f'<cwdb-action action="call" endpoint="{escape(endpoint)}">{call}</cwdb-action>'
    return f'<button type="button" class="btn">{label}</button>{action}'


def _text(text: str) -> str:
    """A text from outside; what cannot be seen, such as a change of the writing direction, is shown by its number."""
    return escape("".join(char if char.isprintable() else f"[U+{ord(char):04X}]" for char in text))


def _name_of(record: StateRecord) -> str:
    return f"<bdi>{_text(record.target.room_id)}</bdi> / <bdi>{_text(record.target.user_id)}</bdi>"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _age(now_ms: int, at_ms: int) -> str:
    """How long ago a time was; the vendor's clock may be ahead of ours."""
    return _duration(max(now_ms - at_ms, 0) / 1000)


def _duration(seconds: float) -> str:
    """A time in its largest unit."""
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
