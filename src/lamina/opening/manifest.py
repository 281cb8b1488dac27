"""Step 2 of opening an image: the manifest that brings its metadata.

That is the manifest of the image for the platform, or that of an index of an ordinary image.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from lamina.errors import FormatError, IntegrityError, NotFoundError
from lamina.image.errors import NoIndexError, UntrustedIndexError
from lamina.oci.manifest import OCI_INDEX, Descriptor, Manifest, parse_manifest
from lamina.oci.platform import Preference
from lamina.opening.lazy_index import (
    IndexPolicy,
    LazyIndex,
    find_index,
    image_of,
    is_index_image,
    unusable,
)
from lamina.registry.resolve import check_platform, find_image

if TYPE_CHECKING:
    from lamina.oci.reference import Reference
    from lamina.opening.place import Place
    from lamina.opening.request import OpenRequest
    from lamina.opening.version import Version
    from lamina.registry.repository import Repository


class FoundManifest(NamedTuple):
    """The manifest that can be opened and its digest; of an ordinary image those of its index."""

    manifest: Manifest
    digest: str
    indexed: LazyIndex | None = None
    is_offered: bool = False
    """Whether nobody named the index: it was found beside the image."""

    @property
    def image(self) -> Manifest:
        """The image itself."""
        return self.manifest if self.indexed is None else self.indexed.image


def find_manifest(
    place: Place, request: OpenRequest, version: Version, judge: IndexPolicy | None = None
) -> FoundManifest:
    """Return what opens a version, which has no index by itself or one that *judge* lets be used.

    With a policy an index that nobody judges is not used: the signature of the image does not
    cover it.  Raises NoIndexError for an ordinary image without an index, TrustError for one that
    may not be used, and what reading manifests raises.
    """
    if judge is None and version.is_accepted:
        judge = refuse_index
    wanted, platform = version.reference, request.platform
    manifest, digest = find_platform(place, wanted, platform)
    if request.index == "never" and is_index_image(manifest):
        # An index that is named itself is wanted in any case, one of a list of platforms is not.
        manifest, digest = find_platform(place, wanted, platform, prefer="oci")
    indexed = None
    if is_index_image(manifest):
        indexed = image_of(place, manifest, digest)
    elif not (manifest.is_nydus or manifest.is_sealed or request.index == "never"):
        indexed = find_index(place, (manifest, digest), judge)
    is_offered = indexed is not None and indexed.digest != digest
    if indexed is not None:
        manifest, digest = indexed.manifest, indexed.digest
    if not manifest.is_nydus and not manifest.is_sealed:
        where = place.reference
        if manifest.is_encrypted:
            raise NoIndexError(
                f"{where} is encrypted, and was not indexed on this node",
                hint="--index always --decryption-key FILE pulls it and indexes it here; lamina "
                "convert --seal --decryption-key FILE makes an image that is encrypted and lazy",
            )
        raise NoIndexError(
            f"{where} is an ordinary OCI image, and no index of it is attached",
            hint=f"index it: lamina index {where}, or convert it: lamina convert",
        )
    return FoundManifest(manifest, digest, indexed, is_offered)


def find_platform(
    place: Place,
    version: Reference,
    platform: str | None,
    *,
    prefer: Preference = "nydus",
) -> tuple[Manifest, str]:
    """Return the image manifest that a version is on a platform, and its digest.

    Raises NotFoundError if there is none for that platform, and what reading manifests raises.
    """
    digest, data = place.named(version)
    document = parse_manifest(data, f"manifest of {version}")
    if isinstance(document, Manifest):
        if platform is not None:
            check_platform(document, place, [platform], place.reference)
        return document, digest
    top = Descriptor(media_type=OCI_INDEX, digest=digest, size=len(data))
    found = find_image(top, document, place, platform, prefer=prefer)
    return found.manifest, found.descriptor.digest


def refuse_index(repository: Repository, index: Descriptor, image: Descriptor) -> None:
    """With a policy an attached index is not used: the signature of the image does not cover it."""
    raise UntrustedIndexError(
        f"the index {index.digest} that is attached in {repository.reference} is not covered by "
        f"the signature of {image.digest}",
        hint="convert the image and sign the result, or index it here: --index always",
    )


@contextmanager
def offered_index(found: FoundManifest, where: Reference) -> Iterator[None]:
    """Leave the image usable if an index that nobody named is not what it should be."""
    try:
        yield
    except (NotFoundError, FormatError, IntegrityError) as error:
        if not found.is_offered:
            raise
        raise unusable(where, str(error)) from error
