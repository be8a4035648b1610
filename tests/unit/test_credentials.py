"""The signing keys: every way in which a secret can be wrong, how long one serves, and what a rejection costs."""

import io
import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import ConnectTimeoutError, EndpointConnectionError, NoCredentialsError, ReadTimeoutError

from stream_state.credentials import SecretKeys, parse_keys
from stream_state.errors import CredentialsInvalid, CredentialsUnavailable, StreamStateError
from stream_state.settings import Settings, SettingsError
from stream_state.signing import SigningKeys
from tests.sandbox.static_keys import StaticKeys
from tests.unit.fakes import Clock, FakeSecrets, Script, aws_error

OLD = {"access_key_id": "old-access-key", "secret_access_key": "old-secret-key"}
NEW = {"access_key_id": "new-access-key", "secret_access_key": "new-secret-key", "session_token": "new-token"}
OLD_KEYS, NEW_KEYS = SigningKeys(**OLD), SigningKeys(**NEW)
DOWN = aws_error("InternalServiceError")


@pytest.fixture
def source(clock: Clock) -> Callable[..., tuple[SecretKeys, FakeSecrets]]:
    """Makes a key source over a scripted secret."""

    def make(*values: Any, max_age_seconds: float = 300) -> tuple[SecretKeys, FakeSecrets]:
        secrets = FakeSecrets(*values)
        return SecretKeys(secrets, "signing-keys", max_age_seconds, clock.monotonic), secrets

    return make


@pytest.mark.parametrize(
    ("secret", "keys"),
    [
        (OLD, OLD_KEYS),
        (NEW, NEW_KEYS),
        ({"AccessKeyId": "a", "SecretAccessKey": "b==", "SessionToken": "c"}, SigningKeys("a", "b==", "c")),
        ({"AccessKeyId": "a", "secret_access_key": "b"}, SigningKeys("a", "b")),
        ({**OLD, "session_token": None}, OLD_KEYS),
        ({**OLD, "SessionToken": ""}, OLD_KEYS),
        ({**OLD, "note": ["of the operator"]}, OLD_KEYS),
    ],
)
def test_a_secret_is_read_in_both_spellings(secret: dict[str, object], keys: SigningKeys) -> None:
    assert parse_keys(json.dumps(secret)) == keys


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (None, "is binary; store it as text"),
        ("", "is not JSON"),
        ("canary", "is not JSON"),
        ('{"access_key_id": "canary",}', "is not JSON"),
        ('{"access_key_id": "canary", "access_key_id": "canary"}', "names a member twice"),
        ("[" * 100_000, "is not JSON"),
        ("null", "is not a JSON object"),
        ('["canary"]', "is not a JSON object"),
        ('"canary"', "is not a JSON object"),
        ("{}", "must hold access_key_id and secret_access_key (or AccessKeyId and SecretAccessKey)"),
        ('{"access_key_id": "canary"}', "must hold access_key_id and secret_access_key"),
        ('{"secret_access_key": "canary"}', "must hold access_key_id and secret_access_key"),
        ('{"ACCESS_KEY_ID": "canary", "secret_access_key": "canary"}', "must hold access_key_id and"),
        (json.dumps({**OLD, "AccessKeyId": "canary"}), "holds access_key_id twice, in both spellings"),
        (json.dumps({**OLD, "SecretAccessKey": "canary"}), "holds secret_access_key twice, in both spellings"),
        (json.dumps({**NEW, "SessionToken": "canary"}), "holds session_token twice, in both spellings"),
        *(
            (json.dumps({**NEW, name: value}), f"must hold {name} as text of printable ASCII without spaces")
            for name in NEW
            for value in (
                "canary ",
                " canary",
                "can ary",
                "canary\n",
                "canary\u5bc6",
                "canary\x00",
                7,
                True,
                ["canary"],
                {},
            )
        ),
        (json.dumps({**OLD, "access_key_id": None}), "must hold access_key_id as text"),
        (json.dumps({**OLD, "secret_access_key": ""}), "must hold secret_access_key as text"),
    ],
)
def test_a_malformed_secret_is_an_error_that_says_what_is_wrong_and_not_what_it_holds(
    source: Callable[..., tuple[SecretKeys, FakeSecrets]],
    conforms: Callable[[str, Any], None],
    text: str | None,
    complaint: str,
) -> None:
    keys, _ = source(lambda: text)

    with pytest.raises(CredentialsInvalid) as raised:
        keys.keys()

    conforms("problem", raised.value.problem())
    assert str(raised.value).startswith(f"The secret with the keys {complaint}")
    assert "canary" not in f"{raised.value!r}{raised.value.problem()}"


@pytest.mark.parametrize(
    ("failure", "error", "shown"),
    [
        (aws_error("ResourceNotFoundException"), CredentialsInvalid, "does not exist or has no value yet"),
        (aws_error("AccessDeniedException"), CredentialsInvalid, "may not be read by this function"),
        (aws_error("DecryptionFailure"), CredentialsInvalid, "cannot be decrypted"),
        (aws_error("InvalidRequestException"), CredentialsInvalid, "marked for deletion"),
        (aws_error("InvalidParameterException"), CredentialsInvalid, "has a name that"),
        (aws_error("ValidationException"), CredentialsInvalid, "has a name that"),
        (aws_error("ThrottlingException"), CredentialsUnavailable, "did not return the keys"),
        (aws_error("InternalServiceError"), CredentialsUnavailable, "did not return the keys"),
        (aws_error(""), CredentialsUnavailable, "did not return the keys"),
        (ReadTimeoutError(endpoint_url="https://canary"), CredentialsUnavailable, "could not be reached (ReadTimeout"),
        (ConnectTimeoutError(endpoint_url="https://canary"), CredentialsUnavailable, "could not be reached (Connect"),
        (EndpointConnectionError(endpoint_url="https://canary"), CredentialsUnavailable, "could not be reached (End"),
        (NoCredentialsError(), CredentialsUnavailable, "could not be reached (NoCredentials"),
    ],
    ids=str,
)
def test_a_secret_that_cannot_be_read_is_an_error_that_says_whether_to_ask_again(
    source: Callable[..., tuple[SecretKeys, FakeSecrets]],
    failure: Exception,
    error: type[StreamStateError],
    shown: str,
) -> None:
    keys, _ = source(failure)

    with pytest.raises(error, match=r"with the keys|Secrets Manager") as raised:
        keys.keys()

    assert shown in str(raised.value)
    assert "canary" not in f"{raised.value!r}{raised.value.problem()}"
    assert raised.value.__suppress_context__


def test_the_keys_are_read_again_when_their_age_has_passed(
    source: Callable[..., tuple[SecretKeys, FakeSecrets]], clock: Clock
) -> None:
    keys, secrets = source(OLD, NEW, max_age_seconds=300)

    assert [keys.keys() for _ in range(3)] == [OLD_KEYS] * 3
    clock.seconds += 299
    assert (keys.keys(), secrets.reads) == (OLD_KEYS, 1)
    clock.seconds += 1
    assert (keys.keys(), secrets.reads) == (NEW_KEYS, 2)


def test_an_age_of_zero_reads_the_keys_each_time(source: Callable[..., tuple[SecretKeys, FakeSecrets]]) -> None:
    keys, secrets = source(OLD, NEW, max_age_seconds=0)

    assert [keys.keys(), keys.keys()] == [OLD_KEYS, NEW_KEYS]
    assert secrets.reads == 2


@pytest.mark.parametrize(
    "failure", [DOWN, ReadTimeoutError(endpoint_url="https://x"), aws_error("AccessDeniedException"), "{"]
)
def test_earlier_keys_serve_on_while_the_secret_cannot_be_read(
    source: Callable[..., tuple[SecretKeys, FakeSecrets]], clock: Clock, logs: io.StringIO, failure: Any
) -> None:
    keys, secrets = source(OLD, failure, NEW)
    keys.keys()
    clock.seconds += 301

    assert [keys.keys(), keys.keys()] == [OLD_KEYS, OLD_KEYS]
    assert secrets.reads == 2
    assert "The earlier keys serve on." in logs.getvalue()
    clock.seconds += 30
    assert (keys.keys(), secrets.reads) == (NEW_KEYS, 3)


def test_a_failed_first_read_is_tried_again(
    source: Callable[..., tuple[SecretKeys, FakeSecrets]], clock: Clock
) -> None:
    keys, _ = source(DOWN, OLD)
    with pytest.raises(CredentialsUnavailable):
        keys.keys()

    clock.seconds += 30

    assert keys.keys() == OLD_KEYS


def test_a_rejection_reads_the_secret_anew(source: Callable[..., tuple[SecretKeys, FakeSecrets]], clock: Clock) -> None:
    keys, secrets = source(OLD, NEW)
    rejected = keys.keys()

    assert keys.keys_after_rejection(rejected, clock.monotonic()) == NEW_KEYS
    assert (keys.keys(), secrets.reads) == (NEW_KEYS, 2)


def test_a_rejection_of_earlier_keys_reads_nothing(
    source: Callable[..., tuple[SecretKeys, FakeSecrets]], clock: Clock
) -> None:
    keys, secrets = source(OLD, NEW)
    signed_at = clock.monotonic()
    rejected = keys.keys()
    keys.keys_after_rejection(rejected, clock.monotonic())

    assert keys.keys_after_rejection(rejected, signed_at) == NEW_KEYS
    assert secrets.reads == 2


def test_a_rejection_before_any_read_reads(source: Callable[..., tuple[SecretKeys, FakeSecrets]], clock: Clock) -> None:
    keys, secrets = source(NEW)

    assert keys.keys_after_rejection(OLD_KEYS, clock.monotonic()) == NEW_KEYS
    assert secrets.reads == 1


@pytest.mark.parametrize(
    ("failure", "error"), [(DOWN, CredentialsUnavailable), (aws_error("AccessDeniedException"), CredentialsInvalid)]
)
def test_rejected_keys_do_not_serve_on(
    source: Callable[..., tuple[SecretKeys, FakeSecrets]],
    clock: Clock,
    failure: Exception,
    error: type[StreamStateError],
) -> None:
    keys, _ = source(OLD, failure)
    rejected = keys.keys()

    with pytest.raises(error):
        keys.keys_after_rejection(rejected, clock.monotonic())


class CountingLock:
    """A lock that lets a test wait until so many have come to it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._arrivals = threading.Semaphore(0)

    def wait_for(self, count: int) -> None:
        for _ in range(count):
            self._arrivals.acquire(timeout=10)

    def acquire(self, *, blocking: bool = True) -> bool:
        self._arrivals.release()
        return self._lock.acquire(blocking)

    def release(self) -> None:
        self._lock.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *error: object) -> None:
        self.release()


THREADS = 16


def in_threads(keys: SecretKeys, secrets: FakeSecrets, value: Any, work: Callable[[], object]) -> list[object]:
    """Results, or errors by class, of threads that have all come before the first of their reads ends with `value`."""
    lock = CountingLock()
    keys._lock = lock
    later = secrets.script.answers

    def slow() -> Any:
        lock.wait_for(THREADS)
        secrets.script.answers = later
        return Script(value).next()

    secrets.script.answers = [slow]
    results: list[object] = []

    def run() -> None:
        try:
            results.append(work())
        except StreamStateError as error:
            results.append(type(error))

    threads = [threading.Thread(target=run) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_many_threads_read_the_first_keys_once(source: Callable[..., tuple[SecretKeys, FakeSecrets]]) -> None:
    keys, secrets = source(NEW)

    assert in_threads(keys, secrets, OLD, keys.keys) == [OLD_KEYS] * THREADS
    assert secrets.reads == 1


def test_many_threads_do_not_wait_for_one_failing_read_each(
    source: Callable[..., tuple[SecretKeys, FakeSecrets]],
) -> None:
    keys, secrets = source(DOWN)

    assert in_threads(keys, secrets, DOWN, keys.keys) == [CredentialsUnavailable] * THREADS
    assert secrets.reads <= 2


@pytest.mark.parametrize(
    ("value", "result"),
    [(NEW, NEW_KEYS), (OLD, OLD_KEYS), (DOWN, CredentialsUnavailable)],
    ids=["rotated", "the same", "failing"],
)
def test_many_rejections_at_once_read_the_secret_once(
    source: Callable[..., tuple[SecretKeys, FakeSecrets]], clock: Clock, value: Any, result: object
) -> None:
    keys, secrets = source(OLD)
    rejected, signed_at = keys.keys(), clock.monotonic()

    results = in_threads(keys, secrets, value, lambda: keys.keys_after_rejection(rejected, signed_at))

    assert results == [result] * THREADS
    assert secrets.reads == 2


def test_while_one_thread_reads_again_the_others_go_on_with_the_earlier_keys(
    source: Callable[..., tuple[SecretKeys, FakeSecrets]], clock: Clock
) -> None:
    asked, answered = threading.Event(), threading.Event()

    def slow() -> dict[str, str]:
        asked.set()
        answered.wait(timeout=10)
        return NEW

    keys, secrets = source(OLD, slow)
    keys.keys()
    clock.seconds += 301
    reader = threading.Thread(target=keys.keys)
    reader.start()
    asked.wait()

    assert keys.keys() == OLD_KEYS

    answered.set()
    reader.join()
    assert (keys.keys(), secrets.reads) == (NEW_KEYS, 2)


def test_keys_given_by_hand_never_change() -> None:
    keys = StaticKeys(OLD_KEYS)

    assert keys.keys() == keys.keys_after_rejection(OLD_KEYS, 0.0) == OLD_KEYS


def test_the_client_is_made_with_short_time_outs(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, "eu-central-1")
    named = Settings.from_environment({"RTC_APP_IDS": "app-1", "RTC_SECRET_ID": "signing-keys"})

    config = SecretKeys.from_settings(named)._client.meta.config

    assert config.connect_timeout + config.read_timeout <= 5
    assert config.retries["total_max_attempts"] <= 2
    with pytest.raises(SettingsError, match="RTC_SECRET_ID is not set"):
        SecretKeys.from_settings(settings)
