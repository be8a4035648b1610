"""Requests of API Gateway, payload 2.0 of an HTTP API and 1.0 of a REST API, and the responses to them."""

import base64
import json
from collections.abc import Callable, Collection, Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import quote, unquote

from stream_state.errors import InvalidTarget, StreamStateError
from stream_state.model import Target
from stream_state.observability import log_error
from stream_state.validation import JsonError, invalid, parse_app_id, parse_id, parse_json, parse_object, parse_path_id

MAX_BODY_BYTES = 256 * 1024
MAX_TOKEN_LENGTH = 1024
# What stands in a path as it is (RFC 3986), besides letters and digits; the % of a path that is encoded already too.
_IN_PATHS = "/-._~!$&'()*+,;=:@%"

# What API Gateway makes an HTTP response of, for both payload versions.
type Response = dict[str, Any]


class Request:
    """One request; what is wrong with it raises `InvalidTarget`. `until`: when waiting ends, in monotonic seconds."""

    def __init__(self, event: Mapping[str, Any], until: float = 0) -> None:
        self._event = event
        self.until = until

    def path_id(self, name: str) -> str:
        """An id in the path, decoded once: payload 1.0 arrives encoded, 2.0 decoded."""
        value = self._event["pathParameters"][name]
        if "resource" in self._event:
            try:
                value = unquote(value, errors="strict")
            except UnicodeDecodeError:
                raise invalid(name, "is not percent-encoded UTF-8") from None
        return parse_path_id(value, name)

    def app_id(self, options: Mapping[str, str], app_ids: tuple[str, ...]) -> str:
        """The AppId that the query names, else the default."""
        return parse_app_id(options.get("app_id", app_ids[0]), app_ids)

    def target(self, options: Mapping[str, str], app_ids: tuple[str, ...]) -> Target:
        """The target that path and query name."""
        return Target(self.app_id(options, app_ids), self.path_id("room_id"), self.path_id("user_id"))

    def query(self, known: Collection[str]) -> Mapping[str, str]:
        """The query's parameters; the values of one that is named twice are joined by commas, as in payload 2.0."""
        several = self._event.get("multiValueQueryStringParameters") or {}
        joined = {name: ",".join(values) for name, values in several.items()}
        return parse_object(joined or self._event.get("queryStringParameters") or {}, known, "the query")

    def event_text(self) -> str:
        """The body of a pushed event, which is JSON by its content type."""
        headers = {name.lower(): value for name, value in (self._event.get("headers") or {}).items()}
        if "json" not in headers.get("content-type", "json").lower():
            raise invalid("the body", "must be of the content type application/json")
        return self._body()

    def json(self, known: Collection[str], default: str = "") -> Mapping[str, Any]:
        """The body's object; an empty body stands for `default`."""
        try:
            value = parse_json(self._body() or default)
        except JsonError as error:
            raise invalid("the body", str(error)) from None
        return parse_object(value, known, "the body")

    def _body(self) -> str:
        body: str = self._event.get("body") or ""
        encoded = self._event.get("isBase64Encoded")
        size = len(body) * 3 // 4 - body[-2:].count("=") if encoded else len(body.encode(errors="surrogatepass"))
        if size > MAX_BODY_BYTES:
            detail = f"The body is larger than {MAX_BODY_BYTES} bytes."
            raise InvalidTarget(detail, status=HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        try:
            return base64.b64decode(body, validate=True).decode() if encoded else body
        except ValueError:
            raise invalid("the body", "must be UTF-8") from None


def route(event: Any) -> str:
    """The route that API Gateway matched, as `GET /watches`; the path differs by stage, domain and ids."""
    match event:
        case {"routeKey": str(key), "requestContext": {"http": {"method": str(method)}}}:
            return f"{method} {key.partition(' ')[2]}"
        case {"resource": str(resource), "httpMethod": str(method), "requestContext": {}}:
            return f"{method} {resource}"
    raise invalid("the event", "must be a request of API Gateway, in payload format 2.0 or 1.0")


def respond(event: Any, routes: Mapping[str, Callable[[Request], Response]], until: float) -> Response:
    """The answer of the event's route, or its error as a problem; `InvalidTarget` for what is no request."""
    answer = routes.get(route(event), _refuse_route)
    try:
        return answer(Request(event, until))
    except StreamStateError as error:
        log_error(error)
        return problem_response(error, event)


def _refuse_route(_: Request) -> Response:
    """Refuse a route that is none of those known, which API Gateway does not send here of itself."""
    raise InvalidTarget("This path and method are not part of this API.", status=HTTPStatus.NOT_FOUND)


def whole_number(text: str) -> int | str:
    """The number if the text is one of few digits, else the text."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < len("10000") else text


def page_key(options: Mapping[str, str], parts: int) -> str | None:
    """The key in a `next_token`, None for the first page; keys of the list asked for have so many parts."""
    if "next_token" not in options:
        return None
    token = options["next_token"]
    try:
        if len(token) > MAX_TOKEN_LENGTH:
            raise invalid("next_token", "is too long")
        key = base64.b64decode(token, altchars=b"-_", validate=True).decode()
        # DynamoDB refuses some keys, and after one of another list nothing would be found. Only an AppId can hold a #.
        found = key.rsplit("#", parts - 1)
        if len(found) < parts:
            raise invalid("next_token", "is of another list")
        for part in found[-2:]:
            parse_id(part, "next_token")
    except (ValueError, InvalidTarget):
        raise invalid("next_token", "is not one that this API gave") from None
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
    instance = quote(event.get("rawPath") or event.get("path") or "/", _IN_PATHS, errors="replace")
    document = error.problem(instance=instance, request_id=request_id)
    return json_response(error.http_status, document, "application/problem+json", error.retry_after)
