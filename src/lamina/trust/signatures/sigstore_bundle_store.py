"""Bundles beside an image: manifests with the image as their ``subject``."""

from __future__ import annotations

import io
from contextlib import suppress
from typing import Final

from lamina.oci import manifest as m
from lamina.oci.attachment import attached_manifest
from lamina.oci.manifest import Descriptor
from lamina.registry.referrers import list_referrers, push_referrer
from lamina.registry.repository import Repository
from lamina.trust.signatures import sigstore_bundle
from lamina.trust.signatures.attachments import UNREADABLE

_CONTENT: Final = "dev.sigstore.bundle.content"
_PREDICATE: Final = "dev.sigstore.bundle.predicateType"


def read_bundles(repository: Repository, digest: str) -> list[bytes]:
    """Return all bundles that refer to a manifest, none of them verified.

    Entries of other kinds, those that refer to something else, and those that are not there or are
    damaged are left out: they prove nothing, and everybody who may attach one could otherwise make
    an image unusable.  Raises FetchError if the registry does not answer at all.
    """
    found = []
    for entry in list_referrers(repository, digest):
        # The type that the index gives an entry is not always that of the artifact: cosign 2 writes
        # the type of its configuration there.
        if not entry.is_manifest:
            continue
        with suppress(*UNREADABLE):
            found += _bundles_of(repository, entry, digest)
    return found


def _bundles_of(repository: Repository, entry: Descriptor, digest: str) -> list[bytes]:
    data = repository.manifest(entry)[1]
    manifest = m.parse_image_manifest(data, "manifest of a referrer")
    if manifest.subject is None or manifest.subject.digest != digest:
        return []
    found = []
    for layer in manifest.layers[:1]:
        is_bundle = layer.media_type.startswith(sigstore_bundle.MEDIA_TYPE_PREFIX)
        if is_bundle and layer.size <= sigstore_bundle.MAX_BUNDLE_BYTES:
            with repository.open_blob(layer) as stream:
                found.append(stream.read())
    return found


def add_bundle(repository: Repository, subject: Descriptor, data: bytes) -> Descriptor:
    """Attach a bundle to a manifest; returns the descriptor of the manifest that carries it."""
    layer = m.describe(sigstore_bundle.MEDIA_TYPE, data)
    notes = {_CONTENT: "dsse-envelope", _PREDICATE: sigstore_bundle.PREDICATE}
    manifest = attached_manifest(subject, sigstore_bundle.MEDIA_TYPE, layer, notes)
    repository.push_blob(layer, io.BytesIO(data))
    repository.push_blob(manifest.config, io.BytesIO(m.EMPTY))
    return push_referrer(repository, manifest)
