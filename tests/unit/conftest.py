"""Fixtures of the unit tests: no sockets, and one fixture for each thing that a test needs."""

import contextlib
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from stream_state import observability
from stream_state.model import Target
from stream_state.rtc import RtcClient
from stream_state.settings import Settings
from stream_state.signing import SigningKeys
from tests.sandbox.static_keys import StaticKeys
from tests.unit.fakes import Clock, FakeAdapter, FakeQueue, FreeLimiter

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
def jitters() -> list[tuple[float, float]]:
    """The bounds that a random pause was asked for, in order."""
    return []


@pytest.fixture
def longest(jitters: list[tuple[float, float]]) -> Callable[[float, float], float]:
    """A source of jitter that always gives the longest pause."""

    def jitter(low: float, high: float) -> float:
        jitters.append((low, high))
        return high

    return jitter


@pytest.fixture
def make_rtc(
    settings: Settings,
    adapter: FakeAdapter,
    limiter: FreeLimiter,
    clock: Clock,
    longest: Callable[[float, float], float],
) -> Callable[[Any], RtcClient]:
    """Makes a client that signs with the keys of a source."""

    def make(keys: Any) -> RtcClient:
        return RtcClient(
            settings,
            keys,
            limiter,
            adapter=adapter,
            clock=clock.monotonic,
            wall_clock=clock.wall,
            sleep=clock.sleep,
            jitter=longest,
        )

    return make


@pytest.fixture
def rtc(make_rtc: Callable[[Any], RtcClient], signing_keys: SigningKeys) -> RtcClient:
    return make_rtc(StaticKeys(signing_keys))


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
