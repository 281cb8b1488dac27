"""An upload of a blob that is still being made, whose digest is known at its end only.

The bytes go out in chunks, and the request that ends the upload names the digest, which the
registry verifies (OCI distribution specification 1.1, "Pushing a blob in chunks").
"""

from __future__ import annotations

from typing import Final

from lamina.errors import FetchError
from lamina.oci.manifest import OCI_LAYER, Descriptor
from lamina.registry.repository import Progress
from lamina.registry.session import Session
from lamina.registry.upload import Habits, Upload

_LEAST_BYTES: Final = 4 << 20
"""Of what is sent at a time: little enough that something is sent soon."""

_UNKNOWN: Final = Descriptor(media_type=OCI_LAYER, digest="sha256:" + 64 * "0", size=0)


class GrowingUpload(Upload):
    """Takes the bytes of one blob in their order; used by one thread.

    A chunk that fails is tried again from where the registry has got to.  Where the upload cannot
    go on, all methods raise FetchError; that may be for chunks, which some registries do not take,
    so that :meth:`Repository.push_blob` works nevertheless.
    """

    def __init__(self, session: Session, habits: Habits, progress: Progress | None = None) -> None:
        super().__init__(session, _UNKNOWN, habits, progress)
        self._size_bytes = 0
        self._is_begun = False

    @property
    def least_bytes(self) -> int:
        """Tell how many bytes :meth:`append` is to be given at least."""
        return max(min(_LEAST_BYTES, self.most_bytes), self._least_bytes)

    @property
    def most_bytes(self) -> int:
        """Tell how many bytes :meth:`append` is best given if there are so many: each call is a
        round trip.
        """
        wanted = self._session.options.push_chunk_bytes
        return max(min(wanted, self._habits.chunk_bytes or wanted), self._least_bytes)

    def begin(self) -> None:
        """Ask for a place to upload to."""
        if self._habits.whole:
            raise FetchError(f"{self._session.reference} takes no blobs in chunks")
        self._location = self._begin()
        self._is_begun = True

    def append(self, data: bytes) -> None:
        """Store the next bytes."""
        if len(data) < self._least_bytes:
            raise FetchError(f"{self._session.reference} wants chunks of {self._least_bytes} bytes")
        self._send_chunk(self._size_bytes, data)
        self._size_bytes += len(data)

    def finish(self, descriptor: Descriptor, rest: bytes) -> None:
        """Store the last bytes, of any number, and give the blob its name.

        Raises IntegrityError, as FetchError, if the registry has stored something else.
        """
        self._descriptor = descriptor
        self._send_chunk(self._size_bytes, rest)
        self._finish_chunks()
        self._is_begun = False

    def cancel(self) -> None:
        """Give up an upload that was begun and not finished; whether the registry hears of it does
        not matter.
        """
        if self._is_begun:
            self._is_begun = False
            self._cancel(self._location)
            self._report(-self._moved)
