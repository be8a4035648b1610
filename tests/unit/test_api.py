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

from stream_state.errors import InvalidTarget, RtcUnavailable, StreamStateError
from stream_state.model import Target
from stream_state.table import PAGE_ITEMS
from stream_state.watch_list import DEFAULT_WATCH_SECONDS, MAX_WATCH_SECONDS
from tests.unit.contract import PROBLEM, Contract
from tests.unit.fakes import Clock, aws_error
from tests.unit.memory import APP_ID, EVENTS, Context, MemoryTable, World, every_error, media, targets

STATE = "GET /rooms/{room_id}/users/{user_id}/stream-state"
QUERY = "POST /stream-states/query"
ROOM = "GET /rooms/{room_id}/stream-states"
PUT_WATCH = "PUT /rooms/{room_id}/users/{user_id}/watch"
DELETE_WATCH = "DELETE /rooms/{room_id}/users/{user_id}/watch"
POST_WATCHES = "POST /watches"
LIST_WATCHES = "GET /watches"
IDS = {"room_id": "class-1", "user_id": "teacher"}
TEACHER = Target(APP_ID, "class-1", "teacher")
Conforms = Callable[[str, Any], None]
CONTRACT = Contract()


@dataclass(frozen=True)
class Answer:
    """A response, its body read."""

    status: int
    headers: Mapping[str, str]
    body: Any


@dataclass(frozen=True)
class Api:
    """The function behind an API of one payload version."""

    handler: Callable[..., dict[str, Any]]
    version: str

    def __call__(self, route: str, body: object = None, *, encode: bool = False, **parameters: str) -> Answer:
        """Ask a route; `parameters` are those of its path and, else, of the query. A body that is no text is JSON."""
        method, _, template = route.partition(" ")
        in_path = {name: value for name, value in parameters.items() if f"{{{name}}}" in template}
        in_query = {name: value for name, value in parameters.items() if name not in in_path} or None
        text = body if isinstance(body, str) else json.dumps(body) if body is not None else None
        if encode and text:
            text = base64.b64encode(text.encode()).decode()
        event: dict[str, Any] = {
            "headers": {},
            "queryStringParameters": in_query,
            "body": text,
            "isBase64Encoded": encode,
        }
        path = template
        for name, value in in_path.items():
            path = path.replace(f"{{{name}}}", quote(value, safe=""))
        context = {"requestId": "gateway-1", "stage": "prod", "http": {"method": method, "path": path}}
        if self.version == "2.0":
            event |= {"version": "2.0", "routeKey": route, "rawPath": path, "requestContext": context}
            event["pathParameters"] = in_path
        else:
            event |= {"resource": template, "path": path, "httpMethod": method, "requestContext": context}
            event["pathParameters"] = {name: quote(value, safe="") for name, value in in_path.items()} or None
            event["multiValueQueryStringParameters"] = in_query and {name: [value] for name, value in in_query.items()}
        return read(self.handler(event, Context()))


def read(response: dict[str, Any]) -> Answer:
    return Answer(response["statusCode"], response["headers"], json.loads(response["body"] or "null"))


@pytest.fixture
def world(clock: Clock) -> World:
    return World(clock)


@pytest.fixture
def handler(world: World, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    found: Callable[..., dict[str, Any]] = world.function("api", monkeypatch).lambda_handler
    return found


@pytest.fixture(params=["2.0", "1.0"])
def api(request: pytest.FixtureRequest, handler: Callable[..., dict[str, Any]]) -> Api:
    return Api(handler, request.param)


@pytest.mark.parametrize("name", sorted(path.stem for path in (EVENTS / "api").glob("*.json")))
def test_every_sample_event_is_answered(handler: Callable[..., dict[str, Any]], name: str) -> None:
    event = json.loads((EVENTS / "api" / f"{name}.json").read_text())

    answer = read(handler(event, Context()))

    route = event.get("routeKey") or f"{event['httpMethod']} {event['resource']}"
    assert (answer.status, answer.headers["Cache-Control"]) == (204 if route == DELETE_WATCH else 200, "no-store")
    if answer.body is not None:
        CONTRACT.validate(route, answer.status, answer.headers["Content-Type"], answer.body)


def test_a_user_is_answered(world: World, api: Api, conforms: Conforms, logs: io.StringIO) -> None:
    world.rtc.say(TEACHER, media("audio"))

    asked = api(STATE, **IDS)
    known = api(STATE, **IDS, max_age="60", app_id=APP_ID)

    conforms("answer", asked.body)
    conforms("answer", known.body)
    assert (asked.status, asked.body["media"], asked.body["source"]) == (200, media("audio"), "query")
    assert (known.body["source"], known.body["rtc_request_id"], len(world.rtc.calls)) == ("table", None, 1)
    lines = [json.loads(line) for line in logs.getvalue().splitlines()]
    keys = {**TEACHER.as_dict(), "rtc_request_id": "request-1", "correlation_id": "gateway-1", "source": "query"}
    assert lines[0] | keys == lines[0]
    assert world.queue.messages == []


def test_both_payload_versions_give_the_same(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    def answers(version: str) -> list[Answer]:
        world = World(Clock())
        world.rtc.say(TEACHER, media("audio"), RtcUnavailable("Down."))
        api = Api(world.function("api", monkeypatch).lambda_handler, version)
        asked = [
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
        return [Answer(answer.status, {}, answer.body) for answer in asked]

    first, second = answers("2.0"), answers("1.0")

    assert [answer.status for answer in first] == [200, 503, 400, 200, 400, 200, 200, 204, 200]
    for one, two in zip(first, second, strict=True):
        assert one == two


def test_several_are_each_an_answer_or_a_problem(world: World, api: Api, conforms: Conforms) -> None:
    asked = [{**IDS, "user_id": user} for user in ("one", "failing", "..", "one")]
    world.rtc.say(Target(APP_ID, "class-1", "failing"), RtcUnavailable("Down.", rtc_code="InternalError"))

    answer = api(QUERY, {"targets": asked, "max_age": 60})

    assert (answer.status, len(world.rtc.calls)) == (200, 3)
    for index, document in enumerate(answer.body["results"]):
        conforms("problem" if index == 1 else "answer", document)
        assert (document["room_id"], document["user_id"]) == ("class-1", asked[index]["user_id"])
    assert answer.body["results"][1]["rtc_code"] == "InternalError"


@pytest.mark.parametrize("error", every_error(), ids=lambda error: type(error).__name__ + str(error.http_status))
def test_every_error_of_the_vendor_is_a_problem(
    world: World, api: Api, conforms: Conforms, logs: io.StringIO, error: StreamStateError
) -> None:
    world.rtc.default = error

    alone = api(STATE, **IDS)
    several = api(QUERY, {"targets": [IDS]})

    problem = {**error.problem(), "instance": "/rooms/class-1/users/teacher/stream-state", "request_id": "gateway-1"}
    conforms("problem", alone.body)
    assert (alone.status, alone.body) == (error.http_status, problem)
    assert alone.headers["Content-Type"] == "application/problem+json"
    assert alone.headers["Cache-Control"] == "no-store"
    assert alone.headers.get("Retry-After") == (error.retry_after and str(error.retry_after))
    assert (several.status, several.body["results"]) == (200, [{**error.problem(), **TEACHER.as_dict()}])
    conforms("problem", several.body["results"][0])
    first = json.loads(logs.getvalue().splitlines()[0])
    assert (first["error"], first["correlation_id"]) == (type(error).__name__, "gateway-1")


@pytest.mark.parametrize("route", sorted(CONTRACT.operations.keys() - {"POST /callbacks/rtc"}))
def test_a_route_answers_with_the_problems_that_are_documented_for_it(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, route: str
) -> None:
    ids = {name: value for name, value in IDS.items() if f"{{{name}}}" in route}
    body = {"targets": [IDS]} if route in (QUERY, POST_WATCHES) else None
    answered = []
    for error, fails in product(every_error(), (False, True)):
        world = World(clock)
        world.rtc.default = error
        if fails:
            world.dynamodb.effects = dict.fromkeys(vars(MemoryTable), repeat(aws_error("InternalServerError")))
        api = Api(world.function("api", monkeypatch).lambda_handler, "2.0")
        answered += [api(route, body, **ids), api(route, "{", **ids), api(route, "x" * 2**19, **ids)]
        answered += [api(route, body, **ids, unknown="1")]

    problems = [answer for answer in answered if answer.headers.get("Content-Type") == PROBLEM]
    assert {(answer.status, answer.body["error"]) for answer in problems} == CONTRACT.problems(route)
    for answer in answered:
        assert answer.status in CONTRACT.content(route)
        if answer.body is not None:
            CONTRACT.validate(route, answer.status, answer.headers["Content-Type"], answer.body)


@pytest.mark.parametrize(
    ("operation", "route", "parameters", "body"),
    [
        ("query", ROOM, {"room_id": "class-1"}, None),
        ("query", LIST_WATCHES, {}, None),
        ("batch_write_item", PUT_WATCH, IDS, None),
        ("batch_write_item", POST_WATCHES, {}, {"targets": [IDS]}),
        ("delete_item", DELETE_WATCH, IDS, None),
    ],
)
def test_a_table_that_fails_where_the_answer_needs_it_is_a_problem(
    world: World, api: Api, conforms: Conforms, operation: str, route: str, parameters: dict[str, str], body: object
) -> None:
    world.dynamodb.effects[operation] = iter([aws_error("InternalServerError")])

    answer = api(route, body, **parameters)

    conforms("problem", answer.body)
    assert (answer.status, answer.body["error"], answer.body["retryable"]) == (503, "StateUnavailable", True)


def test_a_room_is_listed_page_by_page_without_a_call(world: World, api: Api, conforms: Conforms) -> None:
    users = targets(PAGE_ITEMS + 1)
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


def expiry(world: World, seconds: int) -> int:
    return int(world.clock.wall()) + seconds


@pytest.mark.parametrize(
    ("body", "seconds"),
    [
        *((body, DEFAULT_WATCH_SECONDS) for body in (None, {})),
        *(({"expires_in": seconds}, seconds) for seconds in (1, MAX_WATCH_SECONDS)),
    ],
)
def test_a_user_is_watched_until_the_watch_expires(world: World, api: Api, body: object, seconds: int) -> None:
    answer = api(PUT_WATCH, body, **IDS, app_id="app-2")

    assert (answer.status, answer.headers["Cache-Control"]) == (200, "no-store")
    watched = answer.body.pop("expires_at")
    assert watched.endswith(".000Z")
    assert answer.body == {"app_id": "app-2", **IDS}
    (watch,) = world.watch_list.page(None).entries
    assert watch.expires_at == expiry(world, seconds)


def test_a_watch_ends_also_if_there_was_none(world: World, api: Api) -> None:
    api(PUT_WATCH, **IDS)

    answers = [api(DELETE_WATCH, **IDS) for _ in range(2)]

    assert [(answer.status, answer.body, answer.headers["Cache-Control"]) for answer in answers] == [
        (204, None, "no-store")
    ] * 2
    assert world.watch_list.count() == 0


def test_watches_are_made_in_bulk_and_listed_page_by_page(world: World, api: Api) -> None:
    users = targets(PAGE_ITEMS + 1)
    bodies = [[target.as_dict() for target in users[start : start + 100]] for start in range(0, len(users), 100)]

    made = [api(POST_WATCHES, {"targets": body, "expires_in": 60}) for body in bodies]
    first = api(LIST_WATCHES)
    second = api(LIST_WATCHES, next_token=first.body["next_token"])

    assert [answer.status for answer in made] == [200] * 3
    watches = [watch for answer in made for watch in answer.body["watches"]]
    assert [*first.body["watches"], *second.body["watches"]] == watches
    assert [watch["user_id"] for watch in watches] == [target.user_id for target in users]
    assert second.body["next_token"] is None


BAD_TARGETS = [None, [], {}, "teacher", [IDS] * 101, [None], ["teacher"], [[]], [{}], [{**IDS, "more": 1}]]
BAD_TARGETS += [
    [IDS, {**IDS, name: value}] for name in IDS for value in (None, "", "x" * 129, "a/b", 7, True, [], {}, "\ud800")
]
BAD_TARGETS += [[{**IDS, "app_id": value}] for value in ("app-3", "", None, 7, [APP_ID])]
BAD_BODIES = ["", "{", "null", "[]", '"text"', "7", '{"a":' * 5000, '{"targets": [], "targets": []}']
MALFORMED: list[tuple[str, object, dict[str, str]]] = [
    *((route, {"targets": value}, {}) for route in (QUERY, POST_WATCHES) for value in BAD_TARGETS),
    *((route, body, {}) for route in (QUERY, POST_WATCHES) for body in (*BAD_BODIES, {}, {"more": 1})),
    *(
        (route, {"targets": [IDS]}, {name: APP_ID})
        for route in (QUERY, POST_WATCHES)
        for name in ("app_id", "max_age", "expires_in", "more")
    ),
    *((QUERY, {"targets": [IDS], "max_age": value}, {}) for value in (-1, 3601, 1.5, "5", True, None, [])),
    *(
        (POST_WATCHES, {"targets": [IDS], "expires_in": value}, {})
        for value in (0, -1, MAX_WATCH_SECONDS + 1, 1.5, "60", None)
    ),
    *((PUT_WATCH, {"expires_in": value}, IDS) for value in (0, MAX_WATCH_SECONDS + 1, True, None, {})),
    *((PUT_WATCH, body, IDS) for body in ("null", "[]", "{", {"targets": [IDS]})),
    *((STATE, None, {**IDS, "max_age": value}) for value in ("", "-1", "3601", "1.5", "five", "99999999999")),
    *(
        (STATE, None, {**IDS, name: value})
        for name in IDS
        for value in (".", "..", "x" * 129, "a/b", "a b", "%2e", "", "教室")
    ),
    *((route, None, {**IDS, "app_id": "app-3"}) for route in (STATE, PUT_WATCH, DELETE_WATCH)),
    *((route, None, {**IDS, "user_id": ".."}) for route in (PUT_WATCH, DELETE_WATCH)),
    *((route, None, {**IDS, "more": "1"}) for route in (STATE, PUT_WATCH, DELETE_WATCH)),
    *(
        (ROOM, None, {"room_id": "class-1", **more})
        for more in ({"app_id": "app-3"}, {"next_token": "!"}, {"user_id": "teacher"})
    ),
    *((ROOM, None, {"room_id": room_id}) for room_id in ("..", "a/b", "x" * 129)),
    *((LIST_WATCHES, None, more) for more in ({"next_token": "!"}, {"next_token": ""}, {"app_id": APP_ID})),
]


@pytest.mark.parametrize(("route", "body", "parameters"), MALFORMED, ids=count())
def test_malformed_input_is_refused_and_nothing_is_called_sent_or_stored(
    world: World, api: Api, conforms: Conforms, route: str, body: object, parameters: dict[str, str]
) -> None:
    answer = api(route, body, **parameters)

    conforms("problem", answer.body)
    assert (answer.status, answer.body["error"], answer.body["retryable"]) == (400, "InvalidTarget", False)
    assert world.is_untouched


@pytest.mark.parametrize("route", [QUERY, POST_WATCHES])
@pytest.mark.parametrize("encode", [False, True])
def test_a_body_that_is_too_large_is_refused(world: World, api: Api, route: str, encode: bool) -> None:  # noqa: FBT001 (a parameter)
    answer = api(route, json.dumps({"targets": [IDS]}) + " " * 2**20, encode=encode)

    assert (answer.status, answer.body["error"], answer.body["status"]) == (413, "InvalidTarget", 413)
    assert world.is_untouched


@pytest.mark.parametrize("route", ["GET /nowhere", "PATCH /watches", "POST /rooms/{room_id}/users/{user_id}/watch"])
def test_a_route_that_is_unknown_is_a_problem(world: World, api: Api, conforms: Conforms, route: str) -> None:
    answer = api(route, **(IDS if "{" in route else {}))

    conforms("problem", answer.body)
    assert (answer.status, answer.body["status"], answer.body["request_id"]) == (404, 404, "gateway-1")
    assert world.is_untouched


@pytest.mark.parametrize(
    "event",
    [
        *(None, [], "text", {}, {"targets": []}, {"routeKey": 7}, {"routeKey": "GET /watches"}),
        *({"routeKey": "GET /watches", "requestContext": {}}, {"resource": "/watches", "requestContext": {}}),
    ],
    ids=count(),
)
def test_an_event_that_is_no_request_is_refused(
    world: World, handler: Callable[..., dict[str, Any]], logs: io.StringIO, event: object
) -> None:
    with pytest.raises(InvalidTarget, match=r"^the event must be a request of API Gateway"):
        handler(event, Context())

    assert world.is_untouched
    assert json.loads(logs.getvalue())["correlation_id"] == "invocation-1"
