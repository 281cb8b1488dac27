"""Layers with a table of contents, written as the tools for eStargz and zstd:chunked do.

Sources: the eStargz document of stargz-snapshotter; the zstd:chunked format of containers/storage.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import math
import random
import tarfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

import zstandard

ESTARGZ_DIGEST = "containerd.io/snapshot/stargz/toc.digest"
CHUNKED_CHECKSUM = "io.github.containers.zstd-chunked.manifest-checksum"
CHUNKED_POSITION = "io.github.containers.zstd-chunked.manifest-position"
STARGZ_CHECKSUM = "io.containers.zstd-chunked.manifest-checksum"
STARGZ_POSITION = "io.containers.zstd-chunked.manifest-position"
ESTARGZ_CHUNK_BYTES = 1 << 20

TYPES = {
    tarfile.REGTYPE: "reg",
    tarfile.LNKTYPE: "hardlink",
    tarfile.SYMTYPE: "symlink",
    tarfile.CHRTYPE: "char",
    tarfile.BLKTYPE: "block",
    tarfile.DIRTYPE: "dir",
    tarfile.FIFOTYPE: "fifo",
}


class LazyLayer(NamedTuple):
    """A layer as pushed, and the annotations that its descriptor gets."""

    data: bytes
    annotations: dict[str, str]


def estargz(
    data: bytes,
    chunk_bytes: int = ESTARGZ_CHUNK_BYTES,
    share_bytes: int = 0,
    change: Callable[[list[dict[str, Any]]], None] = lambda _: None,
) -> LazyLayer:
    """Compress a tar stream as eStargz.

    Parts of files share a gzip member until it has ``share_bytes``.  ``change`` may falsify the
    table before it is written.
    """
    out, entries = in_parts(data, chunk_bytes, share_bytes, gzip_member)
    change(entries)
    table = json.dumps({"version": 1, "entries": entries}, indent="\t").encode()
    contents = io.BytesIO()
    with tarfile.open(fileobj=contents, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        info = tarfile.TarInfo("stargz.index.json")
        info.mode, info.size = 0, len(table)
        tar.addfile(info, io.BytesIO(table))
    table_offset = len(out)
    out += gzip.compress(contents.getvalue(), mtime=0) + estargz_footer(table_offset)
    return LazyLayer(bytes(out), {ESTARGZ_DIGEST: "sha256:" + hashlib.sha256(table).hexdigest()})


def gzip_member(data: bytes) -> bytes:
    """Compress as eStargz does."""
    return gzip.compress(data, 6, mtime=0)


def in_parts(
    data: bytes, chunk_bytes: int, share_bytes: int, compress: Callable[[bytes], bytes]
) -> tuple[bytearray, list[dict[str, Any]]]:
    """Compress a tar stream so that each part of a file is found by itself; return the entries that
    tell where, as well.
    """
    out = bytearray()
    entries: list[dict[str, Any]] = []
    pending = b""
    for raw, info, payload in members(data):
        pending += raw
        entry = described(info, hashlib.sha256(payload).hexdigest() if info.isreg() else "")
        entries.append(entry)
        for start in range(0, len(payload), chunk_bytes):
            if len(pending) >= share_bytes:
                out += compress(pending)
                pending = b""
            part = payload[start : start + chunk_bytes]
            if start:
                entry = {"name": info.name, "type": "chunk", "chunkOffset": start}
                entries.append(entry)
            entry |= {"offset": len(out), "innerOffset": len(pending)}
            entry["chunkDigest"] = "sha256:" + hashlib.sha256(part).hexdigest()
            if len(part) == chunk_bytes:
                entry["chunkSize"] = chunk_bytes
            pending += part
        pending += bytes(-len(payload) % tarfile.BLOCKSIZE)
    out += compress(pending)
    return out, entries


def stargz_chunked(
    data: bytes,
    chunk_bytes: int = ESTARGZ_CHUNK_BYTES,
    share_bytes: int = 0,
    change: Callable[[list[dict[str, Any]]], None] = lambda _: None,
) -> LazyLayer:
    """Compress a tar stream as zstd:chunked in the form of stargz's library: even parts, times in
    seconds, annotations and a footer of its own.
    """
    out, entries = in_parts(data, chunk_bytes, share_bytes, zstandard.compress)
    change(entries)
    table = json.dumps({"version": 1, "entries": entries}, indent="\t").encode()
    stored = zstandard.compress(table)
    numbers = (len(out) + 8, len(stored), len(table), 1)
    out += skippable_frame(stored)
    out += skippable_frame(b"".join(word.to_bytes(8, "little") for word in numbers) + b"GnUlInUx")
    annotations = {
        ESTARGZ_DIGEST: "sha256:" + hashlib.sha256(table).hexdigest(),
        STARGZ_CHECKSUM: "sha256:" + hashlib.sha256(stored).hexdigest(),
        STARGZ_POSITION: ":".join(map(str, numbers)),
    }
    return LazyLayer(bytes(out), annotations)


def estargz_footer(table_offset: int) -> bytes:
    """Return the 51 bytes of an empty gzip member that tell where the table begins."""
    field = f"{table_offset:016x}STARGZ".encode()
    extra = b"SG" + len(field).to_bytes(2, "little") + field
    header = b"\x1f\x8b\x08\x04" + bytes(4) + b"\0\xff" + len(extra).to_bytes(2, "little")
    return header + extra + b"\1\0\0\xff\xff" + bytes(8)


def zstd_chunked(
    data: bytes,
    cut_bytes: int = 64 << 10,
    change: Callable[[list[dict[str, Any]]], None] = lambda _: None,
) -> LazyLayer:
    """Compress a tar stream as zstd:chunked; files are cut about every ``cut_bytes``."""
    out = bytearray()
    entries: list[dict[str, Any]] = []
    pending = b""
    for raw, info, payload in members(data):
        pending += raw
        entry = described(info, hashlib.sha256(payload).hexdigest() if payload else "")
        if info.mtime % 1:
            # Only the tables of stargz have whole seconds.
            entry["modtime"] = datetime.fromtimestamp(info.mtime, UTC).isoformat()
        chunks = [entry]
        if payload:
            out += zstandard.compress(pending)
            pending = b""
            cuts = cut_points(len(payload), cut_bytes)
            chunks += [{"type": "chunk", "name": info.name} for _ in cuts[1:]]
            places = zip(chunks, cuts, [*cuts[1:], len(payload)], strict=True)
            entry["offset"] = len(out)
            for chunk, start, end in places:
                part = payload[start:end]
                if len(cuts) > 1:
                    chunk |= {"offset": len(out), "chunkOffset": start, "chunkSize": len(part)}
                    chunk["chunkDigest"] = "sha256:" + hashlib.sha256(part).hexdigest()
                    if not part.strip(b"\0"):
                        chunk["chunkType"] = "zeros"
                out += zstandard.compress(part)
            entry["endOffset"] = len(out)
        entries += chunks
        pending += bytes(-len(payload) % tarfile.BLOCKSIZE)
    out += zstandard.compress(pending + bytes(2 * tarfile.BLOCKSIZE))
    change(entries)
    table = json.dumps({"version": 1, "entries": entries}).encode()
    stored = zstandard.compress(table)
    numbers = (len(out) + 8, len(stored), len(table), 1)
    out += skippable_frame(stored)
    words = (*numbers, 0, 0, 0)
    footer = b"".join(word.to_bytes(8, "little") for word in words) + b"GNUlInUx"
    out += skippable_frame(footer)
    annotations = {
        CHUNKED_CHECKSUM: "sha256:" + hashlib.sha256(stored).hexdigest(),
        CHUNKED_POSITION: ":".join(map(str, numbers)),
    }
    return LazyLayer(bytes(out), annotations)


def skippable_frame(data: bytes) -> bytes:
    """Return data that zstd decoders pass over."""
    return b"\x50\x2a\x4d\x18" + len(data).to_bytes(4, "little") + data


def cut_points(size: int, about: int) -> list[int]:
    """Return where the chunks of a file begin, as uneven as a rolling checksum makes them."""
    dice = random.Random(size)
    cuts = [0]
    while (end := cuts[-1] + dice.randint(about // 2, about + about // 2)) < size:
        cuts.append(end)
    return cuts


def members(data: bytes) -> Iterator[tuple[bytes, tarfile.TarInfo, bytes]]:
    """Yield the headers, the entry and the data of each member of a tar stream."""
    end = 0
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for info in tar:
            size = info.size if info.isreg() else 0
            begin = info.offset_data
            yield data[end:begin], info, data[begin : begin + size]
            end = info.offset_data + size + (-size % tarfile.BLOCKSIZE)


def described(info: tarfile.TarInfo, digest: str) -> dict[str, Any]:
    """Return the entry of the table that both formats have."""
    seconds = math.floor(info.mtime + 0.5)
    when = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    entry: dict[str, Any] = {
        "name": info.name + "/" * info.isdir(),
        "type": TYPES[info.type],
        "size": info.size if info.isreg() else 0,
        "modtime": when if math.floor(info.mtime) else "",
        "linkName": info.linkname,
        "mode": info.mode,
        "uid": info.uid,
        "gid": info.gid,
        "devMajor": info.devmajor,
        "devMinor": info.devminor,
        "xattrs": {
            name.removeprefix("SCHILY.xattr."): base64.b64encode(value.encode()).decode()
            for name, value in info.pax_headers.items()
            if name.startswith("SCHILY.xattr.")
        },
        "digest": f"sha256:{digest}" if digest else "",
    }
    return {name: value for name, value in entry.items() if value}
