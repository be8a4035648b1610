"""What `make run` shows: every entry point asked with the events of events/, and each answer checked."""

import json
import textwrap
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import batched
from typing import Any

import requests

from tests.sandbox.functions import HAS_RUNTIME_CLIENT
from tests.sandbox.simulator import MEDIA, Keys, signed
from tests.sandbox.stack import REPOSITORY, Sandbox

EVENTS = REPOSITORY / "events"
ROOM, HALL, STAGE, LOUNGE = "class-1", "hall-1", "stage-1", "lounge-1"
WIDTH = 116
# What each user of the room publishes.
CLASSROOM: Mapping[str, tuple[str, ...]] = {
    "teacher": ("Audio", "Video"),
    "student-1": (),
    "student-2": ("ScreenAudio", "ScreenVideo"),
}
ALL = tuple(CLASSROOM)
WATCHED = [f"listener-{number:03}" for number in range(1, 301)]
MOST_CALLS_PER_SECOND = 60
SKEW_SECONDS = 5
SECOND_KEYS = Keys("sandbox-access-key-2", "sandbox-secret-key-2")
HEADINGS = {
    "api": ("ApiFunction", "API Gateway: ApiFunction answers events of an HTTP API (2.0) and of a REST API (1.0)"),
    "task": ("TaskFunction", "Step Functions and direct invocation: TaskFunction answers, or delivers to the queue"),
    "sweep": ("SweepFunction", "EventBridge: SweepFunction asks about many users and delivers to the queue"),
    "callback": ("CallbackFunction", "The vendor's callback events, from API Gateway and from the retry queue"),
    "board": ("BoardFunction", "CloudWatch: BoardFunction answers the dashboard's widget with HTML"),
}
# How many watches the events of events/api leave.
WATCHED_BY_EVENTS = 1
# By event: the users whose states or watches are answered, and those whose states go to the queue.
EXPECTED: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "api/get-http-api.json": (("teacher",), ()),
    "api/query-http-api.json": (ALL, ()),
    "api/get-rest-api.json": (("student-1",), ()),
    "api/query-rest-api.json": (ALL, ()),
    "api/list-room-states-http-api.json": (ALL, ()),
    "api/refresh-room-states-http-api.json": (ALL, ()),
    "api/put-room-watch-http-api.json": (("the room",), ()),
    "api/delete-room-watch-http-api.json": ((), ()),
    "api/put-watch-http-api.json": (("teacher",), ()),
    "api/put-watch-rest-api.json": (("student-2",), ()),
    "api/post-watches-http-api.json": (("teacher", "student-2"), ()),
    "api/list-watches-http-api.json": (("teacher", "student-2"), ()),
    "api/delete-watch-http-api.json": ((), ()),
    "task/single.json": (("teacher",), ()),
    "task/several.json": (ALL, ()),
    "task/room.json": (ALL, ()),
    "task/until.json": (("teacher",), ()),
    "task/round.json": ((), ()),
    "task/deliver-queue.json": (("teacher", "student-1"), ("teacher", "student-1")),
    "sweep/scheduler-with-input.json": ((), ALL),
    "sweep/scheduler-without-input.json": ((), ()),
    "sweep/rule-with-detail.json": ((), ALL),
    "sweep/rule-bare.json": ((), ()),
    "sweep/direct-invoke.json": ((), ("student-2",)),
    "sweep/room.json": ((), ALL),
    "sweep/watched.json": ((), ()),
    "callback/stream-start-http-api.json": ((), ()),
    "callback/stream-stop-rest-api.json": ((), ()),
    "callback/retry-queue.json": ((), ()),
    "board/describe.json": ((), ()),
    "board/overview.json": (ALL, ()),
    "board/open-room.json": (ALL, ()),
}


def sample(name: str) -> dict[str, Any]:
    """An event of events/, its times made present."""
    event: dict[str, Any] = json.loads((EVENTS / name).read_text())
    for asked in (event, event.get("wait", {})):
        if "until" in asked:
            asked["until"]["started_at"] = datetime.now(UTC).isoformat()
    if name.startswith("callback/"):
        for carrier in event.get("Records", [event]):
            carrier["body"] = signed(json.loads(carrier["body"]))
            if "attributes" in carrier:
                carrier["messageAttributes"] = {}
                carrier["attributes"]["SentTimestamp"] = str(int(time.time() * 1000))
    return event


def _fill(text: str, indent: str) -> str:
    """The text in lines of that indent, further lines two deeper."""
    return textwrap.fill(text, WIDTH, initial_indent=indent, subsequent_indent=f"{indent}  ", break_on_hyphens=False)


def _full(document: dict[str, Any]) -> str:
    """A document with a line for each field."""
    fields = [_fill(f"{json.dumps(name)}: {json.dumps(value)}", " " * 6) for name, value in document.items()]
    return "{\n" + ",\n".join(fields) + "\n    }"


def _line(document: dict[str, Any]) -> str:
    """A state or message in one line."""
    on = [name for name, on in document["media"].items() if on]
    publishing = "is not known" if document["publishing"] is None else f"publishes {', '.join(on) or 'nothing'}"
    if "message_id" in document:
        more = f"message {document['message_id']}"
    elif "changed" in document:
        first = document["previous"] is None
        more = "delivered for the first time" if first else f"changed: {', '.join(document['changed']) or 'nothing'}"
    else:
        more = f"{document['source']} {document['rtc_request_id']}"
    return f"{document['user_id'] + ' ' + publishing:<48} {document['observed_at'][11:]}  {more}"


@dataclass
class Demonstration:
    """The steps of `make run`, and what did not come out as it must."""

    sandbox: Sandbox
    answers: int = 0
    wrong: list[str] = field(default_factory=list)
    _shown: set[str] = field(default_factory=set)

    def run(self) -> int:
        """Show everything; 0 if every answer was what it must be."""
        started = time.perf_counter()
        print("Stream State for Volcengine RTC, on this machine alone: the built functions and layers, a simulator of")
        print("the RTC service that checks every signature, and moto in place of AWS. Nothing leaves this machine.")
        print("Of each kind of document the first is shown in full, the others as a line.")
        if not HAS_RUNTIME_CLIENT:
            print("AWS's runtime client exists for Linux only: here a plain loop runs the functions.")
        self._heading(f"The room {ROOM}")
        for user, media in CLASSROOM.items():
            self.sandbox.simulator.publish(ROOM, user, *media)
            print(f"  {user:<9} publishes {', '.join(MEDIA[medium] for medium in media) or 'nothing'}")
        for folder, (function, heading) in HEADINGS.items():
            self._heading(heading)
            for name, expected in EXPECTED.items():
                if name.startswith(f"{folder}/"):
                    self._event(function, name, *expected)
        self._heading("Real HTTP, through a front that turns requests into such events")
        self._over_http()
        self._heading(f"A sweep of {len(WATCHED)} watched users, at the limit that all functions share")
        self._watched_sweeps()
        self._heading("A host joins and publishes: callback events, and a workflow that waits for the camera")
        self._host()
        self._heading("A whole room: who is in it, and a leave whose event was lost")
        self._lounge()
        self._heading("The signing keys are replaced while the application runs")
        self._rotation()
        simulator = self.sandbox.simulator
        print(
            f"\n{len(simulator.arrivals)} calls reached the simulated service, {simulator.worst_second} in one second."
        )
        for problem in self.wrong:
            print(f"NOT AS IT MUST BE: {problem}")
        if not self.wrong:
            print(f"All {self.answers} answers were what they must be. It took {time.perf_counter() - started:.1f} s.")
            print(
                "Next: make serve keeps all this running for you to try, with a board to look at; make test proves it."
            )
        return 1 if self.wrong else 0

    def _event(self, function: str, name: str, answered: tuple[str, ...], queued: tuple[str, ...]) -> None:
        event = sample(name)
        if function == "BoardFunction":
            self._board(name, event, answered)
            return
        asked = _http_request(event) if name.startswith("api/") else json.dumps(event)
        if name.startswith("callback/"):
            asked = " ".join(carrier["body"] for carrier in event.get("Records", [event]))
        answer = self._invoke(function, event, f"{function} <- events/{name}", asked)
        if function == "CallbackFunction":
            self._check(name, not answer.get("batchItemFailures"), "an event failed")
            for message in self.sandbox.receive_messages():
                self._show(message, "queue: ")
            return
        if function == "SweepFunction":
            self._check(name, answer.get("delivered") == len(queued), f"{answer.get('delivered')} delivered")
        else:
            documents = answer.get("watches") or answer.get("results", [answer])
            self._check_states(name, list(filter(None, documents)), answered)
        messages = self.sandbox.receive_messages(len(queued))
        for message in messages:
            self._show(message, "queue: ")
        self._check_states(f"the queue after {name}", messages, queued)

    def _board(self, name: str, event: dict[str, Any], shown: tuple[str, ...]) -> None:
        invocation = self.sandbox.invoke("BoardFunction", event)
        page = json.dumps(invocation.payload)
        asked = textwrap.shorten(json.dumps(event), WIDTH)
        self._print(f"BoardFunction <- events/{name}", asked, f"{len(page):,} bytes", invocation.duration_ms, {})
        missing = [user for user in shown if user not in page]
        self._check(name, not invocation.error and not missing, f"{invocation.error}, without {missing}")

    def _over_http(self) -> None:
        publish, path = self.sandbox.simulator.publish, f"/rooms/{ROOM}/users/student-1/stream-state"
        publish(ROOM, "student-1", "Video")
        body = self._request("GET", path, 200, "student-1 switches the camera on:")
        self._check(path, body.get("media", {}).get("video") is True, "video is not on")
        publish(ROOM, "student-1", "Video", on=False)
        body = self._request("GET", f"/rooms/{ROOM}/users/nobody/stream-state", 404, "a user who is not known:")
        self._check("nobody", body.get("error") == "TargetNotFound", "it is not TargetNotFound")

    def _watched_sweeps(self) -> None:
        publish = self.sandbox.simulator.publish
        for number, user in enumerate(WATCHED):
            publish(HALL, user, *(["Audio"] if number % 3 == 0 else []))
        for users in batched(WATCHED, 100, strict=True):
            targets = [{"room_id": HALL, "user_id": user} for user in users]
            made = self._request("POST", "/watches", 200, f"{users[0]} to {users[-1]}:", {"targets": targets})
            self._check("watches", len(made["watches"]) == len(users), "not all are watched")
        messages = self._sweep("every third of them publishes audio, and no state is known yet:", WATCHED)
        publishing = sum(message["publishing"] for message in messages)
        print(f"  {publishing} of {len(messages)} users publish.")
        self._check("sweep", publishing == 100, f"{publishing} users publish")
        for user in WATCHED[1:4]:
            publish(HALL, user, "Video")
        for user in (WATCHED[0], WATCHED[6]):
            publish(HALL, user, "Audio", on=False)
        self._sweep("three switch the camera on and two the microphone off:", [*WATCHED[:4], WATCHED[6]])
        self._sweep("nothing changes:", [])
        worst = self.sandbox.simulator.worst_second
        print(f"  The worst second held {worst} calls; the vendor allows {MOST_CALLS_PER_SECOND}.")
        self._check("the limit", worst <= MOST_CALLS_PER_SECOND, f"{worst} calls in one second")

    def _sweep(self, what: str, changed: list[str]) -> list[dict[str, Any]]:
        """Sweep the watched users, of whom only these have changed; the messages."""
        summary = self._invoke("SweepFunction", {}, what, "{}")
        # The sweep also delivers the changes of other rooms that HTTP requests have seen.
        messages = [message for message in self.sandbox.receive_messages(len(changed)) if message["room_id"] == HALL]
        for message in messages[:2]:
            self._show(message, "queue: ")
        if len(messages) > 2:
            print(f"  ... and {len(messages) - 2} messages more")
        delivered = sorted(message["user_id"] for message in messages)
        targets = len(WATCHED) + WATCHED_BY_EVENTS
        expected = {"targets": targets, "delivered": len(changed), "failed": 0, "remaining": 0}
        right = expected.items() <= summary.items() and delivered == sorted(changed)
        self._check(what, right, f"{summary}, and messages about {len(messages)} users")
        return messages

    def _host(self) -> None:
        simulator = self.sandbox.simulator
        waiting = {"room_id": STAGE, "user_id": "host", "medium": "video", "timeout_seconds": 60}
        before = len(simulator.arrivals)
        arn = self.sandbox.start_wait(waiting)
        while len(simulator.arrivals) == before:
            time.sleep(0.05)
        simulator.push_to = self.sandbox.callback_url
        simulator.publish(STAGE, "host", "Audio", "Video")
        execution = self.sandbox.wait_for_end(arn)
        answer = json.loads(execution.get("output", "{}"))
        title = "WaitForStream asks once: the host is not there. The host joins, and the event of the camera wakes it:"
        observed = datetime.fromisoformat(answer["media_observed_at"]["video"]) if answer else execution["startDate"]
        woken_ms = (execution["stopDate"] - observed).total_seconds() * 1000
        self._print(title, json.dumps(waiting), execution["status"], woken_ms, answer)
        print("  The milliseconds are those from the event to the end of the execution.")
        asked = len(simulator.arrivals) - before
        self._check("WaitForStream", asked == 1, f"{asked} calls")
        self._check("WaitForStream", answer.get("holds") is True, f"{execution['status']} {execution.get('error')}")
        simulator.leave(STAGE, "host", reason="kickedByAdmin")
        simulator.push_to = None
        print("  The messages of these events; the last is that the host is removed from the room.")
        messages = self.sandbox.receive_messages(4)
        for message in messages:
            self._show(message, "queue: ")
        left = messages[-1] if messages else {}
        right = (left.get("present"), left.get("publishing")) == (False, False)
        self._check("the queue after the events", right, f"the last message is {left}")

    def _lounge(self) -> None:
        simulator = self.sandbox.simulator
        simulator.push_to = self.sandbox.callback_url
        for user in ("anna", "ben"):
            simulator.publish(LOUNGE, user, "Audio")
        simulator.push_to = None
        body = self._request(
            "POST", "/stream-states/query", 200, "the room is asked:", {"targets": [{"room_id": LOUNGE}]}
        )
        on = {result["user_id"]: result.get("publishing") for result in body["results"]}
        self._check("the room", on == {"anna": True, "ben": True}, f"it is {on}")
        self._request("PUT", f"/rooms/{LOUNGE}/watch", 200, "sweeps watch the room:")
        simulator.leave(LOUNGE, "ben")
        # A call within the skew after a start does not overrule it.
        time.sleep(SKEW_SECONDS + 1)
        self.sandbox.receive_messages()
        self._invoke("SweepFunction", {}, "ben leaves, and the event of that is lost:", "{}")
        messages = [message for message in self.sandbox.receive_messages(2) if message["room_id"] == LOUNGE]
        for message in messages:
            self._show(message, "queue: ")
        left = [(message["user_id"], message["present"], message["publishing"]) for message in messages]
        # The query had met anna's other media within the skew: a recheck may have settled them before the sweep.
        right = sorted(left) in ([("anna", True, True), ("ben", False, False)], [("ben", False, False)])
        self._check("the lost leave", right, f"the messages are about {left}")
        body = self._request("GET", f"/rooms/{LOUNGE}/stream-states", 200, "the room from the table:")
        users = [result["user_id"] for result in body["results"]]
        self._check("who is there", users == ["anna"], f"{users} are listed")

    def _rotation(self) -> None:
        simulator = self.sandbox.simulator
        simulator.rotate(SECOND_KEYS)
        self.sandbox.put_keys(SECOND_KEYS)
        before = len(simulator.arrivals)
        what = "the secret holds a new key pair, and the service refuses the old one:"
        self._request("GET", f"/rooms/{ROOM}/users/teacher/stream-state", 200, what)
        outcomes = [arrival.outcome for arrival in list(simulator.arrivals)[before:]]
        print(f"  The service answered the calls behind it: {', '.join(outcomes)}")
        self._check("rotation", outcomes in (["OK"], ["InvalidAccessKey", "OK"]), "more than one call was refused")

    def _invoke(self, function: str, event: dict[str, Any], title: str, asked: str) -> dict[str, Any]:
        invocation = self.sandbox.invoke(function, event)
        answer: dict[str, Any] = invocation.payload
        outcome = invocation.error_type or "answer"
        if "statusCode" in answer:
            outcome, answer = f"HTTP {answer['statusCode']}", json.loads(answer.get("body") or "{}")
        self._print(title, asked, outcome, invocation.duration_ms, answer)
        self._check(title, outcome in ("answer", "HTTP 200", "HTTP 204"), outcome)
        return answer

    def _request(self, method: str, path: str, status: int, title: str, body: object = None) -> dict[str, Any]:
        started = time.perf_counter()
        # A session that ignores proxies of the environment: this must not leave the machine.
        with requests.Session() as session:
            session.trust_env = False
            response = session.request(method, self.sandbox.api_url + path, json=body, timeout=60)
        asked = f"{method} {path} {textwrap.shorten(json.dumps(body), 80) if body else ''}"
        duration_ms = (time.perf_counter() - started) * 1000
        answer: dict[str, Any] = response.json()
        self._print(title, asked, f"HTTP {response.status_code}", duration_ms, answer)
        self._check(path, response.status_code == status, f"HTTP {response.status_code} instead of {status}")
        return answer

    def _print(self, title: str, asked: str, outcome: str, duration_ms: float, answer: dict[str, Any]) -> None:
        self.answers += 1
        print(f"\n  {title}\n{_fill(asked, '    ')}\n  -> {outcome} after {duration_ms:.0f} ms")
        if "watches" in answer:
            print(f"    {len(answer['watches'])} watches until {answer['watches'][0]['expires_at']}")
        else:
            for document in filter(None, answer.get("results", [answer])):
                self._show(document)

    def _show(self, document: dict[str, Any], prefix: str = "  ") -> None:
        """Print a document: in full if it is the first of its kind, or a problem."""
        if "delivered" in document:
            text = ", ".join(f"{name} {value}" for name, value in document.items() if value != [])
        elif "media" in document and prefix in self._shown:
            text = _line(document)
        else:
            self._shown.add(prefix)
            text = _full(document)
        print(f"  {prefix}{text}")

    def _check_states(self, what: str, states: list[Any], users: tuple[str, ...]) -> None:
        on = {user: {MEDIA[medium] for medium in CLASSROOM.get(user, ())} for user in users}
        wrong = [
            state
            for state in states
            if any(
                value != (medium in on.get(state.get("user_id"), ()))
                for medium, value in state.get("media", {}).items()
            )
        ]
        shown = sorted(state.get("user_id", "the room") for state in states)
        self._check(what, shown == sorted(users) and not wrong, f"{shown} instead of {users}, {wrong}")

    def _check(self, what: str, condition: bool, otherwise: str) -> None:  # noqa: FBT001 (reads as a sentence)
        if not condition:
            self.wrong.append(f"{what}: {otherwise}")

    @staticmethod
    def _heading(text: str) -> None:
        print(f"\n{text}\n{'-' * len(text)}")


def _http_request(event: Mapping[str, Any]) -> str:
    """The part of an HTTP event that a person asks with."""
    method = event["httpMethod"] if "httpMethod" in event else event["requestContext"]["http"]["method"]
    query = "&".join(f"{name}={value}" for name, value in (event.get("queryStringParameters") or {}).items())
    return f"{method} {event.get('path') or event['rawPath']}{'?' * bool(query)}{query} {event.get('body') or ''}"
