"""What refers to a manifest by its ``subject``: signatures, indexes, attestations.

A registry with the referrers API lists them itself.  Elsewhere, in older registries and in layout
folders, they are listed in an index under a tag made of the manifest's digest.  Source: OCI
distribution specification 1.1, "Listing Referrers" and "Referrers Tag Schema".

Looking them up is optional: a registry that has no list answers with whatever it likes, an error, a
page for people, or the image itself, and all of that means that nothing refers to the manifest.
Whoever demands something of what is listed, a signature for instance, misses it then.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from logging import getLogger
from typing import Any, Final, Protocol, TypeVar, runtime_checkable

import msgspec

from lamina.errors import (
    AuthError,
    FetchError,
    FormatError,
    IntegrityError,
    NotFoundError,
    UnsupportedError,
    UsageError,
)
from lamina.http.transient import TransientError
from lamina.oci.manifest import (
    INDEX_TYPES,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    ImageIndex,
    Manifest,
    encode,
    parse_document,
    parse_index,
)
from lamina.registry.repository import Repository

LOG: Final = getLogger("lamina")

MAX_REFERRERS: Final = 256
_FALLBACK_TAG: Final = re.compile(r"sha(256-[0-9a-f]{64}|512-[0-9a-f]{128})")

T = TypeVar("T")


@runtime_checkable
class ReferrersList(Protocol):
    """A repository that may know by itself what refers to a manifest."""

    def referrers(self, digest: str) -> Iterator[Descriptor]:
        """Everything that refers to a manifest; NotFoundError if nobody lists that."""


@runtime_checkable
class ReferrersApi(ReferrersList, Protocol):
    """A repository that lists what is pushed with a subject, or says that it does not."""

    def push_referring(
        self, tag: str | None, media_type: str, data: bytes
    ) -> tuple[Descriptor, bool]:
        """Store a manifest that has a subject; also whether the registry will list it."""


def fallback_tag(digest: str) -> str:
    """Return the tag of the index of everything that refers to a digest."""
    return digest.replace(":", "-", 1)


def is_fallback_tag(tag: str) -> bool:
    """Tell whether a tag has the form that :func:`fallback_tag` gives."""
    return _FALLBACK_TAG.fullmatch(tag) is not None


def list_referrers(repository: Repository, digest: str) -> tuple[Descriptor, ...]:
    """Return what is listed as referring to a manifest, which nothing has verified; of more than
    ``MAX_REFERRERS`` the first.

    What is no list means none, with one warning.  Raises FetchError if the registry does not answer
    at all.
    """
    found: dict[str, Descriptor] = {}
    problems: list[str] = []
    if isinstance(repository, ReferrersList):
        _collect(repository.referrers(digest), found, problems)
    if not found or not repository.reference.is_remote:
        # Registries that list nothing may have been pushed to by clients that they told so.
        _collect(_tagged(repository, digest), found, problems)
    if problems:
        _warn(f"{repository.reference}: no list of what refers to {digest}: {'; '.join(problems)}")
    return tuple(found.values())


def look_up(action: Callable[[], T]) -> T | str | None:
    """Return the result of an optional look-up; None if there is nothing, and a text that says why
    if something else is there than was looked for.

    Raises FetchError if the registry does not answer at all.
    """
    try:
        return action()
    except NotFoundError:
        return None
    except TransientError as error:
        if not error.is_answer:
            raise
        return str(error)
    except (FetchError, FormatError, IntegrityError, UnsupportedError) as error:
        return str(error)


def push_referrer(
    repository: Repository, manifest: Manifest | ImageIndex, *, tag: str | None = None
) -> Descriptor:
    """Store a manifest that has a subject, so that it is listed; it also gets *tag*, if given.

    Its layers and configuration must be there.  Others that refer to the same subject stay listed;
    of two writers at once without the API one may be lost, as the specification says.

    Raises UsageError for a manifest without a subject, and what the repository raises.
    """
    if manifest.subject is None:
        raise UsageError("a manifest without a subject refers to nothing")
    data, subject = manifest.raw, manifest.subject.digest
    kind = manifest.media_type or (OCI_INDEX if isinstance(manifest, ImageIndex) else OCI_MANIFEST)
    if isinstance(repository, ReferrersApi):
        pushed, listed = repository.push_referring(tag, kind, data)
        if not listed:
            _list(repository, subject, _entry(pushed, manifest))
        return pushed
    pushed = repository.push_manifest(tag, kind, data)
    _list(repository, subject, _entry(pushed, manifest))
    # The list above is an entry of the folder's index.json, and so shall be what it lists.
    return repository.push_manifest(tag, kind, data)


def referring_entry(entry: Descriptor, manifest: Manifest | ImageIndex) -> Descriptor:
    """Return the entry of a list for a manifest that was read: with its type."""
    kind = manifest.artifact_type
    if not kind and isinstance(manifest, Manifest):
        kind = manifest.config.media_type
    return msgspec.structs.replace(entry, artifact_type=kind)


def _entry(pushed: Descriptor, manifest: Manifest | ImageIndex) -> Descriptor:
    entry = msgspec.structs.replace(pushed, annotations=manifest.annotations)
    return referring_entry(entry, manifest)


def _collect(
    entries: Iterable[Descriptor], found: dict[str, Descriptor], problems: list[str]
) -> None:
    """Add entries until they end, are too many, or turn out to be something else."""

    def collect() -> None:
        for entry in entries:
            if len(found) >= MAX_REFERRERS:
                raise FormatError(f"more than {MAX_REFERRERS} are listed; the rest is left out")
            # An OCI layout lists what refers by itself, without annotations and not all of it, and
            # under the tag in the order in which it was attached.
            known = found.pop(entry.digest, None)
            found[entry.digest] = known if known is not None and known.annotations else entry

    problem = look_up(collect)
    if problem is not None:
        problems.append(problem)


def _tagged(repository: Repository, digest: str) -> Iterator[Descriptor]:
    _, data = repository.manifest(fallback_tag(digest))
    yield from parse_index(data, f"manifest {fallback_tag(digest)}").manifests


def _list(repository: Repository, subject: str, entry: Descriptor) -> None:
    document = _list_document(repository, subject)
    others = [
        other
        for other in document.get("manifests") or ()
        if not isinstance(other, dict) or other.get("digest") != entry.digest
    ]
    document["manifests"] = [*others, msgspec.to_builtins(entry)]
    repository.push_manifest(fallback_tag(subject), OCI_INDEX, encode(document))


def _list_document(repository: Repository, subject: str) -> dict[str, Any]:
    """Return the list under the tag, with all that is in it; a new one if it is not there, or if
    something else than a list is, as the image itself.

    Raises FetchError or IntegrityError where a list may be that cannot be read now: nobody's
    entries are to be lost.
    """
    where = f"list of what refers to {subject}"
    new = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}
    try:
        found, data = repository.manifest(fallback_tag(subject))
        if found.media_type not in INDEX_TYPES:
            return new
        return parse_document(data, where, ImageIndex)
    except (AuthError, TransientError):
        raise
    except (NotFoundError, FetchError, FormatError, UnsupportedError):
        return new


@lru_cache(maxsize=256)
def _warn(message: str) -> None:
    """Warn once of the same: opening an image looks up what refers to it more than once."""
    LOG.warning("%s", message)
