"""What a provider can fail with; the caller decides by type whether to wait, go elsewhere or give up.

ProviderError
├── UnknownProvider      no plugin of that name is installed
├── InvalidRequest       the request can never work: change it
├── AuthFailed           the credentials are missing or refused
├── NodeNotFound         the provider does not know that node (any more)
├── QuotaExceeded        the account's limit is reached: free something, or ask for more
├── NoCapacity           the provider has none of that kind now: try another region or kind
└── ProviderUnavailable  it does not answer or fails inside: try again later
"""

from __future__ import annotations

from typing import ClassVar


class ProviderError(Exception):
    """Root. ``retryable``: whether the same call may succeed later without a change."""

    retryable: ClassVar[bool] = False


class UnknownProvider(ProviderError):
    """No plugin of that name is installed."""


class InvalidRequest(ProviderError):
    """The request can never work."""


class AuthFailed(ProviderError):
    """Credentials are missing or refused."""


class NodeNotFound(ProviderError):
    """The provider does not know that node (any more)."""


class QuotaExceeded(ProviderError):
    """The account's limit is reached."""


class NoCapacity(ProviderError):
    """The provider has none of that kind now."""

    retryable = True


class ProviderUnavailable(ProviderError):
    """The provider does not answer, or fails inside."""

    retryable = True
