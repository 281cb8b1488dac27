"""The images that this node knows: what of them is here, by which names, since when unused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from lamina.errors import Error, UsageError
from lamina.oci.manifest import Manifest, parse_manifest
from lamina.oci.start_manifest import own_starts
from lamina.opening.bootstrap_file import mapped_bootstrap
from lamina.opening.garbage_collection import Collected, metadata_of
from lamina.opening.kept_starts import kept_starts
from lamina.opening.lazy_index import is_index_image
from lamina.store.node import NodeStore
from lamina.store.records import IMAGE, NAME, MetadataFiles, NameRecord


class NodeImage(NamedTuple):
    """An image that was opened here.  Sizes are of its blobs, decompressed; what is ready is
    counted in chunks, and all of it if and only if ``ready_bytes`` is ``total_bytes``.
    """

    digest: str
    kind: str
    """native, sealed, or index (of an ordinary image)."""
    names: tuple[str, ...]
    ready_bytes: int
    total_bytes: int
    resident: bool
    last_used_s: float
    """In seconds since 1970."""
    profiles: int
    """Start artifacts that are kept here.  Those attached to a sealed image are sealed, and do not
    say whose they are, so they do not count.
    """


def list_images(store: NodeStore) -> list[NodeImage]:
    """Return all images whose metadata is in the store, the last used first.  Raises StoreError."""
    names: dict[str, list[str]] = {}
    for _, named in store.records.each(NAME):
        for digest in set(named.opened.values()):
            names.setdefault(digest, []).append(named.name)
    resident = {record.digest: record.name for record in store.records.residents()}
    chunks = store.blob_chunks()
    starts = Counter(digest for _, digest in kept_starts(store))
    found = []
    for digest, files in store.records.each(IMAGE):
        manifest, sizes = _manifest(store, digest), _sizes(store, files)
        if manifest is None or sizes is None:
            continue
        called = {*names.get(digest, ()), *([resident[digest]] if digest in resident else [])}
        found.append(
            NodeImage(
                digest,
                _kind(manifest),
                tuple(sorted(called)),
                sum(_ready_bytes(chunks.get(blob_id, []), *size) for blob_id, size in sizes),
                sum(size_bytes for _, (size_bytes, _) in sizes),
                digest in resident,
                store.records.last_use_s(IMAGE, digest),
                starts[digest] + _own_starts(store, manifest),
            )
        )
    return sorted(found, key=lambda image: (-image.last_used_s, image.digest))


def remove_image(store: NodeStore, image: NodeImage) -> Collected:
    """Remove an image with all that no other image needs.

    Raises UsageError if it is resident or in use, and StoreError.
    """
    if image.resident:
        raise UsageError(
            f"{image.names[0]} is kept for ever", hint=f"lamina unpin {image.names[0]}"
        )
    others = [(digest, files) for digest, files in store.records.each(IMAGE)]
    own = next((files for digest, files in others if digest == image.digest), None)
    others = [(digest, files) for digest, files in others if digest != image.digest]
    shared = {blob_id for _, files in others for blob_id in files.chunk_sets}
    blobs = set() if own is None else own.chunk_sets.keys() - shared
    needed = {name for digest, files in others for name in metadata_of(store, digest, files)}
    metadata = set() if own is None else set(metadata_of(store, image.digest, own)) - needed
    removed = store.remove_blobs(blobs)
    if removed is None:
        raise UsageError(
            f"the image {image.digest} is in use", hint="`lamina mounts` lists what is mounted"
        )
    for key, named in store.records.each(NAME):
        _forget(store, key, named, image.digest)
    for digest in metadata & {image.digest}:
        store.records.remove(IMAGE, digest)
    return Collected(*removed, *store.remove_metadata_of(metadata))


def _forget(store: NodeStore, key: str, named: NameRecord, digest: str) -> None:
    opened = {name: each for name, each in named.opened.items() if each != digest}
    if not opened:
        store.records.remove(NAME, key)
    elif opened != named.opened:
        store.records.write(NAME, key, NameRecord(named.name, named.digest, opened))


def _manifest(store: NodeStore, digest: str) -> Manifest | None:
    try:
        data = store.metadata(digest)
        document = None if data is None else parse_manifest(data, digest)
    except Error:
        return None
    return document if isinstance(document, Manifest) else None


def _own_starts(store: NodeStore, manifest: Manifest) -> int:
    return sum(
        store.metadata_path(entry.layer.digest) is not None for entry in own_starts(manifest)
    )


def _kind(manifest: Manifest) -> str:
    if manifest.is_sealed:
        return "sealed"
    return "index" if is_index_image(manifest) else "native"


def _sizes(store: NodeStore, files: MetadataFiles) -> list[tuple[str, tuple[int, int]]] | None:
    """Return (id, (bytes, chunks)) of each blob; None if the metadata is gone or damaged."""
    path = store.metadata_path(files.bootstrap)
    if path is None:
        return None
    try:
        with mapped_bootstrap(path) as bootstrap:
            return [
                (entry.blob_id, (entry.uncompressed_size, entry.chunk_count))
                for entry in bootstrap.blobs
            ]
    except Error:
        return None


def _ready_bytes(found: list[tuple[int, int]], size_bytes: int, chunk_count: int) -> int:
    """Return how much is ready of a blob that has cache files of (ready, all) chunks."""
    ready = max((ready for ready, chunks in found if chunks == chunk_count), default=0)
    return size_bytes * ready // chunk_count if chunk_count else size_bytes


def with_digest(images: list[NodeImage], text: str) -> Iterator[NodeImage]:
    """Yield the images whose digest begins so, with or without its algorithm; at least six hex
    digits are a digest.
    """
    wanted = text.partition(":")[2] if text.startswith(("sha256:", "sha512:")) else text
    if len(wanted) >= 6 and all(c in "0123456789abcdef" for c in wanted):
        yield from (each for each in images if each.digest.partition(":")[2].startswith(wanted))
