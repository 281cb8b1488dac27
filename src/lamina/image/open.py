"""From a reference to an opened native image.

The first opening fetches manifest, configuration and metadata layer, verifies each by its digest
and keeps what is in them in the node store.  The whole tree is checked then, before anybody sees
any of it, and the record of the image says so.  Later openings ask the registry only what a tag
points to, and nothing at all for a digest; they map the bootstrap and never read all of it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, NamedTuple

from lamina.errors import FormatError, IntegrityError, NotFoundError
from lamina.fetch.fetcher import Fetcher
from lamina.fetch.link import LinkEstimator
from lamina.fetch.retry import RetryPolicy
from lamina.fetch.source import RepositorySource, Source
from lamina.image.access import Access, prove, refuse_index, resident_fact
from lamina.image.blob_set import BlobSet
from lamina.image.errors import NoIndexError
from lamina.image.indexed import (
    Indexed,
    IndexRule,
    IndexUse,
    check_blobs,
    find_index,
    image_of,
    is_index_image,
    table_heads,
    unusable,
)
from lamina.image.link_record import known_link, measured, remember_link
from lamina.image.mapped import mapped_bootstrap
from lamina.image.metadata_layer import MetadataFiles, unpack_metadata_layer
from lamina.image.native import NativeImage, Origin
from lamina.image.sealed import Content, no_key_error, open_sealed
from lamina.image.shared_storage import refuse_shared_storage
from lamina.registry.manifest import (
    CONFIG_TYPES,
    OCI_INDEX,
    Descriptor,
    ImageConfig,
    Manifest,
    parse_manifest,
)
from lamina.registry.platform import Preference, runs_on
from lamina.registry.reference import Reference, parse_reference
from lamina.registry.repository import ClientOptions, Repository, open_repository
from lamina.registry.resolve import find_image, load_config
from lamina.store.node import NodeStore

if TYPE_CHECKING:
    from lamina.erofs.reader import Bootstrap
    from lamina.registry.manifest import Platform

RECORD: Final = "image"


def open_image(
    reference: str | Reference,
    *,
    store: NodeStore | str | os.PathLike[str] | None = None,
    options: ClientOptions | None = None,
    platform: str | Platform | None = None,
    sources: Sequence[Source] = (),
    index: IndexUse | IndexRule = "auto",
    refresh: bool = False,
    access: Access | None = None,
) -> NativeImage:
    """Open a native image, or an ordinary one by the index that is attached to it.

    It may be in a registry, an OCI layout or an archive.

    *store* is the node store or its directory (default: :func:`lamina.store.node.default_root`);
    *platform* chooses from an index, ``OS/ARCHITECTURE[/VARIANT]``, this machine's by default.
    Nothing of the files' content is fetched.  Later it comes from *sources* (peers, mirrors) in
    their order, and from the image's own place if they fail.

    A tag of an image that is resident (:func:`lamina.image.residency.make_resident`) means that
    image, and no network is asked what it points to, unless *refresh* is set.

    An ordinary image is opened by the index that was built of it on this node, or that is attached
    to it, unless *index* is ``"never"``; an :class:`~lamina.image.indexed.IndexRule` also says who
    is asked before an attached one is used.  An index must name that image and have only its layers
    as blobs.

    *access* has the keys of a sealed image, and the policy whose demands are proven before anything
    of the image is read.

    Raises UsageError for a malformed reference, NotFoundError, AuthError or FetchError if the image
    cannot be had, NoIndexError for an ordinary OCI image without an index, IntegrityError or
    FormatError for one that is not what it claims to be, TrustError if the policy refuses it or no
    key opens it, and StoreError if it cannot be kept.
    """
    where = parse_reference(reference) if isinstance(reference, str) else reference
    node = node_store(store)
    with ExitStack() as stack:
        repository = stack.enter_context(open_repository(where, options=options))
        rule = IndexRule(index) if isinstance(index, str) else index
        choice = _choose(repository, node, where, rule, access, refresh=refresh)
        found = _find(repository, node, choice.wanted, platform, choice.rule)
        estimator = LinkEstimator(known_link(node, where))
        place = _Place(repository, node, estimator)
        config = load_config(found.image, place)
        with _optional_index(found, where):
            content = _content(place, found, config, choice.access)
            path = node.metadata_path(content.files.bootstrap)
            if path is None:
                raise NotFoundError(f"the bootstrap of {where} vanished from the store")
            bootstrap = stack.enter_context(mapped_bootstrap(path))
            if found.indexed is not None:
                check_blobs(found.indexed, bootstrap)
        own = RepositorySource(repository)
        policy = RetryPolicy.from_environment()
        fetcher = Fetcher([*sources, own], policy=policy, measured=own, estimator=estimator)
        stack.callback(lambda: remember_link(node, where, fetcher.link))
        fetcher.whole_reads.blob_sizes = _blob_sizes(found)
        blobs = _blob_set(bootstrap, found, content, fetcher, node)
        stack.callback(blobs.close)
        named = where.with_version(tag=where.tag, digest=found.digest)
        origin = Origin(path, named, found.manifest, content.config, choice.accepted)
        return NativeImage(bootstrap, blobs, origin=origin, resources=stack.pop_all())


class _Choice(NamedTuple):
    """Which version is opened; ``accepted`` is the one that a policy proved, if there is one."""

    wanted: Reference
    accepted: Reference | None
    rule: IndexRule
    access: Access | None


def _choose(
    repository: Repository,
    node: NodeStore,
    where: Reference,
    rule: IndexRule,
    access: Access | None,
    *,
    refresh: bool,
) -> _Choice:
    if access is None or access.policy is None:
        wanted = where if refresh else _resident_version(node, where)
        return _Choice(wanted, None, rule, access)
    if not access.is_proven:
        where, access = prove(access, repository, node, where, refresh=refresh)
    return _Choice(where, where, IndexRule(rule.use, rule.policy or refuse_index), access)


class _Found(NamedTuple):
    """The manifest that can be opened and its digest; of an ordinary image those of its index."""

    manifest: Manifest
    digest: str
    indexed: Indexed | None
    is_offered: bool = False
    """Whether nobody named the index: it was found beside the image."""

    @property
    def image(self) -> Manifest:
        """The image itself."""
        return self.manifest if self.indexed is None else self.indexed.image


class _Place(NamedTuple):
    """Where an image is read from, and where what was read is kept."""

    repository: Repository
    node: NodeStore
    estimator: LinkEstimator

    def manifest(self, descriptor: Descriptor) -> bytes:
        """A manifest or index, from the store or into it."""
        data = self.node.metadata(descriptor.digest)
        if data is None:
            _, data = self.repository.manifest(descriptor)
            self.node.put_metadata(data, descriptor.digest)
        return data

    def blob(self, descriptor: Descriptor) -> bytes:
        """A blob whose size was found acceptable, from the store or into it."""
        data = self.node.metadata(descriptor.digest)
        if data is None:
            with self.stream(descriptor) as stream:
                data = stream.read()
            self.node.put_metadata(data, descriptor.digest)
        return data

    @contextmanager
    def stream(self, descriptor: Descriptor) -> Iterator[BinaryIO]:
        """A blob from the repository; what it takes tells of the link."""
        with (
            measured(self.estimator, descriptor.size),
            self.repository.open_blob(descriptor) as stream,
        ):
            yield stream


@contextmanager
def _optional_index(found: _Found, where: Reference) -> Iterator[None]:
    """An index that nobody named and that is not what it should be leaves the image usable."""
    try:
        yield
    except (NotFoundError, FormatError, IntegrityError) as error:
        if not found.is_offered:
            raise
        raise unusable(where, str(error)) from error


def _content(place: _Place, found: _Found, config: ImageConfig, access: Access | None) -> Content:
    manifest, digest = found.manifest, found.digest
    known = _known_files(place.node, digest)
    if manifest.is_sealed:
        opened = _sealed(place, found, config, known, access)
    else:
        opened = Content(known or _metadata_files(place, manifest.layers[-1]), config)
    if known is None:
        place.node.put_record(RECORD, digest, opened.files.encode())
    return opened


def _blob_sizes(found: _Found) -> dict[str, int]:
    """How long the blobs are that may be read, by id."""
    manifests = [found.manifest] if found.indexed is None else [found.manifest, found.indexed.image]
    return {layer.hex: layer.size for each in manifests for layer in each.layers}


def _blob_set(
    bootstrap: Bootstrap, found: _Found, content: Content, fetcher: Fetcher, node: NodeStore
) -> BlobSet:
    files = content.files
    return BlobSet(
        bootstrap,
        files,
        fetcher,
        node,
        on_table=partial(_keep_table, node, found.digest, files, dict(files.tables)),
        sealed=content.parts,
        table_heads=table_heads(found.manifest) if found.indexed is not None else None,
    )


def _find(
    repository: Repository,
    node: NodeStore,
    wanted: Reference,
    platform: str | Platform | None,
    rule: IndexRule,
) -> _Found:
    manifest, digest = _preferred(repository, node, wanted, platform, rule)
    indexed = _indexed(repository, node, (manifest, digest), rule)
    is_offered = indexed is not None and indexed.digest != digest
    if indexed is not None:
        manifest, digest = indexed.manifest, indexed.digest
    if not manifest.is_nydus and not manifest.is_sealed:
        where = repository.reference
        raise NoIndexError(
            f"{where} is an ordinary OCI image, and no index of it is attached",
            hint=f"Index it: lamina index {where}, or convert it: lamina convert",
        )
    return _Found(manifest, digest, indexed, is_offered)


def _preferred(
    repository: Repository,
    node: NodeStore,
    reference: Reference,
    platform: str | Platform | None,
    rule: IndexRule,
) -> tuple[Manifest, str]:
    """As :func:`find_manifest`, but without an index that a list of platforms offers, if unwanted.

    An index that is named itself is wanted in any case.
    """
    found = find_manifest(repository, node, reference, platform)
    if rule.use == "never" and is_index_image(found[0]):
        return find_manifest(repository, node, reference, platform, prefer="oci")
    return found


def _indexed(
    repository: Repository, node: NodeStore, found: tuple[Manifest, str], rule: IndexRule
) -> Indexed | None:
    """What opens an ordinary image, or binds an index that was named itself to its image."""
    manifest, digest = found
    if is_index_image(manifest):
        return image_of(repository, node, manifest, digest)
    if manifest.is_nydus or manifest.is_sealed or rule.use == "never":
        return None
    return find_index(repository, node, found, rule.policy)


def _keep_table(
    node: NodeStore,
    digest: str,
    files: MetadataFiles,
    known: dict[str, str],
    blob_id: str,
    table: str,
) -> None:
    """Remember a chunk table that was fetched, among those *known* of the image."""
    known[blob_id] = table
    node.put_record(RECORD, digest, files._replace(tables=known).encode())


def find_manifest(
    repository: Repository,
    node: NodeStore,
    reference: Reference,
    platform: str | Platform | None,
    *,
    prefer: Preference = "nydus",
) -> tuple[Manifest, str]:
    """Return the image manifest that *reference* names on *platform*, and its digest."""
    digest = reference.digest
    descriptor: Descriptor | str
    if digest is None:
        # Whoever is asked what a tag means answers with the manifest.
        descriptor, kept = repository.manifest()
        digest = node.put_metadata(kept, descriptor.digest)
    else:
        descriptor = digest
    data = node.metadata(digest)
    if data is None:
        _, data = repository.manifest(descriptor)
        node.put_metadata(data, digest)
    document = parse_manifest(data, f"manifest of {reference}")
    place = _Place(repository, node, LinkEstimator())
    if isinstance(document, Manifest):
        if platform is not None:
            _check_platform(place, document, str(platform))
        return document, digest
    top = Descriptor(media_type=OCI_INDEX, digest=digest, size=len(data))
    found = find_image(top, document, place, platform, prefer=prefer)
    return found.manifest, found.descriptor.digest


def _check_platform(place: _Place, manifest: Manifest, platform: str) -> None:
    """Raise NotFoundError for an image of one platform that is not the one asked for."""
    if manifest.is_sealed or manifest.config.media_type not in CONFIG_TYPES:
        return
    config = load_config(manifest, place)
    if config.architecture and not runs_on(config.platform, platform):
        raise NotFoundError(
            f"{place.repository.reference} has no manifest for {platform}",
            hint=f"it is a single image for {config.platform}",
        )


def _resident_version(node: NodeStore, reference: Reference) -> Reference:
    digest = resident_fact(node, reference, "digest")
    return reference if digest is None else reference.with_version(digest=digest)


def _sealed(
    place: _Place,
    found: _Found,
    config: ImageConfig,
    known: MetadataFiles | None,
    access: Access | None,
) -> Content:
    if access is None or not access.keys:
        raise no_key_error(place.repository.reference)
    refuse_shared_storage(place.node.root)
    keys = access.keys.for_image(found.digest, access.release)
    diff_ids = config.rootfs.diff_ids
    return open_sealed(found.manifest, diff_ids, place.blob, place.node, keys, known)


def _metadata_files(place: _Place, layer: Descriptor) -> MetadataFiles:
    with place.stream(layer) as stream:
        return unpack_metadata_layer(stream, layer.media_type, place.node)


def _known_files(node: NodeStore, digest: str) -> MetadataFiles | None:
    """What an earlier opening of the image put into the store, if it is still there."""
    record = node.record(RECORD, digest)
    files = None if record is None else MetadataFiles.decode(record)
    if files is None or not files.present(node):
        return None
    checked = files.checked(node)
    if checked is not files:
        node.put_record(RECORD, digest, checked.encode())
    return checked


def node_store(store: NodeStore | str | os.PathLike[str] | None) -> NodeStore:
    """Return a store from what callers may give for one."""
    if isinstance(store, NodeStore):
        return store
    return NodeStore(None if store is None else Path(store))
