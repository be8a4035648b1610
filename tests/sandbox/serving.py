"""`make serve`: the sandbox at fixed ports, lines to paste, and one line for each thing that happens."""

import errno
import json
import os
import select
import socket
import sys
import time
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, unquote

from tests.sandbox.board import living_board, populate
from tests.sandbox.demonstration import CLASSROOM, ROOM
from tests.sandbox.functions import INVOKE_PREFIX, REGION
from tests.sandbox.printing import outcome_line, state_words, time_of_day
from tests.sandbox.server import LOOPBACK, Observer, Request, Response
from tests.sandbox.stack import AWS_PORT, Sandbox

FIRST_PORT, LAST_PORT = 8700, 65535
# As many others are tried, ten ports apart, where the first ones are taken.
TRIES = 20


def first_port(wanted: str) -> int:
    """The first port of the sandbox: the wanted one, or with a word about it another one."""
    if wanted and not (wanted.isdecimal() and 0 < int(wanted) <= LAST_PORT - AWS_PORT):
        raise SystemExit(f"PORT must be a number from 1 to {LAST_PORT - AWS_PORT}, and is {wanted!r}.")
    first = int(wanted or FIRST_PORT)
    reason = ""
    for candidate in range(first, min(first + 10 * TRIES, LAST_PORT - AWS_PORT + 1), 10):
        refused = next(filter(None, map(refusal, range(candidate, candidate + AWS_PORT + 1))), "")
        if not refused:
            if reason:
                print(f"{reason}: the ports from {candidate} on are used instead. PORT=... chooses others.")
            return candidate
        reason = reason or refused
    raise SystemExit(f"{reason}, and no other ports are free. Choose them with PORT=...")


def refusal(port: int) -> str:
    """Why nothing can listen at a port; empty if it can."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            return f"Port {port} is {'taken' if error.errno == errno.EADDRINUSE else 'not allowed'}"
    return ""


def serve(sandbox: Sandbox, port: int) -> int:
    """Print what to try and whatever happens, until Ctrl-C or until nobody reads it any more."""
    populate(sandbox)
    with living_board(sandbox, port) as board:
        print(description(sandbox, board), flush=True)
        sandbox.api.observe = requested
        sandbox.callback_api.observe, sandbox.simulator.observe = received_event, called
        sandbox.aws.server.observe = observer_of_aws(sandbox.queue_url)
        # Without a reader of the pipe, or a terminal, this returns.
        reader = select.poll()
        reader.register(sys.stdout, 0)
        reader.poll()
    return 0


def happened(kind: str, what: str, outcome: str, duration_ms: float) -> None:
    """Print one line."""
    print(f"{time_of_day(time.time())}  {kind:<8}  {what}  {outcome_line(outcome, duration_ms)}", flush=True)


def requested(request: Request, response: Response, duration_ms: float) -> None:
    """A request to the API."""
    happened("request", f"{request.method} {unquote(request.target)}", f"HTTP {response.status}", duration_ms)


def received_event(request: Request, response: Response, duration_ms: float) -> None:
    """A callback event that the vendor has sent; others may send anything."""
    try:
        event = json.loads(request.body)
        data = json.loads(event["EventData"])
        what = f"{event['EventType']} of {data['RoomId']}/{data.get('UserId', '')}".rstrip("/")
    except (ValueError, TypeError, KeyError):
        what = f"{request.method} {unquote(request.target)}"
    happened("event", what, f"HTTP {response.status}", duration_ms)


def called(request: Request, response: Response, duration_ms: float) -> None:
    """A call to the vendor, or a change that a person has made there."""
    asked = parse_qs(request.query)
    if "Action" not in asked:
        happened("change", f"{request.method} {unquote(request.path)}", f"HTTP {response.status}", duration_ms)
        return
    target = "/".join(value for name in ("RoomId", "UserId") for value in asked.get(name, []))
    error = json.loads(response.body)["ResponseMetadata"].get("Error", {"Code": "answer"})
    happened("call", f"{asked['Action'][0]} of {target}", error["Code"], duration_ms)


def observer_of_aws(queue_url: str) -> Observer:
    """Prints what reaches AWS from outside, and the messages of the results queue."""

    def observe(request: Request, response: Response, duration_ms: float) -> None:
        operation = request.header("X-Amz-Target").rpartition(".")[2]
        if request.path.startswith(INVOKE_PREFIX):
            failed = dict(response.headers).get("X-Amz-Function-Error")
            outcome = json.loads(response.body)["errorType"] if failed else "answer"
            happened("invoke", request.path.removeprefix(INVOKE_PREFIX).split("/")[0], outcome, duration_ms)
        elif operation == "StartExecution":
            happened("workflow", json.loads(request.body).get("input", "{}"), f"HTTP {response.status}", duration_ms)
        elif operation in {"SendMessage", "SendMessageBatch"}:
            call = json.loads(request.body)
            bodies = [json.loads(entry["MessageBody"]) for entry in call.get("Entries", [call])]
            for message in bodies if call["QueueUrl"] == queue_url and response.status == HTTPStatus.OK else []:
                changed = ", ".join(message["changed"]) or "nothing"
                happened("message", f"{state_words(message)} (changed: {changed})", "queue", age_ms(message))

    return observe


def age_ms(message: dict[str, Any]) -> float:
    """How long ago the newest observation of a message was made."""
    times = [message["observed_at"], *message["media_observed_at"].values()]
    newest = max(datetime.fromisoformat(text) for text in times if text)
    return (datetime.now(UTC) - newest).total_seconds() * 1000


def description(sandbox: Sandbox, board: str) -> str:
    """The addresses, and lines to paste."""
    api, aws, queue = sandbox.api_url, sandbox.aws.url, sandbox.queue_url
    student = f"{sandbox.simulator.url}/_simulator/rooms/{ROOM}/users/student-1"
    waiting = json.dumps({"room_id": ROOM, "user_id": "student-1", "medium": "video"})
    proxied = "\nThis shell has a proxy: export NO_PROXY=127.0.0.1 keeps the lines below from it." * any(
        name.lower() in {"http_proxy", "all_proxy"} for name in os.environ
    )
    return f"""
Board       {board}/   (open it: rooms in which something happens, with a switch for each state)
HTTP API    {api}    (IAM is not checked here: a deployed one answers signed requests only)
Events      {sandbox.callback_url}
Vendor      {sandbox.simulator.url}    (simulator)
AWS         {aws}    (moto; functions: {", ".join(sandbox.functions.functions)})
{proxied}
In the room {ROOM} are {", ".join(CLASSROOM)}. Ask about one of them, or about the room:
  curl -s {api}/rooms/{ROOM}/users/teacher/stream-state
  curl -s {api}/rooms/{ROOM}/stream-states
Let a student switch the camera on (audio, video, screen_audio, screen_video), or leave; events follow:
  curl -s -X PUT {student} -d '{{"video": true}}'
  curl -s -X DELETE {student}
Sweep the watched users:
  curl -s {aws}{INVOKE_PREFIX}SweepFunction/invocations -d '{{}}'
With the AWS CLI (any keys will do: export AWS_ACCESS_KEY_ID=x AWS_SECRET_ACCESS_KEY=x AWS_REGION={REGION}
AWS_DEFAULT_REGION={REGION}) read the queue, invoke a function, let a workflow wait for that camera:
  aws --endpoint-url {aws} sqs receive-message --queue-url {queue}
  aws --endpoint-url {aws} lambda invoke --function-name TaskFunction --payload fileb://events/task/single.json out.json
  aws --endpoint-url {aws} stepfunctions start-execution --input '{waiting}' \\
    --state-machine-arn {sandbox.outputs["WaitForStreamArn"]}

Ctrl-C stops everything. What happens from now on:
"""
