"""What a registry can send of a sealed image: manifests, leaf tables; and sealed descriptions."""

from __future__ import annotations

import json

from lamina.blob.leaf_table import LeafTable, encode_leaf_table
from lamina.blob.merkle import leaf_hash, root_of
from lamina.blob.seal import BlobKey
from lamina.blob.seal_class import PieceKeys
from lamina.blob.sealed_description import SealedBlob, decode_description, encode_description
from lamina.errors import Error
from lamina.oci import manifest as m
from lamina.opening.sealed import leaf_tables

_PIECES = (b"one", b"two pieces", b"three")
_LEAVES = [leaf_hash(number, piece) for number, piece in enumerate(_PIECES)]
_TABLE = encode_leaf_table([len(piece) for piece in _PIECES], b"".join(_LEAVES))
_SIZE = sum(map(len, _PIECES))


def target(data: bytes) -> None:
    """A table passes only if it is the right one; the others end in errors of ours."""
    try:
        LeafTable.decode(data, len(_PIECES), _SIZE, root_of(_LEAVES), "b")
    except Error:
        pass
    else:
        # Lengths are proven with the pieces.
        assert [data[start + 4 : start + 36] for start in range(0, 108, 36)] == _LEAVES
    for parse in (_description, _manifest):
        try:
            parse(data)
        except Error:
            continue


def _description(data: bytes) -> None:
    found = decode_description(data)
    again = decode_description(encode_description(found))
    assert [blob.root for blob in again] == [blob.root for blob in found]
    assert [blob.seal_class for blob in again] == [blob.seal_class for blob in found]


def _manifest(data: bytes) -> None:
    document = m.parse_image_manifest(data)
    if document.is_sealed:
        for table in leaf_tables(document, lambda layer: _TABLE[: layer.size]):
            assert table.extent(0)[0] == 0


def seeds() -> list[bytes]:
    """The right table, a description, a manifest."""
    blob = SealedBlob(
        blob_id=bytes(16), key=BlobKey(bytes(32)), piece_count=3, size_bytes=_SIZE, root=bytes(32)
    )
    tenant = SealedBlob(
        blob_id=bytes(15) + b"\1",
        piece_keys=PieceKeys(bytes(96)),
        piece_count=3,
        size_bytes=_SIZE,
        root=bytes(32),
    )
    public = SealedBlob(blob_id=bytes(15) + b"\2", piece_count=3, size_bytes=_SIZE, root=bytes(32))
    digest = "sha256:" + "ab" * 32
    notes = {m.SEALED_PIECES: "3", m.SEALED_ROOT: root_of(_LEAVES).hex()}
    notes[m.SEALED_CLASS] = "tenant"
    layers = [
        {"mediaType": m.SEALED_BLOB, "digest": digest, "size": _SIZE, "annotations": notes},
        {"mediaType": m.SEALED_LEAVES, "digest": digest, "size": len(_TABLE)},
        {
            "mediaType": m.OCI_LAYER_GZIP + "+encrypted",
            "digest": digest,
            "size": 9,
            "annotations": {m.SEALED_SUITE: "cc-rafs/1"},
        },
    ]
    config = {"mediaType": m.OCI_CONFIG, "digest": digest, "size": 2}
    manifest = {"schemaVersion": 2, "config": config, "layers": layers}
    return [_TABLE, encode_description([blob, tenant, public]), json.dumps(manifest).encode()]
