"""The board on loopback as a dashboard shows it: live, with switches, and with rooms in which something happens."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from html import escape
from pathlib import Path

import requests

from tests.sandbox.demonstration import CLASSROOM, ROOM
from tests.sandbox.server import LoopbackServer, Request, Response
from tests.sandbox.simulator import MEDIA
from tests.sandbox.stack import REPOSITORY, Sandbox

PAGE = Path(__file__).with_name("board.page.html").read_text()
FOLDER = REPOSITORY / ".aws-sam" / "board"
# Rooms whose users come, go, mute and share by themselves.
LIVELY: Mapping[str, tuple[str, ...]] = {
    "studio-1": ("engineer", "guest", "host"),
    "karaoke-7": ("alto", "bass", "soprano", "tenor"),
    "meeting-3": ("anna", "bo"),
}
PAUSE_SECONDS = 1.5
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"),
    # The browser must not leave this machine.
    *("--disable-quic", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


def browser() -> str | None:
    """The path of a browser, if there is one."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


class BoardServer(LoopbackServer):
    """Serves the board of a sandbox, and switches the media of its simulated users."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        super().__init__(self._answer)

    def _answer(self, request: Request, connection: socket.socket) -> Response:
        match request.method, request.path:
            case "GET", "/" | "/board":
                text = PAGE.replace("{board}", self.html({}))
            case "POST", "/widget":
                text = self.html(json.loads(request.body))
            case "POST", "/switch":
                text = self._switch(**json.loads(request.body))
            case _:
                return Response(404)
        headers = [("Content-Type", "text/html; charset=utf-8"), ("Cache-Control", "no-store")]
        return Response(200, text.encode(), headers)

    def html(self, event: object) -> str:
        """What the function answers to an event."""
        invocation = self._sandbox.invoke("BoardFunction", event)
        return f"<pre>{escape(json.dumps(invocation.payload))}</pre>" if invocation.error else invocation.payload

    def _switch(self, app_id: str, room_id: str, user_id: str, column: int) -> str:
        """Switch what a column of the board shows; the event, the state and the message that follow."""
        simulator = self._sandbox.simulator
        self._sandbox.receive()
        switch(self._sandbox, room_id, user_id, ["", *MEDIA, ""][column], app_id)
        target = {"app_id": app_id, "room_id": room_id, "user_id": user_id}
        state = self._sandbox.invoke("TaskFunction", {**target, "max_age": 3600}).payload
        messages = [message for message in self._sandbox.receive_messages(1, 2) if target.items() <= message.items()]
        shown = {"event": json.loads(simulator.pushed[room_id, user_id]), "state": state, "messages": messages}
        return "\n\n".join(f"{name}: {json.dumps(value)}" for name, value in shown.items())


def switch(sandbox: Sandbox, room_id: str, user_id: str, media_type: str, app_id: str | None = None) -> None:
    """Switch a medium of a user, or without a medium let the user come or go; who is not there comes."""
    simulator = sandbox.simulator
    published = simulator.published(room_id, user_id, app_id)
    if not media_type and published is not None:
        simulator.leave(room_id, user_id, app_id)
    else:
        media_types = [media_type] if media_type else []
        simulator.publish(room_id, user_id, *media_types, on=media_type not in (published or ()), app_id=app_id)


def populate(sandbox: Sandbox) -> None:
    """Let users publish, watch those of the class, and ask about them once."""
    simulator = sandbox.simulator
    simulator.push_to = sandbox.callback_url
    for user, media in CLASSROOM.items():
        simulator.publish(ROOM, user, *media)
    for room, users in LIVELY.items():
        for user, media_type in zip(users, MEDIA, strict=False):
            simulator.publish(room, user, media_type)
    targets = {"targets": [{"room_id": ROOM, "user_id": user} for user in CLASSROOM]}
    with requests.Session() as session:
        session.trust_env = False
        session.post(f"{sandbox.api_url}/watches", json=targets, timeout=60)
    sandbox.invoke("SweepFunction", {})


def live(sandbox: Sandbox, ending: threading.Event) -> None:
    """Let something happen in the lively rooms until the end, and now and then a sweep."""
    while not ending.wait(PAUSE_SECONDS):
        room_id = secrets.choice(list(LIVELY))
        # One in nine comes or goes.
        switch(sandbox, room_id, secrets.choice(LIVELY[room_id]), secrets.choice([*MEDIA, *MEDIA, ""]))
        if secrets.randbelow(10) == 0:
            sandbox.invoke("SweepFunction", {})


@contextmanager
def living_board(sandbox: Sandbox) -> Iterator[str]:
    """The address of the live board, while it is served."""
    ending = threading.Event()
    life = threading.Thread(target=live, args=(sandbox, ending))
    with BoardServer(sandbox) as server:
        life.start()
        try:
            yield f"{server.url}/board"
        finally:
            ending.set()
            life.join()


def save(sandbox: Sandbox) -> int:
    """Write the board as one HTML file, and its picture where there is a browser."""
    populate(sandbox)
    # Some time later, so that the picture shows the mark of a change.
    time.sleep(10)
    sandbox.simulator.publish(ROOM, "student-1", "Audio")
    sandbox.simulator.leave("meeting-3", "bo", reason="kickedByAdmin")
    FOLDER.mkdir(parents=True, exist_ok=True)
    page, picture = FOLDER / "board.html", FOLDER / "board.png"
    with BoardServer(sandbox) as server:
        widget = server.html({"widgetContext": {"theme": "light"}})
    page.write_text(f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Board</title>{widget}</html>\n')
    print(f"Wrote {page.relative_to(REPOSITORY)}")
    if found := browser():
        # The path of a socket in it has at most 108 characters.
        with tempfile.TemporaryDirectory(dir="/tmp") as profile:
            command = [found, *FLAGS, f"--user-data-dir={profile}", "--window-size=1100,840"]
            shot = [*command, f"--screenshot={picture}", page.as_uri()]
            # Whatever it writes besides goes with the folder.
            subprocess.run(
                shot,
                env={**os.environ, "HOME": profile, "TMPDIR": profile},
                check=True,
                capture_output=True,
                timeout=60,
            )
        print(f"Wrote {picture.relative_to(REPOSITORY)}")
    else:
        print(f"No picture: none of {', '.join(BROWSERS)} was found.")
    return 0
