"""The manifest of a hash tree: one layer, attached to an image by ``subject``.

The layer is the tree of the image as one disk (plain layout) with the superblock of dm-verity, as
``veritysetup`` makes it.  What a reader needs to choose one is in annotations, which registries
copy into the list of what refers to an image.  Nothing of it is trusted: the root hash is, and
comes from elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from lamina.oci.attachment import attached_manifest, layer_note, noted_layer
from lamina.oci.manifest import Descriptor, Manifest

VERITY_ARTIFACT: Final = "application/vnd.lamina.verity.v1"
VERITY_TREE: Final = "application/vnd.lamina.verity.tree.v1"

VERITY_ROOT: Final = "dev.lamina.verity.root"
"""The root hash in hexadecimal; also what a signature states under this name."""
VERITY_IMAGE: Final = "dev.lamina.verity.image"
"""Digest of the manifest whose disk this is: the image, or the index that opens it."""
VERITY_LAYER: Final = "dev.lamina.verity.layer"
"""``DIGEST SIZE`` of the only layer."""

MAX_TREE_BYTES: Final = 1 << 30
"""That of a disk of 127 GiB."""

ROOT_HASH: Final = re.compile(r"(?:[0-9a-f]{64}|[0-9a-f]{128})")


class VerityEntry(NamedTuple):
    """A hash tree as it is listed with an image."""

    root: str
    image_digest: str
    layer: Descriptor


def verity_manifest(subject: Descriptor, entry: VerityEntry) -> Manifest:
    """Return the manifest that attaches a tree to *subject*."""
    notes = {
        VERITY_ROOT: entry.root,
        VERITY_IMAGE: entry.image_digest,
        VERITY_LAYER: layer_note(entry.layer),
    }
    return attached_manifest(subject, VERITY_ARTIFACT, entry.layer, notes)


def verity_entries(listed: Iterable[Descriptor], image_digest: str) -> list[VerityEntry]:
    """Return the trees for a manifest among what is listed, the one attached last first.

    What is no tree, of another manifest, or too large to be one, is left out.
    """
    found = [_entry(each) for each in listed if each.artifact_type == VERITY_ARTIFACT]
    return [each for each in found[::-1] if each is not None and each.image_digest == image_digest]


def _entry(listed: Descriptor) -> VerityEntry | None:
    notes = listed.annotations
    layer = noted_layer(notes.get(VERITY_LAYER, ""), VERITY_TREE, MAX_TREE_BYTES)
    root = notes.get(VERITY_ROOT, "")
    if layer is None or not ROOT_HASH.fullmatch(root):
        return None
    return VerityEntry(root, notes.get(VERITY_IMAGE, ""), layer)
