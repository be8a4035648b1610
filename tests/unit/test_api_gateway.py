"""Requests of API Gateway and responses to them: both payload versions, and input of every wrong kind."""

import base64
import json
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest

from stream_state.adapters.api_gateway import (
    Request,
    json_response,
    page_key,
    page_response,
    problem_response,
    route,
    whole_number,
)
from stream_state.domain.targets import Target
from stream_state.errors import InvalidRequest, QuotaExceeded

APP_IDS = ("app-1", "app-2")
MAX_BYTES = 262_144


def in_path(value: object, *, encoded: bool) -> Request:
    """A request with an id in its path, of payload 1.0 (which leaves it encoded) or 2.0."""
    return Request({"pathParameters": {"room_id": value}} | ({"resource": "/rooms/{room_id}"} if encoded else {}))


def base64_of(text: str | bytes) -> str:
    return base64.b64encode(text if isinstance(text, bytes) else text.encode()).decode()


@pytest.mark.parametrize(("key", "expected"), [("GET /a", "PUT /a"), ("ANY /a", "PUT /a"), ("$default", "PUT ")])
def test_the_route_is_the_one_that_api_gateway_matched(key: str, expected: str) -> None:
    assert route({"routeKey": key, "requestContext": {"http": {"method": "PUT"}}}) == expected
    assert route({"resource": "/watches", "httpMethod": "GET", "requestContext": {}}) == "GET /watches"


@pytest.mark.parametrize("id_", ["class-1", "a@b._-Z9", "...", "x" * 128])
def test_an_id_in_a_path_is_decoded_once_if_it_arrives_encoded(id_: str) -> None:
    percent_encoded = "".join(f"%{ord(character):02x}" for character in id_)

    for value, is_encoded in ((id_, False), (id_, True), (percent_encoded, True)):
        assert in_path(value, encoded=is_encoded).path_id("room_id") == id_


ILLEGAL = ["", ".", "..", "x" * 129, "a/b", "a b", "a+b", "教室"]
ILLEGAL_DECODED = ["%2e", "%2E%2E", "a%40b", "a%2Fb", "\x00", "a\n"]
ILLEGAL_ENCODED = ["%2e", "%2E%2e", ".%2e", "%252e%252e", "a%2540b", "a%2Fb", "a%5Cb", "%00", "%", "%zz", "a%0A"]
ILLEGAL_ENCODED += ["%ff", "%c0%ae", "%ed%a0%80"]


@pytest.mark.parametrize(
    ("value", "is_encoded"),
    [*((value, False) for value in ILLEGAL + ILLEGAL_DECODED), *((value, True) for value in ILLEGAL + ILLEGAL_ENCODED)],
    ids=count(),
)
def test_an_illegal_id_in_a_path_is_refused(value: str, is_encoded: bool) -> None:  # noqa: FBT001 (a parameter)
    with pytest.raises(InvalidRequest, match=r"^room_id "):
        in_path(value, encoded=is_encoded).path_id("room_id")


@pytest.mark.parametrize("event", [{}, {"pathParameters": None}, {"pathParameters": {"room_id": None}}])
@pytest.mark.parametrize("payload", [{}, {"resource": "/rooms/{room_id}"}])
def test_a_missing_id_and_a_null_id_are_the_same(event: dict[str, Any], payload: dict[str, str]) -> None:
    with pytest.raises(InvalidRequest, match=r"^room_id is missing\.$"):
        Request({**event, **payload}).path_id("room_id")


SINGLE, SEVERAL = "queryStringParameters", "multiValueQueryStringParameters"


@pytest.mark.parametrize(
    ("event", "query"),
    [
        ({}, {}),
        ({SINGLE: None, SEVERAL: None}, {}),
        ({SINGLE: {"app_id": None}}, {}),
        *(({SINGLE: {"app_id": None}, SEVERAL: {"app_id": values}}, {}) for values in (None, [], [None])),
        *(({SINGLE: {"app_id": value}}, {"app_id": str(value)}) for value in ("app-2", 7)),
        ({SINGLE: {"app_id": "b"}, SEVERAL: {"app_id": ["a", "b"]}}, {"app_id": "a,b"}),
    ],
)
def test_a_repeated_and_a_null_parameter_are_read_alike_in_both_payload_versions(
    event: dict[str, Any], query: dict[str, str]
) -> None:
    assert Request(event).query({"app_id"}) == query


def test_an_unknown_parameter_is_refused() -> None:
    refusal = r"^the query has a field \('maxage'\) that is not one of app_id, max_age\."
    with pytest.raises(InvalidRequest, match=refusal):
        Request({SINGLE: {"maxage": "5"}}).query({"app_id", "max_age"})


@pytest.mark.parametrize("app_id", ["app-3", "", "app-1,app-2", "APP-1"])
def test_an_app_id_that_is_not_configured_is_refused(app_id: str) -> None:
    request = Request({"pathParameters": {"room_id": "class-1", "user_id": "teacher"}})
    assert request.target({}, APP_IDS) == Target("app-1", "class-1", "teacher")
    assert request.target({"app_id": "app-2"}, APP_IDS) == Target("app-2", "class-1", "teacher")

    with pytest.raises(InvalidRequest, match=r"^app_id is not one of"):
        request.target({"app_id": app_id}, APP_IDS)


@pytest.mark.parametrize("text", ['{"a": 1}', '{"a": 1}' + " " * 200_000])
def test_a_body_is_read_plain_or_encoded(text: str) -> None:
    for event in ({"body": text, "isBase64Encoded": None}, {"body": base64_of(text), "isBase64Encoded": True}):
        assert Request(event).json({"a", "b"}) == {"a": 1}


@pytest.mark.parametrize(
    "event", [{}, {"body": None}, {"body": ""}, {"body": None, "isBase64Encoded": True}], ids=count()
)
def test_an_empty_body_stands_for_the_default(event: dict[str, Any]) -> None:
    assert Request(event).json({"a"}, default="{}") == {}
    with pytest.raises(InvalidRequest, match=r"^the body is not JSON at line 1, column 1\."):
        Request(event).json({"a"})


REFUSED = "is not JSON that can be read: it is nested too deeply"
BOM = r"begins with a byte order mark: send UTF-8 without it\.$"


@pytest.mark.parametrize(
    ("body", "is_encoded", "complaint"),
    [
        ("{", False, r"is not JSON at line 1, column 2\."),
        ("a=1", False, r"is not JSON at line 1, column 1\."),
        ('{"a": 1,\n "a": 2}', False, r"names a field twice\."),
        ("[" * 100_000, False, REFUSED),
        ("9" * 5000, False, f"{REFUSED}, a number is too long"),
        ("\ufeff{}", False, BOM),
        (base64_of("\ufeff{}"), True, BOM),
        *((text, False, r"must be an object\.") for text in ("null", "[]", '"text"', "7", "true")),
        ('{"b": 1}', False, r"has a field \('b'\) that is not one of a\."),
        *((text, True, r"must be UTF-8\.") for text in ("{}", "e30", "e30=\n", "e3 0=", "教室", base64_of(b"\xff"))),
    ],
    ids=count(),
)
def test_a_body_that_is_not_the_object_asked_for_is_refused_with_the_rule(
    body: str, is_encoded: object, complaint: str
) -> None:
    with pytest.raises(InvalidRequest, match=f"^the body {complaint}") as raised:
        Request({"body": body, "isBase64Encoded": is_encoded}).json({"a"})

    assert raised.value.status == 400


@pytest.mark.parametrize("more", [1, 2, 3, 2**20])
def test_a_body_has_at_most_a_quarter_of_a_mebibyte(more: int) -> None:
    def status(body: str | bytes) -> int:
        encoded = {"body": base64_of(body), "isBase64Encoded": True} if isinstance(body, bytes) else {"body": body}
        with pytest.raises(InvalidRequest) as raised:
            Request(encoded).json({"a"})
        return raised.value.status

    assert [status("x" * MAX_BYTES), status(b"x" * (MAX_BYTES - more % 3))] == [400, 400]
    assert [status("x" * (MAX_BYTES + more)), status(b"x" * (MAX_BYTES + more))] == [413, 413]
    assert status("教" * (MAX_BYTES // 3 + more)) == 413


def test_a_number_in_a_query_is_whole_and_short() -> None:
    assert [whole_number(text) for text in ("0", "60", "0005", "5.0")] == [0, 60, 5, 5]
    for text in ("", "5.5", "+5", "-1", " 5", "5.", "1234567890", "\N{ARABIC-INDIC DIGIT FIVE}", "five"):
        assert whole_number(text) == text


@pytest.mark.parametrize(
    ("key", "parts"),
    [("x" * 128, 1), ("app-1#class-1#teacher", 3), (f"{'应' * 128}#class-1#teacher", 3), ("a#b#c#d", 3)],
    ids=count(),
)
def test_a_page_goes_on_after_the_key_that_the_last_one_gave(key: str, parts: int) -> None:
    token = json.loads(page_response("results", [], key)["body"])["next_token"]

    assert page_key({"next_token": token}, parts) == key
    assert page_key({}, parts) is None
    assert json.loads(page_response("results", [], None)["body"]) == {"results": [], "next_token": None}


NO_KEYS = ["a b", "a/b", "x" * 129, "app-1##", "app-1#a b#", "#", "\x00", "app#ro om#user", "x" * 2000 + "#class#user"]
NO_TOKENS = ["", "a", "teacher", "dGVhY2hlcg", "%%%%", "教室", "dGVh Y2hlcg==", "dGVhY2hlcg==\n", base64_of(b"\xff")]


@pytest.mark.parametrize(
    ("token", "parts"),
    [
        *((token, parts) for token in (*NO_TOKENS, *map(base64_of, NO_KEYS)) for parts in (1, 3)),
        # Tokens of another list.
        *((base64_of(key), 3) for key in ("teacher", "class-1#teacher")),
        (base64_of("app-1#class-1#teacher"), 1),
    ],
    ids=count(),
)
def test_a_token_that_the_list_did_not_give_is_refused(token: str, parts: int) -> None:
    with pytest.raises(InvalidRequest, match=r"^next_token was not given by this API\.$"):
        page_key({"next_token": token}, parts)


def test_no_cache_keeps_a_response() -> None:
    headers = {"Content-Type": "application/json", "Cache-Control": "no-store"}
    assert json_response(200, {"a": 1}) == {"statusCode": 200, "headers": headers, "body": '{"a":1}'}


@pytest.mark.parametrize(
    ("event", "instance"),
    [
        ({"rawPath": "/rooms/a@b._-/users/x"}, "/rooms/a@b._-/users/x"),
        ({"rawPath": "/rooms/a b/users/教"}, "/rooms/a%20b/users/%E6%95%99"),
        ({"rawPath": "/rooms/a%20b"}, "/rooms/a%20b"),
        ({"rawPath": '/rooms/\ud800"?'}, "/rooms/%3F%22%3F"),
        ({"path": "/rooms/a%20b/users/x"}, "/rooms/a%20b/users/x"),
        ({"rawPath": None, "path": None}, "/"),
    ],
    ids=count(),
)
def test_an_error_becomes_a_problem_that_names_the_request(
    conforms: Callable[[str, Any], None], event: dict[str, Any], instance: str
) -> None:
    error = QuotaExceeded("No slot.", retry_after_seconds=2.1)

    response = problem_response(error, {"requestContext": {"requestId": "request-1"}, **event})

    problem, headers = json.loads(response["body"]), response["headers"]
    conforms("problem", problem)
    assert (response["statusCode"], headers["Content-Type"]) == (429, "application/problem+json")
    assert (headers["Cache-Control"], headers["Retry-After"]) == ("no-store", "3")
    assert (problem["instance"], problem["request_id"], problem["error"]) == (instance, "request-1", "QuotaExceeded")
