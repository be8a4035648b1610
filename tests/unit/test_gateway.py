"""Requests of API Gateway and responses to them: both payload versions, and input of every wrong kind."""

import base64
import json
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest

from stream_state.errors import InvalidTarget, QuotaExceeded
from stream_state.gateway import (
    MAX_BODY_BYTES,
    Request,
    json_response,
    page_key,
    page_response,
    problem_response,
    whole_number,
)
from stream_state.model import Target

APP_IDS = ("app-1", "app-2")


def in_path(value: object, *, encoded: bool) -> Request:
    """A request with an id in its path, of payload 1.0 (which leaves it encoded) or 2.0."""
    return Request({"pathParameters": {"room_id": value}} | ({"resource": "/rooms/{room_id}"} if encoded else {}))


def encoded(text: str | bytes) -> str:
    return base64.b64encode(text if isinstance(text, bytes) else text.encode()).decode()


@pytest.mark.parametrize(
    ("value", "is_encoded", "id_"),
    [
        ("class-1", False, "class-1"),
        ("a@b._-Z9", False, "a@b._-Z9"),
        ("...", False, "..."),
        ("class-1", True, "class-1"),
        ("a%40b", True, "a@b"),
        ("%63lass%2D1", True, "class-1"),
        ("x" * 128, True, "x" * 128),
    ],
)
def test_an_id_in_a_path_is_decoded_once_if_it_arrives_encoded(value: str, is_encoded: bool, id_: str) -> None:  # noqa: FBT001 (a parameter)
    assert in_path(value, encoded=is_encoded).path_id("room_id") == id_


@pytest.mark.parametrize(
    ("value", "is_encoded"),
    [
        *(
            (value, is_encoded)
            for value in ("", ".", "..", "x" * 129, "a/b", "a b", "a+b", "教室")
            for is_encoded in (True, False)
        ),
        *((value, False) for value in ("%2e", "%2E%2E", "a%40b", "a%2Fb", "\x00", "a\n")),
        *(
            (value, True)
            for value in ("%2e", "%2E%2e", ".%2e", "%252e%252e", "a%2540b", "a%2Fb", "a%5Cb", "%00", "%", "%zz")
        ),
        *((value, True) for value in ("%ff", "%c0%ae", "%ed%a0%80", "a%0A")),
    ],
    ids=count(),
)
def test_an_illegal_id_in_a_path_is_refused(value: str, is_encoded: bool) -> None:  # noqa: FBT001 (a parameter)
    with pytest.raises(InvalidTarget, match=r"^room_id "):
        in_path(value, encoded=is_encoded).path_id("room_id")


@pytest.mark.parametrize(
    ("event", "options"),
    [
        ({}, {}),
        ({"queryStringParameters": None, "multiValueQueryStringParameters": None}, {}),
        ({"queryStringParameters": {"app_id": "app-2"}}, {"app_id": "app-2"}),
        (
            {"queryStringParameters": {"app_id": "b"}, "multiValueQueryStringParameters": {"app_id": ["a", "b"]}},
            {"app_id": "a,b"},
        ),
    ],
)
def test_a_parameter_named_twice_is_read_alike_in_both_payload_versions(
    event: dict[str, Any], options: dict[str, str]
) -> None:
    assert Request(event).query({"app_id"}) == options


def test_a_parameter_that_is_not_known_is_refused() -> None:
    with pytest.raises(
        InvalidTarget, match=r"^the query has a member \('maxage'\) that is not one of app_id, max_age\."
    ):
        Request({"queryStringParameters": {"maxage": "5"}}).query({"app_id", "max_age"})


@pytest.mark.parametrize("app_id", ["app-3", "", "app-1,app-2", "APP-1"])
def test_an_app_id_that_is_not_configured_is_refused(app_id: str) -> None:
    path = {"pathParameters": {"room_id": "class-1", "user_id": "teacher"}}
    assert Request(path).target({}, APP_IDS) == Target("app-1", "class-1", "teacher")
    assert Request(path).target({"app_id": "app-2"}, APP_IDS) == Target("app-2", "class-1", "teacher")

    with pytest.raises(InvalidTarget, match=r"^app_id is not one of"):
        Request(path).target({"app_id": app_id}, APP_IDS)


@pytest.mark.parametrize(
    "event",
    [
        {"body": '{"a": 1}'},
        {"body": encoded('{"a": 1}'), "isBase64Encoded": True},
        {"body": '{"a": 1}' + " " * 200_000},
        {"body": encoded('{"a": 1}' + " " * 250_000), "isBase64Encoded": True},
    ],
    ids=count(),
)
def test_a_body_is_read_plain_or_encoded(event: dict[str, Any]) -> None:
    assert Request(event).json({"a", "b"}) == {"a": 1}


@pytest.mark.parametrize(
    "event", [{}, {"body": None}, {"body": ""}, {"body": "", "isBase64Encoded": True}], ids=count()
)
def test_a_body_that_is_empty_stands_for_the_default(event: dict[str, Any]) -> None:
    assert Request(event).json({"a"}, default="{}") == {}
    with pytest.raises(InvalidTarget, match=r"^the body is not JSON"):
        Request(event).json({"a"})


@pytest.mark.parametrize(
    ("body", "is_encoded", "status"),
    [
        *(
            (text, False, 400)
            for text in ("{", "null", "[]", '"text"', "7", "true", "NaN", '{"a": NaN}', '{"a": 1e999}')
        ),
        *(
            (text, False, 400)
            for text in ('{"b": 1}', '{"a": 1, "a": 1}', "[" * 100_000, '{"a":' * 50_000, "a=1", "\ufeff{}")
        ),
        *(
            (text, True, 400)
            for text in ("{}", "e30", "e30=\n", "e3 0=", "教室", encoded(b"\xff\xfe\xfd"), encoded("[]"))
        ),
        ("x" * 2**20, False, 413),
        (encoded("x" * 2**20), True, 413),
        ("x" * MAX_BODY_BYTES, False, 400),
        ("x" * (MAX_BODY_BYTES + 1), False, 413),
        *((encoded("x" * (MAX_BODY_BYTES - less)), True, 400) for less in range(3)),
        *((encoded("x" * (MAX_BODY_BYTES + more)), True, 413) for more in (1, 2, 3)),
        ("教" * 200_000, False, 413),
    ],
    ids=count(),
)
def test_a_body_that_is_not_the_object_asked_for_is_refused(body: str, is_encoded: bool, status: int) -> None:  # noqa: FBT001 (a parameter)
    with pytest.raises(InvalidTarget) as raised:
        Request({"body": body, "isBase64Encoded": is_encoded}).json({"a"})

    assert raised.value.http_status == status


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", 0),
        ("60", 60),
        ("0005", 5),
        *((text, text) for text in ("", "5.0", "+5", "-1", " 5", "99999", "\N{ARABIC-INDIC DIGIT FIVE}", "five")),
    ],
)
def test_a_number_in_a_query_is_whole_and_short(text: str, number: int | str) -> None:
    assert whole_number(text) == number


@pytest.mark.parametrize(
    ("key", "parts"),
    [
        ("teacher", 1),
        ("x" * 128, 1),
        ("app-1#class-1#teacher", 3),
        (f"{'应' * 128}#class-1#teacher", 3),
        ("a#b#room#user", 3),
    ],
    ids=count(),
)
def test_a_page_goes_on_after_the_key_that_the_last_one_gave(key: str, parts: int) -> None:
    response = page_response("results", [], key)
    token = json.loads(response["body"])["next_token"]

    assert page_key({"next_token": token}, parts) == key
    assert page_key({}, parts) is None
    assert json.loads(page_response("results", [], None)["body"]) == {"results": [], "next_token": None}


@pytest.mark.parametrize(
    "token",
    [
        *("", "a", "teacher", "dGVhY2hlcg", "%%%%", "dGVh Y2hlcg==", "教室", "dGVhY2hlcg==\n"),
        *map(encoded, (b"\xff", "a b", "a/b", "x" * 129, "app-1#class-1#", "#", "\x00", "app#ro om#user")),
        encoded("x" * 2000 + "#class-1#teacher"),
    ],
    ids=count(),
)
@pytest.mark.parametrize("parts", [1, 3])
def test_a_token_that_the_api_did_not_give_is_refused(token: str, parts: int) -> None:
    with pytest.raises(InvalidTarget, match=r"^next_token is not one that this API gave\.$"):
        page_key({"next_token": token}, parts)


@pytest.mark.parametrize(("key", "parts"), [("teacher", 3), ("class-1#teacher", 3), ("app-1#class-1#teacher", 1)])
def test_a_token_of_another_list_is_refused(key: str, parts: int) -> None:
    with pytest.raises(InvalidTarget, match=r"^next_token is not one that this API gave\.$"):
        page_key({"next_token": encoded(key)}, parts)


@pytest.mark.parametrize(
    ("event", "instance"),
    [
        ({"rawPath": "/rooms/a@b._-/users/x"}, "/rooms/a@b._-/users/x"),
        ({"rawPath": "/rooms/a b/users/教"}, "/rooms/a%20b/users/%E6%95%99"),
        ({"rawPath": "/rooms/a%20b"}, "/rooms/a%20b"),
        ({"rawPath": '/rooms/\ud800"?'}, "/rooms/%3F%22%3F"),
        ({"path": "/rooms/a%20b/users/x"}, "/rooms/a%20b/users/x"),
    ],
    ids=count(),
)
def test_a_problem_names_the_path_as_a_uri(event: dict[str, str], instance: str) -> None:
    response = problem_response(QuotaExceeded("No slot."), {"requestContext": {}, **event})

    assert json.loads(response["body"])["instance"] == instance


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ("{", "is not JSON at line 1, column 2."),
        ("", "is not JSON at line 1, column 1."),
        ('{"a": 1,\n "a": 2}', "names a member twice."),
        ('{"a": NaN}', "holds NaN, which is not JSON."),
        ('{"a": -1e999}', "holds a number that is too large."),
        ("[" * 100_000, "is not JSON that can be read: it is nested too deeply"),
        ("9" * 5000, "is not JSON that can be read: it is nested too deeply, a number is too long"),
    ],
    ids=count(),
)
def test_a_body_that_is_not_json_is_told_what_is_wrong_with_it(body: str, complaint: str) -> None:
    with pytest.raises(InvalidTarget, match=f"^the body {complaint}"):
        Request({"body": body}).json({"a"})


def test_no_response_is_kept_by_a_cache() -> None:
    response = json_response(200, {"a": 1})

    assert response == {
        "statusCode": 200,
        "headers": {"Content-Type": "application/json", "Cache-Control": "no-store"},
        "body": '{"a":1}',
    }


def test_an_error_becomes_a_problem_that_names_the_request(conforms: Callable[[str, Any], None]) -> None:
    event = {"requestContext": {"requestId": "request-1"}, "rawPath": "/rooms/a"}

    response = problem_response(QuotaExceeded("No slot.", retry_after_seconds=2.1), event)

    problem, headers = json.loads(response["body"]), response["headers"]
    conforms("problem", problem)
    assert (response["statusCode"], headers["Content-Type"]) == (429, "application/problem+json")
    assert (headers["Cache-Control"], headers["Retry-After"]) == ("no-store", "3")
    assert (problem["instance"], problem["request_id"], problem["error"]) == ("/rooms/a", "request-1", "QuotaExceeded")
