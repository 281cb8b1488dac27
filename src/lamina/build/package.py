"""The OCI side of a native image: bootstrap layer, configuration, manifest (RAFS v6 §6)."""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

from lamina.archive.tar import DIRECTORY, Entry
from lamina.archive.tar_writer import END_MARK, encode_entry, file_entry, padding
from lamina.blob.seal_class import SealClass
from lamina.errors import FormatError
from lamina.registry.manifest import (
    NYDUS_BLOB,
    NYDUS_BLOB_MARK,
    NYDUS_BOOTSTRAP_MARK,
    NYDUS_BUILDER_VERSION,
    NYDUS_FS_VERSION,
    NYDUS_SOURCE_DIGEST,
    OCI_CONFIG,
    OCI_LAYER_GZIP,
    OCI_MANIFEST,
    SEALED_BLOB,
    SEALED_CLASS,
    SEALED_PIECES,
    SEALED_ROOT,
    Descriptor,
    ImageConfig,
    Manifest,
    describe,
    encode,
    parse_document,
)
from lamina.version import VERSION

if TYPE_CHECKING:
    from lamina.blob.sealed_description import SealedBlob

FS_VERSION = "6"
GZIP_LEVEL = 4
"""Of the bootstrap layer: level 6 is 3 % smaller and takes twice as long."""
GZIP_PART_BYTES = 512 << 10
GZIP_WINDOW_BYTES = 32 << 10
GZIP_HEADER = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
"""No name, no time, unknown system (RFC 1952)."""
BOOTSTRAP_PATH = b"image/image.boot"
HISTORY = {"created_by": "lamina convert", "comment": "Nydus Bootstrap Layer"}


class BootstrapLayer(NamedTuple):
    """The last layer: its bytes as pushed, its descriptor, and the digest of the tar inside."""

    data: bytes
    descriptor: Descriptor
    diff_id: str


def bootstrap_layer(bootstrap: bytes, metas: Sequence[tuple[str, bytes]]) -> BootstrapLayer:
    """Return the layer with the merged bootstrap and the (blob id, blob.meta) of each blob."""
    annotations = {NYDUS_BOOTSTRAP_MARK: "true", NYDUS_FS_VERSION: FS_VERSION}
    return metadata_layer(metadata_files(bootstrap, metas), annotations)


def metadata_files(
    bootstrap: bytes, metas: Sequence[tuple[str, bytes]]
) -> list[tuple[bytes, bytes]]:
    """Return the (path, content) that every metadata layer has."""
    tables = [(b"image/%s.blob.meta" % blob_id.encode(), meta) for blob_id, meta in metas]
    return [(BOOTSTRAP_PATH, bootstrap), *tables]


def metadata_layer(
    files: Sequence[tuple[bytes, bytes]], annotations: dict[str, str]
) -> BootstrapLayer:
    """Return a layer with files in the folder ``image``."""
    directory = Entry(b"image", DIRECTORY, 0o755, 0, 0, 0, 0, 0, b"", 0, 0, {}, 0)
    parts = [encode_entry(directory)]
    for path, data in files:
        parts += (encode_entry(file_entry(path, len(data), 0o444)), data, padding(len(data)))
    archive = b"".join([*parts, END_MARK])
    data = compress_layer(archive)
    descriptor = describe(OCI_LAYER_GZIP, data, annotations)
    return BootstrapLayer(data, descriptor, "sha256:" + hashlib.sha256(archive).hexdigest())


def compress_layer(archive: bytes) -> bytes:
    """Return one gzip member without a name or time, compressed by all processors.

    Parts are deflated on their own, each with the window before it, and end at a byte (RFC 1951
    §3.2.4); how they are cut does not depend on the machine.
    """
    starts = range(0, max(len(archive), 1), GZIP_PART_BYTES)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        parts = list(pool.map(lambda start: _deflate_part(archive, start), starts))
    trailer = struct.pack("<II", zlib.crc32(archive), len(archive) & 0xFFFFFFFF)
    return b"".join([GZIP_HEADER, *parts, trailer])


def _deflate_part(archive: bytes, start: int) -> bytes:
    end = start + GZIP_PART_BYTES
    window = archive[max(0, start - GZIP_WINDOW_BYTES) : start]
    strategy, memory = zlib.Z_DEFAULT_STRATEGY, 8
    engine = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, -15, memory, strategy, window)
    last = end >= len(archive)
    flush = zlib.Z_FINISH if last else zlib.Z_SYNC_FLUSH
    return engine.compress(memoryview(archive)[start:end]) + engine.flush(flush)


def blob_descriptor(blob_id: str, size_bytes: int) -> Descriptor:
    """Return the descriptor of a data blob."""
    return Descriptor(
        media_type=NYDUS_BLOB,
        digest=f"sha256:{blob_id}",
        size=size_bytes,
        annotations={NYDUS_BLOB_MARK: "true"},
    )


def sealed_descriptor(blob_id: str, sealed: SealedBlob) -> Descriptor:
    """Return the descriptor of a sealed data blob: with its Merkle root, for whoever has no key."""
    annotations = {SEALED_PIECES: str(sealed.piece_count), SEALED_ROOT: sealed.root.hex()}
    if sealed.seal_class is not SealClass.PRIVATE:
        annotations[SEALED_CLASS] = sealed.seal_class.value
    return Descriptor(
        media_type=SEALED_BLOB,
        digest=f"sha256:{blob_id}",
        size=sealed.size_bytes,
        annotations=annotations,
    )


def converted_config(source: bytes, blobs: Sequence[Descriptor], diff_id: str) -> bytes:
    """Return the source's configuration with the layers of the native image; all else stays as it
    is.
    """
    document = parse_document(source, "image configuration", ImageConfig)
    rootfs = document.get("rootfs")
    history = document.get("history")
    if not isinstance(rootfs, dict | None) or not isinstance(history, list | None):
        raise FormatError("The image configuration is malformed: its rootfs or history is.")
    diff_ids = [blob.digest for blob in blobs] + [diff_id]
    changes: dict[str, Any] = {
        "rootfs": {"type": "layers", **(rootfs or {}), "diff_ids": diff_ids},
        "history": [*(history or []), HISTORY],
    }
    return encode({**document, **changes})


def converted_manifest(
    source: Manifest, source_digest: str, config: bytes, layers: Sequence[Descriptor]
) -> bytes:
    """Return the manifest of the native image; it names the one it was made from."""
    annotations = {
        **source.annotations,
        NYDUS_FS_VERSION: FS_VERSION,
        NYDUS_SOURCE_DIGEST: source_digest,
        NYDUS_BUILDER_VERSION: f"lamina {VERSION}",
    }
    manifest = Manifest(
        schema_version=2,
        media_type=OCI_MANIFEST,
        config=describe(OCI_CONFIG, config),
        layers=tuple(layers),
        annotations=annotations,
    )
    return encode(manifest)
