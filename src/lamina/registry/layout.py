"""OCI image layout folders: read, and written so that a crash at any moment leaves a valid layout.

A blob is written to a temporary file, verified, synced and renamed; ``index.json`` is replaced by
rename under an exclusive flock of the folder, so that several processes may write to one layout.  A
tag that is replaced keeps the others.  Source: OCI image layout specification 1.1.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Self

import msgspec

from lamina.errors import FormatError, IntegrityError, NotFoundError, StoreError, os_hint
from lamina.oci.manifest import (
    MAX_MANIFEST_BYTES,
    OCI_INDEX,
    REF_NAME,
    Descriptor,
    ImageIndex,
    detect_media_type,
    encode,
    parse_document,
    parse_index,
    parse_manifest,
)
from lamina.oci.reference import Reference
from lamina.posix.file_space import forget_pages
from lamina.registry.local import (
    Extent,
    LocalRepository,
    read_small_file,
    remove_quietly,
)
from lamina.registry.repository import Progress
from lamina.registry.verify import copy_verified, describe_as

if TYPE_CHECKING:
    from typing_extensions import Buffer

LAYOUT_FILE: Final = "oci-layout"
LAYOUT_VERSION: Final = b'{"imageLayoutVersion":"1.0.0"}'
INDEX_FILE: Final = "index.json"

_TEMPORARY: Final = ".lamina-"
_STALE_S: Final = 3600


def no_layout(path: str) -> NotFoundError:
    """Return the error for a path that is no folder."""
    is_file = os.path.isfile(path)
    hint = f"a tar is written oci-archive:{path} or docker-archive:{path}" if is_file else None
    return NotFoundError(f"there is no OCI layout folder {path}", hint=hint)


class LayoutFolder:
    """The files of a layout folder (:class:`lamina.registry.local.LocalImages`)."""

    def __init__(self, path: str) -> None:
        self.path = path

    def check(self) -> None:
        """Raise NotFoundError or FormatError unless this is a layout of version 1."""
        if not os.path.isdir(self.path):
            raise no_layout(self.path)
        check_layout_marker(read_small_file(self.file(LAYOUT_FILE), 4096), self.path)

    def create(self) -> None:
        """Make the folder and an empty layout in it, unless it is one; FormatError if other files
        are there.
        """
        try:
            os.makedirs(self.path, exist_ok=True)
            with self.locked():
                if not os.path.exists(self.file(LAYOUT_FILE)):
                    self._fill()
        except OSError as error:
            raise _store_error(self.path, error) from error
        self.check()
        self._remove_stale()

    def check_place(self) -> None:
        """Raise StoreError if the folder, which is not there yet, could not be made."""
        above = os.path.abspath(self.path)
        while not os.path.lexists(above):
            above = os.path.dirname(above)
        if not os.path.isdir(above):
            raise StoreError(f"cannot write to {self.path}: {above} is no folder")
        if not os.access(above, os.W_OK | os.X_OK):
            raise StoreError(f"cannot write to {self.path}: {above} is not yours to write to")

    def _fill(self) -> None:
        if set(os.listdir(self.path)) - {"blobs", INDEX_FILE}:
            raise FormatError(
                f"{self.path} is neither empty nor an OCI layout", hint="name a new or empty folder"
            )
        os.makedirs(self.file("blobs", "sha256"), exist_ok=True)
        if not os.path.exists(self.file(INDEX_FILE)):
            self.replace(INDEX_FILE, _empty_index())
        self.replace(LAYOUT_FILE, LAYOUT_VERSION)

    def file(self, *names: str) -> str:
        """Return a path inside the folder."""
        return os.path.join(self.path, *names)

    def index(self) -> ImageIndex:
        """Return the index, as it is on disk now."""
        if not os.path.isdir(self.path):
            raise no_layout(self.path)
        path = self.file(INDEX_FILE)
        return parse_index(read_small_file(path, MAX_MANIFEST_BYTES), path)

    def extent(self, digest: str) -> Extent | None:
        """Return where a blob is, None if it is not there."""
        path = self._blob_path(digest)
        try:
            return Extent(path, 0, os.stat(path).st_size)
        except FileNotFoundError:
            return None

    def close(self) -> None:
        """Nothing stays open."""

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder's exclusive lock."""
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def write_blob(
        self, descriptor: Descriptor, source: BinaryIO, progress: Progress | None
    ) -> None:
        """Copy a blob in; nothing stays if it is not what the descriptor says."""
        path = self._blob_path(descriptor.digest)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with self._new_file(path) as file:
            copy_verified(source, descriptor, file.write, self.path, progress)

    def start_blob(self) -> LayoutBlobWriter:
        """Begin a blob whose digest is not known yet."""
        temporary = self.file(f"{_TEMPORARY}{os.urandom(8).hex()}")
        return LayoutBlobWriter(temporary, self._blob_path)

    def replace_index(self, document: dict[str, Any]) -> None:
        """Write index.json; the caller holds the lock."""
        self.replace(INDEX_FILE, encode(document))
        for folder in (self.file("blobs", "sha256"), self.path):
            _sync_folder(folder)

    def _blob_path(self, digest: str) -> str:
        algorithm, _, encoded = digest.partition(":")
        return self.file("blobs", algorithm, encoded)

    def replace(self, name: str, data: bytes) -> None:
        """Write a file of the folder: all of it or nothing."""
        with self._new_file(self.file(name)) as file:
            file.write(data)

    @contextlib.contextmanager
    def _new_file(self, path: str) -> Iterator[BinaryIO]:
        temporary = self.file(f"{_TEMPORARY}{os.urandom(8).hex()}")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            with os.fdopen(fd, "wb") as file:
                fcntl.flock(fd, fcntl.LOCK_EX)
                yield file
                file.flush()
                os.fdatasync(fd)
                os.rename(temporary, path)
        except BaseException:
            remove_quietly(temporary)
            raise

    def _remove_stale(self) -> None:
        """Remove temporary files of writers that died: old, and locked by nobody."""
        for entry in os.scandir(self.path):
            if not entry.name.startswith(_TEMPORARY):
                continue
            with contextlib.suppress(OSError), open(entry.path, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if time.time() - os.fstat(file.fileno()).st_mtime > _STALE_S:
                    os.unlink(entry.path)


class LayoutBlobWriter:
    """A blob that goes into a layout while it is being made, before its digest is known.

    The maker computes the digest from the bytes that it writes, and promises it in :meth:`commit`;
    they are not read again.  Closing it without that leaves nothing.
    """

    def __init__(self, temporary: str, place: Callable[[str], str]) -> None:
        self._temporary = temporary
        self._place = place
        self._size = 0
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            fd = os.open(temporary, flags, 0o644)
        except OSError as error:
            raise _store_error(temporary, error) from error
        self._file = os.fdopen(fd, "wb", buffering=0)
        fcntl.flock(fd, fcntl.LOCK_EX)

    def write(self, data: Buffer) -> None:
        """Append bytes; they are on their way to the disk when this returns."""
        view = memoryview(data).cast("B")
        start = self._size
        try:
            while view:
                written = self._file.write(view)
                self._size += written
                view = view[written:]
            # Starts the write-back now, so that commit has little left to wait for.
            forget_pages(self._file.fileno(), start, self._size - start)
        except OSError as error:
            raise _store_error(self._temporary, error) from error

    def commit(self, descriptor: Descriptor) -> None:
        """Give the blob its name; IntegrityError if its length is not the descriptor's."""
        if self._size != descriptor.size:
            raise IntegrityError(
                f"{descriptor.digest} has {self._size} bytes, not the {descriptor.size} promised"
            )
        path = self._place(descriptor.digest)
        try:
            os.fdatasync(self._file.fileno())
            os.makedirs(os.path.dirname(path), exist_ok=True)
            os.rename(self._temporary, path)
        except OSError as error:
            raise _store_error(path, error) from error
        self._file.close()

    def close(self) -> None:
        """Drop what was not committed; may be called again."""
        if not self._file.closed:
            remove_quietly(self._temporary)
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class LayoutRepository(LocalRepository):
    """An OCI layout folder as a repository.  One that is not there is made by the first write."""

    def __init__(self, reference: Reference, *, write: bool) -> None:
        self._folder = LayoutFolder(reference.path)
        self._write = write
        self._absent = write and not os.path.lexists(reference.path)
        if self._absent:
            self._folder.check_place()
        elif write:
            self._folder.create()
        else:
            self._folder.check()
        super().__init__(reference, self._folder)

    def push_blob(
        self, descriptor: Descriptor, source: BinaryIO, progress: Progress | None = None
    ) -> None:
        """Store a blob unless one of its digest and size is there."""
        self._check_writable()
        if self.has_blob(descriptor.digest, descriptor.size):
            if progress:
                progress(descriptor.size)
            return
        try:
            self._folder.write_blob(descriptor, source, progress)
        except OSError as error:
            raise _store_error(self._folder.path, error) from error

    def start_blob(self) -> LayoutBlobWriter:
        """Begin a blob whose digest is not known yet."""
        self._check_writable()
        return self._folder.start_blob()

    def push_manifest(
        self, tag: str | None, media_type: str, data: bytes, *, digest: str | None = None
    ) -> Descriptor:
        """Store a manifest and name it in index.json.

        Without a tag the entry has no name, and goes away again when an index that lists it is
        pushed.
        """
        self._check_writable()
        if detect_media_type(data) != media_type:
            raise FormatError(f"the manifest pushed as {media_type} is {detect_media_type(data)}")
        descriptor = describe_as(media_type, data, digest, "the manifest that is pushed")
        parts: set[str] = set()
        document = parse_manifest(data)
        if isinstance(document, ImageIndex):
            parts = {entry.digest for entry in document.manifests}
        elif document.subject is not None:
            kind = document.artifact_type or document.config.media_type
            descriptor = msgspec.structs.replace(descriptor, artifact_type=kind)
        try:
            if not self.has_blob(descriptor.digest, descriptor.size):
                self._folder.write_blob(descriptor, io.BytesIO(data), None)
            with self._folder.locked():
                self._name(descriptor, tag, parts)
        except OSError as error:
            raise _store_error(self._folder.path, error) from error
        return descriptor

    def _name(self, descriptor: Descriptor, tag: str | None, parts: set[str]) -> None:
        path = self._folder.file(INDEX_FILE)
        raw = read_small_file(path, MAX_MANIFEST_BYTES)
        parse_index(raw, path)
        document = parse_document(raw, path, ImageIndex)
        replaced = parts | {descriptor.digest}
        kept = [
            entry
            for entry in document.get("manifests") or []
            if not _gives_way(entry, tag, replaced)
        ]
        new: dict[str, Any] = {
            "mediaType": descriptor.media_type,
            "digest": descriptor.digest,
            "size": descriptor.size,
        }
        if descriptor.artifact_type:
            new["artifactType"] = descriptor.artifact_type
        if tag is not None:
            new["annotations"] = {REF_NAME: tag}
        document["manifests"] = [*kept, new]
        self._folder.replace_index(document)

    def _check_writable(self) -> None:
        if not self._write:
            raise self._read_only()
        if self._absent:
            self._folder.create()
            self._absent = False


def _gives_way(entry: Any, tag: str | None, replaced: set[str]) -> bool:
    """Tell whether an entry of index.json, which may be anything, is one that a new one
    replaces.
    """
    if not isinstance(entry, dict):
        return False
    annotations = entry.get("annotations")
    name = annotations.get(REF_NAME) if isinstance(annotations, dict) else None
    return name == tag if name is not None else entry.get("digest") in replaced


def check_layout_marker(data: bytes, where: str) -> None:
    """Raise FormatError unless the bytes of ``oci-layout`` say version 1."""
    version = parse_document(data, f"{where}/{LAYOUT_FILE}").get("imageLayoutVersion")
    if not isinstance(version, str) or not version.startswith("1."):
        raise FormatError(f"{where} is an OCI layout of an unknown version {version!r}")


def _empty_index() -> bytes:
    return encode({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []})


def _sync_folder(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _store_error(path: str, error: OSError) -> StoreError:
    return StoreError(f"cannot write to {path}: {error.strerror}", hint=os_hint(error))
