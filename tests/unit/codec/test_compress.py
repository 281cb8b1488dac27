from __future__ import annotations

import contextlib
import struct
import threading
import tracemalloc
import zlib

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from lamina.codec import compress as module
from lamina.codec.compress import Compressor, compress, compress_all, decompress
from lamina.errors import FormatError, IntegrityError

KINDS = list(Compressor)
REAL = [kind for kind in Compressor if kind is not Compressor.NONE]


@given(st.sampled_from(KINDS), st.binary(max_size=5000), st.integers(1, 50))
def test_round_trip(kind: Compressor, data: bytes, repeat: int) -> None:
    plain = data * repeat
    packed = compress(kind, plain)
    assert decompress(kind, packed, len(plain)) == plain
    assert decompress(kind, memoryview(bytearray(packed)), len(plain)) == plain


@pytest.mark.parametrize("can_together", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_many_at_a_time_are_as_each_alone(
    kind: Compressor, can_together: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not can_together:
        monkeypatch.setattr(module, "_zstd_compressor", _Plain)
    text = b"one after the other, " * 9000
    pieces = [b"", b"x", text, memoryview(text)[7:70_000], bytearray(text[:100]), bytes(1 << 20)]
    for level in (None, 1, 9):
        for some in (pieces, pieces[2:3], []):
            expected = [compress(kind, piece, level) for piece in some]
            assert compress_all(kind, some, level) == expected


class _Plain:
    """The compressor of a zstandard library that takes one buffer a call."""

    def __init__(self, level: int) -> None:
        self.compress = zstandard.ZstdCompressor(level=level, write_content_size=True).compress


@pytest.mark.parametrize("kind", REAL)
@pytest.mark.parametrize("level", [None, 1, 5])
def test_levels_shrink_text(kind: Compressor, level: int | None) -> None:
    assert len(compress(kind, b"a text, again and again. " * 400, level)) < 1000


def test_zstd_frame_has_size_and_no_checksum() -> None:
    frame = compress(Compressor.ZSTD, b"x" * 1000)
    parameters = zstandard.get_frame_parameters(frame)
    assert parameters.content_size == 1000
    assert not parameters.has_checksum
    assert parameters.dict_id == 0


def test_lz4_is_a_block_without_its_size() -> None:
    # Token: 5 literals, no match (LZ4 block format).
    assert compress(Compressor.LZ4_BLOCK, b"hello") == b"\x50hello"


def test_gzip_is_one_member() -> None:
    assert zlib.decompress(compress(Compressor.GZIP, b"data" * 9), 31) == b"data" * 9


@given(st.sampled_from(KINDS), st.binary(min_size=1, max_size=300), st.integers(-300, 300))
def test_wrong_length_is_an_error(kind: Compressor, data: bytes, off_by: int) -> None:
    size = len(data) + (off_by or 1)
    if size >= 0:
        with pytest.raises((FormatError, IntegrityError)):
            decompress(kind, compress(kind, data), size)


@given(st.sampled_from(REAL), st.binary(max_size=200), st.integers(0, 5000))
def test_garbage_is_an_error_or_the_promised_length(
    kind: Compressor, data: bytes, size: int
) -> None:
    with contextlib.suppress(FormatError, IntegrityError):
        assert len(decompress(kind, data, size)) == size


@pytest.mark.parametrize("kind", REAL)
def test_cut_off_and_trailing_bytes(kind: Compressor) -> None:
    packed = compress(kind, bytes(range(256)) * 20)
    for damaged in (packed[:-1], packed[: len(packed) // 2], b"", packed + b"\x01"):
        with pytest.raises((FormatError, IntegrityError)):
            decompress(kind, damaged, 5120)


def test_bombs_do_not_allocate() -> None:
    zeros = bytes(64 << 20)
    bombs = [(kind, compress(kind, zeros)) for kind in REAL]
    # A raw frame header that claims 1 TiB.
    bombs.append((Compressor.ZSTD, b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 1 << 40) + bytes(9)))
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(zeros)
    bombs.append((Compressor.ZSTD, unsized))
    del zeros
    for kind, bomb in bombs:
        tracemalloc.start()
        with pytest.raises((FormatError, IntegrityError)):
            decompress(kind, bomb, 100_000)
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
        tracemalloc.stop()


def test_frame_of_unknown_size_is_read() -> None:
    frame = zstandard.ZstdCompressor(write_content_size=False).compress(b"z" * 5000)
    assert zstandard.frame_content_size(frame) == -1
    assert decompress(Compressor.ZSTD, frame, 5000) == b"z" * 5000


def test_threads_do_not_share_contexts() -> None:
    plains = [bytes([number]) * 300_000 + b"tail" * number for number in range(8)]
    failures: list[int] = []

    def work(number: int) -> None:
        for _ in range(10):
            packed = compress(Compressor.ZSTD, plains[number])
            if decompress(Compressor.ZSTD, packed, len(plains[number])) != plains[number]:
                failures.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(plains))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


@pytest.mark.parametrize("kind", REAL)
def test_what_is_compressed_takes_no_more_memory_than_it_is_long(kind: Compressor) -> None:
    """An index keeps thousands of frames, each of which could have been much longer."""
    plain = bytes(32 << 10)
    compress(kind, plain)
    tracemalloc.start()
    try:
        kept = [compress(kind, plain) for _ in range(100)]
        traced, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert traced < 2 * sum(map(len, kept)) + 20_000
