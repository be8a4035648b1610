"""The client over real sockets: how long and how much it reads, and which connections it keeps."""

import contextlib
import io
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

from stream_state.errors import RtcProtocolError, RtcThrottled, RtcUnavailable
from stream_state.model import Target
from stream_state.rtc import MAX_BODY_BYTES, MAX_TRIES, RtcClient
from stream_state.settings import Settings
from stream_state.signing import SigningKeys
from stream_state.transport import BoundedAdapter
from tests.integration.tls import make_certificate
from tests.sandbox.server import Response
from tests.sandbox.simulator import (
    APP_ID,
    KEYS,
    Exchange,
    Fault,
    Simulator,
    canned,
    cut,
    drip,
    error,
    honest,
    reset,
    states,
)
from tests.sandbox.static_keys import StaticKeys
from tests.unit.fakes import FreeLimiter

TARGET = Target(APP_ID, "class-1", "teacher")
PAUSE_SECONDS = 0.05


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    with Simulator() as simulator:
        simulator.publish(TARGET.room_id, TARGET.user_id, "Audio")
        yield simulator


def client(endpoint: str, adapter: BoundedAdapter | None = None) -> RtcClient:
    settings = Settings.from_environment(
        {"RTC_APP_IDS": APP_ID, "RTC_ENDPOINT": endpoint, "RTC_READ_TIMEOUT": "0.2", "RTC_CONNECT_TIMEOUT": "0.2"}
    )
    keys = StaticKeys(SigningKeys(KEYS.access_key_id, KEYS.secret_access_key))
    return RtcClient(settings, keys, FreeLimiter(), adapter=adapter, sleep=lambda seconds: None)


@pytest.fixture
def rtc(simulator: Simulator) -> RtcClient:
    return client(simulator.url)


def ask(rtc: RtcClient) -> bool | None:
    return rtc.stream_state(TARGET, time.monotonic() + 30).publishing


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


def drip_chunks(exchange: Exchange) -> None:
    exchange.connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    slowly(b"1\r\n \r\n" * 1_000, exchange)


def silence(exchange: Exchange) -> None:
    exchange.connection.recv(1)


def without_end(exchange: Exchange) -> None:
    exchange.connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
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


def test_the_simulator_answers_and_has_checked_the_signature(rtc: RtcClient, simulator: Simulator) -> None:
    assert ask(rtc) is True
    assert [arrival.outcome for arrival in simulator.arrivals] == ["OK"]


@pytest.mark.parametrize(
    "fault",
    [drip(PAUSE_SECONDS), drip_body, drip_chunks, drip_interim_responses, in_two_parts, silence],
    ids=["headers", "body", "chunks", "interim responses", "two parts", "silence"],
)
def test_an_answer_that_takes_too_long_as_a_whole_is_given_up(
    rtc: RtcClient, simulator: Simulator, fault: Fault
) -> None:
    simulator.fault = lambda exchange: fault

    with pytest.raises(RtcUnavailable) as raised:
        ask(rtc)

    assert raised.value.problem()["status"] == 504
    assert len(simulator.arrivals) == MAX_TRIES


@pytest.mark.parametrize(
    "fault",
    [
        reset,
        cut(0),
        cut(10),
        cut(200),
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}"),
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10\r\n{}"),
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n"),
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n{}\r\n"),
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n" + b" " * 10 * MAX_BODY_BYTES),
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{} "),
        raw(b"HTTP/1.1 103 Early Hints\r\n\r\n"),
        raw(b"HTTP/1.1 200 OK\r\n" + b"X-Filler: x\r\n" * 200 + b"\r\n{}"),
        raw(b"HTTP/1.1 200 OK\r\nX-Filler: " + b"x" * 100_000 + b"\r\n\r\n{}"),
        raw(b"\x16\x03\x01\x00\x05hello"),
        raw(b"SSH-2.0-OpenSSH\r\n"),
    ],
    ids=[
        "reset", "no answer", "cut status line", "cut answer", "too short", "cut chunk", "malformed chunk",
        "negative chunk", "chunk without end", "two lengths", "interim answer",
        "too many headers", "too long a header", "TLS", "another protocol",
    ],
)  # fmt: skip
def test_an_answer_that_breaks_off_or_is_no_http_is_a_failure_of_the_network(
    rtc: RtcClient, simulator: Simulator, fault: Fault
) -> None:
    simulator.fault = lambda exchange: fault

    with pytest.raises(RtcUnavailable) as raised:
        ask(rtc)

    assert raised.value.problem()["status"] == 503
    assert len(simulator.arrivals) == MAX_TRIES


@pytest.mark.parametrize(
    "fault",
    [reset, cut(50), drip_body, error("InternalServiceError", 500, 100014)],
    ids=["reset", "cut", "slow", "server error"],
)
def test_a_passing_fault_costs_no_answer(rtc: RtcClient, simulator: Simulator, fault: Fault) -> None:
    simulator.fail_next(fault)

    assert ask(rtc) is True
    assert [arrival.fault for arrival in simulator.arrivals] == [True, False]


@pytest.mark.parametrize("fault", [canned(200, b" " * (MAX_BODY_BYTES + 1)), without_end], ids=["sized", "chunked"])
def test_no_more_is_read_than_one_mebibyte(rtc: RtcClient, simulator: Simulator, fault: Fault) -> None:
    simulator.fail_next(fault)

    with pytest.raises(RtcProtocolError, match="larger than 1048576 bytes"):
        ask(rtc)

    assert ask(rtc) is True


def test_a_redirect_is_not_followed(rtc: RtcClient, simulator: Simulator) -> None:
    with Simulator() as elsewhere:
        for status in (301, 302, 303, 307, 308):
            simulator.fail_next(canned(status, b"", {"Location": elsewhere.url}))
            with pytest.raises(RtcProtocolError, match=f"HTTP {status}"):
                ask(rtc)

        assert len(elsewhere.arrivals) == 0


def test_a_name_that_is_not_found_in_time_is_given_up(rtc: RtcClient, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *asked, **options: released.wait(30) or [])

    with pytest.raises(RtcUnavailable, match="ConnectTimeout") as raised:
        ask(rtc)
    released.set()

    assert raised.value.problem()["status"] == 504


def test_a_connection_that_comes_too_late_is_closed(rtc: RtcClient, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_up, connect = threading.Event(), socket.create_connection
    late: SimpleQueue[socket.socket] = SimpleQueue()

    def connect_late(*address: Any) -> socket.socket:
        looked_up.wait(30)
        late.put(connected := connect(*address))
        return connected

    monkeypatch.setattr(socket, "create_connection", connect_late)
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


def test_a_connection_is_used_again(rtc: RtcClient, simulator: Simulator, connections: list[object]) -> None:
    for _ in range(5):
        ask(rtc)
    with contextlib.suppress(RtcThrottled):
        simulator.fault = lambda exchange: (
            connections.append(exchange.connection.getpeername()) or error("FlowLimitExceeded", 429)
        )
        ask(rtc)

    assert len(connections) == 5 + MAX_TRIES
    assert len(set(connections)) == 1


def test_when_all_kept_connections_have_died_one_try_finds_out(simulator: Simulator) -> None:
    # Given more connections than there are tries
    together, old = threading.Barrier(2 * MAX_TRIES), set()

    def wait_for_all(exchange: Exchange) -> Response:
        old.add(exchange.connection.getpeername())
        together.wait(30)
        return exchange.response()

    simulator.fail_next(*[wait_for_all] * together.parties)
    patient = client(simulator.url, BoundedAdapter(simulator.url, 30, 30, MAX_BODY_BYTES))
    with ThreadPoolExecutor(together.parties) as pool:
        assert all(pool.map(ask, [patient] * together.parties))
    # When something on the way has forgotten them, and says so only when they are used
    simulator.fault = lambda exchange: reset if exchange.connection.getpeername() in old else None
    # Then the second try succeeds
    assert ask(patient) is True
    assert len(simulator.arrivals) == together.parties + 2


def test_an_adapter_that_was_closed_has_no_open_connection_and_serves_on(simulator: Simulator) -> None:
    adapter = BoundedAdapter(simulator.url, 1, 1, MAX_BODY_BYTES)
    rtc = client(simulator.url, adapter)
    for _ in range(2):
        assert ask(rtc) is True
        (kept,) = adapter._idle
        adapter.close()
        assert kept.fileno() == -1


@pytest.mark.parametrize("last_answer", [and_hang_up, and_reset], ids=["closed", "reset"])
def test_an_idle_connection_that_died_is_replaced(rtc: RtcClient, simulator: Simulator, last_answer: Fault) -> None:
    simulator.fail_next(last_answer)

    assert ask(rtc) is True
    assert ask(rtc) is True


def test_a_connection_whose_answer_was_not_read_to_its_end_is_not_used_again(
    rtc: RtcClient, simulator: Simulator
) -> None:
    body = canned(200, b" " * (MAX_BODY_BYTES + 100))
    simulator.fail_next(body, states([]))

    with pytest.raises(RtcProtocolError):
        ask(rtc)

    assert ask(rtc) is None


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


def test_cookies_are_not_kept_and_compressed_bodies_not_asked_for(rtc: RtcClient, simulator: Simulator) -> None:
    def with_cookie(exchange: Exchange) -> None:
        head, _, body = exchange.response().wire().partition(b"\r\n\r\n")
        exchange.connection.sendall(head + b"\r\nSet-Cookie: canary=1; Path=/\r\n\r\n" + body)

    simulator.fail_next(with_cookie, honest)
    ask(rtc)
    ask(rtc)

    for arrival in simulator.arrivals:
        assert "cookie" not in arrival.headers
        assert arrival.headers["accept-encoding"] == "identity"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate that nobody vouches for, with its key."""
    path = tmp_path_factory.mktemp("tls") / "localhost.pem"
    make_certificate(path)
    return path


@pytest.fixture
def tls_endpoint(simulator: Simulator, certificate: Path) -> str:
    """The simulator's address after it has been made to speak TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    simulator.socket = context.wrap_socket(simulator.socket, server_side=True)
    return simulator.url.replace("http://127.0.0.1", "https://localhost")


@pytest.fixture
def trusting(tls_endpoint: str, certificate: Path) -> BoundedAdapter:
    """An adapter that trusts the certificate made for this run."""
    return BoundedAdapter(tls_endpoint, 0.2, 0.2, MAX_BODY_BYTES, str(certificate))


def test_a_certificate_that_nobody_vouches_for_is_refused(tls_endpoint: str, simulator: Simulator) -> None:
    with pytest.raises(RtcUnavailable, match="TLS connection to Volcengine failed"):
        ask(client(tls_endpoint))

    assert len(simulator.arrivals) == 0


def test_a_certificate_that_names_the_host_only_as_its_subject_is_refused(simulator: Simulator, tmp_path: Path) -> None:
    context = make_certificate(tmp_path / "other.pem", has_alternative_name=False)
    simulator.socket = context.wrap_socket(simulator.socket, server_side=True)
    url = simulator.url.replace("http://127.0.0.1", "https://localhost")

    with pytest.raises(RtcUnavailable, match="TLS connection to Volcengine failed"):
        ask(client(url, BoundedAdapter(url, 0.2, 0.2, MAX_BODY_BYTES, str(tmp_path / "other.pem"))))


def test_a_tls_handshake_may_take_all_the_time_there_is_however_many_addresses_a_host_has(
    tls_endpoint: str, certificate: Path, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_up, accept = socket.getaddrinfo, simulator.get_request
    monkeypatch.setattr(socket, "getaddrinfo", lambda *asked, **options: look_up(*asked, **options) * 10)
    simulator.get_request = lambda: (time.sleep(0.4), accept())[1]  # type: ignore[func-returns-value, method-assign]

    assert ask(client(tls_endpoint, BoundedAdapter(tls_endpoint, 2, 2, MAX_BODY_BYTES, str(certificate)))) is True


def test_over_tls_answers_come_and_connections_are_kept(
    tls_endpoint: str, trusting: BoundedAdapter, connections: list[object]
) -> None:
    rtc = client(tls_endpoint, trusting)

    assert [ask(rtc) for _ in range(3)] == [True] * 3
    assert len(set(connections)) == 1


def test_what_nobody_asked_for_is_no_answer_to_the_next_question(
    tls_endpoint: str, trusting: BoundedAdapter, simulator: Simulator
) -> None:
    # Given an answer that fills what is read at once, and another one behind it in the same record of TLS
    def and_another(exchange: Exchange) -> None:
        response = exchange.response()
        fill = io.DEFAULT_BUFFER_SIZE - len(replace(response, headers=[*response.headers, ("X-Fill", "")]).wire())
        filled = replace(response, headers=[*response.headers, ("X-Fill", "x" * fill)]).wire()
        assert len(filled) == io.DEFAULT_BUFFER_SIZE
        another = canned(200, {"ResponseMetadata": {}, "Result": "User is not found."})(exchange)
        assert another is not None
        exchange.connection.sendall(filled + another.wire())
        exchange.connection.recv(1)

    simulator.fail_next(and_another)
    rtc = client(tls_endpoint, trusting)

    assert [ask(rtc) for _ in range(2)] == [True, True]


@pytest.mark.parametrize("fault", [drip(PAUSE_SECONDS), drip_body, silence], ids=["headers", "body", "silence"])
def test_over_tls_too_an_answer_is_bounded_as_a_whole(
    tls_endpoint: str, trusting: BoundedAdapter, simulator: Simulator, fault: Callable[[Exchange], None]
) -> None:
    simulator.fault = lambda exchange: fault

    with pytest.raises(RtcUnavailable) as raised:
        ask(client(tls_endpoint, trusting))

    assert raised.value.problem()["status"] == 504
    assert len(simulator.arrivals) == MAX_TRIES
