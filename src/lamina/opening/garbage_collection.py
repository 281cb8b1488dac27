"""Removing what nothing on this node uses any more: ``lamina gc``."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple

from lamina.errors import Error
from lamina.oci.manifest import ImageIndex, parse_manifest
from lamina.oci.start_manifest import own_starts
from lamina.opening.kept_starts import kept_starts
from lamina.store.node import NodeStore
from lamina.store.records import IMAGE, LAYERS, NAME, SIGNATURES, MetadataFiles


class Collected(NamedTuple):
    """What was removed: number and bytes on disk of blobs and of metadata files."""

    blobs: int
    blob_bytes: int
    files: int
    file_bytes: int


def collect_garbage(
    store: NodeStore, *, older_than_s: float = 0.0, dry_run: bool = False
) -> Collected:
    """Remove blobs that are not open in any process, not read by any kernel mount and not resident,
    and the metadata of images that are left without any.

    With *older_than_s* images stay that were used since then; a *dry_run* only counts.  Raises
    StoreError.
    """
    images = dict(store.records.each(IMAGE))
    since = time.time() - older_than_s
    used = {digest for digest in images if store.records.last_use_s(IMAGE, digest) > since}
    used |= {record.digest for record in store.records.residents() if record.digest in images}
    ids = {blob_id for digest in used for blob_id in images[digest].chunk_sets}
    removed, kept = store.remove_unused_blobs(ids, dry_run=dry_run)
    kept_ids = {stem.rpartition(".")[0] for stem in kept}
    digests: set[str] = set()
    for digest, image in images.items():
        if digest in used or kept_ids & image.chunk_sets.keys():
            digests.update(metadata_of(store, digest, image))
    digests.update(_lists_of(store, digests))
    digests.update(_names_of(store, digests))
    digests.update([start for start, owner in kept_starts(store) if owner in digests])
    files = store.remove_metadata(digests, dry_run=dry_run)
    return Collected(*removed, *files)


def metadata_of(store: NodeStore, digest: str, files: MetadataFiles) -> Iterator[str]:
    """Yield the digests of the metadata that an image needs."""
    yield from (digest, *files.digests)
    layers = store.records.read(LAYERS, digest)
    if layers is not None:
        yield from (*layers.trees.values(), *layers.hash_areas.values())
    yield from _named(store, digest)


def _names_of(store: NodeStore, digests: set[str]) -> list[str]:
    """Names by which an image among *digests* was opened, and what they meant."""
    found = []
    for key, named in store.records.each(NAME):
        if digests.intersection(named.opened.values()):
            found += [key, named.digest]
    return found


def _lists_of(store: NodeStore, digests: set[str]) -> list[str]:
    """Return lists of platforms that a policy accepted, with an image among *digests*: mounts of it
    are proven again by them.
    """
    found = []
    for digest, _ in store.records.each(SIGNATURES):
        try:
            data = store.metadata(digest)
            document = None if data is None else parse_manifest(data, digest)
        except Error:
            continue
        if isinstance(document, ImageIndex) and any(
            e.digest in digests for e in document.manifests
        ):
            found.append(digest)
    return found


def _named(store: NodeStore, digest: str) -> Iterator[str]:
    """Yield what a manifest names: its configuration, its start artifact, the image that it
    indexes, that one's.
    """
    try:
        data = store.metadata(digest)
        document = None if data is None else parse_manifest(data, digest)
    except Error:
        return
    if document is not None and not isinstance(document, ImageIndex):
        yield document.config.digest
        yield from (start.layer.digest for start in own_starts(document))
        if document.subject is not None and document.subject.digest != digest:
            yield document.subject.digest
            yield from _named(store, document.subject.digest)
