"""What is attached to manifests, in every form that is in use: by ``subject``, or under a tag made
of the digest, as cosign does.

Sources: OCI distribution specification 1.1, "Listing Referrers"; cosign's ``SIGNATURE_SPEC.md``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import partial
from typing import Final, NamedTuple

from lamina.oci.manifest import NYDUS_MANIFEST_ARTIFACT, Descriptor, Manifest, parse_manifest
from lamina.registry.referrers import fallback_tag, list_referrers, look_up, referring_entry
from lamina.registry.repository import Repository

COSIGN_TAGS: Final = {"sig": "signature", "att": "attestation", "sbom": "SBOM"}
"""What cosign has under ``ALGORITHM-HEX.SUFFIX``."""
_BUNDLE: Final = "application/vnd.dev.sigstore.bundle"
_MAX_SUBJECTS: Final = 64
_MAX_ATTACHED: Final = 1000


class Attached(NamedTuple):
    """A manifest that is attached to another; ``tag`` is its name if it is found by that."""

    subject: str
    descriptor: Descriptor
    tag: str | None = None

    @property
    def kind(self) -> str:
        """What it is, in a word for people, or its type."""
        if self.tag is not None:
            return COSIGN_TAGS[self.tag.rpartition(".")[2]]
        kind = self.descriptor.artifact_type
        if kind == NYDUS_MANIFEST_ARTIFACT:
            return "index"
        if kind.startswith(_BUNDLE):
            return "signature"
        return kind or self.descriptor.media_type


def list_attached(repository: Repository, digests: Iterable[str]) -> list[Attached]:
    """Return what is attached to some manifests, to no more than 64 of them, and to that in its
    turn.

    Nothing is verified.  Raises FetchError if the registry does not answer at all.
    """
    found: dict[str, Attached] = {}
    waiting = list(dict.fromkeys(digests))[:_MAX_SUBJECTS]
    for _ in range(_MAX_SUBJECTS):
        if not waiting or len(found) >= _MAX_ATTACHED:
            break
        for one in _attached_to(repository, waiting.pop(0)):
            if one.descriptor.digest not in found:
                found[one.descriptor.digest] = one
                waiting.append(one.descriptor.digest)
    return list(found.values())


def shown_kinds(attached: Iterable[Attached]) -> str:
    """Return how many of which kind, for people: ``2 signatures, 1 index``."""
    numbers = Counter(one.kind for one in attached)
    return ", ".join(f"{number} {_plural(kind, number)}" for kind, number in numbers.items())


def _attached_to(repository: Repository, digest: str) -> list[Attached]:
    found = []
    for entry in list_referrers(repository, digest):
        attached = look_up(partial(_read, repository, entry))
        if isinstance(attached, Descriptor):
            found.append(Attached(digest, attached))
    for suffix in COSIGN_TAGS:
        tag = f"{fallback_tag(digest)}.{suffix}"
        tagged = look_up(partial(repository.manifest, tag))
        if isinstance(tagged, tuple):
            found.append(Attached(digest, tagged[0], tag))
    return found


def _read(repository: Repository, entry: Descriptor) -> Descriptor | None:
    """Return an entry of a list with its type; None for one that does not refer to anything."""
    document = parse_manifest(repository.manifest(entry)[1], f"manifest {entry.digest}")
    if isinstance(document, Manifest) and document.is_nydus and not document.artifact_type:
        document.artifact_type = NYDUS_MANIFEST_ARTIFACT
    return referring_entry(entry, document) if document.subject is not None else None


def _plural(kind: str, number: int) -> str:
    if number == 1 or "/" in kind:
        return kind
    return "indexes" if kind == "index" else f"{kind}s"
