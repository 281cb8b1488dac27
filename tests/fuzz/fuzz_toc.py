"""Blob files of hostile bytes: sections, table of contents, inlined bootstrap."""

from __future__ import annotations

import contextlib

from lamina.blob.framing import read_bootstrap, read_sections
from lamina.blob.layout import TOC_ZSTD, TocEntry, tar_header
from lamina.blob.toc import decode_toc, encode_toc, read_entry, read_toc
from lamina.errors import Error
from tests.support.rafs import make_image

MAX_SECTION = 1 << 20


def target(data: bytes) -> None:
    """Read the bytes as a whole blob, and its end as a table of contents."""

    def read_at(offset: int, size: int) -> bytes:
        assert offset >= 0
        assert offset + size <= len(data)
        assert size >= 0
        return data[offset : offset + size]

    with contextlib.suppress(Error):
        sections = read_sections(read_at, len(data))
        assert sum(section.size + 512 for section in sections.values()) in (0, len(data))
    with contextlib.suppress(Error):
        for entry in read_toc(read_at, len(data)) or ():
            with contextlib.suppress(Error):
                assert len(read_entry(read_at, len(data), entry, MAX_SECTION)) <= MAX_SECTION
    with contextlib.suppress(Error):
        read_bootstrap(read_at, len(data))
    with contextlib.suppress(Error):
        entries = decode_toc(data)
        assert entries is None or decode_toc(encode_toc(list(entries))) == entries


def seeds() -> list[bytes]:
    """Whole blobs, and tables of contents alone."""
    files = {b"a": b"a" * 5000, b"b": b"b"}
    bomb = TocEntry("image.boot", TOC_ZSTD, bytes(32), 0, 9, 1 << 40)
    return [
        make_image(files, inlined_digests=True).blob,
        make_image(files, pack_size=8192).blob,
        make_image({}).blob,
        b"boot" + tar_header("image.boot", 4),
        encode_toc([bomb, bomb._replace(name="blob.meta")]),
        bytes(9) + encode_toc([bomb._replace(uncompressed_size=100)]),
    ]
