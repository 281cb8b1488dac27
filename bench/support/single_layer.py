"""Images of one layer, made of a tar in memory."""

from __future__ import annotations

import hashlib
import io

from lamina.oci.manifest import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, Manifest, describe, encode
from lamina.oci.reference import parse_reference
from lamina.registry.open_repository import open_repository


def push_layer(reference: str, layer: bytes) -> None:
    """Push an image that has this layer and no other."""
    diff_id = f"sha256:{hashlib.sha256(layer).hexdigest()}"
    rootfs = {"type": "layers", "diff_ids": [diff_id]}
    config = encode({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs})
    parts = describe(OCI_CONFIG, config), describe(OCI_LAYER, layer)
    manifest = Manifest(
        schema_version=2, media_type=OCI_MANIFEST, config=parts[0], layers=parts[1:]
    )
    where = parse_reference(reference)
    with open_repository(where, write=True) as repository:
        for descriptor, data in zip(parts, (config, layer), strict=True):
            repository.push_blob(descriptor, io.BytesIO(data))
        repository.push_manifest(where.tag, OCI_MANIFEST, encode(manifest))
