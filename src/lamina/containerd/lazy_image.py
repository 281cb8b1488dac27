"""From what a client claims of an image to what the registry has of it, and whether it can be lazy.

The claimed manifest is asked for by its digest at the claimed place, under a policy only if that
place's signatures vouch for it.  Its configuration names the layers, and so their chain
identifiers, which are what containerd calls the snapshots: a layer is taken for what it claims to
be only if its chain is one of them.

Whoever writes a configuration could name the layers of another image, whose containers would then
see this one's files.  Of native and sealed images it is proven when they are mounted that the
configuration names their own layers (:mod:`lamina.opening.proven_layers`).  Of ordinary ones that
takes reading all layers: an index that was built on this node has done so, and one that is attached
to an image in a registry is used only where the operator believes all who can push there.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection, Sequence
from typing import Final, NamedTuple

import msgspec

from lamina.containerd.claim import Claim
from lamina.errors import TrustError
from lamina.image.errors import NoIndexError, UntrustedIndexError
from lamina.oci.manifest import ImageIndex, parse_manifest
from lamina.oci.start_manifest import START_USE, StartRule
from lamina.opening.lazy_index import LazyIndex
from lamina.opening.manifest import find_platform
from lamina.opening.open_image import Opening, begin
from lamina.opening.request import OpenRequest
from lamina.opening.version import Version
from lamina.registry.resolve import load_config
from lamina.store.node import NodeStore
from lamina.store.records import INDEX
from lamina.trust.signatures.policy import scopes_of

LOG: Final = logging.getLogger("lamina")


class LazyImage(msgspec.Struct, frozen=True, kw_only=True):
    """An image that can be mounted: what is opened, by its digest, and the chain identifiers of its
    layers, the lowest first.

    ``policy`` is the file whose demands it fulfils; ``proven`` says that it was proven to by what
    cannot be asked again by this digest: a list of platforms, or the image that an index is of.
    ``ordinary`` is the image itself, if its layers can be unpacked too.  ``start`` is the name of
    the start artifact that it wants, None for that of its own command.
    """

    reference: str
    chain: tuple[str, ...]
    policy: str | None = None
    proven: bool = False
    ordinary: str | None = None
    start: str | None = None

    def encode(self) -> str:
        """Return it as JSON, the same for the same image."""
        return msgspec.json.encode(self).decode()

    @classmethod
    def decode(cls, text: str) -> LazyImage:
        """Return what :meth:`encode` made.  Raises msgspec.ValidationError."""
        return msgspec.json.decode(text, type=cls)

    def request(self, template: OpenRequest) -> OpenRequest:
        """Return the request that opens it."""
        policy = None if self.proven else self.policy
        start = template.start
        if start is not None and self.start is not None:
            start = StartRule(name=self.start)
        return msgspec.structs.replace(
            template,
            reference=self.reference,
            pinned=self.reference,
            policy=policy,
            proven_layers=self.ordinary is None,
            start=start,
        )


class Finding(NamedTuple):
    """The chain identifiers of a claimed image, and the image if it can be lazy."""

    chain: tuple[str, ...]
    lazy: LazyImage | None = None


def look_up(claim: Claim, template: OpenRequest, indexes_from: Collection[str] = ()) -> Finding:
    """Find out what a claimed image is, with the policy, keys and client of ``template``, and the
    scopes (:func:`~lamina.trust.signatures.policy.scopes_of`) whose indexes are believed.

    An ordinary image without an index that may be used cannot be lazy, which is no error.  Raises
    TrustError if the policy refuses it, and what reading it raises.
    """
    wanted = claim.reference.with_version(digest=claim.manifest)
    asked = wanted if template.policy is None else claim.reference
    with begin(msgspec.structs.replace(template, reference=str(asked))) as opening:
        version = Version(wanted) if template.policy is None else _accepted(opening, claim)
        manifest, _ = find_platform(opening.place, wanted, template.platform)
        chain = chain_of(load_config(manifest, opening.place).rootfs.diff_ids)
        try:
            found = opening.manifest(version._replace(reference=wanted))
        except (NoIndexError, UntrustedIndexError) as error:
            LOG.info("%s is unpacked: %s", claim.reference, error)
            return Finding(chain)
        if found.indexed is not None and not (
            any(scope in indexes_from for scope in scopes_of(wanted))
            or _was_read(opening.place.store, found.indexed)
        ):
            LOG.info("%s is unpacked: indexes from there are not believed", claim.reference)
            return Finding(chain)
    lazy = LazyImage(
        reference=str(claim.reference.with_version(digest=found.digest)),
        chain=chain,
        policy=template.policy,
        proven=template.policy is not None and found.digest != version.reference.digest,
        ordinary=None if found.indexed is None else str(wanted),
        start=manifest.annotations.get(START_USE),
    )
    return Finding(chain, lazy)


def _was_read(store: NodeStore, index: LazyIndex) -> bool:
    """Tell whether an index was built on this node by reading all layers of its image."""
    built = store.records.read(INDEX, index.image_digest)
    return built is not None and built.digest == index.digest and not built.by_table


def _accepted(opening: Opening, claim: Claim) -> Version:
    """Return what the policy accepts under the claimed name: the claimed manifest, or a list with
    it.
    """
    accepted = opening.version()
    _, data = opening.place.named(accepted.reference)
    document = parse_manifest(data, f"manifest of {claim.reference}")
    named = {accepted.reference.digest}
    if isinstance(document, ImageIndex):
        named |= {each.digest for each in document.manifests}
    if claim.manifest not in named:
        raise TrustError(
            f"{claim.reference} is signed as {accepted.reference.digest}, which does not have "
            f"{claim.manifest}",
            hint="pull it again, if the tag was moved meanwhile",
        )
    return accepted


def chain_of(diff_ids: Sequence[str]) -> tuple[str, ...]:
    """Return the chain identifier of each layer (OCI image configuration, "Layer ChainID")."""
    chain: list[str] = []
    for diff_id in diff_ids:
        if chain:
            text = f"{chain[-1]} {diff_id}"
            chain.append("sha256:" + hashlib.sha256(text.encode()).hexdigest())
        else:
            chain.append(diff_id)
    return tuple(chain)
