"""The API's entry point: every route, in both payload versions, and every error as a problem."""

import base64
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count, product, repeat
from typing import Any
from urllib.parse import quote

import pytest

from stream_state.domain.targets import Target
from stream_state.errors import InvalidRequest, RtcUnavailable, StreamStateError, TargetNotFound
from tests.unit.contract import PROBLEM, Contract
from tests.unit.fakes import Clock, aws_error
from tests.unit.memory import APP_ID, Context, MemoryTable, World, every_error, media, samples, targets
from tests.unit.observed import event

STATE = "GET /rooms/{room_id}/users/{user_id}/stream-state"
QUERY = "POST /stream-states/query"
ROOM = "GET /rooms/{room_id}/stream-states"
PUT_WATCH = "PUT /rooms/{room_id}/users/{user_id}/watch"
DELETE_WATCH = "DELETE /rooms/{room_id}/users/{user_id}/watch"
POST_WATCHES = "POST /watches"
LIST_WATCHES = "GET /watches"
IDS: dict[str, Any] = {"room_id": "class-1", "user_id": "teacher"}
TEACHER, GUEST = (Target(APP_ID, "class-1", user_id) for user_id in ("teacher", "guest"))
CONTRACT = Contract()
Conforms = Callable[[str, Any], None]
Handler = Callable[[Any, Context], dict[str, Any]]


@dataclass(frozen=True)
class Reply:
    """A response, its body read."""

    status: int
    headers: Mapping[str, str]
    body: Any

    @classmethod
    def of(cls, response: dict[str, Any]) -> "Reply":
        return cls(response["statusCode"], response["headers"], json.loads(response["body"] or "null"))


@dataclass(frozen=True)
class Api:
    """The function behind an API of one payload version."""

    handler: Handler
    version: str

    def __call__(self, route: str, body: object = None, *, encode: bool = False, **parameters: str) -> Reply:
        """Ask a route; `parameters` are those of its path and, else, of the query. A body that is no text is JSON."""
        method, _, template = route.partition(" ")
        in_path = {name: value for name, value in parameters.items() if f"{{{name}}}" in template}
        in_query = {name: value for name, value in parameters.items() if name not in in_path} or None
        text = body if isinstance(body, str) else json.dumps(body) if body is not None else None
        if encode and text:
            text = base64.b64encode(text.encode()).decode()
        encoded = {name: quote(value, safe="") for name, value in in_path.items()}
        path = template.format(**encoded)
        context = {"requestId": "gateway-1", "stage": "prod", "http": {"method": method, "path": path}}
        event: dict[str, Any] = {"headers": None, "body": text, "isBase64Encoded": encode, "requestContext": context}
        event["queryStringParameters"] = in_query
        if self.version == "2.0":
            event |= {"version": "2.0", "routeKey": route, "rawPath": path, "pathParameters": in_path or None}
        else:
            event |= {"resource": template, "path": path, "httpMethod": method, "pathParameters": encoded or None}
            event["multiValueQueryStringParameters"] = in_query and {name: [value] for name, value in in_query.items()}
        return Reply.of(self.handler(event, Context()))


@pytest.fixture
def handler(world: World, monkeypatch: pytest.MonkeyPatch) -> Handler:
    found: Handler = world.function("api", monkeypatch).lambda_handler
    return found


@pytest.fixture(params=["2.0", "1.0"])
def api(request: pytest.FixtureRequest, handler: Handler) -> Api:
    return Api(handler, request.param)


@pytest.mark.parametrize("sample", samples("api").values())
def test_every_sample_event_is_answered(handler: Handler, sample: dict[str, Any]) -> None:
    reply = Reply.of(handler(sample, Context()))

    route = sample.get("routeKey") or f"{sample['httpMethod']} {sample['resource']}"
    status = 204 if route.startswith("DELETE ") else 200
    assert (reply.status, reply.headers["Cache-Control"]) == (status, "no-store")
    if reply.body is not None:
        CONTRACT.validate(route, reply.status, reply.headers["Content-Type"], reply.body)


def test_a_user_is_answered(world: World, api: Api, conforms: Conforms, logs: io.StringIO) -> None:
    world.rtc.say(TEACHER, media("audio"))

    asked = api(STATE, **IDS)
    recorded = api(STATE, **IDS, max_age="60", app_id=APP_ID)

    conforms("answer", asked.body)
    conforms("answer", recorded.body)
    assert (asked.status, asked.body["media"], asked.body["source"]) == (200, media("audio"), "query")
    assert (recorded.body["source"], recorded.body["rtc_request_id"], len(world.rtc.calls)) == ("table", None, 1)
    line = json.loads(logs.getvalue().splitlines()[0])
    keys = {**TEACHER.as_dict(), "rtc_request_id": "request-1", "correlation_id": "gateway-1", "source": "query"}
    assert line | keys == line
    assert world.queue.messages == []


def test_both_payload_versions_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def replies(version: str) -> list[Reply]:
        world = World(Clock())
        world.rtc.say(TEACHER, media("audio"), RtcUnavailable("Down."))
        api = Api(world.function("api", monkeypatch).lambda_handler, version)
        return [
            api(STATE, **IDS),
            api(STATE, **IDS),
            api(STATE, room_id="a@b", user_id="."),
            api(QUERY, {"targets": [IDS, {**IDS, "user_id": ".."}]}, encode=True),
            api(QUERY, "{"),
            api(PUT_WATCH, **IDS),
            api(LIST_WATCHES),
            api(DELETE_WATCH, **IDS),
            api(ROOM, room_id="class-1"),
        ]

    first, second = replies("2.0"), replies("1.0")

    assert [reply.status for reply in first] == [200, 503, 400, 200, 400, 200, 200, 204, 200]
    assert first == second


def test_several_are_each_an_answer_or_a_problem(world: World, api: Api, conforms: Conforms) -> None:
    asked = [{**IDS, "user_id": user} for user in ("one", "failing", "..", "one")]
    world.rtc.say(Target(APP_ID, "class-1", "failing"), RtcUnavailable("Down.", rtc_code="InternalError"))

    reply = api(QUERY, {"targets": asked, "max_age": 60.0})

    assert (reply.status, len(world.rtc.calls)) == (200, 3)
    for index, document in enumerate(reply.body["results"]):
        conforms("problem" if index == 1 else "answer", document)
        assert (document["room_id"], document["user_id"]) == ("class-1", asked[index]["user_id"])
    assert reply.body["results"][1]["rtc_code"] == "InternalError"


@pytest.mark.parametrize("error", every_error(), ids=lambda error: f"{error.name}{error.status}")
def test_every_error_of_the_vendor_is_a_problem_and_logged_once(
    world: World, api: Api, conforms: Conforms, logs: io.StringIO, error: StreamStateError
) -> None:
    world.rtc.default = error

    alone = api(STATE, **IDS)
    lines = [json.loads(line) for line in logs.getvalue().splitlines()]
    several = api(QUERY, {"targets": [IDS]})

    problem = {**error.problem(), "instance": "/rooms/class-1/users/teacher/stream-state", "request_id": "gateway-1"}
    conforms("problem", alone.body)
    assert (alone.status, alone.body) == (error.status, problem)
    assert alone.headers["Content-Type"] == "application/problem+json"
    assert alone.headers["Cache-Control"] == "no-store"
    assert alone.headers.get("Retry-After") == (error.retry_after and str(error.retry_after))
    assert (several.status, several.body["results"]) == (200, [{**error.problem(), **TEACHER.as_dict()}])
    conforms("problem", several.body["results"][0])
    (line,) = [line for line in lines if "error" in line]
    assert line | {**TEACHER.as_dict(), "error": error.name, "correlation_id": "gateway-1"} == line


@pytest.mark.parametrize("route", sorted(CONTRACT.operations.keys() - {"POST /callbacks/rtc"}))
def test_a_route_answers_with_the_problems_that_are_documented_for_it(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, route: str
) -> None:
    ids = {name: value for name, value in IDS.items() if f"{{{name}}}" in route}
    body = {"targets": [IDS]} if route in (QUERY, POST_WATCHES) else None
    replies = []
    for error, fails in product(every_error(), (False, True)):
        world = World(clock)
        world.rtc.default = error
        # A presence call finds no user unknown.
        world.rtc.presence_error = None if error.name == "TargetNotFound" else error
        if fails:
            world.dynamodb.effects = dict.fromkeys(vars(MemoryTable), repeat(aws_error("InternalServerError")))
        api = Api(world.function("api", monkeypatch).lambda_handler, "2.0")
        replies += [api(route, body, **ids), api(route, "{", **ids), api(route, "x" * 2**19, **ids)]
        replies += [
            api(route, body, **ids, unknown="1"),
            *([api(route, **ids, refresh="true")] if route == ROOM else []),
        ]

    problems = [reply for reply in replies if reply.headers.get("Content-Type") == PROBLEM]
    assert {(reply.status, reply.body["error"]) for reply in problems} == CONTRACT.problems(route)
    for reply in replies:
        assert reply.status in CONTRACT.content(route)
        if reply.body is not None:
            CONTRACT.validate(route, reply.status, reply.headers["Content-Type"], reply.body)


@pytest.fixture
def room(world: World) -> World:
    """Two users of whom events said that they publish audio; since then one has gone, and another has come."""
    for target in (TEACHER, GUEST):
        world.store.observe(target, event("audio.start", world.clock.now_ms()))
    world.clock.seconds += 60
    world.rtc.rooms[TEACHER.room] = {"teacher", "new"}
    return world


def users_of(reply: Reply) -> dict[str, object]:
    return {result["user_id"]: result.get("error") or result["present"] for result in reply.body["results"]}


def test_a_room_is_asked_about_if_that_is_wanted_and_lists_who_may_be_there(
    room: World, api: Api, conforms: Conforms
) -> None:
    before, again = api(ROOM, room_id="class-1"), api(ROOM, room_id="class-1", refresh="false")
    assert (users_of(before), again.body) == ({"guest": True, "teacher": True}, before.body)
    assert room.rtc.presence_calls == []

    fresh = api(ROOM, room_id="class-1", refresh="true")

    assert users_of(fresh) == {"new": True, "teacher": True}
    assert {result["source"] for result in fresh.body["results"]} == {"query"}
    assert len(room.rtc.presence_calls) == 1
    for result in fresh.body["results"]:
        conforms("answer", result)
    everybody = api(ROOM, room_id="class-1", present="any")
    assert users_of(everybody) == {"guest": False, "new": True, "teacher": True}
    assert users_of(api(ROOM, room_id="class-1")) == {"new": True, "teacher": True}


def test_a_name_that_the_vendor_does_not_know_is_listed_only_if_that_is_wanted(room: World, api: Api) -> None:
    typo = Target(APP_ID, "class-1", "techer")
    room.rtc.say(typo, TargetNotFound("Unknown."))
    api(STATE, room_id="class-1", user_id="techer")

    assert "techer" not in users_of(api(ROOM, room_id="class-1"))
    assert users_of(api(ROOM, room_id="class-1", present="any"))["techer"] is False


def test_a_refreshed_room_shows_the_problem_of_a_user_in_the_users_place(room: World, api: Api) -> None:
    room.rtc.say(Target(APP_ID, "class-1", "new"), RtcUnavailable("Down."))

    assert users_of(api(ROOM, room_id="class-1", refresh="true")) == {"new": "RtcUnavailable", "teacher": True}


def test_a_further_page_asks_nobody(world: World, api: Api) -> None:
    world.rtc.rooms[TEACHER.room] = {target.user_id for target in targets(201)}
    first = api(ROOM, room_id="class-1", refresh="true")
    calls = len(world.rtc.calls)

    second = api(ROOM, room_id="class-1", refresh="true", next_token=first.body["next_token"])

    assert (len(first.body["results"]), len(second.body["results"]), calls) == (200, 1, 201)
    assert (len(world.rtc.calls), len(world.rtc.presence_calls)) == (201, 1)


@pytest.mark.parametrize("option", [{"refresh": "yes"}, {"refresh": ""}, {"present": "true"}, {"present": ""}], ids=str)
def test_other_options_of_a_list_are_refused(world: World, api: Api, option: dict[str, str]) -> None:
    reply = api(ROOM, **{"room_id": "class-1", **option})  # type: ignore[arg-type]  # none of them is `encode`

    assert (reply.status, reply.body["detail"].split()[0]) == (400, *option)
    assert world.is_untouched


def test_a_query_of_rooms_and_users_is_answered_in_place(room: World, api: Api) -> None:
    reply = api(QUERY, {"targets": [{"room_id": "class-2"}, IDS, {"room_id": "class-1"}]})

    assert [result["user_id"] for result in reply.body["results"]] == ["teacher", "guest", "new", "teacher"]


def test_a_room_is_watched_and_no_more(world: World, api: Api) -> None:
    watched = api("PUT /rooms/{room_id}/watch", {"expires_in": 60}, room_id="class-1")

    assert watched.body.keys() == {"app_id", "room_id", "expires_at"}
    assert api(LIST_WATCHES).body["watches"] == [watched.body]
    assert api(PUT_WATCH, **IDS).status == 200
    assert api("DELETE /rooms/{room_id}/watch", room_id="class-1").status == 204
    assert [watch["user_id"] for watch in api(LIST_WATCHES).body["watches"]] == ["teacher"]
    assert api(POST_WATCHES, {"targets": [{"room_id": "class-1"}]}).status == 400


def test_a_room_is_listed_page_by_page_without_a_call(world: World, api: Api, conforms: Conforms) -> None:
    users = targets(201)
    world.lookup.some([*users, Target("app-2", "class-1", "teacher")], world.in_seconds(60))
    world.rtc.calls.clear()

    first = api(ROOM, room_id="class-1")
    second = api(ROOM, room_id="class-1", next_token=first.body["next_token"])
    other = api(ROOM, room_id="class-1", app_id="app-2")

    listed = [*first.body["results"], *second.body["results"]]
    assert [answer["user_id"] for answer in listed] == [target.user_id for target in users]
    assert ([answer["user_id"] for answer in other.body["results"]], second.body["next_token"]) == (["teacher"], None)
    for answer in listed:
        conforms("answer", answer)
    assert {answer["source"] for answer in listed} == {"table"}
    assert world.rtc.calls == []


@pytest.mark.parametrize(
    ("body", "seconds"),
    [(None, 86_400), ({}, 86_400), *(({"expires_in": seconds}, seconds) for seconds in (1, 60.0, 2_592_000))],
)
def test_a_user_is_watched_until_the_watch_expires(world: World, api: Api, body: object, seconds: int) -> None:
    reply = api(PUT_WATCH, body, **IDS, app_id="app-2")

    assert (reply.status, reply.headers["Cache-Control"]) == (200, "no-store")
    assert reply.body.pop("expires_at").endswith(".000Z")
    assert reply.body == {"app_id": "app-2", **IDS}
    (watch,) = world.watch_list.page(None).entries
    assert watch.expires_at == int(world.clock.now()) + seconds


def test_a_watch_ends_also_if_there_was_none(world: World, api: Api) -> None:
    api(PUT_WATCH, **IDS)

    replies = [api(DELETE_WATCH, **IDS) for _ in range(2)]

    assert [(reply.status, reply.body, reply.headers["Cache-Control"]) for reply in replies] == [
        (204, None, "no-store")
    ] * 2
    assert world.watch_list.count() == 0


def test_watches_are_made_in_bulk_and_listed_page_by_page(world: World, api: Api) -> None:
    users = targets(201)
    bodies = [[target.as_dict() for target in users[start : start + 100]] for start in range(0, len(users), 100)]

    made = [api(POST_WATCHES, {"targets": body, "expires_in": 60}) for body in bodies]
    first = api(LIST_WATCHES)
    second = api(LIST_WATCHES, next_token=first.body["next_token"])

    assert [reply.status for reply in made] == [200] * 3
    watches = [watch for reply in made for watch in reply.body["watches"]]
    assert [*first.body["watches"], *second.body["watches"]] == watches
    assert [watch["user_id"] for watch in watches] == [target.user_id for target in users]
    assert second.body["next_token"] is None


NO_NUMBER: list[Any] = [-1, 1.5, "5", True, None, [], 10**9]
NO_ID: list[Any] = [None, "", "x" * 129, "a/b", 7, True, [], {}, "\ud800"]
BAD_TARGETS: list[Any] = [
    *(None, [], {}, "teacher", [IDS] * 101, [None], ["teacher"], [[]], [{}], [{**IDS, "more": 1}]),
    *([IDS, {**IDS, name: value}] for name in IDS for value in NO_ID),
    *([{**IDS, "app_id": value}] for value in ("app-3", "", None, 7, [APP_ID])),
]
BAD_BODIES: list[Any] = ["", "{", "null", "[]", '"text"', "7", '{"a":' * 5000, '{"targets": [], "targets": []}', {}]
MALFORMED: list[tuple[str, object, dict[str, Any]]] = [
    *((route, {"targets": value}, {}) for route in (QUERY, POST_WATCHES) for value in BAD_TARGETS),
    *((route, body, {}) for route in (QUERY, POST_WATCHES) for body in (*BAD_BODIES, "\ufeff{}", {"more": 1})),
    *((route, {"targets": [IDS]}, {name: "5"}) for route in (QUERY, POST_WATCHES) for name in ("app_id", "max_age")),
    *((QUERY, {"targets": [IDS], "max_age": value}, {}) for value in NO_NUMBER),
    *((POST_WATCHES, {"targets": [IDS], "expires_in": value}, {}) for value in (0, *NO_NUMBER)),
    *((PUT_WATCH, {"expires_in": value}, IDS) for value in (0, *NO_NUMBER)),
    *((PUT_WATCH, body, IDS) for body in ("null", "[]", "{", {"targets": [IDS]})),
    *((STATE, None, {**IDS, "max_age": value}) for value in ("", "-1", "3601", "1.5", "five", "99999999999")),
    *(
        (STATE, None, {**IDS, name: value})
        for name in IDS
        for value in (".", "..", "x" * 129, "a/b", "%2e", "", "教室")
    ),
    *((route, None, {**IDS, "app_id": "app-3"}) for route in (STATE, PUT_WATCH, DELETE_WATCH)),
    *((route, None, {**IDS, "user_id": ".."}) for route in (PUT_WATCH, DELETE_WATCH)),
    *((route, None, {**IDS, "more": "1"}) for route in (STATE, PUT_WATCH, DELETE_WATCH)),
    *((ROOM, None, {"room_id": "class-1", name: "!"}) for name in ("app_id", "next_token", "user_id")),
    *((ROOM, None, {"room_id": room_id}) for room_id in ("..", "a/b", "x" * 129)),
    *((LIST_WATCHES, None, more) for more in ({"next_token": "!"}, {"next_token": ""}, {"app_id": APP_ID})),
]


@pytest.mark.parametrize(("route", "body", "parameters"), MALFORMED, ids=count())
def test_malformed_input_is_refused_and_nothing_is_called_sent_or_stored(
    world: World, api: Api, conforms: Conforms, route: str, body: object, parameters: dict[str, Any]
) -> None:
    reply = api(route, body, **parameters)

    conforms("problem", reply.body)
    assert (reply.status, reply.body["error"], reply.body["retryable"]) == (400, "InvalidRequest", False)
    assert reply.body["type"] == "urn:problem-type:stream-state:invalid-request"
    assert world.is_untouched


@pytest.mark.parametrize("route", ["GET /nowhere", "PATCH /watches", "POST /rooms/{room_id}/users/{user_id}/watch"])
def test_an_unknown_route_is_a_problem(world: World, api: Api, conforms: Conforms, route: str) -> None:
    reply = api(route, **(IDS if "{" in route else {}))

    conforms("problem", reply.body)
    assert (reply.status, reply.body["error"], reply.body["request_id"]) == (404, "InvalidRequest", "gateway-1")
    assert world.is_untouched


@pytest.mark.parametrize("name", ["callback/stream-start-http-api", "callback/stream-stop-rest-api"])
def test_a_request_for_another_function_is_a_problem(world: World, handler: Handler, name: str) -> None:
    reply = Reply.of(handler(samples("callback")[name], Context()))

    assert (reply.status, reply.body["error"]) == (404, "InvalidRequest")
    assert world.is_untouched


@pytest.mark.parametrize(
    "event",
    [
        *(None, [], "text", 7, {}, {"targets": []}, {"routeKey": 7}, {"routeKey": "GET /watches"}),
        *({"routeKey": "GET /watches", "requestContext": {}}, {"resource": "/watches", "requestContext": {}}),
        {"resource": "/watches", "httpMethod": "GET", "requestContext": None},
        *(sample for name, sample in samples("task", "sweep", "callback").items() if "api" not in name),
    ],
    ids=count(),
)
def test_an_event_that_is_no_request_is_refused(
    world: World, handler: Handler, logs: io.StringIO, event: object
) -> None:
    with pytest.raises(InvalidRequest, match=r"^the event must be a request of API Gateway"):
        handler(event, Context())

    assert world.is_untouched
    assert json.loads(logs.getvalue())["error"] == "InvalidRequest"
