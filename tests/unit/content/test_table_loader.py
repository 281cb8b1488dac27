"""Chunk tables that do not come with the image are fetched when their blobs are first read."""

from __future__ import annotations

import threading
from pathlib import Path

from tests.support.native_images import (
    BuiltImage,
    MemorySource,
    build_image,
    image_files,
    open_bootstrap,
    some_bytes,
)
from tests.support.range_source import RangeSource

from lamina.errors import FetchError

PATIENCE_S = 60.0
"""For what comes at once on any machine."""


class OneWaits(RangeSource):
    """Sends nothing of the first blob before it was asked for the second one."""

    name = "one waits"

    def __init__(self, built: BuiltImage) -> None:
        self._inner = MemorySource(built)
        self._first = built.blobs[0].blob_id
        self.asked = {blob.blob_id: threading.Event() for blob in built.blobs}
        self.second = self.asked[built.blobs[1].blob_id]

    def read_range(self, blob_id: str, offset: int, size_bytes: int) -> bytes:
        self.asked[blob_id].set()
        if blob_id == self._first and not self.second.wait(PATIENCE_S):
            raise FetchError("nobody asked for the other blob meanwhile")
        return self._inner.read_range(blob_id, offset, size_bytes)


def test_a_table_that_is_slow_holds_up_no_other_blob(tmp_path: Path) -> None:
    files = {b"f%d" % number: some_bytes(9000, number) for number in range(8)}
    built = build_image(files, blob_count=2)
    source = OneWaits(built)
    path = image_files(tmp_path / "image", built)
    with open_bootstrap(path, source, store=tmp_path / "store") as image:
        first = threading.Thread(target=lambda: image.blobs[0])
        first.start()
        assert source.asked[built.blobs[0].blob_id].wait(PATIENCE_S)
        assert [image.blobs.at_hand(number) for number in (0, 1)] == [None, None]
        assert not source.second.is_set(), "whether it is at hand was asked of the source"
        assert image.blobs[1].blob_id == built.blobs[1].blob_id
        first.join()
        assert [image.blobs.at_hand(number) for number in (0, 1)] == list(image.blobs)
        assert [blob.blob_id for blob in image.blobs] == [blob.blob_id for blob in built.blobs]
        assert all(image.open(name).read() == content for name, content in files.items())
