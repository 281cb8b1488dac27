"""The bytes of a blob on their way to a registry, hashed as they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import BinaryIO, Final

from lamina.errors import IntegrityError, StoreError
from lamina.oci.manifest import Descriptor
from lamina.registry.verify import new_hash

_PIECE_BYTES: Final = 256 << 10


class PushSource:
    """The source of a push, read from its begin to its end once.

    The read that would deliver the last byte raises IntegrityError if length or digest are wrong.
    """

    def __init__(self, source: BinaryIO, descriptor: Descriptor) -> None:
        self._source = source
        self._descriptor = descriptor
        self._hash = new_hash(descriptor.digest)
        self.left_bytes = descriptor.size

    def read(self, size_bytes: int) -> bytes:
        """*size_bytes*, or what is left if that is less."""
        wanted = min(size_bytes, self.left_bytes)
        ends = wanted == self.left_bytes
        # One byte more shows that the source has more of them than was promised.
        data = self._read_exactly(wanted + 1 if ends else wanted)
        self._hash.update(data)
        self.left_bytes -= len(data)
        if len(data) != wanted or (ends and self._digest() != self._descriptor.digest):
            size = self._descriptor.size
            raise IntegrityError(
                f"the source of the push of {self._descriptor.digest} is not it: "
                f"{size - self.left_bytes} bytes of {size}, {self._digest()}"
            )
        return data

    def _digest(self) -> str:
        algorithm = self._descriptor.digest.partition(":")[0]
        return f"{algorithm}:{self._hash.hexdigest()}"

    def _read_exactly(self, size_bytes: int) -> bytes:
        """*size_bytes* of a source whose reads may be short; fewer only at its end."""
        data = self._source.read(size_bytes)
        if len(data) == size_bytes or not data:
            return data
        parts = [data]
        left = size_bytes - len(data)
        while left and (data := self._source.read(left)):
            parts.append(data)
            left -= len(data)
        return b"".join(parts)


class PushStream:
    """All of a source as the body of one request; ``progress`` is told what was sent."""

    def __init__(self, source: PushSource, progress: Callable[[int], None]) -> None:
        self._source = source
        self._progress = progress
        self._size_bytes = source.left_bytes

    def __len__(self) -> int:
        return self._size_bytes

    def __iter__(self) -> Iterator[bytes]:
        while self._source.left_bytes:
            try:
                piece = self._source.read(_PIECE_BYTES)
            except OSError as error:
                # It must not be taken for a failure of the connection.
                reason = error.strerror or type(error).__name__
                raise StoreError(f"the blob that is pushed cannot be read: {reason}") from error
            yield piece
            self._progress(len(piece))
