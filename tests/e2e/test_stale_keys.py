"""While the secret cannot be read anew, the keys of the last good reading serve on."""

from collections.abc import Mapping

import pytest

from tests.e2e.http import Http
from tests.sandbox.aws import failure
from tests.sandbox.stack import Sandbox

PATH = "/rooms/class-1/users/teacher/stream-state"


@pytest.fixture(scope="module")
def environment() -> Mapping[str, str]:
    # Each call reads the secret.
    return {"SECRET_MAX_AGE": "0"}


@pytest.fixture
def warm(cold: Sandbox, http: Http) -> Sandbox:
    """A process that has read good keys once, and just now."""
    cold.simulator.publish("class-1", "teacher", "Audio")
    assert http.get(PATH).status == 200
    return cold


@pytest.mark.parametrize("text", ["{", '{"access_key_id": "1"}'])
def test_a_spoiled_secret_leaves_the_earlier_keys_serving(warm: Sandbox, http: Http, text: str) -> None:
    warm.put_secret(text)
    said = len(warm.log("ApiFunction"))

    assert [http.get(PATH).status for _ in range(3)] == [200] * 3

    assert "The earlier keys serve on" in warm.log("ApiFunction")[said:]


@pytest.mark.parametrize("code", ["InternalServiceError", "AccessDeniedException"])
def test_a_failing_secrets_manager_leaves_the_earlier_keys_serving(warm: Sandbox, http: Http, code: str) -> None:
    reply = failure(code)
    warm.aws.intercept = lambda operation, call: reply if operation.startswith("secretsmanager.") else None

    assert [http.get(PATH).status for _ in range(3)] == [200] * 3
