"""Blobs in a folder of this node, each a file that is named by its digest.

The folder may be the content store of containerd or the ``blobs`` of an OCI layout
(``blobs/ALGORITHM/HEX``), a blob directory that layouts share, as skopeo's ``--shared-blob-dir``
(``ALGORITHM/HEX``), or what skopeo writes to ``dir:`` (``HEX``, and the manifest as
``manifest.json``).
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from typing import BinaryIO, Final

from lamina.errors import FetchError, NotFoundError, os_hint
from lamina.source.blob_source import BlobSource, Cost, require_length

_MOST_MANIFEST_BYTES: Final = 4 << 20
_DIGEST: Final = re.compile(r"([a-z0-9]{1,32}):([0-9a-f]{32,128})")


class FolderSource(BlobSource):
    """The blobs of one folder, which may come and go at any time.  Threads share it."""

    cost = Cost.NODE

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Read from *folder*.  Raises NotFoundError if there is none."""
        self._folder = os.path.abspath(folder)
        self.name = f"the folder {self._folder}"
        if not os.path.isdir(self._folder):
            raise NotFoundError(
                f"there is no folder of blobs {self._folder}",
                hint="name one that has blobs/sha256/HEX, sha256/HEX or HEX in it",
            )

    def read_into(
        self,
        blob_id: str,
        offset: int,
        buffer: memoryview,
        timeout_s: float,  # noqa: ARG002 - files do not keep anybody waiting
    ) -> None:
        """Fill *buffer*; raises NotFoundError, or FetchError for a file that cannot be read or is
        too short.
        """
        with self.open(f"sha256:{blob_id}") as file:
            try:
                file.seek(offset)
                count = file.readinto(buffer)  # type: ignore[attr-defined]
            except OSError as error:
                raise self._unreadable(error) from error
        require_length(count, self.name, blob_id, offset, len(buffer))

    def open(self, digest: str) -> BinaryIO:
        """Return the file of what has a digest, verified by nobody.

        Raises NotFoundError, also for what is no digest, or FetchError if it cannot be opened.
        """
        found = _DIGEST.fullmatch(digest)
        if found is not None:
            algorithm, name = found.groups()
            for path in (f"blobs/{algorithm}/{name}", f"{algorithm}/{name}", name):
                try:
                    return open(os.path.join(self._folder, path), "rb", 0, opener=_opened)
                except (FileNotFoundError, NotADirectoryError):
                    continue
                except OSError as error:
                    raise self._unreadable(error) from error
            if (
                algorithm == "sha256"
                and hashlib.sha256(data := self._manifest()).hexdigest() == name
            ):
                return io.BytesIO(data)
        raise NotFoundError(f"{self.name} has no {digest}")

    def _manifest(self) -> bytes:
        try:
            path = os.path.join(self._folder, "manifest.json")
            with open(path, "rb", opener=_opened) as file:
                return file.read(_MOST_MANIFEST_BYTES) or b""
        except OSError:
            return b""

    def _unreadable(self, error: OSError) -> FetchError:
        return FetchError(
            f"a blob in {self.name} cannot be read: {error.strerror}", hint=os_hint(error)
        )


def _opened(path: str, flags: int) -> int:
    # Of a pipe the reads then fail, instead of waiting for somebody who writes.
    return os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK)
