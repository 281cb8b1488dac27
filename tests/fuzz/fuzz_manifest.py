"""Manifests, indexes, configurations and platform choice from any bytes."""

from __future__ import annotations

import json

from lamina.errors import Error
from lamina.oci import manifest as m
from lamina.oci.platform import platform_names, rank_entries

_DIGEST = "sha256:" + "ab" * 32


def target(data: bytes) -> None:
    """Parse the bytes as each kind of document; what was parsed can be encoded and parsed again."""
    for parse in (m.parse_manifest, m.parse_config, m.parse_document):
        try:
            document = parse(data)
        except Error:
            continue
        if isinstance(document, m.Manifest | m.ImageIndex):
            again = m.parse_manifest(m.encode(document))
            assert m.encode(again) == m.encode(document)
        if isinstance(document, m.ImageIndex):
            platform_names(document.manifests)
            for _, entry in rank_entries(document, "linux/amd64", "nydus"):
                assert entry in document.manifests


def seeds() -> list[bytes]:
    """An image manifest, an index, a configuration, a schema 1 manifest, nulls, nesting."""
    blob = {"mediaType": m.OCI_LAYER_GZIP, "digest": _DIGEST, "size": 7, "annotations": {"a": "b"}}
    platform = {"os": "linux", "architecture": "arm", "variant": "v7", "os.features": ["x"]}
    image = {
        "schemaVersion": 2,
        "mediaType": m.OCI_MANIFEST,
        "config": blob,
        "layers": [blob],
        "subject": blob,
    }
    index = {
        "schemaVersion": 2,
        "mediaType": m.OCI_INDEX,
        "manifests": [{**blob, "mediaType": m.OCI_MANIFEST, "platform": platform}],
    }
    config = {
        "os": "linux",
        "architecture": "amd64",
        "config": {"Cmd": None, "Env": ["A=b"], "ExposedPorts": {"80/tcp": {}}},
        "rootfs": {"type": "layers", "diff_ids": [_DIGEST]},
        "history": [{"created_by": "x", "empty_layer": True}],
    }
    schema1 = {"schemaVersion": 1, "fsLayers": [{"blobSum": _DIGEST}]}
    documents = [image, index, config, schema1, {**image, "layers": None}, {**index, "layers": []}]
    return [json.dumps(document).encode() for document in documents] + [b"[" * 2000, b"{}", b"\xff"]
