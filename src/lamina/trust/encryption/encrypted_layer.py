"""Reading an encrypted layer (ocicrypt): its options, and its plaintext once that is proven.

Nothing is trusted before it is proven, in this order: the descriptor's digest over the ciphertext,
which is the caller's part, HMAC, then the diff_id over the decompressed plaintext.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, BinaryIO, Final, cast

from lamina.archive.stream import READ_BYTES, LayerStream
from lamina.errors import FormatError, IntegrityError
from lamina.oci.manifest import ENCRYPTED_SUFFIX
from lamina.registry.verify import HashingReader, new_hash
from lamina.trust.crypto.ctr_hmac import DecryptingStream, check_hmac, new_hmac
from lamina.trust.encryption.layer_options import PrivateOptions, PublicOptions
from lamina.trust.encryption.recipients import PUBLIC_OPTIONS, DecryptionKeys, unwrap
from lamina.trust.strict_json import decode_base64

if TYPE_CHECKING:
    from lamina.oci.manifest import Descriptor

MAX_LAYER_BYTES: Final = 1 << 38
"""Most that one encrypted layer may decompress to."""
MAX_KEPT_BYTES: Final = 64 << 20
"""Most plaintext of a metadata layer that is kept from the proof for the reading after it."""


def is_encrypted(layer: Descriptor) -> bool:
    """Tell whether a layer's media type says that it is encrypted."""
    return layer.media_type.endswith(ENCRYPTED_SUFFIX)


def read_options(layer: Descriptor, keys: DecryptionKeys) -> tuple[PublicOptions, PrivateOptions]:
    """Return the options of an encrypted layer, its key among them.

    Raises TrustError if no key opens it, FormatError for malformed annotations.
    """
    what = f"layer {layer.digest}"
    public_text = layer.annotations.get(PUBLIC_OPTIONS)
    if public_text is None:
        raise FormatError(f"the encrypted {what} has no public options")
    public = PublicOptions.decode(decode_base64(public_text, f"public options of {what}"))
    return public, unwrap(layer.annotations, keys, what)


@contextmanager
def proven_plaintext(
    layer: Descriptor, data: bytes, keys: DecryptionKeys, diff_id: str
) -> Iterator[BinaryIO]:
    """Yield the plaintext of an encrypted layer in memory, whose descriptor digest was right: as it
    was compressed or, if that is not much, decompressed.

    It begins after HMAC and diff_id proved right, in this order.  Raises what :func:`read_options`
    and :func:`check_plaintext` do, and IntegrityError for another HMAC.
    """
    public, private = read_options(layer, keys)
    with private.key, io.BytesIO(data) as sealed:
        authenticator = new_hmac(private.key)
        authenticator.update(data)
        check_hmac(authenticator, public.hmac, f"layer {layer.digest}")
        kept = _Kept()
        check_plaintext(sealed, layer, private, diff_id, kept.add)
        if kept.is_whole:
            yield io.BytesIO(b"".join(kept.parts))
        else:
            sealed.seek(0)
            yield cast("BinaryIO", DecryptingStream(sealed, private.key, private.nonce))


class _Kept:
    """Keeps what it gets, or nothing if it gets too much."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self._room = MAX_KEPT_BYTES

    @property
    def is_whole(self) -> bool:
        return self._room >= 0

    def add(self, data: bytes) -> None:
        self._room -= len(data)
        if self._room >= 0:
            self.parts.append(data)
        else:
            self.parts.clear()


def check_plaintext(
    sealed: IO[bytes],
    layer: Descriptor,
    private: PrivateOptions,
    diff_id: str,
    keep: Callable[[bytes], None] = lambda _: None,
) -> str:
    """Return the digest of the plaintext of an authenticated layer, after its diff_id proved right;
    ``keep`` gets what decompressing it yields, before that.

    Raises IntegrityError if somebody made another layer for the same key.
    """
    sealed.seek(0)
    decrypted = DecryptingStream(cast("BinaryIO", sealed), private.key, private.nonce)
    plain = HashingReader(cast("BinaryIO", decrypted))
    content = new_hash(diff_id)
    stream = LayerStream(cast("BinaryIO", plain), MAX_LAYER_BYTES)
    try:
        while data := stream.read(READ_BYTES):
            content.update(data)
            keep(data)
    except FormatError as error:
        raise IntegrityError(f"the plaintext of layer {layer.digest} is damaged: {error}") from None
    while plain.read(READ_BYTES):
        pass
    if content.hexdigest() != diff_id.partition(":")[2]:
        raise IntegrityError(
            f"the plaintext of layer {layer.digest} is not the one that the configuration names "
            f"({diff_id})",
            hint="somebody replaced the layer by another one, encrypted to the same key",
        )
    if private.digest not in (plain.digest, diff_id):
        raise IntegrityError(
            f"the digest that was encrypted with the key of layer {layer.digest} is of another "
            "plaintext",
            hint="the wrapped key belongs to another layer",
        )
    return plain.digest
