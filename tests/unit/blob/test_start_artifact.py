"""The start artifact is read back as it was written, and every lie of its tables is an error."""

import hashlib
import os
import struct

import pytest
from blake3 import blake3

from lamina.blob import start_artifact
from lamina.blob.page_proof import PAGE_BYTES
from lamina.blob.start_artifact import (
    PREFIX_BYTES,
    FrameContent,
    PageRange,
    Tables,
    encode,
    open_frame,
    parse_prefix,
    parse_tables,
)
from lamina.codec.compress import Compressor, compress
from lamina.errors import Error, FormatError, IntegrityError

MANIFEST = hashlib.sha256(b"manifest").digest()
BLOBS = [hashlib.sha256(name).hexdigest() for name in (b"one", b"two")]
PATHS = [b"/bin/sh", b"/lib/c.so"]


def pages(count: int) -> bytes:
    return os.urandom(count * PAGE_BYTES)


FRAMES = [
    FrameContent(
        b"s" * 64, pages(3), (PageRange(0, 7, 2), PageRange(1, 0, 1)), (PageRange(0, 0, 2),)
    ),
    FrameContent(b"", pages(1), (PageRange(0, 3, 1),), (PageRange(1, 9, 1), PageRange(0, 5, 1))),
]


def read(data: bytes) -> tuple[Tables, list[tuple[bytes, bytes]]]:
    prefix = parse_prefix(data[:PREFIX_BYTES])
    start = PREFIX_BYTES + prefix.stored_bytes
    tables = parse_tables(prefix, data[PREFIX_BYTES:start])
    found = []
    for frame in tables.frames:
        siblings, plain = open_frame(frame, data[start : start + frame.stored_bytes])
        found.append((bytes(siblings), bytes(plain)))
        start += frame.stored_bytes
    assert start == len(data)
    return tables, found


def test_what_was_written_is_read() -> None:
    data = encode(MANIFEST, BLOBS, PATHS, FRAMES)
    tables, found = read(data)
    assert parse_prefix(data[:PREFIX_BYTES]).manifest_digest == MANIFEST
    assert (list(tables.blob_ids), list(tables.paths)) == (BLOBS, PATHS)
    assert [(frame.pages, frame.files) for frame in tables.frames] == [
        (frame.pages, frame.files) for frame in FRAMES
    ]
    assert found == [(frame.siblings, frame.data) for frame in FRAMES]


def test_an_artifact_without_frames_is_one() -> None:
    assert read(encode(MANIFEST, [], [], [])) == (Tables((), (), ()), [])


def test_each_changed_byte_is_noticed() -> None:
    data = encode(MANIFEST, BLOBS, PATHS, FRAMES)
    # The digest of the manifest is compared by who opens the image.
    places = [place for place in range(len(data)) if not 56 <= place < 88]
    for place in places[:600] + places[600::97]:
        changed = bytearray(data)
        changed[place] ^= 0x41
        with pytest.raises((FormatError, IntegrityError)):
            read(bytes(changed))


def test_a_cut_artifact_is_noticed() -> None:
    data = encode(MANIFEST, BLOBS, PATHS, FRAMES)
    for size in range(0, len(data), 53):
        with pytest.raises(Error):
            read(data[:size])


@pytest.mark.parametrize(
    ("frames", "problem"),
    [
        ([FRAMES[0], FRAMES[0]], "same page twice"),
        ([FRAMES[0]._replace(pages=(PageRange(0, 7, 2), PageRange(0, 8, 1)))], "same page twice"),
        ([FRAMES[0]._replace(pages=(PageRange(1, 0, 1), PageRange(0, 7, 2)))], "out of order"),
        ([FRAMES[0]._replace(pages=(PageRange(2, 0, 3),))], "does not name"),
        ([FRAMES[0]._replace(pages=(PageRange(0, 0, 3), PageRange(1, 5, 0)))], "does not name"),
        ([FRAMES[0]._replace(files=(PageRange(2, 0, 1),))], "does not name"),
        ([FRAMES[0]._replace(files=(PageRange(0, 0, 1 << 31),))], "more pages of files"),
        ([FRAMES[0]._replace(pages=(PageRange(0, 0, 1 << 31),))], "claims"),
        ([FRAMES[0]._replace(pages=())], None),
    ],
)
def test_tables_that_lie_are_refused(frames: list[FrameContent], problem: str | None) -> None:
    with pytest.raises((FormatError, IntegrityError), match=problem):
        read(encode(MANIFEST, BLOBS, PATHS, frames))


def test_huge_claims_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    many = [
        FrameContent(b"", b"", (PageRange(0, number * 4000, 4000),), ()) for number in range(17)
    ]
    with pytest.raises(FormatError, match="more than 65536 pages"):
        read(encode(MANIFEST, BLOBS, PATHS, many))
    tables = struct.pack("<5I", 1 << 31, 1 << 31, 0, 0, 0)
    stored = compress(Compressor.ZSTD, tables)
    prefix = struct.pack(
        "<8sHHIII32s32s", b"LAMSTART", 1, 0, len(stored), 20, 0, blake3(stored).digest(), MANIFEST
    )
    with pytest.raises(FormatError, match="contradict"):
        read(prefix + stored)
    assert start_artifact.MAX_FRAME_BYTES <= 16 << 20


@pytest.mark.parametrize("path", [b"bin/sh", b"", b"/" + b"x" * 5000])
def test_names_that_are_no_paths_are_refused(path: bytes) -> None:
    with pytest.raises(FormatError, match="no paths"):
        read(encode(MANIFEST, BLOBS, [path], FRAMES[:0]))
