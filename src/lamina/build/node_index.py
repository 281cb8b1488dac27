"""Index an ordinary image on the node that wants to open it, where nobody attached an index.

The image is pulled once, whole: its layers are indexed and then unpacked into the node store, so it
is complete here before it is opened.  The index stays in the store and is attached nowhere.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

from lamina.blob.table import ChunkTable
from lamina.build.index import index_manifest, refuse_native
from lamina.build.index_build import IndexOptions, build_from_layers
from lamina.build.index_merge import BuiltIndex
from lamina.fetch.source import RepositorySource
from lamina.image.errors import NoIndexError, UntrustedIndexError
from lamina.image.indexed import BUILT_INDEX
from lamina.image.metadata_layer import unpack_metadata_layer
from lamina.image.open import RECORD, find_manifest, node_store, open_image
from lamina.image.residency import fetch, whole_image
from lamina.registry.manifest import OCI_MANIFEST, Descriptor, Manifest, encode
from lamina.registry.reference import Reference, parse_reference
from lamina.registry.repository import ClientOptions, Repository, open_repository
from lamina.registry.resolve import check_layers, read_config
from lamina.store.node import NodeStore

if TYPE_CHECKING:
    from lamina.image.access import Access
    from lamina.image.native import NativeImage
    from lamina.registry.manifest import Platform

Progress = Callable[[str, int, int], None]
"""Told a step's name, its bytes in all, and how many of them were done since the last call."""


def open_always(
    reference: str | Reference,
    *,
    store: NodeStore | str | os.PathLike[str] | None = None,
    options: ClientOptions | None = None,
    platform: str | Platform | None = None,
    refresh: bool = False,
    access: Access | None = None,
    progress: Progress | None = None,
) -> NativeImage:
    """Do as :func:`lamina.image.open.open_image`, but index an image that has no index, or none
    that a policy lets be used.

    Indexing forks processes, so threads should not run yet.  Raises what opening, pulling and
    :func:`lamina.build.index_build.build_from_layers` raise.
    """
    where = parse_reference(reference) if isinstance(reference, str) else reference
    node = node_store(store)

    def attempt() -> NativeImage:
        return open_image(
            where, store=node, options=options, platform=platform, refresh=refresh, access=access
        )

    try:
        return attempt()
    except (NoIndexError, UntrustedIndexError):
        index_here(where, node, options, platform, progress or _ignore)
    return attempt()


def index_here(
    where: Reference,
    node: NodeStore,
    options: ClientOptions | None,
    platform: str | Platform | None,
    progress: Progress,
) -> None:
    """Index an ordinary image and keep the index in the store; from a registry also its files."""
    with ExitStack() as stack:
        repository = stack.enter_context(open_repository(where, options=options))
        manifest, digest = find_manifest(repository, node, where, platform, prefer="oci")
        refuse_native(manifest)
        config = read_config(repository, manifest)
        check_layers(manifest, config, str(where))
        layers = repository
        if where.is_remote:
            folder = stack.enter_context(
                tempfile.TemporaryDirectory(dir=node.root, prefix=".pull-")
            )
            layers = stack.enter_context(
                open_repository(parse_reference(f"oci:{folder}"), write=True)
            )
            _pull(repository, layers, manifest, progress)
        total = sum(layer.size for layer in manifest.layers)
        # Layers that were pulled are read: chunks are finer than by their tables of contents.
        indexing = IndexOptions(
            by_table=not where.is_remote, progress=lambda done: progress("index", total, done)
        )
        built = build_from_layers(
            layers, manifest.layers, indexing, diff_ids=config.rootfs.diff_ids
        )
        kind = manifest.media_type or OCI_MANIFEST
        image = Descriptor(media_type=kind, digest=digest, size=len(manifest.raw))
        _keep(node, image, config.raw, built)
        if where.is_remote:
            _fill(where.with_version(digest=digest), node, options, layers, progress)


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
    node.put_record(RECORD, digest, files._replace(tables=tables).encode())
    node.put_record(BUILT_INDEX, image.digest, digest.encode("ascii"))


def _fill(
    where: Reference,
    node: NodeStore,
    options: ClientOptions | None,
    layers: Repository,
    progress: Progress,
) -> None:
    """Unpack the layers that were pulled into the store."""
    source = RepositorySource(layers)
    with open_image(where, store=node, options=options, sources=[source]) as image:
        total = sum(blob.size_bytes for blob in image.blobs)
        fetch(image, whole_image(image), lambda done: progress("unpack", total, done))


def _ignore(_step: str, _total_bytes: int, _done_bytes: int) -> None:
    """Tell nobody."""
