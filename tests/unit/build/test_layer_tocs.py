"""What a layer's table of contents says, as if the layer had been read."""

from __future__ import annotations

import pytest

from lamina.archive import tar
from lamina.archive.layer_toc import LayerToc, TocChunk, TocFile
from lamina.blob.layout import MAX_ZRAN_INPUT, MAX_ZRAN_OUTPUT
from lamina.build.layer_tocs import MAX_CHUNK_SIZE, common_chunk_size, indexed_by_table
from lamina.errors import Error, FormatError, UnsupportedError

SIZE = 1 << 40
K = 1024


def file(*places: tuple[int, int, int]) -> TocFile:
    """A file with parts at (offset, inner offset, size)."""
    chunks = [TocChunk(*place, bytes(32)) for place in places]
    size = sum(chunk.size for chunk in chunks)
    entry = tar.Entry(b"f", tar.REGULAR, 0o644, 0, 0, 0, 0, size, b"", 0, 0, {}, 0)
    return TocFile(entry, chunks)


def sizes(*parts: int) -> TocFile:
    return file(*((10 * number, 0, size) for number, size in enumerate(parts, 1)))


@pytest.mark.parametrize(
    ("files", "chunk_size"),
    [
        ([], 128 * K),
        ([sizes(5)], 128 * K),
        ([sizes(129 * K)], 256 * K),
        ([sizes(MAX_CHUNK_SIZE)], MAX_CHUNK_SIZE),
        ([sizes(4 * K, 4 * K, 1), sizes(4 * K)], 4 * K),
    ],
)
def test_the_chunk_size(files: list[TocFile], chunk_size: int) -> None:
    assert common_chunk_size(files) == chunk_size


@pytest.mark.parametrize(
    "files",
    [
        [sizes(MAX_CHUNK_SIZE + 1)],
        [sizes(4 * K, 5 * K)],
        [sizes(4 * K, 4 * K, 1), sizes(4 * K + 1)],
        [sizes(4 * K, 4 * K), sizes(8 * K, 8 * K)],
        [sizes(6 * K, 1)],
        [sizes(2 * K, 1)],
        [sizes(2 * MAX_CHUNK_SIZE, 1)],
    ],
)
def test_files_that_are_cut_otherwise(files: list[TocFile]) -> None:
    with pytest.raises(UnsupportedError):
        common_chunk_size(files)


@pytest.mark.parametrize(("compression", "header"), [("gzip", 10), ("zstd", 0)])
def test_members_become_points(compression: str, header: int) -> None:
    files = [file((100, 0, 7)), file((300, 0, 5)), file((300, 5, 6)), file((900, 0, 8))]
    layer = indexed_by_table(LayerToc(compression, files, 2000), 4 * K, SIZE)
    assert [point.in_offset - header for point in layer.points] == [100, 300, 900]
    assert [point.out_offset for point in layer.points] == [0, 7, 18]
    assert list(layer.scan.chunk_offsets) == [0, 7, 12, 18]
    assert list(layer.scan.chunk_sizes) == [7, 5, 6, 8]
    assert layer.map.in_after(7, SIZE) >= 300
    assert 2000 <= layer.map.in_after(26, SIZE) < 2100


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ([file((300, 0, 7)), file((100, 0, 7))], FormatError),
        ([file((SIZE, 0, 7))], FormatError),
        ([file((100, 0, 7)), file((100 + MAX_ZRAN_INPUT, 0, 7))], UnsupportedError),
        ([file((100, MAX_ZRAN_OUTPUT, 7))], UnsupportedError),
    ],
)
def test_places_that_cannot_be_read(files: list[TocFile], kind: type[Error]) -> None:
    with pytest.raises(kind):
        indexed_by_table(LayerToc("gzip", files, 1000 + MAX_ZRAN_INPUT), 4 * K, SIZE)
