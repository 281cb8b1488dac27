"""From what a reference names to image manifests: below an index, below indexes in indexes.

An index may list anything: images of other machines, attestations, artifacts with the platform of
the image that they belong to (SOCI), other indexes.  What an entry says of itself is asked first;
where that is not enough the manifest is read.  Sources: OCI image index; containerd ``images``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple, Protocol

import msgspec

from lamina.errors import FormatError, NotFoundError
from lamina.oci.manifest import (
    CONFIG_TYPES,
    MAX_CONFIG_BYTES,
    Descriptor,
    ImageConfig,
    ImageIndex,
    Manifest,
    Platform,
    parse_config,
    parse_manifest,
)
from lamina.oci.platform import (
    Preference,
    is_artifact,
    is_nydus,
    is_wanted,
    no_manifest_error,
    platform_names,
    rank_entries,
    runs_on,
    says_platform,
)
from lamina.registry.repository import Repository

MAX_DEPTH: Final = 4
"""How deep indexes may be in indexes, wherever one is read."""
_MAX_READ: Final = 2000
"""Manifests and indexes that are read below one reference."""
_MAX_READ_BYTES: Final = 64 << 20
_MAX_ENTRIES: Final = 1 << 16
"""Entries that are looked at below one reference; one that is met again counts again."""


class Documents(Protocol):
    """Where documents are read from; each is verified by its descriptor."""

    def manifest(self, descriptor: Descriptor) -> bytes:
        """Return a manifest or index.  Raises what a repository raises."""

    def blob(self, descriptor: Descriptor) -> bytes:
        """Return a small blob, of an acceptable size.  Raises what a repository raises."""


class RepositoryDocuments:
    """The documents of a repository, kept nowhere."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    def manifest(self, descriptor: Descriptor) -> bytes:
        """Return a manifest or index."""
        return self._repository.manifest(descriptor)[1]

    def blob(self, descriptor: Descriptor) -> bytes:
        """Return a small blob."""
        with self._repository.open_blob(descriptor) as stream:
            return stream.read()


class Found(NamedTuple):
    """An image manifest, and the entry or the name that led to it."""

    descriptor: Descriptor
    manifest: Manifest


def find_image(
    top: Descriptor,
    document: Manifest | ImageIndex,
    documents: Documents,
    platform: str | Platform | None = None,
    *,
    prefer: Preference = "nydus",
) -> Found:
    """Return the image that runs best on a platform (None: this machine) in or below a document,
    which *top* names.

    A manifest that is named itself is taken whatever it is.  Raises NotFoundError that lists the
    platforms there are, FormatError for indexes without end.
    """
    if isinstance(document, Manifest):
        return Found(top, document)
    walk = _Walk(documents)
    found = walk.best(document, platform, prefer)
    if found is None:
        raise no_manifest_error(walk.leaves(document), platform)
    return found


def read_image(
    repository: Repository, platform: str | Platform | None = None, *, prefer: Preference = "oci"
) -> Found:
    """Return the image that a repository's reference means on a platform, as :func:`find_image`
    finds it.
    """
    top, data = repository.manifest()
    document = parse_manifest(data, f"manifest of {repository.reference}")
    return find_image(top, document, RepositoryDocuments(repository), platform, prefer=prefer)


def read_ordinary(
    repository: Repository, wanted: Sequence[Platform]
) -> tuple[ImageIndex | None, list[Found]]:
    """Return the index that a repository's reference means and what :func:`find_ordinary` finds in
    it; None and the image for a manifest that is named itself, whatever it is.
    """
    top, data = repository.manifest()
    where = str(repository.reference)
    document = parse_manifest(data, f"manifest of {where}")
    if isinstance(document, Manifest):
        return None, [Found(top, document)]
    return document, find_ordinary(document, RepositoryDocuments(repository), wanted, where)


def find_ordinary(
    index: ImageIndex, documents: Documents, wanted: Sequence[Platform], where: str
) -> list[Found]:
    """Return the images of the wanted platforms in or below an index, of all if there are none;
    each with the platform that its entry says, or else its configuration.

    Attestations, other artifacts and Nydus images are passed over.  Raises NotFoundError if
    *where*, as the user calls it, lacks a wanted platform.
    """
    entries = list_entries(index, documents)
    chosen: dict[str, Found] = {}
    for entry in entries:
        found = None if entry.digest in chosen else _ordinary(entry, documents, wanted)
        if found is not None:
            chosen[entry.digest] = found
    there = [one.descriptor.platform for one in chosen.values()]
    if not chosen or not all(_is_among(there, want) for want in wanted):
        raise NotFoundError(
            f"{where} has no image of some wanted platform",
            hint=f"it has: {platform_names(entries) or 'no platforms'}",
        )
    return list(chosen.values())


def list_entries(index: ImageIndex, documents: Documents) -> list[Descriptor]:
    """Return the entries of an index that are no indexes, those of indexes in it in their place.

    Raises FormatError for indexes without end.
    """
    return list(_Walk(documents).leaves(index))


def is_image(manifest: Manifest) -> bool:
    """Tell whether a manifest is one of a container image, as far as its types tell."""
    if manifest.is_nydus or manifest.is_sealed:
        return True
    return manifest.config.media_type in CONFIG_TYPES and manifest.artifact_type in (
        "",
        *CONFIG_TYPES,
    )


def load_config(manifest: Manifest, documents: Documents) -> ImageConfig:
    """Return the configuration of an image.  Raises FormatError if it is too large or malformed."""
    if manifest.config.size > MAX_CONFIG_BYTES:
        raise FormatError(f"the image configuration claims {manifest.config.size} bytes")
    return parse_config(documents.blob(manifest.config))


def read_config(repository: Repository, manifest: Manifest) -> ImageConfig:
    """Do as :func:`load_config`, from a repository."""
    return load_config(manifest, RepositoryDocuments(repository))


def check_platform(
    manifest: Manifest, documents: Documents, wanted: Sequence[str], where: object
) -> None:
    """Raise NotFoundError if an image that is named itself says that it is for none of the wanted
    platforms.
    """
    if manifest.is_sealed or manifest.config.media_type not in CONFIG_TYPES:
        return
    own = load_config(manifest, documents).platform
    if own.architecture and not any(runs_on(own, text) for text in wanted):
        raise NotFoundError(
            f"{where} has no manifest for {', '.join(sorted(wanted))}",
            hint=f"it is a single image for {own}",
        )


def check_layers(manifest: Manifest, config: ImageConfig, what: str = "the image") -> None:
    """Raise FormatError unless the configuration of an ordinary image has one diff_id a layer, as
    every runtime demands.
    """
    layers, diff_ids = len(manifest.layers), len(config.rootfs.diff_ids)
    if layers != diff_ids:
        raise FormatError(
            f"{what} has {layers} layers, but its configuration has {diff_ids} diff_ids",
            hint="the image was put together wrongly; containerd and podman refuse it too",
        )


def _is_among(there: Sequence[Platform | None], want: Platform) -> bool:
    """Tell whether one of some platforms is a wanted one; a native image need not say its own."""
    return any(not says_platform(one) or is_wanted(one, (want,)) for one in there)


def _ordinary(entry: Descriptor, documents: Documents, wanted: Sequence[Platform]) -> Found | None:
    """Return the image of an entry, if it is a wanted one."""
    platform = entry.platform
    said = says_platform(platform)
    if not entry.is_manifest or is_nydus(entry) or is_artifact(entry):
        return None
    if platform is not None and platform.os == "unknown":
        return None
    if said and not is_wanted(platform, wanted):
        return None
    manifest = _image(parse_manifest(documents.manifest(entry), f"manifest {entry.digest}"), entry)
    if not is_image(manifest):
        return None
    if not said and not (manifest.is_nydus or manifest.is_sealed):
        platform = load_config(manifest, documents).platform
        if not is_wanted(platform, wanted):
            return None
        entry = msgspec.structs.replace(entry, platform=platform)
    return Found(entry, manifest)


def _image(document: Manifest | ImageIndex, entry: Descriptor) -> Manifest:
    if isinstance(document, ImageIndex):
        raise FormatError(f"the manifest {entry.digest} is an index, but listed as an image")
    return document


def _endless() -> FormatError:
    return FormatError("the image is an index of indexes of indexes without end")


class _Walk:
    """A walk through indexes in indexes, of which each is read once, and not too many.

    One may be listed any number of times, in others that are, so what is looked at is counted too.
    """

    def __init__(self, documents: Documents) -> None:
        self._documents = documents
        self._kept: dict[str, Manifest | ImageIndex] = {}
        self._kept_bytes = 0
        self._entries = 0

    def document(self, entry: Descriptor, depth: int) -> Manifest | ImageIndex:
        found = self._kept.get(entry.digest)
        if found is None:
            is_full = len(self._kept) >= _MAX_READ or self._kept_bytes > _MAX_READ_BYTES
            if depth > MAX_DEPTH or is_full:
                raise _endless()
            found = parse_manifest(self._documents.manifest(entry), f"manifest {entry.digest}")
            self._kept[entry.digest] = found
            self._kept_bytes += len(found.raw)
        return found

    def _count(self, index: ImageIndex) -> None:
        self._entries += len(index.manifests)
        if self._entries > _MAX_ENTRIES:
            raise _endless()

    def leaves(self, index: ImageIndex, depth: int = 1) -> Iterator[Descriptor]:
        """Yield all entries below that are no indexes."""
        self._count(index)
        for entry in index.manifests:
            document = self.document(entry, depth) if entry.is_index else None
            if isinstance(document, ImageIndex):
                yield from self.leaves(document, depth + 1)
            else:
                yield entry

    def best(
        self, index: ImageIndex, platform: str | Platform | None, prefer: Preference, depth: int = 1
    ) -> Found | None:
        """Return the best image for a platform.  Of entries that fit as well as each other the
        first that is an image; the first at all if none is.
        """
        self._count(index)
        ranked = rank_entries(index, platform, prefer)
        fallback: tuple[int, Found] | None = None
        for rank, entry in ranked:
            if fallback is not None and rank > fallback[0]:
                break
            document = self.document(entry, depth)
            if isinstance(document, ImageIndex):
                found = self.best(document, platform, prefer, depth + 1)
                if found is not None:
                    return found
                continue
            found = Found(entry, document)
            is_sure = says_platform(entry.platform) or len(ranked) == 1
            if is_image(document) and (is_sure or self._fits(document, platform)):
                return found
            fallback = fallback or (rank, found)
        return None if fallback is None else fallback[1]

    def _fits(self, manifest: Manifest, platform: str | Platform | None) -> bool:
        """Tell whether the configuration of an image names a platform, or none."""
        if manifest.is_sealed:
            return True
        own = load_config(manifest, self._documents).platform
        return not own.architecture or runs_on(own, platform)
