"""Find the index of an ordinary image, and prove that it belongs to that image (RAFS v6 §6.5).

An index is a manifest that names the image by ``subject``.  It brings metadata only; its blobs are
the layers of the image itself.  What can be proven without reading the layers is proven here: the
manifest that it names, by digest, has exactly these layers.  Whether names, modes and chunk digests
are those of the layers, only reading them shows (``lamina check --data``); so a policy may demand
that somebody vouches for the index.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Protocol

from lamina.errors import IntegrityError, TrustError
from lamina.image.errors import UnusableIndexError
from lamina.oci.manifest import (
    CONFIG_TYPES,
    INDEX_TABLE_HEAD,
    NYDUS_MANIFEST_ARTIFACT,
    NYDUS_REF,
    OCI_MANIFEST,
    Descriptor,
    Manifest,
    parse_image_manifest,
)
from lamina.registry.referrers import look_up
from lamina.store.records import INDEX

if TYPE_CHECKING:
    from lamina.erofs.reader import Bootstrap
    from lamina.oci.reference import Reference
    from lamina.opening.place import Place
    from lamina.registry.repository import Repository
    from lamina.store.node import NodeStore

_KINDS: Final = ("", NYDUS_MANIFEST_ARTIFACT, *CONFIG_TYPES)
"""Types that indexes are listed with: the tools of Nydus give them none, which then is that of the
configuration.
"""


class IndexPolicy(Protocol):
    """Asked before an index that was found beside an image is used."""

    def __call__(self, repository: Repository, index: Descriptor, image: Descriptor) -> None:
        """Return if *index* may be used for *image*, both in *repository*.

        Raises TrustError if not.
        """


@dataclass(frozen=True, slots=True)
class IndexRule:
    """Whether an attached index is used, and who is asked first (None: nobody)."""

    use: Literal["auto", "never"] = "auto"
    policy: IndexPolicy | None = None


class LazyIndex(NamedTuple):
    """An index and the image that it belongs to."""

    manifest: Manifest
    digest: str
    image: Manifest
    image_digest: str


def is_index_image(manifest: Manifest) -> bool:
    """Tell whether a manifest indexes the layers of another image instead of bringing its own."""
    return (
        manifest.is_nydus
        and manifest.subject is not None
        and all(NYDUS_REF in layer.annotations for layer in manifest.layers[:-1])
    )


def indexed_image(manifest: Manifest) -> Descriptor | None:
    """Return the image that a manifest indexes, None if it is no index."""
    return manifest.subject if is_index_image(manifest) else None


def find_index(
    place: Place, image: tuple[Manifest, str], policy: IndexPolicy | None = None
) -> LazyIndex | None:
    """Return the index of *image*, a manifest and its digest, that was attached last; None
    without one.

    One that was built on this node goes first.  Those that are damaged, belong to another image or
    that the policy refuses are passed over.  If nothing else is left, that is raised: TrustError
    for what the policy says, else UnusableIndexError, with which the image can be opened in other
    ways.  Also raises FetchError if the registry does not answer at all.
    """
    built = _built_here(place.store, image)
    if built is not None:
        return built
    refusal: TrustError | None = None
    problems = []
    for entry in reversed(place.referrers(image[1])):
        try:
            found = look_up(partial(_attached, place.repository, entry, image, policy))
        except TrustError as error:
            refusal = refusal or error
            continue
        if isinstance(found, LazyIndex):
            place.store.put_metadata(found.manifest.raw, found.digest)
            return found
        if found is not None:
            problems.append(found)
    if refusal is not None:
        raise refusal
    if problems:
        raise unusable(place.reference, problems[0])
    return None


def unusable(image: Reference, problem: str) -> UnusableIndexError:
    """Return what is raised for an index that was found beside an image and is not good."""
    return UnusableIndexError(
        f"{image} is an ordinary OCI image, and the index that is attached to it cannot be used: "
        f"{problem}",
        hint=f"index it again: lamina index {image}, or here: --index always",
    )


def _attached(
    repository: Repository,
    entry: Descriptor,
    image: tuple[Manifest, str],
    policy: IndexPolicy | None,
) -> LazyIndex | None:
    """Return an index that is listed for an image; None for something else that is."""
    if entry.artifact_type not in _KINDS or not entry.is_manifest:
        return None
    index = parse_image_manifest(repository.manifest(entry)[1], f"index {entry.digest}")
    if not is_index_image(index):
        return None
    manifest, digest = image
    found = check_subject(LazyIndex(index, entry.digest, manifest, digest))
    if policy is not None:
        kind, size = manifest.media_type or OCI_MANIFEST, len(manifest.raw)
        policy(repository, entry, Descriptor(media_type=kind, digest=digest, size=size))
    return found


def image_of(place: Place, index: Manifest, digest: str) -> LazyIndex:
    """Return an index together with the image that it names.

    Raises IntegrityError if it is none of that image, and what the place raises.
    """
    assert index.subject is not None
    wanted = index.subject.digest
    image = parse_image_manifest(place.manifest(index.subject), f"image {wanted}")
    return check_subject(LazyIndex(index, digest, image, wanted))


def check_subject(found: LazyIndex) -> LazyIndex:
    """Return *found* if the index names its image and layers; raises IntegrityError if not."""
    index, image = found.manifest, found.image
    if index.subject is None or index.subject.digest != found.image_digest:
        raise IntegrityError(
            f"the index {found.digest} is listed for {found.image_digest}, but indexes another "
            "image",
            hint="somebody attached it wrongly; index the image again",
        )
    layers = {layer.digest for layer in image.layers}
    indexed = [layer.annotations.get(NYDUS_REF, layer.digest) for layer in index.layers[:-1]]
    if image.is_nydus or not layers.issuperset(indexed):
        raise IntegrityError(
            f"the index {found.digest} has layers that the image {found.image_digest} has not",
            hint="index the image again",
        )
    return found


def table_heads(index: Manifest) -> dict[str, int]:
    """Return, by blob id, how much of the chunk table is needed at first, of those that tell."""
    found = {}
    for layer in index.layers[:-1]:
        head, blob = (layer.annotations.get(key, "") for key in (INDEX_TABLE_HEAD, NYDUS_REF))
        if re.fullmatch("[1-9][0-9]{0,9}", head):
            found[blob.removeprefix("sha256:")] = int(head)
    return found


def check_blobs(found: LazyIndex, bootstrap: Bootstrap) -> None:
    """Raise IntegrityError unless every blob of the index is a layer of the image, of its size."""
    layers = {layer.hex: layer.size for layer in found.image.layers}
    for blob in bootstrap.blobs:
        size = layers.pop(blob.blob_id, None)
        if size != blob.compressed_size:
            problem = "is no layer of" if size is None else "has another size than the layer of"
            raise IntegrityError(
                f"the blob {blob.blob_id} of the index {found.digest} {problem} the image "
                f"{found.image_digest}",
                hint="do not trust this index; index the image again",
            )


def _built_here(node: NodeStore, image: tuple[Manifest, str]) -> LazyIndex | None:
    record = node.records.read(INDEX, image[1])
    data = None if record is None else node.metadata(record.digest)
    if record is None or data is None:
        return None
    index = parse_image_manifest(data, f"index {record.digest}")
    return check_subject(LazyIndex(index, record.digest, *image))
