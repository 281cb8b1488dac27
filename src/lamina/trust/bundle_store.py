"""Bundles beside an image: manifests with the image as their ``subject``, listed in an index under
the fallback tag ``ALGORITHM-HEX`` (OCI distribution specification 1.1, "Referrers Tag Schema").

The tag is what registries without the referrers API and layout folders have; it is written beside
the ``subject``, by which the others list the manifest themselves.
"""

from __future__ import annotations

import io
from typing import Final

import msgspec

from lamina.errors import FormatError, NotFoundError
from lamina.registry import manifest as m
from lamina.registry.manifest import Descriptor, Index, Manifest
from lamina.registry.repository import Repository
from lamina.trust import bundle

MAX_REFERRERS: Final = 256
_CONTENT: Final = "dev.sigstore.bundle.content"
_PREDICATE: Final = "dev.sigstore.bundle.predicateType"


def fallback_tag(digest: str) -> str:
    """The tag of the index of everything that refers to a digest."""
    return digest.replace(":", "-", 1)


def read_bundles(repository: Repository, digest: str) -> list[bytes]:
    """All bundles that refer to a manifest, none of them verified.

    Entries of other kinds, and those that refer to something else, are left out.  Raises
    FormatError if there are too many, and what the repository raises.
    """
    index = _read_index(repository, digest)
    found = []
    for entry in index.manifests if index else ():
        # The type that the index gives an entry is not always that of the artifact: cosign 2 writes
        # the type of its configuration there.
        if not entry.is_manifest:
            continue
        manifest = m.parse_image_manifest(repository.manifest(entry)[1], "manifest of a referrer")
        if manifest.subject is None or manifest.subject.digest != digest:
            continue
        for layer in manifest.layers[:1]:
            is_bundle = layer.media_type.startswith(bundle.MEDIA_TYPE_PREFIX)
            if is_bundle and layer.size <= bundle.MAX_BUNDLE_BYTES:
                with repository.open_blob(layer) as stream:
                    found.append(stream.read())
    return found


def add_bundle(repository: Repository, subject: Descriptor, data: bytes) -> Descriptor:
    """Attach a bundle to a manifest; returns the descriptor of the manifest that carries it."""
    layer, empty = m.describe(bundle.MEDIA_TYPE, data), m.describe(m.OCI_EMPTY, b"{}")
    repository.push_blob(layer, io.BytesIO(data))
    repository.push_blob(empty, io.BytesIO(b"{}"))
    manifest = Manifest(
        schema_version=2,
        media_type=m.OCI_MANIFEST,
        artifact_type=bundle.MEDIA_TYPE,
        config=empty,
        layers=(layer,),
        subject=Descriptor(media_type=subject.media_type, digest=subject.digest, size=subject.size),
        annotations={_CONTENT: "dsse-envelope", _PREDICATE: bundle.PREDICATE},
    )
    pushed = repository.push_manifest(None, m.OCI_MANIFEST, m.encode(manifest))
    index = _read_index(repository, subject.digest)
    listed = msgspec.structs.replace(
        pushed, artifact_type=bundle.MEDIA_TYPE, annotations=manifest.annotations
    )
    others = tuple(e for e in (index.manifests if index else ()) if e.digest != pushed.digest)
    new = Index(schema_version=2, media_type=m.OCI_INDEX, manifests=(*others, listed))
    repository.push_manifest(fallback_tag(subject.digest), m.OCI_INDEX, m.encode(new))
    return pushed


def _read_index(repository: Repository, digest: str) -> Index | None:
    try:
        _, data = repository.manifest(fallback_tag(digest))
    except NotFoundError:
        return None
    index = m.parse_index(data, "index of the referrers")
    if len(index.manifests) > MAX_REFERRERS:
        raise FormatError(f"{digest} has more than {MAX_REFERRERS} referrers")
    return index
