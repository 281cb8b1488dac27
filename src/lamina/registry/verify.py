"""Digest and length checks of content on its way in: whole buffers, and streams to their end."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO, Final, Protocol

import msgspec

from lamina.errors import IntegrityError
from lamina.oci.manifest import Descriptor, describe

if TYPE_CHECKING:
    from typing_extensions import Buffer

COPY_BYTES: Final = 1 << 20
"""How much of a blob is in memory at a time, a stream."""


class Hash(Protocol):
    """The part of a hashlib object that is used here."""

    def update(self, data: Buffer, /) -> None:
        """Add bytes."""

    def hexdigest(self) -> str:
        """Return the digest of all bytes so far."""


def new_hash(digest: str) -> Hash:
    """Return a hash object of a digest's algorithm (sha256 or sha512; references and manifests
    allow no other).
    """
    return hashlib.sha512() if digest.startswith("sha512:") else hashlib.sha256()


def check_bytes(data: bytes, descriptor: Descriptor, source: str) -> None:
    """Raise IntegrityError unless the bytes have the descriptor's length and digest."""
    if len(data) != descriptor.size:
        raise IntegrityError(
            f"{source}: {descriptor.digest} has {len(data)} bytes, "
            f"not the {descriptor.size} promised"
        )
    check_digest(data, descriptor.digest, source)


def describe_as(media_type: str, data: bytes, digest: str | None, source: str) -> Descriptor:
    """Return the descriptor of some bytes by a digest that they have, sha256 by default;
    IntegrityError if they do not have it.
    """
    descriptor = describe(media_type, data)
    if digest is None or digest == descriptor.digest:
        return descriptor
    check_digest(data, digest, source)
    return msgspec.structs.replace(descriptor, digest=digest)


def has_digest(data: Buffer, digest: str) -> bool:
    """Tell whether the bytes have the digest, of either algorithm."""
    hasher = new_hash(digest)
    hasher.update(data)
    return hasher.hexdigest() == digest.partition(":")[2]


def check_digest(data: Buffer, digest: str, source: str) -> None:
    """Raise IntegrityError unless the bytes have the digest."""
    hasher = new_hash(digest)
    hasher.update(data)
    _compare(hasher, digest, source)


def _compare(hasher: Hash, digest: str, source: str) -> None:
    algorithm, _, wanted = digest.partition(":")
    if hasher.hexdigest() != wanted:
        raise IntegrityError(
            f"{source}: the content of {digest} has the digest {algorithm}:{hasher.hexdigest()}",
            hint="the content was changed or damaged on the way or in the registry; push it again",
        )


class HashingReader:
    """Hashes what is read through it."""

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self._hash = hashlib.sha256()

    @property
    def digest(self) -> str:
        """The sha256 digest of all that was read so far."""
        return f"sha256:{self._hash.hexdigest()}"

    def read(self, size: int = -1, /) -> bytes:
        """Return what the source gives."""
        data = self._source.read(size)
        self._hash.update(data)
        return data


class _VerifiedStream(io.RawIOBase):
    """A stream that fails on its last byte if length or digest are wrong, so that no reader can
    miss it.
    """

    def __init__(self, source: BinaryIO, descriptor: Descriptor, name: str) -> None:
        self._source = source
        self._descriptor = descriptor
        self._name = name
        self._hash = new_hash(descriptor.digest)
        self._left = descriptor.size
        self._verified = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer, /) -> int:
        if self._verified:
            return 0
        view = memoryview(buffer).cast("B")[: self._left]
        got = self._source.readinto(view) if self._left else 0  # type: ignore[attr-defined]
        if not got and self._left:
            size = self._descriptor.size
            raise IntegrityError(
                f"{self._name}: {self._descriptor.digest} ends after {size - self._left} "
                f"of {size} bytes"
            )
        self._hash.update(view[:got])
        self._left -= got
        if not self._left:
            self._finish()
        return int(got)

    def _finish(self) -> None:
        if self._source.read(1):
            raise IntegrityError(
                f"{self._name}: {self._descriptor.digest} is longer than "
                f"the {self._descriptor.size} bytes promised"
            )
        _compare(self._hash, self._descriptor.digest, self._name)
        self._verified = True

    def close(self) -> None:
        if not self.closed:
            self._source.close()
        super().close()


def verified(source: BinaryIO, descriptor: Descriptor, name: str) -> io.BufferedReader:
    """Return a buffered reader over *source*, which it owns.

    The read that would deliver the last byte raises IntegrityError if length or digest are wrong; a
    stream that ends early raises it too.  *name* says in errors where the bytes come from.
    """
    return io.BufferedReader(_VerifiedStream(source, descriptor, name), COPY_BYTES)


def copy_verified(
    source: BinaryIO,
    descriptor: Descriptor,
    sink: Callable[[bytes], object],
    name: str,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Give the source's bytes to *sink*, piece by piece; raise IntegrityError at the end if they
    are wrong.

    Never passes on more bytes than the descriptor has.  *progress* is told the size of each
    piece.
    """
    hasher = new_hash(descriptor.digest)
    left = descriptor.size
    while data := source.read(min(COPY_BYTES, left + 1)):
        if len(data) > left:
            raise IntegrityError(
                f"{name}: {descriptor.digest} is longer than the {descriptor.size} bytes promised"
            )
        hasher.update(data)
        sink(data)
        left -= len(data)
        if progress:
            progress(len(data))
    if left:
        raise IntegrityError(
            f"{name}: {descriptor.digest} ends {left} bytes before its {descriptor.size} bytes"
        )
    _compare(hasher, descriptor.digest, name)
