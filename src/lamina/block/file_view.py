"""A file of an opened image as a disk, whose data arrive as they are read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from lamina.block.base import Segment
from lamina.content.lazy_image import LazyImage
from lamina.errors import UsageError
from lamina.image.errors import FileKindError

_SECTOR_BYTES: Final = 512


class FileView:
    """A regular file as a device, all of which counts as data.  The image stays the caller's."""

    def __init__(self, image: LazyImage, path: str) -> None:
        """Find the file.  Raises PathNotFoundError, FileKindError, UsageError for one of no whole
        sectors.
        """
        self._image = image
        self._file = image.find(path)
        if not self._file.is_file:
            raise FileKindError(f"{path} is no regular file")
        self.size_bytes: Final = self._file.size
        if not self.size_bytes or self.size_bytes % _SECTOR_BYTES:
            raise UsageError(f"{path} is no disk: it has {self.size_bytes} bytes")

    def open_blobs(self) -> None:
        """Fetch what the blobs need before their data can be read (chunk tables)."""
        for index in {chunk.blob_index for chunk in self._image.chunks(self._file)}:
            self._image.blobs.readable[index]

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> int:
        """Fill *buffer* from *offset* on; returns the count, less only at the end of the disk.

        Raises what :meth:`lamina.content.lazy_blob.LazyBlob.ensure` does.
        """
        view = memoryview(buffer).cast("B")
        data = self._image.pread(self._file, offset, len(view))
        view[: len(data)] = data
        return len(data)

    def read_ready(self, offset: int, view: memoryview) -> bool:
        """Fill *view* if all of the range is here now; if not (False), what it holds is nothing."""
        return self.is_ready(offset, len(view)) and self.read_into(offset, view) == len(view)

    def segments(self, offset: int, size_bytes: int) -> Iterator[Segment]:
        """Yield the range, which is data."""
        size = min(size_bytes, self.size_bytes - offset)
        if size > 0:
            yield Segment(offset, size, is_hole=False)

    def is_ready(self, offset: int, size_bytes: int) -> bool:
        """Return whether the range can be read now without fetching; it may be evicted again."""
        return all(
            self._image.blobs[index].is_ready(blob_offset, size)
            for _, size, index, blob_offset in self._image.file_runs(
                self._file, offset, min(offset + size_bytes, self.size_bytes)
            )
        )

    def is_hole(self, _offset: int, _size_bytes: int) -> bool:
        """Return False."""
        return False
