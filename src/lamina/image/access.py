"""What somebody who opens an image has: keys of sealed ones, and a policy that it must satisfy."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lamina.image.errors import UntrustedIndexError

if TYPE_CHECKING:
    from lamina.registry.manifest import Descriptor
    from lamina.registry.reference import Reference
    from lamina.registry.repository import Repository
    from lamina.store.node import NodeStore
    from lamina.trust.key_provider import KeyProvider
    from lamina.trust.policy import Policy
    from lamina.trust.recipients import DecryptionKeys


@dataclass(frozen=True, slots=True)
class Access:
    """Decryption keys, and the policy that is asked before anything else of an image is read."""

    keys: DecryptionKeys | None = None
    policy: Policy | None = None
    release: int | None = None
    """What the signature of the image states, once it was verified: key brokers are told it."""

    def for_release(self, release: int | None) -> Access:
        """The same, for an image of this release."""
        return replace(self, release=release)


def read_access(
    decryption_keys: Sequence[str] = (),
    policy: str | os.PathLike[str] | None = None,
    brokers: Mapping[str, KeyProvider] | None = None,
) -> Access | None:
    """What the command line and the environment give: keys as
    :func:`lamina.trust.recipients.parse_decryption_keys` reads them, key providers that are
    configured or in *brokers*, and a policy file.  None if there is nothing.

    Raises UsageError, NotFoundError, FormatError, TrustError.
    """
    keys = found = None
    if decryption_keys or brokers or os.environ.get("OCICRYPT_KEYPROVIDER_CONFIG"):
        from lamina.trust.recipients import parse_decryption_keys

        keys = parse_decryption_keys(decryption_keys, brokers)
    if policy is not None:
        from lamina.trust.policy import load_policy

        found = load_policy(os.fspath(policy))
    return None if keys is None and found is None else Access(keys, found)


def accepted_version(
    policy: Policy, repository: Repository, store: NodeStore, reference: Reference
) -> tuple[Reference, int | None]:
    """The reference with the digest of the manifest that the policy accepts, and the release that
    its signature states.

    The manifest is in *store* from now on, so that what is opened is what was proven, whatever the
    registry answers next.  Raises TrustError that says why the policy refuses the image.
    """
    from lamina.trust.image_signature import RELEASE

    verified = policy.check(repository, reference)
    store.put_metadata(verified.data, verified.descriptor.digest)
    releases = [payload.optional.get(RELEASE) for payload in verified.payloads]
    release = next((number for number in releases if type(number) is int), None)
    return reference.with_version(tag=reference.tag, digest=verified.descriptor.digest), release


def refuse_index(repository: Repository, index: Descriptor, image: Descriptor) -> None:
    """With a policy an attached index is not used: the signature of the image does not cover it."""
    raise UntrustedIndexError(
        f"the index {index.digest} that is attached in {repository.reference} is not covered by "
        f"the signature of {image.digest}",
        hint="convert the image and sign the result, or index it here: --index always",
    )
