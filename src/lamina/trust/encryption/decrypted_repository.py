"""An image with encrypted layers (ocicrypt), read as if they were not: a repository whose blobs are
decrypted while they are read.

A stream is proven at its end, as every stream of a repository is: digest of the ciphertext, HMAC,
and the digest that was wrapped with the key.  The diff_id is proven by who decompresses it.  So
what is made of a stream counts only after its last read.  A range is proven by nothing here:
whoever reads ranges has digests of what is in them.

The cipher keeps lengths, so a layer has one size, and it is called by the digest of its ciphertext.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, BinaryIO, Final, NamedTuple, Self, cast

import msgspec

from lamina.errors import IntegrityError, UnsupportedError
from lamina.image.errors import NoKeyError
from lamina.oci.manifest import ENCRYPTED_SUFFIX
from lamina.source.blob_source import BlobSource
from lamina.trust.crypto.ctr_hmac import Decryptor, check_hmac, new_hmac
from lamina.trust.encryption.encrypted_layer import is_encrypted, read_options
from lamina.trust.encryption.recipients import PREFIX, DecryptionKeys

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from lamina.oci.manifest import Descriptor, Manifest
    from lamina.oci.reference import Reference
    from lamina.registry.repository import Progress, Repository
    from lamina.trust.encryption.layer_options import PrivateOptions, PublicOptions

PART_BYTES: Final = 1 << 20


class _Opened(NamedTuple):
    """What opens one layer, and the digest of its tar."""

    public: PublicOptions
    private: PrivateOptions
    diff_id: str

    def decrypt(self, buffer: memoryview, offset: int) -> None:
        """Put the plaintext in place of ciphertext from the byte *offset* on."""
        buffer[:] = Decryptor(self.private.key, self.private.nonce, offset).update(buffer)


def decrypted(
    repository: Repository,
    manifest: Manifest,
    diff_ids: Sequence[str],
    keys: DecryptionKeys | None,
    resources: ExitStack,
) -> tuple[Repository, tuple[Descriptor, ...]]:
    """Return where the layers of an image are read from in clear, and as what: what is given where
    none is encrypted.  The keys of the layers are held until *resources* end; *keys* know the image
    already (:meth:`DecryptionKeys.for_image`).

    Raises NoKeyError without keys, TrustError if no key opens a layer, FormatError for malformed
    annotations, UnsupportedError for an encrypted layer that is no tar.
    """
    if not manifest.is_encrypted:
        return repository, manifest.layers
    opened = _open_layers(repository.reference, manifest, diff_ids, keys, resources)
    return DecryptedRepository(repository, opened), tuple(map(_in_clear, manifest.layers))


def decrypted_sources(
    sources: Sequence[BlobSource],
    image: tuple[Reference, Manifest],
    diff_ids: Sequence[str],
    keys: DecryptionKeys | None,
    resources: ExitStack,
) -> list[BlobSource]:
    """Return sources of the blobs of an image in clear over those that have them as they are
    stored; the rest, and what is raised, is that of :func:`decrypted`.
    """
    reference, manifest = image
    if not manifest.is_encrypted:
        return list(sources)
    opened = _open_layers(reference, manifest, diff_ids, keys, resources)
    return [_DecryptedSource(source, opened) for source in sources]


def _open_layers(
    reference: Reference,
    manifest: Manifest,
    diff_ids: Sequence[str],
    keys: DecryptionKeys | None,
    resources: ExitStack,
) -> dict[str, _Opened]:
    """Return what opens the encrypted layers, by digest."""
    if not keys:
        raise NoKeyError(
            f"{reference} is encrypted, and its layers cannot be read without a key",
            hint="give --decryption-key FILE or provider:NAME",
        )
    opened: dict[str, _Opened] = {}
    for layer, diff_id in zip(manifest.layers, diff_ids, strict=True):
        if is_encrypted(layer):
            if "tar" not in layer.media_type:
                raise UnsupportedError(f"a layer is of the encrypted type {layer.media_type!r}")
            public, private = read_options(layer, keys)
            resources.enter_context(private.key)
            opened[layer.digest] = _Opened(public, private, diff_id)
    return opened


def _in_clear(layer: Descriptor) -> Descriptor:
    kept = {name: value for name, value in layer.annotations.items() if not name.startswith(PREFIX)}
    media_type = layer.media_type.removesuffix(ENCRYPTED_SUFFIX)
    return msgspec.structs.replace(layer, media_type=media_type, annotations=kept, data="")


class DecryptedRepository:
    """See the module.  It owns nothing; what is written goes below as it is."""

    def __init__(self, inner: Repository, opened: dict[str, _Opened]) -> None:
        self._inner = inner
        self._opened = opened

    @property
    def reference(self) -> Reference:
        """What it was opened with."""
        return self._inner.reference

    def resolve(self, version: str | None = None) -> Descriptor:
        """Return the manifest or index of a tag or digest, which is as it was pushed."""
        return self._inner.resolve(version)

    def manifest(
        self, which: Descriptor | str | None = None, *, timeout_s: float | None = None
    ) -> tuple[Descriptor, bytes]:
        """Return a manifest or index with its bytes, as they were pushed."""
        return self._inner.manifest(which, timeout_s=timeout_s)

    def open_blob(self, descriptor: Descriptor) -> BinaryIO:
        """Return a stream of a blob in clear; its last read raises IntegrityError if the blob is
        not the one that was encrypted.
        """
        stream = self._inner.open_blob(descriptor)
        opened = self._opened.get(descriptor.digest)
        if opened is None:
            return stream
        return cast("BinaryIO", _ProvenPlaintext(stream, opened, descriptor.digest))

    def read_into(
        self, digest: str, offset: int, buffer: memoryview, *, timeout_s: float | None = None
    ) -> None:
        """Fill the buffer from the byte *offset* of a blob on, in clear; it is not verified."""
        self._inner.read_into(digest, offset, buffer, timeout_s=timeout_s)
        opened = self._opened.get(digest)
        if opened is not None:
            opened.decrypt(buffer, offset)

    def read_range(self, digest: str, offset: int, size_bytes: int) -> bytes:
        """Return exactly these bytes of a blob, as :meth:`read_into` gets them."""
        data = bytearray(size_bytes)
        self.read_into(digest, offset, memoryview(data))
        return bytes(data)

    def has_blob(self, digest: str, size_bytes: int) -> bool:
        """Tell whether a blob of this digest and size is there."""
        return self._inner.has_blob(digest, size_bytes)

    def push_blob(
        self, descriptor: Descriptor, source: BinaryIO, progress: Progress | None = None
    ) -> None:
        """Store a blob as it is."""
        self._inner.push_blob(descriptor, source, progress)

    def mount_blob(self, descriptor: Descriptor, origin: Repository) -> bool:
        """Take a blob over from another repository as it is."""
        return self._inner.mount_blob(descriptor, origin)

    def push_manifest(
        self, tag: str | None, media_type: str, data: bytes, *, digest: str | None = None
    ) -> Descriptor:
        """Store a manifest as it is."""
        return self._inner.push_manifest(tag, media_type, data, digest=digest)

    def close(self) -> None:
        """Do nothing: the repository below is its owner's."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass


class _DecryptedSource(BlobSource):
    """The blobs of another source, in clear."""

    def __init__(self, inner: BlobSource, opened: dict[str, _Opened]) -> None:
        self.name = inner.name
        self.cost = inner.cost
        self.health = inner.health
        self.can_stream = inner.can_stream
        self._inner = inner
        self._opened = opened

    def read_into(self, blob_id: str, offset: int, buffer: memoryview, timeout_s: float) -> None:
        self._inner.read_into(blob_id, offset, buffer, timeout_s)
        opened = self._opened.get(f"sha256:{blob_id}")
        if opened is not None:
            opened.decrypt(buffer, offset)

    def open_sequential(self, blob_id: str, size_bytes: int) -> BinaryIO:
        stream = self._inner.open_sequential(blob_id, size_bytes)
        digest = f"sha256:{blob_id}"
        opened = self._opened.get(digest)
        if opened is None:
            return stream
        return cast("BinaryIO", _ProvenPlaintext(stream, opened, digest))


class _ProvenPlaintext(io.RawIOBase):
    """The plaintext of one layer; the end is told only if all of it is right."""

    def __init__(self, sealed: BinaryIO, opened: _Opened, digest: str) -> None:
        super().__init__()
        self._sealed = sealed
        self._opened = opened
        self._what = f"layer {digest}"
        self._hmac = new_hmac(opened.private.key)
        self._cipher = Decryptor(opened.private.key, opened.private.nonce)
        self._plain = hashlib.sha256()

    def readable(self) -> bool:
        """Tell that it is."""
        return True

    def readinto(self, buffer: Buffer, /) -> int:
        """Read the next plaintext; at the end 0, or IntegrityError."""
        view = memoryview(buffer).cast("B")
        sealed = self._sealed.read(min(len(view), PART_BYTES))
        if not sealed:
            if view.nbytes:
                self._check()
            return 0
        self._hmac.update(sealed)
        plain = self._cipher.update(sealed)
        self._plain.update(plain)
        view[: len(plain)] = plain
        return len(plain)

    def _check(self) -> None:
        check_hmac(self._hmac, self._opened.public.hmac, self._what)
        promised = self._opened.private.digest
        if promised not in (f"sha256:{self._plain.hexdigest()}", self._opened.diff_id):
            raise IntegrityError(
                f"the digest that was encrypted with the key of {self._what} is of another "
                "plaintext",
                hint="the wrapped key belongs to another layer",
            )

    def close(self) -> None:
        """Close the ciphertext too."""
        self._sealed.close()
        super().close()
