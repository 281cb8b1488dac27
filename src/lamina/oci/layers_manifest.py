"""The manifest of the trees of an image's layers: one blob, attached to an image by ``subject``.

The blob is a metadata layer (RAFS v6 §6.2) with ``image/HEX.layer.boot`` for each layer, HEX being
that of its diff_id.  An index names the blob itself in an annotation, so that whoever vouches for
the index vouches for the trees; the manifest is there for registries, which keep what one names.
"""

from __future__ import annotations

import re
from typing import Final

from lamina.oci.manifest import (
    EMPTY,
    OCI_EMPTY,
    OCI_LAYER_GZIP,
    OCI_MANIFEST,
    Descriptor,
    Manifest,
    describe,
)

LAYERS_ARTIFACT: Final = "application/vnd.lamina.layers.v1"

INDEX_LAYERS: Final = "dev.lamina.index.layers"
"""Annotation of an index: ``DIGEST SIZE`` of the blob with the trees of the image's layers."""

MAX_TREES_BYTES: Final = 1 << 30

TREE_NAME: Final = re.compile(rb"image/([0-9a-f]{64})\.layer\.boot")
_BLOB: Final = re.compile(r"(sha256:[0-9a-f]{64}) ([1-9][0-9]{0,9})")


def tree_name(diff_id: str) -> bytes:
    """Return the path of the tree of a layer."""
    return b"image/%s.layer.boot" % diff_id.partition(":")[2].encode()


def layers_manifest(subject: Descriptor, trees: Descriptor) -> Manifest:
    """Return the manifest that attaches the trees of its layers to *subject*."""
    return Manifest(
        schema_version=2,
        media_type=OCI_MANIFEST,
        artifact_type=LAYERS_ARTIFACT,
        config=describe(OCI_EMPTY, EMPTY),
        layers=(trees,),
        subject=Descriptor(media_type=subject.media_type, digest=subject.digest, size=subject.size),
    )


def layers_annotation(trees: Descriptor) -> dict[str, str]:
    """Return the annotation by which an index names them."""
    return {INDEX_LAYERS: f"{trees.digest} {trees.size}"}


def layer_trees_of(index: Manifest) -> Descriptor | None:
    """Return the blob with the trees that an index names, None if it names none."""
    found = _BLOB.fullmatch(index.annotations.get(INDEX_LAYERS, ""))
    if found is None or int(found[2]) > MAX_TREES_BYTES:
        return None
    return Descriptor(media_type=OCI_LAYER_GZIP, digest=found[1], size=int(found[2]))
