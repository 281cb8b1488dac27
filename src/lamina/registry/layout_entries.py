"""What the entries of an OCI layout's ``index.json`` are: images, or what is attached to images.

The specification lets everything be an entry there and says nothing of its meaning, so each tool
has its own way.  Lamina lists referrers by tags of the specification; cosign saves signatures as
entries of a ``kind``; oras lists every manifest that it copied, parts of indexes and what refers to
images included, without names; crane gives images the type of their configuration.
Sources: OCI image layout specification 1.1; layouts of crane 0.22, oras 1.3 and cosign 3.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from lamina.errors import Error
from lamina.oci.manifest import (
    MAX_MANIFEST_BYTES,
    REF_NAME,
    Descriptor,
    ImageIndex,
    Manifest,
    parse_manifest,
)
from lamina.oci.platform import is_artifact
from lamina.registry.referrers import is_fallback_tag, referring_entry

Read = Callable[[str], bytes]
"""The bytes of a manifest by its digest; raises errors of Lamina."""

_ATTACHED_TAG: Final = re.compile(r"sha(256-[0-9a-f]{64}|512-[0-9a-f]{128})\.(sig|att|sbom)")
_COSIGN_KIND: Final = "kind"
_COSIGN_ATTACHED: Final = tuple(f"dev.cosignproject.cosign/{name}" for name in ("sigs", "atts"))
_MAX_READ: Final = 1000


def images(entries: Sequence[Descriptor], read: Read) -> tuple[Descriptor, ...]:
    """Return the entries that are images; manifests are read only where several may be."""
    found = [entry for entry in entries if not looks_attached(entry)]
    if not found and len({entry.digest for entry in entries}) == 1:
        return tuple(entries)
    if len({entry.digest for entry in found}) > 1:
        others = _parts_and_referrers(found, read)
        roots = [entry for entry in found if entry.digest not in others or _name(entry)]
        found = roots or found
    return tuple(found)


def referrers(entries: Sequence[Descriptor], digest: str, read: Read) -> Iterator[Descriptor]:
    """Yield the entries without a name whose manifests refer to a digest, with their types."""
    for entry in [entry for entry in entries if _name(entry) is None][:_MAX_READ]:
        document = _document(entry, read)
        subject = None if document is None else document.subject
        if document is not None and subject is not None and subject.digest == digest:
            yield referring_entry(entry, document)


def cosign_entry(entries: Sequence[Descriptor], tag: str) -> Descriptor | None:
    """Return the entry that ``cosign save`` has in place of its tag for signatures or attestations.

    Such a folder holds one image, and says of the others only that they are its.
    """
    kind = {"sig": "sigs", "att": "atts"}.get(tag.rpartition(".")[2], "")
    digest = tag.rpartition(".")[0].replace("-", ":", 1)
    own = [entry for entry in entries if _kind(entry) not in _COSIGN_ATTACHED]
    if not any(_kind(entry) and entry.digest == digest for entry in own) or len(own) != 1:
        return None
    wanted = f"dev.cosignproject.cosign/{kind}"
    return next((entry for entry in entries if _kind(entry) == wanted), None)


def looks_attached(entry: Descriptor) -> bool:
    """Tell whether the entry itself says that it only refers to images, or lists what does."""
    if _kind(entry) in _COSIGN_ATTACHED:
        return True
    name = _name(entry)
    if name is None:
        return is_artifact(entry)
    if is_fallback_tag(name):
        # Some tools leave the image itself there.
        return entry.is_index
    return _ATTACHED_TAG.fullmatch(name) is not None


def _parts_and_referrers(entries: Sequence[Descriptor], read: Read) -> set[str]:
    """Return the digests of manifests that are parts of indexes or refer to something."""
    found: set[str] = set()
    for entry in entries[:_MAX_READ]:
        document = _document(entry, read) if entry.is_index or _name(entry) is None else None
        if isinstance(document, ImageIndex):
            found.update(part.digest for part in document.manifests)
        if document is not None and document.subject is not None:
            found.add(entry.digest)
    return found


def _document(entry: Descriptor, read: Read) -> Manifest | ImageIndex | None:
    """Return None for what is no manifest, is not there or is damaged."""
    if not (entry.is_manifest or entry.is_index) or entry.size > MAX_MANIFEST_BYTES:
        return None
    try:
        return parse_manifest(read(entry.digest))
    except Error:
        return None


def _name(entry: Descriptor) -> str | None:
    return entry.annotations.get(REF_NAME)


def _kind(entry: Descriptor) -> str:
    return entry.annotations.get(_COSIGN_KIND, "")
