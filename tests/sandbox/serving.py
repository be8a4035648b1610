"""What `make serve` prints: where everything listens, and lines to paste."""

import json
import threading

from tests.sandbox.demonstration import CLASSROOM, ROOM
from tests.sandbox.simulator import APP_ID
from tests.sandbox.stack import REGION, Sandbox

TARGET = {"room_id": ROOM, "user_id": "teacher"}


def serve(sandbox: Sandbox) -> int:
    """Print what to try, and wait for Ctrl-C."""
    for user, media in CLASSROOM.items():
        sandbox.simulator.publish(ROOM, user, *media)
    several = json.dumps({"targets": [{"room_id": ROOM, "user_id": user} for user in CLASSROOM]})
    queued = json.dumps({**TARGET, "deliver": "queue"})
    receive = json.dumps({"QueueUrl": sandbox.queue_url, "MaxNumberOfMessages": 10})
    invoke = f"{sandbox.aws.url}/2015-03-31/functions"
    print(
        f"""The sandbox is running, with the users {", ".join(CLASSROOM)} in the room {ROOM} of the app {APP_ID}.

  HTTP API              {sandbox.api_url}
  REST API (payload 1)  {sandbox.rest_api_url}
  RTC simulator         {sandbox.simulator.url}
  AWS (moto, Lambda)    {sandbox.aws.url}
  results queue         {sandbox.queue_url}

IAM is not checked here: a deployed HTTP API answers signed requests only.

Ask for one state:
  curl -s {sandbox.api_url}/rooms/{ROOM}/users/teacher/stream-state
Ask for several:
  curl -s {sandbox.api_url}/stream-states/query -H 'Content-Type: application/json' -d '{several}'
Let a student switch the camera on, or leave (media: audio, video, screen_audio, screen_video):
  curl -s -X PUT {sandbox.simulator.url}/_simulator/rooms/{ROOM}/users/student-1 -d '{{"video": true}}'
  curl -s -X DELETE {sandbox.simulator.url}/_simulator/rooms/{ROOM}/users/student-1
Invoke the functions directly:
  curl -s {invoke}/TaskFunction/invocations -d '{json.dumps(TARGET)}'
  curl -s {invoke}/TaskFunction/invocations -d '{queued}'
  curl -s {invoke}/SweepFunction/invocations -d '{several}'
Read the queue:
  curl -s {sandbox.aws.url} --user sandbox:sandbox --aws-sigv4 aws:amz:{REGION}:sqs \\
    -H 'X-Amz-Target: AmazonSQS.ReceiveMessage' -H 'Content-Type: application/x-amz-json-1.0' -d '{receive}'

Ctrl-C stops everything.""",
        flush=True,
    )
    threading.Event().wait()
    return 0
