"""API Gateway on loopback: HTTP requests become Lambda events as AWS forms them, and the answers become HTTP."""

import base64
import json
import re
import secrets
import socket
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote

from tests.sandbox.functions import Invocation, PayloadTooLarge
from tests.sandbox.server import Headers, LoopbackServer, Request, Response

MAX_BODY_BYTES = 10 * 1024 * 1024
TEXT_TYPES = re.compile(r"text/|application/(json|javascript|xml|.*\+json|.*\+xml)\b", re.IGNORECASE)
# What a request does not determine, a caller who passed the check of IAM included, is as in these events.
SAMPLES = Path(__file__).parents[2] / "events" / "api"
Invoke = Callable[[str, object], Invocation]


@dataclass(frozen=True)
class Route:
    """One route of the API and the logical id of the function behind it."""

    method: str
    path: str
    function: str
    requires_iam: bool = True

    @property
    def key(self) -> str:
        """Route key of payload 2.0."""
        return f"{self.method} {self.path}"

    def match(self, method: str, path: str) -> dict[str, str] | None:
        """Path parameters as they stand in the path, or None if the route is another one."""
        pattern = re.sub(r"\\\{(\w+)\\\+\\\}", r"(?P<\1>.+)", re.escape(self.path))
        pattern = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^/]+)", pattern)
        found = re.fullmatch(pattern, path) if self.method in (method, "ANY") else None
        return found.groupdict() if found else None


class Gateway(LoopbackServer):
    """HTTP front of the functions: as an HTTP API (payload 2.0), or with `rest` as a REST API (1.0) of stage prod."""

    def __init__(self, routes: Iterable[Route], invoke: Invoke, *, rest: bool = False) -> None:
        # A literal segment wins over a parameter.
        self.routes = sorted(routes, key=lambda route: (route.path.count("{"), -len(route.path)))
        self._invoke = invoke
        self._rest = rest
        sample = json.loads((SAMPLES / ("get-rest-api.json" if rest else "get-http-api.json")).read_text())
        self._context: dict[str, Any] = sample["requestContext"]
        super().__init__(self._answer)

    def _answer(self, request: Request, connection: socket.socket) -> Response:
        request_id = str(uuid.uuid4()) if self._rest else secrets.token_urlsafe(11) + "="
        header = ("x-amzn-RequestId" if self._rest else "Apigw-Requestid", request_id)

        def message(status: int, text: str) -> Response:
            return Response(
                status,
                json.dumps({"message": text}, separators=(",", ":")).encode(),
                [("Content-Type", "application/json"), header],
            )

        # An HTTP API decodes the path before it looks for the route, a REST API does not.
        path = request.path if self._rest else unquote(request.path)
        found = ((route, route.match(request.method, path)) for route in self.routes)
        route, parameters = next(((route, match) for route, match in found if match is not None), (None, None))
        if route is None:
            return message(403, "Missing Authentication Token") if self._rest else message(404, "Not Found")
        if len(request.body) > MAX_BODY_BYTES:
            return message(413, "Request Entity Too Large")
        event = (self._event_1 if self._rest else self._event_2)(request, route, path, parameters or {}, request_id)
        try:
            invocation = self._invoke(route.function, event)
        except PayloadTooLarge:
            return message(413, "Request Entity Too Large")
        response = None if invocation.error else self._shape(invocation.payload, header)
        if response is None:
            return message(502, "Internal server error") if self._rest else message(500, "Internal Server Error")
        return response

    def _shape(self, payload: Any, header: tuple[str, str]) -> Response | None:
        """The function's answer as HTTP, or None if API Gateway would call it malformed."""
        if not (isinstance(payload, dict) and "statusCode" in payload):
            if self._rest:
                return None
            return Response(200, json.dumps(payload).encode(), [("Content-Type", "application/json"), header])
        body, many = payload.get("body") or "", payload.get("multiValueHeaders") or {}
        headers: Headers = [(name, str(value)) for name, value in (payload.get("headers") or {}).items()]
        if not isinstance(body, str) or not str(payload["statusCode"]).isdigit():
            return None
        if self._rest:
            headers = [pair for pair in headers if pair[0] not in many]
            headers += [(name, str(value)) for name, values in many.items() for value in values]
        else:
            headers += [("Set-Cookie", cookie) for cookie in payload.get("cookies") or []]
        data = base64.b64decode(body) if payload.get("isBase64Encoded") else body.encode()
        headers = [pair for pair in headers if pair[0].lower() not in ("content-length", "connection")]
        if "content-type" not in {name.lower() for name, _ in headers}:
            headers.append(("Content-Type", "application/json" if self._rest else "text/plain;charset=UTF-8"))
        return Response(int(payload["statusCode"]), data, [*headers, header])

    def _common(self, request: Request) -> tuple[dict[str, list[str]], dict[str, Any]]:
        """Headers as API Gateway passes them on, by their name as sent, and the members that both formats have."""
        added = {
            "X-Amzn-Trace-Id": f"Root=1-{int(time.time()):08x}-{secrets.token_hex(12)}",
            "X-Forwarded-For": "127.0.0.1",
            "X-Forwarded-Port": "443",
            "X-Forwarded-Proto": "https",
        }
        headers: dict[str, list[str]] = {}
        for name, value in [*request.headers, *added.items()]:
            if name.lower() not in ("connection", "expect"):
                headers.setdefault(name, []).append(value)
        # A REST API without binary media types passes everything on as text.
        encoded = not self._rest and not TEXT_TYPES.match(request.header("Content-Type") or "text/plain")
        body = base64.b64encode(request.body).decode() if encoded else request.body.decode(errors="replace")
        return headers, {"body": body or None, "isBase64Encoded": bool(body) and encoded}

    def _event_2(
        self, request: Request, route: Route, path: str, parameters: dict[str, str], request_id: str
    ) -> dict[str, Any]:
        sent, common = self._common(request)
        headers: dict[str, str] = {}
        for name, values in sent.items():
            before = [headers[name.lower()]] if name.lower() in headers else []
            headers[name.lower()] = ",".join([*before, *values])
        cookies = [cookie.strip() for cookie in headers.pop("cookie", "").split(";") if cookie.strip()]
        query: dict[str, str] = {}
        for name, value in parse_qsl(request.query, keep_blank_values=True):
            query[name] = f"{query[name]},{value}" if name in query else value
        caller = {"sourceIp": "127.0.0.1", "userAgent": request.header("User-Agent") or ""}
        context = self._context | {
            "http": {"method": request.method, "path": path, "protocol": "HTTP/1.1", **caller},
            "requestId": request_id,
            "routeKey": route.key,
            "time": time.strftime("%d/%b/%Y:%H:%M:%S +0000", time.gmtime()),
            "timeEpoch": int(time.time() * 1000),
        }
        if not route.requires_iam:
            del context["authorizer"]
        event = {
            "version": "2.0",
            "routeKey": route.key,
            "rawPath": path,
            "rawQueryString": request.query,
            "headers": headers,
            "requestContext": context,
            "isBase64Encoded": common["isBase64Encoded"],
        }
        # Left out if empty.
        more = {
            "cookies": cookies,
            "queryStringParameters": query,
            "pathParameters": parameters,
            "body": common["body"],
        }
        return event | {name: value for name, value in more.items() if value}

    def _event_1(
        self, request: Request, route: Route, path: str, parameters: dict[str, str], request_id: str
    ) -> dict[str, Any]:
        headers, common = self._common(request)
        query: dict[str, list[str]] = {}
        for name, value in parse_qsl(request.query, keep_blank_values=True):
            query.setdefault(name, []).append(value)
        caller = {"sourceIp": "127.0.0.1", "userAgent": request.header("User-Agent")}
        context = self._context | {
            "resourcePath": route.path,
            "httpMethod": request.method,
            "requestTime": time.strftime("%d/%b/%Y:%H:%M:%S +0000", time.gmtime()),
            "requestTimeEpoch": int(time.time() * 1000),
            "path": f"/prod{path}",
            "requestId": request_id,
            "identity": self._context["identity"] | caller,
        }
        return {
            "resource": route.path,
            "path": path,
            "httpMethod": request.method,
            "headers": {name: values[-1] for name, values in headers.items()},
            "multiValueHeaders": headers,
            "queryStringParameters": {name: values[-1] for name, values in query.items()} or None,
            "multiValueQueryStringParameters": query or None,
            "pathParameters": parameters or None,
            "stageVariables": None,
            "requestContext": context,
            **common,
        }
