"""Random access to the members of an image archive: an index of names, no unpacking.

A compressed archive is first decompressed into a temporary file that has no name.
"""

from __future__ import annotations

import mmap
import os
import posixpath
import sys
import tempfile
from typing import BinaryIO, Final

from lamina.archive.blocks import BlockReader
from lamina.archive.stream import open_layer
from lamina.archive.tar import HARD_LINK, REGULAR, SYMLINK, Entry, walk
from lamina.errors import Error, FetchError, FormatError, NotFoundError, StoreError
from lamina.oci.manifest import OCI_LAYER
from lamina.registry.local import Extent, read_extent
from lamina.registry.verify import COPY_BYTES

_MAX_MEMBERS: Final = 1 << 17
_MAX_LINKS: Final = 8
_TAR_MAGIC_OFFSET: Final = 257


class TarMembers:
    """The regular files of a tar by name, links followed inside the archive."""

    def __init__(self, path: str) -> None:
        """Index the archive.  Raises NotFoundError, FetchError, FormatError."""
        self.path = path
        self._links: dict[str, str] = {}
        self._extents: dict[str, Extent] = {}
        try:
            self._file: BinaryIO = open(path, "rb")
        except FileNotFoundError:
            raise NotFoundError(f"there is no archive {path}") from None
        except OSError as error:
            is_folder = isinstance(error, IsADirectoryError)
            hint = f"a folder is written oci:{path}" if is_folder else None
            raise FetchError(f"cannot open {path}: {error.strerror}", hint=hint) from error
        try:
            self._index()
        except BaseException:
            self.close()
            raise

    def extent(self, name: str) -> Extent | None:
        """Return where a member's bytes are; None if there is no such regular file."""
        for _ in range(_MAX_LINKS):
            if name in self._extents:
                return self._extents[name]
            if name not in self._links:
                return None
            name = self._links[name]
        return None

    def read(self, name: str, limit_bytes: int) -> bytes:
        """Return a small member; NotFoundError if it is not there, FormatError if it is larger than
        allowed.
        """
        extent = self.extent(name)
        if extent is None:
            raise NotFoundError(f"the archive {self.path} has no member {name}")
        if extent.size_bytes > limit_bytes:
            raise FormatError(f"{name} in {self.path} has more than {limit_bytes} bytes")
        return read_extent(extent, 0, extent.size_bytes)

    def close(self) -> None:
        """Close the archive; again does nothing."""
        self._file.close()

    def _index(self) -> None:
        head = self._file.read(512)
        self._file.seek(0)
        if head[_TAR_MAGIC_OFFSET : _TAR_MAGIC_OFFSET + 5] != b"ustar":
            self._decompress()
        size = os.fstat(self._file.fileno()).st_size
        if not size:
            raise FormatError(f"the archive {self.path} is empty")
        here = "/proc/self/fd" if sys.platform == "linux" else "/dev/fd"
        place = f"{here}/{self._file.fileno()}"
        # Not closed here: views of it may live on in the traceback of an error.
        buffer = mmap.mmap(self._file.fileno(), size, prot=mmap.PROT_READ)
        try:
            self._walk(memoryview(buffer), place)
        except Error as error:
            raise FormatError(f"{self.path} is no readable archive: {error}") from None

    def _walk(self, view: memoryview, place: str) -> None:
        for count, entry in enumerate(walk(BlockReader.over(view))):
            if count >= _MAX_MEMBERS:
                raise FormatError(f"it has more than {_MAX_MEMBERS} members")
            self._add(entry, place, len(view))

    def _add(self, entry: Entry, place: str, size_bytes: int) -> None:
        name = entry.path.decode("utf-8", "surrogateescape")
        target = entry.link.decode("utf-8", "surrogateescape")
        if entry.kind == REGULAR:
            if entry.data_offset + entry.size > size_bytes:
                raise FormatError(f"it ends inside its member {name}")
            self._extents[name] = Extent(place, entry.data_offset, entry.size)
        elif entry.kind == SYMLINK:
            self._links[name] = posixpath.normpath(posixpath.join(posixpath.dirname(name), target))
        elif entry.kind == HARD_LINK:
            self._links[name] = target

    def _decompress(self) -> None:
        source = self._file
        try:
            plain: BinaryIO = tempfile.TemporaryFile(prefix="lamina-")
            self._file = plain
            with open_layer(source, OCI_LAYER) as stream:
                while data := stream.read(COPY_BYTES):
                    plain.write(data)
            plain.flush()
            plain.seek(0)
        except OSError as error:
            raise StoreError(
                f"cannot decompress {self.path} into {tempfile.gettempdir()}: {error.strerror}",
                hint="set TMPDIR to a folder with room for it",
            ) from error
        finally:
            source.close()
