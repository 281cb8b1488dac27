"""Make the start artifact of an image from a profile: read the pages, and what proves them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import Final, NamedTuple

from lamina.blob.page_proof import PAGE_BYTES, make_siblings, page_count
from lamina.blob.start_artifact import FrameContent, PageRange, encode
from lamina.build.start_metadata import metadata_frame
from lamina.build.start_profile import Profile, spans_of
from lamina.codec.digest import Digester
from lamina.content.lazy_blob import LazyBlob
from lamina.content.lazy_image import LazyImage
from lamina.erofs.layout import MAX_BLOBS
from lamina.errors import FormatError, NotFoundError, UnsupportedError
from lamina.image.base import shown

REGION_BYTES: Final = 256 << 10
"""Chunks that begin in the same part of a blob are placed together, when the first is touched:
measured, that makes an artifact 7 % smaller than the order of touch alone.
"""

FRAME_BYTES: Final = 512 << 10
"""A frame takes regions up to about this: measured, larger ones save 1 %, and a reader waits for
its whole frame.
"""


class StartReport(NamedTuple):
    """What became of a profile: sizes in bytes, ``share`` of the image's content."""

    files: int
    pages: int
    page_bytes: int
    artifact_bytes: int
    frames: int
    share: float


@dataclass(slots=True)
class _Region:
    """Pages by (blob, chunk) that are placed together, and the ranges of files they are for."""

    chunks: dict[tuple[int, int], set[int]] = field(default_factory=dict)
    files: list[PageRange] = field(default_factory=list)

    @property
    def size_bytes(self) -> int:
        """Of its pages."""
        return PAGE_BYTES * sum(map(len, self.chunks.values()))


class _Found(NamedTuple):
    """A page of a file and where the image has it, all by number; ``page`` counts in its chunk."""

    file_page: int
    region: tuple[int, int]
    chunk: tuple[int, int]
    page: int


def build_start(
    image: LazyImage, manifest_digest: str, profile: Profile, root: str | None = None
) -> tuple[bytes, StartReport]:
    """Return the artifact of the pages of *profile* in *image*, whose manifest has that digest;
    with pages of its bootstrap, if the manifest has the *root* of that.

    Raises UnsupportedError without numpy, and for an image whose chunk digests are not BLAKE3;
    NotFoundError if no page of the profile is in the image; FormatError; and what reading the pages
    raises.
    """
    check_provable(image)
    paths, regions = _regions(image, profile)
    if not regions:
        raise NotFoundError("no page of the profile is in the image")
    frames = [_frame(image, part) for part in _groups(regions)]
    ids = [entry.blob_id for entry in image.bootstrap.blobs]
    pages = sum(part.pages for frame in frames for part in frame.pages)
    if root is not None and len(ids) < MAX_BLOBS:
        chunks = [chunk for region in regions for chunk in region.chunks]
        metadata = metadata_frame(image, profile, chunks, len(ids))
        if metadata is not None:
            ids, frames = [*ids, root], [metadata, *frames]
    data = encode(bytes.fromhex(manifest_digest.partition(":")[2]), ids, paths, frames)
    whole = sum(entry.uncompressed_size for entry in image.bootstrap.blobs)
    report = StartReport(
        len(paths), pages, pages * PAGE_BYTES, len(data), len(frames), pages * PAGE_BYTES / whole
    )
    return data, report


def check_provable(image: LazyImage) -> None:
    """Raise UnsupportedError if pages of the image cannot be proven."""
    if any(entry.digester != Digester.BLAKE3 for entry in image.bootstrap.blobs):
        raise UnsupportedError(
            "the chunk digests of the image are not BLAKE3, so single pages cannot be proven",
            hint="convert the image again with `lamina convert`",
        )


def _regions(image: LazyImage, profile: Profile) -> tuple[list[bytes], list[_Region]]:
    """Return the paths that have pages in the image, and these in regions by first touch."""
    numbers: dict[bytes, int] = {}
    regions: dict[tuple[int, int], _Region] = {}
    for line in profile.lines:
        pages = list(_pages(image, line.path, line.spans))
        if pages:
            number = numbers.setdefault(line.path, len(numbers))
            by_region: dict[tuple[int, int], list[int]] = {}
            for found in pages:
                region = regions.setdefault(found.region, _Region())
                region.chunks.setdefault(found.chunk, set()).add(found.page)
                by_region.setdefault(found.region, []).append(found.file_page)
            for key, file_pages in by_region.items():
                regions[key].files += [
                    PageRange(number, first, stop - first) for first, stop in spans_of(file_pages)
                ]
    return list(numbers), list(regions.values())


def _pages(image: LazyImage, path: bytes, spans: tuple[tuple[int, int], ...]) -> Iterator[_Found]:
    """Return the pages of a file of the profile that are in the image; none if it is not."""
    try:
        stat = image.stat(path, follow_symlinks=False)
    except NotFoundError:
        return
    if not stat.is_file:
        return
    step = image.bootstrap.chunk_size // PAGE_BYTES
    pages = page_count(stat.size)
    for first, stop in spans or ((0, pages),):
        first, stop = min(first, pages), min(stop, pages)
        if first >= stop:
            continue
        chunks = image.chunks(stat, first // step, -(-stop // step) - first // step)
        for chunk in chunks:
            start = chunk.file_offset // PAGE_BYTES
            blob, offset = chunk.blob_index, chunk.blob_offset
            if offset % PAGE_BYTES:
                raise FormatError(f"{shown(path)}: a chunk is not at a page of its blob")
            region = blob, offset // REGION_BYTES
            for page in range(page_count(chunk.size_bytes)):
                if first <= start + page < stop:
                    yield _Found(start + page, region, (blob, chunk.chunk_index), page)


def _groups(regions: list[_Region]) -> Iterator[list[_Region]]:
    """Cut into what makes a frame each."""
    group: list[_Region] = []
    size = 0
    for region in regions:
        if group and size + region.size_bytes > FRAME_BYTES:
            yield group
            group, size = [], 0
        group.append(region)
        size += region.size_bytes
    if group:
        yield group


def _frame(image: LazyImage, regions: list[_Region]) -> FrameContent:
    wanted = {chunk: sorted(pages) for region in regions for chunk, pages in region.chunks.items()}
    pages: list[tuple[int, int, bytes]] = []
    proofs: list[tuple[tuple[int, int], tuple[memoryview, list[int]]]] = []
    for (number, chunk), numbers in wanted.items():
        offset, content = _content(image.blobs[number], chunk)
        padded = content.ljust(page_count(len(content)) * PAGE_BYTES, b"\0")
        first = offset // PAGE_BYTES
        pages += [
            (number, first + page, padded[page * PAGE_BYTES : (page + 1) * PAGE_BYTES])
            for page in numbers
        ]
        proofs.append(((number, first), (memoryview(content), numbers)))
    pages.sort()
    proofs.sort(key=lambda proof: proof[0])
    ranges = [
        PageRange(number, first, stop - first)
        for number, group in groupby(pages, key=itemgetter(0))
        for first, stop in spans_of(page for _, page, _ in group)
    ]
    return FrameContent(
        b"".join(make_siblings([proof for _, proof in proofs])),
        b"".join(data for *_, data in pages),
        tuple(ranges),
        tuple(part for region in regions for part in region.files),
    )


def _content(blob: LazyBlob, chunk: int) -> tuple[int, bytes]:
    """Return where a chunk is, and all of it, fetched if need be."""
    entry = blob.digests.find(chunk)
    if entry is None or entry.uncompressed_offset % PAGE_BYTES:
        raise FormatError(f"chunk {chunk} of blob {blob.blob_id} is not where files are")
    data = bytearray(entry.uncompressed_size)
    if blob.read_into(entry.uncompressed_offset, data) != len(data):
        raise FormatError(f"chunk {chunk} of blob {blob.blob_id} lies outside it")
    return entry.uncompressed_offset, bytes(data)
