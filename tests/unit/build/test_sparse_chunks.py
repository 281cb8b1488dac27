"""Chunks of sparse files: put together behind the tar stream, with the holes they had."""

from __future__ import annotations

import io
import os
import tempfile
from pathlib import Path

import pytest
from tests.support.layers import oci_layout, tar_bytes
from tests.unit.archive.test_sparse import FORMS, files, pax, sparse_tar, version_0

from lamina.archive.stream import LayerStream
from lamina.build import sparse_chunks
from lamina.build.scan import LayerScan, scan_layer
from lamina.build.source_image import open_source_image
from lamina.codec.digest import Digester, digest
from lamina.errors import FormatError

CHUNK = 64 << 10


def scanned(data: bytes) -> tuple[LayerScan, dict[str, bytes], int]:
    """The scan of a layer, the contents of its files by its chunks, and the space of its spool."""
    with tempfile.TemporaryFile(buffering=0) as spool:
        scan = scan_layer(LayerStream(io.BytesIO(data)), spool, CHUNK, Digester.BLAKE3)
        places = list(zip(scan.chunk_offsets, scan.chunk_sizes, strict=True))
        chunks = [os.pread(spool.fileno(), size, offset) for offset, size in places]
        used_bytes = os.fstat(spool.fileno()).st_blocks * 512
    digests = b"".join(digest(Digester.BLAKE3, chunk) for chunk in chunks)
    assert scan.digests == digests
    contents = {
        entry.path.decode(): b"".join(
            chunks[entry.first_chunk : entry.first_chunk + entry.chunk_count]
        )
        for entry in scan.entries()
    }
    return scan, contents, used_bytes


@pytest.mark.parametrize("form", FORMS)
def test_chunks_of_files_with_holes(form: str, tmp_path: Path) -> None:
    data = sparse_tar(tmp_path, form)
    scan, contents, used_bytes = scanned(data)
    assert contents == files()
    assert scan.tar_bytes == len(data)
    assert used_bytes < 1 << 20 < sum(scan.chunk_sizes)


@pytest.mark.parametrize("form", FORMS)
def test_an_image_with_sparse_files_is_read_anywhere(form: str, tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    layout = tmp_path / "oci"
    reference = oci_layout(layout, [sparse_tar(tmp_path / "src", form), tar_bytes([])])
    image = open_source_image(reference)
    try:
        for name, content in files().items():
            found = image.stat(name.encode())
            assert image.pread(found, 0, found.size) == content
            assert image.pread(found, 4000, 200) == content[4000:4200]
    finally:
        image.close()


def test_data_inside_one_piece_stays_where_it_is() -> None:
    data = os.urandom(3 * CHUNK)
    scan, contents, _ = scanned(pax(version_0(5 * CHUNK, f"{CHUNK},{3 * CHUNK}"), data))
    assert contents == {"file": bytes(CHUNK) + data + bytes(CHUNK)}
    behind = [offset >= sparse_chunks.BASE for offset in scan.chunk_offsets]
    assert behind == [True, False, False, False, True]
    assert scan.chunk_offsets[0] == scan.chunk_offsets[4]


def test_pieces_that_end_and_begin_anywhere() -> None:
    data = bytes(range(256)) * 800
    numbers = f"7,3,{CHUNK - 1},2,{CHUNK + 5},{CHUNK * 2},{CHUNK * 4},{len(data) - 5 - CHUNK * 2}"
    size = CHUNK * 6
    content = bytearray(size)
    content[7:10], content[CHUNK - 1 : CHUNK + 1] = data[:3], data[3:5]
    content[CHUNK + 5 : CHUNK * 3 + 5] = data[5 : CHUNK * 2 + 5]
    rest = data[CHUNK * 2 + 5 :]
    content[CHUNK * 4 : CHUNK * 4 + len(rest)] = rest
    _, contents, _ = scanned(pax(version_0(size, numbers), data))
    assert contents == {"file": bytes(content)}


def test_a_header_cannot_claim_chunks_without_end() -> None:
    with pytest.raises(FormatError, match="more than 1048576 chunks"):
        scanned(pax(version_0(1 << 43, "0,1"), b"x"))


def test_room_behind_the_stream_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse_chunks, "MAX_BYTES", 4 * CHUNK)
    numbers = ",".join(f"{number * CHUNK},1" for number in range(5))
    with pytest.raises(FormatError, match="more than 262144 bytes"):
        scanned(pax(version_0(5 * CHUNK, numbers), b"abcde"))
