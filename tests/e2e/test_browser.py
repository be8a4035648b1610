"""The board in a real browser, served as the dashboard shows it, from the built function and its table."""

import json
import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from itertools import batched
from pathlib import Path
from typing import Any

import pytest

from tests.commands.board import BoardServer
from tests.commands.picture import browser
from tests.e2e.browser import DRIVER, Browser
from tests.e2e.contents import table_items
from tests.e2e.http import Http
from tests.sandbox.simulator import APP_ID, MEDIA
from tests.sandbox.stack import Sandbox
from tests.unit.widget import Widget

IS_REQUIRED = os.environ.get("BROWSER_IS_REQUIRED") == "yes"
pytestmark = pytest.mark.skipif(
    not (DRIVER and browser()) and not IS_REQUIRED,
    reason="no browser with a driver is installed (Debian: chromium and chromium-driver)",
)

ROOM = "class-1"
# For what is no claim about time: a loaded machine is slow.
PATIENCE_SECONDS = 60
WORDS = {True: "● on", False: "○ off", None: "? not known"}
PRESENCES = {True: "▲ present", False: "▽ gone", None: "? not known"}
MARKUP = [
    "<script>window.ran = 1</script>",
    "<img src=x onerror='window.ran = 2'>",
    '"><svg/onload="window.ran = 3">',
    "' autofocus onfocus='window.ran = 4' x='",
    "</cwdb-action></table><iframe srcdoc='<script>parent.ran = 5</script>'></iframe>",
    "</style><style>@import 'http://127.0.0.1:9/'",
    "user\u202etxt.exe",
]
# The least contrast of a text with its background, by the formula of WCAG 2.
CONTRAST = r"""
const light = (color) => {
  const [red, green, blue] = color.match(/\d+/g).map((part) => part / 255)
    .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
};
const ground = (element) => {
  const color = getComputedStyle(element).backgroundColor;
  return color === "rgba(0, 0, 0, 0)" ? ground(element.parentElement) : color;
};
const ratios = [...document.querySelectorAll(".board th, .board td, .board p, .board caption")].map((element) => {
  const [low, high] = [light(getComputedStyle(element).color), light(ground(element))].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
});
return Math.min(...ratios);
"""


@pytest.fixture(scope="module")
def parameters() -> Mapping[str, str]:
    return {"EnableCallbacks": "true"}


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture
def page(sandbox: Sandbox, window: Browser) -> Iterator[Browser]:
    """The window, whose console must hold no error in the end, at the live board of a class."""
    sandbox.simulator.push_to = sandbox.callback_url
    sandbox.simulator.publish(ROOM, "teacher", "Audio")
    with BoardServer(sandbox) as server:
        window.open(f"{server.url}/")
        yield window
        assert window.console() == []
        window.open("about:blank")
    sandbox.simulator.push_to = None


def cells(page: Browser) -> dict[tuple[str, str], list[str]]:
    """By room and user: the four media and presence, as the page shows them."""
    script = """return [...document.querySelectorAll(".board tbody tr")].map((row) => [
        row.closest("table").querySelector("caption bdi").innerText,
        ...[...row.children].slice(0, 6).map((cell) => cell.innerText)])"""
    return {(room, user.removesuffix(" (watched)")): shown for room, user, *shown in page.run(script)}


def click(page: Browser, label: str) -> None:
    found = "[...document.querySelectorAll('button')].find((button) => button.innerText === arguments[0])"
    page.run(f"{found}.click()", label)


def refreshed(page: Browser) -> None:
    """Wait for a page that was read after now."""
    now = datetime.now(UTC).isoformat()
    page.wait(lambda: page.text().partition("As of ")[2] > now, PATIENCE_SECONDS)


def next_page(page: Browser) -> dict[tuple[str, str], list[str]]:
    before = cells(page).keys()
    click(page, "Next page")
    page.wait(lambda: cells(page) and not before & cells(page).keys(), PATIENCE_SECONDS)
    return cells(page)


def copies(sandbox: Sandbox, targets: list[tuple[str, str]]) -> None:
    """Store the record of the class's teacher under other names."""
    item = next(item for item in table_items(sandbox) if item["pk"]["S"].startswith("state#") and "user_id" in item)
    name, dynamodb = sandbox.outputs["StateTableName"], sandbox.client("dynamodb")
    for batch in batched(targets, 25, strict=False):
        items = [
            {**item, "pk": {"S": f"state#{APP_ID}#{room}"}, "sk": {"S": user}}
            | {"room_id": {"S": room}, "user_id": {"S": user}}
            for room, user in batch
        ]
        dynamodb.batch_write_item(RequestItems={name: [{"PutRequest": {"Item": item}} for item in items]})


def test_the_board_shows_what_the_table_holds(sandbox: Sandbox, page: Browser) -> None:
    simulator, http = sandbox.simulator, Http(sandbox.api_url)
    for number, medium in enumerate(MEDIA):
        simulator.publish(f"room-{number % 2}", f"user-{number}", medium)
        simulator.publish(f"room-{number % 2}", f"user-{number}", medium, on=number > 0)
    http.put("/rooms/room-1/users/guest/watch")
    http.get("/rooms/room-0/users/user-2/stream-state")
    simulator.leave("room-1", "user-3", reason="kickedByAdmin")
    state = sandbox.invoke("TaskFunction", {"room_id": "room-1", "user_id": "user-1", "max_age": 0}).payload

    refreshed(page)

    shown = cells(page)
    assert shown["room-1", "user-1"] == [*map(WORDS.get, state["media"].values()), PRESENCES[state["present"]]]
    answers = [http.get(f"/rooms/{room}/stream-states").body["results"] for room in (ROOM, "room-0", "room-1")]
    listed = {(one["room_id"], one["user_id"]): one for answer in answers for one in answer}
    assert len(listed) >= 4
    for target, one in listed.items():
        assert shown[target] == [*map(WORDS.get, one["media"].values()), PRESENCES[one["present"]]]
    assert shown["room-1", "guest"] == ["? not known"] * 5
    assert shown["room-1", "user-3"][-1] == "▽ gone"


def test_the_board_follows_a_change_within_five_seconds(sandbox: Sandbox, page: Browser) -> None:
    assert cells(page)[ROOM, "teacher"][:2] == ["● on", "? not known"]

    sandbox.simulator.publish(ROOM, "teacher", "Video")
    page.wait(lambda: cells(page)[ROOM, "teacher"][1] == "● on", 5)
    sandbox.simulator.publish(ROOM, "teacher", "Video", on=False)
    page.wait(lambda: cells(page)[ROOM, "teacher"][1] == "○ off", 5)
    sandbox.simulator.join("class-2", "pupil")
    page.wait(lambda: ("class-2", "pupil") in cells(page), 5)


def test_two_hundred_rooms_are_shown_page_by_page(sandbox: Sandbox, page: Browser) -> None:
    rooms = [f"room-{number:03}" for number in range(200)]
    copies(sandbox, [(room, f"user-{number}") for room in rooms for number in range(5)])
    watched = [{"room_id": room, "user_id": "user-4"} for room in rooms[:60]]
    assert Http(sandbox.api_url).post("/watches", {"targets": watched}).status == 200

    refreshed(page)
    seen = [cells(page)]
    while "Next page" in page.text():
        seen.append(next_page(page))

    shown = [target for found in seen for target in found]
    assert {room for room, _ in shown} == {ROOM, *rooms}
    assert len(shown) == len(set(shown)) == 1001
    assert {room for room, _ in seen[0]} == set(rooms[:50])


def test_a_room_is_searched_and_opened(sandbox: Sandbox, page: Browser) -> None:
    copies(sandbox, [("hall", f"user-{number:03}") for number in range(250)])

    page.run("document.querySelector('input').value = 'hal'")
    click(page, "Search")
    page.wait(lambda: {room for room, _ in cells(page)} == {"hall"}, PATIENCE_SECONDS)
    click(page, "Open")
    page.wait(lambda: len(cells(page)) == 200, PATIENCE_SECONDS)
    click(page, "More users")
    page.wait(lambda: len(cells(page)) == 50, PATIENCE_SECONDS)
    click(page, "All rooms")
    page.wait(lambda: {room for room, _ in cells(page)} == {"hall", ROOM}, PATIENCE_SECONDS)


@pytest.mark.parametrize("way", ["served", "widget alone"])
def test_a_hostile_name_runs_no_script(sandbox: Sandbox, page: Browser, tmp_path: Path, way: str) -> None:
    copies(sandbox, [(name, other) for name in MARKUP for other in MARKUP])

    if way == "served":
        page.run("location.reload()")
    else:
        file = tmp_path / "board.html"
        file.write_text(f'<!doctype html><meta charset="utf-8">{sandbox.invoke("BoardFunction", {}).payload}')
        page.open(file.as_uri())
    page.wait(lambda: len(cells(page)) == len(MARKUP) ** 2 + 1, PATIENCE_SECONDS)

    names = [name.replace("\u202e", "[U+202E]") for name in MARKUP]
    assert set(cells(page)) == {(ROOM, "teacher"), *((name, other) for name in names for other in names)}
    assert page.run("return window.ran") is None
    assert page.run("return document.querySelectorAll('iframe, img, svg, .board script').length") == 0
    for index in range(len(MARKUP) + 1):
        page.run(f"document.querySelectorAll('caption button')[{index}]?.click()")
    assert page.run("return window.ran") is None


def test_a_click_on_a_state_shows_event_state_and_message(sandbox: Sandbox, page: Browser) -> None:
    assert len(cells(page)) == 1

    page.run("document.querySelector('.board tbody td:nth-child(3)').click()")

    page.wait(lambda: "UserVideoStreamStart" in page.text(), PATIENCE_SECONDS)
    shown = page.run("return document.getElementById('happened').innerText")
    event, state, messages = (json.loads(part.partition(": ")[2]) for part in shown.split("\n\n"))
    assert json.loads(event["EventData"])["UserId"] == "teacher"
    assert state["media"]["video"] is True
    assert messages[-1]["media"]["video"] is True
    assert "video" in messages[-1]["changed"]
    page.wait(lambda: cells(page)[ROOM, "teacher"][1] == "● on", PATIENCE_SECONDS)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_board_can_be_read_in_light_and_in_dark(sandbox: Sandbox, page: Browser, theme: str) -> None:
    media = [{"name": "prefers-color-scheme", "value": theme}]
    page.command("Emulation.setEmulatedMedia", {"features": media})

    page.wait(
        lambda: page.run("return document.querySelector('.board').className") == f"board {theme}", PATIENCE_SECONDS
    )

    assert page.run(CONTRAST) >= 4.5
    assert page.run("return getComputedStyle(document.querySelector('.board')).backgroundColor") == (
        "rgb(255, 255, 255)" if theme == "light" else "rgb(15, 27, 42)"
    )


def test_what_the_function_returns_keeps_the_rules_of_cloudwatch(sandbox: Sandbox, page: Browser) -> None:
    copies(sandbox, [(f"{'r' * 124}-{number:03}", "u" * 120 + str(user)) for number in range(60) for user in range(25)])

    answer: Any = sandbox.invoke("BoardFunction", {"widgetContext": {"theme": "dark"}}).payload

    # The largest page that there can be.
    assert len(Widget(answer).cells) == 49 * 20 + 1
    assert sandbox.invoke("BoardFunction", {"describe": True}).payload["markdown"].startswith("### ")
    assert sandbox.invoke("BoardFunction", {"describe": 1}).error_type == "InvalidRequest"
