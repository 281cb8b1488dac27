"""Removing what nothing on this node uses any more: ``lamina gc``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from lamina.errors import Error
from lamina.image.access import SIGNATURES
from lamina.image.metadata_layer import MetadataFiles
from lamina.image.open import RECORD
from lamina.registry.manifest import Index, parse_manifest
from lamina.store.node import NodeStore


class Collected(NamedTuple):
    """What was removed: number and bytes on disk of blobs and of metadata files."""

    blobs: int
    blob_bytes: int
    files: int
    file_bytes: int


def collect(store: NodeStore) -> Collected:
    """Remove blobs that are not open in any process, not read by any kernel mount and not resident,
    and the metadata of images that are left without any.  Raises StoreError.
    """
    removed, kept = store.remove_unused_blobs()
    digests = set(_kept_digests(store, kept))
    digests.update(_lists_of(store, digests))
    files = store.remove_metadata((RECORD, SIGNATURES), digests)
    return Collected(*removed, *files)


def _kept_digests(store: NodeStore, kept: frozenset[str]) -> Iterator[str]:
    """The digests of metadata that images with a kept blob, and resident images, need."""
    residents = {record.get("digest") for record in store.residents()}
    kept_ids = {stem.rpartition(".")[0] for stem in kept}
    for digest, data in store.records(RECORD):
        files = MetadataFiles.decode(data)
        if files is None:
            continue
        if digest in residents or kept_ids & files.chunk_sets.keys():
            yield from (digest, *files.digests)
            yield from _named(store, digest)


def _lists_of(store: NodeStore, digests: set[str]) -> list[str]:
    """Lists of platforms that a policy accepted, with an image among *digests*: mounts of it are
    proven again by them.
    """
    found = []
    for digest, _ in store.records(SIGNATURES):
        try:
            data = store.metadata(digest)
            document = None if data is None else parse_manifest(data, digest)
        except Error:
            continue
        if isinstance(document, Index) and any(e.digest in digests for e in document.manifests):
            found.append(digest)
    return found


def _named(store: NodeStore, digest: str) -> Iterator[str]:
    """What a manifest names: its configuration, and the image that it indexes with that one's."""
    try:
        data = store.metadata(digest)
        document = None if data is None else parse_manifest(data, digest)
    except Error:
        return
    if document is not None and not isinstance(document, Index):
        yield document.config.digest
        if document.subject is not None and document.subject.digest != digest:
            yield document.subject.digest
            yield from _named(store, document.subject.digest)
