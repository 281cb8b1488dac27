"""What somebody who opens an image has: keys of sealed ones, and a policy that it must satisfy."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lamina.image.errors import UntrustedIndexError

if TYPE_CHECKING:
    from lamina.registry.manifest import Descriptor
    from lamina.registry.reference import Reference
    from lamina.registry.repository import Repository
    from lamina.store.node import NodeStore
    from lamina.trust.policy import Policy
    from lamina.trust.recipients import DecryptionKeys


@dataclass(frozen=True, slots=True)
class Access:
    """Decryption keys, and the policy that is asked before anything else of an image is read."""

    keys: DecryptionKeys | None = None
    policy: Policy | None = None


def read_access(
    decryption_keys: Sequence[str] = (), policy: str | os.PathLike[str] | None = None
) -> Access | None:
    """What the command line and the environment give: keys as
    :func:`lamina.trust.recipients.parse_decryption_keys` reads them, key providers that are
    configured, and a policy file.  None if there is nothing.

    Raises UsageError, NotFoundError, FormatError, TrustError.
    """
    keys = found = None
    if decryption_keys or os.environ.get("OCICRYPT_KEYPROVIDER_CONFIG"):
        from lamina.trust.recipients import parse_decryption_keys

        keys = parse_decryption_keys(decryption_keys)
    if policy is not None:
        from lamina.trust.policy import load_policy

        found = load_policy(os.fspath(policy))
    return None if keys is None and found is None else Access(keys, found)


def accepted_version(
    policy: Policy, repository: Repository, store: NodeStore, reference: Reference
) -> Reference:
    """The reference with the digest of the manifest that the policy accepts.

    The manifest is in *store* from now on, so that what is opened is what was proven, whatever the
    registry answers next.  Raises TrustError that says why the policy refuses the image.
    """
    verified = policy.check(repository, reference)
    store.put_metadata(verified.data, verified.descriptor.digest)
    return reference.with_version(tag=reference.tag, digest=verified.descriptor.digest)


def refuse_index(repository: Repository, index: Descriptor, image: Descriptor) -> None:
    """With a policy an attached index is not used: the signature of the image does not cover it."""
    raise UntrustedIndexError(
        f"the index {index.digest} that is attached in {repository.reference} is not covered by "
        f"the signature of {image.digest}",
        hint="convert the image and sign the result, or index it here: --index always",
    )
