"""The node store: everything of images that is kept on this machine.

::

    ROOT/                              mode 0700, files 0600
        lock                           held (flock) while a blob's files are opened or created
        blobs/ID.IDENTITY.data         cache file of a blob (lamina.store.cache_blob)
        blobs/ID.IDENTITY.ready        its readiness map (lamina.store.readiness, byte by byte)
        index/chunks                   which blob has a chunk (lamina.store.chunk_places)
        .spool.PID.RANDOM              what is read whole, meanwhile (lamina.store.spool)
        space.lock                     held while room is made and used (lamina.store.space)
        metadata/ALGORITHM/HEX         manifests, configs, bootstraps, chunk tables by their digest
        containers/                    what containers wrote that `lamina run` keeps
        holds/                         which files no budget may evict (lamina.store.holds)
        .pull-*                        layers on their way to a local index
        records/KIND/ALGORITHM-HEX     small facts about what has that digest
                                       (lamina.store.records)

ROOT is ``$LAMINA_STORE``, else ``/var/lib/lamina`` for root and ``$XDG_CACHE_HOME/lamina``
(``~/.cache/lamina``) for other users.

Blobs are shared by every image and process that uses them, and images are not to be trusted: one
that claims another's blob id, but brings a chunk table and digests of its own, could fill the cache
file with bytes that are right only by *its* digests.  So a blob's files are named by its id **and**
its identity, which is a digest over all that decides what the verified bytes are and where they
lie.  Images that agree share, others do not.

What is written here was verified before, and the store is nobody else's, so files are believed when
they are read back: small metadata is hashed again on every read, big metadata that is mapped is
not, and blobs follow the rules of their readiness map.

``$LAMINA_STORE_BUDGET`` bounds the whole of it, see :mod:`lamina.store.space`.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from itertools import chain
from pathlib import Path
from typing import Final

from lamina.errors import FormatError, IntegrityError, StoreError
from lamina.store.cache_blob import CacheBlob
from lamina.store.chunk_places import ChunkPlaces
from lamina.store.files import (
    inode_generation,
    locked,
    make_private_directory,
    new_file,
    replacing,
    store_error,
    store_errors,
    write_atomically,
)
from lamina.store.holds import held_blobs
from lamina.store.local_chunks import LocalChunks
from lamina.store.names import split_digest
from lamina.store.readiness import (
    ONE_ZONE,
    Header,
    count_ready,
    create_map,
    current_boot_id,
    open_map,
)
from lamina.store.records import KINDS, Records
from lamina.store.removal import UNFINISHED, YOUNG_S, remove_files, remove_old, remove_unused
from lamina.store.scratch import remove_abandoned
from lamina.store.space import BUDGET_VARIABLE, Space, parse_budget

MAX_BLOB_SIZE: Final = 1 << 44
MAX_CHUNK_COUNT: Final = 1 << 24
BLOB_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def default_root() -> Path:
    """Return where the store is unless the caller says otherwise."""
    chosen = os.environ.get("LAMINA_STORE")
    if chosen:
        return Path(chosen)
    if os.geteuid() == 0:
        return Path("/var/lib/lamina")
    cache_home = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache_home) if cache_home else Path.home() / ".cache") / "lamina"


class NodeStore:
    """A store directory.  Holds nothing open, so it needs no closing; threads may share it."""

    def __init__(self, root: Path | None = None, *, budget: int | str | None = None) -> None:
        """Use (and create) *root*.

        *budget* is in bytes or as :func:`lamina.store.space.parse_budget` takes it; by default
        ``$LAMINA_STORE_BUDGET``, and without that there is none.

        Raises StoreError if others could write to *root*, UsageError for a malformed budget.
        """
        self.root = default_root() if root is None else root
        self.records = Records(self.root / "records")
        chosen = os.environ.get(BUDGET_VARIABLE) or None if budget is None else budget
        limit = parse_budget(chosen, self.root) if isinstance(chosen, str) else chosen
        self.space = Space(self.root, limit, self.records.resident_blobs)
        self._blobs = self.root / "blobs"
        self._metadata = self.root / "metadata"
        sha256, sha512 = self._metadata / "sha256", self._metadata / "sha512"
        for directory in (self.root, self._blobs, self._metadata, sha256, sha512):
            make_private_directory(directory)

    def blob(
        self,
        blob_id: str,
        size_bytes: int,
        chunk_count: int,
        *,
        identity: bytes = b"",
        zones: Callable[[], Sequence[tuple[int, int]]] = lambda: ONE_ZONE,
    ) -> CacheBlob:
        """Open the cache file of a blob, creating it with nothing ready if there is none to trust.

        *identity* is everything the bytes are verified against, see the module; *zones* tells, for
        a new file, where it may be cut for eviction: (first chunk, first byte), ascending.  Raises
        FormatError for an impossible id or size and StoreError if the file cannot be made.
        """
        if not BLOB_ID.fullmatch(blob_id):
            raise FormatError(f"blob id {blob_id!r} is not a name that a store can keep")
        if not 0 <= size_bytes <= MAX_BLOB_SIZE or not 0 <= chunk_count <= MAX_CHUNK_COUNT:
            raise FormatError(
                f"blob {blob_id} claims {size_bytes} bytes in {chunk_count} chunks, more than"
                f" {MAX_BLOB_SIZE} bytes or {MAX_CHUNK_COUNT} chunks"
            )
        key = hashlib.sha256(identity).digest()
        stem = self._blobs / f"{blob_id}.{key.hex()[:32]}"
        data_path = Path(f"{stem}.data")
        pair = data_path, Path(f"{stem}.ready"), size_bytes, chunk_count, key
        try:
            with self.locked():
                found = self._open_pair(*pair)
                if found is None:
                    _create_pair(*pair, zones())
                    found = self._open_pair(*pair)
        except OSError as error:
            raise store_error(f"open the cache file {data_path}", error) from error
        if found is None:
            raise StoreError(f"the cache file {data_path} changed while it was made")
        return found

    def _open_pair(
        self, data_path: Path, map_path: Path, size_bytes: int, chunk_count: int, identity: bytes
    ) -> CacheBlob | None:
        try:
            fd = os.open(data_path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        found = None
        try:
            if os.fstat(fd).st_size == size_bytes:
                expected = _expected_header(fd, size_bytes, chunk_count, identity)
                found = open_map(map_path, expected)
        finally:
            if found is None:
                os.close(fd)
        return None if found is None else CacheBlob(data_path, fd, *found, self.space)

    def remove_unused_blobs(
        self, kept_ids: Collection[str] = (), *, dry_run: bool = False
    ) -> tuple[tuple[int, int], frozenset[str]]:
        """Remove the cache files that nobody has open, no kernel mount reads and that are not
        resident, but for blobs with these ids; returns (number, bytes on disk), and the names of
        those that stay.  A *dry_run* only counts.
        """
        with self.locked(), store_errors(f"collect the blobs of {self.root}"):
            kept = self._kept_blobs() | {
                stem for stem in self._blob_names() if stem.rpartition(".")[0] in kept_ids
            }
            return remove_unused(self._blobs, kept, dry_run=dry_run)

    def remove_blobs(self, blob_ids: Collection[str]) -> tuple[int, int] | None:
        """Remove the cache files of some blobs; returns (number, bytes on disk), or None if one of
        them is in use, and nothing was removed.
        """
        with self.locked(), store_errors(f"remove blobs of {self.root}"):
            stems = self._blob_names()
            kept = {stem for stem in stems if stem.rpartition(".")[0] not in blob_ids}
            _, staying = remove_unused(self._blobs, kept | self._kept_blobs(), dry_run=True)
            if staying - kept:
                return None
            return remove_unused(self._blobs, kept)[0]

    def _kept_blobs(self) -> frozenset[str]:
        return self.records.resident_blobs() | held_blobs(self.root)

    def _blob_names(self) -> list[str]:
        names = os.listdir(self._blobs)
        return [name.removesuffix(".data") for name in names if name.endswith(".data")]

    def blob_chunks(self) -> dict[str, list[tuple[int, int]]]:
        """Return, by blob id, how many chunks are ready in each of its cache files, and how many
        there are.
        """
        found: dict[str, list[tuple[int, int]]] = {}
        with store_errors(f"list the blobs of {self.root}"):
            for stem in self._blob_names():
                count = count_ready(self._blobs / f"{stem}.ready")
                if count is not None:
                    found.setdefault(stem.rpartition(".")[0], []).append(count)
        return found

    def remove_metadata_of(self, digests: Collection[str]) -> tuple[int, int]:
        """Remove metadata files; returns (number of files, bytes on disk)."""
        with store_errors(f"remove metadata of {self.root}"):
            return remove_files(map(self._metadata_path, digests))

    def remove_metadata(self, keep: Collection[str], *, dry_run: bool = False) -> tuple[int, int]:
        """Remove metadata files, and records of manifests and names, whose digests are not in
        *keep*, and what was never finished; returns (number of files, bytes on disk).  Young ones
        stay: somebody may be opening their image.  A *dry_run* only counts.
        """
        with store_errors(f"collect the metadata of {self.root}"):
            files = [
                (f"{folder.name}:{path.name}", path)
                for folder in (self._metadata / "sha256", self._metadata / "sha512")
                for path in folder.iterdir()
            ]
            for kind in KINDS:
                files += self.records.paths(kind.name) if kind.is_of_manifest else []
            unfinished = (path for pattern in UNFINISHED for path in self.root.glob(pattern))
            unused = (path for name, path in files if name not in keep)
            count, freed = remove_old(chain(unused, unfinished), dry_run=dry_run)
            before_s = time.time() - YOUNG_S
            more, more_freed = remove_abandoned(self.root, before_s, dry_run=dry_run)
            return count + more, freed + more_freed

    def local_chunks(self) -> LocalChunks:
        """Open the index of the chunks that are on this node; close it when done."""
        with self.locked():
            index = ChunkPlaces(self.root / "index")
        return LocalChunks(self._blobs, index)

    def metadata(self, digest: str) -> bytes | None:
        """Return the content with this digest (``sha256:...``), or None; it is hashed again.

        A file that was damaged on disk is removed and counts as absent.
        """
        path = self._metadata_path(digest)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise store_error(f"read {path}", error) from error
        if _digest(data, digest) != digest:
            with store_errors(f"remove {path}, which is damaged"):
                path.unlink(missing_ok=True)
            return None
        return data

    def metadata_path(self, digest: str) -> Path | None:
        """Return the file with this digest, or None.  Its content was verified when written."""
        path = self._metadata_path(digest)
        return path if path.exists() else None

    def metadata_heads(self, size_bytes: int) -> Iterator[tuple[str, bytes]]:
        """Yield the digest and the first bytes of each metadata file that is not shorter; they are
        not verified.

        Raises StoreError.
        """
        with store_errors(f"list the metadata of {self.root}"):
            for folder in ("sha256", "sha512"):
                for path in (self._metadata / folder).iterdir():
                    with suppress(FileNotFoundError), path.open("rb", buffering=0) as file:
                        head = file.read(size_bytes)
                        if len(head) == size_bytes:
                            yield f"{folder}:{path.name}", head

    def map_metadata(self, digest: str) -> mmap.mmap | None:
        """Map the file with this digest read-only, or None.  Close the mapping when done."""
        path = self._metadata_path(digest)
        try:
            with path.open("rb") as file:
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise store_error(f"map {path}", error) from error
        except ValueError as error:
            raise StoreError(f"cannot map {path}: {error}") from error

    def put_metadata(self, data: bytes | bytearray | memoryview, digest: str | None = None) -> str:
        """Keep *data* under its digest (SHA-256 unless one is given), which is returned.

        Raises IntegrityError if it has not the given digest, StoreError if it cannot be written.
        """
        actual = _digest(data, digest or "sha256:")
        if digest is not None and digest != actual:
            raise IntegrityError(f"metadata has digest {actual} where {digest} was promised")
        path = self._metadata_path(actual)
        if not path.exists():
            write_atomically(path, data)
        return actual

    def put_metadata_stream(self, pieces: Iterable[bytes | memoryview]) -> str:
        """Keep the sum of *pieces*, which may be large, and return its SHA-256 digest.

        If *pieces* raises, nothing is kept.  Raises StoreError if it cannot be written.
        """
        digest = hashlib.sha256()
        with new_file(self._metadata) as file:
            for piece in pieces:
                digest.update(piece)
                file.write(piece)
            name = f"sha256:{digest.hexdigest()}"
            file.commit(self._metadata_path(name))
        return name

    def _metadata_path(self, digest: str) -> Path:
        algorithm, hex_digits = split_digest(digest)
        return self._metadata / algorithm / hex_digits

    def locked(self) -> AbstractContextManager[None]:
        """Lock the store exclusively, against other threads and processes, while records are
        updated.
        """
        return locked(self.root / "lock")


def _digest(data: bytes | bytearray | memoryview, like: str) -> str:
    """Return the digest of *data* with the algorithm of *like*."""
    if like.startswith("sha512:"):
        return f"sha512:{hashlib.sha512(data).hexdigest()}"
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _create_pair(
    data_path: Path,
    map_path: Path,
    size_bytes: int,
    chunk_count: int,
    identity: bytes,
    zones: Sequence[tuple[int, int]],
) -> None:
    """Put an empty cache file and its map in place.

    Others may have an older pair open, so that is replaced and never changed.
    """
    with replacing(data_path) as fd:
        os.truncate(fd, size_bytes)
        create_map(map_path, _expected_header(fd, size_bytes, chunk_count, identity), zones)


def _expected_header(fd: int, size_bytes: int, chunk_count: int, identity: bytes) -> Header:
    inode = os.fstat(fd).st_ino
    header = Header(chunk_count, size_bytes, inode, identity, current_boot_id())
    return header._replace(inode_generation=inode_generation(fd))
