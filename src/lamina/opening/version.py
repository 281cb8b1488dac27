"""Step 1 of opening an image: which version is opened.

A policy is asked here, before anything but the manifest is read.  What it accepts is named by its
digest from then on, and kept, so that what is opened is what was proven, whatever the registry
answers next.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, NamedTuple

from lamina.errors import AuthError, FetchError, NotFoundError
from lamina.opening.known_names import known_digest, known_name
from lamina.opening.request import ASK_S
from lamina.opening.rollback_protection import check_release
from lamina.store.records import SIGNATURES, KeptSignature, SignaturesRecord

if TYPE_CHECKING:
    from lamina.oci.reference import Reference
    from lamina.opening.place import Place
    from lamina.opening.request import OpenRequest
    from lamina.store.node import NodeStore
    from lamina.store.records import ResidentRecord
    from lamina.trust.signatures.image_signature import Verified
    from lamina.trust.signatures.policy import Policy


LOG: Final = logging.getLogger("lamina")


class Version(NamedTuple):
    """What is opened: ``reference`` has the digest."""

    reference: Reference
    is_accepted: bool = False
    """Whether a policy has accepted it, by its digest."""
    release: int | None = None
    """What the signature states, once it was verified: key brokers are told it."""
    disk_root: str | None = None
    """Root hash of the image as a disk, in hexadecimal, if the verified signature states one."""
    is_asked: bool = True
    """Whether whoever may say it was asked what the name means now."""
    note: str | None = None
    """What the user should be told, because the registry could not be asked."""


def choose_version(place: Place, request: OpenRequest, policy: Policy | None) -> Version:
    """Return the version that a request means, proven if there is a policy.

    The tag of a resident image means that image, and what was accepted when it became so, without
    asking a registry, unless the request says to refresh; any other tag is asked for as
    ``request.pull`` says.  One that was opened before, by the same policy, is proven again by the
    signatures that were kept then; a newer release that was used since does not matter.

    Raises TrustError that says why the policy refuses the image, or that a newer release was used
    on this node before, NotFoundError for what is not on this node and may not be asked for, and
    what reading manifest and signatures raises.
    """
    where, store = place.reference, place.store
    resident = None if request.refresh else resident_version(store, where)
    if policy is None:
        if resident is not None and resident.digest is not None:
            return Version(where.with_version(digest=resident.digest), is_asked=False)
        return _named(place, request)
    return _proven(place, request, policy, resident)


def _named(place: Place, request: OpenRequest, *, accepted: bool = False) -> Version:
    """Return what a name means, by the registry or by what is known; with *accepted* what a policy
    is asked about, which is what the name itself meant.
    """
    where, store = place.reference, place.store
    if where.digest is not None:
        if request.pull == "never" and store.metadata_path(where.digest) is None:
            raise _not_here(place)
        return Version(where)
    known = known_name(place)
    note = None
    if known is None and request.pull == "never" and where.is_remote:
        raise _not_here(place)
    if known is None or request.pull in ("newer", "always"):
        hurried = known is not None and request.pull == "newer"
        try:
            named, _ = place.named(where, ASK_S if hurried else None)
            return Version(where.with_version(tag=where.tag, digest=named))
        except FetchError as error:
            # Who answers that this user may not have it has answered.
            if known is None or not hurried or isinstance(error, AuthError):
                raise
            note = f"{where} is opened as it was last known here: {error}"
            LOG.warning("%s", note)
    digest = known.digest if accepted else known_digest(store, known, request)
    return Version(where.with_version(tag=where.tag, digest=digest), is_asked=False, note=note)


def _not_here(place: Place) -> NotFoundError:
    return NotFoundError(
        f"{place.reference} is not on this node", hint="--pull missing asks the registry for it"
    )


def _proven(
    place: Place, request: OpenRequest, policy: Policy, resident: ResidentRecord | None
) -> Version:
    where, store = place.reference, place.store
    found = Version(where)
    if request.pinned is not None:
        kept = where.digest
    elif resident is not None and resident.accepted is not None:
        kept = resident.accepted
    else:
        found = _named(place, request, accepted=True) if known_name(place) else found
        kept = None if found.is_asked else found.reference.digest
    verified = None if kept is None else _proven_again(policy, store, where, kept)
    is_new = verified is None
    if verified is None:
        verified = policy.check(place.repository, where)
    if verified.payloads:
        check_release(store, where, verified.release, allow_older=request.allow_older)
    if is_new:
        _keep(verified, store)
    digest = verified.descriptor.digest
    accepted = where.with_version(tag=where.tag, digest=digest)
    return Version(accepted, True, verified.release, verified.disk_root, found.is_asked, found.note)


def resident_version(store: NodeStore, reference: Reference) -> ResidentRecord | None:
    """Return the resident image that a tag means; None for a reference by digest."""
    record = None if reference.digest is not None else store.records.resident(str(reference))
    return record if record is not None and record.complete else None


def _keep(verified: Verified, store: NodeStore) -> None:
    digest, signatures = verified.descriptor.digest, verified.signatures
    of_tag = tuple(KeptSignature(*each) for each in signatures.of_tag)
    record = SignaturesRecord(of_tag, signatures.bundles)
    store.put_metadata(verified.data, digest)
    if store.records.read(SIGNATURES, digest) != record:
        store.records.write(SIGNATURES, digest, record)


def _proven_again(
    policy: Policy, store: NodeStore, reference: Reference, digest: str
) -> Verified | None:
    """Return None if the store does not have what is needed."""
    from lamina.oci.manifest import Descriptor
    from lamina.trust.signatures.attachments import Attached
    from lamina.trust.signatures.image_signature import Signatures

    data, kept = store.metadata(digest), store.records.read(SIGNATURES, digest)
    if data is None or kept is None:
        return None
    descriptor = Descriptor(media_type="", digest=digest, size=len(data))
    signatures = Signatures(tuple(Attached(*each) for each in kept.of_tag), kept.bundles)
    return policy.check_kept(descriptor, data, signatures, reference)
