"""Start artifacts of hostile bytes: as they are, and with the digests made right."""

from __future__ import annotations

import contextlib
import io
import struct

from blake3 import blake3

from lamina.blob.page_proof import ChunkPages, prove, sibling_count
from lamina.blob.seal import HiddenKey
from lamina.blob.start_artifact import (
    MAX_FRAME_BYTES,
    MAX_PAGES,
    PREFIX_BYTES,
    FrameContent,
    PageRange,
    encode,
    open_frame,
    parse_prefix,
    parse_tables,
)
from lamina.blob.start_seal import SealedStart, open_label, seal_start
from lamina.build.start_profile import decode_profile, encode_profile
from lamina.codec.compress import Compressor, compress
from lamina.errors import Error
from lamina.oci.manifest import Descriptor
from lamina.oci.start_manifest import (
    MAX_START_BYTES,
    START_ARTIFACT,
    START_COMMAND,
    START_LABEL,
    START_LAYER,
    START_NAME,
    StartRule,
    choose_start,
    start_entries,
)

SECRET = HiddenKey(b"k" * 32)


def target(data: bytes) -> None:
    """Read the bytes as an artifact, and as the tables of one that has right digests."""
    with contextlib.suppress(Error):
        _read(data)
    stored = compress(Compressor.ZSTD, data, 1)
    prefix = struct.pack(
        "<8sHHIII32s32s",
        *(b"LAMSTART", 1, 0, len(stored), len(data), 0, blake3(stored).digest(), bytes(32)),
    )
    with contextlib.suppress(Error):
        _read(prefix + stored)
    _prove(data)
    _read_sealed(data)
    _read_list(data)


def _read(data: bytes) -> None:
    prefix = parse_prefix(data[:PREFIX_BYTES])
    start = PREFIX_BYTES + prefix.stored_bytes
    tables = parse_tables(prefix, data[PREFIX_BYTES:start])
    assert sum(frame.page_count for frame in tables.frames) <= MAX_PAGES
    for frame in tables.frames[:20]:
        assert all(part.owner < len(tables.blob_ids) for part in frame.pages)
        assert all(part.owner < len(tables.paths) for part in frame.files)
        siblings, pages = open_frame(frame, data[start : start + frame.stored_bytes])
        assert len(pages) == frame.page_count * 4096
        assert len(siblings) + len(pages) <= MAX_FRAME_BYTES
        start += frame.stored_bytes


def _read_sealed(data: bytes) -> None:
    """As the stored form of a sealed one, and as what somebody with the key sealed."""
    binding = bytes(32)
    with contextlib.suppress(Error):
        stream = SealedStart(io.BytesIO(data), len(data), SECRET, binding)
        while stream.read(5000):
            pass
    assert open_label(data.decode("latin-1"), SECRET, binding) is None
    for number in (1, 70_000 // (len(data) + 1)):
        plain = data * number
        stored = seal_start(plain, SECRET, binding)
        if plain:
            opened = SealedStart(io.BytesIO(stored), len(stored), SECRET, binding)
            assert b"".join(iter(lambda: opened.read(9999), b"")) == plain  # noqa: B023
        if data:
            # One byte changed wherever the input says.
            place = int.from_bytes(data[:4], "little") % len(stored)
            changed = bytearray(stored)
            changed[place] ^= data[-1] or 1
            try:
                damaged = SealedStart(io.BytesIO(changed), len(changed), SECRET, binding)
                while damaged.read():
                    pass
            except Error:
                pass
            else:
                raise AssertionError("a changed artifact was opened")


def _read_list(data: bytes) -> None:
    """As what a registry says of an artifact, and as a profile."""
    text = data.decode("latin-1")
    names = (START_NAME, START_COMMAND, START_LAYER, START_LABEL)
    notes = dict(zip(names, text.split("\n"), strict=False))
    listed = Descriptor(
        media_type="a", digest="sha256:" + "1" * 64, size=1, annotations=notes,
        artifact_type=START_ARTIFACT,
    )  # fmt: skip
    entries = start_entries([listed], "")
    assert all(entry.layer.size <= MAX_START_BYTES for entry in entries)
    choose_start(entries, StartRule(command=("x",)))
    with contextlib.suppress(Error):
        profile = decode_profile(text)
        assert decode_profile(encode_profile(profile)) == profile


def _prove(data: bytes) -> None:
    """No forged page may be proven for a chunk that nobody knows the content of."""
    if len(data) < 8:
        return
    size = int.from_bytes(data[:3], "little") % 70_000 + 1
    numbers = sorted(set(data[3:8]))
    plain = data[8:].ljust(len(numbers) * 4096, b"\0")[: len(numbers) * 4096]
    count = 0
    if numbers[-1] < -(-size // 4096):
        count = sibling_count(size, numbers)
    siblings = data[-32 * count :].ljust(32 * count, b"\0")[: 32 * count] if count else b""
    chunk = ChunkPages(b"no digest of anything, 32 bytes.", size, numbers, memoryview(plain),
                       memoryview(siblings))  # fmt: skip
    assert prove([chunk]) == [False]


def seeds() -> list[bytes]:
    """Artifacts, tables alone, and pages with their proofs."""
    frames = [
        FrameContent(b"s" * 32, b"a" * 8192, (PageRange(0, 1, 2),), (PageRange(0, 1, 2),)),
        FrameContent(b"", b"b" * 4096, (PageRange(1, 9, 1),), (PageRange(1, 0, 1),)),
    ]
    whole = encode(bytes(32), ["11" * 32, "22" * 32], [b"/a", b"/b/c"], frames)
    tables = struct.pack("<5I", 1, 1, 1, 1, 3) + bytes(32)
    tables += struct.pack("<4I32s", 9, 1, 1, 1, bytes(32)) + struct.pack("<6I", *(0, 1, 2) * 2)
    label = b'name\n["node","-v"]\nsha256:' + b"1" * 64 + b" 77"
    profile = b'# lamina start profile 1\n# command: ["a"]\n0-3,7 /bin/a\n* /etc/b\\n\n'
    return [label, profile, whole, tables + b"/a\0", bytes((0, 9, 0, 0, 1, 2, 3, 4)) + b"p" * 9000]
