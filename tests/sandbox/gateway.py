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
    """HTTP front of the functions: as an HTTP API (payload 2.0), or with `rest` as a REST API (1.0) of stage prod."""

    def __init__(
        self,
        routes: Iterable[Route],
        invoke: Callable[[str, object], Invocation],
        port: int = 0,
        *,
        rest: bool = False,
    ) -> None:
        self._routes = list(routes)
        self._invoke = invoke
        self._rest = rest
        self._sample: dict[str, Any] = json.loads((SAMPLES / f"get-{'rest' if rest else 'http'}-api.json").read_text())
        super().__init__(self._answer, port)

    def _answer(self, request: Request, connection: socket.socket) -> Response:
        request_id = str(uuid.uuid4()) if self._rest else secrets.token_urlsafe(11) + "="
        own = [("x-amzn-RequestId" if self._rest else "Apigw-Requestid", request_id)]
        # An HTTP API decodes the path before it looks for the route, a REST API does not.
        path = request.path if self._rest else unquote(request.path)
        for route in self._routes:
            parameters = route.match(request.method, path)
            if parameters is not None:
                event = (self._event_1 if self._rest else self._event_2)(request, route, path, parameters, request_id)
                invocation = self._invoke(route.function, event)
                if not invocation.error and "statusCode" in invocation.payload:
                    return _as_http(invocation.payload, own)
                problem = (502, "Internal server error") if self._rest else (500, "Internal Server Error")
                break
        else:
            problem = (403, "Missing Authentication Token") if self._rest else (404, "Not Found")
        body = json.dumps({"message": problem[1]}).encode()
        return Response(problem[0], body, [("Content-Type", "application/json"), *own])

    def _event_2(
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
        headers = {name.lower(): ",".join(values) for name, values in _headers(request).items()}
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

    def _event_1(
        self, request: Request, route: Route, path: str, parameters: dict[str, str], request_id: str
    ) -> dict[str, Any]:
        context = self._sample["requestContext"] | {
            "resourcePath": route.path,
            "httpMethod": request.method,
            "path": f"/prod{path}",
            "requestId": request_id,
            "requestTimeEpoch": int(time.time() * 1000),
        }
        headers = self._sample["multiValueHeaders"] | _headers(request)
        query = parse_qs(request.query, keep_blank_values=True)
        return self._sample | {
            "resource": route.path,
            "path": path,
            "httpMethod": request.method,
            "headers": {name: values[-1] for name, values in headers.items()},
            "multiValueHeaders": headers,
            "queryStringParameters": {name: values[-1] for name, values in query.items()} or None,
            "multiValueQueryStringParameters": query or None,
            "pathParameters": parameters or None,
            "requestContext": context,
            # A REST API without binary media types passes everything on as text.
            "body": request.body.decode(errors="replace") or None,
        }


def _headers(request: Request) -> dict[str, list[str]]:
    headers: dict[str, list[str]] = {}
    for name, value in request.headers:
        headers.setdefault(name.title(), []).append(value)
    return headers


def _as_http(payload: dict[str, Any], own: Headers) -> Response:
    """The function's answer as HTTP."""
    several = payload.get("multiValueHeaders") or {}
    headers = [*(payload.get("headers") or {}).items(), *((name, values[-1]) for name, values in several.items()), *own]
    return Response(payload["statusCode"], (payload.get("body") or "").encode(), headers)
