"""What `make run` shows, each answer checked; with ALL=1 every event of events/ too."""

import json
import textwrap
import time
from dataclasses import dataclass, field
from datetime import datetime
from itertools import batched
from typing import Any

from tests.commands.printing import (
    BOLD,
    RED,
    coloured,
    document_text,
    fill,
    heading,
    http_request,
    outcome_line,
    progress,
    state_words,
    time_of_day,
)
from tests.sandbox.functions import HAS_RUNTIME_CLIENT, Invocation
from tests.sandbox.samples import CLASSROOM, EVENTS, ROOM, sample
from tests.sandbox.server import send
from tests.sandbox.signatures import Keys
from tests.sandbox.simulator import MEDIA, STREAM_STATE
from tests.sandbox.stack import Sandbox

LESSON, HALL, STAGE, LOUNGE = "lesson-1", "hall-1", "stage-1", "lounge-1"
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


@dataclass
class Demonstration:
    """The parts of `make run`, and what did not come out as it must."""

    sandbox: Sandbox
    answers: int = 0
    wrong: list[str] = field(default_factory=list)
    _shown: set[str] = field(default_factory=set)
    _watched: int = len(WATCHED)

    def run(self, *, shows_all: bool = False) -> int:
        """Show the parts, the best first; 0 if every answer was what it must be."""
        started = time.perf_counter()
        if not HAS_RUNTIME_CLIENT:
            print("AWS's runtime client exists for Linux only: here a plain loop runs the functions.")
        self._story()
        heading("1. A workflow waits for a host's camera, and the event of the camera wakes it")
        self._host()
        heading("2. A whole room: who is in it, and a leave whose event was lost")
        self._lounge()
        if shows_all:
            self._every_event()
        heading(f"3. {len(WATCHED)} watched users, asked about at the limit that all functions share")
        self._watched_sweeps()
        heading("4. The signing keys are replaced while the application runs")
        self._rotation()
        simulator = self.sandbox.simulator
        worst = simulator.worst_seconds[STREAM_STATE]
        print(f"\n{len(simulator.arrivals)} calls reached the simulated service, {worst} in one second.")
        for problem in self.wrong:
            print(coloured(f"NOT AS IT MUST BE: {problem}", RED))
        if not self.wrong:
            print(f"All {self.answers} answers were what they must be. It took {time.perf_counter() - started:.1f} s.")
            more = "" if shows_all else "make run ALL=1 shows every event of events/ too; "
            print(f"Next: {more}make serve keeps all this running, with a board; make test proves it.")
        return 1 if self.wrong else 0

    def _story(self) -> None:
        """The camera of a teacher goes off: three lines."""
        simulator = self.sandbox.simulator
        simulator.push_to = self.sandbox.callback_url
        with progress(lambda: "A teacher joins, with microphone and camera on ..."):
            simulator.publish(LESSON, "teacher", "Audio", "Video")
            self.sandbox.receive(3)
        simulator.publish(LESSON, "teacher", "Video", on=False)
        simulator.push_to = None
        event = json.loads(simulator.pushed[LESSON, "teacher"])
        switched_ms = json.loads(event["EventData"])["Timestamp"]
        at = time_of_day(switched_ms / 1000)
        print(f"\n{at}  {coloured("The teacher's camera goes off.", BOLD)}")
        print(f"{at}  The vendor sends the event {event['EventType']}.")
        states = []
        for raw in self.sandbox.receive(1):
            message, delivered_ms = json.loads(raw["Body"]), int(raw["Attributes"]["SentTimestamp"])
            states.append((message["changed"], message["media"]["video"], message["media"]["audio"]))
            after = f"{delivered_ms - switched_ms} ms later a message is on your queue"
            changed = ", ".join(message["changed"])
            print(f"{time_of_day(delivered_ms / 1000)}  {after}: {state_words(message)} (changed: {changed}).")
        self.answers += 1
        self._expect("the story", states, [(["video"], False, True)])

    def _host(self) -> None:
        simulator = self.sandbox.simulator
        waiting = {"room_id": STAGE, "user_id": "host", "medium": "video", "timeout_seconds": 60}
        before = len(simulator.arrivals)
        arn = self.sandbox.start_wait(waiting)
        while len(simulator.arrivals) == before:
            time.sleep(0.05)
        simulator.push_to = self.sandbox.callback_url
        simulator.publish(STAGE, "host", "Audio", "Video")
        with progress(lambda: "the execution ends"):
            execution = self.sandbox.wait_for_end(arn)
        answer = json.loads(execution.get("output", "{}"))
        title = "WaitForStream asks once: the host is not there. Then the host joins with the camera on:"
        observed = datetime.fromisoformat(answer["media_observed_at"]["video"]) if answer else execution["startDate"]
        woken_ms = (execution["stopDate"] - observed).total_seconds() * 1000
        self._print(title, json.dumps(waiting), execution["status"], woken_ms, answer)
        print("  The milliseconds are those from the event to the end of the execution.\n")
        self._expect("WaitForStream", (len(simulator.arrivals) - before, answer.get("holds")), (1, True))
        simulator.leave(STAGE, "host", reason="kickedByAdmin")
        simulator.push_to = None
        print("  The messages of these events; the last one after the host was removed from the room:")
        left = [(message["present"], message["publishing"]) for message in self._messages(4)]
        self._expect("the queue after the events", left[-1:], [(False, False)])

    def _lounge(self) -> None:
        simulator, of_room = self.sandbox.simulator, {"targets": [{"room_id": LOUNGE}]}
        simulator.push_to = self.sandbox.callback_url
        for user in ("anna", "ben"):
            simulator.publish(LOUNGE, user, "Audio")
        simulator.push_to = None
        body = self._request("POST", "/stream-states/query", 200, "The room is asked:", of_room)
        on = {result["user_id"]: result.get("publishing") for result in body["results"]}
        self._expect("the room", on, {"anna": True, "ben": True})
        self._request("PUT", f"/rooms/{LOUNGE}/watch", 200, "Sweeps watch the room:")
        self.sandbox.receive_messages()
        simulator.leave(LOUNGE, "ben")
        # A call within the skew after a start does not overrule it.
        ends = time.monotonic() + SKEW_SECONDS + 1
        with progress(lambda: f"ben leaves, and no event says so; a sweep in {ends - time.monotonic():.0f} s"):
            time.sleep(SKEW_SECONDS + 1)
        swept = self.sandbox.invoke("SweepFunction", {})
        self._answer_of(swept, "A sweep after ben left, the event of which was lost:", "SweepFunction <- {}")
        messages = self._messages(1, LOUNGE)
        left = {message["user_id"]: (message["present"], message["publishing"]) for message in messages}
        # The query had met anna's other media within the skew: the sweep may have settled them too.
        self._expect("the lost leave", {"anna": (True, True)} | left, {"anna": (True, True), "ben": (False, False)})
        body = self._request("GET", f"/rooms/{LOUNGE}/stream-states", 200, "The room from the table:")
        self._expect("who is there", [result["user_id"] for result in body["results"]], ["anna"])
        self._request("DELETE", f"/rooms/{LOUNGE}/watch", 204)

    def _every_event(self) -> None:
        heading(f"The room {ROOM}")
        for user, media in CLASSROOM.items():
            self.sandbox.simulator.publish(ROOM, user, *media)
            print(f"  {user:<9} publishes {', '.join(MEDIA[medium] for medium in media) or 'nothing'}")
        for folder, (function, text) in HEADINGS.items():
            heading(text)
            # In this order there is something to list and to delete.
            for file in sorted((EVENTS / folder).glob("*.json"), reverse=True):
                self._event(function, f"{folder}/{file.name}")
        self._watched += WATCHED_BY_EVENTS
        heading("Real HTTP, through a front that turns requests into such events")
        self.sandbox.simulator.publish(ROOM, "student-3", "Video")
        path = f"/rooms/{ROOM}/users/student-3/stream-state"
        body = self._request("GET", path, 200, "student-3 joins with the camera on:")
        self._expect(path, [name for name, on in body.get("media", {}).items() if on], ["video"])
        body = self._request("GET", f"/rooms/{ROOM}/users/nobody/stream-state", 404, "a user who is not known:")
        self._expect("nobody", body.get("error"), "TargetNotFound")

    def _event(self, function: str, name: str) -> None:
        event = sample(name)
        asked = http_request(event) if function == "ApiFunction" else textwrap.shorten(json.dumps(event), 500)
        if function == "CallbackFunction":
            asked = " ".join(carrier["body"] for carrier in event.get("Records", [event]))
        answer = self._answer_of(self.sandbox.invoke(function, event), f"{function} <- events/{name}", asked)
        self._expect(name, answer.get("batchItemFailures", []), [])
        sent = answer.get("delivered", sum("message_id" in result for result in answer.get("results", [])))
        messages = self._messages(sent)
        if function != "CallbackFunction":
            self._expect(f"messages after {name}", len(messages), sent)

    def _watched_sweeps(self) -> None:
        publish = self.sandbox.simulator.publish
        for number, user in enumerate(WATCHED):
            publish(HALL, user, *(["Audio"] if number % 3 == 0 else []))
        started = time.perf_counter()
        for users in batched(WATCHED, 100, strict=True):
            targets = [{"room_id": HALL, "user_id": user} for user in users]
            made = self._request("POST", "/watches", 200, body={"targets": targets})
            self._expect("watches", len(made["watches"]), len(users))
        print(f"  3 times POST /watches, for 100 users each: {(time.perf_counter() - started) * 1000:.0f} ms in all.")
        messages = self._sweep("Every third of them publishes audio, and no state is known yet:", WATCHED)
        self._expect("publishing users", sum(message["publishing"] for message in messages), 100)
        for user in WATCHED[1:4]:
            publish(HALL, user, "Video")
        for user in (WATCHED[0], WATCHED[6]):
            publish(HALL, user, "Audio", on=False)
        self._sweep("Three switch the camera on and two the microphone off:", [*WATCHED[:4], WATCHED[6]])
        self._sweep("Nothing changes:", [])
        worst = self.sandbox.simulator.worst_seconds[STREAM_STATE]
        print(f"\n  The worst second held {worst} calls; the vendor allows {MOST_CALLS_PER_SECOND}.")
        self._expect("more calls than allowed", max(0, worst - MOST_CALLS_PER_SECOND), 0)

    def _sweep(self, what: str, changed: list[str]) -> list[dict[str, Any]]:
        """Sweep the watched users, of whom only these have changed; the messages."""
        print(f"\n  {what}")
        before, arrivals = len(self.sandbox.simulator.arrivals), self.sandbox.simulator.arrivals
        with progress(lambda: f"asked about {len(arrivals) - before} of {self._watched}"):
            invocation = self.sandbox.invoke("SweepFunction", {})
        summary = self._answer_of(invocation, "", "SweepFunction <- {}")
        # The sweep also delivers the changes of other rooms that HTTP requests have seen.
        messages = self._messages(len(changed), HALL, most_shown=2)
        self._expect(what, sorted(message["user_id"] for message in messages), sorted(changed))
        expected = {"targets": self._watched, "delivered": len(changed), "failed": 0, "remaining": 0}
        self._expect(what, summary | expected, summary)
        return messages

    def _rotation(self) -> None:
        simulator = self.sandbox.simulator
        simulator.rotate(SECOND_KEYS)
        self.sandbox.put_keys(SECOND_KEYS)
        before = len(simulator.arrivals)
        what = "The secret holds a new key pair, and the service refuses the old one:"
        self._request("GET", f"/rooms/{LESSON}/users/teacher/stream-state", 200, what)
        outcomes = [arrival.outcome for arrival in list(simulator.arrivals)[before:]]
        print(f"  The service answered the calls behind it: {', '.join(outcomes)}")
        # A function that read the new key before is not refused.
        self._expect("rotation", outcomes, ["InvalidAccessKey", "OK"][-len(outcomes) :])

    def _answer_of(self, invocation: Invocation, title: str, asked: str) -> dict[str, Any]:
        """Print an invocation; its answer, which must be one."""
        answer = invocation.payload
        outcome, is_right = invocation.error_type or "answer", not invocation.error
        if isinstance(answer, str):
            is_right = all(user in answer for user in CLASSROOM)
            outcome, answer = f"{len(answer):,} bytes of HTML", {}
        elif "statusCode" in answer:
            outcome, is_right = f"HTTP {answer['statusCode']}", answer["statusCode"] in (200, 204)
            answer = json.loads(answer.get("body") or "{}")
        self._print(title, asked, outcome, invocation.duration_ms, answer)
        self._expect(f"{title or asked}: {outcome}", is_right, expected=True)
        return dict(answer)

    def _request(self, method: str, path: str, status: int, title: str = "", body: object = None) -> dict[str, Any]:
        """Request over HTTP, and print that if it has a title; the answer."""
        started = time.perf_counter()
        response = send(method, self.sandbox.api_url + path, json=body)
        duration_ms = (time.perf_counter() - started) * 1000
        answer: dict[str, Any] = response.json() if response.content else {}
        if title:
            asked = f"{method} {path} {textwrap.shorten(json.dumps(body), 80) if body else ''}"
            self._print(title, asked, f"HTTP {response.status_code}", duration_ms, answer)
        self._expect(path, response.status_code, status)
        return answer

    def _print(self, title: str, asked: str, outcome: str, duration_ms: float, answer: dict[str, Any]) -> None:
        self.answers += 1
        print(f"\n  {title}\n" if title else "", fill(asked, "    "), sep="")
        print(f"  {outcome_line(outcome, duration_ms)}")
        if "watches" in answer:
            print(f"    {len(answer['watches'])} watches until {answer['watches'][0]['expires_at']}")
        else:
            for document in filter(None, answer.get("results", [answer])):
                self._show(document)

    def _messages(self, at_least: int = 0, room: str = "", most_shown: int = 100) -> list[dict[str, Any]]:
        """Receive the messages of the queue, of one room if it is named, and print some."""
        with progress(lambda: f"reading {at_least} messages from the queue"):
            received = self.sandbox.receive_messages(at_least)
        messages = [message for message in received if room in ("", message["room_id"])]
        for message in messages[:most_shown]:
            self._show(message, "queue: ")
        if len(messages) > most_shown:
            print(f"  ... and {len(messages) - most_shown} messages more")
        return messages

    def _show(self, document: dict[str, Any], prefix: str = "  ") -> None:
        """Print a document: in full if it is the first of its kind, or a problem. What the vendor said must be true."""
        is_state = "media" in document
        print(f"  {prefix}{document_text(document, in_full=is_state and prefix not in self._shown)}")
        if is_state:
            self._shown.add(prefix)
        published = CLASSROOM.get(document.get("user_id", ""))
        if is_state and published is not None and (document["room_id"], document["source"]) == (ROOM, "query"):
            self._expect("the room", document["media"], {name: vendor in published for vendor, name in MEDIA.items()})

    def _expect(self, what: str, found: object, expected: object) -> None:
        if found != expected:
            self.wrong.append(f"{what}: {found} instead of {expected}")
