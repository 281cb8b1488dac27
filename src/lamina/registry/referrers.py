"""What refers to a manifest by its ``subject``: signatures, indexes, attestations.

A registry with the referrers API lists them itself.  Elsewhere, in older registries and in layout
folders, they are listed in an index under a tag made of the manifest's digest.  Source: OCI
distribution specification 1.1, "Listing Referrers" and "Referrers Tag Schema".
"""

from __future__ import annotations

import re
from typing import Final, Protocol, runtime_checkable

import msgspec

from lamina.errors import FormatError, NotFoundError, UsageError
from lamina.registry.manifest import (
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Index,
    Manifest,
    encode,
    parse_index,
)
from lamina.registry.repository import Repository

MAX_REFERRERS: Final = 256
_FALLBACK_TAG: Final = re.compile(r"sha(256-[0-9a-f]{64}|512-[0-9a-f]{128})")


@runtime_checkable
class ReferrersApi(Protocol):
    """A repository that may know by itself what refers to a manifest."""

    def referrers(self, digest: str, limit: int) -> tuple[Descriptor, ...] | None:
        """Everything that refers to a manifest, a little more than ``limit`` at most; None without
        the API.
        """

    def push_referring(
        self, tag: str | None, media_type: str, data: bytes
    ) -> tuple[Descriptor, bool]:
        """Store a manifest that has a subject; also whether the registry will list it."""


def fallback_tag(digest: str) -> str:
    """The tag of the index of everything that refers to a digest."""
    return digest.replace(":", "-", 1)


def is_fallback_tag(tag: str) -> bool:
    """Whether a tag has the form that :func:`fallback_tag` gives."""
    return _FALLBACK_TAG.fullmatch(tag) is not None


def list_referrers(repository: Repository, digest: str) -> tuple[Descriptor, ...]:
    """Everything that is listed as referring to a manifest, which nothing has verified.

    Raises FormatError if it is too much or no index, and what the repository raises.
    """
    found = None
    if isinstance(repository, ReferrersApi):
        found = repository.referrers(digest, MAX_REFERRERS)
    if found is None:
        found = _tagged(repository, digest)
    if len(found) > MAX_REFERRERS:
        raise FormatError(f"{digest} has more than {MAX_REFERRERS} referrers")
    return found


def push_referrer(
    repository: Repository, manifest: Manifest, *, tag: str | None = None
) -> Descriptor:
    """Store a manifest that has a subject, so that it is listed; it also gets ``tag``, if given.

    Its layers and configuration must be there.  Others that refer to the same subject stay listed;
    of two writers at once without the API one may be lost, as the specification says.

    Raises UsageError for a manifest without a subject, and what the repository raises.
    """
    if manifest.subject is None:
        raise UsageError("A manifest without a subject refers to nothing.")
    data, subject = encode(manifest), manifest.subject.digest
    if isinstance(repository, ReferrersApi):
        pushed, listed = repository.push_referring(tag, OCI_MANIFEST, data)
        if not listed:
            _list(repository, subject, _entry(pushed, manifest))
        return pushed
    pushed = repository.push_manifest(tag, OCI_MANIFEST, data)
    _list(repository, subject, _entry(pushed, manifest))
    # The list above is an entry of the folder's index.json, and so shall be what it lists.
    return repository.push_manifest(tag, OCI_MANIFEST, data)


def _entry(pushed: Descriptor, manifest: Manifest) -> Descriptor:
    kind = manifest.artifact_type or manifest.config.media_type
    return msgspec.structs.replace(pushed, artifact_type=kind, annotations=manifest.annotations)


def _list(repository: Repository, subject: str, entry: Descriptor) -> None:
    others = [other for other in _tagged(repository, subject) if other.digest != entry.digest]
    index = Index(schema_version=2, media_type=OCI_INDEX, manifests=(*others, entry))
    repository.push_manifest(fallback_tag(subject), OCI_INDEX, encode(index))


def _tagged(repository: Repository, digest: str) -> tuple[Descriptor, ...]:
    try:
        _, data = repository.manifest(fallback_tag(digest))
    except NotFoundError:
        return ()
    return parse_index(data, f"list of what refers to {digest}").manifests
