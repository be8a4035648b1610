"""The board on loopback as a dashboard shows it: live, with switches, and with rooms in which something happens."""

import json
import math
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from html import escape
from pathlib import Path

from tests.sandbox.samples import CLASSROOM, ROOM
from tests.sandbox.server import LoopbackServer, Request, Response, send
from tests.sandbox.simulator import MEDIA
from tests.sandbox.stack import Sandbox

PAGE = Path(__file__).with_name("board.page.html").read_text()
# Rooms whose users come, go, mute and share by themselves.
LIVELY: Mapping[str, tuple[str, ...]] = {
    "studio-1": ("engineer", "guest", "host"),
    "karaoke-7": ("alto", "bass", "soprano", "tenor"),
    "meeting-3": ("anna", "bo"),
}
PAUSE_SECONDS = 1.5


class BoardServer(LoopbackServer):
    """Serves the board of a sandbox, and switches the media of its simulated users."""

    def __init__(self, sandbox: Sandbox, port: int = 0) -> None:
        self._sandbox = sandbox
        self._shown_at = -math.inf
        super().__init__(self._answer, port)

    @property
    def is_watched(self) -> bool:
        """Whether a browser shows the page, which asks for the board again and again."""
        return time.monotonic() < self._shown_at + 5

    def _answer(self, request: Request, connection: socket.socket) -> Response:
        match request.method, request.path:
            case "GET", "/":
                text = PAGE.replace("{board}", self.html({}))
            case "POST", "/widget":
                self._shown_at = time.monotonic()
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
    send("POST", f"{sandbox.api_url}/watches", json=targets)
    sandbox.invoke("SweepFunction", {})


@contextmanager
def living_board(sandbox: Sandbox, port: int) -> Iterator[str]:
    """The address of the board, in whose lively rooms something happens while a browser shows it."""
    ending = threading.Event()

    def live() -> None:
        while not ending.wait(PAUSE_SECONDS):
            if server.is_watched:
                room_id = secrets.choice(list(LIVELY))
                # One in nine comes or goes.
                switch(sandbox, room_id, secrets.choice(LIVELY[room_id]), secrets.choice([*MEDIA, *MEDIA, ""]))
                if secrets.randbelow(10) == 0:
                    sandbox.invoke("SweepFunction", {})

    life = threading.Thread(target=live)
    with BoardServer(sandbox, port) as server:
        life.start()
        try:
            yield server.url
        finally:
            ending.set()
            life.join()
