"""An opened image as one raw EROFS disk, whose data arrive as they are read.

Every kind of image that opens is one: native, indexed, sealed.  The disk is the same bytes whenever
and wherever it is made of the same image, so two servers of it stand for each other.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import Final

from lamina.block.base import Segment, merged
from lamina.content.lazy_image import LazyImage
from lamina.erofs.flatten import DataExtent, Layout, flatten
from lamina.errors import StoreError


class DiskView:
    """The image as a device of ``size_bytes``.  Threads share it; the image stays the caller's."""

    def __init__(self, image: LazyImage, layout: Layout = Layout.PLAIN) -> None:
        """Lay the disk out, which reads the metadata of all files and no data.

        Raises UnsupportedError for images that cannot be one disk, FormatError.
        """
        flat = flatten(image.bootstrap, layout)
        self._image = image
        self.uuid: Final = flat.uuid
        """Of the file system, which the image decides."""
        self._metadata = memoryview(flat.metadata)
        self._extents = flat.extents
        self._starts = [extent.offset for extent in flat.extents]
        self.size_bytes: Final = flat.size_bytes
        """A multiple of 4096."""

    def open_blobs(self) -> None:
        """Fetch what the blobs need before their data can be read (chunk tables)."""
        for index in {extent.blob_index for extent in self._extents}:
            self._image.blobs[index]

    def segments(self, offset: int, size_bytes: int) -> Iterator[Segment]:
        """Cut a range, as far as it is on the disk, into data and holes; neighbours differ."""
        return merged(
            Segment(start, size, source is None)
            for start, size, source in self._parts(offset, size_bytes)
        )

    def is_ready(self, offset: int, size_bytes: int) -> bool:
        """Return whether the range can be read now without fetching; it may be evicted again."""
        extent = self._extent_around(offset, size_bytes)
        if extent is not None:
            blob = self._image.blobs[extent.blob_index]
            return blob.is_ready(extent.blob_offset + offset - extent.offset, size_bytes)
        for start, size, source in self._parts(offset, size_bytes):
            if isinstance(source, DataExtent):
                blob = self._image.blobs[source.blob_index]
                if not blob.is_ready(source.blob_offset + start - source.offset, size):
                    return False
        return True

    def read_ready(self, offset: int, view: memoryview) -> bool:
        """Fill *view* if all of the range is here now; if not (False), what it holds is nothing."""
        extent = self._extent_around(offset, len(view))
        if extent is not None:
            blob = self._image.blobs[extent.blob_index]
            return blob.read_ready(extent.blob_offset + offset - extent.offset, view)
        done = 0
        for start, size, source in self._parts(offset, len(view)):
            part = view[done : done + size]
            if source is None:
                part[:] = bytes(size)
            elif not isinstance(source, DataExtent):
                part[:] = source
            elif not self._image.blobs[source.blob_index].read_ready(
                source.blob_offset + start - source.offset, part
            ):
                return False
            done += size
        return done == len(view)

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> int:
        """Fill *buffer* from *offset* on; returns the count, less only at the end of the disk.

        Raises what :meth:`lamina.content.lazy_blob.LazyBlob.ensure` does; then the content of
        *buffer* means nothing.
        """
        view = memoryview(buffer).cast("B")
        extent = self._extent_around(offset, len(view))
        if extent is not None:
            return self._read_extent(extent, offset, view)
        done = 0
        for start, size, source in self._parts(offset, len(view)):
            part = view[done : done + size]
            if source is None:
                part[:] = bytes(size)
            elif isinstance(source, DataExtent):
                self._read_extent(source, start, part)
            else:
                part[:] = source
            done += size
        return done

    def is_hole(self, offset: int, size_bytes: int) -> bool:
        """Return whether all of a range of the disk is zeros because nothing is there."""
        if self._extent_around(offset, size_bytes) is not None:
            return False
        first = next(self.segments(offset, size_bytes), None)
        return first is not None and first.is_hole and first.size_bytes == size_bytes

    def _extent_around(self, offset: int, size_bytes: int) -> DataExtent | None:
        """Return the extent that has all of a range: nearly every read is of one."""
        number = bisect_right(self._starts, offset) - 1
        if number < 0:
            return None
        extent = self._extents[number]
        return extent if offset + size_bytes <= extent.offset + extent.size_bytes else None

    def _read_extent(self, extent: DataExtent, offset: int, view: memoryview) -> int:
        blob = self._image.blobs[extent.blob_index]
        count = blob.read_into(extent.blob_offset + offset - extent.offset, view)
        if count != len(view):
            raise StoreError(f"the blob {blob.blob_id} ends before its disk does")
        return count

    def _parts(
        self, offset: int, size_bytes: int
    ) -> Iterator[tuple[int, int, DataExtent | memoryview | None]]:
        """Yield (offset, size, where it is) of all parts of a range; None for a hole."""
        end = min(offset + size_bytes, self.size_bytes)
        if offset < 0:
            return
        if offset < len(self._metadata) and offset < end:
            stop = min(end, len(self._metadata))
            yield offset, stop - offset, self._metadata[offset:stop]
            offset = stop
        yield from self._data_parts(offset, end)

    def _data_parts(self, offset: int, end: int) -> Iterator[tuple[int, int, DataExtent | None]]:
        number = max(bisect_right(self._starts, offset) - 1, 0)
        while offset < end:
            extent = self._extents[number] if number < len(self._extents) else None
            if extent is None or end <= extent.offset:
                yield offset, end - offset, None
                return
            if offset < extent.offset:
                yield offset, extent.offset - offset, None
                offset = extent.offset
            stop = min(end, extent.offset + extent.size_bytes)
            if offset < stop:
                yield offset, stop - offset, extent
                offset = stop
            number += 1
