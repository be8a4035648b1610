"""The keys for signing and of pushed events: from Secrets Manager, kept for a while, read anew when rejected."""

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, Self

from botocore.exceptions import BotoCoreError, ClientError

from stream_state import aws
from stream_state.errors import CredentialsInvalid, CredentialsUnavailable, StreamStateError
from stream_state.observability import logger, record
from stream_state.settings import Settings
from stream_state.signing import SigningKeys
from stream_state.validation import JsonError, parse_json

if TYPE_CHECKING:
    from mypy_boto3_secretsmanager import SecretsManagerClient

# How long an earlier value serves on before a failed read is tried again.
_RETRY_AFTER_SECONDS = 10
_SPELLINGS = {
    "access_key_id": ("access_key_id", "AccessKeyId"),
    "secret_access_key": ("secret_access_key", "SecretAccessKey"),
    "session_token": ("session_token", "SessionToken"),
}
_OPTIONAL = frozenset({"session_token", "previous_callback_key"})
# Codes with which Secrets Manager says that asking again will not help.
_HOW_TO_MEND: Mapping[str, str] = {
    "ResourceNotFoundException": "does not exist or has no value yet: store the keys in it with put-secret-value",
    "AccessDeniedException": "may not be read by this function: check the function's policy and the secret's",
    "DecryptionFailure": "cannot be decrypted: check that the function may use the secret's KMS key",
    "InvalidRequestException": "cannot be read in its present state, for example because it is marked for deletion",
    "InvalidParameterException": "has a name that Secrets Manager does not accept",
    "ValidationException": "has a name that Secrets Manager does not accept",
}


class KeySource(Protocol):
    """Where the client gets the keys it signs with."""

    def keys(self) -> SigningKeys:
        """The keys to sign with now."""

    def keys_after_rejection(self, rejected: SigningKeys, signed_at: float) -> SigningKeys:
        """The keys to try instead, equal to `rejected` if there are no others; `signed_at` in monotonic seconds."""


class CachedSecret[T](ABC):
    """What a secret in Secrets Manager holds, kept for a while; safe to share among threads."""

    def __init__(
        self,
        client: "SecretsManagerClient",
        secret_id: str,
        max_age_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._secret_id = secret_id
        self._max_age_seconds = max_age_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._keys: T | None = None
        self._tried_at = self._stale_at = float("-inf")
        self._failure: StreamStateError | None = None

    @classmethod
    def of(cls, name: str, settings: Settings) -> Self:
        """The secret that the setting `name` names."""
        secret_id = settings.require(name)
        # A caller waits for this: two short tries, then an earlier value serves on or the caller is told.
        retries = {"mode": "standard", "total_max_attempts": 2}
        client = aws.client("secretsmanager", connect_timeout=1, read_timeout=2, retries=retries)
        return cls(client, secret_id, settings.secret_max_age_seconds)

    @abstractmethod
    def _parse(self, text: str | None) -> T:
        """What is in the secret's text; raises `CredentialsInvalid`."""

    def keys(self) -> T:
        """The keys, read again when `max_age_seconds` have passed; an earlier value serves on if that fails.

        Raises `CredentialsInvalid` or `CredentialsUnavailable` if there is no earlier value.
        """
        if self._keys and self._clock() < self._stale_at:
            return self._keys
        asked_at = self._clock()
        # While one thread reads, the others go on with the earlier value if there is one.
        if not self._lock.acquire(blocking=self._keys is None):
            return self._keys  # type: ignore[return-value]  # not None, else the line above waits
        try:
            if self._keys and self._clock() < self._stale_at:
                return self._keys
            if self._failure and self._tried_at >= asked_at:
                # Another thread has read meanwhile, in vain: reading once more would only take its time again.
                raise self._failure
            try:
                return self._read()
            except (CredentialsInvalid, CredentialsUnavailable) as error:
                if self._keys is None:
                    raise
                self._stale_at = self._clock() + _RETRY_AFTER_SECONDS
                logger.warning("The earlier keys serve on. " + error.detail, extra={"error": type(error).__name__})
                return self._keys
        finally:
            self._lock.release()

    def keys_after_rejection(self, rejected: T, signed_at: float) -> T:
        """The keys as of now: read anew, unless another thread has tried since the rejected call was signed.

        Raises `CredentialsInvalid` or `CredentialsUnavailable`: keys that the vendor rejects do not serve on.
        """
        with self._lock:
            if self._keys is None or (self._keys == rejected and self._tried_at < signed_at):
                return self._read()
            if self._keys == rejected and self._failure:
                raise self._failure
            return self._keys

    def _read(self) -> T:
        record("SecretRefreshes")
        self._tried_at = self._clock()
        try:
            self._keys, self._failure = self._fetch(), None
        except StreamStateError as error:
            self._failure = error
            raise
        self._stale_at = self._tried_at + self._max_age_seconds
        return self._keys

    def _fetch(self) -> T:
        try:
            secret = self._client.get_secret_value(SecretId=self._secret_id)
        except ClientError as error:
            raise _refusal(error) from None
        except BotoCoreError as error:
            detail = f"Secrets Manager could not be reached ({type(error).__name__}). Try again later."
            raise CredentialsUnavailable(detail) from None
        return self._parse(secret.get("SecretString"))


class SecretKeys(CachedSecret[SigningKeys]):
    """The signing keys."""

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """The keys of the secret that `RTC_SECRET_ID` names."""
        return cls.of("rtc_secret_id", settings)

    def _parse(self, text: str | None) -> SigningKeys:
        return parse_keys(text)


class CallbackKeys(CachedSecret[tuple[str, ...]]):
    """The keys that pushed events are signed with, the present one first."""

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """The keys of the secret that `RTC_CALLBACK_SECRET_ID` names."""
        return cls.of("rtc_callback_secret_id", settings)

    def _parse(self, text: str | None) -> tuple[str, ...]:
        secret = _object(text)
        keys = [_member(secret, name, (name,)) for name in ("callback_key", "previous_callback_key")]
        if keys[0] is None:
            raise _malformed("must hold callback_key")
        return tuple(key for key in keys if key)


def parse_keys(text: str | None) -> SigningKeys:
    """The signing keys in a secret's text; `CredentialsInvalid` says what is wrong with it, never what it holds."""
    secret = _object(text)
    found = {name: _member(secret, name, spellings) for name, spellings in _SPELLINGS.items()}
    if found["access_key_id"] is None or found["secret_access_key"] is None:
        raise _malformed("must hold access_key_id and secret_access_key (or AccessKeyId and SecretAccessKey)")
    return SigningKeys(found["access_key_id"], found["secret_access_key"], found["session_token"])


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


def _member(secret: Mapping[str, Any], name: str, spellings: tuple[str, ...]) -> str | None:
    values = [secret[spelling] for spelling in spellings if spelling in secret]
    if len(values) > 1:
        raise _malformed(f"holds {name} twice, in both spellings")
    if not values or (name in _OPTIONAL and values[0] in (None, "")):
        return None
    value = values[0]
    # Keys travel in HTTP headers: white space is a slip of copying, and other characters cannot be sent.
    if not isinstance(value, str) or not value.isascii() or not value.isprintable() or " " in value or not value:
        raise _malformed(f"must hold {name} as text of printable ASCII without spaces")
    return value


def _malformed(what: str) -> CredentialsInvalid:
    return CredentialsInvalid(f"The secret with the keys {what}.")


def _refusal(error: ClientError) -> StreamStateError:
    code = error.response.get("Error", {}).get("Code", "")
    if how := _HOW_TO_MEND.get(code):
        return _malformed(how)
    return CredentialsUnavailable("Secrets Manager did not return the keys. Try again later.")
