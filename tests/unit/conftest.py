"""Fixtures of the unit tests: no sockets, and one fixture for each thing that a test needs."""

import contextlib
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from stream_state import observability
from stream_state.adapters.signing import SigningKeys
from stream_state.adapters.volcengine import VolcengineClient
from stream_state.domain.targets import Target
from stream_state.services import asking
from stream_state.settings import Settings
from tests.unit.fakes import Clock, FakeAdapter, FakeQueue, FreeLimiter
from tests.unit.memory import World
from tests.vendor.static_keys import StaticKeys

# A busy machine makes single examples slow.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(autouse=True)
def no_sockets(socket_disabled: None) -> None:
    """Let a test fail that opens a socket."""


@pytest.fixture(autouse=True)
def no_metrics_left() -> Iterator[None]:
    """Leave no recorded metric to the next test."""
    yield
    with contextlib.redirect_stdout(io.StringIO()):
        observability.publish_metrics()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def adapter() -> FakeAdapter:
    return FakeAdapter()


@pytest.fixture
def queue_client() -> FakeQueue:
    return FakeQueue()


@pytest.fixture
def settings() -> Settings:
    return Settings.from_environment({"RTC_APP_IDS": "app-1,app-2"})


@pytest.fixture
def target() -> Target:
    return Target("app-1", "class-1", "teacher")


@pytest.fixture
def signing_keys() -> SigningKeys:
    return SigningKeys("unit-access-key", "unit-secret-key", "unit-session-token")


@pytest.fixture
def limiter() -> FreeLimiter:
    return FreeLimiter()


@pytest.fixture
def make_rtc(
    settings: Settings, adapter: FakeAdapter, limiter: FreeLimiter, clock: Clock
) -> Callable[[Any], VolcengineClient]:
    """Makes a client that signs with the keys of a source."""
    return lambda keys: VolcengineClient(settings, keys, lambda _: limiter, adapter=adapter, clock=clock)


@pytest.fixture
def rtc(make_rtc: Callable[[Any], VolcengineClient], signing_keys: SigningKeys) -> VolcengineClient:
    return make_rtc(StaticKeys(signing_keys))


@pytest.fixture
def world(clock: Clock) -> World:
    return World(clock)


@pytest.fixture
def one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lookups ask about their targets in order."""
    monkeypatch.setattr(asking, "MAX_CONCURRENCY", 1)


@pytest.fixture
def logs(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What the logger wrote, one JSON object a line."""
    text = io.StringIO()
    monkeypatch.setattr(observability.logger.registered_handler, "stream", text)
    return text


@pytest.fixture(scope="session")
def conforms() -> Callable[[str, Any], None]:
    """Checks that a document keeps the schema of that name in docs, after a round trip through JSON."""
    schemas = {path.name.split(".")[0]: json.loads(path.read_text()) for path in DOCS.glob("*.schema.json")}
    registry: Registry[Any] = Registry().with_resources(
        (schema["$id"], Resource.from_contents(schema)) for schema in schemas.values()
    )
    validators = {name: Draft202012Validator(schema, registry=registry) for name, schema in schemas.items()}

    def check(name: str, document: Any) -> None:
        validators[name].validate(json.loads(json.dumps(document, allow_nan=False)))

    return check
