"""Requests of API Gateway, payload 2.0 of an HTTP API and 1.0 of a REST API, and the responses to them."""

import base64
import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import quote, unquote

from stream_state.clock import CLOCK
from stream_state.domain.parsing import (
    JsonError,
    invalid,
    parse_app_id,
    parse_json,
    parse_object,
    parse_path_id,
)
from stream_state.domain.targets import Room, Target
from stream_state.errors import InvalidRequest, StreamStateError
from stream_state.observability import log_error

MAX_BODY_BYTES = 256 * 1024
# A request whose time differs from now by more than this counts as received now.
MAX_DELAY_MS = 60_000
# Characters that stand in a path as they are (RFC 3986), besides letters and digits; also the % of an encoded path.
_IN_PATHS = "/-._~!$&'()*+,;=:@%"
_ID = "[A-Za-z0-9@._-]{1,128}"
# The keys of a page, by their parts: a user of the room asked for, or app, room and user of a watch. The watch of a
# whole room names no user.
_PAGE_KEYS = {1: re.compile(_ID), 3: re.compile(rf".{{1,128}}#{_ID}#({_ID})?")}

type Response = dict[str, Any]


@dataclass(eq=False, repr=False)
class Request:
    """A request with its deadline in monotonic seconds; `InvalidRequest` says what is wrong with the request."""

    event: Mapping[str, Any]
    deadline: float = 0

    @property
    def path(self) -> str:
        """The path, decoded in payload 2.0, encoded in payload 1.0."""
        path = self.event.get("rawPath") or self.event.get("path")
        return path if isinstance(path, str) else "/"

    @property
    def received_at_ms(self) -> int:
        """When API Gateway received the request, in milliseconds since 1970."""
        now_ms = CLOCK.now_ms()
        context = self.event["requestContext"]
        time_ms = context.get("timeEpoch") or context.get("requestTimeEpoch")
        return time_ms if isinstance(time_ms, int) and 0 <= now_ms - time_ms <= MAX_DELAY_MS else now_ms

    def path_id(self, name: str) -> str:
        """An id in the path, decoded once: payload 1.0 arrives encoded, 2.0 decoded."""
        value = self._object("pathParameters").get(name)
        if "resource" in self.event and isinstance(value, str):
            try:
                value = unquote(value, errors="strict")
            except UnicodeDecodeError:
                raise invalid(name, "is not percent-encoded UTF-8") from None
        return parse_path_id(value, name)

    def room(self, query: Mapping[str, str], app_ids: tuple[str, ...]) -> Room:
        """The room that path and query name; the first AppId is the default."""
        return Room(parse_app_id(query.get("app_id", app_ids[0]), app_ids), self.path_id("room_id"))

    def target(self, query: Mapping[str, str], app_ids: tuple[str, ...]) -> Target:
        """The target that path and query name."""
        room = self.room(query, app_ids)
        return Target(room.app_id, room.room_id, self.path_id("user_id"))

    def query(self, names: Collection[str]) -> Mapping[str, str]:
        """The query's parameters; the values of a repeated parameter are joined by commas, as in payload 2.0."""
        given = self._object("multiValueQueryStringParameters") or self._object("queryStringParameters")
        lists = {name: value if isinstance(value, list) else [value] for name, value in given.items()}
        texts = {name: [str(value) for value in values if value is not None] for name, values in lists.items()}
        return parse_object({name: ",".join(values) for name, values in texts.items() if values}, names, "the query")

    def event_text(self) -> str:
        """The body of a callback event, which is JSON by its content type."""
        headers = {name.lower(): value for name, value in self._object("headers").items()}
        if "json" not in str(headers.get("content-type") or "json").lower():
            raise invalid("the body", "must be of the content type application/json")
        return self._body()

    def json(self, names: Collection[str], default: str = "") -> Mapping[str, Any]:
        """The body's object; an empty body stands for `default`."""
        try:
            value = parse_json(self._body() or default)
        except JsonError as error:
            raise invalid("the body", str(error)) from None
        return parse_object(value, names, "the body")

    def _object(self, name: str) -> Mapping[str, Any]:
        """An object of the event; null and a missing one are empty."""
        value = self.event.get(name) or {}
        if not isinstance(value, Mapping):
            raise invalid(f"the event's {name}", "must be an object")
        return value

    def _body(self) -> str:
        body = self.event.get("body") or ""
        if not isinstance(body, str):
            raise invalid("the body", "must be text")
        encoded = self.event.get("isBase64Encoded")
        size = len(body) * 3 // 4 - body[-2:].count("=") if encoded else len(body.encode(errors="surrogatepass"))
        if size > MAX_BODY_BYTES:
            detail = f"The body is larger than {MAX_BODY_BYTES} bytes."
            raise InvalidRequest(detail, status=HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        try:
            return base64.b64decode(body, validate=True).decode() if encoded else body
        except ValueError:
            raise invalid("the body", "must be UTF-8") from None


def route(event: Any) -> str:
    """The route that API Gateway matched, as `GET /watches`; the path differs by stage, domain and ids."""
    match event:
        case {"routeKey": str(key), "requestContext": {"http": {"method": str(method)}}}:
            return f"{method} {key.partition(' ')[2]}"
        case {"resource": str(resource), "httpMethod": str(method), "requestContext": Mapping()}:
            return f"{method} {resource}"
    raise invalid("the event", "must be a request of API Gateway, in payload format 2.0 or 1.0")


def respond(event: Any, routes: Mapping[str, Callable[[Request], Response]], deadline: float) -> Response:
    """The response of the event's route, or its error as a problem; raises `InvalidRequest` for any other event."""
    answer = routes.get(route(event))
    try:
        if answer is None:
            # API Gateway sends only routes of this function; a direct invocation may name any other.
            detail = "The path and the method are no route of this API: see its OpenAPI document."
            raise InvalidRequest(detail, status=HTTPStatus.NOT_FOUND)
        return answer(Request(event, deadline))
    except StreamStateError as error:
        log_error(error)
        return problem_response(error, event)


def whole_number(text: str) -> int | str:
    """The number if the text is a short one, such as 10 or 10.0; else the text."""
    is_number = re.fullmatch(r"[0-9]{1,9}(\.0+)?", text, re.ASCII)
    return int(text.partition(".")[0]) if is_number else text


def page_key(query: Mapping[str, str], parts: int) -> str | None:
    """The key in a `next_token`, None for the first page; keys of the list asked for have so many parts."""
    if "next_token" not in query:
        return None
    try:
        key = base64.b64decode(query["next_token"], altchars=b"-_", validate=True).decode()
    except ValueError:
        key = ""
    # DynamoDB refuses some keys, and finds nothing after a key of another list.
    if not _PAGE_KEYS[parts].fullmatch(key):
        raise invalid("next_token", "was not given by this API")
    return key


def json_response(
    status: int, document: object, content_type: str = "application/json", retry_after: int | None = None
) -> Response:
    """A response that no cache keeps."""
    headers = {"Content-Type": content_type, "Cache-Control": "no-store"}
    if retry_after is not None:
        headers["Retry-After"] = str(retry_after)
    return {"statusCode": int(status), "headers": headers, "body": json.dumps(document, separators=(",", ":"))}


def page_response(name: str, entries: list[dict[str, Any]], next_key: str | None) -> Response:
    """A page of a list."""
    token = base64.urlsafe_b64encode(next_key.encode()).decode() if next_key else None
    return json_response(HTTPStatus.OK, {name: entries, "next_token": token})


def problem_response(error: StreamStateError, event: Mapping[str, Any]) -> Response:
    """An error as a problem document."""
    request_id = event["requestContext"].get("requestId")
    # Payload 2.0 has the path decoded; a problem has it as a URI.
    instance = quote(Request(event).path, _IN_PATHS, errors="replace")
    document = error.problem(instance=instance, request_id=request_id)
    return json_response(error.status, document, "application/problem+json", error.retry_after)
