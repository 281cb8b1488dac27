"""Real images of other makers decode to what the specification records of them (RAFS v6 §9-11)."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from lamina.blob.check import check_table
from lamina.blob.decode import decode_piece
from lamina.blob.framing import read_bootstrap, read_sections
from lamina.blob.layout import CHUNK_COMPRESSED, CHUNK_ZRAN, TAR_BLOCK
from lamina.blob.table import ChunkTable, read_ci_header
from lamina.blob.toc import ReadAt, read_entry, read_toc
from lamina.codec.digest import Digester, digest
from lamina.erofs.check import check_bootstrap
from lamina.erofs.layout import BlobFeature, FileType, Layout
from lamina.erofs.reader import Bootstrap
from lamina.errors import UnsupportedError
from tests.support.blob_check import check_blob
from tests.support.rafs import blob_entry
from tests.support.tools import require_shared

BLOB = "be7d77eeb719f70884758d1aa800ed0fb09d701aaec469964e9d54325f0d5fef"
TOC_BLOB = "2fa78cad554b75ac91a4a125ed148d0ddeb25efa4aaa8bd80e5dc292690a4dca"
ZRAN = "233c72f2b6b698c07021c4da367cfe2dff4f049efbaa885ca0ff760ea297865a.blob.meta"


def fixture(*parts: str) -> Path:
    return require_shared("fixtures", "rafs", *parts)


def reader(data: bytes) -> ReadAt:
    return lambda offset, size: data[offset : offset + size]


@pytest.fixture
def boot() -> bytes:
    return fixture("bootstrap", "rafs-v6-2.2.boot").read_bytes()


@pytest.fixture
def blob() -> bytes:
    return fixture("blobs", BLOB).read_bytes()


def test_bootstrap_of_nydus_2_2(boot: bytes) -> None:
    check_bootstrap(boot)
    bootstrap = Bootstrap(boot)
    superblock = bootstrap.header.superblock
    assert (superblock.root_nid, superblock.meta_block, superblock.blocks) == (128, 2, 9)
    assert (superblock.device_slot_offset, superblock.feature_incompat) == (11, 0xC)
    assert bootstrap.header.extended.flags == 0x194
    (device,) = bootstrap.header.devices
    assert (device.blocks, device.mapped_block) == (9, 0x200)
    (entry,) = bootstrap.blobs
    assert (entry.blob_id, entry.features) == (BLOB, 0x70000021)
    root = bootstrap.inode(bootstrap.root_nid)
    assert root.layout == Layout.FLAT_INLINE
    files = list(bootstrap.readdir(root))
    assert [(item.name, item.file_type) for item in files] == [
        (b"lib.rs", FileType.REGULAR),
        (b"sync_io.rs", FileType.REGULAR),
    ]
    for position, item in enumerate(files):
        inode = bootstrap.inode(item.nid)
        assert (inode.layout, inode.raw, inode.inode_size) == (Layout.CHUNK_BASED, 0x28, 64)
        (chunk,) = bootstrap.chunks(inode)
        assert (chunk.blob_index, chunk.chunk_index) == (0, position)
        known = bootstrap.chunk_digests(0).find(position)
        assert known is not None
        assert known.uncompressed_offset == chunk.block_address * 4096
        assert known.uncompressed_size == inode.size


def test_blob_of_nydus_2_2(boot: bytes, blob: bytes) -> None:
    bootstrap = Bootstrap(boot)
    (entry,) = bootstrap.blobs
    sections = read_sections(reader(blob), len(blob))
    assert {name: section.size for name, section in sections.items()} == {
        "image.blob": 7802,
        "blob.meta": 4128,
        "blob.digest": 64,
        "rafs.blob.toc": 512,
    }
    digests = bootstrap.chunk_digests(0)
    assert check_blob(entry, digests, reader(blob), len(blob)) == 16931 + 13400
    section = sections["blob.digest"]
    array = blob[section.offset : section.offset + section.size]
    table = ChunkTable.from_stored(
        blob[entry.ci_offset :][: entry.ci_compressed_size + 4096], entry
    )
    for number, known in enumerate(sorted(bootstrap.chunk_entries, key=lambda item: item.index)):
        piece = table.piece(number)
        assert table.chunk_extent(number) == (known.uncompressed_offset, known.uncompressed_size)
        assert (piece.offset, piece.size) == (known.compressed_offset, known.compressed_size)
        stored = blob[piece.offset : piece.offset + piece.size]
        ((_, plain),) = decode_piece(table, piece, stored, digests, BLOB)
        assert digest(Digester.BLAKE3, plain) == array[32 * number : 32 * number + 32]
    # nydus-image does not hash the digest array (RAFS v6 §2.8).
    without = blob[: section.offset] + blob[section.offset + section.size :]
    assert hashlib.sha256(without).hexdigest() == BLOB != hashlib.sha256(blob).hexdigest()
    toc = read_toc(reader(blob), len(blob), entry)
    assert toc is not None
    assert toc[0].digest == hashlib.sha256(blob[: 7802 + TAR_BLOCK]).digest()


def test_blob_with_an_inlined_bootstrap() -> None:
    data = fixture("toc", TOC_BLOB).read_bytes()
    assert hashlib.sha256(data).hexdigest() == TOC_BLOB
    toc = read_toc(reader(data), len(data))
    assert toc is not None
    names = ["image.blob", "blob.meta", "blob.meta.header", "image.boot"]
    assert [item.name for item in toc] == names
    for item in toc[1:]:
        assert read_entry(reader(data), len(data), item, 1 << 20)
    boot = read_bootstrap(reader(data), len(data))
    assert boot is not None
    check_bootstrap(boot)
    bootstrap = Bootstrap(boot)
    root = bootstrap.inode(bootstrap.root_nid)
    assert len(list(bootstrap.readdir(root))) == bootstrap.inode_count - 1
    (entry,) = bootstrap.blobs
    # An early builder: the features do not tell of the headers and contents that are there.
    assert (entry.features, entry.chunk_count) == (1, 3)
    assert check_blob(entry, bootstrap.chunk_digests(0), reader(data), len(data)) == 6609


REFERRED = {
    "targz-ref": ("zran", "bgzip.tar.gz", 415, 44, 6),
    "targz-ref, contents": ("zran", "zran-two-streams.tar.gz", 11, 5, 1),
    "tar-tarfs": ("tar", "all-entry-type.tar", 10, 0, 0),
}


@pytest.mark.tools
@pytest.mark.parametrize("build", REFERRED)
def test_images_of_nydus_that_refer_to_a_tar(
    peer: Callable[[str], Path], tmp_path: Path, build: str
) -> None:
    *parts, inodes, chunks, contexts = REFERRED[build]
    source = fixture(*map(str, parts))
    arguments = ["create", "--type", build.split(",", maxsplit=1)[0], "--blob-dir", str(tmp_path)]
    if "contents" in build:
        arguments += ["--blob-inline-meta", "--features", "blob-toc"]
    else:
        arguments += ["--bootstrap", str(tmp_path / "image.boot")]
    command = [str(peer("nydus-image")), *arguments, str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    blobs = [path.read_bytes() for path in tmp_path.iterdir() if "." not in path.name]
    if "contents" in build:
        boot = read_bootstrap(reader(blobs[0]), len(blobs[0]))
        assert boot is not None
    else:
        boot = (tmp_path / "image.boot").read_bytes()
    check_bootstrap(boot)
    bootstrap = Bootstrap(boot)
    assert bootstrap.inode_count == inodes
    (entry,) = bootstrap.blobs
    if not chunks:
        with pytest.raises(UnsupportedError, match="plain tar"):
            ChunkTable.from_stored(b"", entry)
        return
    stored = blobs[0][entry.ci_offset :][: entry.ci_compressed_size + 4096]
    table = ChunkTable.from_stored(stored, entry)
    check_table(table)
    assert (table.chunk_count, len(table.zran_contexts)) == (chunks, contexts)


def test_table_of_a_gzip_stream() -> None:
    meta = fixture("zran", ZRAN).read_bytes()
    header = read_ci_header(meta[-4096:], "zran")
    assert (header.entries, header.context_count) == (0xA3, 0x15)
    assert header.context_size == 0xA0348
    assert header.context_size - 0x15 * 40 == 655360
    # The bootstrap of this image is lost, so its blob table entry is made from the header.
    entry = blob_entry(
        features=header.features | BlobFeature.ALIGNED | BlobFeature.SEPARATE,
        chunk_count=header.entries,
        ci_compressor=header.compressor,
        ci_offset=header.offset,
        ci_compressed_size=header.compressed_size,
        ci_uncompressed_size=header.uncompressed_size,
        compressed_size=1 << 30,
        uncompressed_size=1 << 30,
    )
    table = ChunkTable.from_meta(meta, entry)
    contexts = table.zran_contexts
    assert len(contexts) == 21
    assert sum(context.dict_size > 0 for context in contexts) == 20
    holes = []
    end = 0
    for chunk in range(table.chunk_count):
        assert table.chunk_flags(chunk) == CHUNK_ZRAN | CHUNK_COMPRESSED
        offset, size = table.chunk_extent(chunk)
        if offset != end:
            holes.append(offset - end)
        end = (offset + size + 4095) & -4096
        context = contexts[table.zran_context_of(chunk)]
        assert table.offset_in_piece(chunk) + size <= context.out_size
        assert len(table.zran_dictionary(context)) == context.dict_size
    assert holes == [8192]
