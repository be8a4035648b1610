"""The board: what a page shows of the table, how pages follow each other, and what CloudWatch may be sent."""

from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

import pytest
from botocore.exceptions import ClientError
from hypothesis import given
from hypothesis import strategies as st

from stream_state.domain.board import html_of
from stream_state.domain.observations import Mark, QueryResult, absent
from stream_state.domain.requests import BoardRequest
from stream_state.domain.targets import Medium, Room, Target
from stream_state.errors import InvalidRequest, StateUnavailable
from stream_state.services import board as board_module
from stream_state.services.board import ROOMS_OF_PAGE, USERS_OF_ROOM, read_page
from stream_state.settings import Settings
from tests.unit.fakes import Clock
from tests.unit.memory import APP_ID, ENVIRONMENT, Context, World, samples
from tests.unit.widget import Widget, pages

TEACHER = Target(APP_ID, "class-1", "teacher")
ARN = Context().invoked_function_arn
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</style></table><svg/onload=alert(1)>",
    "</cwdb-action><b>",
    "{{7*7}} ${7*7} &lt;b&gt; &#60;",
    "user\u202egnp.exe",
    "a\u0000b\nc\td\u200be\ufeff\ud800",
    "שלום",
    "\\u003cscript\\u003e",
]
Read = Callable[[Any], str]


@pytest.fixture
def read(world: World, monkeypatch: pytest.MonkeyPatch) -> Read:
    monkeypatch.setattr(board_module, "CONCURRENCY", 1)
    handler = world.function("board", monkeypatch).lambda_handler
    return lambda event: handler(event, Context())


def found(world: World, target: Target, *on: Medium, unknown: tuple[Medium, ...] = ()) -> None:
    media = {medium: None if medium in unknown else medium in on for medium in Medium}
    world.store.observe(target, QueryResult(media, world.clock.now_ms(), "request-1").observations())


def users(room: str, number: int, app_id: str = APP_ID) -> list[Target]:
    return [Target(app_id, room, f"user-{index:04}") for index in range(number)]


def test_each_value_is_told_by_shape_and_word_and_unknown_is_never_off(world: World, read: Read) -> None:
    found(world, TEACHER, Medium.AUDIO, unknown=(Medium.SCREEN_VIDEO,))
    found(world, Target(APP_ID, "class-1", "silent"))
    gone = Target(APP_ID, "class-1", "gone")
    found(world, gone, Medium.VIDEO)
    world.clock.sleep(10)
    world.store.observe(gone, absent(world.clock.now_ms()))

    widget = Widget(read({}))

    assert widget.of("class-1", "teacher") == ["● on", "○ off", "○ off", "? not known", "▲ present"]
    assert widget.of("class-1", "silent") == ["○ off"] * 4 + ["? not known"]
    assert widget.of("class-1", "gone") == ["○ off", "? not known", "○ off", "○ off", "▽ gone"]
    assert widget.lines[0] == "1 room on this page, 3 users, 1 publishing."


def test_ages_and_sources_are_shown_and_a_change_is_marked(world: World, read: Read) -> None:
    found(world, TEACHER, Medium.AUDIO)
    world.clock.sleep(130)
    at_ms = world.clock.now_ms()
    world.store.observe(Target(APP_ID, "class-1", "guest"), {"video.start": Mark(at_ms, at_ms)})
    world.clock.sleep(4)

    widget = Widget(read({}))

    assert widget.cells["class-1", "teacher"][6:] == ["2 min ago", "2 min ago, query"]
    assert widget.cells["class-1", "guest"][6:] == ["◆ 4 s ago", "4 s ago, event"]
    assert widget.classes[1:] == ["", "changed", ""]
    assert widget.line("Last change") == "Last change on this page: 4 s ago (class-1 / guest)."


def test_a_change_is_one_of_the_values_and_no_new_observation_of_the_same(world: World, read: Read) -> None:
    found(world, TEACHER, Medium.AUDIO)
    world.clock.sleep(60)
    found(world, TEACHER, Medium.AUDIO)

    assert Widget(read({})).cells["class-1", "teacher"][6:] == ["60 s ago", "0 s ago, query"]


def test_watched_rooms_and_users_come_first_and_who_has_gone_last(world: World, read: Read) -> None:
    for target in [Target(APP_ID, "a-room", "user"), *users("z-room", 3)]:
        found(world, target)
    world.store.observe(users("z-room", 1)[0], absent(world.clock.now_ms() + 1))
    world.watch_list.add([users("z-room", 3)[2], Target(APP_ID, "z-room", "never-seen")], 3600)

    widget = Widget(read({}))

    assert widget.rooms == ["z-room", "a-room"]
    assert [cells[0] for (room, _), cells in widget.cells.items() if room == "z-room"] == [
        "never-seen (watched)",
        "user-0002 (watched)",
        "user-0001",
        "user-0000",
    ]
    assert widget.of("z-room", "never-seen") == ["? not known"] * 5
    assert widget.line("Stalest") == "Stalest watched state on this page: never observed (z-room / never-seen)."


def test_a_room_that_is_watched_as_a_whole_comes_first_with_all_its_users(world: World, read: Read) -> None:
    for target in [Target(APP_ID, "a-room", "user"), *users("z-room", 2)]:
        found(world, target)
    world.watch_list.add([Room(APP_ID, "z-room"), Room(APP_ID, "empty")], 3600)

    widget = Widget(read({}))

    assert widget.rooms == ["z-room", "a-room"]
    assert [cells[0] for cells in widget.cells.values()] == ["user-0000 (watched)", "user-0001 (watched)", "user"]


def test_the_stalest_watched_state_is_named(world: World, read: Read) -> None:
    for target in users("class-1", 3):
        found(world, target)
        world.clock.sleep(100)
    world.watch_list.add(users("class-1", 3)[1:], 3600)

    assert Widget(read({})).line("Stalest") == "Stalest watched state on this page: 3 min old (class-1 / user-0001)."


@pytest.mark.parametrize(
    ("ahead_seconds", "hold_seconds", "shown"),
    [
        (-5, -1, "0 calls reserved ahead of now (50 a second, 5 at once); the next one waits 0.0 s. Not on hold"),
        (0.02, -1, "1 call reserved ahead of now (50 a second, 5 at once); the next one waits 0.0 s. Not on hold"),
        (2.08, -1, "104 calls reserved ahead of now (50 a second, 5 at once); the next one waits 2.0 s. Not on hold"),
        (0, 30, "0 calls reserved ahead of now (50 a second, 5 at once); the next one waits 0.0 s. ■ On hold for 30 s"),
        (
            0,
            8e9,
            "0 calls reserved ahead of now (50 a second, 5 at once); the next one waits 0.0 s. ■ On hold for 92593 d",
        ),
    ],
)
def test_the_use_of_the_call_limit_is_shown(
    world: World, read: Read, ahead_seconds: float, hold_seconds: float, shown: str
) -> None:
    now = world.clock.now()
    world.table.call(
        "update_item",
        Key={"pk": {"S": "limiter"}, "sk": {"S": "rtc"}},
        UpdateExpression="SET next_us = :next, hold_until = :hold",
        ConditionExpression="attribute_not_exists(pk)",
        ExpressionAttributeValues={
            ":next": {"N": f"{(now + ahead_seconds) * 1_000_000:.0f}"},
            ":hold": {"N": f"{now + hold_seconds:.0f}"},
        },
    )

    assert Widget(read({})).line("Call limit") == f"Call limit:  {shown}."


def test_an_empty_table_is_said_to_be_empty(read: Read) -> None:
    widget = Widget(read({}))

    assert widget.rooms == []
    assert widget.lines[-1] == "No room is known here."
    assert widget.line("Call limit").endswith("Not on hold.")


@pytest.mark.parametrize("watched", [0, 60, 130])
@pytest.mark.parametrize("items_of_scan", [1000, 7])
def test_every_room_is_on_one_page_watched_ones_first(
    world: World, read: Read, watched: int, items_of_scan: int
) -> None:
    world.dynamodb.client.max_scan_items = items_of_scan
    rooms = [f"room-{number:03}" for number in range(130)]
    for room in rooms:
        for target in users(room, 3):
            found(world, target)
    world.watch_list.add([users(room, 1)[0] for room in rooms[130 - watched :]], 3600)

    found_pages = list(pages(read, {}))

    shown = [room for widget in found_pages for room in widget.rooms]
    assert sorted(shown) == rooms
    assert shown[:watched] == rooms[130 - watched :]
    assert all(len(widget.rooms) <= ROOMS_OF_PAGE for widget in found_pages)
    assert max(len(widget.rooms) for widget in found_pages) == ROOMS_OF_PAGE or items_of_scan == 7


def test_a_search_finds_rooms_by_a_part_of_their_names_the_exact_name_first(world: World, read: Read) -> None:
    for room in ("class-1", "class-10", "my-class-1", "hall"):
        found(world, Target(APP_ID, room, "user"))
    found(world, Target("app-2", "class-1", "user"))
    world.watch_list.add([Target(APP_ID, "class-10", "user")], 3600)

    widget = Widget(read({"widgetContext": {"forms": {"all": {"room": " class-1 "}}}}))

    assert widget.typed == "class-1"
    assert [button["room"] for button in widget.buttons["Open"]] == ["class-1", "class-1", "class-10", "my-class-1"]
    # A click says more than what was typed before it.
    event = {"room": "hall", "widgetContext": {"forms": {"all": {"room": "class-1"}}}}
    assert Widget(read(event)).rooms == ["hall"]


def test_a_search_over_several_pages_shows_each_room_once(world: World, read: Read) -> None:
    rooms = [f"room-{number:03}" for number in range(160)]
    for room in rooms:
        found(world, Target(APP_ID, room, "user"))
    found(world, Target(APP_ID, "room", "user"))
    world.watch_list.add([Target(APP_ID, room, "user") for room in ["room", *rooms[:70]]], 3600)

    shown = [room for widget in pages(read, {"room": "room"}) for room in widget.rooms]

    assert shown == ["room", *rooms]


def test_a_search_finds_a_room_that_no_scan_reaches(world: World, read: Read) -> None:
    world.dynamodb.client.max_scan_items = 1
    for room in [f"room-{number}" for number in range(9)]:
        found(world, Target(APP_ID, room, "user"))

    assert Widget(read({"room": "room-8"})).rooms == ["room-8"]


def test_a_large_room_is_cut_on_the_overview_and_whole_when_opened(world: World, read: Read) -> None:
    crowd = users("hall", 450)
    for target in crowd:
        found(world, target)
    world.watch_list.add(crowd[440:], 3600)

    overview = Widget(read({}))
    assert len(overview.cells) == USERS_OF_ROOM
    assert [user for _, user in overview.cells][:10] == [target.user_id for target in crowd[440:]]
    (event,) = overview.buttons["Open"]
    opened = list(pages(read, event, "More users"))

    shown = [user for widget in opened for _, user in widget.cells]
    assert sorted(shown) == [target.user_id for target in crowd]
    assert {widget.typed for widget in opened} == {"hall"}


def test_an_opened_room_is_of_its_app_alone(world: World, read: Read) -> None:
    found(world, TEACHER)
    found(world, Target("app-2", "class-1", "other"))

    widget = Widget(read({"app_id": "app-2", "room": "class-1"}))

    assert list(widget.cells) == [("class-1", "other")]
    assert widget.buttons["Refresh"] == [{"app_id": "app-2", "room": "class-1"}]
    assert widget.buttons["All rooms"] == [{"room": ""}]


def test_expired_records_and_ends_of_rooms_are_no_rooms(world: World, read: Read) -> None:
    found(world, TEACHER)
    world.clock.sleep(90_000)
    world.store.end_room(Room(APP_ID, "class-2"), Mark(world.clock.now_ms(), world.clock.now_ms()))

    assert Widget(read({})).rooms == []


@pytest.mark.parametrize("event", [{}, {"room": "class-1"}, {"app_id": APP_ID, "room": "class-1"}], ids=str)
@pytest.mark.parametrize("most", [3, 200])
def test_users_of_yesterday_hide_nobody(world: World, read: Read, event: dict[str, Any], most: int) -> None:
    world.dynamodb.client.max_scan_items = most
    for target in users("class-1", 250):
        found(world, target)
    world.clock.sleep(90_000)
    found(world, Target(APP_ID, "class-1", "zoe"), Medium.AUDIO)

    shown = [user for page in pages(read, event) for user in page.cells]

    assert shown == [("class-1", "zoe")]


@pytest.mark.parametrize("event", [{"room": "class-1#"}, {"app_id": APP_ID, "room": "class-1#"}], ids=str)
def test_a_name_that_no_room_can_have_finds_nothing(world: World, read: Read, event: object) -> None:
    world.store.end_room(Room(APP_ID, "class-1"), Mark(world.clock.now_ms(), world.clock.now_ms()))

    assert Widget(read(event)).rooms == []


def test_what_a_page_reads_is_bounded(world: World, read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board_module, "MAX_WATCHES", 300)
    crowds = [target for number in range(20) for target in users(f"hall-{number}", 60)]
    world.watch_list.add(crowds, 3600)
    world.dynamodb.client.max_scan_items = 3
    world.dynamodb.made.clear()

    widget = Widget(read({}))

    assert widget.line("The watch list is longer")
    assert world.dynamodb.count("scan") <= board_module.MAX_SCANS
    rows = [call["Limit"] for name, call in world.dynamodb.made if name == "query" and "state#" in str(call)]
    assert set(rows) == {USERS_OF_ROOM}
    assert {name for name, _ in world.dynamodb.made} <= {"get_item", "batch_get_item", "query", "scan"}


def test_a_page_of_a_few_rooms_costs_few_requests(world: World, read: Read) -> None:
    for room in ("hall", "class-1", "stage"):
        for target in users(room, 5):
            found(world, target)
    world.watch_list.add(users("hall", 5), 3600)
    world.dynamodb.made.clear()

    read({})

    # The partitions of the watch list, and each room.
    counts = {name: world.dynamodb.count(name) for name, _ in world.dynamodb.made}
    assert counts == {"query": 16 + 3, "scan": 1, "get_item": 1}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_text_and_nothing_else(world: World, read: Read, name: str) -> None:
    target = Target(name, name, name)
    request = BoardRequest(name, name, name, name)
    world.store.observe(target, absent(world.clock.now_ms()))
    settings = Settings.from_environment(ENVIRONMENT)

    widget = Widget(html_of(read_page(BoardRequest(name, name), world.store, settings), request, ARN))

    ((room, user),) = widget.cells
    assert room == user == "".join(char if char.isprintable() else f"[U+{ord(char):04X}]" for char in name)
    assert widget.buttons["Refresh"] == [{"app_id": name, "room": name, "after": name}]


@given(st.text(min_size=1))
def test_any_name_keeps_the_rules_of_widgets(name: str) -> None:
    world = World(Clock())
    world.store.observe(Target(name, name, name), absent(world.clock.now_ms()))
    settings = Settings.from_environment(ENVIRONMENT)

    widget = Widget(html_of(read_page(BoardRequest(), world.store, settings), BoardRequest(), ARN))

    assert widget.buttons["Open"] == [{"app_id": name, "room": name}]


@pytest.mark.parametrize("theme", ["light", "dark", "auto"])
def test_the_theme_of_the_dashboard_is_kept(read: Read, theme: str) -> None:
    context = {} if theme == "auto" else {"widgetContext": {"theme": theme}}

    html = read(context)

    assert Widget(html).classes == [f"board {theme}"]
    assert "prefers-color-scheme:dark" in html


@pytest.mark.parametrize("theme", [None, 7, ["dark"], {}, 'dark"><script>'])
def test_an_unknown_theme_is_that_of_the_browser(read: Read, theme: object) -> None:
    assert Widget(read({"widgetContext": {"theme": theme}})).classes == ["board auto"]


def test_the_samples_are_answered(world: World, read: Read) -> None:
    found(world, TEACHER, Medium.AUDIO)
    given = samples("board")

    assert list(given) == ["board/describe", "board/open-room", "board/overview"]
    assert "app_id" in Widget(read(given["board/overview"])).buttons["Open"][0]
    assert Widget(read(given["board/open-room"])).rooms == ["class-1"]


@pytest.mark.parametrize("more", [{}, {"widgetContext": {"theme": "light"}}])
def test_describe_answers_the_documentation_and_reads_nothing(
    world: World, read: Any, more: Mapping[str, object]
) -> None:
    answer = read({"describe": True, **more})

    assert answer.keys() == {"markdown"}
    assert "app_id" in answer["markdown"]
    assert world.is_untouched


@pytest.mark.parametrize(
    "event",
    [
        *(None, [], "text", 7, True, [{}], {"describe": False}, {"describe": "true"}, {"describe": 1}),
        *samples("api", "callback", "task").values(),
        *({"room": None}, {"room": 7}, {"room": ["class-1"]}, {"room": "\U0001f600" * 126}, {"room": "\ud800"}),
        *({"app_id": None, "room": "class-1"}, {"app_id": {}}, {"rooms": "class-1"}, {"user_id": "teacher"}),
        *({"after": 7}, {"after": "here"}, {"after": "x" * 501}, {"after": "Watched#a#b"}, {"after": None}),
        *({"widgetContext": None}, {"widgetContext": "x"}, {"widgetContext": {"forms": []}}),
        *({"widgetContext": {"forms": {"all": None}}}, {"widgetContext": {"forms": {"all": {"room": 7}}}}),
    ],
    ids=count(),
)
def test_any_other_event_is_refused_before_anything_is_read(world: World, read: Read, event: object) -> None:
    with pytest.raises(InvalidRequest):
        read(event)

    assert world.is_untouched


@pytest.mark.parametrize("operation", ["query", "scan", "get_item"])
def test_a_table_that_fails_is_said_so(world: World, read: Read, operation: str) -> None:
    found(world, TEACHER)
    denied = ClientError({"Error": {"Code": "AccessDeniedException", "Message": "canary"}}, "Any")
    world.dynamodb.effects[operation] = iter([denied])

    with pytest.raises(StateUnavailable) as raised:
        read({})

    assert "canary" not in str(raised.value)
