"""Signing keys without Secrets Manager, and a rate limiter without a table."""

from stream_state.adapters.credentials import CachedSecret
from stream_state.adapters.rate_limiter import RateLimiter
from stream_state.adapters.signing import SigningKeys


class StaticKeys(CachedSecret[SigningKeys]):
    """A source of signing keys that never change."""

    def __init__(self, keys: SigningKeys) -> None:
        self._static = keys

    def keys(self) -> SigningKeys:
        """The keys."""
        return self._static

    def keys_after_rejection(self, rejected: SigningKeys, signed_at: float) -> SigningKeys:
        """The same keys: there are no others."""
        return self._static


class NoLimiter(RateLimiter):
    """A rate limiter without a limit, for a single call."""

    def __init__(self) -> None:
        """Make one without a table."""

    def acquire(self, deadline: float) -> None:
        """See `RateLimiter`."""

    def hold(self, seconds: float) -> None:
        """See `RateLimiter`."""
