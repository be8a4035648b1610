"""A REST API in front of the functions, which sends payload 1.0: what users may put before them."""

import time
import uuid
from typing import Any, override
from urllib.parse import parse_qs

from tests.sandbox.gateway import Gateway, Route, headers_of
from tests.sandbox.server import Request


class RestApi(Gateway):
    """As a stage with the name prod."""

    sample = "get-rest-api.json"
    request_id_header = "x-amzn-RequestId"
    unknown, failed = (403, "Missing Authentication Token"), (502, "Internal server error")

    @override
    def _request_id(self) -> str:
        return str(uuid.uuid4())

    @override
    def _path(self, request: Request) -> str:
        """A REST API looks for the route in the path as it came."""
        return request.path

    @override
    def _event(
        self, request: Request, route: Route, path: str, parameters: dict[str, str], request_id: str
    ) -> dict[str, Any]:
        context = self._sample["requestContext"] | {
            "resourcePath": route.path,
            "httpMethod": request.method,
            "path": f"/prod{path}",
            "requestId": request_id,
            "requestTimeEpoch": int(time.time() * 1000),
        }
        headers = self._sample["multiValueHeaders"] | headers_of(request)
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
