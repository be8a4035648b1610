"""What `make run` shows: every entry point asked with the events of events/, and each answer checked."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import requests

from tests.sandbox.functions import HAS_RUNTIME_CLIENT
from tests.sandbox.simulator import Keys
from tests.sandbox.stack import REPOSITORY, Sandbox

EVENTS = REPOSITORY / "events"
ROOM = "class-1"
WIDTH = 116
# What each user of the room publishes.
CLASSROOM: Mapping[str, tuple[str, ...]] = {
    "teacher": ("Audio", "Video"),
    "student-1": (),
    "student-2": ("ScreenAudio", "ScreenVideo"),
}
MEDIA = {"Audio": "audio", "Video": "video", "ScreenAudio": "screen_audio", "ScreenVideo": "screen_video"}
ALL = tuple(CLASSROOM)
SECOND_KEYS = Keys("sandbox-access-key-2", "sandbox-secret-key-2")
# By event: the users whose states are answered, and those whose states go to the queue. Nobody is watched here.
EXPECTED: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "api/get-http-api.json": (("teacher",), ()),
    "api/query-http-api.json": (ALL, ()),
    "api/get-rest-api.json": (("student-1",), ()),
    "api/query-rest-api.json": (ALL, ()),
    "task/single.json": (("teacher",), ()),
    "task/several.json": (ALL, ()),
    "task/deliver-queue.json": (("teacher", "student-1"), ("teacher", "student-1")),
    "sweep/scheduler-with-input.json": ((), ALL),
    "sweep/scheduler-without-input.json": ((), ()),
    "sweep/rule-with-detail.json": ((), ALL),
    "sweep/rule-bare.json": ((), ()),
    "sweep/direct-invoke.json": ((), ("student-2",)),
    "sweep/watched.json": ((), ()),
}


def pretty(value: object, indent: int = 4) -> str:
    """JSON that fills its lines: as many members on each as fit, and every object of a list on a line of its own."""
    line = json.dumps(value, ensure_ascii=False)
    if len(line) + indent <= WIDTH or not isinstance(value, dict | list) or not value:
        return line
    if isinstance(value, list):
        return "[" + f",\n{' ' * (indent + 1)}".join(pretty(item, indent + 1) for item in value) + "]"
    text, column = "{", indent + 1
    for number, (key, item) in enumerate(value.items()):
        part = f"{json.dumps(key)}: {json.dumps(item, ensure_ascii=False)}"
        if number and column + len(part) + 2 > WIDTH:
            text, column = f"{text},\n{' ' * (indent + 1)}", indent + 1
        elif number:
            text, column = f"{text}, ", column + 2
        if column + len(part) > WIDTH:
            part = f"{json.dumps(key)}: {pretty(item, indent + 4)}"
            column = WIDTH
        text, column = text + part, column + len(part)
    return text + "}"


@dataclass
class Demonstration:
    """The steps of `make run`, and what did not come out as it must."""

    sandbox: Sandbox
    show_logs: bool = False
    answers: int = 0
    wrong: list[str] = field(default_factory=list)
    _logged: dict[str, int] = field(default_factory=dict)

    def run(self) -> int:
        """Show everything; 0 if every answer was what it must be."""
        started = time.perf_counter()
        self._say_what_runs()
        self._prepare_classroom()
        self._heading("API Gateway: ApiFunction answers events of an HTTP API (payload 2.0) and of a REST API (1.0)")
        self._events("ApiFunction", "api")
        self._heading("The same over real HTTP, through the front that turns requests into such events")
        self._over_http()
        self._heading("Step Functions and direct invocation: TaskFunction answers, or delivers to the queue")
        self._events("TaskFunction", "task")
        self._heading("EventBridge: SweepFunction asks for many users and delivers to the queue")
        self._events("SweepFunction", "sweep")
        self._heading("The signing keys are replaced while the application runs")
        self._rotation()
        unshown = {str(file.relative_to(EVENTS)) for file in EVENTS.glob("*/*.json")} - EXPECTED.keys()
        self._check("the list of events", not unshown, f"no step uses {', '.join(sorted(unshown))}")
        return self._close(time.perf_counter() - started)

    def _say_what_runs(self) -> None:
        print("Stream State for Volcengine RTC, on this machine alone: the built functions and layers, a simulator of")
        print("the RTC service that checks every signature, and moto in place of AWS. Nothing leaves this machine.")
        if not HAS_RUNTIME_CLIENT:
            print(
                "AWS's runtime client exists for Linux only: here a plain loop over the Runtime API runs the functions."
            )

    def _prepare_classroom(self) -> None:
        self._heading(f"The room {ROOM}")
        for user, media in CLASSROOM.items():
            self.sandbox.simulator.publish(ROOM, user, *media)
            print(f"    {user:<10} publishes {', '.join(MEDIA[medium] for medium in media) or 'nothing'}")

    def _events(self, function: str, folder: str) -> None:
        for name, (answered, queued) in EXPECTED.items():
            if not name.startswith(f"{folder}/"):
                continue
            answer = self._invoke(function, name)
            if folder == "sweep":
                self._check(name, answer.get("delivered") == len(queued), f"{answer.get('delivered')} delivered")
            else:
                self._check_states(name, answer.get("results", [answer]), answered)
            messages = self.sandbox.receive_messages(len(queued))
            for message in messages:
                print(f"  queue: {pretty(message)}")
            self._check_states(f"the queue after {name}", messages, queued)

    def _over_http(self) -> None:
        path = f"/rooms/{ROOM}/users/student-1/stream-state"
        self.sandbox.simulator.publish(ROOM, "student-1", "Video")
        print("    student-1 switches the camera on:")
        body = self._get(path, 200)
        self._check(path, body.get("media", {}).get("video") is True, "video is not on")
        self.sandbox.simulator.publish(ROOM, "student-1", "Video", on=False)
        print("    a user whom the service does not know:")
        body = self._get(f"/rooms/{ROOM}/users/nobody/stream-state", 404)
        self._check("nobody", body.get("error") == "TargetNotFound", "it is not TargetNotFound")

    def _rotation(self) -> None:
        simulator = self.sandbox.simulator
        simulator.rotate(SECOND_KEYS)
        self.sandbox.put_keys(SECOND_KEYS)
        before = len(simulator.arrivals)
        print("    The secret holds a new key pair, and the service refuses the old one from now on:")
        self._get(f"/rooms/{ROOM}/users/teacher/stream-state", 200)
        outcomes = [arrival.outcome for arrival in list(simulator.arrivals)[before:]]
        print(f"    What the service answered to the calls behind it: {', '.join(outcomes)}")
        self._check(
            "rotation",
            outcomes.count("OK") == 1 and len(outcomes) <= 2,
            "it was not one success after at most one refusal",
        )

    def _close(self, seconds: float) -> int:
        calls, worst = len(self.sandbox.simulator.arrivals), self.sandbox.simulator.worst_second
        print(f"\n{calls} calls reached the simulated service, at most {worst} in one second.")
        for problem in self.wrong:
            print(f"NOT AS IT MUST BE: {problem}")
        if not self.wrong:
            print(f"All {self.answers} answers were what they must be. It took {seconds:.1f} s.")
            print("Next: make serve keeps all this running for you to try; make test proves it.")
        return 1 if self.wrong else 0

    def _invoke(self, function: str, name: str) -> dict[str, Any]:
        event = json.loads((EVENTS / name).read_text())
        invocation = self.sandbox.invoke(function, event)
        shown = event if not name.startswith("api/") else _request_line(event)
        outcome = "error" if invocation.error else "answer"
        self._show(f"{function} <- events/{name}", shown, outcome, invocation.duration_ms)
        answer = invocation.payload
        if isinstance(answer, dict) and "statusCode" in answer:
            self._check(name, answer["statusCode"] == 200, f"HTTP {answer['statusCode']}")
            print(f"    HTTP {answer['statusCode']}")
            answer = json.loads(answer["body"])
        print(f"    {pretty(answer)}")
        self._check(name, invocation.error is None, f"it raised {invocation.error_type}")
        return answer if isinstance(answer, dict) else {}

    def _get(self, path: str, status: int) -> dict[str, Any]:
        started = time.perf_counter()
        # A session that ignores proxies of the environment: this must not leave the machine.
        with requests.Session() as session:
            session.trust_env = False
            response = session.get(self.sandbox.api_url + path, timeout=60)
        self._show(f"GET {path}", None, f"HTTP {response.status_code}", (time.perf_counter() - started) * 1000)
        print(f"    {pretty(response.json())}")
        self._check(path, response.status_code == status, f"HTTP {response.status_code} instead of {status}")
        body: dict[str, Any] = response.json()
        return body

    def _show(self, title: str, request: object, outcome: str, duration_ms: float) -> None:
        self.answers += 1
        print(f"\n  {title}")
        if request is not None:
            print(f"    {pretty(request)}")
        print(f"  -> {outcome} after {duration_ms:.0f} ms")
        if self.show_logs:
            for name in self.sandbox.functions.functions:
                log = self.sandbox.log(name)
                new = log[self._logged.get(name, 0) :].rstrip()
                self._logged[name] = len(log)
                if new:
                    print("    log of " + name + ":\n      " + new.replace("\n", "\n      "))

    def _check_states(self, what: str, states: list[Any], users: tuple[str, ...]) -> None:
        told: dict[str, set[str]] = {}
        for state in states:
            media = state.get("media") or {"nothing known": True}
            told[state.get("user_id", "?")] = {medium for medium, on in media.items() if on is not False}
        expected = {user: {MEDIA[medium] for medium in CLASSROOM[user]} for user in users}
        self._check(what, told == expected and len(states) == len(users), f"{told} instead of {expected}")

    def _check(self, what: str, condition: bool, otherwise: str) -> None:  # noqa: FBT001 (reads as a sentence)
        if not condition:
            self.wrong.append(f"{what}: {otherwise}")

    @staticmethod
    def _heading(text: str) -> None:
        print(f"\n{text}\n{'-' * len(text)}")


def _request_line(event: Mapping[str, Any]) -> object:
    """The part of an HTTP event that a person asks with."""
    if event.get("version") == "2.0":
        method, path, query = event["requestContext"]["http"]["method"], event["rawPath"], event["rawQueryString"]
    else:
        method, path = event["httpMethod"], event["path"]
        query = "&".join(f"{name}={value}" for name, value in (event["queryStringParameters"] or {}).items())
    line = f"{method} {path}{'?' if query else ''}{query}"
    return {"request": line, "body": json.loads(event["body"])} if event.get("body") else {"request": line}
