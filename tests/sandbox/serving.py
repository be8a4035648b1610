"""What `make serve` prints: where everything listens, and lines to paste."""

import json
import threading

from tests.sandbox.board import living_board, populate
from tests.sandbox.demonstration import CLASSROOM, ROOM
from tests.sandbox.functions import INVOKE_PREFIX, REGION
from tests.sandbox.stack import Sandbox


def serve(sandbox: Sandbox) -> int:
    """Print what to try, and wait for Ctrl-C."""
    populate(sandbox)
    with living_board(sandbox) as board:
        describe(sandbox, board)
        threading.Event().wait()
    return 0


def describe(sandbox: Sandbox, board: str) -> None:
    """Print the addresses, and lines to paste."""
    targets = json.dumps({"targets": [{"room_id": ROOM, "user_id": user} for user in CLASSROOM]})
    queued = json.dumps({"room_id": ROOM, "user_id": "teacher", "deliver": "queue"})
    receive = json.dumps({"QueueUrl": sandbox.queue_url, "MaxNumberOfMessages": 10})
    waiting = {"room_id": ROOM, "user_id": "student-1", "medium": "video"}
    execution = json.dumps({"stateMachineArn": sandbox.outputs["WaitForStreamArn"], "input": json.dumps(waiting)})
    student = f"{sandbox.simulator.url}/_simulator/rooms/{ROOM}/users/student-1"
    print(
        f"""The sandbox is running. In the room {ROOM} are {", ".join(CLASSROOM)}.

  Board                 {board}   (open it: rooms with users who come and go, with a switch for each state)
  HTTP API              {sandbox.api_url}   (IAM is not checked here: a deployed one answers signed requests only)
  REST API (payload 1)  {sandbox.rest_api_url}
  RTC simulator         {sandbox.simulator.url}
  AWS (moto, Lambda)    {sandbox.aws.url}

Ask for one state, or several:
  curl -s {sandbox.api_url}/rooms/{ROOM}/users/teacher/stream-state
  curl -s {sandbox.api_url}/stream-states/query -d '{targets}' -H 'Content-Type: application/json'
Let a student switch the camera on, or leave (media: audio, video, screen_audio, screen_video); events follow:
  curl -s -X PUT {student} -d '{{"video": true}}'
  curl -s -X DELETE {student}
Invoke the functions:
  curl -s {sandbox.aws.url}{INVOKE_PREFIX}TaskFunction/invocations -d '{queued}'
  curl -s {sandbox.aws.url}{INVOKE_PREFIX}SweepFunction/invocations -d '{targets}'
Let the state machine wait for that camera:
  curl -s {sandbox.aws.url} --user sandbox:sandbox --aws-sigv4 aws:amz:{REGION}:states \\
    -H 'X-Amz-Target: AWSStepFunctions.StartExecution' -H 'Content-Type: application/x-amz-json-1.0' -d '{execution}'
Read the queue:
  curl -s {sandbox.aws.url} --user sandbox:sandbox --aws-sigv4 aws:amz:{REGION}:sqs \\
    -H 'X-Amz-Target: AmazonSQS.ReceiveMessage' -H 'Content-Type: application/x-amz-json-1.0' -d '{receive}'

Ctrl-C stops everything.""",
        flush=True,
    )
