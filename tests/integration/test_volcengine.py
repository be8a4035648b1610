"""The client over real sockets: how long and how much it reads, and which connections it uses again."""

import contextlib
import io
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
from requests.adapters import BaseAdapter

from stream_state.adapters.signing import SigningKeys
from stream_state.adapters.vendor_http import MAX_BODY_BYTES, OneOriginAdapter
from stream_state.adapters.volcengine import MAX_TRIES, VolcengineClient
from stream_state.clock import Clock
from stream_state.domain.targets import Medium, Target
from stream_state.errors import RtcProtocolError, RtcThrottled, RtcUnavailable
from stream_state.settings import Settings
from tests.integration.tls import make_certificate
from tests.sandbox.server import Response
from tests.sandbox.signatures import KEYS
from tests.sandbox.simulator import APP_ID, Exchange, Fault, Simulator
from tests.unit.fakes import FreeLimiter
from tests.vendor.faults import canned, cut, drip, error, reset, states
from tests.vendor.static_keys import StaticKeys

TARGET = Target(APP_ID, "class-1", "teacher")
PAUSE_SECONDS = 0.05


class Awake(Clock):
    """The clock of the machine without pauses between tries."""

    def sleep(self, seconds: float) -> None:
        """Go on at once."""


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    with Simulator() as simulator:
        simulator.publish(TARGET.room_id, TARGET.user_id, "Audio")
        yield simulator


def client(endpoint: str, adapter: BaseAdapter | None = None, timeout: float = 0.2) -> VolcengineClient:
    names = ("RTC_READ_TIMEOUT", "RTC_CONNECT_TIMEOUT")
    environment = {"RTC_APP_IDS": APP_ID, "RTC_ENDPOINT": endpoint, **dict.fromkeys(names, str(timeout))}
    keys = StaticKeys(SigningKeys(KEYS.access_key_id, KEYS.secret_access_key))
    return VolcengineClient(
        Settings.from_environment(environment),
        keys,
        lambda _: FreeLimiter(),
        adapter=adapter or OneOriginAdapter(),
        clock=Awake(),
    )


@pytest.fixture
def rtc(simulator: Simulator) -> VolcengineClient:
    return client(simulator.url)


def ask(rtc: VolcengineClient) -> bool | None:
    """Whether the teacher publishes audio."""
    return rtc.stream_state(TARGET, time.monotonic() + 30).media[Medium.AUDIO]


def slowly(data: bytes, exchange: Exchange) -> None:
    """Send a byte at a time, each well within the read time-out, until the client goes away."""
    for byte in data:
        exchange.connection.sendall(bytes([byte]))
        time.sleep(PAUSE_SECONDS)


def drip_body(exchange: Exchange) -> None:
    head, _, body = exchange.response().wire().partition(b"\r\n\r\n")
    exchange.connection.sendall(head + b"\r\n\r\n")
    slowly(body, exchange)


def in_two_parts(exchange: Exchange) -> None:
    """Let each part come within the read time-out, but not both together."""
    head, _, body = exchange.response().wire().partition(b"\r\n\r\n")
    for part in (head + b"\r\n\r\n", body):
        time.sleep(3 * PAUSE_SECONDS)
        exchange.connection.sendall(part)


def drip_interim_responses(exchange: Exchange) -> None:
    for _ in range(1_000):
        exchange.connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        time.sleep(PAUSE_SECONDS)


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def drip_chunks(exchange: Exchange) -> None:
    exchange.connection.sendall(CHUNKED)
    slowly(b"1\r\n \r\n" * 1_000, exchange)


def silence(exchange: Exchange) -> None:
    exchange.connection.recv(1)


def without_end(exchange: Exchange) -> None:
    exchange.connection.sendall(CHUNKED)
    for _ in range(100):
        exchange.connection.sendall(b"10000\r\n" + b" " * 0x10000 + b"\r\n")


def raw(data: bytes) -> Fault:
    return lambda exchange: exchange.connection.sendall(data)


def and_hang_up(exchange: Exchange) -> None:
    """Answer as if the connection were kept, and close it."""
    exchange.connection.sendall(exchange.response().wire())


def and_reset(exchange: Exchange) -> None:
    """Answer as if the connection were kept, and reset it."""
    and_hang_up(exchange)
    reset(exchange)


NOT_FOUND = canned(200, {"ResponseMetadata": {}, "Result": "User is not found."})


def after_an_interim_answer(exchange: Exchange) -> None:
    """Answer that the user is unknown, after an interim answer that a client could take for the answer."""
    exchange.connection.sendall(b"HTTP/1.1 103 Early Hints\r\n\r\n")
    answer = NOT_FOUND(exchange)
    assert answer is not None
    exchange.connection.sendall(answer.wire())
    exchange.connection.recv(1)


def test_the_simulator_answers_and_has_checked_the_signature(rtc: VolcengineClient, simulator: Simulator) -> None:
    assert ask(rtc) is True
    assert [arrival.outcome for arrival in simulator.arrivals] == ["OK"]


@pytest.mark.parametrize(
    "fault",
    [drip(PAUSE_SECONDS), drip_body, drip_chunks, drip_interim_responses, in_two_parts, silence],
    ids=["headers", "body", "chunks", "interim responses", "two parts", "silence"],
)
def test_a_response_is_bounded_as_a_whole(rtc: VolcengineClient, simulator: Simulator, fault: Fault) -> None:
    simulator.fault = lambda exchange: fault
    started = time.monotonic()

    with pytest.raises(RtcUnavailable) as raised:
        ask(rtc)

    assert (raised.value.status, len(simulator.arrivals)) == (504, MAX_TRIES)
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    "fault",
    [
        reset,
        cut(0),
        cut(10),
        cut(200),
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}"),
        raw(CHUNKED + b"10\r\n{}"),
        raw(CHUNKED + b"zz\r\n{}\r\n"),
        raw(CHUNKED + b"-5\r\n{}\r\n"),
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{} "),
        raw(b"HTTP/1.1 103 Early Hints\r\n\r\n"),
        raw(b"HTTP/1.1 200 OK\r\n" + b"X-Filler: x\r\n" * 200 + b"\r\n{}"),
        raw(b"HTTP/1.1 200 OK\r\nX-Filler: " + b"x" * 100_000 + b"\r\n\r\n{}"),
        raw(b"\x16\x03\x01\x00\x05hello"),
        raw(b"SSH-2.0-OpenSSH\r\n"),
    ],
    ids=[
        "reset", "no answer", "cut status line", "cut answer", "too short", "cut chunk", "malformed chunk",
        "negative chunk", "two lengths", "interim answer", "too many headers", "too long a header", "TLS",
        "another protocol",
    ],
)  # fmt: skip
def test_an_answer_that_breaks_off_or_is_no_http_is_a_failure_of_the_network(
    rtc: VolcengineClient, simulator: Simulator, fault: Fault
) -> None:
    simulator.fault = lambda exchange: fault

    with pytest.raises(RtcUnavailable) as raised:
        ask(rtc)

    assert (raised.value.status, len(simulator.arrivals)) == (503, MAX_TRIES)


@pytest.mark.parametrize(
    "fault",
    [reset, cut(50), drip_body, silence, after_an_interim_answer, error("InternalServiceError", 500, 100014)],
    ids=["reset", "cut", "slow", "silence", "interim answer", "server error"],
)
def test_a_passing_fault_costs_no_answer(rtc: VolcengineClient, simulator: Simulator, fault: Fault) -> None:
    simulator.fail_next(fault)

    assert ask(rtc) is True
    assert [arrival.fault for arrival in simulator.arrivals] == [True, False]


@pytest.mark.parametrize(
    "fault",
    [
        canned(200, b" " * (MAX_BODY_BYTES + 1)),
        without_end,
        raw(CHUNKED + b"-1\r\n" + b" " * 10 * MAX_BODY_BYTES),
    ],
    ids=["sized", "chunked", "chunk without end"],
)
def test_no_more_is_read_than_four_mebibytes(simulator: Simulator, fault: Fault) -> None:
    simulator.fail_next(fault, states([]))
    rtc = client(simulator.url, timeout=5)

    with pytest.raises(RtcProtocolError, match="larger than 4194304 bytes"):
        ask(rtc)

    # The rest of the answer is not the next answer.
    assert ask(rtc) is None


def test_a_redirect_is_not_followed(rtc: VolcengineClient, simulator: Simulator) -> None:
    with Simulator() as elsewhere:
        for status in (301, 302, 303, 307, 308):
            simulator.fail_next(canned(status, b"", {"Location": elsewhere.url}))
            with pytest.raises(RtcProtocolError, match=f"HTTP {status}"):
                ask(rtc)

        assert len(elsewhere.arrivals) == 0


def test_a_malformed_header_is_not_logged(
    rtc: VolcengineClient, simulator: Simulator, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    simulator.fail_next(raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\ncanary without a colon\r\n\r\n{}"))

    with pytest.raises(RtcProtocolError):
        ask(rtc)

    assert caplog.text == ""


def test_a_name_look_up_that_hangs_holds_up_neither_its_call_nor_the_calls_after_it(
    rtc: VolcengineClient, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given look-ups that hang
    released, look_up = threading.Event(), socket.getaddrinfo
    late: SimpleQueue[Any] = SimpleQueue()

    def hang(*asked: Any, **options: Any) -> Any:
        released.wait(30)
        late.put(found := look_up(*asked, **options))
        return found

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    started = time.monotonic()
    with ThreadPoolExecutor(20) as pool:
        asked = [pool.submit(ask, rtc) for _ in range(20)]
        assert {str(call.exception()) for call in asked} == {
            "Volcengine did not answer in time (ConnectTimeout). Try again later."
        }
    assert time.monotonic() - started < 5
    # When look-ups work again, while the earlier ones still hang
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    # Then calls are answered, and the late ones, whose callers have gone, are never sent
    assert ask(rtc) is True
    released.set()
    for _ in asked:
        late.get(timeout=30)
    assert ask(rtc) is True
    assert len(simulator.arrivals) == 2


def test_a_connection_that_comes_too_late_is_closed(rtc: VolcengineClient, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_up, connect = threading.Event(), socket.socket.connect
    late: SimpleQueue[socket.socket] = SimpleQueue()

    def connect_late(self: socket.socket, address: Any) -> None:
        looked_up.wait(30)
        connect(self, address)
        late.put(self)

    monkeypatch.setattr(socket.socket, "connect", connect_late)
    with pytest.raises(RtcUnavailable, match="ConnectTimeout"):
        ask(rtc)
    looked_up.set()

    for _ in range(MAX_TRIES):
        connection = late.get(timeout=30)
        until = time.monotonic() + 30
        while connection.fileno() != -1:
            assert time.monotonic() < until
            time.sleep(0.01)


def test_nothing_listening_is_a_failure_of_the_network() -> None:
    with Simulator() as gone:
        address = gone.url

    with pytest.raises(RtcUnavailable, match="ConnectionError"):
        ask(client(address))


@pytest.fixture
def connections(simulator: Simulator) -> list[object]:
    """The client's end of the connection of each call, in order; adds to whatever faults a test asks for."""
    ends: list[object] = []

    def note(exchange: Exchange) -> Fault | None:
        ends.append(exchange.connection.getpeername())
        return None

    simulator.fault = note
    return ends


def test_a_connection_is_used_again_after_answers_and_errors(
    rtc: VolcengineClient, simulator: Simulator, connections: list[object]
) -> None:
    simulator.fail_next(error("FlowLimitExceeded", 429), canned(503), canned(204), states([]))
    with contextlib.suppress(RtcProtocolError, RtcThrottled):
        ask(rtc)
    for _ in range(5):
        ask(rtc)

    assert len(connections) == 4
    assert len(set(connections)) == 1


@pytest.mark.parametrize("fault", [reset, silence], ids=["reset", "silence"])
def test_when_all_kept_connections_have_died_one_try_finds_out(simulator: Simulator, fault: Fault) -> None:
    together, seen, dead = threading.Barrier(5), set[object](), set[object]()

    def answer(exchange: Exchange) -> Response | None:
        seen.add(exchange.connection.getpeername())
        if exchange.connection.getpeername() in dead:
            return fault(exchange)
        together.wait(30)
        return exchange.response()

    # Given kept connections
    simulator.fault = lambda exchange: answer
    rtc = client(simulator.url, timeout=1)
    with ThreadPoolExecutor(together.parties) as pool:
        assert all(pool.map(ask, [rtc] * together.parties))
    # When something on the way has forgotten them, as after a freeze of the function
    dead |= seen
    simulator.fail_next(answer, Exchange.response)
    # Then the second try succeeds, and calls at once after it need no second try
    assert ask(rtc) is True
    with ThreadPoolExecutor(together.parties) as pool:
        assert all(pool.map(ask, [rtc] * together.parties))
    assert len(simulator.arrivals) == 5 + 2 + 5


@pytest.mark.parametrize("last_answer", [and_hang_up, and_reset], ids=["closed", "reset"])
def test_an_idle_connection_that_died_is_replaced(
    rtc: VolcengineClient, simulator: Simulator, last_answer: Fault
) -> None:
    simulator.fail_next(last_answer)

    assert ask(rtc) is True
    assert ask(rtc) is True


def test_an_adapter_that_was_closed_has_no_open_connection_and_serves_on(simulator: Simulator) -> None:
    adapter, ended = OneOriginAdapter(), threading.Event()

    def until_closed(exchange: Exchange) -> None:
        and_hang_up(exchange)
        if exchange.connection.recv(1) == b"":
            ended.set()

    simulator.fail_next(until_closed)
    rtc = client(simulator.url, adapter)
    assert ask(rtc) is True

    adapter.close()

    assert ended.wait(30)
    assert ask(rtc) is True


def test_nothing_is_taken_from_the_environment(
    simulator: Simulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with Simulator() as proxy:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
            monkeypatch.setenv(name.lower(), proxy.url)
        monkeypatch.setenv("NO_PROXY", "")
        monkeypatch.setenv("no_proxy", "")
        (tmp_path / "netrc").write_text("machine 127.0.0.1 login someone password canary\n")
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "missing.pem"))

        assert ask(client(simulator.url)) is True
        assert len(proxy.arrivals) == 0

    assert simulator.arrivals[0].headers["authorization"].startswith("HMAC-SHA256 ")


def test_cookies_are_not_kept_and_compressed_bodies_not_asked_for(rtc: VolcengineClient, simulator: Simulator) -> None:
    def with_cookie(exchange: Exchange) -> None:
        head, _, body = exchange.response().wire().partition(b"\r\n\r\n")
        exchange.connection.sendall(head + b"\r\nSet-Cookie: canary=1; Path=/\r\n\r\n" + body)

    simulator.fail_next(with_cookie, Exchange.response)
    ask(rtc)
    ask(rtc)

    for arrival in simulator.arrivals:
        assert "cookie" not in arrival.headers
        assert arrival.headers["accept-encoding"] == "identity"


class Trusting(OneOriginAdapter):
    """An adapter that trusts one certificate."""

    def __init__(self, certificate: Path) -> None:
        self.certificate = str(certificate)
        super().__init__()

    def send(self, *arguments: Any, **options: Any) -> Any:
        return super().send(*arguments, **options | {"verify": self.certificate})


def speak_tls(simulator: Simulator, context: ssl.SSLContext) -> str:
    """Make the simulator speak TLS; its address then."""
    simulator.socket = context.wrap_socket(simulator.socket, server_side=True)
    return simulator.url.replace("http://127.0.0.1", "https://localhost")


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """The place of a certificate that nobody vouches for, with its key."""
    return tmp_path / "localhost.pem"


@pytest.fixture
def tls_endpoint(simulator: Simulator, certificate: Path) -> str:
    return speak_tls(simulator, make_certificate(certificate))


def test_a_certificate_that_nobody_vouches_for_is_refused(tls_endpoint: str, simulator: Simulator) -> None:
    with pytest.raises(RtcUnavailable, match="TLS connection to Volcengine failed"):
        ask(client(tls_endpoint, timeout=1))

    assert len(simulator.arrivals) == 0


def test_a_certificate_that_names_the_host_only_as_its_subject_is_refused(
    simulator: Simulator, certificate: Path
) -> None:
    url = speak_tls(simulator, make_certificate(certificate, has_alternative_name=False))

    with pytest.raises(RtcUnavailable, match="TLS connection to Volcengine failed"):
        ask(client(url, Trusting(certificate), timeout=1))


def test_a_tls_handshake_may_take_all_the_time_there_is_however_many_addresses_a_host_has(
    tls_endpoint: str, certificate: Path, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_up, accept = socket.getaddrinfo, simulator.get_request
    monkeypatch.setattr(socket, "getaddrinfo", lambda *asked, **options: look_up(*asked, **options) * 10)
    simulator.get_request = lambda: (time.sleep(0.4), accept())[1]  # type: ignore[func-returns-value, method-assign]

    assert ask(client(tls_endpoint, Trusting(certificate), timeout=2)) is True


def test_over_tls_answers_come_and_connections_are_kept(
    tls_endpoint: str, certificate: Path, connections: list[object]
) -> None:
    rtc = client(tls_endpoint, Trusting(certificate), timeout=1)

    assert [ask(rtc) for _ in range(3)] == [True] * 3
    assert len(set(connections)) == 1


def test_bytes_that_nobody_asked_for_are_not_the_answer_to_the_next_question(
    tls_endpoint: str, certificate: Path, simulator: Simulator
) -> None:
    # Given an answer that fills what is read at once, and another one behind it in the same record of TLS
    def and_another(exchange: Exchange) -> None:
        response = exchange.response()
        fill = io.DEFAULT_BUFFER_SIZE - len(replace(response, headers=[*response.headers, ("X-Fill", "")]).wire())
        filled = replace(response, headers=[*response.headers, ("X-Fill", "x" * fill)]).wire()
        assert len(filled) == io.DEFAULT_BUFFER_SIZE
        another = NOT_FOUND(exchange)
        assert another is not None
        exchange.connection.sendall(filled + another.wire())
        exchange.connection.recv(1)

    simulator.fail_next(and_another)
    rtc = client(tls_endpoint, Trusting(certificate), timeout=1)

    assert [ask(rtc) for _ in range(2)] == [True, True]


@pytest.mark.parametrize("fault", [drip(PAUSE_SECONDS), drip_body, silence], ids=["headers", "body", "silence"])
def test_over_tls_too_a_response_is_bounded_as_a_whole(
    tls_endpoint: str, certificate: Path, simulator: Simulator, fault: Callable[[Exchange], None]
) -> None:
    simulator.fault = lambda exchange: fault

    with pytest.raises(RtcUnavailable) as raised:
        ask(client(tls_endpoint, Trusting(certificate), timeout=0.3))

    assert (raised.value.status, len(simulator.arrivals)) == (504, MAX_TRIES)
