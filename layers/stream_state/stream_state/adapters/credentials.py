"""The signing keys and the callback keys: read from Secrets Manager, cached, read again when they are rejected."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, Any, cast

from botocore.exceptions import BotoCoreError, ClientError

from stream_state.adapters import aws
from stream_state.clock import CLOCK, Clock
from stream_state.domain.parsing import JsonError, parse_json
from stream_state.errors import CredentialsInvalid, CredentialsUnavailable, StreamStateError
from stream_state.observability import add_metric, logger
from stream_state.settings import Settings

if TYPE_CHECKING:
    from stream_state.adapters.signing import SigningKeys

# After a failed read the earlier value serves for so long before the next one.
_RETRY_AFTER_SECONDS = 10
# Errors that stay after a second request: the fault, and how to fix it.
_REFUSALS: Mapping[str, str] = {
    "ResourceNotFoundException": "does not exist or has no value yet: store the keys in it with put-secret-value",
    "AccessDeniedException": "may not be read by this function: check the function's policy and the secret's",
    "DecryptionFailure": "cannot be decrypted: check that the function may use the secret's KMS key",
    "InvalidRequestException": "cannot be read in its present state, for example because it is marked for deletion",
    "InvalidParameterException": "has a name that Secrets Manager does not accept",
    "ValidationException": "has a name that Secrets Manager does not accept",
}


@dataclass(eq=False, repr=False)
class CachedSecret[T]:
    """The keys in a secret, cached; safe to share among threads."""

    client: Any
    secret_id: str
    parse: Callable[[str | None], T]
    max_age_seconds: float
    clock: Clock = CLOCK
    _lock: Lock = field(default_factory=Lock, init=False)
    _keys: T | None = field(default=None, init=False)
    _read_at: float = field(default=-math.inf, init=False)
    _stale_at: float = field(default=-math.inf, init=False)
    _failure: StreamStateError | None = field(default=None, init=False)

    def keys(self) -> T:
        """The keys, read again after `max_age_seconds`; if that fails the earlier keys serve for a while.

        Raises `CredentialsInvalid` or `CredentialsUnavailable` if there are no earlier keys.
        """
        asked_at, earlier = self.clock.monotonic(), self._keys
        # While one thread reads, the others go on with the earlier keys; without any they wait.
        if earlier is not None and (asked_at < self._stale_at or self._lock.locked()):
            return earlier
        with self._lock:
            if self._keys is not None and self.clock.monotonic() < self._stale_at:
                return self._keys
            try:
                if self._failure and self._read_at >= asked_at:
                    # Another thread's read failed while this thread waited for it.
                    raise self._failure
                return self._read()
            except StreamStateError as error:
                if self._keys is None:
                    raise
                self._stale_at = self.clock.monotonic() + _RETRY_AFTER_SECONDS
                logger.warning("The earlier keys serve on. " + error.detail, extra={"error": error.name})
                return self._keys

    def keys_after_rejection(self, rejected: T, signed_at: float) -> T:
        """The keys to try after the rejection of a call signed at `signed_at` (monotonic seconds): one read for many.

        Raises `CredentialsInvalid` or `CredentialsUnavailable`: rejected keys do not serve on.
        """
        with self._lock:
            if self._keys is None or (self._keys == rejected and self._read_at < signed_at):
                return self._read()
            if self._keys == rejected and self._failure:
                raise self._failure
            return self._keys

    def _read(self) -> T:
        add_metric("SecretRefreshes")
        self._read_at = self.clock.monotonic()
        try:
            self._keys, self._failure = self.parse(self._text()), None
        except StreamStateError as error:
            self._failure = error
            raise
        self._stale_at = self._read_at + self.max_age_seconds
        return self._keys

    def _text(self) -> str | None:
        try:
            return cast("str | None", self.client.get_secret_value(SecretId=self.secret_id).get("SecretString"))
        except ClientError as error:
            if refusal := _REFUSALS.get(aws.error_code(error)):
                raise _malformed(refusal) from None
            raise CredentialsUnavailable("Secrets Manager did not return the keys. Try again later.") from None
        except BotoCoreError as error:
            detail = f"Secrets Manager could not be reached ({aws.error_code(error)}). Try again later."
            raise CredentialsUnavailable(detail) from None


def signing_keys(settings: Settings) -> "CachedSecret[SigningKeys]":
    """The keys of the secret that `RTC_SECRET_ID` names."""
    return _cached(settings, "rtc_secret_id", parse_signing_keys)


def callback_keys(settings: Settings) -> CachedSecret[tuple[str, ...]]:
    """The keys of the secret that `RTC_CALLBACK_SECRET_ID` names, the present one first."""
    return _cached(settings, "rtc_callback_secret_id", parse_callback_keys)


def _cached[T](settings: Settings, name: str, parse: Callable[[str | None], T]) -> CachedSecret[T]:
    secret_id = settings.require(name)
    # A caller waits for the answer: after two short tries the earlier keys serve, or the caller gets the error.
    retries = {"mode": "standard", "total_max_attempts": 2}
    # Secrets Manager knows only the secrets of its own region, which an ARN names.
    region = next(iter(secret_id.split(":")[3:]), None)
    client = aws.client("secretsmanager", region_name=region, connect_timeout=1, read_timeout=2, retries=retries)
    return CachedSecret(client, secret_id, parse, settings.secret_max_age)


def parse_signing_keys(text: str | None) -> "SigningKeys":
    """The keys in a secret's text; `CredentialsInvalid` says what is wrong with the text and shows none of it."""
    # The callback function, which signs only rechecks, loads `requests` for none of its other work.
    from stream_state.adapters.signing import SigningKeys  # noqa: PLC0415

    secret = _object(text)
    access_key_id = _key(secret, "access_key_id", "AccessKeyId")
    secret_access_key = _key(secret, "secret_access_key", "SecretAccessKey")
    session_token = _key(secret, "session_token", "SessionToken", is_optional=True)
    if access_key_id is None or secret_access_key is None:
        raise _malformed("must hold access_key_id and secret_access_key (or AccessKeyId and SecretAccessKey)")
    return SigningKeys(access_key_id, secret_access_key, session_token)


def parse_callback_keys(text: str | None) -> tuple[str, ...]:
    """As `parse_signing_keys`: the present callback key, then the previous one if there is one."""
    secret = _object(text)
    present, previous = _key(secret, "callback_key"), _key(secret, "previous_callback_key", is_optional=True)
    if present is None:
        raise _malformed("must hold callback_key")
    return (present, previous) if previous else (present,)


def _object(text: str | None) -> Mapping[str, Any]:
    if text is None:
        raise _malformed("is binary; store it as text")
    try:
        secret = parse_json(text)
    except JsonError as error:
        raise _malformed(str(error)) from None
    if not isinstance(secret, dict):
        raise _malformed("is not a JSON object")
    return secret


def _key(secret: Mapping[str, Any], *spellings: str, is_optional: bool = False) -> str | None:
    """The value under one of the spellings of a field; None if it is missing, or optional and empty."""
    values = [secret[spelling] for spelling in spellings if spelling in secret]
    if len(values) > 1:
        raise _malformed(f"holds {spellings[0]} twice, in both spellings")
    if not values or (is_optional and values[0] in (None, "")):
        return None
    value = values[0]
    # Keys travel in HTTP headers, which carry no other characters; white space is a slip of copying.
    if not isinstance(value, str) or not value.isascii() or not value.isprintable() or " " in value or not value:
        raise _malformed(f"must hold {spellings[0]} as text of printable ASCII without spaces")
    return value


def _malformed(what: str) -> CredentialsInvalid:
    return CredentialsInvalid(f"The secret with the keys {what}.")
