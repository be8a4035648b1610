"""Answers that the vendor may give instead of the right one: faults for the simulator."""

import json
import socket
import time
from dataclasses import replace
from typing import Any

from tests.sandbox.server import RESET, Response
from tests.sandbox.simulator import JSON, METADATA, Exchange, Fault


def canned(status: int, body: str | bytes | dict[str, Any] = b"", headers: dict[str, str] | None = None) -> Fault:
    """Answer with exactly this, whatever was asked."""
    text = json.dumps(body) if isinstance(body, dict) else body
    data = text.encode() if isinstance(text, str) else text
    return lambda exchange: Response(status, data, list((headers or JSON).items()))


def error(
    code: str, status: int = 200, code_n: int = 0, message: str = "refused", headers: dict[str, str] | None = None
) -> Fault:
    """Answer with an Error in the envelope; `headers` can hold a Retry-After."""
    metadata = METADATA | {"Error": {"CodeN": code_n, "Code": code, "Message": message}}
    return canned(status, {"ResponseMetadata": metadata, "Result": {}}, JSON | (headers or {}))


def result(value: object) -> Fault:
    """Answer 200 with this Result."""
    return canned(200, {"ResponseMetadata": METADATA, "Result": value})


def states(entries: object) -> Fault:
    """Answer 200 for the room and user asked, with these StreamStates."""

    def fault(exchange: Exchange) -> Response | None:
        asked = {name: exchange.params.get(name) for name in ("RoomId", "UserId")}
        return result(asked | {"StreamStates": entries})(exchange)

    return fault


def reset(exchange: Exchange) -> None:
    """Reset the connection instead of answering."""
    exchange.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)


def cut(after_bytes: int = 0) -> Fault:
    """Close the connection after so many bytes of the answer, headers included."""
    return lambda exchange: exchange.connection.sendall(exchange.response().wire()[:after_bytes])


def drip(seconds_per_byte: float) -> Fault:
    """Send the answer one byte at a time."""

    def fault(exchange: Exchange) -> None:
        response = exchange.response()
        # The connection ends with the answer; a client that does not know would use it again.
        for byte in replace(response, headers=[*response.headers, ("Connection", "close")]).wire():
            exchange.connection.sendall(bytes([byte]))
            time.sleep(seconds_per_byte)

    return fault


def delay(seconds: float) -> Fault:
    """Answer later."""

    def fault(exchange: Exchange) -> Response:
        time.sleep(seconds)
        return exchange.response()

    return fault
