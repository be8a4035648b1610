"""Faults of the vendor, each with the kinds of answers that the taxonomy of errors asks for.

The expectations stand here a second time on purpose: the product's tables are not asked.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from types import SimpleNamespace

from tests.integration.faults import (
    ECHO,
    FEW,
    IN_TURN,
    LONG,
    MEDIA_TYPES,
    MISSING,
    NAMES,
    RECHECKED,
    Fault,
    altered,
    everywhere,
    lookup,
    raw,
    silence,
    stated,
)
from tests.integration.world import CANARIES
from tests.sandbox import simulator
from tests.sandbox.server import Response
from tests.sandbox.simulator import Exchange
from tests.vendor.faults import canned, cut, delay, drip, error, reset, result

# The vendor's connection

HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


def in_pieces(pieces: Callable[[bytes], Iterable[bytes]], seconds: float) -> simulator.Fault:
    """Send the pieces made of the honest answer, with a pause after each."""

    def fault(exchange: Exchange) -> None:
        for piece in pieces(exchange.response().wire()):
            exchange.connection.sendall(piece)
            time.sleep(seconds)

    return fault


def body_by_byte(wire: bytes) -> list[bytes]:
    head, end, body = wire.partition(b"\r\n\r\n")
    return [head + end, *(bytes([byte]) for byte in body)]


BROKEN: dict[str, simulator.Fault] = {
    "reset": reset,
    "closed without an answer": cut(0),
    "cut in the status line": cut(10),
    "cut in the headers": cut(40),
    "cut in the body": cut(200),
    "cut before the last byte": in_pieces(lambda wire: [wire[:-1]], 0),
    "body shorter than announced": raw(HEAD + b"Content-Length: 100\r\n\r\n{}"),
    "chunk shorter than announced": raw(CHUNKED + b"10\r\n{}"),
    "chunk without a size": raw(CHUNKED + b"zz\r\n{}\r\n"),
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
    "body byte by byte": in_pieces(body_by_byte, 0.05),
    "no end of the body": in_pieces(lambda wire: [wire[:-1]], 0.5),
    "chunks byte by byte": in_pieces(lambda wire: [CHUNKED, *[b"1\r\n \r\n"] * 100], 0.05),
    "interim responses": in_pieces(lambda wire: [b"HTTP/1.1 100 Continue\r\n\r\n"] * 100, 0.05),
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
        own = {"RTC_ENDPOINT": endpoint, "RTC_CONNECT_TIMEOUT": "0.3" if "504" in expected else "2"}
        yield Fault(kind, name, everywhere(expected, FEW), environment=own, slow=True)
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
# The place of a value that is altered, the kind of the answer, and the values with which it is an answer all the same.
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
    "too large, in chunks": in_pieces(lambda wire: [CHUNKED, *[b"10000\r\n" + b" " * 0x10000 + b"\r\n"] * 100], 0),
    "gzip": canned(200, b"\x1f\x8b\x08\x00" + b"\x00" * 30, {"Content-Encoding": "gzip"}),
}
ANSWERS: dict[str, simulator.Fault] = {
    "content type HTML": lambda exchange: Response(200, exchange.response().body, [("Content-Type", "text/html")]),
    "no content type": lambda exchange: Response(200, exchange.response().body),
    "content type of bytes": lambda exchange: Response(200, exchange.response().body, [("Content-Type", "x/y; a=b")]),
    "more fields everywhere": replaced('"State": 1', '"New": {"State": 0}, "State": 1'),
    "more metadata": replaced('"Service"', '"New": [], "Service"'),
    "nothing stated": stated(),
    "a new medium": stated(("Hologram", 0), ("Audio", 1)),
    "names in lower case": stated(*((name.lower(), 0) for name in MEDIA_TYPES)),
    "both ways": stated(*((name, state) for name in MEDIA_TYPES for state in (0, 1))),
    "each twice": stated(*((name, 1) for name in MEDIA_TYPES * 2)),
    "very many entries": stated(*(("Hologram", 0) for _ in range(5_000))),
    **{
        f"State {state!r}": stated(*((name, state) for name in MEDIA_TYPES))
        for state in ("0", "off", False, 0.0, -0.0, -1, 2, 10**30, [0], {"State": 0})
    },
}


def body_faults() -> Iterator[Fault]:
    for name, fault in BODIES.items():
        # The answer for a user who is not there has nothing of this in it.
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
    for name, value in (("UserId", "somebody"), ("RoomId", "elsewhere"), ("UserId", "TEACHER"), ("UserId", "guest ")):
        yield Fault(other, f"{name} {value}", everywhere("RtcProtocolError"), altered(("Result", name), value))
    for words in ("User is not found.", "Room is not found."):
        yield Fault(other, words, everywhere("TargetNotFound"), result(words), absent=True)
    yield Fault(other, "User not found.", everywhere("RtcProtocolError"), result("User not found."))


# Only of users who publish something there is a 1 in the answer.
NOT_EVERYBODY = ("NaN", "a number without bounds", "State twice")


# The vendor's refusals: the code, and the HTTP status that it comes with

# A caller whose waiting is over while all calls are on hold gets the limit's own error.
THROTTLED = "RtcThrottled|QuotaExceeded"
# The code decides: where the status speaks for another kind, the code comes with that status too.
CODES = {
    "TargetNotFound": "InternalError.RoomNotFound 404 500, InternalError.UserNotFound 404 500, UnknownUser 400 500, "
    "RoomNotExist 400 500, UserNotExist 400 500",
    THROTTLED: "FlowLimitExceeded 429 200, FlowLimitExceeded.Account 400 200, AccountFlowLimitExceeded 429 200, "
    "InternalError.ReachRateLimit 500 200",
    "RtcActionRetired": "InvalidActionOrVersion 404 200, UnknownAction 404 200, UnknownVersion 400 200",
    "RtcAccessDenied": "InvalidAccessKey 401, InvalidClientTokenId 401, SignatureDoesNotMatch 401, "
    "InvalidSecretToken 401, MissingAuthenticationToken 401, MissingSignature 401, InvalidTimestamp 403, "
    "InvalidAuthorization 400, InvalidCredential 400, LackPolicy 403, LackProjectPolicy 403, AccessDenied 403, "
    "AccessDenied.ByPolicy 403, Unauthorized 401, InvalidParameter.AccountIdMismatch 400",
    "RtcRequestRefused": "InvalidParameter 400, InvalidParameter.RoomId 400, ErrorParameter 400, "
    "ErrorParameter.Format 400, MissingParameter 400, MissingParameter.AppId 400, MissingRequestInfo 400, "
    "ServiceNotFound 404, MethodNotAllowed 405",
    "RtcUnavailable": "InternalError 500 200, InternalServiceError 500 200, InternalError.RPC 500 200, "
    "InternalError.Unknown 500 200, ServiceUnavailableTemp 503 200",
    "RtcUnavailable 504": "InternalServiceTimeout 504",
}
STATUSES = {
    "RtcProtocolError": (201, 202, 204, 300, 301, 302, 303, 304, 307, 308, 400, 401, 403, 404, 405, 408, 418, 451),
    "RtcUnavailable": (500, 501, 502, 503, 505, 599),
    "RtcUnavailable 504": (504,),
    THROTTLED: (429,),
}


def refusal_faults() -> Iterator[Fault]:
    for expected, codes in CODES.items():
        throttled = expected == THROTTLED
        for code, *statuses in (entry.split() for entry in codes.split(", ")):
            for sent in map(int, statuses):
                ways = ("ask",) if throttled else next(IN_TURN)
                fault, absent = error(code, sent, 100000, ECHO), expected == "TargetNotFound"
                name = f"{code} with {sent}"
                yield Fault("vendor: codes", name, everywhere(expected, ways), fault, absent=absent, slow=throttled)
    for expected, every in STATUSES.items():
        for status in every:
            ways = ("task",) if expected == THROTTLED else next(IN_TURN)
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
    flow = partial(error, "FlowLimitExceeded", 429, 100018, ECHO)
    for count in (1, 2, 6, 12):
        ways = everywhere(f"answer|{THROTTLED}" if count > 2 else "answer", ("query",))
        yield Fault(kind, f"the first {count} calls", ways, once=(flow(),) * count, slow=True)
    for value in ("0", "1", "0.5", "-5", "soon", "", "9" * 400, "Mon, 23 Nov 2026 00:00:00 GMT", "\u00b2"):
        expected = {"ask": "RtcThrottled"} if len(value) == 400 else everywhere("answer", ("query",))
        after = (flow({"Retry-After": value}),)
        yield Fault(kind, f"Retry-After {value[:30]!r}", expected, once=after, slow=True)
    held = {"ask": "RtcThrottled", "query": "QuotaExceeded", "task": "QuotaExceeded"}
    long = (flow({"Retry-After": "1000"}),)
    yield Fault(kind, "a pause longer than any function may run", held, once=long, slow=True)
    storm = {"ask": THROTTLED, "query": THROTTLED, "sweep watched": "RtcThrottled|remaining", "recheck": RECHECKED}
    yield Fault(kind, "every call", storm, flow(), slow=True)
    ways, few = everywhere(f"answer|{THROTTLED}|remaining", FEW), {"calls_per_second": 1}
    yield Fault(kind, "one call a second", ways, slow=True, prepare=lambda world: vars(world.simulator).update(few))


def clock_faults() -> Iterator[Fault]:
    for seconds in (-1000, 1000, -800, 800):
        kind = "answer" if abs(seconds) < 900 else "RtcAccessDenied"
        clock = SimpleNamespace(sleep=time.sleep, monotonic=time.monotonic, time=lambda by=seconds: time.time() + by)
        skew = lambda world, clock=clock: setattr(simulator, "time", clock)  # noqa: E731 (short)
        yield Fault("clock", f"the vendor is {seconds} s ahead", everywhere(kind), prepare=skew)


VENDOR_FAULTS = [
    fault
    for group in (connection_faults, body_faults, refusal_faults, throttle_faults, clock_faults)
    for fault in group()
]
