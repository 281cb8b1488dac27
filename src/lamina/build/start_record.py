"""From what was read of the blobs to what was read of the files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from lamina.blob.page_proof import PAGE_BYTES, page_count
from lamina.build.start_profile import Profile, ProfileLine, profile_of, spans_of
from lamina.content.lazy_image import LazyImage
from lamina.content.read_log import METADATA


def profile_of_reads(
    image: LazyImage, reads: Sequence[tuple[str, int]], command: Sequence[str] = ()
) -> Profile:
    """Return the profile of pages of blobs, (blob id, page) in the order of first touch.

    Where several files have the same content, that is the first of them in the order of a walk.
    """
    touched: dict[str, set[int]] = {}
    for blob_id, page in reads:
        touched.setdefault(blob_id, set()).add(page)
    places: dict[tuple[str, int], tuple[bytes, int]] = {}
    for key, place in _file_pages(image, touched):
        places.setdefault(key, place)
    # Between files there may be padding that a kernel reads too.
    found = (places.get(key) for key in reads)
    profile = profile_of((place for place in found if place is not None), command)
    return profile._replace(metadata=spans_of(sorted(touched.get(METADATA, ()))))


def profile_of_files(
    image: LazyImage, paths: Iterable[str | bytes], command: Sequence[str] = ()
) -> Profile:
    """Return the profile of whole files, those below folders included, in their order."""
    from lamina.content.residency import files_below

    lines = [ProfileLine(stat.path) for stat in files_below(image, paths) if stat.size]
    return Profile(tuple(lines), tuple(command))


def _file_pages(
    image: LazyImage, touched: dict[str, set[int]]
) -> Iterator[tuple[tuple[str, int], tuple[bytes, int]]]:
    """(blob id, page) that was touched, and (path, page) of a file that has it there."""
    sets = [touched.get(entry.blob_id, set()) for entry in image.bootstrap.blobs]
    ids = [entry.blob_id for entry in image.bootstrap.blobs]
    for path, stat in image.walk():
        if not stat.is_file:
            continue
        for chunk in image.chunks(stat):
            wanted = sets[chunk.blob_index]
            first = chunk.blob_offset // PAGE_BYTES
            own = chunk.file_offset // PAGE_BYTES
            for page in range(page_count(chunk.size_bytes)):
                if first + page in wanted:
                    yield (ids[chunk.blob_index], first + page), (path, own + page)
