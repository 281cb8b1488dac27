"""The part of a start artifact that has pages of the bootstrap: what a start reads of it before
anything of a file.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from stat import S_ISLNK
from typing import Final

from lamina.blob.page_proof import PAGE_BYTES, make_siblings
from lamina.blob.start_artifact import MAX_FRAME_BYTES, FrameContent, PageRange
from lamina.build.start_profile import Profile, spans_of
from lamina.content.lazy_image import LazyImage
from lamina.erofs.partial import WatchedBootstrap
from lamina.erofs.reader import Bootstrap
from lamina.errors import NotFoundError

MOST_DIRECTORY_BYTES: Final = 64 << 10
"""Directories that are not larger come as a whole where nobody has recorded what is read of them:
programs also look for what is not there.
"""

MOST_BYTES: Final = MAX_FRAME_BYTES // 2


def metadata_frame(
    image: LazyImage, profile: Profile, chunks: Iterable[tuple[int, int]], number: int
) -> FrameContent | None:
    """Return the frame with what finding the files of *profile* reads of the bootstrap, what a
    kernel was seen to read, and the entries of *chunks*, (blob index, chunk) each; the bootstrap is
    the blob *number* of the artifact.  None if that is too much.
    """
    view = image.bootstrap.view
    touched: set[int] = set()

    def note(offset: int, size_bytes: int) -> None:
        touched.update(range(offset // PAGE_BYTES, -(-(offset + size_bytes) // PAGE_BYTES)))

    watched = WatchedBootstrap(view, note)
    _find_files(LazyImage(watched, image.blobs), profile)
    for blob, chunk in chunks:
        watched.chunk_entry(blob, chunk)
    last = len(view) // PAGE_BYTES
    touched.update(
        page for first, stop in profile.metadata for page in range(first, min(stop, last))
    )
    pages = sorted(touched)
    if len(pages) * PAGE_BYTES > MOST_BYTES:
        return None
    (siblings,) = make_siblings([(view, pages)])
    data = b"".join(view[page * PAGE_BYTES : (page + 1) * PAGE_BYTES] for page in pages)
    ranges = [PageRange(number, first, stop - first) for first, stop in spans_of(pages)]
    return FrameContent(siblings, data, tuple(ranges), ())


def _find_files(image: LazyImage, profile: Profile) -> None:
    """Look up what a start looks up."""
    recorded = bool(profile.metadata)
    done: set[bytes] = set()
    for line in profile.lines:
        parts = line.path.split(b"/")
        for depth in range(1, len(parts) + 1):
            path = b"/".join(parts[:depth]) or b"/"
            if path in done:
                continue
            done.add(path)
            with suppress(NotFoundError):
                stat = image.stat(path, follow_symlinks=False)
                image.xattrs(stat)
                if stat.is_file:
                    image.bootstrap.chunk_array(image.bootstrap.inode(stat.ino))
                elif stat.is_dir and not recorded and stat.size <= MOST_DIRECTORY_BYTES:
                    _list(image.bootstrap, stat.ino)


def _list(bootstrap: Bootstrap, nid: int) -> None:
    """Read a folder with all of its links, which lead programs to the files."""
    for _, child in bootstrap.names(bootstrap.inode(nid)):
        inode = bootstrap.inode(child)
        if S_ISLNK(inode.mode):
            bootstrap.readlink(inode)
