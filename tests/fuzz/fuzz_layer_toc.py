"""Tables of contents of eStargz and zstd:chunked: any bytes give a layer that can be indexed, or an
error.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from typing import Any

import zstandard

from lamina.archive import estargz, zstd_chunked
from lamina.archive.layer_toc import LayerToc
from lamina.build.index_table import index_blob
from lamina.build.layer_tocs import common_chunk_size, indexed_by_table
from lamina.build.plan import KnownChunks, plan_layer
from lamina.codec.digest import Digester
from lamina.errors import Error

LAYER_BYTES = 1 << 40
DIGEST = "sha256:" + "5a" * 32


def target(data: bytes) -> None:
    """Feed the bytes to both parsers, as JSON and as they come, and index what they find."""
    for parse in (_estargz, _estargz_member, _chunked, _chunked_frame):
        try:
            _index(parse(data))
        except Error:
            continue
    try:
        offset, size = estargz.toc_place(data[-estargz.FOOTER_BYTES :], len(data))
        assert 0 <= offset < offset + size < len(data)
    except Error:
        pass
    try:
        offset, size, _ = zstd_chunked.toc_place(data[:60].decode("latin-1"), 1 << 30)
        assert 0 < offset < offset + size <= 1 << 30
    except Error:
        pass


def _estargz(table: bytes) -> LayerToc:
    stored = gzip.compress(_member(table), 1, mtime=0)
    return estargz.parse_toc(stored, 1 << 30, "sha256:" + hashlib.sha256(table).hexdigest())


def _estargz_member(stored: bytes) -> LayerToc:
    return estargz.parse_toc(stored, 1 << 30, DIGEST)


def _chunked(table: bytes) -> LayerToc:
    stored = zstandard.compress(table)
    digest = "sha256:" + hashlib.sha256(stored).hexdigest()
    return zstd_chunked.parse_toc(stored, 1 << 30, len(table), digest)


def _chunked_frame(stored: bytes) -> LayerToc:
    digest = "sha256:" + hashlib.sha256(stored).hexdigest()
    return zstd_chunked.parse_toc(stored, 1 << 30, 1000, digest)


def _member(table: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        info = tarfile.TarInfo("stargz.index.json")
        info.size = len(table)
        tar.addfile(info, io.BytesIO(table))
    return buffer.getvalue()


def _index(table: LayerToc) -> None:
    chunk_size = common_chunk_size(table.files)
    layer = indexed_by_table(table, chunk_size, LAYER_BYTES)
    assert len(list(layer.scan.entries())) >= len(table.files)
    plan = plan_layer(0, layer.scan, KnownChunks(), 0)
    if plan.chunk_count:
        blob = index_blob("0" * 64, layer, plan, chunk_size, Digester.SHA256)
        assert not blob.entry.is_read_whole


def seeds() -> list[bytes]:
    """Tables of both kinds, whole and cut."""
    entries: list[dict[str, Any]] = [
        {"name": "d/", "type": "dir", "mode": 0o755, "modtime": "2024-01-02T03:04:05Z"},
        {"name": "d/a", "type": "reg", "size": 9, "offset": 30, "endOffset": 60, "uid": 7},
        {"name": "d/b", "type": "reg", "size": 9000, "offset": 70, "chunkSize": 4096},
        {"name": "d/b", "type": "chunk", "offset": 90, "chunkOffset": 4096, "chunkSize": 4096},
        {"name": "d/b", "type": "chunk", "offset": 99, "chunkOffset": 8192, "innerOffset": 3},
        {"name": "d/l", "type": "symlink", "linkName": "../d/a", "xattrs": {"user.a": "aGk="}},
        {"name": "d/h", "type": "hardlink", "linkName": "d/a"},
        {"name": "d/c", "type": "char", "devMajor": 1, "devMinor": 3, "modtime": ""},
    ]
    for entry in entries:
        if entry["type"] in ("reg", "chunk"):
            entry |= {"digest": DIGEST, "chunkDigest": DIGEST}
    table = json.dumps({"version": 1, "entries": entries}).encode()
    single = json.dumps({"version": 1, "entries": entries[:2]}).encode()
    footer = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x1a\0SG\x16\0" + b"%016x" % 9 + b"STARGZ"
    return [
        table,
        single,
        gzip.compress(_member(single), mtime=0),
        zstandard.compress(single),
        b"10:200:300:1",
        bytes(100) + footer + b"\1\0\0\xff\xff" + bytes(8),
    ]
