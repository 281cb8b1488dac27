"""The hash tree of an image as a disk, beside the image: made once, served with the disk after."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from lamina.block.hash_area import HashArea, read_hash_area
from lamina.errors import IntegrityError, NotFoundError, UnsupportedError, UsageError
from lamina.oci.manifest import EMPTY, OCI_MANIFEST, Descriptor, describe
from lamina.oci.verity_manifest import (
    VERITY_TREE,
    VerityEntry,
    verity_entries,
    verity_manifest,
)
from lamina.opening.lazy_index import indexed_image
from lamina.registry.referrers import list_referrers, push_referrer

if TYPE_CHECKING:
    from lamina.content.lazy_image import LazyImage
    from lamina.oci.manifest import Manifest
    from lamina.registry.repository import Repository


def attach_hash_tree(repository: Repository, image: LazyImage, area: HashArea) -> str:
    """Attach the tree of the plain disk of *image* in *repository*, which must be open for writing
    and have the image; returns the digest of the manifest.

    An image that was opened by an index gets it as the index did: attached to the image itself.

    Raises UsageError for an image without a manifest, UnsupportedError for a sealed one, and what
    pushing raises.
    """
    manifest, opened = _opened(image)
    layer = describe(VERITY_TREE, area.data)
    attached = verity_manifest(
        _subject(manifest, opened), VerityEntry(area.verity.root.hex(), opened, layer)
    )
    for descriptor, content in ((layer, area.data), (attached.config, EMPTY)):
        repository.push_blob(descriptor, io.BytesIO(content))
    return push_referrer(repository, attached).digest


def find_hash_tree(repository: Repository, image: LazyImage, root: bytes | None = None) -> HashArea:
    """Return the tree that is attached to *image*: that of *root*, or the one attached last.

    All of it is here, and its levels fit each other, when this returns.  Raises NotFoundError,
    IntegrityError for a tree that is not what it is called, and what reading it raises.
    """
    manifest, opened = _opened(image)
    listed = list_referrers(repository, _subject(manifest, opened).digest)
    entries = verity_entries(listed, opened)
    if root is not None:
        entries = [entry for entry in entries if entry.root == root.hex()]
    if not entries:
        what = "no hash tree" if root is None else f"no hash tree with the root {root.hex()}"
        raise NotFoundError(
            f"{what} is attached to the image",
            hint="`lamina export --verity veritysetup --attach` makes and attaches one",
        )
    entry = entries[0]
    with repository.open_blob(entry.layer) as stream:
        data = stream.read(entry.layer.size + 1)
    if describe(VERITY_TREE, data).digest != entry.layer.digest:
        raise IntegrityError(f"the hash tree {entry.layer.digest} has other bytes")
    return read_hash_area(data, bytes.fromhex(entry.root))


def _opened(image: LazyImage) -> tuple[Manifest, str]:
    origin = image.origin
    if origin is None or origin.manifest is None or origin.reference is None:
        raise UsageError("an image without a manifest has no hash tree attached to it")
    if origin.manifest.is_sealed:
        raise UnsupportedError(
            "the hash tree of a sealed image tells what is in it, so it is not attached",
            hint="write it into a file with --hash-file",
        )
    return origin.manifest, origin.reference.digest or ""


def _subject(manifest: Manifest, opened: str) -> Descriptor:
    indexed = indexed_image(manifest)
    if indexed is not None:
        return indexed
    kind = manifest.media_type or OCI_MANIFEST
    return Descriptor(media_type=kind, digest=opened, size=len(manifest.raw))
