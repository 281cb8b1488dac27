"""Copy images between repositories byte for byte: whole indexes, single platforms, native images,
any artifact.

Blobs go before the manifests that name them, and the tag is set last, so that a copy that breaks
off leaves nothing under a name.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Final, cast

import msgspec

from lamina.errors import FetchError, FormatError, NotFoundError, UnsupportedError
from lamina.oci.manifest import (
    Descriptor,
    ImageIndex,
    Manifest,
    Platform,
    describe,
    encode,
    parse_manifest,
)
from lamina.oci.platform import host_platform, normalise, parse_platform, platform_names
from lamina.registry.attached import Attached, list_attached
from lamina.registry.cosign_tags import push_tagged
from lamina.registry.referrers import push_referrer
from lamina.registry.repository import Repository
from lamina.registry.resolve import (
    MAX_DEPTH,
    RepositoryDocuments,
    check_platform,
    find_image,
    list_entries,
)

_MAX_MANIFESTS: Final = 2000
_MAX_MANIFEST_BYTES: Final = 256 << 20
"""Of all manifests of a copy, which are kept until the blobs are there."""
_JOBS: Final = 4

CopyProgress = Callable[[Descriptor, int], None]
"""Told, from several threads, how many bytes of a blob are in place since the last call."""


@dataclass(frozen=True, slots=True)
class CopyPlan:
    """What a copy moves: manifests, parts before the indexes that list them, what is attached to
    them if that is wanted, and the blobs they name.  ``top`` is what the source's reference names.
    """

    root: Descriptor
    manifests: tuple[tuple[Descriptor, bytes], ...]
    blobs: tuple[Descriptor, ...]
    top: Descriptor
    attached: tuple[tuple[Attached, bytes], ...] = ()

    @property
    def size_bytes(self) -> int:
        """The bytes of all blobs, those that the destination has included."""
        return sum(blob.size for blob in self.blobs)


def copy(
    source: Repository,
    destination: Repository,
    *,
    tag: str | None = None,
    platforms: Sequence[str] | None = None,
    progress: CopyProgress | None = None,
    jobs: int = _JOBS,
) -> Descriptor:
    """Copy what the source's reference names; *tag* defaults to the destination's reference's.

    *platforms* takes only those of an index (``linux/amd64``), and a single image only if it is
    for one of them; None takes all, but one for a docker archive.  Returns the descriptor of what
    the tag points to.  Raises what the repositories raise.
    """
    if platforms is None and destination.reference.transport == "docker-archive":
        plan = plan_copy(source, only=str(host_platform()))
    else:
        plan = plan_copy(source, platforms=platforms)
    return run_copy(plan, source, destination, tag=tag, progress=progress, jobs=jobs)


def plan_copy(
    source: Repository,
    *,
    platforms: Sequence[str] | None = None,
    only: str | None = None,
    referrers: bool = False,
) -> CopyPlan:
    """Read the manifests of a copy.  *only* takes the one best manifest of an index for a
    platform, *referrers* what is attached to the manifests.

    Raises NotFoundError if a platform is not there, FormatError for indexes without end.
    """
    top, data = source.manifest()
    root, document = top, parse_manifest(data)
    if isinstance(document, ImageIndex) and only is not None:
        found = find_image(root, document, RepositoryDocuments(source), only, prefer="oci")
        root, data = found.descriptor, found.manifest.raw
    elif isinstance(document, ImageIndex) and platforms is not None:
        root, data = _filtered(source, root, document, platforms)
    elif isinstance(document, Manifest) and platforms is not None:
        documents = RepositoryDocuments(source)
        check_platform(document, documents, platforms, source.reference)
    gathering = _Gathering(source)
    gathering.add(root, data, 0)
    attached = gathering.add_attached() if referrers else ()
    blobs = tuple(gathering.blobs.values())
    return CopyPlan(root, tuple(gathering.manifests), blobs, top, attached)


def run_copy(
    plan: CopyPlan,
    source: Repository,
    destination: Repository,
    *,
    tag: str | None = None,
    progress: CopyProgress | None = None,
    jobs: int = _JOBS,
) -> Descriptor:
    """Move the blobs of a plan in parallel, then its manifests, and set the tag."""
    from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

    stop = threading.Event()

    def move(blob: Descriptor) -> None:
        _copy_blob(blob, source, destination, progress, stop)

    with ThreadPoolExecutor(jobs, thread_name_prefix="lamina-copy") as pool:
        try:
            # The largest first, so that none is left alone at the end.
            largest_first = sorted(plan.blobs, key=lambda blob: -blob.size)
            futures = [pool.submit(move, blob) for blob in largest_first]
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    name = tag if tag is not None else destination.reference.tag
    *parts, root = plan.manifests
    for descriptor, data in parts:
        destination.push_manifest(None, descriptor.media_type, data, digest=descriptor.digest)
    # Whoever demands a signature shall find it with the tag.
    for attached, data in plan.attached:
        _push_attached(destination, attached, data)
    destination.push_manifest(name, root[0].media_type, root[1], digest=root[0].digest)
    return plan.root


def _push_attached(destination: Repository, attached: Attached, data: bytes) -> None:
    if attached.tag is not None:
        push_tagged(destination, attached.tag, attached.descriptor.media_type, data)
    else:
        push_referrer(destination, parse_manifest(data))


def _copy_blob(
    blob: Descriptor,
    source: Repository,
    destination: Repository,
    progress: CopyProgress | None,
    stop: threading.Event,
) -> None:
    if stop.is_set():
        return
    if destination.mount_blob(blob, source):
        if progress:
            progress(blob, blob.size)
        return
    report = None if progress is None else (lambda size_bytes: progress(blob, size_bytes))
    with _BlobSource(source, blob, stop) as stream:
        destination.push_blob(blob, cast("BinaryIO", stream), report)


def _filtered(
    source: Repository, root: Descriptor, index: ImageIndex, platforms: Sequence[str]
) -> tuple[Descriptor, bytes]:
    """Return the index with the entries of some platforms only, or the one manifest that is left of
    it.
    """
    wanted = [parse_platform(text) for text in platforms]
    entries = list_entries(index, RepositoryDocuments(source))
    there = {normalise(entry.platform) for entry in entries if entry.platform}
    for platform in wanted:
        if platform not in there:
            raise NotFoundError(
                f"{source.reference} has no manifest for {platform}",
                hint=f"it has these platforms: {platform_names(entries) or 'none'}",
            )
    kept = tuple(
        entry
        for entry in entries
        if entry.platform is not None and normalise(entry.platform) in wanted
    )
    if len(kept) == 1:
        return source.manifest(kept[0])
    data = encode(msgspec.structs.replace(index, manifests=kept))
    return describe(root.media_type, data), data


def _names(platform: Platform) -> tuple[str, str, str]:
    return platform.os, platform.architecture, platform.variant


class _Gathering:
    """Walks from a root manifest down to all blobs."""

    def __init__(self, source: Repository) -> None:
        self._source = source
        self.manifests: list[tuple[Descriptor, bytes]] = []
        self.blobs: dict[str, Descriptor] = {}
        self._seen: set[str] = set()
        self._kept_bytes = 0

    def add_attached(self) -> tuple[tuple[Attached, bytes], ...]:
        """Return what is attached to the manifests so far, with its bytes; its parts and blobs are
        gathered, and the root stays the last.
        """
        found = []
        attached = list_attached(self._source, [part.digest for part, _ in self.manifests])
        root = self.manifests.pop()
        for one in attached:
            descriptor, data = self._source.manifest(one.descriptor)
            document = parse_manifest(data, f"manifest {descriptor.digest}")
            if isinstance(document, ImageIndex):
                self._add_parts(document, 1)
            else:
                self._add_blobs(document)
            self._count(data)
            found.append((one, data))
        self.manifests.append(root)
        return tuple(found)

    def add(self, descriptor: Descriptor, data: bytes, depth: int) -> None:
        self._seen.add(descriptor.digest)
        if depth > MAX_DEPTH or len(self._seen) > _MAX_MANIFESTS:
            raise FormatError(f"{self._source.reference} has indexes in indexes without end")
        self._count(data)
        document = parse_manifest(data, f"manifest {descriptor.digest}")
        if isinstance(document, ImageIndex):
            if document.unreadable:
                raise UnsupportedError(
                    f"{self._source.reference} cannot be copied whole: {document.unreadable[0]}",
                    hint="copy one platform of it",
                )
            self._add_parts(document, depth + 1)
        else:
            self._add_blobs(document)
        self.manifests.append((descriptor, data))

    def _add_parts(self, index: ImageIndex, depth: int) -> None:
        for entry in index.manifests:
            if entry.digest not in self._seen:
                self.add(*self._source.manifest(entry), depth)

    def _count(self, data: bytes) -> None:
        self._kept_bytes += len(data)
        if self._kept_bytes > _MAX_MANIFEST_BYTES:
            raise FormatError(
                f"the manifests of {self._source.reference} have more than {_MAX_MANIFEST_BYTES} "
                "bytes"
            )

    def _add_blobs(self, manifest: Manifest) -> None:
        for blob in (manifest.config, *manifest.layers):
            # A layer with URLs is not in the registry: its licence forbids that.
            if not blob.urls:
                self.blobs.setdefault(blob.digest, blob)


class _BlobSource(io.RawIOBase):
    """A blob that is only asked for when it is read, can start over, and ends when the copy is
    stopped.
    """

    def __init__(self, repository: Repository, blob: Descriptor, stop: threading.Event) -> None:
        self._repository = repository
        self._blob = blob
        self._stop = stop
        self._stream: BinaryIO | None = None
        self._position = 0

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = 0, /) -> int:
        if offset or whence:
            raise io.UnsupportedOperation("a blob can only start over")
        self._drop()
        self._position = 0
        return 0

    def read(self, size: int = -1, /) -> bytes:
        if self._stop.is_set():
            raise FetchError("the copy was stopped")
        if self._stream is None:
            self._stream = self._repository.open_blob(self._blob)
        data = self._stream.read(size)
        self._position += len(data)
        return data

    def close(self) -> None:
        if not self.closed:
            self._drop()
        super().close()

    def _drop(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()
