"""Encrypting and decrypting the layers of OCI images (ocicrypt): from one repository to another.

Only layer descriptors change: media type with ``+encrypted``, digest of the ciphertext,
annotations.  The configuration and its diff_ids stay, in clear.  Decryption trusts nothing before
it is proven, in this order: descriptor digest and size over the ciphertext, HMAC, then the diff_id
over the decompressed plaintext; only then is plaintext written anywhere.  Plaintext is never in a
temporary file.  Encryption does not authenticate who made the image: a signature does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any, BinaryIO, Final, cast

import msgspec

from lamina.archive.stream import READ_BYTES
from lamina.errors import UnsupportedError, UsageError
from lamina.oci import manifest as m
from lamina.oci.manifest import Descriptor, Manifest
from lamina.registry.repository import Repository
from lamina.registry.resolve import RepositoryDocuments, check_layers, find_image, read_config
from lamina.trust.crypto.ctr_hmac import DecryptingStream, Encryptor, check_hmac, new_hmac
from lamina.trust.encryption.encrypted_layer import (
    check_plaintext,
    is_encrypted,
    read_options,
)
from lamina.trust.encryption.layer_options import PrivateOptions, PublicOptions
from lamina.trust.encryption.recipients import (
    PREFIX,
    PUBLIC_OPTIONS,
    DecryptionKeys,
    Recipients,
    add_packets,
    unwrap,
    wrap,
)
from lamina.trust.strict_json import encode_base64

_OF_DOCKER: Final = {
    m.DOCKER_LAYER: m.OCI_LAYER,
    m.DOCKER_LAYER_GZIP: m.OCI_LAYER_GZIP,
    m.DOCKER_LAYER_ZSTD: m.OCI_LAYER_ZSTD,
}
_NONDISTRIBUTABLE: Final = "application/vnd.oci.image.layer.nondistributable.v1.tar"
PLAIN_TYPES: Final = frozenset(
    (
        *(m.OCI_LAYER, m.OCI_LAYER_GZIP, m.OCI_LAYER_ZSTD),
        *(_NONDISTRIBUTABLE + end for end in ("", "+gzip", "+zstd")),
        "application/vnd.wasm.content.layer.v1+wasm",
    )
)
Progress = Callable[[str, int, int], None]
"""Told a phase (``encrypt`` or ``decrypt``, and ``push``), its bytes in all, and how many more of
them are done."""


@dataclass(frozen=True, slots=True)
class Changed:
    """The outcome: what was written, and which layers (numbers from 0) were encrypted or
    decrypted.
    """

    descriptor: Descriptor
    layers: tuple[int, ...]


def encrypt_image(
    source: Repository,
    destination: Repository,
    recipients: Recipients,
    *,
    layers: Sequence[int] | None = None,
    keys: DecryptionKeys | None = None,
    platform: str | None = None,
    progress: Progress | None = None,
) -> Changed:
    """Copy an image and encrypt its layers; of an index, one platform.

    ``layers`` are numbers, negative ones from the end; None means all.  Layers that are encrypted
    already are left alone without ``keys``, and get the recipients added with ``keys``; so does the
    metadata layer of a sealed image.
    Raises UsageError for layers that are not there or recipients that are missing, UnsupportedError
    for layers that are no tar.
    """
    if not recipients:
        raise UsageError("nobody could open the image", hint="give --encryption-key jwe:FILE")
    work = _Work(source, destination, platform, progress)
    keys = keys and keys.for_image(work.digest)
    if work.manifest.is_sealed and layers is None:
        layers = [-1]
    chosen = _chosen(layers, len(work.manifest.layers))
    work.expect(
        each
        for number, each in enumerate(work.manifest.layers)
        if number in chosen and not is_encrypted(each)
    )
    changed = []
    for number, layer in enumerate(work.manifest.layers):
        if number in chosen and not is_encrypted(layer):
            work.layers.append(_encrypt_layer(work, layer, recipients))
            changed.append(number)
        elif number in chosen and keys is not None:
            work.layers.append(_add_recipients(layer, keys, recipients))
            work.copy(layer)
            changed.append(number)
        else:
            work.layers.append(layer)
            work.copy(layer)
    return Changed(work.finish(), tuple(changed))


def decrypt_image(
    source: Repository,
    destination: Repository,
    keys: DecryptionKeys,
    *,
    platform: str | None = None,
    progress: Progress | None = None,
) -> Changed:
    """Copy an image and decrypt all its encrypted layers; of an index, one platform.

    Raises TrustError if no key opens a layer, IntegrityError if HMAC, digest or diff_id are wrong,
    FormatError for malformed annotations, UsageError if nothing is encrypted.
    """
    work = _Work(source, destination, platform, progress)
    if work.manifest.is_sealed:
        raise UsageError(
            f"{source.reference} is a sealed image, whose keys would lie in the open",
            hint="unpack it: lamina unpack --decryption-key FILE",
        )
    keys = keys.for_image(work.digest)
    diff_ids = work.diff_ids()
    work.expect(filter(is_encrypted, work.manifest.layers))
    changed = []
    for number, layer in enumerate(work.manifest.layers):
        if not is_encrypted(layer):
            work.layers.append(layer)
            work.copy(layer)
            continue
        work.layers.append(_decrypt_layer(work, layer, keys, diff_ids[number]))
        changed.append(number)
    if not changed:
        raise UsageError(f"{source.reference} has no encrypted layer")
    return Changed(work.finish(), tuple(changed))


class _Work:
    """One image on its way: its manifest, and the layers of the new one so far."""

    def __init__(
        self,
        source: Repository,
        destination: Repository,
        platform: str | None,
        progress: Progress | None,
    ) -> None:
        self.source = source
        self.destination = destination
        self._progress: Progress = progress or (lambda *_: None)
        self._changed_bytes = 0
        descriptor, data = source.manifest()
        self.digest = descriptor.digest
        document = m.parse_manifest(data)
        found = find_image(
            descriptor, document, RepositoryDocuments(source), platform, prefer="oci"
        )
        self.manifest: Manifest = found.manifest
        self.layers: list[Descriptor] = []
        blobs = (*self.manifest.layers, self.manifest.config)
        self._pushed_bytes = sum(blob.size for blob in blobs if not blob.urls)

    def expect(self, layers: Iterable[Descriptor]) -> None:
        """Take note of which layers will be encrypted or decrypted, which changes no length."""
        self._changed_bytes = sum(layer.size for layer in layers)

    def changing(self, phase: str, stream: BinaryIO) -> Iterator[bytes]:
        """Yield a layer that is encrypted or decrypted, and tell how far that is."""
        while data := stream.read(READ_BYTES):
            yield data
            self._progress(phase, self._changed_bytes, len(data))

    def advance(self, moved_bytes: int) -> None:
        """Tell that so many bytes more were pushed."""
        self._progress("push", self._pushed_bytes, moved_bytes)

    def diff_ids(self) -> tuple[str, ...]:
        config = read_config(self.source, self.manifest)
        check_layers(self.manifest, config)
        return config.rootfs.diff_ids

    def copy(self, blob: Descriptor) -> None:
        if blob.urls:
            return
        if self.destination.mount_blob(blob, self.source):
            self.advance(blob.size)
            return
        with self.source.open_blob(blob) as stream:
            self.destination.push_blob(blob, stream, self.advance)

    def finish(self) -> Descriptor:
        """Write configuration and manifest, every unknown field of it kept."""
        config = self.manifest.config
        self.copy(config)
        document = m.parse_document(self.manifest.raw, "manifest", Manifest)
        document["mediaType"] = m.OCI_MANIFEST
        if config.media_type == m.DOCKER_CONFIG:
            document["config"] = {**document["config"], "mediaType": m.OCI_CONFIG}
        document["layers"] = [_plain_document(layer) for layer in self.layers]
        tag = self.destination.reference.tag
        return self.destination.push_manifest(tag, m.OCI_MANIFEST, m.encode(document))


def _plain_document(layer: Descriptor) -> dict[str, Any]:
    media_type = _OF_DOCKER.get(layer.media_type, layer.media_type)
    layer = msgspec.structs.replace(layer, media_type=media_type)
    return cast("dict[str, Any]", msgspec.to_builtins(layer))


def _chosen(layers: Sequence[int] | None, count: int) -> frozenset[int]:
    if layers is None:
        return frozenset(range(count))
    chosen = frozenset(number + count if number < 0 else number for number in layers)
    if not chosen or min(chosen) < 0 or max(chosen) >= count:
        raise UsageError(f"there is no such layer; the image has the layers 0 to {count - 1}")
    return chosen


def _encrypt_layer(work: _Work, layer: Descriptor, recipients: Recipients) -> Descriptor:
    media_type = _OF_DOCKER.get(layer.media_type, layer.media_type)
    if media_type not in PLAIN_TYPES:
        raise UnsupportedError(
            f"a layer of {work.source.reference} is no tar layer ({layer.media_type}) and would "
            "stay readable",
            hint="a native image is encrypted when it is made: lamina convert --seal",
        )
    layer = msgspec.structs.replace(layer, media_type=media_type)
    with _temporary_file() as sealed:
        with work.source.open_blob(layer) as plain:
            pieces = work.changing("encrypt", plain)
            result = encrypt_layer(layer, pieces, sealed, recipients)
        sealed.seek(0)
        work.destination.push_blob(result, cast("BinaryIO", sealed), work.advance)
    return result


def encrypt_layer(
    layer: Descriptor, plain: Iterable[bytes], sealed: IO[bytes], recipients: Recipients
) -> Descriptor:
    """Encrypt one layer, in pieces, to ``sealed``; return the descriptor that it has now."""
    options = PrivateOptions.new(layer.digest)
    encryptor, digest = Encryptor(options.key, options.nonce), hashlib.sha256()
    for data in plain:
        piece = encryptor.update(data)
        digest.update(piece)
        sealed.write(piece)
    annotations = {
        **layer.annotations,
        **wrap(options, recipients),
        PUBLIC_OPTIONS: encode_base64(PublicOptions(encryptor.hmac()).encode()),
    }
    options.key.close()
    return msgspec.structs.replace(
        layer,
        media_type=layer.media_type + m.ENCRYPTED_SUFFIX,
        digest=f"sha256:{digest.hexdigest()}",
        annotations=annotations,
        urls=(),
        # What is embedded in the descriptor is the plaintext.
        data="",
    )


def _add_recipients(layer: Descriptor, keys: DecryptionKeys, recipients: Recipients) -> Descriptor:
    annotations = dict(layer.annotations)
    options = unwrap(annotations, keys, f"layer {layer.digest}")
    add_packets(annotations, wrap(options, recipients))
    options.key.close()
    return msgspec.structs.replace(layer, annotations=annotations)


def _decrypt_layer(
    work: _Work, layer: Descriptor, keys: DecryptionKeys, diff_id: str
) -> Descriptor:
    media_type = layer.media_type.removesuffix(m.ENCRYPTED_SUFFIX)
    if media_type not in PLAIN_TYPES:
        raise UnsupportedError(f"a layer is of the encrypted type {layer.media_type!r}")
    public, private = read_options(layer, keys)
    with _temporary_file() as sealed, private.key:
        _store_authenticated(work, layer, public, private, sealed)
        digest = check_plaintext(sealed, layer, private, diff_id)
        kept = {k: v for k, v in layer.annotations.items() if not k.startswith(PREFIX)}
        result = msgspec.structs.replace(
            layer, media_type=media_type, digest=digest, annotations=kept, data=""
        )
        sealed.seek(0)
        plain = DecryptingStream(cast("BinaryIO", sealed), private.key, private.nonce)
        work.destination.push_blob(result, cast("BinaryIO", plain), work.advance)
    return result


def _temporary_file() -> IO[bytes]:
    import tempfile

    return tempfile.TemporaryFile(prefix="lamina-")


def _store_authenticated(
    work: _Work,
    layer: Descriptor,
    public: PublicOptions,
    private: PrivateOptions,
    sealed: IO[bytes],
) -> None:
    """Write the ciphertext, digest and HMAC of which are right, to a file."""
    authenticator = new_hmac(private.key)
    with work.source.open_blob(layer) as stream:
        for data in work.changing("decrypt", stream):
            authenticator.update(data)
            sealed.write(data)
    check_hmac(authenticator, public.hmac, f"layer {layer.digest}")
