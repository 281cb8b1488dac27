"""Where a blob goes while it is being made: into its place if that can be, else into a temporary
file without a name, from which it is pushed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO, Protocol, runtime_checkable

from lamina.build.options import ConvertOptions, work_folder
from lamina.build.push_ahead import FROM_BYTES, GrowingRepository, PushAhead
from lamina.errors import StoreError, os_hint
from lamina.oci.manifest import Descriptor
from lamina.posix.unnamed_file import open_unnamed_file
from lamina.posix.write import write_all
from lamina.registry.repository import Repository

if TYPE_CHECKING:
    from typing_extensions import Buffer


class BlobWriter(Protocol):
    """Takes a blob while it is being made; :meth:`commit` gives it its name."""

    def write(self, data: Buffer) -> None:
        """Append bytes."""

    def commit(self, descriptor: Descriptor) -> None:
        """Store what was written under its digest."""

    def close(self) -> None:
        """Drop what was not committed."""


@runtime_checkable
class DirectRepository(Protocol):
    """A repository that can take a blob before its digest is known."""

    def start_blob(self) -> BlobWriter:
        """Begin a blob."""


def blob_output(
    destination: Repository, options: ConvertOptions, progress: Callable[[int], None]
) -> BlobOutput:
    """Return what a blob is written to.  ``progress`` is told the bytes that were pushed."""
    if isinstance(destination, DirectRepository):
        return DirectOutput(destination, destination, progress)
    return TemporaryOutput(destination, work_folder(options.work_dir), progress)


class DirectOutput:
    """Writes a blob where it belongs; nothing is made before its first byte."""

    def __init__(
        self, start: DirectRepository, destination: Repository, progress: Callable[[int], None]
    ) -> None:
        self._start = start
        self._destination = destination
        self._progress = progress
        self._writer: BlobWriter | None = None

    def write(self, data: Buffer) -> None:
        """Append bytes."""
        self._writer = self._writer or self._start.start_blob()
        self._writer.write(data)
        self._progress(len(memoryview(data)))

    def commit(self, descriptor: Descriptor) -> None:
        """Give the blob its name, unless it is there."""
        assert self._writer is not None
        if not self._destination.has_blob(descriptor.digest, descriptor.size):
            self._writer.commit(descriptor)

    def close(self) -> None:
        """Drop what was not committed."""
        if self._writer is not None:
            self._writer.close()


class TemporaryOutput:
    """Keeps a blob until it is pushed, some of it while the rest is being made if the destination
    can take it so.
    """

    def __init__(
        self, destination: Repository, folder: str, progress: Callable[[int], None]
    ) -> None:
        self._destination = destination
        self._folder = folder
        self._progress = progress
        self._file: BinaryIO | None = None
        self._size = 0
        self._ahead: PushAhead | None = None

    def write(self, data: Buffer) -> None:
        """Append bytes.

        Raises:
            StoreError: the file fails.
        """
        try:
            self._file = self._file or open_unnamed_file(self._folder)
        except OSError as error:
            raise StoreError(
                f"no temporary files can be made in {self._folder}: {error.strerror}",
                hint="set TMPDIR, or name another directory for temporary files",
            ) from error
        view = memoryview(data)
        try:
            write_all(self._file.fileno(), view, self._size)
        except OSError as error:
            raise StoreError(
                f"a temporary file cannot be written or read: {error.strerror}",
                hint=os_hint(error),
            ) from error
        self._size += len(view)
        if self._ahead is not None:
            self._ahead.grow(self._size)
        elif self._size >= FROM_BYTES and isinstance(self._destination, GrowingRepository):
            self._ahead = PushAhead(self._destination, self._file.fileno(), self._progress)
            self._ahead.grow(self._size)

    def commit(self, descriptor: Descriptor) -> None:
        """Push the blob, unless it is there."""
        assert self._file is not None
        if self._destination.has_blob(descriptor.digest, descriptor.size):
            if self._ahead is not None:
                self._ahead.close()
            self._progress(descriptor.size)
            return
        if self._ahead is not None and self._ahead.finish(descriptor):
            return
        self._file.seek(0)
        self._destination.push_blob(descriptor, self._file, self._progress)

    def close(self) -> None:
        """Free the file, and give up what was not committed."""
        if self._ahead is not None:
            self._ahead.close()
        if self._file is not None:
            self._file.close()


BlobOutput = DirectOutput | TemporaryOutput
