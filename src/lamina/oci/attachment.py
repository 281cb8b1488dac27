"""The manifest of what is attached to an image by ``subject``: one layer, no configuration.

Registries copy annotations into the list of what refers to an image, so an annotation that names
the layer saves the request for the manifest.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from lamina.oci.manifest import EMPTY, OCI_EMPTY, OCI_MANIFEST, Descriptor, Manifest, describe

_LAYER: Final = re.compile(r"(sha256:[0-9a-f]{64}) ([1-9][0-9]{0,9})")


def attached_manifest(
    subject: Descriptor, artifact_type: str, layer: Descriptor, annotations: Mapping[str, str]
) -> Manifest:
    """Return the manifest that attaches *layer* to *subject* (OCI image 1.1, artifact usage)."""
    return Manifest(
        schema_version=2,
        media_type=OCI_MANIFEST,
        artifact_type=artifact_type,
        config=describe(OCI_EMPTY, EMPTY),
        layers=(layer,),
        subject=Descriptor(media_type=subject.media_type, digest=subject.digest, size=subject.size),
        annotations=dict(annotations),
    )


def layer_note(layer: Descriptor) -> str:
    """Return ``DIGEST SIZE``, the annotation that names the layer."""
    return f"{layer.digest} {layer.size}"


def noted_layer(note: str, media_type: str, max_bytes: int) -> Descriptor | None:
    """Return the layer that an annotation names; None if that is malformed or too large."""
    found = _LAYER.fullmatch(note)
    if found is None or int(found[2]) > max_bytes:
        return None
    return Descriptor(media_type=media_type, digest=found[1], size=int(found[2]))
