"""Signing keys without Secrets Manager."""

from stream_state.signing import SigningKeys


class StaticKeys:
    """A source of signing keys that never change."""

    def __init__(self, keys: SigningKeys) -> None:
        self._keys = keys

    def keys(self) -> SigningKeys:
        """The keys."""
        return self._keys

    def keys_after_rejection(self, rejected: SigningKeys, signed_at: float) -> SigningKeys:
        """The keys: there are no others."""
        return self._keys
