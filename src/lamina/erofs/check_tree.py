"""Verifies the tree of a bootstrap: directories, inodes, and where the chunks of files are.

Most inodes of an image are files of at most one chunk with one name.  These are judged in one go,
all others by the reader's own rules and then by those of the tree.
"""

from __future__ import annotations

import stat
from array import array
from collections.abc import Callable, Sequence
from itertools import pairwise
from operator import lt
from struct import Struct
from typing import Final

from lamina.erofs.check_chunks import ChunkPlaces
from lamina.erofs.check_claims import TAKEN, Claims
from lamina.erofs.directory import split_block
from lamina.erofs.layout import (
    CHUNK_FORMAT_BITS,
    CHUNK_FORMAT_INDEXES,
    FILE_TYPE_OF_FORMAT,
    NID_SHIFT,
    FileType,
    Inode,
    Layout,
)
from lamina.erofs.reader import Bootstrap
from lamina.errors import FormatError

MAX_PATH_BYTES: Final = 4096
"""Longest path of a directory: Linux takes no deeper one (PATH_MAX)."""

MAX_OPEN_LINKS: Final = 1 << 20
"""Most inodes whose names were found in part; it bounds memory."""

PAUSE_DIRECTORIES: Final = 4096

REGULAR, DIRECTORY, SYMLINK = map(int, (FileType.REGULAR, FileType.DIRECTORY, FileType.SYMLINK))
TYPES: Final = {form: int(kind) for form, kind in FILE_TYPE_OF_FORMAT.items()}
PLAIN_BITS: Final = Layout.CHUNK_BASED << 1 | 1
# INODE_EXTENDED without owner, number and seconds, and one CHUNK_INDEX.
PLAIN: Final = Struct("<HHH2xQI20xII16xHBBI")
FREE_UNITS: Final = bytes(3)
EMPTY_UNITS: Final = bytes([REGULAR, TAKEN])
PLAIN_UNITS: Final = bytes([REGULAR, TAKEN, TAKEN])


class TreeCheck:
    """One walk over the tree; afterwards ``name_count`` is known, and ``has_xattrs``.

    It takes a byte for 32 of the image, and some for each directory that is yet to be read.
    """

    def __init__(
        self,
        bootstrap: Bootstrap,
        places: ChunkPlaces | None,
        claims: Claims,
        pause: Callable[[], None],
    ) -> None:
        """*places* is None for an image without a chunk table; *pause* is called now and then."""
        self.name_count = 1
        self.has_xattrs = False
        self._bootstrap = bootstrap
        self._places = places
        self._claims = claims
        self._units = claims.units
        self._pause = pause
        self._first_unit = bootstrap.header.meta_offset >> NID_SHIFT
        self._chunk_size, self._block_size = bootstrap.chunk_size, bootstrap.block_size
        bits = (self._chunk_size // self._block_size).bit_length() - 1
        self._plain_format = CHUNK_FORMAT_INDEXES | bits
        self._links: dict[int, int] = {}
        # Number, number of the parent, bytes of the path; three numbers a directory.
        self._pending = array("Q")

    def run(self) -> None:
        """Walk from the root; raises FormatError that names the inode at fault."""
        root = self._bootstrap.inode(self._bootstrap.root_nid)
        if not stat.S_ISDIR(root.mode):
            raise FormatError(f"inode {root.nid}: the root is not a directory")
        self._take(root, DIRECTORY)
        pending = self._pending
        pending.extend((root.nid, root.nid, 0))
        done = 0
        while pending:
            path_bytes, parent_nid, nid = pending.pop(), pending.pop(), pending.pop()
            self._check_directory(self._bootstrap.inode(nid), parent_nid, path_bytes)
            done += 1
            if not done % PAUSE_DIRECTORIES:
                self._pause()
        for nid, left in self._links.items():
            nlink = self._bootstrap.inode(nid).nlink
            raise _wrong_nlink(nid, nlink, nlink - left)

    def is_inode(self, nid: int) -> bool:
        """Say whether the tree has an inode of this number."""
        unit = self._first_unit + nid
        return unit < len(self._units) and 0 < self._units[unit] < TAKEN

    def _check_directory(self, directory: Inode, parent_nid: int, path_bytes: int) -> None:
        nid = directory.nid
        dots = {b".": nid, b"..": parent_nid}
        subdirectories = 0
        previous = b""
        for block in self._bootstrap.directory_blocks(directory):
            names, nids, types = split_block(block, nid)
            if previous >= names[0] or not all(map(lt, names, names[1:])):
                raise _out_of_order(nid, [previous, *names])
            previous = names[-1]
            self.name_count += len(names)
            for name, child, file_type in zip(names, nids, types, strict=True):
                if name in dots:
                    self.name_count -= 1
                    if dots.pop(name) != child or file_type != DIRECTORY:
                        raise FormatError(f"directory {nid}: {name!r} leads to {child}")
                elif self._check_entry(child, file_type, nid):
                    subdirectories += 1
                    self._pending.extend((child, nid, path_bytes + len(name) + 1))
                    if self._pending[-1] > MAX_PATH_BYTES:
                        raise FormatError(f"directory {child}: it lies deeper than any path goes")
        if dots:
            raise FormatError(f"directory {nid}: it has no entry {min(dots)!r}")
        if directory.nlink != 2 + subdirectories:
            raise FormatError(
                f"directory {nid}: nlink is {directory.nlink}, not {2 + subdirectories}"
            )

    def _check_entry(self, nid: int, file_type: int, directory_nid: int) -> bool:
        """Check what an entry leads to; return whether it is a directory."""
        unit = self._first_unit + nid
        known = self._units[unit] if unit < len(self._units) else 0
        if known:
            self._check_again(nid, file_type, known, directory_nid)
            return False
        if file_type == REGULAR and self._take_plain(unit):
            return False
        inode = self._bootstrap.inode(nid)
        if TYPES[stat.S_IFMT(inode.mode)] != file_type:
            raise FormatError(f"directory {directory_nid}: wrong type of inode {nid}")
        special = file_type not in (REGULAR, DIRECTORY, SYMLINK)
        if special and (inode.size or inode.layout != Layout.FLAT_PLAIN):
            raise FormatError(f"inode {nid}: a special file has data")
        self._take(inode, file_type)
        if file_type == DIRECTORY:
            return True
        self._await_names(inode)
        if file_type == REGULAR:
            self._check_chunks(inode)
        elif file_type == SYMLINK:
            self._bootstrap.readlink(inode)
        return False

    def _check_again(self, nid: int, file_type: int, known: int, directory_nid: int) -> None:
        """Check one more name of an inode; *known* is the type that it was found to be."""
        if known == TAKEN:
            start = self._first_unit + nid << NID_SHIFT
            self._claims.claim(start, start + 1, f"inode {nid}")
        if known == DIRECTORY:
            raise FormatError(f"directory {directory_nid}: it has directory {nid} once more")
        if known != file_type:
            raise FormatError(f"directory {directory_nid}: wrong type of inode {nid}")
        left = self._links.pop(nid, 0)
        if not left:
            nlink = self._bootstrap.inode(nid).nlink
            raise _wrong_nlink(nid, nlink, nlink + 1)
        if left > 1:
            self._links[nid] = left - 1

    def _await_names(self, inode: Inode) -> None:
        """Note how many names besides this first one an inode must have."""
        if inode.nlink == 1:
            return
        if inode.nlink == 0:
            raise _wrong_nlink(inode.nid, 0, 1)
        self._links[inode.nid] = inode.nlink - 1
        if len(self._links) > MAX_OPEN_LINKS:
            raise FormatError(f"bootstrap: over {MAX_OPEN_LINKS} inodes have names far apart")

    def _take_plain(self, unit: int) -> bool:
        """Check and claim a file of at most one chunk, with one name and no attributes.

        Returns False for anything else, or anything wrong: that is to be looked at closely.
        """
        offset = unit << NID_SHIFT
        view = self._bootstrap.view
        if offset + PLAIN.size > len(view):
            return False
        bits, icount, mode, size, raw, mtime_ns, nlink, low, device, high, address = (
            PLAIN.unpack_from(view, offset)
        )
        if (
            bits != PLAIN_BITS
            or icount
            or nlink != 1
            or raw != self._plain_format
            or size > self._chunk_size
            or mode & 0o170000 != stat.S_IFREG
            or mtime_ns >= 1_000_000_000
        ):
            return False
        units, places = EMPTY_UNITS, self._places
        if size:
            chunk, place = low | high << 16, address * self._block_size
            if places is None or not places.has(device - 1, chunk, place, size):
                return False
            units = PLAIN_UNITS
        if not self._units.startswith(FREE_UNITS[: len(units)], unit):
            return False
        self._units[unit : unit + len(units)] = units
        return True

    def _take(self, inode: Inode, file_type: int) -> None:
        """Claim what an inode occupies, and check its extended attributes."""
        bootstrap, what = self._bootstrap, f"inode {inode.nid}"
        end = inode.offset + inode.inode_size + inode.xattr_size
        if inode.layout == Layout.CHUNK_BASED:
            size = len(bootstrap.chunk_array(inode))
            end = (end + 7 & -8) + size if size else end
        else:
            tail = bootstrap.tail_size(inode)
            end += tail
            in_blocks = inode.size - tail
            if in_blocks:
                start = inode.raw * self._block_size
                self._claims.claim(start, start + in_blocks, f"data of {what}")
        self._claims.claim(inode.offset, end, what)
        self._units[inode.offset >> NID_SHIFT] = file_type
        if inode.xattr_size:
            self.has_xattrs = True
            bootstrap.xattrs(inode)

    def _check_chunks(self, inode: Inode) -> None:
        bootstrap = self._bootstrap
        chunk_size = self._chunk_size
        encoded_size = self._block_size << (inode.raw & CHUNK_FORMAT_BITS)
        if encoded_size < chunk_size:
            raise FormatError(f"inode {inode.nid}: its chunk format is below the chunk size")
        rest = inode.size
        expected: tuple[int, int] | None = None
        for chunk in bootstrap.chunks(inode):
            size = min(chunk_size, rest)
            rest -= size
            offset = chunk.block_address * self._block_size
            blob = bootstrap.blobs[chunk.blob_index]
            if offset + size > blob.uncompressed_size or chunk.chunk_index >= blob.chunk_count:
                raise FormatError(f"inode {inode.nid}: a chunk lies outside blob {blob.index}")
            if self._places is not None and not self._places.has(
                blob.index, chunk.chunk_index, offset, size
            ):
                raise FormatError(
                    f"inode {inode.nid}: chunk {chunk.chunk_index} of blob {blob.index} "
                    "is not in the chunk table with this place and size"
                )
            if encoded_size > chunk_size and expected not in (None, (blob.index, offset)):
                raise FormatError(f"inode {inode.nid}: its chunk format skips chunk addresses")
            expected = blob.index, offset + chunk_size


def _wrong_nlink(nid: int, nlink: int, names: int) -> FormatError:
    return FormatError(f"inode {nid}: nlink is {nlink}, but it has {names} names")


def _out_of_order(nid: int, names: Sequence[bytes]) -> FormatError:
    wrong = next(name for before, name in pairwise(names) if before >= name)
    return FormatError(f"directory {nid}: {wrong!r} is out of order")
