"""Where cosign keeps signatures beside an image: an image manifest under ``ALGORITHM-HEX.sig``.

Each of its layers is a payload, with the signature over it in an annotation.
"""

from __future__ import annotations

import io
from contextlib import suppress
from logging import getLogger
from typing import Final, NamedTuple

from lamina.errors import FormatError, IntegrityError, NotFoundError, UnsupportedError
from lamina.oci import manifest as m
from lamina.oci.manifest import Descriptor, Manifest
from lamina.registry.cosign_tags import push_list
from lamina.registry.referrers import look_up
from lamina.registry.repository import Repository
from lamina.trust import strict_json
from lamina.trust.signatures.simple_signing import MAX_PAYLOAD_BYTES

LOG: Final = getLogger("lamina")

SIMPLE_SIGNING: Final = "application/vnd.dev.cosign.simplesigning.v1+json"
SIGNATURE: Final = "dev.cosignproject.cosign/signature"
MAX_SIGNATURES: Final = 128

UNREADABLE: Final = (NotFoundError, FormatError, IntegrityError, UnsupportedError)
"""What is raised by reading a signature that is not what it should be."""


class Attached(NamedTuple):
    """A payload and the signature over it, both unproven."""

    payload: bytes
    signature: bytes


def signature_tag(digest: str) -> str:
    """Return the tag of the signatures of a manifest digest."""
    return digest.replace(":", "-", 1) + ".sig"


def read_signatures(repository: Repository, digest: str) -> list[Attached]:
    """Return all signatures of a manifest, none of them verified; entries that are malformed or not
    there are left out.

    Whatever is answered in place of signatures means that there are none, with a warning.  Raises
    FormatError if there are too many, FetchError if the registry does not answer at all.
    """
    manifest = look_up(lambda: _read_manifest(repository, digest))
    if isinstance(manifest, str):
        LOG.warning("%s: no signatures of %s: %s", repository.reference, digest, manifest)
    found = []
    for layer in _counted(manifest, digest) if isinstance(manifest, Manifest) else ():
        encoded = layer.annotations.get(SIGNATURE)
        if layer.media_type != SIMPLE_SIGNING or encoded is None:
            continue
        if layer.size > MAX_PAYLOAD_BYTES:
            continue
        with suppress(*UNREADABLE):
            signature = strict_json.decode_base64(encoded, "signature")
            with repository.open_blob(layer) as stream:
                found.append(Attached(stream.read(), signature))
    return found


def add_signature(repository: Repository, digest: str, attached: Attached) -> Descriptor:
    """Add a signature to those that are there; returns the manifest that the tag points to.

    Two writers at once may lose one of their signatures, as with cosign: the tag is read, then
    written.
    """
    manifest = _read_manifest(repository, digest)
    layers = _counted(manifest, digest) if manifest else ()
    encoded = strict_json.encode_base64(attached.signature)
    layer = m.describe(SIMPLE_SIGNING, attached.payload, {SIGNATURE: encoded})
    repository.push_blob(layer, io.BytesIO(attached.payload))
    annotations = manifest.annotations if manifest else None
    return push_list(repository, signature_tag(digest), (*layers, layer), annotations)


def _read_manifest(repository: Repository, digest: str) -> Manifest | None:
    try:
        _, data = repository.manifest(signature_tag(digest))
    except NotFoundError:
        return None
    return m.parse_image_manifest(data, "manifest of the signatures")


def _counted(manifest: Manifest, digest: str) -> tuple[Descriptor, ...]:
    """Return the layers, which are signatures.  Raises FormatError if there are too many."""
    if len(manifest.layers) > MAX_SIGNATURES:
        raise FormatError(f"{digest} has more than {MAX_SIGNATURES} signatures")
    return manifest.layers
