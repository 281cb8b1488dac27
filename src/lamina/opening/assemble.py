"""Step 4 of opening an image: the tree of its bootstrap over blobs that are fetched when read."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from lamina.content.blob_set import BlobSet
from lamina.content.lazy_image import LazyImage, Origin
from lamina.errors import NotFoundError
from lamina.opening.bootstrap_file import mapped_bootstrap
from lamina.opening.fetched_tables import FetchedTables
from lamina.opening.lazy_index import check_blobs, table_heads
from lamina.opening.manifest import FoundManifest, offered_index
from lamina.opening.network_record import remember_estimate
from lamina.opening.plaintext_storage_policy import refuse_shared_storage
from lamina.registry.repository_source import RepositorySource, hosts_of
from lamina.source.blob_source import BlobSource
from lamina.source.fetcher import Fetcher
from lamina.source.retry import RetryPolicy

if TYPE_CHECKING:
    from lamina.erofs.reader import Bootstrap
    from lamina.opening.place import Place
    from lamina.opening.sealed import Content
    from lamina.opening.version import Version
    from lamina.store.node import NodeStore


def assemble(
    place: Place,
    version: Version,
    found: FoundManifest,
    content: Content,
    sources: Sequence[BlobSource],
    resources: ExitStack,
) -> LazyImage:
    """Return the image, which owns *resources* unless this raises.  Its blobs come from *sources*
    in their order, which have them as they are stored, and from the place if they fail.

    Raises UnusableIndexError, IntegrityError or FormatError if the tree is not one of the image's
    layers.
    """
    where, store = place.reference, place.store
    with ExitStack() as stack:
        with offered_index(found, where):
            path = store.metadata_path(content.files.bootstrap)
            if path is None:
                raise NotFoundError(f"the bootstrap of {where} vanished from the store")
            bootstrap = stack.enter_context(mapped_bootstrap(path))
            if found.indexed is not None:
                check_blobs(found.indexed, bootstrap)
        clear = _sources_in_clear(place, found, content, version.release, sources, stack)
        policy = RetryPolicy.from_environment()
        fetcher = Fetcher(
            clear,
            policy=policy,
            measured=clear[len(sources) :],
            estimator=place.estimator,
            priority=place.node.priority,
        )
        stack.callback(lambda: remember_estimate(store, where, fetcher.estimate))
        fetcher.sequential_reads.blob_sizes = _blob_sizes(found)
        blobs = _blob_set(bootstrap, found, content, fetcher, store)
        stack.callback(blobs.close)
        origin = _origin(place, version, found, content, path)
        owned = resources.pop_all()
        # The place is closed last.
        owned.callback(stack.pop_all().close)
        return LazyImage(bootstrap, blobs, origin=origin, resources=owned)


def _sources_in_clear(
    place: Place,
    found: FoundManifest,
    content: Content,
    release: int | None,
    sources: Sequence[BlobSource],
    resources: ExitStack,
) -> list[BlobSource]:
    """Return where blobs are read from, the place last and its mirrors before it: those of an
    encrypted image that was indexed are its layers, which nobody reads without a key, whatever of
    them is in the store.
    """
    own = [RepositorySource(*host) for host in hosts_of(place.repository)]
    found_in = [*sources, *own]
    if not found.image.is_encrypted:
        return found_in
    from lamina.trust.encryption.decrypted_repository import decrypted_sources

    refuse_shared_storage(place.store.root)
    digest = found.digest if found.indexed is None else found.indexed.image_digest
    keys = None if place.keys is None else place.keys.for_image(digest, release)
    image = place.reference, found.image
    return decrypted_sources(found_in, image, content.config.rootfs.diff_ids, keys, resources)


def _origin(
    place: Place, version: Version, found: FoundManifest, content: Content, path: Path
) -> Origin:
    where = place.reference
    named = where.with_version(tag=where.tag, digest=found.digest)
    accepted = version.reference if version.is_accepted else None
    return Origin(
        path,
        named,
        found.manifest,
        content.config,
        accepted,
        start_secret=content.start_secret,
        note=version.note,
    )


def _blob_sizes(found: FoundManifest) -> dict[str, int]:
    """Return how long the blobs are that may be read, by id."""
    manifests = [found.manifest] if found.indexed is None else [found.manifest, found.indexed.image]
    return {layer.hex: layer.size for each in manifests for layer in each.layers}


def _blob_set(
    bootstrap: Bootstrap,
    found: FoundManifest,
    content: Content,
    fetcher: Fetcher,
    store: NodeStore,
) -> BlobSet:
    files = content.files
    tables = FetchedTables(store, found.digest, files)
    return BlobSet(
        bootstrap,
        files,
        fetcher,
        store,
        on_table=tables.keep,
        on_doubt=tables.forget,
        sealed=content.parts,
        table_heads=table_heads(found.manifest) if found.indexed is not None else None,
    )
