"""Every sample event and every batch is answered rightly by the built artifacts."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.http import Http
from tests.sandbox.functions import Functions
from tests.sandbox.samples import CLASSROOM, EVENTS, ROOM, sample
from tests.sandbox.simulator import APP_ID, MEDIA
from tests.sandbox.stack import Sandbox
from tests.unit.widget import Widget

FUNCTIONS = {"api": "ApiFunction", "task": "TaskFunction", "sweep": "SweepFunction"}
ALL = tuple(CLASSROOM)
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
OF_BOARD = [name for name in EXPECTED if name.startswith("board/")]
CALLBACK_EVENTS = [name for name in EXPECTED if name.startswith("callback/")]
ROUND = "task/round.json"
# Those about watches and rooms, in an order in which each finds something: the status, and the users in the answer.
WATCHES = {
    "api/put-room-watch-http-api.json": (200, [None]),
    "api/delete-room-watch-http-api.json": (204, []),
    "api/put-watch-http-api.json": (200, ["teacher"]),
    "api/put-watch-rest-api.json": (200, ["student-2"]),
    "api/post-watches-http-api.json": (200, ["teacher", "student-2"]),
    "api/list-watches-http-api.json": (200, ["student-2", "teacher"]),
    "api/delete-watch-http-api.json": (204, []),
    "api/list-room-states-http-api.json": (200, ["student-1", "student-2", "teacher"]),
}
BATCH = [{"room_id": ROOM, "user_id": f"student-{number}"} for number in range(100)]
BATCH_USERS = [target["user_id"] for target in BATCH]
PROBE = """
import botocore, requests, aws_lambda_powertools, stream_state

def handler(event, context):
    return [module.__file__ for module in (botocore, requests, aws_lambda_powertools, stream_state)]
"""
type Conforms = Callable[[str, Any], None]


@pytest.fixture(scope="module")
def parameters() -> Mapping[str, str]:
    return {"EnableCallbacks": "true"}


@pytest.fixture
def classroom(sandbox: Sandbox) -> Sandbox:
    for user, media in CLASSROOM.items():
        sandbox.simulator.publish(ROOM, user, *media)
    return sandbox


def assert_are_of_classroom(documents: list[dict[str, Any]], users: Iterable[str], *, is_listed: bool = False) -> None:
    """Each user once, each medium as the room has it; `is_listed`: the vendor was asked who is in the room."""
    found = {document["user_id"]: document["media"] for document in documents}
    assert found == {user: {name: vendor in CLASSROOM[user] for vendor, name in MEDIA.items()} for user in users}
    assert len(documents) == len(found)
    for document in documents:
        on = any(document["media"].values())
        assert (document["publishing"], document["present"]) == (on, True if on or is_listed else None)
        assert (document["app_id"], document["room_id"], document["source"]) == (APP_ID, ROOM, "query")


def test_every_sample_event_is_listed() -> None:
    assert {str(file.relative_to(EVENTS)) for file in EVENTS.glob("*/*.json")} == set(EXPECTED)


@pytest.mark.parametrize(
    "name", [name for name in EXPECTED if name not in {*CALLBACK_EVENTS, *WATCHES, *OF_BOARD, ROUND}]
)
def test_a_sample_event_is_answered(classroom: Sandbox, conforms: Conforms, name: str) -> None:
    answered, queued = EXPECTED[name]
    folder = name.partition("/")[0]

    invocation = classroom.invoke(FUNCTIONS[folder], sample(name))

    assert invocation.error is None
    answer = invocation.payload
    if folder == "api":
        assert answer["statusCode"] == 200
        answer = json.loads(answer["body"])
    if folder == "sweep":
        assert (answer["targets"], answer["delivered"], answer["failed"]) == (len(queued), len(queued), 0)
    else:
        assert_are_of_classroom(answer.get("results", [answer]), answered, is_listed="room" in name)
        for document in answer.get("results", [answer]):
            conforms("message" if "message_id" in document else "answer", document)
    messages = classroom.receive_messages(len(queued))
    assert_are_of_classroom(messages, queued, is_listed="room" in name)
    for message in messages:
        conforms("message", message)
    # The simulator, and the vendor's package in it, accepted the signature of every call.
    assert {arrival.outcome for arrival in classroom.simulator.arrivals} <= {"OK"}
    assert len(classroom.simulator.arrivals) == len(set(answered) | set(queued)) + ("room" in name)


@pytest.mark.parametrize("name", OF_BOARD)
def test_a_sample_of_the_board_shows_what_was_asked(classroom: Sandbox, name: str) -> None:
    classroom.invoke(FUNCTIONS["api"], sample("api/query-http-api.json"))

    page = classroom.invoke("BoardFunction", sample(name)).payload

    if name == "board/describe.json":
        assert page.keys() == {"markdown"}
    else:
        assert {user for _, user in Widget(page).cells} == set(EXPECTED[name][0])


def test_the_samples_about_watches_and_rooms_are_answered(classroom: Sandbox, http: Http) -> None:
    classroom.invoke(FUNCTIONS["api"], sample("api/query-http-api.json"))

    for name, (status, users) in WATCHES.items():
        answer = classroom.invoke(FUNCTIONS["api"], sample(name)).payload

        body = json.loads(answer["body"]) if answer.get("body") else {"results": []}
        found = body.get("watches") or body.get("results", [body])
        assert (answer["statusCode"], [entry.get("user_id") for entry in found]) == (status, users), name
    assert [watch["user_id"] for watch in http.get("/watches").body["watches"]] == ["student-2"]


def test_the_sample_of_a_round_is_answered_by_its_token(classroom: Sandbox, conforms: Conforms) -> None:
    answers: list[Any] = []
    classroom.aws.intercept = lambda operation, call: answers.append(call) if "SendTaskSuccess" in operation else None

    invocation = classroom.invoke("TaskFunction", sample(ROUND))

    assert (invocation.error, invocation.payload, len(classroom.simulator.arrivals)) == (None, {}, 1)
    (answer,) = answers
    assert answer["taskToken"] == sample(ROUND)["token"]
    document = json.loads(answer["output"])
    assert document.pop("holds") is True
    conforms("answer", document)


@pytest.mark.parametrize("name", CALLBACK_EVENTS)
def test_a_sample_of_a_callback_event_is_received(sandbox: Sandbox, conforms: Conforms, name: str) -> None:
    # The recheck after the sample's leave would come during the next test.
    sandbox.aws.intercept = lambda operation, call: (200, {"MessageId": "1"}) if "DelaySeconds" in call else None

    invocation = sandbox.invoke("CallbackFunction", sample(name))

    assert invocation.error is None
    assert invocation.payload.get("statusCode", 200) == 200
    assert not invocation.payload.get("batchItemFailures")
    messages = sandbox.receive_messages(1)
    assert {(message["user_id"], message["source"]) for message in messages} == {("teacher", "callback")}
    for message in messages:
        conforms("message", message)
    assert not sandbox.simulator.arrivals


def test_a_get_is_answered_over_http(sandbox: Sandbox, either_http: Http, conforms: Conforms) -> None:
    sandbox.simulator.publish("a@b.c_d-e", "user@1", "Audio")

    reply = either_http.get(f"/rooms/a%40b.c%5Fd-e/users/user@1/stream-state?app_id={APP_ID}")

    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    assert reply.headers["cache-control"] == "no-store"
    conforms("answer", reply.body)
    # Ids are decoded once.
    assert (reply.body["room_id"], reply.body["user_id"]) == ("a@b.c_d-e", "user@1")


def test_a_hundred_targets_are_answered_in_the_order_asked(
    sandbox: Sandbox, either_http: Http, conforms: Conforms
) -> None:
    for number, user in enumerate(BATCH_USERS):
        if number % 10:
            sandbox.simulator.publish(ROOM, user, *["Video"] * (number % 2))

    reply = either_http.post("/stream-states/query", {"targets": BATCH})

    assert reply.status == 200
    assert [item["user_id"] for item in reply.body["results"]] == BATCH_USERS
    for number, item in enumerate(reply.body["results"]):
        conforms("answer" if number % 10 else "problem", item)
        if number % 10:
            assert item["publishing"] is bool(number % 2)
        else:
            assert (item["status"], item["error"]) == (404, "TargetNotFound")


@pytest.mark.parametrize("deliver", ["return", "queue"])
def test_a_task_answers_for_a_hundred_targets(sandbox: Sandbox, conforms: Conforms, deliver: str) -> None:
    for user in BATCH_USERS:
        sandbox.simulator.publish(ROOM, user, "Audio")

    results = sandbox.invoke("TaskFunction", {"targets": BATCH, "deliver": deliver}).payload["results"]

    assert [item["user_id"] for item in results] == BATCH_USERS
    raw = sandbox.receive(100 if deliver == "queue" else 0)
    sent = {item.get("message_id") for item in results} - {None}
    assert {message["MessageId"] for message in raw} == sent
    assert len(sent) == (100 if deliver == "queue" else 0)
    for message in raw:
        conforms("message", json.loads(message["Body"]))


def test_a_sweep_delivers_a_hundred_targets(sandbox: Sandbox, conforms: Conforms) -> None:
    for user in BATCH_USERS[1:]:
        sandbox.simulator.publish(ROOM, user, "Audio")

    summary = sandbox.invoke("SweepFunction", {"targets": BATCH}).payload

    assert (summary["targets"], summary["delivered"], summary["failed"]) == (100, 100, 0)
    messages = {message["user_id"]: message for message in sandbox.receive_messages(100)}
    assert set(messages) == set(BATCH_USERS)
    # That the vendor does not know a user is an observation of presence, and not of the media.
    unknown = messages["student-0"]
    assert (unknown["publishing"], unknown["present"], set(unknown["media"].values())) == (None, False, {None})
    for message in messages.values():
        conforms("message", message)


def test_imported_packages_come_from_the_layers(sandbox: Sandbox, tmp_path: Path) -> None:
    code, work = tmp_path / "code", tmp_path / "work"
    code.mkdir()
    work.mkdir()
    (code / "probe.py").write_text(PROBE)
    task = sandbox.functions.functions["TaskFunction"]
    probe = Functions({"Probe": replace(task, handler="probe.handler", code_directory=code)}, work)
    try:
        files = probe.invoke("Probe", {}).payload
    finally:
        probe.stop()

    dependencies, package = (layer / "python" for layer in task.layer_directories)
    assert all(Path(file).is_relative_to(dependencies) for file in files[:3])
    assert Path(files[3]).is_relative_to(package)
