"""OCI archives: the tar of an OCI layout.  Read in place; written through a layout folder beside
it.
"""

from __future__ import annotations

import os

from lamina.oci.manifest import MAX_MANIFEST_BYTES, ImageIndex, parse_index
from lamina.oci.reference import Reference
from lamina.registry.archive_file import ArchiveFile
from lamina.registry.layout import (
    INDEX_FILE,
    LAYOUT_FILE,
    LAYOUT_VERSION,
    check_layout_marker,
)
from lamina.registry.local import Extent, LocalRepository, read_small_file
from lamina.registry.repository import Repository
from lamina.registry.staged_archive import StagedRepository
from lamina.registry.tar_members import TarMembers


def open_oci_archive(reference: Reference, *, write: bool) -> Repository:
    """Open an OCI archive for reading, or for replacing it when the repository is closed.

    Raises NotFoundError or FormatError for what cannot be read, StoreError for what cannot be
    written.
    """
    if write:
        return OciArchiveWriter(reference)
    images = _OciArchive(reference.path)
    try:
        images.check()
    except BaseException:
        images.close()
        raise
    return LocalRepository(reference, images)


class _OciArchive:
    def __init__(self, path: str) -> None:
        self._members = TarMembers(path)

    def check(self) -> None:
        path = self._members.path
        check_layout_marker(self._members.read(LAYOUT_FILE, 4096), path)

    def index(self) -> ImageIndex:
        data = self._members.read(INDEX_FILE, MAX_MANIFEST_BYTES)
        return parse_index(data, f"{INDEX_FILE} of {self._members.path}")

    def extent(self, digest: str) -> Extent | None:
        return self._members.extent(f"blobs/{digest.replace(':', '/', 1)}")

    def close(self) -> None:
        self._members.close()


class OciArchiveWriter(StagedRepository):
    """An OCI archive that is being written."""

    def _write_archive(self, archive: ArchiveFile) -> None:
        folder = self._stage
        archive.add(LAYOUT_FILE, LAYOUT_VERSION)
        index = os.path.join(folder, INDEX_FILE)
        archive.add(INDEX_FILE, read_small_file(index, MAX_MANIFEST_BYTES))
        for algorithm in sorted(os.listdir(os.path.join(folder, "blobs"))):
            for name in sorted(os.listdir(os.path.join(folder, "blobs", algorithm))):
                with open(os.path.join(folder, "blobs", algorithm, name), "rb") as blob:
                    size = os.fstat(blob.fileno()).st_size
                    archive.add_stream(f"blobs/{algorithm}/{name}", blob, size)
