"""Reading what somebody who opens an image has: keys of sealed ones, and a policy that it must
satisfy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from lamina.opening.request import OpenRequest
    from lamina.trust.encryption.key_provider import KeyProvider
    from lamina.trust.encryption.recipients import DecryptionKeys
    from lamina.trust.signatures.policy import Policy


@dataclass(frozen=True, slots=True)
class OpenTrust:
    """Decryption keys, and the policy that is asked before anything else of an image is read."""

    keys: DecryptionKeys | None = None
    policy: Policy | None = None


def read_open_trust(request: OpenRequest) -> OpenTrust:
    """Read the keys and the policy that a request names; what it does not name is None.

    A passphrase that comes from a file descriptor can be read once only.  Raises UsageError,
    NotFoundError, FormatError, TrustError.
    """
    keys = policy = None
    if request.has_keys:
        from lamina.trust.encryption.recipients import read_decryption_keys

        keys = read_decryption_keys(request.decryption_keys, key_sources(request))
    if request.policy is not None:
        from lamina.trust.signatures.policy import load_policy

        policy = load_policy(request.policy)
    return OpenTrust(keys, policy)


def key_sources(request: OpenRequest) -> dict[str, KeyProvider]:
    """Return the key providers and the broker of a request by their names in annotations.

    Raises FormatError, UsageError, and what reading init-data raises.
    """
    found: dict[str, KeyProvider] = {}
    if request.key_providers is not None:
        from lamina.trust.encryption.key_provider import load_providers

        found |= load_providers(request.key_providers)
    if request.key_broker is not None:
        from lamina.trust.broker.provider import PROVIDER_NAME, make_provider

        found[PROVIDER_NAME] = make_provider(**msgspec.structs.asdict(request.key_broker))
    return found
