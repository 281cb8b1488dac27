"""Copy an image from one repository to another as it is: blobs first, then manifests, the tag last.

Manifests keep their bytes, so no digest changes.  Nothing gets a valid name before all it needs is
there: a copy that fails leaves unreferenced blobs at most.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from lamina.errors import FormatError, UsageError
from lamina.registry.manifest import Descriptor, Index, Manifest, parse_manifest
from lamina.registry.platform import select_platform
from lamina.registry.repository import Progress, Repository

MAX_INDEX_DEPTH: Final = 4
PARALLEL_BLOBS: Final = 4

Watch = Callable[[str, int | None], Progress]
"""Called with a label and the bytes of a blob that begins to move; returns who is told of them."""


@dataclass(frozen=True, slots=True)
class CopyReport:
    """What was copied: the descriptor at the target, and numbers and bytes of blobs.

    ``copied_*`` count what the target did not have yet.
    """

    descriptor: Descriptor
    blobs: int
    total_bytes: int
    copied_blobs: int
    copied_bytes: int


class _Copy:
    def __init__(self, origin: Repository, target: Repository, watch: Watch | None) -> None:
        self._origin = origin
        self._target = target
        self._watch = watch
        self.blobs: dict[str, Descriptor] = {}
        self.manifests: list[tuple[Descriptor, bytes]] = []

    def collect(self, descriptor: Descriptor, data: bytes, depth: int = 0) -> None:
        """Note all blobs and manifests that a manifest or index needs, the needed ones first."""
        document = parse_manifest(data, f"manifest {descriptor.digest}")
        if isinstance(document, Manifest):
            for blob in (document.config, *document.layers):
                # Layers with URLs are not the registry's to give away (Windows base layers).
                if not blob.urls:
                    self.blobs.setdefault(blob.digest, blob)
        elif depth == MAX_INDEX_DEPTH:
            raise FormatError(f"the index {descriptor.digest} is nested deeper than {depth} levels")
        else:
            known = {item.digest for item, _ in self.manifests}
            for entry in document.manifests:
                if entry.digest not in known:
                    self.collect(*self._origin.manifest(entry), depth + 1)
        self.manifests.append((descriptor, data))

    def move_blobs(self) -> tuple[int, int]:
        """Copy the blobs that the target lacks; return their number and bytes."""
        with ThreadPoolExecutor(PARALLEL_BLOBS, "copy") as pool:
            moved = list(pool.map(self._move, self.blobs.values()))
        return sum(size is not None for size in moved), sum(size or 0 for size in moved)

    def _move(self, blob: Descriptor) -> int | None:
        if self._target.has_blob(blob.digest, blob.size):
            return None
        if self._target.mount_blob(blob, self._origin):
            return None
        progress = None if self._watch is None else self._watch(blob.hex[:12], blob.size)
        with self._origin.open_blob(blob) as stream:
            self._target.push_blob(blob, stream, progress)
        return blob.size

    def push_manifests(self, tag: str | None) -> Descriptor:
        """Store the manifests, the one that the tag names last."""
        *needed, (top, data) = self.manifests
        for descriptor, bytes_ in needed:
            self._target.push_manifest(None, descriptor.media_type, bytes_)
        return self._target.push_manifest(tag, top.media_type, data)


def copy_image(
    origin: Repository,
    target: Repository,
    *,
    platform: str | None = None,
    everything: bool = False,
    watch: Watch | None = None,
) -> CopyReport:
    """Copy what ``origin``'s reference names to the tag of ``target``'s.

    Of an index one platform is copied (None: this machine's), or with ``everything`` all of it.
    Raises UsageError if the target names another digest, and what the repositories raise.
    """
    descriptor, data = origin.manifest(None)
    document = parse_manifest(data, f"manifest of {origin.reference}")
    for _ in range(MAX_INDEX_DEPTH):
        if everything or not isinstance(document, Index):
            break
        descriptor, data = origin.manifest(select_platform(document, platform))
        document = parse_manifest(data, f"manifest of {origin.reference}")
    wanted = target.reference.digest
    if wanted is not None and wanted != descriptor.digest:
        raise UsageError(
            f"the target names the digest {wanted}, but the image has {descriptor.digest}",
            hint="name the target by a tag",
        )
    copy = _Copy(origin, target, watch)
    copy.collect(descriptor, data)
    copied_blobs, copied_bytes = copy.move_blobs()
    pushed = copy.push_manifests(target.reference.tag)
    total_bytes = sum(blob.size for blob in copy.blobs.values())
    return CopyReport(pushed, len(copy.blobs), total_bytes, copied_blobs, copied_bytes)
