"""Malformed input of every kind is refused clearly, and nothing is called, sent or stored for it."""

import json
from collections.abc import Callable, Iterator, Mapping
from itertools import chain, product
from typing import Any

import pytest

from tests.e2e.contents import table_items
from tests.e2e.http import Http
from tests.sandbox.samples import EVENTS, sample
from tests.sandbox.simulator import APP_ID
from tests.sandbox.stack import Sandbox

GOOD = {"room_id": "class-1", "user_id": "teacher"}
ROOM = {"room_id": "class-1"}
LONG = "a" * 129
DEEP = b"[" * 100_000 + b"]" * 100_000
QUERY, WATCHES, WATCH = "/stream-states/query", "/watches", "/rooms/class-1/users/teacher/watch"
STATE = "/rooms/class-1/users/teacher/stream-state"

# Values that are no id, wherever an id belongs.
NO_IDS: list[Any] = [None, 7, True, "", LONG, "a b", "a/b", "a#b", "ü", "a\n", "\ud800", "a\x00", [], {}, ["a"]]
# Values that are no target, wherever a target belongs.
NO_TARGETS: list[Any] = [
    *(None, "teacher", 7, [], {}, {"user_id": "teacher"}, {**GOOD, "unknown": 1}),
    *({**GOOD, "app_id": value} for value in ("another", None, [APP_ID])),
    *({**GOOD, name: value} for name in ("room_id", "user_id") for value in NO_IDS),
]
# Bodies that no route accepts.
NO_BODIES: list[Any] = [
    *(b"{", b"room_id=class-1", b"\xff\xfe", b"null", b"[]", b'"text"', b"7", b"NaN", b"\xef\xbb\xbf{}"),
    *(b'{"targets": 1, "targets": 2}', b'{"max_age": 1e999}', DEEP, b'{"targets": ' + DEEP + b"}", {"unknown": 1}),
]
NO_LISTS: list[Any] = [None, "teacher", 7, {}, GOOD, [], [GOOD] * 101]
NO_MAX_AGES: list[Any] = [-1, 3601, 1.5, 1e300, "60", None, True, [], 10**5000]
NO_TIMES: list[Any] = [0, -1, 2_592_001, 1.5, "60", None, True]
UNTIL = {"publishing": True, "started_at": "2026-11-23T03:04:05Z", "timeout_seconds": 60}
NO_UNTILS: list[Any] = [
    *(None, [], {}, {**UNTIL, "unknown": 1}),
    *({**UNTIL, "publishing": value} for value in (None, 1)),
    *({**UNTIL, "medium": value} for value in ("smell", None, ["audio"])),
    *({**UNTIL, "started_at": value} for value in (5, "yesterday", "2026-11-23T03:04:05")),
    *({**UNTIL, "timeout_seconds": value} for value in (0, "60")),
]
HTTP_BODIES: dict[str, tuple[str, str, list[Any]]] = {
    "query: no body": ("POST", QUERY, [b"", *NO_BODIES, {}]),
    "query: no list": ("POST", QUERY, [{"targets": value} for value in NO_LISTS]),
    "query: no target": ("POST", QUERY, [{"targets": [GOOD, value]} for value in NO_TARGETS]),
    "query: no max_age": ("POST", QUERY, [{"targets": [GOOD], "max_age": value} for value in NO_MAX_AGES[:-1]]),
    "watches: no body": ("POST", WATCHES, [b"", *NO_BODIES, {}]),
    "watches: no list": ("POST", WATCHES, [{"targets": value} for value in NO_LISTS]),
    "watches: no target": ("POST", WATCHES, [{"targets": [GOOD, value]} for value in (*NO_TARGETS, ROOM)]),
    "watches: no time": ("POST", WATCHES, [{"targets": [GOOD], "expires_in": value} for value in NO_TIMES]),
    "watch: no body": ("PUT", WATCH, NO_BODIES),
    "watch: no time": ("PUT", WATCH, [{"expires_in": value} for value in NO_TIMES]),
}
NOT_ENCODED_TWICE = ["%252F", "a%252Fb", "%2561"]
BAD_PATHS = ["%2e%2e", "..", ".", "%2e", LONG, "a%20b", "%00", "%C3%BC", "a%23b", "a+b", "~", "%0A", *NOT_ENCODED_TWICE]
QUERIES = ["max_age=-1", "max_age=3601", "max_age=x", "max_age=", "max_age=1&max_age=2", "app_id=another", "app_id="]
QUERIES += [f"app_id={APP_ID}&app_id={APP_ID}", "unknown=1", "max_age=%D9%A1", f"max_age={'9' * 5000}"]
TOKENS = ["x", "%00", "AAAA", "Li4v", "YSNiIGMjZA%3D%3D", "w7w%3D", "a" * 3000]


@pytest.fixture(scope="module")
def parameters() -> Mapping[str, str]:
    return {"EnableCallbacks": "true"}


@pytest.fixture(autouse=True)
def untouched(sandbox: Sandbox) -> Iterator[None]:
    """After each test: no call, no message, no item."""
    yield
    assert list(sandbox.simulator.arrivals) == []
    assert sandbox.receive() == []
    assert table_items(sandbox) == []


@pytest.mark.parametrize("name", HTTP_BODIES)
def test_a_bad_body_is_refused(either_http: Http, conforms: Callable[[str, Any], None], name: str) -> None:
    method, path, bodies = HTTP_BODIES[name]
    for body in bodies:
        reply = either_http.send(method, path, body)

        assert (reply.status, reply.body["error"]) == (400, "InvalidRequest"), (str(body)[:99], reply)
        assert reply.headers["content-type"] == "application/problem+json"
        assert reply.body["retryable"] is False
        conforms("problem", reply.body)
        assert len(reply.body["detail"]) < 300


def test_a_bad_target_is_named_by_its_index(http: Http) -> None:
    reply = http.post(QUERY, {"targets": [GOOD, GOOD, {**GOOD, "user_id": "a b"}]})

    assert reply.body["detail"].startswith("targets[2].user_id may hold")


@pytest.mark.parametrize("path", [QUERY, WATCHES])
@pytest.mark.parametrize("content_type", ["application/json", "application/octet-stream"])
def test_a_body_of_a_megabyte_is_too_large(either_http: Http, path: str, content_type: str) -> None:
    body = json.dumps({"targets": [GOOD], "unknown": "x" * 2**20}).encode()

    reply = either_http.send("POST", path, body, {"Content-Type": content_type})

    assert (reply.status, reply.body["error"]) == (413, "InvalidRequest")


def test_a_binary_body_is_refused_as_any_other(http: Http) -> None:
    for body, content_type in product((b"\xff\xd8", b"{", b"null"), ("application/octet-stream", "image/png")):
        reply = http.send("POST", QUERY, body, {"Content-Type": content_type})
        assert (reply.status, reply.body["error"]) == (400, "InvalidRequest")


@pytest.mark.parametrize("path", ["rooms/{}/users/teacher", "rooms/class-1/users/{}", "rooms/{}"])
def test_a_bad_id_in_a_path_is_refused(either_http: Http, path: str) -> None:
    routes = [("GET", "stream-state"), ("PUT", "watch"), ("DELETE", "watch")]
    for part, (method, last) in product(BAD_PATHS, routes if "users" in path else [("GET", "stream-states")]):
        reply = either_http.send(method, f"/{path.format(part)}/{last}")

        assert (reply.status, reply.body["error"]) == (400, "InvalidRequest"), (method, part, reply)


def test_an_encoded_slash_reaches_no_other_route(sandbox: Sandbox, either_http: Http) -> None:
    # An HTTP API decodes a path before it looks for the route, and finds none; a REST API does not.
    for path in ("/rooms/a%2Fb/users/teacher/stream-state", "/rooms/class-1/users/..%2Fteacher/stream-state"):
        assert either_http.get(path).status in (400, 404)


def test_a_bad_query_or_token_is_refused(either_http: Http) -> None:
    lists = (f"{path}?next_token={token}" for path in ("/rooms/class-1/stream-states", WATCHES) for token in TOKENS)
    for path in chain((f"{STATE}?{query}" for query in QUERIES), lists):
        reply = either_http.get(path)

        assert (reply.status, reply.body["error"]) == (400, "InvalidRequest"), path


def test_an_unknown_route_is_not_found(either_http: Http) -> None:
    for method, path in (("GET", "/"), ("POST", STATE), ("GET", "/rooms/class-1"), ("GET", f"{STATE}/")):
        assert either_http.send(method, path).status in (403, 404)


TASKS: list[Any] = [
    *NO_TARGETS,
    {**GOOD, "targets": [GOOD]},
    *({"targets": value} for value in NO_LISTS),
    *({"targets": [GOOD, value]} for value in NO_TARGETS),
    *({**GOOD, "max_age": value} for value in NO_MAX_AGES[:-1]),
    *({**GOOD, "deliver": value} for value in (None, "", "post", 1, ["queue"])),
    *({**GOOD, "until": value} for value in NO_UNTILS),
    {**GOOD, "until": UNTIL, "deliver": "queue"},
    {"targets": [GOOD], "until": UNTIL},
]
# The first two mean the watched targets in the event of a schedule.
NO_DETAILS: list[Any] = [{}, "{}", None, json.dumps({"targets": [GOOD]}), {"targets": []}, "[]", "{", []]
ENVELOPE: dict[str, Any] = {"source": "school.timetable", "detail-type": "Lesson Started"}
SWEEPS: list[Any] = [
    # Nothing but an empty object means the watched targets.
    *(value for value in NO_TARGETS if value != {}),
    {**GOOD, "targets": [GOOD]},
    {"app_id": APP_ID},
    *({"targets": value} for value in NO_LISTS if value != [GOOD] * 101),
    {"targets": [GOOD] * 5001},
    *({"targets": [GOOD, value]} for value in NO_TARGETS),
    *({"targets": [GOOD], "emit": value} for value in (None, "", "states", 1, ["all"])),
    *({"emit": value} for value in (None, "", "states", 1)),
    *({**ENVELOPE, "detail": value} for value in NO_DETAILS),
    *({**ENVELOPE, "source": "aws.scheduler", "detail": value} for value in NO_DETAILS[2:]),
    {**ENVELOPE, "source": ["aws.events"], "detail": {}},
]
# API Gateway and the queue send none of these.
REQUESTS: list[Any] = [None, [], "x", 7, {}, GOOD, {"version": "2.0"}, {"Records": 1}, {"Records": [{"body": "{}"}]}]
OWN = {"ApiFunction": "api", "TaskFunction": "task", "SweepFunction": "sweep", "CallbackFunction": "callback"}
BAD_EVENTS = {
    "TaskFunction": TASKS,
    "SweepFunction": SWEEPS,
    **dict.fromkeys(("ApiFunction", "CallbackFunction"), REQUESTS),
}


@pytest.mark.parametrize("function", BAD_EVENTS)
def test_a_bad_event_is_refused_by_name(sandbox: Sandbox, function: str) -> None:
    for event in BAD_EVENTS[function]:
        invocation = sandbox.invoke(function, event)

        assert invocation.error_type == "InvalidRequest", (str(event)[:99], invocation.payload)
        assert 10 < len(invocation.payload["errorMessage"]) < 300


@pytest.mark.parametrize(("function", "name"), OWN.items())
def test_a_sample_event_of_another_function_is_refused(sandbox: Sandbox, function: str, name: str) -> None:
    others = [file for file in EVENTS.glob("*/*.json") if file.parent.name != name.rstrip("/")]
    for event in [sample(str(file.relative_to(EVENTS))) for file in others]:
        payload = sandbox.invoke(function, event).payload

        # A request of API Gateway gets a response in any case.
        problem = json.loads(payload["body"]) if "body" in payload else {"error": payload["errorType"]}
        assert problem["error"] == "InvalidRequest", (event, payload)


@pytest.mark.parametrize("function", ["TaskFunction", "SweepFunction"])
def test_a_large_or_deep_event_is_refused(sandbox: Sandbox, function: str) -> None:
    deep: Any = GOOD
    for _ in range(300):
        deep = [deep]
    for event in ({"targets": deep}, {**GOOD, "more": deep}, {**GOOD, "room_id": "x" * 2**20}):
        assert sandbox.invoke(function, event).error_type == "InvalidRequest"


@pytest.mark.parametrize("function", ["TaskFunction", "SweepFunction"])
@pytest.mark.parametrize("payload", [b"{", DEEP, b"\xff", b""], ids=["not JSON", "deep", "no text", "nothing"])
def test_an_event_that_the_runtime_cannot_read_does_no_harm(sandbox: Sandbox, function: str, payload: bytes) -> None:
    # AWS refuses such an event before a function runs; should one come through, it is an error all the same.
    assert sandbox.invoke(function, payload).error is not None
