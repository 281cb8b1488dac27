"""A bootstrap of hostile bytes: opening, walking, looking up and checking end in an answer or an
error.
"""

from __future__ import annotations

import contextlib
import stat
from itertools import islice

from lamina.erofs.check import check_bootstrap
from lamina.erofs.check_part import check_part
from lamina.erofs.layout import Inode
from lamina.erofs.partial import PAGE_BYTES, NotHereError, PartialBootstrap
from lamina.erofs.reader import Bootstrap
from lamina.erofs.tree import Node
from lamina.errors import Error
from tests.support.rafs import Content, directory, make_image

MAX_INODES = 300


def target(data: bytes) -> None:
    """Read everything that the bytes offer, within limits that a good image does not need."""
    passed = False
    with contextlib.suppress(Error):
        check_bootstrap(data)
        passed = True
    try:
        bootstrap = Bootstrap(data)
    except Error:
        assert not passed
        return
    _walk(bootstrap, strict=passed)
    _in_parts(data, strict=passed)
    for blob in bootstrap.blobs[:4]:
        digests = bootstrap.chunk_digests(blob.index)
        for chunk in (0, 1, blob.chunk_count - 1):
            entry = digests.find(chunk)
            assert entry is None or entry.index == chunk
        digests.overlaps(0, blob.uncompressed_size)
    for nid in bootstrap.prefetch_nids[:10]:
        with contextlib.suppress(Error):
            bootstrap.inode(nid)


def _in_parts(data: bytes, *, strict: bool) -> None:
    """Judge what a start would see: all pages, and about half of them."""
    if len(data) % PAGE_BYTES:
        return
    every = {
        page: memoryview(data)[page * PAGE_BYTES : (page + 1) * PAGE_BYTES]
        for page in range(len(data) // PAGE_BYTES)
    }
    half = {page: each for page, each in every.items() if page < 2 or sum(each[:64]) % 2}
    for pages in (every, half):
        try:
            partial = PartialBootstrap(len(data), pages)
            check_part(partial)
        except NotHereError:
            assert not strict or pages is half
            continue
        except Error:
            assert not strict
            continue
        for blob in partial.blobs[:4]:
            for entry in islice(partial.entries_here(blob.index), 50):
                assert entry.blob_index == blob.index


def _walk(bootstrap: Bootstrap, *, strict: bool) -> None:
    """Visit inodes from the root; in an image that the checker let pass, nothing may fail."""
    pending = [bootstrap.root_nid]
    for _ in range(MAX_INODES):
        if not pending:
            break
        nid = pending.pop()
        try:
            inode = bootstrap.inode(nid)
            bootstrap.xattrs(inode)
            pending += _children(bootstrap, inode, strict=strict)
        except Error:
            assert not strict


def _children(bootstrap: Bootstrap, inode: Inode, *, strict: bool) -> list[int]:
    if stat.S_ISREG(inode.mode):
        for chunk in islice(bootstrap.chunks(inode), 50):
            assert chunk.blob_index < len(bootstrap.blobs)
    elif stat.S_ISLNK(inode.mode):
        assert len(bootstrap.readlink(inode)) == inode.size
    elif stat.S_ISDIR(inode.mode):
        bootstrap.lookup(inode, b"name")
        entries = list(islice(bootstrap.readdir(inode), 50))
        for entry in entries:
            found = bootstrap.lookup(inode, entry.name)
            assert not strict or found == entry.nid
        return [entry.nid for entry in entries]
    return []


def seeds() -> list[bytes]:
    """Small images: each kind of inode, several blocks, no blobs, compact inodes."""
    shared = Node(0o100644)
    kinds: dict[bytes, Content] = {
        b"file": b"f" * 9000,
        b"link": Node(0o120777, target=b"file"),
        b"long": Node(0o120777, target=b"t" * 4090),
        b"pipe": Node(stat.S_IFIFO | 0o600),
        b"null": Node(stat.S_IFCHR | 0o600, rdev=0x103),
        b"d/e/f": b"deep",
        b"x": directory(xattrs={b"user.a": b"1", b"system.posix_acl_access": b"22"}),
        b"hard/a": shared,
        b"hard/b": shared,
    }
    many: dict[bytes, Content] = {b"%03d-%s" % (n, b"n" * 90): b"" for n in range(90)}
    return [
        make_image(kinds, chunk_size=4096, prefetch=[b"/d"]).bootstrap,
        make_image(kinds, pack_size=8192, inlined_digests=True).bootstrap,
        make_image(many).bootstrap,
        make_image({}).bootstrap,
    ]
