"""Keys that rotate while the application runs cost at most one refused call per process, and no answer."""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from tests.e2e.http import Http
from tests.sandbox.aws import Reply, failure
from tests.sandbox.functions import MAX_ENVIRONMENTS
from tests.sandbox.signatures import Keys
from tests.sandbox.stack import Sandbox
from tests.vendor.faults import delay

PATH = "/rooms/class-1/users/teacher/stream-state"
TARGETS = [{"room_id": "class-1", "user_id": f"user-{number}"} for number in range(30)]
LASTING = Keys("sandbox-next", "sandbox-next-secret")
TEMPORARY = Keys("sandbox-temporary", "sandbox-temporary-secret", "sandbox-temporary-token")


@pytest.fixture
def warm(sandbox: Sandbox) -> Sandbox:
    """Processes of each function that hold the first keys."""
    for user in ("teacher", *(target["user_id"] for target in TARGETS)):
        sandbox.simulator.publish("class-1", user, "Audio")
    assert Http(sandbox.api_url).get(PATH).status == 200
    for function in ("TaskFunction", "SweepFunction"):
        assert sandbox.invoke(function, TARGETS[0]).error is None
    sandbox.receive(1)
    sandbox.simulator.arrivals.clear()
    return sandbox


def rotate(sandbox: Sandbox, keys: Keys) -> None:
    """As an operator does, with the old keys made inactive at once."""
    sandbox.put_keys(keys)
    sandbox.simulator.rotate(keys)


def outcomes(sandbox: Sandbox) -> Counter[str]:
    """The vendor's answers, counted."""
    return Counter(arrival.outcome for arrival in sandbox.simulator.arrivals)


def count_secret_reads(sandbox: Sandbox) -> Counter[str]:
    """A counter that goes on counting."""
    reads: Counter[str] = Counter()

    def count(operation: str, call: Mapping[str, Any]) -> Reply | None:
        reads[operation] += operation == "secretsmanager.GetSecretValue"
        return None

    sandbox.aws.intercept = count
    return reads


@pytest.mark.parametrize("next_keys", [LASTING, TEMPORARY], ids=["lasting", "temporary"])
def test_a_rotation_between_two_calls_costs_one_refused_call(warm: Sandbox, http: Http, next_keys: Keys) -> None:
    rotate(warm, next_keys)

    replies = [http.get(PATH) for _ in range(5)]

    assert {reply.status for reply in replies} == {200}
    assert {reply.body["media"]["audio"] for reply in replies} == {True}
    assert outcomes(warm) in ({"OK": 5, "InvalidAccessKey": 1}, {"OK": 5, "InvalidSecretToken": 1})


def test_each_function_notices_a_rotation_by_itself(warm: Sandbox) -> None:
    rotate(warm, TEMPORARY)

    for function in ("TaskFunction", "SweepFunction"):
        assert warm.invoke(function, TARGETS[0]).error is None

    assert outcomes(warm)["OK"] == 2
    assert outcomes(warm).total() == 4
    assert [message["media"]["audio"] for message in warm.receive_messages(1)] == [True]


def test_many_calls_of_one_process_read_the_secret_once(warm: Sandbox, http: Http) -> None:
    reads = count_secret_reads(warm)
    # The calls are all under way before the first is refused.
    warm.simulator.delay_seconds = lambda: 0.3
    rotate(warm, TEMPORARY)

    reply = http.post("/stream-states/query", {"targets": TARGETS[:20]})

    warm.simulator.delay_seconds = lambda: 0.0
    assert [item["media"]["audio"] for item in reply.body["results"]] == [True] * 20
    assert outcomes(warm)["OK"] == 20
    assert outcomes(warm).total() <= 40
    assert reads["secretsmanager.GetSecretValue"] == 1


def test_twenty_requests_at_once_are_all_answered(warm: Sandbox, http: Http) -> None:
    # Given as many warm processes as there may be, each of which takes one request at a time.
    warm.simulator.fault = lambda exchange: delay(0.2)
    with ThreadPoolExecutor(20) as pool:
        assert {reply.status for reply in pool.map(lambda _: http.get(PATH), range(20))} == {200}
        processes = len(warm.functions.processes("ApiFunction"))
        warm.simulator.arrivals.clear()
        reads = count_secret_reads(warm)

        # When the keys rotate while calls are in flight.
        begun = [pool.submit(http.get, PATH) for _ in range(10)]
        rotate(warm, TEMPORARY)
        begun += [pool.submit(http.get, PATH) for _ in range(10)]
        replies = [request.result() for request in begun]

    # Then none fails, and each process was refused once at most.
    assert {reply.status for reply in replies} == {200}
    assert outcomes(warm)["OK"] == 20
    assert processes <= MAX_ENVIRONMENTS
    assert outcomes(warm).total() - 20 <= MAX_ENVIRONMENTS
    assert reads["secretsmanager.GetSecretValue"] <= MAX_ENVIRONMENTS


def test_a_sweep_goes_on_through_a_rotation(warm: Sandbox) -> None:
    numbers = itertools.count()

    def rotate_in_the_middle(exchange: Any) -> None:
        if next(numbers) == 15:
            rotate(warm, TEMPORARY)

    warm.simulator.fault = rotate_in_the_middle
    summary = warm.invoke("SweepFunction", {"targets": TARGETS}).payload

    assert (summary["delivered"], summary["failed"]) == (30, 0)


def test_a_spoiled_secret_is_named_once_the_earlier_keys_are_refused(warm: Sandbox, http: Http) -> None:
    rotate(warm, LASTING)
    warm.put_secret("{")

    refused = http.get(PATH)
    warm.put_keys(LASTING)
    fixed = http.get(PATH)

    assert (refused.status, refused.body["error"]) == (500, "CredentialsInvalid")
    assert fixed.status == 200


@pytest.fixture
def reading(warm: Sandbox, http: Http) -> Iterator[Sandbox]:
    """An API function that reads the secret for each call, and has read good keys once."""
    functions = warm.functions.functions
    usual = functions["ApiFunction"]
    functions["ApiFunction"] = replace(usual, environment={**usual.environment, "SECRET_MAX_AGE": "0"})
    warm.functions.restart()
    assert http.get(PATH).status == 200
    yield warm
    functions["ApiFunction"] = usual
    warm.functions.restart()


@pytest.mark.parametrize("fault", ["{", '{"access_key_id": "1"}', "InternalServiceError", "AccessDeniedException"])
def test_the_earlier_keys_serve_on_meanwhile(reading: Sandbox, http: Http, fault: str) -> None:
    if fault.startswith("{"):
        reading.put_secret(fault)
    else:
        reading.aws.fail_next("secretsmanager.GetSecretValue", *[failure(fault)] * 9)
    begin = len(reading.log("ApiFunction"))

    assert [http.get(PATH).status for _ in range(3)] == [200] * 3

    assert "The earlier keys serve on" in reading.log("ApiFunction")[begin:]
