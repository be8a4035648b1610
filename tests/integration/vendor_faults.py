"""Faults of the vendor, each with the kinds of answers that the taxonomy of errors asks for.

What is expected stands here a second time on purpose: the tables of the product are not asked.
"""

import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

from tests.integration.faults import (
    ECHO,
    FEW,
    IN_TURN,
    LONG,
    MEDIA_TYPES,
    MISSING,
    NAMES,
    Fault,
    altered,
    everywhere,
    lookup,
    raw,
    silence,
    told,
)
from tests.integration.world import CANARIES, World
from tests.sandbox import simulator
from tests.sandbox.server import Response
from tests.sandbox.simulator import Exchange, canned, cut, delay, drip, error, reset

# The vendor's connection


def drip_body(exchange: Exchange) -> None:
    """Send the headers, then the body a byte at a time, each in time."""
    head, _, body = exchange.response().wire().partition(b"\r\n\r\n")
    exchange.connection.sendall(head + b"\r\n\r\n")
    for byte in body:
        exchange.connection.sendall(bytes([byte]))
        time.sleep(0.05)


def stop_in_body(exchange: Exchange) -> None:
    """Send the answer but for its last byte, and nothing more until the client goes away."""
    exchange.connection.sendall(exchange.response().wire()[:-1])
    exchange.connection.recv(1)


def drip_interim(exchange: Exchange) -> None:
    """Send interim responses for as long as the client stays."""
    for _ in range(100):
        exchange.connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        time.sleep(0.05)


def drip_chunks(exchange: Exchange) -> None:
    """Send tiny chunks for as long as the client stays."""
    exchange.connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(100):
        exchange.connection.sendall(b"1\r\n \r\n")
        time.sleep(0.05)


def without_end(exchange: Exchange) -> None:
    """Send chunks until the client goes away."""
    exchange.connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(100):
        exchange.connection.sendall(b"10000\r\n" + b" " * 0x10000 + b"\r\n")


HEAD = b"HTTP/1.1 200 OK\r\n"
BROKEN: dict[str, simulator.Fault] = {
    "reset": reset,
    "closed without an answer": cut(0),
    "cut in the status line": cut(10),
    "cut in the headers": cut(40),
    "cut in the body": cut(200),
    "cut before the last byte": lambda exchange: exchange.connection.sendall(exchange.response().wire()[:-1]),
    "body shorter than announced": raw(HEAD + b"Content-Length: 100\r\n\r\n{}"),
    "chunk shorter than announced": raw(HEAD + b"Transfer-Encoding: chunked\r\n\r\n10\r\n{}"),
    "chunk without a size": raw(HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n"),
    "too many headers": raw(HEAD + b"X-Filler: x\r\n" * 200 + b"\r\n{}"),
    "too long a header": raw(HEAD + b"X-Filler: " + b"x" * 100_000 + b"\r\n\r\n{}"),
    "TLS in place of HTTP": raw(b"\x16\x03\x01\x00\x05hello"),
    "another protocol": raw(b"SSH-2.0-OpenSSH\r\n"),
    "another protocol that echoes": raw(ECHO.encode() + b"\r\n"),
    "a status that is no number": raw(b"HTTP/1.1 OK 200\r\n\r\n{}"),
}
TOO_SLOW: dict[str, simulator.Fault] = {
    "no answer": silence,
    "answer too late": delay(0.5),
    "headers byte by byte": drip(0.02),
    "body byte by byte": drip_body,
    "no end of the body": stop_in_body,
    "chunks byte by byte": drip_chunks,
    "interim responses": drip_interim,
}
ENDPOINTS = {
    "refused": ("http://127.0.0.1:{closed}", "RtcUnavailable"),
    "never accepted": ("http://127.0.0.1:{full}", "RtcUnavailable 504"),
    "TLS with a server without TLS": ("https://127.0.0.1:{vendor}", "RtcUnavailable"),
    "TLS handshake without an answer": ("https://127.0.0.1:{silent}", "RtcUnavailable 504"),
    "TLS handshake cut": ("https://127.0.0.1:{hangs_up}", "RtcUnavailable"),
    "TLS handshake refused": ("https://127.0.0.1:{alert}", "RtcUnavailable"),
    "TLS certificate nobody vouches for": ("https://localhost:{self_signed}", "RtcUnavailable"),
}


def connection_faults() -> Iterator[Fault]:
    kind = "vendor: connection"
    for name, (endpoint, expected) in ENDPOINTS.items():
        yield Fault(kind, name, everywhere(expected, FEW), environment={"RTC_ENDPOINT": endpoint}, slow=True)
    for name, problem in NAMES.items():
        yield Fault(kind, name, everywhere("RtcUnavailable", FEW), prepare=lookup(problem))
    yield Fault(kind, "name found slowly", everywhere("answer"), prepare=lookup(0.1))
    yield Fault(kind, "name not found in time", everywhere("RtcUnavailable 504", FEW), prepare=lookup(0.6), slow=True)
    hangs = lookup(LONG)
    yield Fault(kind, "name service hangs", {"ask": "RtcUnavailable 504"}, prepare=hangs, seconds=6, slow=True)
    for name, fault in BROKEN.items():
        yield Fault(kind, name, everywhere("RtcUnavailable", next(IN_TURN)), fault)
        yield Fault(kind, f"{name}, once", everywhere("answer", ("query",)), once=(fault,))
    kind = "vendor: time"
    for name, fault in TOO_SLOW.items():
        yield Fault(kind, name, everywhere("RtcUnavailable 504", FEW), fault, slow=True)
        yield Fault(kind, f"{name}, once", everywhere("answer", ("query",)), once=(fault,))
    yield Fault(kind, "slow, but in time", everywhere("answer"), delay(0.15))


# The vendor's bodies


def replaced(before: str, after: str) -> simulator.Fault:
    """The honest answer with part of its text replaced."""
    return lambda exchange: Response(200, exchange.response().body.replace(before.encode(), after.encode()))


VALUES: dict[str, object] = {
    "missing": MISSING,
    "null": None,
    "a number": 7,
    "a fraction": 0.0,
    "text": CANARIES[0],
    "a list": [[CANARIES[1]]],
    "an object": {CANARIES[0]: CANARIES[1]},
}
STREAMS = ("Result", "StreamStates")
# Where a value is altered, the kind that this must come to, and the values for which it is an answer all the same.
PLACES: dict[str, tuple[tuple[str | int, ...], str, tuple[str, ...]]] = {
    "ResponseMetadata": (("ResponseMetadata",), "RtcProtocolError", ("an object",)),
    "RequestId": (("ResponseMetadata", "RequestId"), "answer", ()),
    "Error": (("ResponseMetadata", "Error"), "RtcProtocolError", ("missing", "null")),
    "Error.CodeN": (("ResponseMetadata", "Error", "CodeN"), "RtcAccessDenied", ()),
    "Error.Message": (("ResponseMetadata", "Error", "Message"), "RtcAccessDenied", ()),
    "Error.Code": (("ResponseMetadata", "Error", "Code"), "RtcProtocolError", ()),
    "Result": (("Result",), "RtcProtocolError", ()),
    "RoomId": (("Result", "RoomId"), "RtcProtocolError", ()),
    "UserId": (("Result", "UserId"), "RtcProtocolError", ()),
    "StreamStates": (STREAMS, "answer", ()),
    "an entry": ((*STREAMS, 0), "answer", ()),
    "MediaType": ((*STREAMS, 0, "MediaType"), "answer", ()),
    "State": ((*STREAMS, 0, "State"), "answer", ()),
}
DEEP = b"[" * 100_000 + b"]" * 100_000


def both_ways(exchange: Exchange) -> Response:
    """Say of each medium that it is on, and that it is not."""
    entries = [(name, state) for name in MEDIA_TYPES for state in (0, 1)]
    response = told(*entries)(exchange)
    assert response
    return response


BODIES: dict[str, simulator.Fault] = {
    "empty": canned(200, b""),
    "HTML": canned(200, f"<html>{ECHO}</html>", {"Content-Type": "text/html"}),
    "text that echoes": canned(200, ECHO),
    "null": canned(200, b"null"),
    "true": canned(200, b"true"),
    "a number": canned(200, b"7"),
    "a number too large": canned(200, b"1" * 5000),
    "text": canned(200, b'"ok"'),
    "a list": canned(200, b"[]"),
    "an empty object": canned(200, b"{}"),
    "JSON cut off": lambda exchange: Response(200, exchange.response().body[:-1]),
    "JSON twice": lambda exchange: Response(200, exchange.response().body * 2),
    "trailing comma": replaced("}}", "},}"),
    "comment": replaced("{", "/**/{"),
    "NaN": replaced('"State": 1', '"State": NaN'),
    "a number without bounds": replaced('"State": 1', '"State": 1e999'),
    "not UTF-8": canned(200, b'{"Result": "\xff\xfe"}'),
    "deep nesting": canned(200, DEEP),
    "deep nesting within": canned(200, b'{"ResponseMetadata": {}, "Result": ' + DEEP + b"}"),
    "Result twice": replaced('"Result":', '"Result": {}, "Result":'),
    "ResponseMetadata twice": replaced('"ResponseMetadata":', '"ResponseMetadata": {}, "ResponseMetadata":'),
    "UserId twice": replaced('"UserId":', '"UserId": "teacher", "UserId":'),
    "State twice": replaced('"State": 1', '"State": 0, "State": 1'),
    "too large": canned(200, b" " * (2**20 + 1)),
    "too large, in chunks": without_end,
    "gzip": canned(200, b"\x1f\x8b\x08\x00" + b"\x00" * 30, {"Content-Encoding": "gzip"}),
}
ANSWERS: dict[str, simulator.Fault] = {
    "content type HTML": lambda exchange: Response(200, exchange.response().body, [("Content-Type", "text/html")]),
    "no content type": lambda exchange: Response(200, exchange.response().body),
    "content type of bytes": lambda exchange: Response(
        200, exchange.response().body, [("Content-Type", "application/octet-stream; charset=utf-7")]
    ),
    "more fields everywhere": replaced('"State": 1', '"New": {"State": 0}, "State": 1'),
    "more metadata": replaced('"Service"', '"New": [], "Service"'),
    "nothing told": told(),
    "a new medium": told(("Hologram", 0), ("Audio", 1)),
    "names in lower case": told(*((name.lower(), 0) for name in MEDIA_TYPES)),
    "both ways": both_ways,
    "each twice": told(*((name, 1) for name in MEDIA_TYPES * 2)),
    "very many entries": told(*(("Hologram", 0) for _ in range(5_000))),
    **{
        f"State {state!r}": told(*((name, state) for name in MEDIA_TYPES))
        for state in ("0", "off", False, 0.0, -0.0, -1, 2, 10**30, [0], {"State": 0})
    },
}


def body_faults() -> Iterator[Fault]:
    for name, fault in BODIES.items():
        # What a user who is not there gets has nothing of this in it.
        expected = "RtcProtocolError" if name not in NOT_EVERYBODY else "RtcProtocolError|answer|TargetNotFound"
        yield Fault("vendor: body", name, everywhere(expected), fault)
    for name, fault in ANSWERS.items():
        yield Fault("vendor: odd answer", name, everywhere("answer"), fault)
    for place, (path, expected, unharmed) in PLACES.items():
        for name, value in VALUES.items():
            if place == "an entry" and value is MISSING:
                continue
            kind = "answer" if name in unharmed else expected
            yield Fault("vendor: envelope", f"{place} is {name}", everywhere(kind, next(IN_TURN)), altered(path, value))
    other = "vendor: another's answer"
    swap = lambda name, value: altered(("Result", name), value)  # noqa: E731 (short)
    for name, value in {"UserId": "somebody", "RoomId": "elsewhere"}.items():
        yield Fault(other, name, everywhere("RtcProtocolError"), swap(name, value))
    yield Fault(other, "UserId in upper case", everywhere("RtcProtocolError"), swap("UserId", "TEACHER"))
    yield Fault(other, "UserId with a space", everywhere("RtcProtocolError"), swap("UserId", "guest "))
    for words in ("User is not found.", "Room is not found."):
        yield Fault(other, words, everywhere("TargetNotFound"), simulator.result(words), absent=True)
    yield Fault(other, "User not found.", everywhere("RtcProtocolError"), simulator.result("User not found."))


# Only of users who publish something there is a 1 in the answer.
NOT_EVERYBODY = ("NaN", "a number without bounds", "State twice")


# The vendor's refusals: the code, and the HTTP status that it comes with

CODES: dict[str, tuple[tuple[str, int], ...]] = {
    "TargetNotFound": (
        ("InternalError.RoomNotFound", 404),
        ("InternalError.UserNotFound", 404),
        ("UnknownUser", 400),
        ("RoomNotExist", 400),
        ("UserNotExist", 400),
    ),
    "RtcThrottled": (
        ("FlowLimitExceeded", 429),
        ("FlowLimitExceeded.Account", 400),
        ("AccountFlowLimitExceeded", 429),
        ("InternalError.ReachRateLimit", 500),
    ),
    "RtcActionRetired": (("InvalidActionOrVersion", 404), ("UnknownAction", 404), ("UnknownVersion", 400)),
    "RtcAccessDenied": (
        ("InvalidAccessKey", 401),
        ("InvalidClientTokenId", 401),
        ("SignatureDoesNotMatch", 401),
        ("InvalidSecretToken", 401),
        ("MissingAuthenticationToken", 401),
        ("MissingSignature", 401),
        ("InvalidTimestamp", 403),
        ("InvalidAuthorization", 400),
        ("InvalidCredential", 400),
        ("LackPolicy", 403),
        ("LackProjectPolicy", 403),
        ("AccessDenied", 403),
        ("AccessDenied.ByPolicy", 403),
        ("Unauthorized", 401),
        ("InvalidParameter.AccountIdMismatch", 400),
    ),
    "RtcRequestRefused": (
        ("InvalidParameter", 400),
        ("InvalidParameter.RoomId", 400),
        ("ErrorParameter", 400),
        ("ErrorParameter.Format", 400),
        ("MissingParameter", 400),
        ("MissingParameter.AppId", 400),
        ("MissingRequestInfo", 400),
        ("ServiceNotFound", 404),
        ("MethodNotAllowed", 405),
    ),
    "RtcUnavailable": (
        ("InternalError", 500),
        ("InternalServiceError", 500),
        ("InternalError.RPC", 500),
        ("InternalError.Unknown", 500),
        ("ServiceUnavailableTemp", 503),
    ),
    "RtcUnavailable 504": (("InternalServiceTimeout", 504),),
}
STATUSES = {
    "RtcProtocolError": (201, 202, 204, 300, 301, 302, 303, 304, 307, 308, 400, 401, 403, 404, 405, 408, 418, 451),
    "RtcUnavailable": (500, 501, 502, 503, 505, 599),
    "RtcUnavailable 504": (504,),
    "RtcThrottled": (429,),
}
# Matched is the code: where another kind might be taken from the status, it comes with this one too.
ANY_STATUS = {"TargetNotFound": 500, "RtcThrottled": 200, "RtcUnavailable": 200, "RtcActionRetired": 200}


def refusal_faults() -> Iterator[Fault]:
    for expected, codes in CODES.items():
        throttled = expected == "RtcThrottled"
        for code, status in codes:
            for sent in (status, ANY_STATUS[expected]) if expected in ANY_STATUS else (status,):
                ways = ("ask",) if throttled else next(IN_TURN)
                fault, absent = error(code, sent, 100000, ECHO), expected == "TargetNotFound"
                name = f"{code} with {sent}"
                yield Fault("vendor: codes", name, everywhere(expected, ways), fault, absent=absent, slow=throttled)
    for expected, statuses in STATUSES.items():
        for status in statuses:
            ways = ("task",) if expected == "RtcThrottled" else next(IN_TURN)
            location = {"Location": f"http://127.0.0.1:1/{ECHO}", "Content-Type": "text/html"}
            page = canned(status, b"" if status in {204, 304} else f"<html>{ECHO}</html>", location)
            yield Fault("vendor: statuses", f"{status} without an Error", everywhere(expected, ways), page)
            if status in {201, 302, 401, 403, 429, 500, 503, 504}:
                unknown = error("NobodyKnowsThis", status, 0, ECHO)
                yield Fault("vendor: statuses", f"{status} with an unknown code", everywhere(expected, ways), unknown)
    for status in (201, 302, 404, 418):
        fault = altered(("ResponseMetadata", "Service"), "rtc", status)
        yield Fault("vendor: statuses", f"{status} with a Result", everywhere("RtcProtocolError", next(IN_TURN)), fault)


def throttle_faults() -> Iterator[Fault]:
    kind = "vendor: throttling"
    flow = lambda **headers: error("FlowLimitExceeded", 429, 100018, ECHO, headers)  # noqa: E731 (short)
    for count in (1, 2, 6, 12):
        ways = everywhere("answer|RtcThrottled" if count > 2 else "answer", ("query",))
        yield Fault(kind, f"the first {count} calls", ways, once=(flow(),) * count, slow=True)
    for value in ("0", "1", "0.5", "-5", "soon", "", "9" * 400, "Mon, 23 Nov 2026 00:00:00 GMT", "\u00b2"):
        after = {"Retry-After": value}
        large = len(value) == 400
        expected = {"ask": "RtcThrottled"} if large else everywhere("answer", ("query",))
        fault = error("FlowLimitExceeded", 429, 100018, ECHO, after)
        yield Fault(kind, f"Retry-After {value[:30]!r}", expected, once=(fault,), slow=True)
    long = error("FlowLimitExceeded", 429, 100018, ECHO, {"Retry-After": "1000"})
    held = {"ask": "RtcThrottled", "query": "QuotaExceeded", "task": "QuotaExceeded"}
    yield Fault(kind, "a pause longer than any function may run", held, once=(long,), slow=True)
    storm = {"ask": "RtcThrottled", "query": "RtcThrottled|QuotaExceeded", "sweep watched": "RtcThrottled|remaining"}
    yield Fault(kind, "every call", storm, flow(), slow=True)
    yield Fault(
        kind,
        "one call a second",
        everywhere("answer|RtcThrottled|QuotaExceeded|remaining", FEW),
        slow=True,
        prepare=lambda world: setattr(world.simulator, "calls_per_second", 1),
    )


def skew(seconds: float) -> Callable[[World], None]:
    """The vendor's clock is ahead of ours."""

    def prepare(world: World) -> None:
        clock: Any = SimpleNamespace(sleep=time.sleep, monotonic=time.monotonic, time=lambda: time.time() + seconds)
        simulator.time = clock

    return prepare


def clock_faults() -> Iterator[Fault]:
    for seconds in (-1000, 1000, -800, 800):
        kind = "answer" if abs(seconds) < 900 else "RtcAccessDenied"
        yield Fault("clock", f"the vendor is {seconds} s ahead", everywhere(kind), prepare=skew(seconds))


VENDOR_FAULTS = [
    fault
    for group in (connection_faults, body_faults, refusal_faults, throttle_faults, clock_faults)
    for fault in group()
]
