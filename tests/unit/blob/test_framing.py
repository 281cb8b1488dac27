from __future__ import annotations

import hashlib
import io
import tarfile
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.rafs import blob_entry, make_image

from lamina.blob.builder import BlobColumns
from lamina.blob.framing import BlobOptions, BlobTail, read_bootstrap, read_sections
from lamina.blob.layout import TOC_LZ4, TOC_NONE, TOC_ZSTD, TocEntry, tar_header
from lamina.blob.toc import decode_toc, encode_toc, read_entry, read_toc
from lamina.codec.compress import Compressor, compress
from lamina.codec.digest import Digester
from lamina.erofs.layout import PLACEHOLDER_BLOB_ID
from lamina.erofs.reader import Bootstrap
from lamina.errors import FormatError, IntegrityError, UnsupportedError

FILES = {b"a": b"a" * 9000, b"b": b"bb", b"c": b"ccc"}


def reader(blob: bytes):  # type: ignore[no-untyped-def]
    return lambda offset, size: blob[offset : offset + size]


@pytest.mark.parametrize("inlined", [False, True])
@pytest.mark.parametrize("pack_size", [0, 4096])
def test_a_blob_is_what_nydus_expects(inlined: bool, pack_size: int) -> None:
    image = make_image(FILES, pack_size=pack_size, inlined_digests=inlined)
    entry = image.entry
    assert entry is not None
    size = len(image.blob)
    expected = ["rafs.blob.toc", "image.boot", "blob.digest", "blob.meta", "image.blob"]
    if not inlined:
        expected.remove("blob.digest")
    sections = read_sections(image.read_at, size)
    assert list(sections) == expected
    assert sections["image.blob"].offset == 0
    assert sections["blob.meta"].offset == entry.ci_offset
    assert sections["blob.meta"].size == entry.ci_compressed_size + 4096
    assert entry.compressed_data_size == sections["image.blob"].size
    # RAFS v6 §1.7: typical feature totals.
    features = 0x70000001 | (0x20 if inlined else 0) | (0x84 if pack_size else 0)
    assert entry.features == features
    assert entry.blob_id == hashlib.sha256(image.blob).hexdigest()
    assert entry.compressed_size == size
    assert entry.toc_digest == hashlib.sha256(image.blob[-entry.toc_size :]).digest()

    layer = Bootstrap(image.layer_bootstrap).blobs[0]
    assert layer.blob_id == PLACEHOLDER_BLOB_ID
    assert layer.features == features | 2
    assert layer.compressed_size == sections["image.boot"].offset
    assert (layer.toc_size, layer.toc_digest) == (0, bytes(32))

    toc = read_toc(image.read_at, size, entry)
    assert toc is not None
    names = ["image.blob", "blob.meta", "blob.meta.header", "blob.digest", "image.boot"]
    assert [item.name for item in toc] == [
        name for name in names if name in expected or "header" in name
    ]
    data_end = sections["image.blob"].size + 512
    assert toc[0].digest == hashlib.sha256(image.blob[:data_end]).digest()
    assert toc[0].uncompressed_size == entry.uncompressed_size
    assert read_bootstrap(image.read_at, size) == image.layer_bootstrap
    payload = read_entry(image.read_at, size, toc[1], 1 << 20)
    assert image.meta[: len(payload)] == payload


def test_a_layer_without_data_has_only_its_bootstrap() -> None:
    image = make_image({b"empty": b""})
    assert list(read_sections(image.read_at, len(image.blob))) == ["rafs.blob.toc", "image.boot"]
    assert read_bootstrap(image.read_at, len(image.blob)) == image.layer_bootstrap


def test_tails_leave_the_running_digest_alone() -> None:
    columns = BlobColumns(array("I", [5]), array("I", [1]), array("I", [5]))
    running = hashlib.sha256(b"12345")
    tail = BlobTail(columns, running, BlobOptions(4096, Compressor.NONE, Digester.SHA256))
    done = tail.finish(b"bootstrap")
    assert running.digest() == hashlib.sha256(b"12345").digest()
    assert hashlib.sha256(b"12345" + done.tail).hexdigest() == done.blob_id
    assert read_bootstrap(reader(b"12345" + done.tail), done.size) == b"bootstrap"


def test_plain_blobs_have_no_sections() -> None:
    assert read_sections(reader(bytes(3000)), 3000) == {}
    assert read_sections(reader(b""), 0) == {}
    assert read_toc(reader(bytes(3000)), 3000) is None
    assert read_toc(reader(b""), 0) is None
    assert read_bootstrap(reader(bytes(3000)), 3000) is None


def test_a_raw_bootstrap_is_found_without_a_toc() -> None:
    blob = b"datadata" + tar_header("image.blob", 8) + b"boot" + tar_header("image.boot", 4)
    assert read_bootstrap(reader(blob), len(blob)) == b"boot"


@pytest.mark.parametrize(
    "blob",
    [
        b"noise" + tar_header("image.boot", 0),
        tar_header("image.boot", 1 << 50),
        b"x" + tar_header("a", 1) + b"x" + tar_header("a", 1),
        b"".join(tar_header(f"s{number}", 0) for number in range(17)),
        b"\0" * 600 + tar_header("image.boot", 4),
    ],
)
def test_broken_chains(blob: bytes) -> None:
    with pytest.raises(FormatError, match="blob: "):
        read_sections(reader(blob), len(blob))


@given(
    st.lists(
        st.builds(
            TocEntry,
            st.text("abc.xyz", min_size=1, max_size=16),
            st.sampled_from([TOC_NONE, TOC_ZSTD, TOC_LZ4]),
            st.binary(min_size=32, max_size=32),
            st.integers(0, (1 << 64) - 1),
            st.integers(0, (1 << 64) - 1),
            st.integers(0, (1 << 64) - 1),
        ),
        min_size=1,
        max_size=20,
        unique_by=lambda entry: entry.name,
    ),
    st.binary(max_size=100),
)
def test_toc_round_trip(entries: list[TocEntry], before: bytes) -> None:
    assert decode_toc(before + encode_toc(entries)) == tuple(entries)


@pytest.mark.parametrize(
    "tail",
    [
        tar_header("rafs.blob.toc", 0),
        tar_header("rafs.blob.toc", 128),
        bytes(100) + tar_header("rafs.blob.toc", 100),
        bytes(128) + tar_header("rafs.blob.toc", 128),
        TocEntry("a", 3, bytes(32), 0, 0, 0).pack() + tar_header("rafs.blob.toc", 128),
        TocEntry("a", 1, bytes(32), 0, 0, 0).pack() * 2 + tar_header("rafs.blob.toc", 256),
        b"\1" + bytes(7) + b"\xff" * 16 + bytes(104) + tar_header("rafs.blob.toc", 128),
    ],
)
def test_damaged_tocs(tail: bytes) -> None:
    with pytest.raises(FormatError, match="table of contents"):
        decode_toc(tail)


def test_toc_of_known_length_and_digest() -> None:
    # More entries than the last 4096 bytes hold.
    toc = encode_toc([TocEntry(f"e{n}", 1, bytes(32), 0, 0, 0) for n in range(40)])
    blob = bytes(1000) + toc
    entry = blob_entry(toc_size=len(toc), toc_digest=hashlib.sha256(toc).digest())
    found = read_toc(reader(blob), len(blob), entry)
    assert found is not None
    assert len(found) == 40
    with pytest.raises(FormatError, match="does not fit"):
        read_toc(reader(blob), len(blob))
    with pytest.raises(IntegrityError, match="wrong digest"):
        read_toc(reader(blob), len(blob), entry._replace(toc_digest=b"\1" * 32))
    for size in (128, 511, len(blob) + 128, 1 << 31):
        with pytest.raises(FormatError, match="table of contents of"):
            read_toc(reader(blob), len(blob), entry._replace(toc_size=size))


def test_sections_are_verified() -> None:
    plain = b"section " * 100
    packed = compress(Compressor.ZSTD, plain)
    good = TocEntry("s", TOC_ZSTD, hashlib.sha256(plain).digest(), 3, len(packed), len(plain))
    blob = b"abc" + packed
    assert read_entry(reader(blob), len(blob), good, 1000) == plain
    with pytest.raises(FormatError, match="claims"):
        read_entry(reader(blob), len(blob), good, 799)
    with pytest.raises(FormatError, match="claims"):
        read_entry(reader(blob), len(blob) - 1, good, 1000)
    with pytest.raises(IntegrityError, match="wrong digest"):
        read_entry(reader(blob), len(blob), good._replace(digest=bytes(32)), 1000)
    with pytest.raises(IntegrityError, match="801"):
        read_entry(reader(blob), len(blob), good._replace(uncompressed_size=801), 1000)
    with pytest.raises(UnsupportedError, match="lz4"):
        read_entry(reader(blob), len(blob), good._replace(flags=TOC_LZ4), 1000)


def test_section_headers_are_a_tar_when_padded() -> None:
    """The header after a section is an ordinary GNU header: tarfile reads it before its data."""
    archive = tar_header("blob.meta", 5) + b"12345".ljust(512, b"\0") + bytes(1024)
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        assert tar.getnames() == ["blob.meta"]
