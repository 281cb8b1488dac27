"""The bootstrap that a kernel asks for page by page: never wrong, without orders for overlayfs."""

from __future__ import annotations

import pytest
from tests.support.opened_blobs import OpenedBlobs
from tests.support.rafs import Content, make_image
from tests.support.whole_bootstrap import Rest

from lamina.content.lazy_image import LazyImage
from lamina.content.read_log import METADATA, ReadLog
from lamina.erofs.partial import PartialBootstrap
from lamina.erofs.reader import Bootstrap
from lamina.erofs.tree import Node
from lamina.errors import FormatError
from lamina.serve.lower_metadata import OVERLAY_ATTRIBUTES
from lamina.serve.metadata_file import MetadataFile

PAGE = 4096
NAME = b"trusted.overlay.opaque"
PLAIN: dict[bytes, Content] = {b"many/%0100d" % number: b"x" for number in range(200)}


class Checked(LazyImage):
    """Says what is wrong with the whole."""

    def __init__(self, bootstrap: PartialBootstrap, rest: Rest) -> None:
        super().__init__(bootstrap, OpenedBlobs())
        self._rest = rest

    def check(self) -> None:
        self._rest.check()


def opened(image: bytes, without: set[int]) -> tuple[LazyImage, Rest]:
    view = memoryview(image)
    pages = {
        page: view[page * PAGE : (page + 1) * PAGE]
        for page in range(len(image) // PAGE)
        if page not in without
    }
    bootstrap, rest = PartialBootstrap(len(image), pages), Rest(image)
    bootstrap.complete_by(rest)
    return Checked(bootstrap, rest), rest


def read(file: MetadataFile, page: int) -> bytes:
    buffer = bytearray(PAGE)
    assert file.read_into(page * PAGE, memoryview(buffer)) == PAGE
    return bytes(buffer)


def last_page(image: bytes) -> int:
    return len(image) // PAGE - 1


def test_pages_that_came_are_shown_and_others_waited_for() -> None:
    image = make_image(PLAIN).bootstrap
    last = last_page(image)
    lazy, rest = opened(image, {last})
    file = MetadataFile(lazy, OVERLAY_ATTRIBUTES)
    assert file.size_bytes == len(image)
    for page in range(last):
        assert read(file, page) == image[page * PAGE : (page + 1) * PAGE]
    assert rest.asked == 0
    assert read(file, last) == image[last * PAGE :]
    assert rest.asked == 1
    # Nothing is behind the end.
    assert file.read_into(len(image), memoryview(bytearray(PAGE))) == 0
    rest.problem = FormatError("a cycle")
    with pytest.raises(FormatError, match="a cycle"):
        read(file, 0)


def test_all_reads_are_noted() -> None:
    image = make_image(PLAIN).bootstrap
    lazy = LazyImage(Bootstrap(image), OpenedBlobs())
    lazy.metadata_reads = ReadLog()
    file = MetadataFile(lazy)
    for page in (3, 0, 3):
        read(file, page)
    assert lazy.metadata_reads.pages == [(METADATA, 3), (METADATA, 0)]


def with_order() -> tuple[bytes, int]:
    """An image with an attribute for overlayfs, and the page of it."""
    image = make_image(PLAIN | {b"zoo": Node(0o040755, xattrs={NAME: b"y"}, children={})}).bootstrap
    return image, image.index(b"overlay.opaque") // PAGE


def test_orders_for_overlayfs_are_never_shown() -> None:
    image, page = with_order()
    for without in (set[int](), {page}, {last_page(image)}):
        lazy, _ = opened(image, without)
        file = MetadataFile(lazy, OVERLAY_ATTRIBUTES)
        shown = b"".join(read(file, number) for number in range(len(image) // PAGE))
        changed = [n for n in range(len(image)) if shown[n] != image[n]]
        assert len(changed) == 1
        # The entry is of a prefix that Linux has not.
        assert shown[changed[0]] == 5
        assert changed[0] // PAGE == page
    # Nobody hides what is no order.
    lazy, rest = opened(image, set())
    assert read(MetadataFile(lazy), page) == image[page * PAGE : (page + 1) * PAGE]
    assert rest.asked == 0


def test_an_order_of_which_a_part_was_shown_ends_the_mount() -> None:
    image, page = with_order()
    place = image.index(b"overlay.opaque")
    # As if the page ended in the middle of the name: what came has no whole one.
    lazy, _ = opened(image, set())
    bootstrap = lazy.bootstrap
    assert isinstance(bootstrap, PartialBootstrap)
    lying = bytearray(bootstrap.early(0, len(image)))
    lying[place] = 0
    shown, rest = opened(bytes(lying), {last_page(image)})
    rest._image = image
    file = MetadataFile(shown, OVERLAY_ATTRIBUTES)
    read(file, page)
    for _ in range(2):
        with pytest.raises(FormatError, match="overlayfs"):
            read(file, last_page(image))
    with pytest.raises(FormatError, match="overlayfs"):
        read(file, page)
