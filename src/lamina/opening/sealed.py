"""Sealed images: what everybody may know of one, and opening its metadata with a key.

A sealed image has data blobs of sealed pieces, their leaf tables in a layer of its own in clear,
and a last layer that is encrypted as ocicrypt does it: file tree, chunk tables, configuration, and
the sealed description with the keys.  It is proven in this order, and nothing of it is parsed
before: digest of the ciphertext by the manifest, HMAC, digest of the plaintext by the
configuration.  The keys stay in memory; tree and chunk tables are kept in the node store, which is
private to its owner, as the file data are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from lamina.blob.leaf_table import ENTRY, MAX_LEAF_TABLE_BYTES, LeafTable
from lamina.blob.merkle import HASH_BYTES
from lamina.blob.seal import MAX_PIECES, SUITE
from lamina.blob.seal_class import SealClass
from lamina.blob.sealed_description import (
    CONFIG_NAME,
    FILE_NAME,
    SealedBlob,
    decode_description,
)
from lamina.content.table_loader import SealedParts
from lamina.errors import FormatError, IntegrityError, UnsupportedError
from lamina.image.errors import NoKeyError
from lamina.oci.manifest import (
    ENCRYPTED_SUFFIX,
    SEALED_BLOBS,
    SEALED_CLASS,
    SEALED_LEAF_TABLES,
    SEALED_PIECES,
    SEALED_ROOT,
    SEALED_SUITE,
    Descriptor,
    ImageConfig,
    Manifest,
    parse_config,
)
from lamina.oci.start_manifest import is_own_start
from lamina.opening.metadata_layer import read_secrets, unpack_metadata_layer
from lamina.store.records import MetadataFiles

if TYPE_CHECKING:
    from lamina.blob.seal import HiddenKey
    from lamina.store.node import NodeStore
    from lamina.trust.encryption.recipients import DecryptionKeys

MAX_SEALED_METADATA_BYTES: Final = 512 << 20

GetBlob = Callable[[Descriptor], bytes]
"""Returns a small blob, whose digest it has verified."""


class PublicBlob(NamedTuple):
    """What the manifest, if it is signed, promises of a sealed data blob to whoever has no key."""

    descriptor: Descriptor
    piece_count: int
    root: bytes
    seal_class: SealClass = SealClass.PRIVATE


class Content(NamedTuple):
    """What of an image is known before any of its blobs is read: ``parts`` by blob id, and the
    secret of its start artifacts, None of an image that is not sealed.
    """

    files: MetadataFiles
    config: ImageConfig
    parts: dict[str, SealedParts] | None = None
    start_secret: HiddenKey | None = None


def public_blobs(manifest: Manifest) -> list[PublicBlob]:
    """Return the data blobs of a sealed image.

    Raises FormatError, UnsupportedError for other suites.
    """
    suite = manifest.layers[-1].annotations.get(SEALED_SUITE, "")
    if suite != SUITE:
        raise UnsupportedError(
            f"the image is sealed with the suite {suite[:40]!r}",
            hint=f"this reader knows {SUITE} only, and takes no other",
        )
    if len(manifest.layers) < 2 or manifest.layers[-2].media_type not in SEALED_LEAF_TABLES:
        raise FormatError("the sealed image has no layer with leaf tables before its last one")
    return [_public_blob(layer) for layer in manifest.layers[:-2] if not is_own_start(layer)]


def _public_blob(layer: Descriptor) -> PublicBlob:
    pieces, root = layer.annotations.get(SEALED_PIECES, ""), layer.annotations.get(SEALED_ROOT, "")
    if layer.media_type not in SEALED_BLOBS:
        raise FormatError(f"the layer {layer.digest} of the sealed image is not sealed")
    try:
        seal_class = SealClass(layer.annotations.get(SEALED_CLASS, SealClass.PRIVATE.value))
        found = PublicBlob(layer, int(pieces), bytes.fromhex(root), seal_class)
    except ValueError:
        raise FormatError(f"the sealed layer {layer.digest} has malformed annotations") from None
    if not 0 < found.piece_count < MAX_PIECES or len(found.root) != HASH_BYTES:
        raise FormatError(f"the sealed layer {layer.digest} has impossible annotations")
    return found


def leaf_tables(manifest: Manifest, get: GetBlob) -> list[LeafTable]:
    """Return the leaf tables of all data blobs, proven against the roots in the manifest.

    Needs no key.  Raises FormatError, IntegrityError.
    """
    blobs = public_blobs(manifest)
    layer = manifest.layers[-2]
    expected = sum(blob.piece_count for blob in blobs) * ENTRY.size
    if layer.size != expected or expected > MAX_LEAF_TABLE_BYTES:
        raise FormatError(f"the leaf tables of the sealed image have {layer.size} bytes")
    data = memoryview(get(layer))
    tables, start = [], 0
    for blob in blobs:
        part = data[start : start + blob.piece_count * ENTRY.size]
        start += len(part)
        size = blob.descriptor.size
        tables.append(
            LeafTable.decode(part, blob.piece_count, size, blob.root, blob.descriptor.hex)
        )
    return tables


def no_key_error(reference: object) -> NoKeyError:
    """Return the error for whoever wants to see inside without a key."""
    return NoKeyError(
        f"{reference} is sealed, and its files cannot be seen without a key",
        hint="give --decryption-key FILE, or name a key provider in OCICRYPT_KEYPROVIDER_CONFIG",
    )


def open_sealed(
    manifest: Manifest,
    diff_ids: Sequence[str],
    get: GetBlob,
    store: NodeStore,
    keys: DecryptionKeys,
    known: MetadataFiles | None = None,
) -> Content:
    """Open the metadata of a sealed image; *diff_ids* are those of its configuration.

    *known* are the files that an earlier opening put into *store*.

    Raises TrustError if no key fits, IntegrityError for what was changed, FormatError.
    """
    from lamina.blob.start_seal import start_secret
    from lamina.trust.encryption.encrypted_layer import proven_plaintext

    leaves = leaf_tables(manifest, get)
    layer = _metadata_layer(manifest, diff_ids, ENCRYPTED_SUFFIX)
    secrets = {FILE_NAME.encode(): b"", CONFIG_NAME.encode(): b""}
    with proven_plaintext(layer, get(layer), keys, diff_ids[-1]) as plain:
        media_type = layer.media_type.removesuffix(ENCRYPTED_SUFFIX)
        if known is None:
            files = unpack_metadata_layer(plain, media_type, store, secrets)
        else:
            files = known
            read_secrets(plain, media_type, secrets)
    described = decode_description(secrets[FILE_NAME.encode()])
    _check_described(described, public_blobs(manifest))
    parts = {
        table.blob_id: SealedParts(table, blob.opener())
        for table, blob in zip(leaves, described, strict=True)
    }
    attached = [layer.digest, manifest.layers[-2].digest]
    config = parse_config(secrets[CONFIG_NAME.encode()])
    files = msgspec.structs.replace(files, attached=attached)
    return Content(files, config, parts, start_secret(described))


def _metadata_layer(manifest: Manifest, diff_ids: Sequence[str], suffix: str) -> Descriptor:
    layer = manifest.layers[-1]
    if layer.size > MAX_SEALED_METADATA_BYTES or not layer.media_type.endswith(suffix):
        raise FormatError(
            f"the metadata layer of the sealed image has {layer.size} bytes of {layer.media_type}"
        )
    if len(diff_ids) != len(manifest.layers):
        raise FormatError(f"the sealed image has {len(diff_ids)} diff_ids, not one a layer")
    return layer


def _check_described(described: Sequence[SealedBlob], public: Sequence[PublicBlob]) -> None:
    """Raise an error unless manifest and encrypted description say the same, root by root."""
    inside = [(b.piece_count, b.size_bytes, b.root, b.seal_class) for b in described]
    outside = [(b.piece_count, b.descriptor.size, b.root, b.seal_class) for b in public]
    if inside != outside:
        raise IntegrityError(
            "the data blobs of the sealed image are not those that its encrypted description names",
            hint="somebody replaced, reordered or left out layers of the image",
        )
