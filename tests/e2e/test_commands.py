"""The commands of the Makefile: `make run`, `serve`, `board` and `query`, as a stranger's machine runs them."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.commands.picture import PAGE, PICTURE, browser
from tests.e2e.commands import CLI
from tests.e2e.http import Http
from tests.sandbox.ports import PORTS
from tests.sandbox.samples import CLASSROOM
from tests.sandbox.signatures import KEYS, Keys
from tests.sandbox.simulator import APP_ID, Simulator
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
        timeout=300,
        check=False,
    )


def masked(text: str) -> set[str]:
    """The lines of a text without times, ids and counts."""
    return {re.sub(r"[0-9A-F]*[0-9][0-9A-F.:]*", "0", line.strip()) for line in text.splitlines()}


def excerpt(command: str) -> set[str]:
    """What the README shows of the output of a command."""
    (shown,) = re.findall(r"^```text\n(.*?)^```$", (REPOSITORY / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    return masked(dict(zip(("run", "serve", "test"), shown.split("\n...\n"), strict=True))[command])


def test_run_shows_the_job_and_leaves_nothing(environment_of: dict[str, str]) -> None:
    before = tree()

    done = run_module(environment_of, "tests.commands", "run", "--all", AWS_PROFILE="of-another-project")

    assert (done.returncode, done.stderr) == (0, "")
    assert "were what they must be" in done.stdout
    assert excerpt("run") <= masked(done.stdout)
    for file in (REPOSITORY / "events").glob("*/*.json"):
        assert f"events/{file.parent.name}/{file.name}" in done.stdout
    assert "\033" not in done.stdout
    # All else is what the short form shows. Lines about the progress of a wait are as many as the wait is long.
    short = done.stdout.partition("\nThe room class-1\n")[0] + done.stdout.partition("\n3. ")[2]
    assert len([line for line in short.splitlines() if not re.match("  [a-z]", line)]) <= 110
    assert tree() == before


@pytest.mark.parametrize("way", ["closed pipe", "closed terminal"])
def test_run_ends_quietly_when_its_reader_goes(environment_of: dict[str, str], way: str) -> None:
    with start([*COMMAND, "tests.commands", "run"], environment_of) as running:
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

    done = run_module(environment_of, "tests.commands", "board")

    assert (done.returncode, done.stderr) == (0, "")
    assert Widget(PAGE.read_text().partition("</title>")[2].removesuffix("</html>\n")).rooms[0] == "class-1"
    assert PICTURE.exists() == bool(browser())
    assert not PICTURE.exists() or PICTURE.read_bytes().startswith(b"\x89PNG")


@contextmanager
def serving(environment: dict[str, str], **more: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A running `make serve`, with what it printed until it was ready; it must end quietly."""
    with start([*COMMAND, "tests.commands", "serve"], {**environment, **more}) as running:
        assert running.stdout
        assert running.stderr
        yield running, "".join(takewhile(lambda line: not line.startswith("Ctrl-C"), running.stdout))
        if running.poll() is None:
            running.send_signal(signal.SIGINT)
        running.wait(timeout=60)
        assert (running.returncode, running.stderr.read()) == (0, "")


def start(command: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=REPOSITORY, env=environment, **pipes)


def free_ports() -> int:
    """The first of five free ports in a row."""
    for first in range(20_000, 30_000, 10):
        with ExitStack() as closing:
            try:
                for port in range(first, first + PORTS):
                    closing.enter_context(socket.create_server(("127.0.0.1", port)))
            except OSError:
                continue
            return first
    raise AssertionError("no ports are free")


def test_serve_answers_at_the_ports_asked_for(environment_of: dict[str, str]) -> None:
    port = free_ports()

    with serving(environment_of, PORT=str(port), AWS_PROFILE="of-another-project") as (running, text):
        page = requests.get(f"http://127.0.0.1:{port}/", proxies={"http": ""}, timeout=60)
        reply = Http(f"http://127.0.0.1:{port + 1}").get("/rooms/class-1/users/teacher/stream-state")
        (log,) = re.findall(r"^  Logs +(/\S+)\*Function\.log$", text, re.MULTILINE)
        logged = [json.loads(line) for line in Path(log, "ApiFunction.log").read_text().splitlines()]
        running.send_signal(signal.SIGINT)
        assert running.stdout
        rest = running.stdout.read()

    assert (reply.status, reply.body["media"]["audio"]) == (200, True)
    assert (page.status_code, "karaoke-7" in page.text, "● on" in page.text) == (200, True, True)
    assert f"http://127.0.0.1:{port}/ " in text
    assert rest.endswith("\nStopped.\n")
    assert logged


def test_each_line_that_serve_prints_can_be_pasted_and_is_followed_by_what_happens(
    environment_of: dict[str, str],
) -> None:
    with serving(environment_of, PORT=str(free_ports())) as (running, text):
        lines = re.findall(r"^  (curl .*)$", text, re.MULTILINE)
        answers = [subprocess.run(["/bin/bash", "-c", line], capture_output=True, check=True).stdout for line in lines]
        running.send_signal(signal.SIGINT)
        assert running.stdout
        happened = running.stdout.read()

    assert len(lines) == 5
    assert excerpt("serve") <= masked(happened)
    user, room, _, _, swept = answers
    assert json.loads(user)["media"]["video"] is True
    assert {state["user_id"] for state in json.loads(room)["results"]} == set(CLASSROOM)
    assert json.loads(swept)["targets"] == len(CLASSROOM)
    for line in (
        "call      GetUserStreamState/class-1/teacher  -> answer",
        "request   GET /rooms/class-1/users/teacher/stream-state  -> HTTP 200",
        "event     UserVideoStreamStart/class-1/student-1  -> HTTP 200",
        "message   class-1/student-1 publishes video (changed: video)  -> HTTP 200",
        "change    PUT /_simulator/rooms/class-1/users/student-1  -> HTTP 200",
        "event     UserLeaveRoom/class-1/student-1  -> HTTP 200",
        "invoke    SweepFunction  -> answer",
    ):
        assert re.search(rf"^[0-9:.]{{12}}  {re.escape(line)} after [0-9]+ ms$", happened, re.MULTILINE), line


def test_the_lines_of_the_aws_cli_can_be_pasted(environment_of: dict[str, str]) -> None:
    with serving(environment_of, PORT=str(free_ports())) as (_, text):
        lines = re.findall(r"^  ((?:aws|export) (?:.*\\\n)*.*)$", text, re.MULTILINE)
        path = os.pathsep.join((str(CLI.parent), os.environ["PATH"]))
        shell = ["/usr/bin/env", f"PATH={path}", "/bin/bash", "-ec", "\n".join(lines)]
        done = subprocess.run(shell, cwd=REPOSITORY, capture_output=True, check=True)

    assert len(lines) == 4
    assert b'"ReceiptHandle"' in done.stdout
    assert b'"publishing": true' in done.stdout
    assert b'"executionArn"' in done.stdout


def test_serve_uses_other_ports_if_one_is_taken_and_says_so(environment_of: dict[str, str]) -> None:
    port = free_ports()

    with socket.create_server(("127.0.0.1", port + 3)), serving(environment_of, PORT=str(port)) as (_, text):
        board = re.search(r"Board +(http://\S+/) ", text)
        assert board
        assert requests.get(board[1], proxies={"http": ""}, timeout=60).status_code == 200

    said = f"Port {port + 3} cannot be used (Address already in use): other ports are. PORT=... chooses."
    assert said in text.splitlines()


def test_serve_ends_when_its_reader_goes(environment_of: dict[str, str]) -> None:
    with serving(environment_of, PORT=str(free_ports())) as (running, _):
        assert running.stdout
        running.stdout.close()
        assert running.wait(timeout=60) == 0


@pytest.mark.parametrize("port", ["abc", "0", "65532", "-1", "²"])
def test_serve_refuses_a_port_that_is_none_in_one_sentence(environment_of: dict[str, str], port: str) -> None:
    done = run_module(environment_of, "tests.commands", "serve", PORT=port)

    assert (done.returncode, done.stderr) == (1, f"PORT must be a number from 1 to 65531, and is '{port}'.\n")


@pytest.mark.parametrize("missing", ["VOLCENGINE_SECRET_KEY", "all"])
def test_query_without_keys_names_the_settings_to_make(environment_of: dict[str, str], missing: str) -> None:
    given = {name: value for name, value in SETTINGS.items() if missing not in (name, "all")}

    done = run_module(environment_of, "tests.commands.query", *TARGET, **given)

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

        done = run_module(environment_of, "tests.commands.query", TARGET[0], f"--user-id={user}", **given)

    assert done.returncode == code
    assert answer.items() <= json.loads(done.stdout).items()
    assert keys.secret_access_key not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("proxy", "way"),
    [({}, "without a proxy"), ({"http_proxy": "http://me:secret@127.0.0.1:9"}, "through the proxy 127.0.0.1:9")],
    ids=["direct", "proxy"],
)
def test_query_names_host_and_proxy_if_it_cannot_connect(
    environment_of: dict[str, str], proxy: dict[str, str], way: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        host = f"127.0.0.1:{server.getsockname()[1]}"

    done = run_module(
        environment_of, "tests.commands.query", *TARGET, **SETTINGS, **proxy, RTC_ENDPOINT=f"http://{host}"
    )

    assert (done.returncode, done.stderr) == (1, f"Asked: {host}, {way}.\n")
    assert json.loads(done.stdout)["error"] == "RtcUnavailable"


def test_make_finds_a_python_off_the_path_and_says_it_if_packages_cannot_be_installed(tmp_path: Path) -> None:
    project, versions = tmp_path / "project", tmp_path / ".pyenv" / "versions" / "3.13.0"
    for folder in ("functions", "layers"):
        (project / folder).mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "uv.lock", ".python-version", "template.yaml", "observability.yaml"):
        shutil.copy(REPOSITORY / name, project)
    versions.parent.mkdir(parents=True)
    versions.symlink_to(sys.base_prefix)
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}

    done = subprocess.run(
        ["/usr/bin/env", "make", "unit"], cwd=project, env=environment, capture_output=True, text=True, check=False
    )

    sentence, _ = done.stderr.splitlines()
    assert done.returncode != 0
    assert "Installing the pinned packages" in done.stdout
    assert sentence == (
        "The packages could not be installed. Is the package index reachable? .venv/install.log has the details."
    )
