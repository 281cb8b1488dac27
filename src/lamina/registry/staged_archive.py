"""Repositories that are written as one file: collected in a folder beside it, written when they are
closed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from dataclasses import replace

from lamina.errors import StoreError, os_hint
from lamina.oci.manifest import Descriptor
from lamina.oci.reference import Reference
from lamina.registry.archive_file import ArchiveFile, new_archive
from lamina.registry.layout import LayoutRepository


class StagedRepository(LayoutRepository, ABC):
    """Collects images in a layout folder; ``close`` writes the file in one go and removes the
    folder.

    Nothing is written if no manifest was pushed, or if the ``with`` block ends by an error.  A file
    that was there is replaced.
    """

    def __init__(self, reference: Reference) -> None:
        self._path = reference.path
        self._stage = _folder_beside(reference.path)
        self._pushed = False
        try:
            super().__init__(replace(reference, path=self._stage), write=True)
        except BaseException:
            self._discard()
            raise
        self._reference = reference

    def push_manifest(
        self, tag: str | None, media_type: str, data: bytes, *, digest: str | None = None
    ) -> Descriptor:
        """Store a manifest; from now on there is something to write."""
        descriptor = super().push_manifest(tag, media_type, data, digest=digest)
        self._pushed = True
        return descriptor

    def close(self) -> None:
        """Write the file; again does nothing.  StoreError if it cannot be written."""
        try:
            if self._pushed:
                self._pushed = False
                with new_archive(self._path) as archive:
                    self._write_archive(archive)
        finally:
            self._discard()

    def __exit__(self, *exc_info: object) -> None:
        if exc_info[0] is not None:
            self._pushed = False
        self.close()

    @abstractmethod
    def _write_archive(self, archive: ArchiveFile) -> None:
        """Write what the folder holds."""

    def _discard(self) -> None:
        shutil.rmtree(self._stage, ignore_errors=True)


def _folder_beside(path: str) -> str:
    parent, name = os.path.split(os.path.abspath(path))
    try:
        os.makedirs(parent, exist_ok=True)
        return tempfile.mkdtemp(prefix=f".{name}.", dir=parent)
    except OSError as error:
        raise StoreError(
            f"cannot write to {parent}: {error.strerror}", hint=os_hint(error)
        ) from error
