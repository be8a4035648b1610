"""`make serve`: the sandbox at fixed ports, lines to paste, and one line for each thing that happens."""

import json
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from urllib.parse import parse_qs, unquote

from tests.commands.board import living_board, populate
from tests.commands.printing import outcome_line, state_words, time_of_day
from tests.sandbox.functions import INVOKE_PREFIX, REGION
from tests.sandbox.samples import CLASSROOM, ROOM
from tests.sandbox.server import Request, Response
from tests.sandbox.stack import Sandbox


def serve(sandbox: Sandbox, port: int) -> int:
    """Print what to try and whatever happens, until Ctrl-C or until nobody reads it any more."""
    populate(sandbox)
    with living_board(sandbox, port) as board:
        print(description(sandbox, board))
        sandbox.api.observe = partial(happened, requested)
        sandbox.callback_api.observe = partial(happened, received)
        sandbox.simulator.observe = partial(happened, asked)
        sandbox.aws.server.observe = partial(happened, partial(invoked, sandbox))
        # This returns when the reader of the pipe, or the terminal, has gone.
        reader = select.poll()
        reader.register(sys.stdout, 0)
        if any(event & select.POLLNVAL for _, event in reader.poll()):
            # This system cannot watch its terminal: a signal is the end.
            threading.Event().wait()
    return 0


# What to print of a request: a kind, what was asked, and the outcome.
Lines = Iterator[tuple[str, str, str]]


def happened(
    lines_of: Callable[[Request, Response], Lines], request: Request, response: Response, duration_ms: float
) -> None:
    """Print a line for what a request was about, or none. A stranger's may be about anything."""
    with suppress(LookupError, TypeError, ValueError):
        for kind, what, outcome in lines_of(request, response):
            line = f"{time_of_day(time.time())}  {kind:<8}  {what}  {outcome_line(outcome, duration_ms)}"
            # With its end in one write: the lines of two threads do not mix.
            print(f"{line}\n", end="", flush=True)


def requested(request: Request, response: Response) -> Lines:
    """A request to the API."""
    yield "request", f"{request.method} {unquote(request.target)}", f"HTTP {response.status}"


def received(request: Request, response: Response) -> Lines:
    """A callback event that the vendor has sent."""
    event = json.loads(request.body)
    data = json.loads(event["EventData"])
    what = "/".join(filter(None, (event["EventType"], data["RoomId"], data.get("UserId"))))
    yield "event", what, f"HTTP {response.status}"


def asked(request: Request, response: Response) -> Lines:
    """A call to the vendor, or a change that a person has made there."""
    query = parse_qs(request.query)
    if "Action" in query:
        error = json.loads(response.body)["ResponseMetadata"].get("Error", {"Code": "answer"})
        what = "/".join(query[name][0] for name in ("Action", "RoomId", "UserId") if name in query)
        yield "call", what, error["Code"]
    else:
        yield "change", f"{request.method} {unquote(request.path)}", f"HTTP {response.status}"


def invoked(sandbox: Sandbox, request: Request, response: Response) -> Lines:
    """What reaches AWS from outside, and the messages of the results queue."""
    operation = request.header("X-Amz-Target").rpartition(".")[2]
    if request.path.startswith(INVOKE_PREFIX):
        is_answer = "X-Amz-Function-Error" not in dict(response.headers)
        outcome = "answer" if is_answer else json.loads(response.body)["errorType"]
        yield "invoke", request.path.removeprefix(INVOKE_PREFIX).split("/")[0], outcome
    elif operation == "StartExecution":
        yield "workflow", json.loads(request.body)["input"], f"HTTP {response.status}"
    elif operation in {"SendMessage", "SendMessageBatch"}:
        call = json.loads(request.body)
        for entry in call.get("Entries", [call]) if call["QueueUrl"] == sandbox.queue_url else []:
            message = json.loads(entry["MessageBody"])
            changed = ", ".join(message["changed"]) or "nothing"
            what = f"{message['room_id']}/{state_words(message)} (changed: {changed})"
            yield "message", what, f"HTTP {response.status}"


def description(sandbox: Sandbox, board: str) -> str:
    """The addresses, and lines to paste."""
    api, aws, functions = sandbox.api_url, sandbox.aws.url, ", ".join(sandbox.functions.functions)
    student = f"{sandbox.simulator.url}/_simulator/rooms/{ROOM}/users/student-1"
    waiting = json.dumps({"room_id": ROOM, "user_id": "student-1", "medium": "video"})
    proxies = any(name.lower() in {"http_proxy", "all_proxy"} for name in os.environ)
    return f"""
  Board       {board}/   (open it: rooms in which something happens, with a switch for each state)
  HTTP API    {api}    (IAM is not checked here: a deployed one answers signed requests only)
  Events      {sandbox.callback_url}
  Vendor      {sandbox.simulator.url}    (the simulator)
  AWS         {aws}    (moto)
  Functions   {functions}
  Logs        {sandbox.directory}/*Function.log
{"This shell has a proxy: export NO_PROXY=127.0.0.1 keeps the lines below from it." if proxies else ""}
Ask about a user, or about the room {ROOM}, in which are {", ".join(CLASSROOM)}:
  curl -s {api}/rooms/{ROOM}/users/teacher/stream-state
  curl -s {api}/rooms/{ROOM}/stream-states
Let a student switch the camera on (audio, video, screen_audio, screen_video), or leave; events follow:
  curl -s -X PUT {student} -d '{{"video": true}}'
  curl -s -X DELETE {student}
Let a sweep ask about the watched users:
  curl -s {aws}{INVOKE_PREFIX}SweepFunction/invocations -d '{{}}'
With the AWS CLI, read the queue, invoke a function, and let a workflow wait for that camera:
  export AWS_ACCESS_KEY_ID=x AWS_SECRET_ACCESS_KEY=x AWS_DEFAULT_REGION={REGION} AWS_REGION={REGION}
  aws --endpoint-url {aws} sqs receive-message --queue-url {sandbox.queue_url}
  aws --endpoint-url {aws} lambda invoke --function-name TaskFunction \\
    --payload fileb://events/task/single.json /dev/stdout
  aws --endpoint-url {aws} stepfunctions start-execution --input '{waiting}' \\
    --state-machine-arn {sandbox.outputs["WaitForStreamArn"]}

Ctrl-C stops everything. Here is what happens from now on:
"""
