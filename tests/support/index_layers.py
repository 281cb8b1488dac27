"""Layers in every kind of compression that an index can be made of, and the real nydus-image."""

from __future__ import annotations

import gzip
import hashlib
import os
import random
import subprocess
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import zstandard

from lamina.blob.framing import read_bootstrap
from tests.support.layers import Item, folder, hard_link, symlink, tar_bytes
from tests.support.lazy_layers import estargz, zstd_chunked

FRAME_BYTES = 64 << 10


def content(size: int, seed: int) -> bytes:
    """Return bytes that compress to about a half, with matches near and far."""
    dice = random.Random(seed)
    vocabulary = [dice.randbytes(dice.randint(3, 14)) for _ in range(300)]
    parts: list[bytes] = []
    length = 0
    while length < size:
        part = dice.choice(vocabulary) if dice.random() < 0.9 else dice.randbytes(9)
        parts.append(part)
        length += len(part)
    return b"".join(parts)[:size]


@cache
def lower_layer() -> bytes:
    """Return a tar stream of many small files and a few large ones."""
    items = [folder("d"), folder("d/e", 0o700), symlink("d/link", "e/../big")]
    items += [Item(f"d/{number:03}", content(number * 37, number)) for number in range(150)]
    items += [Item("d/big", content(3_400_001, 7)), hard_link("d/e/hard", "d/big")]
    items += [Item("d/zeros", bytes(1_500_000)), Item("d/twice", content(3_400_001, 7))]
    items += [Item("d/empty"), Item("d/gone", b"gone")]
    items += [Item(f"x/{number}", content(4096 * number, number + 500)) for number in range(20)]
    return tar_bytes(items)


@cache
def upper_layer() -> bytes:
    """Return a tar stream that hides one file of the lower layer and replaces another."""
    return tar_bytes(
        [
            folder("d", 0o711),
            Item("d/.wh.gone"),
            Item("d/007", b"seven"),
            Item("new", content(200_000, 99), xattrs={"user.x": "y"}),
        ]
    )


def gzip_blocks(data: bytes, part: int = 128 << 10) -> bytes:
    """Compress as pigz does: parts that end at a byte, in one member."""
    engine = zlib.compressobj(6, zlib.DEFLATED, 31)
    parts = []
    for start in range(0, len(data), part):
        parts.append(engine.compress(data[start : start + part]))
        parts.append(engine.flush(zlib.Z_SYNC_FLUSH))
    return b"".join(parts) + engine.flush()


def gzip_members(data: bytes, part: int = 0xFF00) -> bytes:
    """Compress as bgzip does: members of 64 KiB, and an empty one at the end."""
    members = [gzip.compress(data[at : at + part], mtime=0) for at in range(0, len(data), part)]
    return b"".join(members) + gzip.compress(b"", mtime=0)


def zstd_frames(data: bytes, part: int = FRAME_BYTES) -> bytes:
    """Compress in independent frames."""
    return b"".join(zstandard.compress(data[at : at + part]) for at in range(0, len(data), part))


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "gzip -1": lambda data: gzip.compress(data, 1, mtime=0),
    "gzip -6": lambda data: gzip.compress(data, 6, mtime=0),
    "gzip -9": lambda data: gzip.compress(data, 9, mtime=0),
    "gzip stored": lambda data: gzip.compress(data, 0, mtime=0),
    "pigz": gzip_blocks,
    "bgzip": gzip_members,
    "zstd one frame": zstandard.compress,
    "zstd frames": zstd_frames,
    "estargz": lambda data: estargz(data).data,
    "zstd:chunked": lambda data: zstd_chunked(data).data,
    "tar": bytes,
}


def media_type(data: bytes) -> str:
    """Return the media type of a compressed layer."""
    suffix = {b"\x1f\x8b": "+gzip", b"\x28\xb5": "+zstd"}.get(data[:2], "")
    return f"application/vnd.oci.image.layer.v1.tar{suffix}"


def nydus_targz_ref(program: Path, layers: Sequence[bytes], work: Path) -> Path:
    """Index layers as nydusify does; return the merged bootstrap, with all blobs in ``blobs``."""
    blobs = work / "blobs"
    blobs.mkdir(parents=True)
    boots, metas = [], []
    for layer in layers:
        name = hashlib.sha256(layer).hexdigest()
        (blobs / name).write_bytes(layer)
        meta = work / f"{name}.meta"
        command: list[str | Path] = [program, "create", "--type", "targz-ref", "--blob-inline-meta"]
        command += ["--features", "blob-toc", "--whiteout-spec", "none", "--blob", meta]
        subprocess.run([*command, blobs / name], check=True, capture_output=True, timeout=60)
        data = meta.read_bytes()
        boot = read_bootstrap(lambda at, size, data=data: data[at : at + size], len(data))  # type: ignore[misc]
        assert boot is not None
        boots.append(work / name)
        boots[-1].write_bytes(boot)
        metas.append(data)
        os.rename(meta, blobs / hashlib.sha256(data).hexdigest())
    merged = work / "merged.boot"
    merge: list[str | Path] = [program, "merge", "-B", merged]
    merge += ["--blob-digests", ",".join(hashlib.sha256(meta).hexdigest() for meta in metas)]
    merge += ["--blob-sizes", ",".join(str(len(meta)) for meta in metas)]
    subprocess.run([*merge, *boots], check=True, capture_output=True, timeout=60)
    return merged
