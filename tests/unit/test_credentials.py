"""The keys: every way in which a secret can be wrong, how long keys serve, and what a rejection costs."""

import io
import json
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from botocore.exceptions import ConnectTimeoutError, EndpointConnectionError, NoCredentialsError, ReadTimeoutError

from stream_state.adapters.credentials import (
    CachedSecret,
    callback_keys,
    parse_callback_keys,
    parse_signing_keys,
    signing_keys,
)
from stream_state.adapters.signing import SigningKeys
from stream_state.errors import CredentialsInvalid, CredentialsUnavailable, StreamStateError
from stream_state.settings import Settings, SettingsError
from tests.unit.fakes import Clock, FakeSecrets, aws_error

OLD = {"access_key_id": "old-access-key", "secret_access_key": "old-secret-key"}
NEW = {"access_key_id": "new-access-key", "secret_access_key": "new-secret-key", "session_token": "new-token"}
OLD_KEYS, NEW_KEYS = SigningKeys(**OLD), SigningKeys(**NEW)
DOWN = aws_error("InternalServiceError")
THREADS = 16

type Cached = CachedSecret[SigningKeys]
type MakeSecret = Callable[..., tuple[Cached, FakeSecrets]]


@pytest.fixture
def make_secret(clock: Clock) -> MakeSecret:
    """Makes the signing keys over a scripted secret."""

    def make(*values: Any, max_age_seconds: float = 300, clock: Any = clock) -> tuple[Cached, FakeSecrets]:
        client: Any = FakeSecrets(*values)
        return CachedSecret(client, "signing-keys", parse_signing_keys, max_age_seconds, clock), client

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
def test_signing_keys_are_read_in_both_spellings(secret: dict[str, object], keys: SigningKeys) -> None:
    assert parse_signing_keys(json.dumps(secret)) == keys


@pytest.mark.parametrize(
    ("secret", "keys"),
    [
        ({"callback_key": "a"}, ("a",)),
        ({"callback_key": "a", "previous_callback_key": ""}, ("a",)),
        ({"callback_key": "a", "previous_callback_key": None}, ("a",)),
        ({"callback_key": "a", "previous_callback_key": "b"}, ("a", "b")),
    ],
)
def test_callback_keys_are_the_present_and_the_previous_one(secret: dict[str, object], keys: tuple[str, ...]) -> None:
    assert parse_callback_keys(json.dumps(secret)) == keys


NOT_KEYS: tuple[object, ...] = (
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
NO_PAIR = "must hold access_key_id and secret_access_key (or AccessKeyId and SecretAccessKey)"


@pytest.mark.parametrize(
    ("parse", "text", "complaint"),
    [
        *(
            (parse, text, complaint)
            for parse in (parse_signing_keys, parse_callback_keys)
            for text, complaint in (
                (None, "is binary; store it as text"),
                ("", "is not JSON"),
                ("canary", "is not JSON"),
                ('{"access_key_id": "canary",}', "is not JSON"),
                ('\ufeff{"access_key_id": "canary"}', "begins with a byte order mark"),
                ('{"access_key_id": "canary", "access_key_id": "canary"}', "names a field twice"),
                ("[" * 100_000, "is not JSON"),
                ("null", "is not a JSON object"),
                ('["canary"]', "is not a JSON object"),
                ('"canary"', "is not a JSON object"),
            )
        ),
        *(
            (parse_signing_keys, json.dumps(secret), complaint)
            for secret, complaint in (
                ({}, NO_PAIR),
                ({"access_key_id": "canary"}, NO_PAIR),
                ({"secret_access_key": "canary"}, NO_PAIR),
                ({"ACCESS_KEY_ID": "canary", "secret_access_key": "canary"}, NO_PAIR),
                ({**OLD, "AccessKeyId": "canary"}, "holds access_key_id twice, in both spellings"),
                ({**OLD, "SecretAccessKey": "canary"}, "holds secret_access_key twice, in both spellings"),
                ({**NEW, "SessionToken": "canary"}, "holds session_token twice, in both spellings"),
                ({**OLD, "access_key_id": None}, "must hold access_key_id as text"),
                ({**OLD, "secret_access_key": ""}, "must hold secret_access_key as text"),
                *(
                    ({**NEW, name: value}, f"must hold {name} as text of printable ASCII without spaces")
                    for name in NEW
                    for value in NOT_KEYS
                ),
            )
        ),
        *(
            (parse_callback_keys, json.dumps(secret), complaint)
            for secret, complaint in (
                ({}, "must hold callback_key"),
                ({"previous_callback_key": "canary"}, "must hold callback_key"),
                ({"callback_key": ""}, "must hold callback_key as text"),
                ({"callback_key": None}, "must hold callback_key as text"),
                ({"callback_key": "can ary"}, "must hold callback_key as text"),
                ({"callback_key": "canary", "previous_callback_key": 1}, "must hold previous_callback_key as text"),
            )
        ),
    ],
)
def test_the_error_of_a_malformed_secret_names_the_fault_and_shows_nothing_of_the_secret(
    conforms: Callable[[str, Any], None], parse: Callable[[str | None], object], text: str | None, complaint: str
) -> None:
    with pytest.raises(CredentialsInvalid) as raised:
        parse(text)

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
def test_the_error_of_a_failed_read_says_whether_to_ask_again(
    make_secret: MakeSecret, failure: Exception, error: type[StreamStateError], shown: str
) -> None:
    secret, _ = make_secret(failure)

    with pytest.raises(error, match=r"with the keys|Secrets Manager") as raised:
        secret.keys()

    assert shown in str(raised.value)
    assert "canary" not in f"{raised.value!r}{raised.value.problem()}"
    assert raised.value.__suppress_context__


def test_keys_serve_until_their_age_has_passed(make_secret: MakeSecret, clock: Clock) -> None:
    secret, client = make_secret(OLD, NEW, max_age_seconds=300)

    assert [secret.keys() for _ in range(3)] == [OLD_KEYS] * 3
    clock.seconds += 299
    assert (secret.keys(), client.reads) == (OLD_KEYS, 1)
    clock.seconds += 1
    assert (secret.keys(), client.reads) == (NEW_KEYS, 2)


def test_an_age_of_zero_reads_the_keys_each_time(make_secret: MakeSecret) -> None:
    secret, client = make_secret(OLD, NEW, max_age_seconds=0)

    assert [secret.keys(), secret.keys()] == [OLD_KEYS, NEW_KEYS]
    assert client.reads == 2


@pytest.mark.parametrize(
    "failure", [DOWN, ReadTimeoutError(endpoint_url="https://x"), aws_error("AccessDeniedException"), "{"]
)
def test_earlier_keys_serve_on_while_the_secret_cannot_be_read(
    make_secret: MakeSecret, clock: Clock, logs: io.StringIO, failure: Any
) -> None:
    secret, client = make_secret(OLD, failure, NEW)
    secret.keys()
    clock.seconds += 301

    assert [secret.keys(), secret.keys()] == [OLD_KEYS, OLD_KEYS]
    assert client.reads == 2
    assert "The earlier keys serve on." in logs.getvalue()
    clock.seconds += 30
    assert (secret.keys(), client.reads) == (NEW_KEYS, 3)


def test_a_failed_first_read_is_tried_again(make_secret: MakeSecret, clock: Clock) -> None:
    secret, _ = make_secret(DOWN, OLD)
    with pytest.raises(CredentialsUnavailable):
        secret.keys()

    clock.seconds += 30

    assert secret.keys() == OLD_KEYS


def test_a_rejection_reads_the_secret_again(make_secret: MakeSecret, clock: Clock) -> None:
    secret, client = make_secret(OLD, NEW)
    signed_at = clock.monotonic()
    rejected = secret.keys()

    assert secret.keys_after_rejection(rejected, clock.monotonic()) == NEW_KEYS
    assert (secret.keys(), client.reads) == (NEW_KEYS, 2)
    # And a later rejection of the earlier keys reads nothing
    assert (secret.keys_after_rejection(rejected, signed_at), client.reads) == (NEW_KEYS, 2)


def test_a_rejection_before_any_read_reads(make_secret: MakeSecret, clock: Clock) -> None:
    secret, client = make_secret(NEW)

    assert secret.keys_after_rejection(OLD_KEYS, clock.monotonic()) == NEW_KEYS
    assert client.reads == 1


@pytest.mark.parametrize(
    ("failure", "error"), [(DOWN, CredentialsUnavailable), (aws_error("AccessDeniedException"), CredentialsInvalid)]
)
def test_rejected_keys_do_not_serve_on(
    make_secret: MakeSecret, clock: Clock, failure: Exception, error: type[StreamStateError]
) -> None:
    secret, _ = make_secret(OLD, failure)
    rejected = secret.keys()

    with pytest.raises(error):
        secret.keys_after_rejection(rejected, clock.monotonic())


def test_earlier_keys_serve_on_while_the_read_for_a_rejection_fails(make_secret: MakeSecret) -> None:
    class Interrupted(Clock):
        """A clock at whose next reading another thread has its turn."""

        interrupt: Callable[[], object] | None = None

        def monotonic(self) -> float:
            now, interrupt, self.interrupt = super().monotonic(), self.interrupt, None
            if interrupt:
                interrupt()
            return now

    def reject() -> None:
        with pytest.raises(CredentialsUnavailable):
            secret.keys_after_rejection(OLD_KEYS, signed_at=1e9)

    clock = Interrupted()
    secret, client = make_secret(OLD, DOWN, DOWN, clock=clock)
    secret.keys()
    clock.seconds += 301
    clock.interrupt = reject

    assert (secret.keys(), client.reads) == (OLD_KEYS, 2)


class CountingClock(Clock):
    """A clock that knows how often it was read, which each thread that wants keys does first."""

    def __init__(self) -> None:
        super().__init__()
        self.readings = threading.Semaphore(0)

    def monotonic(self) -> float:
        self.readings.release()
        return super().monotonic()


def in_threads(work: Callable[[], object]) -> list[object]:
    """Results, or errors by class, of threads that begin together."""
    results: list[object] = []
    start = threading.Barrier(THREADS)

    def run() -> None:
        start.wait(timeout=10)
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


@pytest.mark.parametrize(
    ("value", "result", "most_reads"), [(OLD, OLD_KEYS, 1), (DOWN, CredentialsUnavailable, 2)], ids=["read", "failing"]
)
def test_many_threads_wait_for_one_first_read(
    make_secret: MakeSecret, value: Any, result: object, most_reads: int
) -> None:
    # Given a first read that ends when all threads have asked, and a second one that ends at once
    clock = CountingClock()

    def slow() -> Any:
        # The thread that reads has looked at the clock twice.
        for _ in range(THREADS + 1):
            assert clock.readings.acquire(timeout=10)
        if isinstance(value, Exception):
            raise value
        return value

    secret, client = make_secret(slow, value, clock=clock)

    assert in_threads(secret.keys) == [result] * THREADS
    assert client.reads <= most_reads


@pytest.mark.parametrize(
    ("value", "result"),
    [(NEW, NEW_KEYS), (OLD, OLD_KEYS), (DOWN, CredentialsUnavailable)],
    ids=["rotated", "the same", "failing"],
)
def test_many_rejections_at_once_cost_one_read(
    make_secret: MakeSecret, clock: Clock, value: Any, result: object
) -> None:
    secret, client = make_secret(OLD, value)
    rejected, signed_at = secret.keys(), clock.monotonic()

    results = in_threads(lambda: secret.keys_after_rejection(rejected, signed_at))

    assert results == [result] * THREADS
    assert client.reads == 2


def test_while_one_thread_reads_again_the_others_go_on_with_the_earlier_keys(
    make_secret: MakeSecret, clock: Clock
) -> None:
    asked, answered = threading.Event(), threading.Event()

    def slow() -> dict[str, str]:
        asked.set()
        answered.wait(timeout=10)
        return NEW

    secret, client = make_secret(OLD, slow)
    secret.keys()
    clock.seconds += 301
    reader = threading.Thread(target=secret.keys)
    reader.start()
    asked.wait(timeout=10)

    assert secret.keys() == OLD_KEYS

    answered.set()
    reader.join()
    assert (secret.keys(), client.reads) == (NEW_KEYS, 2)


@pytest.mark.parametrize(
    ("secret_id", "region"),
    [
        ("arn:aws:secretsmanager:ap-southeast-1:123456789012:secret:mine-AbCdEf", "ap-southeast-1"),
        ("arn:aws:secretsmanager:eu-central-1:123456789012:secret:mine-AbCdEf", "eu-central-1"),
        ("mine", "eu-central-1"),
    ],
)
@pytest.mark.parametrize(("make", "name"), [(signing_keys, "rtc_secret_id"), (callback_keys, "rtc_callback_secret_id")])
def test_a_secret_is_read_in_its_region(
    monkeypatch: pytest.MonkeyPatch,
    settings: Settings,
    make: Callable[[Settings], CachedSecret[Any]],
    name: str,
    secret_id: str,
    region: str,
) -> None:
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(variable, "eu-central-1")

    values: Any = {name: secret_id}

    secret = make(replace(settings, **values))

    assert secret.client.meta.endpoint_url == f"https://secretsmanager.{region}.amazonaws.com"


@pytest.mark.parametrize(("make", "name"), [(signing_keys, "RTC_SECRET_ID"), (callback_keys, "RTC_CALLBACK_SECRET_ID")])
def test_the_secret_must_be_named(settings: Settings, make: Callable[[Settings], object], name: str) -> None:
    with pytest.raises(SettingsError, match=f"{name} is not set"):
        make(settings)
