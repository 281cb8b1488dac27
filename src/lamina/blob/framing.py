"""The sections of a data blob, each followed by a tar header that names it (RAFS v6 §2.1-2.2, 2.8).

Reading goes backwards from the end.  Writing begins where the chunk data ends: :class:`BlobTail`
makes all the rest, which only has to be appended, and the blob table entry that describes the blob.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from lamina.blob.builder import BlobColumns, EncodedTable, encode_table
from lamina.blob.ci_header import entry_of
from lamina.blob.layout import (
    CI_HEADER_SIZE,
    SECTION_BOOTSTRAP,
    SECTION_DATA,
    SECTION_DIGESTS,
    SECTION_TABLE,
    SECTION_TABLE_HEADER,
    TAR_BLOCK,
    TOC_NONE,
    TOC_ZSTD,
    CiHeader,
    TocEntry,
    parse_tar_header,
    tar_header,
)
from lamina.blob.toc import ReadAt, encode_toc, read_entry, read_toc
from lamina.codec.compress import Compressor, compress
from lamina.codec.digest import Digester
from lamina.erofs.layout import PLACEHOLDER_BLOB_ID, BlobEntry, BlobFeature, round_up
from lamina.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    from typing_extensions import Buffer

MAX_SECTIONS = 16
MAX_BOOTSTRAP_SIZE = 1 << 30
_BASE_FEATURES = (
    BlobFeature.ALIGNED
    | BlobFeature.INLINED_FS_META
    | BlobFeature.HAS_TAR_HEADER
    | BlobFeature.HAS_TOC
    | BlobFeature.CAP_TAR_TOC
)


class Section(NamedTuple):
    """A section of a blob file, without its tar header; in bytes."""

    name: str
    offset: int
    size: int


class Sha256(Protocol):
    """A running SHA-256, as ``hashlib.sha256()`` makes it."""

    def update(self, data: Buffer, /) -> None:
        """Add data."""

    def copy(self) -> Self:
        """Return an independent copy."""

    def digest(self) -> bytes:
        """Return the digest so far."""

    def hexdigest(self) -> str:
        """Return the digest so far as lower-case hex."""


@dataclass(frozen=True, slots=True)
class BlobOptions:
    """What every chunk of a blob has in common."""

    chunk_size: int
    compressor: Compressor
    digester: Digester
    inlined_digests: bool = False


class FinishedBlob(NamedTuple):
    """A complete blob.

    ``tail_parts`` follow the chunk data one after the other; ``blob_id`` and ``size`` are of the
    whole file; ``entry`` describes the blob in a merged bootstrap, ``meta`` is its
    ``<blob id>.blob.meta`` file.  A blob without chunks has no entry and no meta.
    """

    tail_parts: Sequence[bytes | bytearray]
    blob_id: str
    size: int
    entry: BlobEntry | None
    meta: bytes

    @property
    def tail(self) -> bytes:
        """Return all that follows the chunk data."""
        return b"".join(self.tail_parts)


class BlobTail:
    """Everything that follows the chunk data of a blob.

    ``data_sha256`` has taken in exactly the chunk data; it is not changed.  ``digests`` are the
    32-byte digests of all chunks, only needed with ``inlined_digests``.  :attr:`entry` is what the
    bootstrap inside of the blob must say about the blob, None if it has no chunks.

    Raises FormatError: the columns contradict each other (see :meth:`BlobColumns.check`).
    """

    def __init__(
        self, columns: BlobColumns, data_sha256: Sha256, options: BlobOptions, digests: bytes = b""
    ) -> None:
        self._sha256 = data_sha256.copy()
        self._sections: list[bytes | bytearray] = []
        self._toc: list[TocEntry] = []
        self._position = columns.data_size
        self._table: EncodedTable | None = None
        self.entry: BlobEntry | None = None
        if columns.chunk_sizes:
            self._add_chunks(columns, options, digests)

    def finish(self, bootstrap: bytes | bytearray) -> FinishedBlob:
        """Return the blob with *bootstrap*, the image of its own layer, in it; call it once."""
        stored: bytes | bytearray = compress(Compressor.ZSTD, bootstrap)
        flags = TOC_ZSTD
        if len(stored) >= len(bootstrap):
            stored, flags = bootstrap, TOC_NONE
        offset = self._position
        self._append(SECTION_BOOTSTRAP, stored)
        self._list(SECTION_BOOTSTRAP, bootstrap, (offset, len(stored)), flags)
        toc = encode_toc(self._toc)
        self._write(toc)
        blob_id = self._sha256.hexdigest()
        entry = self.entry
        meta = b""
        if entry is not None and self._table is not None:
            entry = entry._replace(
                blob_id=blob_id,
                features=entry.features & ~BlobFeature.INLINED_FS_META,
                compressed_size=self._position,
                toc_size=len(toc),
                toc_digest=hashlib.sha256(toc).digest(),
            )
            payload = self._table.payload
            meta = payload.ljust(round_up(len(payload), 4096), b"\0") + self._table.header.pack()
        return FinishedBlob(self._sections, blob_id, self._position, entry, meta)

    def _add_chunks(self, columns: BlobColumns, options: BlobOptions, digests: bytes) -> None:
        data_size = self._position
        self._write(tar_header(SECTION_DATA, data_size))
        self._toc.append(
            TocEntry(
                SECTION_DATA,
                TOC_NONE,
                # Over the data and its header: what nydus-image writes here (RAFS v6 §2.7).
                self._sha256.copy().digest(),
                0,
                data_size,
                columns.uncompressed_size,
            )
        )
        features = int(_BASE_FEATURES)
        if options.inlined_digests:
            features |= BlobFeature.INLINED_CHUNK_DIGEST
        table = self._table = encode_table(columns, features, self._position)
        header, packed = table.header, table.header.pack()
        offset = self._position
        self._append(SECTION_TABLE, table.stored + packed)
        flags = TOC_ZSTD if header.compressor == Compressor.ZSTD else TOC_NONE
        self._list(SECTION_TABLE, table.payload, (offset, len(table.stored)), flags)
        place = offset + len(table.stored), CI_HEADER_SIZE
        self._list(SECTION_TABLE_HEADER, packed, place, TOC_NONE)
        if options.inlined_digests:
            place = self._position, len(digests)
            self._append(SECTION_DIGESTS, digests)
            self._list(SECTION_DIGESTS, digests, place, TOC_NONE)
        self.entry = self._layer_entry(columns, options, header)

    def _layer_entry(
        self, columns: BlobColumns, options: BlobOptions, header: CiHeader
    ) -> BlobEntry:
        return entry_of(
            header,
            blob_id=PLACEHOLDER_BLOB_ID,
            chunk_size=options.chunk_size,
            compressor=options.compressor,
            digester=options.digester,
            compressed_size=self._position,
            uncompressed_size=columns.uncompressed_size,
        )

    def _list(
        self, name: str, plain: bytes | bytearray, place: tuple[int, int], flags: int
    ) -> None:
        digest = hashlib.sha256(plain).digest()
        self._toc.append(TocEntry(name, flags, digest, *place, len(plain)))

    def _append(self, name: str, data: bytes | bytearray) -> None:
        self._write(data)
        self._write(tar_header(name, len(data)))

    def _write(self, data: bytes | bytearray) -> None:
        self._sections.append(data)
        self._sha256.update(data)
        self._position += len(data)


def read_sections(read_at: ReadAt, blob_size: int) -> dict[str, Section]:
    """Return the sections of a blob of *blob_size* bytes by name; empty if it has no tar headers.

    Raises FormatError: the headers do not lead back to the beginning of the blob.
    """
    sections: dict[str, Section] = {}
    end = blob_size
    while end:
        header = parse_tar_header(read_at(end - TAR_BLOCK, TAR_BLOCK)) if end >= TAR_BLOCK else None
        if header is None:
            if not sections:
                return {}
            raise FormatError(f"blob: no section ends at offset {end}")
        name, size = header
        end -= TAR_BLOCK + size
        if end < 0 or name in sections or len(sections) == MAX_SECTIONS:
            raise FormatError(f"blob: section {name!r} of {size} bytes has no place in it")
        sections[name] = Section(name, end, size)
    return sections


def read_bootstrap(read_at: ReadAt, blob_size: int) -> bytes | None:
    """Return the bootstrap that is inlined in a blob, or None if there is none.

    Raises FormatError: the blob is damaged, or the bootstrap larger than 1 GiB; IntegrityError: the
    bootstrap has not the digest that the table of contents says.
    """
    toc = read_toc(read_at, blob_size)
    for entry in toc or ():
        if entry.name == SECTION_BOOTSTRAP:
            return read_entry(read_at, blob_size, entry, MAX_BOOTSTRAP_SIZE)
    section = read_sections(read_at, blob_size).get(SECTION_BOOTSTRAP)
    if toc is not None or section is None:
        return None
    if section.size > MAX_BOOTSTRAP_SIZE:
        raise FormatError(f"the bootstrap in the blob has {section.size} bytes")
    return read_at(section.offset, section.size)
