"""Index an ordinary image on the node that wants to open it, where nobody attached an index.

The image is pulled once, whole: its layers are indexed and then unpacked into the node store, so it
is complete here before it is opened.  The index stays in the store and is attached nowhere.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import msgspec

from lamina.blob.table import ChunkTable
from lamina.build.index import index_manifest, refuse_native
from lamina.build.index_build import IndexOptions, build_from_layers
from lamina.build.index_merge import BuiltIndex
from lamina.content.residency import all_extents, fetch
from lamina.oci.manifest import OCI_MANIFEST, Descriptor, ImageConfig, Manifest, encode
from lamina.oci.reference import parse_reference
from lamina.opening.manifest import find_platform
from lamina.opening.metadata_layer import unpack_metadata_layer
from lamina.opening.open_image import open_image
from lamina.opening.place import Place
from lamina.opening.plaintext_storage_policy import refuse_shared_storage
from lamina.opening.request import OpenRequest
from lamina.opening.version import Version
from lamina.registry.open_repository import open_repository
from lamina.registry.repository import Repository
from lamina.registry.repository_source import RepositorySource
from lamina.registry.resolve import check_layers, load_config
from lamina.source.blob_source import BlobSource
from lamina.store.node import NodeStore
from lamina.store.records import IMAGE, INDEX, IndexRecord
from lamina.store.scratch import scratch_folder

Progress = Callable[[str, int, int], None]
"""Told a step's name, its bytes in all, and how many of them were done since the last call."""


def index_here(
    place: Place, request: OpenRequest, version: Version, progress: Progress | None = None
) -> None:
    """Index an ordinary image and keep the index in the store; from a registry also its files.

    An :class:`~lamina.opening.open_image.Indexer`.  Indexing forks processes, so threads should not
    run yet.  Raises what pulling and :func:`lamina.build.index_build.build_from_layers` raise.
    """
    where, repository, store = place.reference, place.repository, place.store
    tell = progress or _ignore
    with ExitStack() as stack:
        wanted = version.reference
        manifest, digest = find_platform(place, wanted, request.platform, prefer="oci")
        refuse_native(manifest)
        config = load_config(manifest, place)
        check_layers(manifest, config, str(where))
        layers = repository
        if where.is_remote:
            folder = stack.enter_context(scratch_folder(store.root))
            layout = parse_reference(f"oci:{folder}/layout")
            layers = stack.enter_context(open_repository(layout, write=True))
            _pull(repository, layers, manifest, tell)
        clear, parts = _in_clear(layers, place, version.release, (manifest, digest), config, stack)
        # Layers that were pulled are read: chunks are finer than by their tables of contents.
        built = _indexed(clear, parts, config, tell, by_table=not where.is_remote)
        kind = manifest.media_type or OCI_MANIFEST
        image = Descriptor(media_type=kind, digest=digest, size=len(manifest.raw))
        _keep(store, image, config.raw, built)
        if where.is_remote:
            pinned = str(where.with_version(digest=digest))
            _fill(msgspec.structs.replace(request, pinned=pinned), RepositorySource(layers), tell)


def _in_clear(
    repository: Repository,
    place: Place,
    release: int | None,
    image: tuple[Manifest, str],
    config: ImageConfig,
    resources: ExitStack,
) -> tuple[Repository, Sequence[Descriptor]]:
    """Return where the layers are read from, and as what, decrypted if they are encrypted."""
    manifest, digest = image
    if not manifest.is_encrypted:
        return repository, manifest.layers
    from lamina.trust.encryption.decrypted_repository import decrypted

    refuse_shared_storage(place.store.root)
    keys = None if place.keys is None else place.keys.for_image(digest, release)
    return decrypted(repository, manifest, config.rootfs.diff_ids, keys, resources)


def _indexed(
    repository: Repository,
    layers: Sequence[Descriptor],
    config: ImageConfig,
    progress: Progress,
    *,
    by_table: bool,
) -> BuiltIndex:
    total = sum(layer.size for layer in layers)
    options = IndexOptions(by_table=by_table, progress=lambda done: progress("index", total, done))
    return build_from_layers(repository, layers, options, diff_ids=config.rootfs.diff_ids)


def _pull(
    repository: Repository, layout: Repository, manifest: Manifest, progress: Progress
) -> None:
    total = sum(layer.size for layer in manifest.layers)
    for layer in manifest.layers:
        with repository.open_blob(layer) as stream:
            layout.push_blob(layer, stream, lambda done: progress("pull", total, done))


def _keep(node: NodeStore, image: Descriptor, config: bytes, built: BuiltIndex) -> None:
    """Keep an index as if it had been opened from where it was attached."""
    manifest, _, _ = index_manifest(image, config, built)
    last = built.last
    files = unpack_metadata_layer(io.BytesIO(last.data), last.descriptor.media_type, node)
    tables = {}
    for blob in built.blobs:
        table = ChunkTable.from_stored(blob.data, blob.entry)
        tables[blob.entry.blob_id] = node.put_metadata(table.to_meta())
    digest = node.put_metadata(encode(manifest))
    node.records.write(IMAGE, digest, msgspec.structs.replace(files, tables=tables))
    node.records.write(INDEX, image.digest, IndexRecord(digest, built.by_table))


def _fill(request: OpenRequest, layers: BlobSource, progress: Progress) -> None:
    """Unpack the layers that were pulled into the store."""
    filling = msgspec.structs.replace(request, index="auto", policy=None, start=None)
    with open_image(filling, sources=[layers]) as image:
        total = sum(blob.size_bytes for blob in image.blobs)
        fetch(image, all_extents(image), lambda done: progress("unpack", total, done))


def _ignore(_step: str, _total_bytes: int, _done_bytes: int) -> None:
    """Tell nobody."""
