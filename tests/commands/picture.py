"""`make board`: the board as one HTML file, and its picture where there is a browser."""

import os
import shutil
import subprocess
import tempfile
import time

from tests.commands.board import BoardServer, populate
from tests.sandbox.samples import ROOM
from tests.sandbox.stack import REPOSITORY, Sandbox

FOLDER = REPOSITORY / ".aws-sam" / "board"
PAGE, PICTURE = FOLDER / "board.html", FOLDER / "board.png"


BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"),
    # The browser must not leave this machine.
    *("--disable-quic", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


def browser() -> str | None:
    """The path of a browser, if there is one."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def save(sandbox: Sandbox) -> int:
    """Write the page and, if a browser is there, the picture; the exit code."""
    populate(sandbox)
    # Some time later, so that the picture shows the mark of a change.
    time.sleep(10)
    sandbox.simulator.publish(ROOM, "student-1", "Audio")
    sandbox.simulator.leave("meeting-3", "bo", reason="kickedByAdmin")
    FOLDER.mkdir(parents=True, exist_ok=True)
    with BoardServer(sandbox) as server:
        widget = server.html({"widgetContext": {"theme": "light"}})
    PAGE.write_text(f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Board</title>{widget}</html>\n')
    print(f"Wrote {PAGE.relative_to(REPOSITORY)}")
    if not (found := browser()):
        print(f"No picture: none of {', '.join(BROWSERS)} was found.")
        return 0
    # The path of a socket in it has at most 108 characters. Whatever the browser writes besides goes with the folder.
    with tempfile.TemporaryDirectory(dir="/tmp") as profile:
        command = [found, *FLAGS, f"--user-data-dir={profile}", "--window-size=1100,840"]
        environment = {**os.environ, "HOME": profile, "TMPDIR": profile}
        shot = [*command, f"--screenshot={PICTURE}", PAGE.as_uri()]
        subprocess.run(shot, env=environment, check=True, capture_output=True, timeout=60)
    print(f"Wrote {PICTURE.relative_to(REPOSITORY)}")
    return 0
