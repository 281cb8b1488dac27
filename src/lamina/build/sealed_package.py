"""The OCI side of a sealed image: what is public of it, and its encrypted metadata layer.

Public are ciphertext, lengths, Merkle roots and leaves, the platform, and the digest over the
metadata layer's plaintext, which has random keys in it.  The configuration of the image (commands,
environment, labels, history), its annotations and the digests of the source are in the encrypted
layer or nowhere.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from lamina.blob.seal import SUITE
from lamina.blob.sealed_description import CONFIG_NAME, FILE_NAME, encode_description
from lamina.build.package import metadata_files, metadata_layer
from lamina.oci.manifest import (
    NYDUS_BUILDER_VERSION,
    OCI_CONFIG,
    OCI_MANIFEST,
    SEALED_ARTIFACT,
    SEALED_LEAVES,
    SEALED_SUITE,
    Descriptor,
    ImageConfig,
    Manifest,
    RootFS,
    describe,
    encode,
    parse_config,
    parse_document,
)
from lamina.trust.encryption.image_encryption import encrypt_layer
from lamina.version import VERSION

if TYPE_CHECKING:
    from lamina.build.assembly import BuiltImage
    from lamina.build.own_start import OwnStart
    from lamina.build.package import BootstrapLayer
    from lamina.build.sealing import SealedPart
    from lamina.trust.encryption.recipients import Recipients


MakeOwnStart = Callable[["BootstrapLayer", str, "Sequence[SealedPart]"], "list[OwnStart]"]
"""Makes the start artifacts that are part of an image, of the metadata layer in clear, its digest
as pushed, and the sealed blobs.
"""


class SealedPackage(NamedTuple):
    """What is pushed after the data blobs: (descriptor, bytes) each, and the manifest."""

    blobs: list[tuple[Descriptor, bytes]]
    manifest: bytes
    metadata_bytes: int
    start_bytes: int


def sealed_package(
    built: BuiltImage, config: bytes, recipients: Recipients, own_start: MakeOwnStart
) -> SealedPackage:
    """Return all of a sealed image but its data blobs; ``config`` is that of the source."""
    leaves = b"".join([part.leaf_table for part in built.sealed])
    leaf_layer = describe(SEALED_LEAVES, leaves)
    description = encode_description([part.description for part in built.sealed])
    # What every opening reads comes first.
    files = [
        (FILE_NAME.encode(), description),
        (CONFIG_NAME.encode(), _secret_config(config)),
        *metadata_files(built.bootstrap, built.metas),
    ]
    plain = metadata_layer(files, {SEALED_SUITE: SUITE})
    sealed = io.BytesIO()
    layer = encrypt_layer(plain.descriptor, [plain.data], sealed, recipients)
    own = own_start(plain, layer.digest, built.sealed)
    public = [*built.descriptors, *(start.layer for start in own), leaf_layer]
    clear = _clear_config(config, public, plain.diff_id)
    named = describe(OCI_CONFIG, clear)
    manifest = Manifest(
        schema_version=2,
        media_type=OCI_MANIFEST,
        artifact_type=SEALED_ARTIFACT,
        config=named,
        layers=(*public, layer),
        annotations={SEALED_SUITE: SUITE, NYDUS_BUILDER_VERSION: f"lamina {VERSION}"},
    )
    blobs = [(leaf_layer, leaves), (layer, sealed.getvalue()), (named, clear), *own]
    return SealedPackage(blobs, encode(manifest), layer.size, sum(len(start.data) for start in own))


def _secret_config(source: bytes) -> bytes:
    """Return the source's configuration without the digests of its layers."""
    document = parse_document(source, "image configuration", ImageConfig)
    return encode({name: value for name, value in document.items() if name != "rootfs"})


def _clear_config(source: bytes, blobs: Sequence[Descriptor], diff_id: str) -> bytes:
    """Return a configuration with the platform and the digests of what is pushed."""
    found = parse_config(source)
    return encode(
        ImageConfig(
            architecture=found.architecture,
            os=found.os,
            variant=found.variant,
            rootfs=RootFS(diff_ids=(*(blob.digest for blob in blobs), diff_id)),
        )
    )
