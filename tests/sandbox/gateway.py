"""API Gateway on loopback: HTTP requests become Lambda events as AWS forms them, and the answers become HTTP."""

import base64
import json
import re
import secrets
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

from tests.sandbox.functions import Invocation
from tests.sandbox.server import Headers, LoopbackServer, Request, Response

TEXT_TYPES = re.compile(r"text/|application/(json|javascript|xml|.*\+json|.*\+xml)\b", re.IGNORECASE)
# The fields that a request does not determine are as in these events, the caller who passed the check of IAM included.
SAMPLES = Path(__file__).parents[2] / "events" / "api"


@dataclass(frozen=True)
class Route:
    """One route of the API and the logical id of the function behind it."""

    method: str
    path: str
    function: str
    requires_iam: bool = True

    def match(self, method: str, path: str) -> dict[str, str] | None:
        """Path parameters as they stand in the path, or None if the route is another one."""
        pattern = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", self.path)
        found = re.fullmatch(pattern, path) if method == self.method else None
        return found.groupdict() if found else None


class Gateway(LoopbackServer):
    """HTTP front of the functions, as an HTTP API with payload 2.0."""

    sample = "get-http-api.json"
    request_id_header = "Apigw-Requestid"
    unknown, failed = (404, "Not Found"), (500, "Internal Server Error")

    def __init__(self, routes: Iterable[Route], invoke: Callable[[str, object], Invocation], port: int = 0) -> None:
        self._routes = list(routes)
        self.invoke = invoke
        self._sample: dict[str, Any] = json.loads((SAMPLES / self.sample).read_text())
        super().__init__(self.answer, port)

    def answer(self, request: Request, connection: socket.socket) -> Response:
        request_id = self._request_id()
        own, path = [(self.request_id_header, request_id)], self._path(request)
        status, message = self.unknown
        for route in self._routes:
            parameters = route.match(request.method, path)
            if parameters is not None:
                event = self._event(request, route, path, parameters, request_id)
                invocation = self.invoke(route.function, event)
                if not invocation.error and "statusCode" in invocation.payload:
                    return _as_http(invocation.payload, own)
                status, message = self.failed
                break
        body = json.dumps({"message": message}).encode()
        return Response(status, body, [("Content-Type", "application/json"), *own])

    def _request_id(self) -> str:
        return secrets.token_urlsafe(11) + "="

    def _path(self, request: Request) -> str:
        """The path in which the route is looked for: an HTTP API decodes it before."""
        return unquote(request.path)

    def _event(
        self, request: Request, route: Route, path: str, parameters: dict[str, str], request_id: str
    ) -> dict[str, Any]:
        key = f"{route.method} {route.path}"
        caller = {"sourceIp": "127.0.0.1", "userAgent": request.header("User-Agent")}
        context = self._sample["requestContext"] | {
            "http": {"method": request.method, "path": path, "protocol": "HTTP/1.1", **caller},
            "requestId": request_id,
            "routeKey": key,
            "timeEpoch": int(time.time() * 1000),
        }
        if not route.requires_iam:
            del context["authorizer"]
        headers = {name.lower(): ",".join(values) for name, values in headers_of(request).items()}
        encoded = bool(request.body) and not TEXT_TYPES.match(request.header("Content-Type", "text/plain"))
        query = parse_qs(request.query, keep_blank_values=True)
        event = self._sample | {
            "routeKey": key,
            "rawPath": path,
            "rawQueryString": request.query,
            "headers": self._sample["headers"] | headers,
            "queryStringParameters": {name: ",".join(values) for name, values in query.items()},
            "requestContext": context,
            "pathParameters": parameters,
            "body": base64.b64encode(request.body).decode() if encoded else request.body.decode(errors="replace"),
            "isBase64Encoded": encoded,
        }
        # Left out if empty.
        optional = {name for name in ("queryStringParameters", "pathParameters", "body") if not event[name]}
        return {name: value for name, value in event.items() if name not in optional}


def headers_of(request: Request) -> dict[str, list[str]]:
    """The values of each header."""
    headers: dict[str, list[str]] = {}
    for name, value in request.headers:
        headers.setdefault(name.title(), []).append(value)
    return headers


def _as_http(payload: dict[str, Any], own: Headers) -> Response:
    """The function's answer as HTTP."""
    several = payload.get("multiValueHeaders") or {}
    headers = [*(payload.get("headers") or {}).items(), *((name, values[-1]) for name, values in several.items()), *own]
    return Response(payload["statusCode"], (payload.get("body") or "").encode(), headers)
