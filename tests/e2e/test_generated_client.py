"""A client that a public generator makes from docs/openapi.yaml asks, lists, watches and reads problems."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.contract import DOCUMENT, Front
from tests.sandbox.functions import Invocation
from tests.sandbox.simulator import APP_ID
from tests.sandbox.stack import Sandbox

TARGET = {"room_id": "class-1", "user_id": "teacher"}
SIGNED = {"Authorization": "AWS4-HMAC-SHA256 Credential=sandbox"}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The name of the generated package, which can be imported."""
    folder = tmp_path_factory.mktemp("generated")
    programs = Path(sys.executable).parent
    output: list[str | Path] = ["--output-path", folder / "generated_client", "--meta", "none"]
    done = subprocess.run(
        [programs / "openapi-python-client", "generate", "--fail-on-warning", "--path", DOCUMENT, *output],
        env=os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr, "warning" in done.stdout.lower()) == (0, "", False), done.stdout
    sys.path.insert(0, str(folder))
    yield "generated_client"
    sys.path.remove(str(folder))


@pytest.fixture
def front(sandbox: Sandbox) -> Iterator[Front]:
    with Front(sandbox) as front:
        yield front


@pytest.fixture
def call(package: str, front: Front) -> Callable[..., Any]:
    """Calls an operation by its name in the client, as a caller who signs; the parsed response."""

    def call(operation: str, *arguments: str, headers: dict[str, str] = SIGNED, **options: Any) -> Any:
        client = import_module(package).Client(base_url=front.url, headers=headers)
        with client:
            response = import_module(f"{package}.api.{operation}").sync_detailed(*arguments, client=client, **options)
        return response.parsed if response.parsed is not None else response.status_code

    return call


@pytest.fixture
def models(package: str) -> Any:
    return import_module(f"{package}.models")


@pytest.fixture(autouse=True)
def teacher_publishes(sandbox: Sandbox) -> None:
    sandbox.simulator.publish(TARGET["room_id"], TARGET["user_id"], "Audio")


def test_it_asks(call: Callable[..., Any], models: Any) -> None:
    state = call("states.get_stream_state", *TARGET.values())

    assert isinstance(state, models.StreamState)
    assert isinstance(state.media, models.Media)
    media = (state.media.audio, state.media.video, state.media.screen_audio, state.media.screen_video)
    assert media == (True, False, False, False)
    assert (state.app_id, state.publishing, state.source) == (APP_ID, True, models.StreamStateSource.QUERY)
    # Nothing that the API answers is unknown to the client.
    found = (state, state.media, state.media_observed_at)
    assert [part.additional_properties for part in found] == [{}] * 3
    assert state.media_observed_at.audio == state.observed_at


def test_it_asks_about_several(call: Callable[..., Any], models: Any) -> None:
    targets = [models.Target(**TARGET), models.Target(room_id="class-1", user_id="nobody")]

    there, unknown = call("states.query_stream_states", body=models.StreamStateQuery(targets)).results

    assert (type(there), there.publishing) == (models.StreamState, True)
    assert (type(unknown), unknown.error, unknown.user_id) == (models.Problem, "TargetNotFound", "nobody")


def test_it_lists_a_room(call: Callable[..., Any]) -> None:
    asked = call("states.get_stream_state", *TARGET.values())

    page = call("states.list_room_stream_states", TARGET["room_id"])

    assert ([state.observed_at for state in page.results], page.next_token) == ([asked.observed_at], None)


def test_it_watches(call: Callable[..., Any], models: Any) -> None:
    watch = call("watches.watch_user", *TARGET.values(), body=models.WatchOptions(expires_in=600))
    others = call("watches.watch_users", body=models.WatchRequest([models.Target("class-1", "listener")])).watches
    page = call("watches.list_watches")
    ended = call("watches.unwatch_user", *TARGET.values())
    left = call("watches.list_watches").watches

    assert isinstance(watch, models.Watch)
    assert page.watches == [*others, watch]
    assert (ended, left) == (204, others)


def test_it_reads_a_problem(call: Callable[..., Any], models: Any) -> None:
    unknown = call("states.get_stream_state", "class-1", "nobody")
    refused = call("watches.watch_user", *TARGET.values(), body=models.WatchOptions(expires_in=0))

    assert (type(unknown), unknown.status, unknown.error) == (models.Problem, 404, "TargetNotFound")
    assert (type(refused), refused.status, refused.error) == (models.Problem, 400, "InvalidRequest")
    assert "expires_in" in refused.detail


def test_it_reads_what_the_gateway_answers(call: Callable[..., Any], models: Any, front: Front) -> None:
    unsigned = call("watches.list_watches", headers={})
    front._invoke = lambda function, event: Invocation({"errorType": "MemoryError"}, "Unhandled", 1)
    # This status is also one of problems.
    failed = call("states.get_stream_state", *TARGET.values())

    assert unsigned == models.GatewayMessage(message="Forbidden")
    assert failed == models.GatewayMessage(message="Internal Server Error")
