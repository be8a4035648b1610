"""HTTP as a caller sends it: the path goes out as written, without the tidying of an ordinary client."""

import json
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Reply:
    """The response; the names of headers in lower case, `body` parsed if there is one."""

    status: int
    headers: dict[str, str]
    body: Any
    text: str


class Http:
    """Requests to one address; a body that is not bytes is sent as JSON."""

    def __init__(self, url: str) -> None:
        self._authority = urlsplit(url).netloc

    def send(self, method: str, path: str, body: object = b"", headers: dict[str, str] | None = None) -> Reply:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection = HTTPConnection(self._authority, timeout=60)
        try:
            connection.request(method, path, data, {"Content-Type": "application/json"} | (headers or {}))
            response = connection.getresponse()
            text = response.read().decode()
        finally:
            connection.close()
        found = {name.lower(): value for name, value in response.getheaders()}
        return Reply(response.status, found, json.loads(text) if text else None, text)

    def get(self, path: str) -> Reply:
        return self.send("GET", path)

    def post(self, path: str, body: object) -> Reply:
        return self.send("POST", path, body)

    def put(self, path: str, body: object = b"") -> Reply:
        return self.send("PUT", path, body)

    def delete(self, path: str) -> Reply:
        return self.send("DELETE", path)
