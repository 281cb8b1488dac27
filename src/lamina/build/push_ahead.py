"""Push a blob while it is being made: a thread sends what its file has got, so that making it and
pushing it take as long as the longer of both.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from typing import Final, Protocol, Self, runtime_checkable

from lamina.build.byte_queue import CancelledError
from lamina.errors import Error, FetchError, StoreError, os_hint
from lamina.oci.manifest import Descriptor
from lamina.registry.repository import Progress

FROM_BYTES: Final = 8 << 20
"""What a blob has before it is pushed ahead: a smaller one is there soon, or is there already."""


class GrowingBlob(Protocol):
    """A blob on its way to a repository that takes it before its digest is known.

    All methods raise FetchError where it cannot go on; another way of pushing may work.
    """

    @property
    def least_bytes(self) -> int:
        """Tell how many bytes :meth:`append` is to be given at least."""

    @property
    def most_bytes(self) -> int:
        """Tell how many bytes :meth:`append` is best given if there are so many."""

    def begin(self) -> None:
        """Ask for a place."""

    def append(self, data: bytes) -> None:
        """Store the next bytes."""

    def finish(self, descriptor: Descriptor, rest: bytes) -> None:
        """Store the last bytes, and give the blob its name."""

    def cancel(self) -> None:
        """Give it up."""


@runtime_checkable
class GrowingRepository(Protocol):
    """A repository that takes blobs before their digests are known."""

    def start_upload(self, progress: Progress | None = None) -> GrowingBlob:
        """Return what takes a blob."""


class PushAhead:
    """Pushes the file ``fd`` as :meth:`grow` tells that it grows."""

    def __init__(self, repository: GrowingRepository, fd: int, progress: Progress) -> None:
        self._blob = repository.start_upload(self._tell)
        self._fd = fd
        self._progress = progress
        self._changed = threading.Condition()
        self._size = self._pushed = 0
        self._is_whole = self._is_cancelled = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._push, name="lamina-push")
        self._thread.start()

    def grow(self, size_bytes: int) -> None:
        """Say how many bytes the file has."""
        with self._changed:
            self._size = size_bytes
            self._changed.notify()

    def finish(self, descriptor: Descriptor) -> bool:
        """Push the rest, and give the blob its name; False if it has to be pushed in another way.

        Raises what the repository has raised, but for FetchError, which such a push will raise if
        that fails as well.
        """
        with self._changed:
            self._is_whole = True
            self._changed.notify()
        self._thread.join()
        try:
            if self._error is not None:
                raise self._error
            self._blob.finish(descriptor, self._read(self._size - self._pushed))
        except FetchError:
            self._cancel()
            return False
        return True

    def close(self) -> None:
        """Give up what was not finished; may be called again."""
        with self._changed:
            self._is_cancelled = True
            self._changed.notify()
        self._thread.join()
        self._cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _push(self) -> None:
        try:
            self._blob.begin()
            while size := self._wait():
                self._blob.append(self._read(size))
                self._pushed += size
        except BaseException as error:  # noqa: BLE001 - who finishes it gets it
            self._error = error

    def _wait(self) -> int:
        """Return how many bytes are to be pushed next, once they are there; 0 if nothing is."""
        least_bytes = self._blob.least_bytes
        with self._changed:
            while (ready := self._size - self._pushed) < least_bytes:
                if self._is_whole or self._is_cancelled:
                    return 0
                self._changed.wait()
            return 0 if self._is_cancelled else min(ready, self._blob.most_bytes)

    def _read(self, size_bytes: int) -> bytes:
        try:
            return os.pread(self._fd, size_bytes, self._pushed)
        except OSError as error:
            raise StoreError(
                f"a temporary file cannot be read: {error.strerror}", hint=os_hint(error)
            ) from error

    def _cancel(self) -> None:
        with suppress(Error):
            self._blob.cancel()

    def _tell(self, size_bytes: int) -> None:
        self._progress(size_bytes)
        if self._is_cancelled and size_bytes > 0:
            raise CancelledError("the conversion was cancelled")
