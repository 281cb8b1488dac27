"""What somebody who opens an image has: keys of sealed ones, and a policy that it must satisfy."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from lamina.image.errors import UntrustedIndexError
from lamina.image.releases import check_release

if TYPE_CHECKING:
    from lamina.registry.manifest import Descriptor
    from lamina.registry.reference import Reference
    from lamina.registry.repository import Repository
    from lamina.store.node import NodeStore
    from lamina.trust.image_signature import Verified
    from lamina.trust.key_provider import KeyProvider
    from lamina.trust.policy import Policy
    from lamina.trust.recipients import DecryptionKeys

SIGNATURES: Final = "signatures"
"""Kind of the store's records of what proved a manifest."""


@dataclass(frozen=True, slots=True)
class Access:
    """Decryption keys, and the policy that is asked before anything else of an image is read."""

    keys: DecryptionKeys | None = None
    policy: Policy | None = None
    release: int | None = None
    """What the signature of the image states, once it was verified: key brokers are told it."""
    is_proven: bool = False
    """Whether the policy has accepted the version already, by its digest (:func:`prove`)."""
    allow_older: bool = False
    """Whether an older release than one that was used here before is taken."""
    reopens: bool = False
    """Whether the image was opened before, by the same policy: the signatures that were kept then
    prove it again, without a registry, and a newer release that was used since does not matter."""


def read_access(
    decryption_keys: Sequence[str] | str = (),
    policy: str | os.PathLike[str] | None = None,
    brokers: Mapping[str, KeyProvider] | None = None,
    *,
    allow_older: bool = False,
    reopens: bool = False,
) -> Access | None:
    """What the command line and the environment give: keys (or the only one) as
    :func:`lamina.trust.recipients.parse_decryption_keys` reads them, key providers that are
    configured or in *brokers*, and a policy file; *allow_older* and *reopens* are those of
    :class:`Access`.  None if there is nothing.

    Raises UsageError, NotFoundError, FormatError, TrustError.
    """
    keys = found = None
    if decryption_keys or brokers or os.environ.get("OCICRYPT_KEYPROVIDER_CONFIG"):
        from lamina.trust.recipients import parse_decryption_keys

        if isinstance(decryption_keys, str):
            decryption_keys = (decryption_keys,)
        keys = parse_decryption_keys(decryption_keys, brokers)
    if policy is not None:
        from lamina.trust.policy import load_policy

        found = load_policy(os.fspath(policy))
    if keys is None and found is None:
        return None
    return Access(keys, found, allow_older=allow_older, reopens=reopens)


def prove(
    access: Access,
    repository: Repository,
    store: NodeStore,
    reference: Reference,
    *,
    refresh: bool = False,
) -> tuple[Reference, Access]:
    """The reference with the digest of the manifest that the policy accepts, and what opens that
    one without asking the policy again.

    The manifest and the signatures are in *store* from now on, so that what is opened is what was
    proven, whatever the registry answers next.  The tag of a resident image means what was accepted
    when it became so, without asking a registry, unless *refresh* is set.  Raises TrustError that
    says why the policy refuses the image, or that a newer release was used on this node before.
    """
    assert access.policy is not None
    if access.reopens:
        kept = reference.digest
    else:
        kept = None if refresh else resident_fact(store, reference, "accepted")
    verified = None if kept is None else _proven_again(access.policy, store, reference, kept)
    is_new = verified is None
    if verified is None:
        verified = access.policy.check(repository, reference)
    if verified.payloads:
        check_release(store, reference, verified.release, allow_older=access.allow_older)
    if is_new:
        _keep(verified, store)
    digest = verified.descriptor.digest
    accepted = reference.with_version(tag=reference.tag, digest=digest)
    return accepted, replace(access, release=verified.release, is_proven=True)


def resident_fact(store: NodeStore, reference: Reference, name: str) -> str | None:
    """What is known of a resident image that a tag means; None for a reference by digest."""
    record = None if reference.digest is not None else store.resident(str(reference))
    return record.get(name) if record is not None and record.get("complete") else None


def _keep(verified: Verified, store: NodeStore) -> None:
    digest, signatures = verified.descriptor.digest, verified.signatures.encode()
    store.put_metadata(verified.data, digest)
    if store.record(SIGNATURES, digest) != signatures:
        store.put_record(SIGNATURES, digest, signatures)


def _proven_again(
    policy: Policy, store: NodeStore, reference: Reference, digest: str
) -> Verified | None:
    """None if the store does not have what is needed."""
    from lamina.registry.manifest import Descriptor
    from lamina.trust.image_signature import Signatures

    data, kept = store.metadata(digest), store.record(SIGNATURES, digest)
    if data is None or kept is None:
        return None
    descriptor = Descriptor(media_type="", digest=digest, size=len(data))
    return policy.check_kept(descriptor, data, Signatures.decode(kept), reference)


def refuse_index(repository: Repository, index: Descriptor, image: Descriptor) -> None:
    """With a policy an attached index is not used: the signature of the image does not cover it."""
    raise UntrustedIndexError(
        f"the index {index.digest} that is attached in {repository.reference} is not covered by "
        f"the signature of {image.digest}",
        hint="convert the image and sign the result, or index it here: --index always",
    )
