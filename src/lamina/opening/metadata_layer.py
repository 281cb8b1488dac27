"""The metadata layer of a native image: what the manifest's last layer brings (RAFS v6 §6.2).

It is a tar with ``image/image.boot``, the file tree, and for every blob ``image/HEX.blob.meta``,
its chunk table.  Older images have ``image.boot`` at the top.  All else in there is ignored.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import groupby
from struct import Struct
from typing import BinaryIO, Final

import msgspec

from lamina.archive.blocks import BLOCK_BYTES, BlockReader
from lamina.archive.stream import open_layer
from lamina.archive.tar import REGULAR, Entry, walk
from lamina.blob.table import MAX_TABLE_SIZE
from lamina.erofs.layout import CHECK_VERSION, CHUNK_ENTRY, MAX_BLOBS
from lamina.erofs.reader import Bootstrap
from lamina.errors import FormatError, StoreError
from lamina.oci.layers_manifest import TREE_NAME
from lamina.oci.manifest import MAX_LAYERS
from lamina.opening.bootstrap_file import mapped_bootstrap
from lamina.store.node import NodeStore
from lamina.store.records import MetadataFiles

BOOTSTRAP_NAMES: Final = (b"image/image.boot", b"image.boot")
TABLE_NAME: Final = re.compile(rb"image/([0-9a-f]{64})\.blob\.meta")
MAX_BOOTSTRAP_BYTES: Final = 768 << 20
"""Some four million files; what checking them takes in memory follows from it."""

MAX_LAYER_BYTES: Final = MAX_BOOTSTRAP_BYTES + (4 << 30)
MAX_SECRET_BYTES: Final = 64 << 20
PART_BYTES: Final = 80 << 14

# Parts of a chunk table entry (RAFS v6 §1.9): 32 blob_index; 0 digest and 72 index.
ENTRY_BLOB: Final = Struct("<32xI44x")
ENTRY_IDENTITY: Final = Struct("<32s40x4s4x")


def unpack_metadata_layer(
    layer: BinaryIO,
    media_type: str,
    store: NodeStore,
    secrets: dict[bytes, bytes] | None = None,
) -> MetadataFiles:
    """Put the files of a metadata layer into *store*.

    Files whose paths are keys of *secrets* are read into its values, and not kept.

    The layer is read to its end, so a stream that verifies there has verified all of it; then the
    whole bootstrap is checked.  Raises FormatError for a layer that is damaged or has no bootstrap,
    or one that breaks a rule, and what reading it raises.
    """
    bootstrap: str | None = None
    tables: dict[str, str] = {}
    plain = hashlib.sha256()
    reader = _reader(layer, media_type, plain.update)
    for entry in _files(reader):
        table = TABLE_NAME.fullmatch(entry.path)
        if secrets is not None and entry.path in secrets:
            secrets[entry.path] = _secret(reader, entry)
        elif entry.path in BOOTSTRAP_NAMES:
            bootstrap = _keep(reader, entry, MAX_BOOTSTRAP_BYTES, store)
        elif table:
            tables[table[1].decode("ascii")] = _keep(reader, entry, 2 * MAX_TABLE_SIZE, store)
        if len(tables) > MAX_BLOBS:
            raise FormatError(f"the metadata layer has chunk tables of over {MAX_BLOBS} blobs")
    reader.drain()
    if bootstrap is None:
        raise FormatError("the metadata layer has no image/image.boot")
    with _checked_bootstrap(bootstrap, store) as opened:
        return MetadataFiles(
            bootstrap,
            tables,
            chunk_sets(opened),
            check=CHECK_VERSION,
            diff_id=f"sha256:{plain.hexdigest()}",
        )


def unpack_layer_trees(layer: BinaryIO, media_type: str, store: NodeStore) -> dict[str, str]:
    """Put the trees of an image's layers into *store*; return their digests by diff_id.

    Raises as :func:`unpack_metadata_layer`.
    """
    trees: dict[str, str] = {}
    reader = _reader(layer, media_type)
    for entry in _files(reader):
        named = TREE_NAME.fullmatch(entry.path)
        if named:
            digest = _keep(reader, entry, MAX_BOOTSTRAP_BYTES, store)
            trees[f"sha256:{named[1].decode('ascii')}"] = digest
        if len(trees) > MAX_LAYERS:
            raise FormatError(f"there are trees of over {MAX_LAYERS} layers")
    reader.drain()
    for digest in trees.values():
        check_stored_bootstrap(digest, store)
    return trees


def check_stored_bootstrap(digest: str, store: NodeStore) -> None:
    """Check a bootstrap in the store.  Raises FormatError if it breaks a rule, StoreError."""
    with _checked_bootstrap(digest, store):
        pass


def checked_files(files: MetadataFiles, store: NodeStore) -> MetadataFiles:
    """Return *files* with the bootstrap checked, if no version of these rules has seen it.

    Raises FormatError if it breaks one.
    """
    if files.check == CHECK_VERSION:
        return files
    with _checked_bootstrap(files.bootstrap, store):
        return msgspec.structs.replace(files, check=CHECK_VERSION)


@contextmanager
def _checked_bootstrap(digest: str, store: NodeStore) -> Iterator[Bootstrap]:
    from lamina.erofs.check import check_bootstrap

    path = store.metadata_path(digest)
    if path is None:
        raise StoreError("the bootstrap vanished from the store while it was unpacked")
    with mapped_bootstrap(path) as opened:
        try:
            check_bootstrap(opened.view)
        except FormatError as error:
            error.hint = error.hint or "the image is damaged or hostile: do not use it"
            raise
        yield opened


def read_secrets(layer: BinaryIO, media_type: str, secrets: dict[bytes, bytes]) -> None:
    """Read the files whose paths are keys of *secrets* into its values, and stop there.

    The layer must have been proven before.  Raises FormatError for a file that is too large.
    """
    reader = _reader(layer, media_type)
    missing = set(secrets)
    for entry in _files(reader):
        if entry.path in missing:
            secrets[entry.path] = _secret(reader, entry)
            missing.remove(entry.path)
            if not missing:
                return


def chunk_sets(bootstrap: Bootstrap) -> dict[str, str]:
    """Return, by blob id, the hex SHA-256 over (digest, number) of the chunks the image knows.

    Two images with the same value for a blob verify its chunks against the same digests.  Takes
    time for every chunk, so it is kept in the record of an image.
    """
    extended = bootstrap.header.extended
    start, size = extended.chunk_table_offset, extended.chunk_table_size
    table = bootstrap.view[start : start + size]
    hashes = [hashlib.sha256() for _ in bootstrap.blobs]
    position = 0
    # Tables are sorted by blob or nearly so: long runs, each hashed by one call.
    for (blob_index,), run in groupby(ENTRY_BLOB.iter_unpack(table)):
        if blob_index >= len(hashes):
            raise FormatError(f"the chunk table names blob {blob_index}, which is not there")
        end = position + CHUNK_ENTRY.size * sum(1 for _ in run)
        while position < end:
            part = table[position : min(end, position + PART_BYTES)]
            fields = ENTRY_IDENTITY.iter_unpack(part)
            hashes[blob_index].update(b"".join([digest + index for digest, index in fields]))
            position += len(part)
    pairs = zip(bootstrap.device_ids, hashes, strict=True)
    return {blob_id: digest.hexdigest() for blob_id, digest in pairs}


def _reader(
    layer: BinaryIO, media_type: str, seen: Callable[[bytes], object] | None = None
) -> BlockReader:
    stream = open_layer(layer, media_type, MAX_LAYER_BYTES)
    if seen is None:
        return BlockReader(lambda: stream.read(BLOCK_BYTES))

    def read() -> bytes:
        data = stream.read(BLOCK_BYTES)
        seen(data)
        return data

    return BlockReader(read)


def _files(reader: BlockReader) -> Iterator[Entry]:
    return (entry for entry in walk(reader) if entry.kind == REGULAR)


def _secret(reader: BlockReader, entry: Entry) -> bytes:
    _check_size(entry, MAX_SECRET_BYTES)
    return b"".join(reader.pieces(entry.size))


def _check_size(entry: Entry, limit: int) -> None:
    if entry.size > limit:
        raise FormatError(
            f"{entry.path.decode()} of the metadata layer has {entry.size} bytes, over {limit}"
        )


def _keep(reader: BlockReader, entry: Entry, limit: int, store: NodeStore) -> str:
    _check_size(entry, limit)
    return store.put_metadata_stream(reader.pieces(entry.size))
