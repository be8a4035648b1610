"""The commands of the Makefile: `make run`, `serve`, `board` and `query`, as a stranger's machine runs them."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.e2e.browser import browser
from tests.e2e.http import Http
from tests.e2e.picture import PAGE, PICTURE
from tests.sandbox.simulator import APP_ID, KEYS, Keys, Simulator
from tests.sandbox.stack import REPOSITORY
from tests.unit.widget import Widget

COMMAND = [sys.executable, "-m"]
SETTINGS = {
    "VOLCENGINE_ACCESS_KEY": KEYS.access_key_id,
    "VOLCENGINE_SECRET_KEY": KEYS.secret_access_key,
    "RTC_APP_IDS": APP_ID,
}
TARGET = ["--room-id=class-1", "--user-id=teacher"]


@pytest.fixture
def environment_of(tmp_path: Path) -> Iterator[dict[str, str]]:
    """An environment without settings, in which every temporary file lies in a folder of its own."""
    yield {"PATH": os.environ["PATH"], "TMPDIR": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    # Neither file nor process is left: each process names that folder in its environment.
    assert list(tmp_path.iterdir()) == []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            assert str(tmp_path).encode() not in environ.read_bytes()
        except OSError:
            continue


def tree() -> dict[str, tuple[int, int]]:
    """Size and time of every file of the repository that is not bytecode or another tool's memory."""
    found = {}
    for folder, folders, files in os.walk(REPOSITORY):
        folders[:] = [name for name in folders if name != "__pycache__" and (name[0] != "." or name == ".aws-sam")]
        for name in files:
            status = (Path(folder) / name).stat()
            found[f"{folder}/{name}"] = (status.st_size, status.st_mtime_ns)
    return found


def run_module(environment: dict[str, str], *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=REPOSITORY,
        env={**environment, **more},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def masked(text: str) -> set[str]:
    """The lines of a text without times, ids and counts."""
    return {re.sub(r"[0-9A-F]*[0-9][0-9A-F.:]*", "0", line.strip()) for line in text.splitlines()}


def excerpt() -> set[str]:
    """What the README shows of the output of `make run`."""
    (shown,) = re.findall(r"^```text\n(.*?)\n\.\.\.", (REPOSITORY / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    return masked(shown)


def test_run_shows_the_job_and_leaves_nothing(environment_of: dict[str, str]) -> None:
    before = tree()

    done = run_module(environment_of, "tests.sandbox", "run", "--all", AWS_PROFILE="of-another-project")

    assert (done.returncode, done.stderr) == (0, "")
    assert "were what they must be" in done.stdout
    assert excerpt() <= masked(done.stdout)
    for file in (REPOSITORY / "events").glob("*/*.json"):
        assert f"events/{file.parent.name}/{file.name}" in done.stdout
    assert "\033" not in done.stdout
    # All else is what the short form shows. Lines about the progress of a wait are as many as the wait is long.
    short = done.stdout.partition("\nThe room class-1\n")[0] + done.stdout.partition("\n3. ")[2]
    assert len([line for line in short.splitlines() if not re.match("  [a-z]", line)]) <= 110
    assert tree() == before


@pytest.mark.parametrize("way", ["closed pipe", "closed terminal"])
def test_run_ends_quietly_when_its_reader_goes(environment_of: dict[str, str], way: str) -> None:
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*COMMAND, "tests.sandbox", "run"], cwd=REPOSITORY, env=environment_of, **pipes) as running:
        assert running.stdout
        assert running.stderr
        # Functions run by then.
        for line in running.stdout:
            if "The teacher's camera goes off" in line:
                break
        if way == "closed pipe":
            running.stdout.close()
        else:
            # The second signal must not end the clearing up.
            running.send_signal(signal.SIGHUP)
            running.send_signal(signal.SIGTERM)
        errors = running.stderr.read()

    assert (running.returncode, errors) == (0 if way == "closed pipe" else 130, "")


def test_board_writes_a_page_and_its_picture_where_a_browser_is(environment_of: dict[str, str]) -> None:
    for file in (PAGE, PICTURE):
        file.unlink(missing_ok=True)

    done = run_module(environment_of, "tests.e2e.picture")

    assert (done.returncode, done.stderr) == (0, "")
    assert Widget(PAGE.read_text().partition("</title>")[2].removesuffix("</html>\n")).rooms[0] == "class-1"
    assert PICTURE.exists() == bool(browser())
    assert not PICTURE.exists() or PICTURE.read_bytes().startswith(b"\x89PNG")


def test_serve_answers_until_it_is_stopped(environment_of: dict[str, str]) -> None:
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*COMMAND, "tests.sandbox", "serve"], cwd=REPOSITORY, env=environment_of, **pipes) as serving:
        assert serving.stdout
        assert serving.stderr
        lines = takewhile(lambda line: not line.startswith("Ctrl-C"), serving.stdout)
        text = "".join(lines)
        address = re.search(r"HTTP API +(http://127\.0\.0\.1:[0-9]+)", text)
        assert address
        board = re.search(r"Board +(http://127\.0\.0\.1:[0-9]+/board)", text)
        assert board
        page = requests.get(board[1], proxies={"http": ""}, timeout=60)
        reply = Http(address[1]).get("/rooms/class-1/users/teacher/stream-state")
        serving.send_signal(signal.SIGINT)
        rest, errors = serving.stdout.read(), serving.stderr.read()

    assert (reply.status, reply.body["media"]["audio"]) == (200, True)
    assert (page.status_code, "karaoke-7" in page.text, "● on" in page.text) == (200, True, True)
    assert (serving.returncode, rest.strip(), errors) == (0, "Stopped.", "")


@pytest.mark.parametrize("missing", ["VOLCENGINE_SECRET_KEY", "all"])
def test_query_without_keys_names_the_settings_to_make(environment_of: dict[str, str], missing: str) -> None:
    given = {name: value for name, value in SETTINGS.items() if missing not in (name, "all")}

    done = run_module(environment_of, "tests.vendor.query", *TARGET, **given)

    assert (done.returncode, done.stdout) == (2, "")
    for name in SETTINGS:
        assert name in done.stderr


@pytest.mark.parametrize(
    ("keys", "user", "code", "answer"),
    [
        (KEYS, "teacher", 0, {"type": "stream_state", "publishing": True}),
        (KEYS, "nobody", 1, {"error": "TargetNotFound"}),
        (Keys(KEYS.access_key_id, "other"), "teacher", 1, {"error": "RtcAccessDenied"}),
    ],
    ids=["there", "not there", "wrong key"],
)
def test_query_asks_the_service_that_is_set(
    environment_of: dict[str, str], keys: Keys, user: str, code: int, answer: dict[str, object]
) -> None:
    with Simulator() as simulator:
        simulator.publish("class-1", "teacher", "Audio")
        given = {**SETTINGS, "VOLCENGINE_SECRET_KEY": keys.secret_access_key, "RTC_ENDPOINT": simulator.url}

        done = run_module(environment_of, "tests.vendor.query", TARGET[0], f"--user-id={user}", **given)

    assert done.returncode == code
    assert answer.items() <= json.loads(done.stdout).items()
    assert keys.secret_access_key not in done.stdout + done.stderr
