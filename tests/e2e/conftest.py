"""One sandbox for each module, as if new for each test: the built artifacts, AWS and the simulator on loopback."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from tests.e2e import schemas
from tests.e2e.contents import empty_table
from tests.e2e.http import Http
from tests.e2e.rest_api import RestApi
from tests.sandbox.signatures import KEYS
from tests.sandbox.stack import Sandbox
from tests.vendor import official_signer


@pytest.fixture(scope="module")
def parameters() -> Mapping[str, str]:
    """Parameters of the stack besides its defaults; a module may have others."""
    return {}


@pytest.fixture(scope="module")
def environment() -> Mapping[str, str]:
    """Variables laid over those of the functions; a module may have others."""
    return {}


@pytest.fixture(scope="module")
def started(parameters: Mapping[str, str], environment: Mapping[str, str]) -> Iterator[Sandbox]:
    """A sandbox whose simulator checks each signature with the vendor's own package."""
    with Sandbox(parameters, environment, verify=official_signer.verify) as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(started: Sandbox) -> Sandbox:
    """The sandbox without the remains of another test, warm processes excepted."""
    simulator, aws = started.simulator, started.aws
    simulator.rotate(KEYS)
    simulator.fault = lambda exchange: None
    simulator.unknown_is_error = True
    # A test may need more calls than the vendor allows; the limit has tests of its own.
    simulator.calls_per_second = None
    simulator.next_faults.clear()
    simulator.rooms.clear()
    simulator.arrivals.clear()
    aws.intercept = lambda operation, call: None
    aws.next_replies.clear()
    started.put_keys(KEYS)
    empty_table(started)
    started.receive()
    return started


@pytest.fixture
def cold(sandbox: Sandbox) -> Iterator[Sandbox]:
    """The sandbox with cold functions before and after."""
    sandbox.functions.restart()
    yield sandbox
    sandbox.functions.restart()


@pytest.fixture
def http(sandbox: Sandbox) -> Http:
    """The HTTP API, payload 2.0."""
    return Http(sandbox.api_url)


@pytest.fixture
def callback_http(sandbox: Sandbox) -> Http:
    """The HTTP API of callback events, payload 2.0."""
    return Http(sandbox.callback_api_url)


@pytest.fixture(params=["2.0", "1.0"])
def either_http(request: pytest.FixtureRequest, sandbox: Sandbox) -> Iterator[Http]:
    """The HTTP API and a REST API, one after the other."""
    if request.param == "2.0":
        yield Http(sandbox.api_url)
        return
    with RestApi(sandbox.template.routes(), sandbox.invoke) as rest_api:
        yield Http(rest_api.url)


@pytest.fixture(scope="session")
def conforms() -> Callable[[str, Any], None]:
    """Checks that a document keeps the schema of that name in docs."""
    return schemas.conforms
