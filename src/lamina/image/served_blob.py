"""The seam between devices and the blobs that they serve."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from lamina.linux.superblock import SuperblockWatch


class ReadableBlob(Protocol):
    """What is served of a blob where the kernel asks for every read."""

    @property
    def path(self) -> Path:
        """Its name in messages."""

    @property
    def size_bytes(self) -> int:
        """Its length."""

    def read_into(self, offset: int, buffer: bytearray | memoryview, /) -> int:
        """Fill *buffer* from *offset* on, and return the count, less only at the end."""

    def read_cached(self, offset: int, view: memoryview, /) -> bool:
        """Fill *view* if all of it is ready, and in memory; if not, its content means nothing."""


class ServedBlob(Protocol):
    """A blob as a device sees it: a file that fills as it is read.  Threads share it.

    Who lets a kernel read the file by itself holds the blob first, so that nothing is evicted.
    """

    @property
    def path(self) -> Path:
        """The file."""

    @property
    def fd(self) -> int:
        """The file, open."""

    @property
    def size_bytes(self) -> int:
        """Length of the file, which is that of the uncompressed address space."""

    @property
    def complete(self) -> bool:
        """Whether all of it can be read without anybody's help."""

    def read_into(self, offset: int, buffer: bytearray | memoryview, /) -> int:
        """Fill *buffer* from *offset* on, and return the count, less only at the end."""

    def make_readable(self, offset: int, size_bytes: int) -> None:
        """Return when a kernel may read this range of the file by itself."""

    def ensure(self, offset: int, size_bytes: int) -> None:
        """Return when all chunks of this range have been ready."""

    def hold(self) -> None:
        """Keep what is ready from being evicted until :meth:`end_hold`."""

    def hold_if_complete(self) -> bool:
        """Hold the blob if it is complete; returns whether it is, and so will stay."""

    def hold_through(self, watch: SuperblockWatch, owner: str = "") -> None:
        """Keep a blob that is held even after the end of this process, while a superblock lives."""

    def settle_hold(self, owner: str) -> None:
        """Tidy up after a mount that has ended, and may have called :meth:`hold_through`."""

    def end_hold(self) -> None:
        """End one :meth:`hold`."""
