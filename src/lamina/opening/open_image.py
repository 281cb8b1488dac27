"""From an :class:`~lamina.opening.request.OpenRequest` to an opened image, in four steps.

1. :mod:`lamina.opening.version`: which version is meant, and whether a policy accepts it.
2. :mod:`lamina.opening.manifest`: the manifest that brings the metadata.
3. :mod:`lamina.opening.metadata`: configuration and metadata layer, verified and in the store.
4. :mod:`lamina.opening.assemble`: the tree over blobs that are fetched when they are read.

The first opening fetches manifest, configuration and metadata layer, verifies each by its digest
and keeps what is in them in the node store.  Later openings ask the registry only what a tag points
to, and nothing at all for a digest; they map the bootstrap and never read all of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec

from lamina.image.errors import NoIndexError, UntrustedIndexError
from lamina.oci.reference import parse_reference
from lamina.opening.assemble import assemble
from lamina.opening.early_start import Start, early_start, may_be_early
from lamina.opening.known_names import remember_name
from lamina.opening.manifest import FoundManifest, find_manifest
from lamina.opening.metadata import read_metadata
from lamina.opening.node import Node, process_node
from lamina.opening.open_trust import read_open_trust
from lamina.opening.place import Place
from lamina.opening.version import Version, choose_version
from lamina.registry.open_repository import open_repository
from lamina.registry.repository_source import RepositorySource
from lamina.source.folder_source import FolderSource
from lamina.store.node import NodeStore

if TYPE_CHECKING:
    from lamina.content.lazy_image import LazyImage
    from lamina.opening.lazy_index import IndexPolicy
    from lamina.opening.open_trust import OpenTrust
    from lamina.opening.request import OpenRequest
    from lamina.source.blob_source import BlobSource


class Indexer(Protocol):
    """Builds an index of an ordinary image on this node, for ``index="always"``."""

    def __call__(self, place: Place, request: OpenRequest, version: Version) -> None:
        """Index a version and keep the index in the store; raises what reading and indexing
        raise.
        """


class Opening:
    """An image that is being opened, for whoever does something between the steps."""

    def __init__(
        self,
        request: OpenRequest,
        place: Place,
        access: OpenTrust,
        resources: ExitStack,
        *,
        indexer: Indexer | None = None,
        judge: IndexPolicy | None = None,
        sources: Sequence[BlobSource] = (),
        is_early: bool = False,
    ) -> None:
        """Own *resources* until an image does; the rest is that of :func:`begin`."""
        self.request = request
        self.place = place
        self._access = access
        self._resources = resources
        self._indexer = indexer
        self._judge = judge
        self._sources = sources
        self._is_early = is_early

    def version(self) -> Version:
        """Step 1.  Raises what :func:`~lamina.opening.version.choose_version` does."""
        return choose_version(self.place, self.request, self._access.policy)

    def manifest(self, version: Version) -> FoundManifest:
        """Step 2.  Raises what :func:`~lamina.opening.manifest.find_manifest` does."""
        return find_manifest(self.place, self.request, version, self._judge)

    def open(self, version: Version) -> LazyImage:
        """Do steps 2 to 4, after indexing the image if the request says so and there is an indexer.

        The image owns everything from then on.  Raises what the steps raise, and the indexer.
        """
        try:
            return self._open(version)
        except (NoIndexError, UntrustedIndexError):
            if self._indexer is None or self.request.index != "always":
                raise
            self._indexer(self.place, self.request, version)
        return self._open(version)

    def _open(self, version: Version) -> LazyImage:
        found = self.manifest(version)
        with early_start(self.place, found, self.request.start) as start:
            image = self._early(version, found, start) if self._is_early else None
            if image is None:
                image = self._whole(version, found, self._resources)
                start.bind(image)
        named = version.reference.digest
        if named is not None:
            remember_name(self.place, self.request, version.is_asked, (named, found.digest))
        return image

    def _whole(self, version: Version, found: FoundManifest, resources: ExitStack) -> LazyImage:
        content = read_metadata(
            self.place,
            found,
            self._access.keys,
            version.release,
            proven_layers=self.request.proven_layers,
        )
        return assemble(self.place, version, found, content, self._sources, resources)

    def _early(self, version: Version, found: FoundManifest, start: Start) -> LazyImage | None:
        if start.stream is None or self.request.proven_layers:
            # What proves layers is a digest of the whole metadata layer.
            return None
        is_replaceable = self.request.index == "always"
        if not may_be_early(self.place, found, is_replaceable=is_replaceable):
            return None
        from lamina.opening.early_image import open_early

        # What is wrong with an index is no longer a reason to open the image in another way.
        named = found._replace(is_offered=False)

        def whole() -> LazyImage:
            return self._whole(version, named, ExitStack())

        return open_early(self.place, version, found, start.stream, whole, self._resources)


@contextmanager
def begin(
    request: OpenRequest,
    *,
    indexer: Indexer | None = None,
    judge: IndexPolicy | None = None,
    sources: Sequence[BlobSource] = (),
    node: Node | None = None,
    early: bool = False,
) -> Iterator[Opening]:
    """Read keys and policy, and open the store and the place of the image; nothing is fetched yet.

    *judge* is asked before an index that was found beside an ordinary image is used.  *sources* are
    in this process; they are asked before those of the request.  Images that are
    opened with one *node* share its links; it is that of the process unless another is given.
    *early* images may be used before their metadata layer has come
    (:mod:`lamina.opening.early_image`).

    Raises UsageError for a malformed reference, what reading keys and policy raises, StoreError,
    and NotFoundError or FormatError for a local place that is not there or is none.
    """
    where = request.where
    access = read_open_trust(request)
    store = open_store(request)
    with ExitStack() as stack:
        repository = stack.enter_context(open_repository(where, options=request.client))
        folders = tuple(map(FolderSource, request.blob_dirs))
        place = Place(repository, store, node or process_node(), folders, access.keys)
        found = [*sources, *folders, *_named_sources(request, stack)]
        yield Opening(
            request,
            place,
            access,
            stack,
            indexer=indexer,
            judge=judge,
            sources=found,
            is_early=early,
        )


def open_image(
    request: OpenRequest,
    *,
    indexer: Indexer | None = None,
    judge: IndexPolicy | None = None,
    sources: Sequence[BlobSource] = (),
    node: Node | None = None,
    early: bool = False,
) -> LazyImage:
    """Open a native image, or an ordinary one by its index.  Nothing of its files is fetched yet.

    The arguments are those of :func:`begin`.  Indexing forks processes, so threads should not run
    when *indexer* is given.

    Raises UsageError for a malformed reference, NotFoundError, AuthError or FetchError if the image
    cannot be had, NoIndexError for an ordinary OCI image without an index, IntegrityError or
    FormatError for one that is not what it claims to be, TrustError if the policy refuses it or no
    key opens it, and StoreError if it cannot be kept.
    """
    with begin(
        request, indexer=indexer, judge=judge, sources=sources, node=node, early=early
    ) as opening:
        return opening.open(opening.version())


def index_first(request: OpenRequest, indexer: Indexer) -> OpenRequest:
    """Return a request for a process that cannot index: the image is indexed here if it has to be,
    and pinned to the version that was.

    Raises what :func:`open_image` does.
    """
    if request.index != "always":
        return request
    with open_image(request, indexer=indexer) as image:
        origin = image.origin
        assert origin is not None
        return msgspec.structs.replace(request, index="auto", pinned=origin.pinned)


def open_store(request: OpenRequest) -> NodeStore:
    """Return the node store of a request.  Raises StoreError, UsageError."""
    root = None if request.store is None else Path(request.store)
    return NodeStore(root, budget=request.store_budget)


def _named_sources(request: OpenRequest, stack: ExitStack) -> Iterator[BlobSource]:
    home = request.where
    for text in request.sources:
        where = parse_reference(text)
        client = request.client
        if (where.transport, where.registry) != (home.transport, home.registry):
            # Credentials are for the registry that they were given for, and nobody else.
            client = replace(client, username=None, password=None)
        yield RepositorySource(stack.enter_context(open_repository(where, options=client)))
