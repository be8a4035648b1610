"""A client that a public generator makes from docs/openapi.yaml asks, lists, watches and reads problems."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.contract import DOCUMENT, Front
from tests.sandbox.functions import REGION, Invocation
from tests.sandbox.simulator import APP_ID
from tests.sandbox.stack import REPOSITORY, Sandbox

TARGET = {"room_id": "class-1", "user_id": "teacher"}
PACKAGE = "stream_state_client"
PAGE = (REPOSITORY / "docs" / "events.md").read_text()


@pytest.fixture(scope="module", autouse=True)
def generated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The package, which can be imported, made by the command of the page; any warning is a failure."""
    found = re.search(r"^openapi-python-client (.*)$", PAGE, re.MULTILINE)
    assert found
    folder, programs = tmp_path_factory.mktemp("generated"), Path(sys.executable).parent
    arguments = found[1].replace("docs/openapi.yaml", str(DOCUMENT)).split()
    done = subprocess.run(
        [programs / "openapi-python-client", *arguments, "--fail-on-warning"],
        cwd=folder,
        env=os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr, "warning" in done.stdout.lower()) == (0, "", False), done.stdout
    sys.path.insert(0, str(folder))
    yield
    sys.path.remove(str(folder))


@pytest.fixture
def front(sandbox: Sandbox) -> Iterator[Front]:
    sandbox.simulator.publish(TARGET["room_id"], TARGET["user_id"], "Audio")
    with Front(sandbox) as front:
        yield front


@pytest.fixture
def page(front: Front, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the code of the page leaves: an answer, and how requests get a signature."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "sandbox")
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    left: dict[str, Any] = {}
    exec(re.sub(r"https://[^\"]*", front.url, code), left)  # noqa: S102  # it is what the test is about
    return left


@pytest.fixture
def call(front: Front, page: dict[str, Any]) -> Callable[..., Any]:
    """Calls an operation by its name; the parsed response, or the status if there is none."""

    def call(operation: str, *arguments: str, is_signed: bool = True, **options: Any) -> Any:
        module = import_module(f"{PACKAGE}.api.{operation}")
        options_of_httpx = {"auth": page["AwsSignature"]() if is_signed else None}
        with page["Client"](base_url=front.url, httpx_args=options_of_httpx) as client:
            response = module.sync_detailed(*arguments, client=client, **options)
        return response.parsed if response.parsed is not None else response.status_code

    return call


@pytest.fixture
def models() -> Any:
    return import_module(f"{PACKAGE}.models")


def test_it_asks(page: dict[str, Any], models: Any) -> None:
    state = page["answer"]

    assert isinstance(state, models.StreamState)
    assert isinstance(state.media, models.Media)
    media = (state.media.audio, state.media.video, state.media.screen_audio, state.media.screen_video)
    assert media == (True, False, False, False)
    assert (state.app_id, state.publishing, state.source) == (APP_ID, True, models.StreamStateSource.QUERY)
    assert state.media_observed_at.audio == state.observed_at
    # Nothing that the API answers is unknown to the client.
    assert [part.additional_properties for part in (state, state.media, state.media_observed_at)] == [{}] * 3


def test_it_asks_about_several(call: Callable[..., Any], models: Any) -> None:
    targets = [models.Target(**TARGET), models.Target(room_id="class-1", user_id="nobody")]

    there, unknown = call("states.query_stream_states", body=models.StreamStateQuery(targets)).results

    assert (type(there), there.publishing) == (models.StreamState, True)
    assert (type(unknown), unknown.error, unknown.user_id) == (models.Problem, "TargetNotFound", "nobody")


def test_it_lists_a_room(call: Callable[..., Any], page: dict[str, Any]) -> None:
    listed = call("states.list_room_stream_states", TARGET["room_id"])

    assert ([state.observed_at for state in listed.results], listed.next_token) == ([page["answer"].observed_at], None)


def test_it_watches(call: Callable[..., Any], models: Any) -> None:
    watch = call("watches.watch_user", *TARGET.values(), body=models.WatchOptions(expires_in=600))
    others = call("watches.watch_users", body=models.WatchRequest([models.Target("class-1", "listener")])).watches
    listed = call("watches.list_watches").watches
    ended = call("watches.unwatch_user", *TARGET.values())
    left = call("watches.list_watches").watches

    assert isinstance(watch, models.Watch)
    assert listed == [*others, watch]
    assert (ended, left) == (204, others)


def test_it_reads_a_problem(call: Callable[..., Any], models: Any) -> None:
    unknown = call("states.get_stream_state", "class-1", "nobody")
    refused = call("watches.watch_user", *TARGET.values(), body=models.WatchOptions(expires_in=0))

    assert (type(unknown), unknown.status, unknown.error) == (models.Problem, 404, "TargetNotFound")
    assert (type(refused), refused.status, refused.error) == (models.Problem, 400, "InvalidRequest")
    assert "expires_in" in refused.detail


def test_it_reads_what_the_gateway_answers(call: Callable[..., Any], models: Any, front: Front) -> None:
    unsigned = call("watches.list_watches", is_signed=False)
    front.invoke = lambda function, event: Invocation({"errorType": "MemoryError"}, "Unhandled", 1)
    # This status is also one of problems.
    failed = call("states.get_stream_state", *TARGET.values())

    assert unsigned == models.GatewayMessage(message="Forbidden")
    assert failed == models.GatewayMessage(message="Internal Server Error")
