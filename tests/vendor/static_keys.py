"""Signing keys without Secrets Manager, and a rate limiter without a table."""

from stream_state.adapters.signing import SigningKeys


class StaticKeys:
    """A source of signing keys that never change."""

    def __init__(self, keys: SigningKeys) -> None:
        self._keys = keys

    def keys(self) -> SigningKeys:
        """The keys."""
        return self._keys

    def keys_after_rejection(self, rejected: SigningKeys, signed_at: float) -> SigningKeys:
        """The same keys: there are no others."""
        return self._keys


class NoLimiter:
    """A rate limiter without a limit, for a single call."""

    def acquire(self, deadline: float) -> None:
        """See `RateLimiter`."""

    def hold(self, seconds: float) -> None:
        """See `RateLimiter`."""
