"""Find the index of an ordinary image: what refers to it by ``subject`` (RAFS v6 §6.5).

The list of referrers is looked up under the fallback tag (OCI distribution specification 1.1,
"Referrers Tag Schema"), which registries with and without the referrers API keep.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

from lamina.errors import IntegrityError, NotFoundError
from lamina.registry.manifest import (
    NYDUS_MANIFEST_ARTIFACT,
    Index,
    Manifest,
    parse_manifest,
)

if TYPE_CHECKING:
    from lamina.registry.repository import Repository
    from lamina.store.node import NodeStore

IndexUse: TypeAlias = Literal["auto", "never"]
"""Whether an ordinary image is opened by an index that is attached to it."""


def fallback_tag(digest: str) -> str:
    """Return the tag of the list of what refers to a manifest."""
    return digest.replace(":", "-", 1)


def find_index(repository: Repository, node: NodeStore, digest: str) -> tuple[Manifest, str] | None:
    """Return (manifest, digest) of the newest index of the image ``digest``, None without one.

    Raises IntegrityError if an index is listed that indexes another image, and what the repository
    raises.
    """
    try:
        _, data = repository.manifest(fallback_tag(digest))
    except NotFoundError:
        return None
    referrers = parse_manifest(data, f"referrers of {digest}")
    if not isinstance(referrers, Index):
        return None
    for entry in reversed(referrers.manifests):
        if entry.artifact_type != NYDUS_MANIFEST_ARTIFACT or not entry.is_manifest:
            continue
        _, data = repository.manifest(entry)
        manifest = parse_manifest(data, f"index {entry.digest}")
        if not isinstance(manifest, Manifest) or not manifest.is_nydus:
            continue
        if manifest.subject is None or manifest.subject.digest != digest:
            raise IntegrityError(
                f"the index {entry.digest} is listed for {digest}, but indexes another image",
                hint="Somebody attached it wrongly; index the image again.",
            )
        node.put_metadata(data, entry.digest)
        return manifest, entry.digest
    return None
