"""Every AWS client of the package on a kept connection that has died, as after a pause of the function."""

import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from stream_state.adapters import credentials
from stream_state.adapters.queues import ResultsQueue, RetryQueue
from stream_state.adapters.table import Table
from stream_state.adapters.wait_list import Workflows
from stream_state.domain.targets import Target
from stream_state.errors import DeliveryFailed
from stream_state.settings import Settings
from tests.sandbox.server import RESET, LoopbackServer, Request, Response

ANSWERS = {
    "GetItem": {"Item": {"pk": {"S": "a"}}},
    "GetSecretValue": {"SecretString": '{"callback_key": "c"}'},
    "SendMessage": {"MessageId": "m"},
    "SendMessageBatch": {"Successful": [{"Id": "0", "MessageId": "m"}]},
    "SendTaskSuccess": {},
}
MESSAGE = {"app_id": "app-1", "room_id": "class-1", "user_id": "teacher", "id": "0" * 64}


class Server:
    """AWS whose connections each answer one request; `dies` says how a connection ends then, or at its next use."""

    def __init__(self) -> None:
        self.dies = ""
        self.never_answers = False
        self.meeting: threading.Barrier | None = None
        self.connections: Counter[socket.socket] = Counter()
        self._stopped = threading.Event()
        self._server = LoopbackServer(self._answer)
        self.url = self._server.url

    def stop(self) -> None:
        self._stopped.set()
        self._server.stop()

    def _answer(self, request: Request, connection: socket.socket) -> Response | None:
        self.connections[connection] += 1
        if self.meeting:
            self.meeting.wait(timeout=10)
        answer = Response(200, json.dumps(ANSWERS[request.header("x-amz-target").partition(".")[2]]).encode())
        is_first = self.connections[connection] == 1 and not self.never_answers
        if is_first and "while idle" not in self.dies:
            return answer
        if is_first:
            connection.sendall(answer.wire())
        if "silent" in self.dies:
            self._stopped.wait(timeout=60)
        if "reset" in self.dies:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        return None


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The server, as the endpoint of every service."""
    server = Server()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, "eu-central-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield server
    server.stop()


@pytest.fixture
def settings(server: Server) -> Settings:
    """Settings that name a secret and the queues."""
    return Settings.from_environment(
        {
            "RTC_APP_IDS": "app-1",
            "RTC_CALLBACK_SECRET_ID": "keys",
            "RESULTS_QUEUE_URL": f"{server.url}/results",
            "CALLBACK_RETRY_QUEUE_URL": f"{server.url}/retry",
            "TABLE_NAME": "states",
        }
    )


def keeping(settings: Settings) -> Callable[[], object]:
    queue = RetryQueue.from_settings(settings)
    return lambda: queue.keep("{}", 0)


def rechecking(settings: Settings) -> Callable[[], object]:
    queue = RetryQueue.from_settings(settings)
    return lambda: queue.recheck(Target("app-1", "class-1", "teacher"), 0)


def delivering(settings: Settings) -> Callable[[], object]:
    queue = ResultsQueue.from_settings(settings, timeout_seconds=0.5)

    def deliver() -> None:
        assert queue.send([MESSAGE], time.monotonic() + 10) == ["m"]

    return deliver


def reading_keys(settings: Settings) -> Callable[[], object]:
    secret = credentials.callback_keys(settings)
    # Rejected keys do not serve on: a failed read is an error.
    return lambda: secret.keys_after_rejection(("c",), time.monotonic())


def reading_the_table(settings: Settings) -> Callable[[], object]:
    table = Table.from_settings(settings)

    def read() -> None:
        assert table.call("get_item", Key={"pk": {"S": "a"}})["Item"] == {"pk": {"S": "a"}}

    return read


def waking(settings: Settings) -> Callable[[], object]:
    workflows = Workflows()

    def wake() -> None:
        assert workflows.answer("token", {"holds": True})

    return wake


@pytest.mark.parametrize("dies", ["closed while idle", "reset while idle", "closed", "reset", "silent"])
@pytest.mark.parametrize(
    "work",
    [keeping, rechecking, delivering, reading_keys, reading_the_table, waking],
    ids=lambda work: work.__name__,
)
def test_a_kept_connection_that_is_dead_fails_nothing(
    server: Server, settings: Settings, work: Callable[[Settings], Callable[[], object]], dies: str
) -> None:
    # Given a client that has kept a connection
    request = work(settings)
    server.dies = dies
    request()
    assert len(server.connections) == 1
    time.sleep(0.05)  # in which the end of an idle connection arrives
    # When the connection is dead at the next request, then that succeeds on another one
    request()
    assert len(server.connections) == 2


@pytest.mark.parametrize("dies", ["closed", "reset", "silent"])
def test_a_wake_that_fails_takes_little_of_the_time_of_its_observer(
    server: Server, settings: Settings, dies: str
) -> None:
    server.dies, server.never_answers = dies, True
    began = time.monotonic()

    assert Workflows().answer("token", {"holds": True}) is False

    assert len(server.connections) == 2
    assert time.monotonic() - began <= 1.8


@pytest.mark.parametrize("dies", ["closed", "reset", "silent"])
def test_the_retry_queue_fails_within_the_time_that_the_vendor_leaves_for_it(
    server: Server, settings: Settings, dies: str
) -> None:
    server.dies, server.never_answers = dies, True
    queue = RetryQueue.from_settings(settings)
    began = time.monotonic()

    with pytest.raises(DeliveryFailed):
        queue.keep("{}", 0)

    assert len(server.connections) == 2
    assert time.monotonic() - began <= 1.4


def test_the_second_try_of_the_retry_queue_does_not_meet_the_next_dead_connection(
    server: Server, settings: Settings
) -> None:
    # Given three threads that used a connection each, at the same time
    keep = keeping(settings)
    server.dies, server.meeting = "silent", threading.Barrier(3)
    threads = [threading.Thread(target=keep) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    server.meeting = None
    assert len(server.connections) == 3
    # When all are dead, then one failed try is enough
    keep()
    assert len(server.connections) == 4


def test_the_second_try_meets_no_dead_connection_while_another_thread_takes_the_first_new_one(
    server: Server, settings: Settings
) -> None:
    # Given a table with three kept connections that are dead
    table = Table.from_settings(settings)
    key = {"pk": {"S": "a"}}
    server.dies, server.meeting = "reset", threading.Barrier(3)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: table.call("get_item", Key=key), range(3)))

        # When another request is under way between the two tries, until the second try arrives
        server.meeting = None
        others: list[Future[Any]] = []

        def take(**_: object) -> None:
            if not others:
                server.meeting = threading.Barrier(2)
                others.append(pool.submit(table.call, "get_item", Key=key))
                while server.meeting.n_waiting == 0:
                    time.sleep(0.01)

        table.client.meta.events.register("needs-retry", take)
        # Then both have their answers
        assert table.call("get_item", Key=key)["Item"] == others[0].result()["Item"]
