"""The OCI side of a native image: bootstrap layer, configuration, manifest (RAFS v6 §6)."""

from __future__ import annotations

import hashlib
import struct
import zlib
from bisect import bisect_right
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

from lamina.archive.tar import DIRECTORY, Entry
from lamina.archive.tar_writer import END_MARK, encode_entry, file_entry, padding
from lamina.blob.seal_class import SealClass
from lamina.codec.digest import Digester, digest
from lamina.errors import FormatError
from lamina.oci.bootstrap_root import BootstrapRoot
from lamina.oci.manifest import (
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
from lamina.posix.processors import processor_count
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


def bootstrap_layer(
    bootstrap: bytes | bytearray, metas: Sequence[tuple[str, bytes]]
) -> BootstrapLayer:
    """Return the layer with the merged bootstrap and the (blob id, blob.meta) of each blob."""
    root = BootstrapRoot(digest(Digester.BLAKE3, bootstrap).hex(), len(bootstrap))
    annotations = {NYDUS_BOOTSTRAP_MARK: "true", NYDUS_FS_VERSION: FS_VERSION, **root.annotation}
    return metadata_layer(metadata_files(bootstrap, metas), annotations)


def metadata_files(
    bootstrap: bytes | bytearray, metas: Sequence[tuple[str, bytes]]
) -> list[tuple[bytes, bytes | bytearray]]:
    """Return the (path, content) that every metadata layer has."""
    tables: list[tuple[bytes, bytes | bytearray]] = [
        (b"image/%s.blob.meta" % blob_id.encode(), meta) for blob_id, meta in metas
    ]
    return [(BOOTSTRAP_PATH, bootstrap), *tables]


def metadata_layer(
    files: Sequence[tuple[bytes, bytes | bytearray]], annotations: dict[str, str]
) -> BootstrapLayer:
    """Return a layer with files in the folder ``image``."""
    directory = Entry(b"image", DIRECTORY, 0o755, 0, 0, 0, 0, 0, b"", 0, 0, {}, 0)
    archive: list[bytes | bytearray] = [encode_entry(directory)]
    for path, data in files:
        header = encode_entry(file_entry(path, len(data), 0o444))
        archive += (header, data, padding(len(data)))
    archive.append(END_MARK)
    diff_id = hashlib.sha256()
    for part in archive:
        diff_id.update(part)
    packed = compress_layer(archive)
    descriptor = describe(OCI_LAYER_GZIP, packed, annotations)
    return BootstrapLayer(packed, descriptor, "sha256:" + diff_id.hexdigest())


def compress_layer(archive: Sequence[bytes | bytearray]) -> bytes:
    """Return one gzip member without a name or time, compressed by all processors, of an archive in
    pieces of any length.

    Parts are deflated on their own, each with the window before it, and end at a byte (RFC 1951
    §3.2.4); how they are cut does not depend on the machine.
    """
    ends = list(accumulate(map(len, archive)))
    size = ends[-1] if ends else 0
    checksum = 0
    for piece in archive:
        checksum = zlib.crc32(piece, checksum)

    def cut(start: int, end: int) -> bytes:
        number = bisect_right(ends, start)
        found = []
        while start < min(end, size):
            piece, piece_start = archive[number], ends[number] - len(archive[number])
            found.append(piece[start - piece_start : end - piece_start])
            start, number = ends[number], number + 1
        return b"".join(found)

    def deflate(start: int) -> bytes:
        end = start + GZIP_PART_BYTES
        window = cut(max(0, start - GZIP_WINDOW_BYTES), start)
        return _deflate_part(cut(start, end), window, is_last=end >= size)

    with ThreadPoolExecutor(processor_count()) as pool:
        parts = list(pool.map(deflate, range(0, max(size, 1), GZIP_PART_BYTES)))
    trailer = struct.pack("<II", checksum, size & 0xFFFFFFFF)
    return b"".join([GZIP_HEADER, *parts, trailer])


def _deflate_part(part: bytes, window: bytes, *, is_last: bool) -> bytes:
    strategy, memory = zlib.Z_DEFAULT_STRATEGY, 8
    engine = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, -15, memory, strategy, window)
    flush = zlib.Z_FINISH if is_last else zlib.Z_SYNC_FLUSH
    return engine.compress(part) + engine.flush(flush)


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
        raise FormatError("the image configuration is malformed: its rootfs or history is")
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
