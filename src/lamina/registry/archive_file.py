"""Write an archive so that it appears under its name whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from typing import BinaryIO

from lamina.archive.tar_writer import END_MARK, encode_entry, file_entry, padding
from lamina.errors import StoreError, UnsupportedError, os_hint
from lamina.registry.local import remove_quietly
from lamina.registry.verify import COPY_BYTES


class ArchiveFile:
    """A tar that is being written: members one after the other, all owned by root and from 1970."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def add(self, name: str, data: bytes) -> None:
        """Add a small member."""
        self._file.write(encode_entry(file_entry(name.encode(), len(data))))
        self._file.write(data)
        self._file.write(padding(len(data)))

    def add_stream(self, name: str, source: BinaryIO, size_bytes: int | None = None) -> None:
        """Add a member from a stream of a known size, or of one that its end tells."""
        start = self._file.tell()
        header = encode_entry(file_entry(name.encode(), size_bytes or 0))
        self._file.write(header)
        total = 0
        while data := source.read(COPY_BYTES):
            self._file.write(data)
            total += len(data)
        self._file.write(padding(total))
        if size_bytes is None:
            final = encode_entry(file_entry(name.encode(), total))
            if len(final) != len(header):
                raise UnsupportedError(f"the layer {name} is too large for such an archive")
            self._file.seek(start)
            self._file.write(final)
            self._file.seek(0, os.SEEK_END)


@contextlib.contextmanager
def new_archive(path: str) -> Iterator[ArchiveFile]:
    """Yield a new archive in place of *path* when the block ends without an error; StoreError for
    the disk's.
    """
    temporary = f"{path}.{secrets.token_hex(6)}.tmp"
    try:
        with open(temporary, "xb") as file:
            yield ArchiveFile(file)
            file.write(END_MARK)
            file.flush()
            os.fdatasync(file.fileno())
        os.rename(temporary, path)
    except OSError as error:
        remove_quietly(temporary)
        raise StoreError(f"cannot write {path}: {error.strerror}", hint=os_hint(error)) from error
    except BaseException:
        remove_quietly(temporary)
        raise
