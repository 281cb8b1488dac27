"""Images of any shape made in code, streamed to disk and kept in the cache: many files, many bytes,
many layers.

Half of each block of 4 KiB is noise and half is text, so that compressing finds something to do;
no two blocks are alike.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lamina.archive.tar import DIRECTORY, REGULAR, Entry
from lamina.archive.tar_writer import END_MARK, encode_entry, padding

BLOCK_BYTES = 4096
FILES_PER_FOLDER = 100
WRITE_BYTES = 1 << 20
WORDS = [
    "layer", "chunk", "piece", "pack", "window", "table", "digest", "inode", "block", "stream",
    "queue", "column", "reader", "writer", "offset", "extent",
]  # fmt: skip
TEXT = " ".join(random.Random(1).choices(WORDS, k=4000)).encode()
OCI = "application/vnd.oci.image"


class Shape(NamedTuple):
    """An image: each of ``layers`` has ``files`` of ``file_bytes``, some a folder."""

    layers: int
    files: int
    file_bytes: int
    folder_files: int = FILES_PER_FOLDER

    @property
    def plain_bytes(self) -> int:
        """Bytes of all files."""
        return self.layers * self.files * self.file_bytes

    @property
    def name(self) -> str:
        """What it is called in tables and in the cache."""
        size = self.file_bytes
        unit = f"{size >> 20} MiB" if size >= 1 << 20 else f"{size >> 10} KiB"
        name = f"{self.layers} x {self.files} x {unit}"
        few = self.folder_files != FILES_PER_FOLDER
        return f"{name}, {self.folder_files} a folder" if few else name


def scale_layout(shape: Shape) -> Path:
    """The OCI layout of an image of a shape, made if it is not in the cache."""
    root = Path(os.environ.get("LAMINA_CACHE") or Path.home() / ".cache" / "lamina-dev")
    folder = root / "scale" / shape.name.replace(" ", "")
    if not (folder / "index.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        _make(shape, folder)
    return folder


def _make(shape: Shape, folder: Path) -> None:
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    layers, diff_ids = [], []
    for number in range(shape.layers):
        descriptor, diff_id = _write_layer(blobs, _tar(shape, number))
        layers.append(descriptor)
        diff_ids.append(diff_id)
    rootfs = {"type": "layers", "diff_ids": diff_ids}
    config = {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs}
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{OCI}.manifest.v1+json",
        "config": _write_json(blobs, f"{OCI}.config.v1+json", config),
        "layers": layers,
    }
    named = _write_json(blobs, f"{OCI}.manifest.v1+json", manifest)
    named["annotations"] = {"org.opencontainers.image.ref.name": "latest"}
    (folder / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [named]}))


def _tar(shape: Shape, layer: int) -> Iterator[bytes]:
    noise = random.Random(f"{shape.name} {layer}")
    for number in range(shape.files):
        folder = f"layer{layer:02}/folder{number // shape.folder_files:05}"
        if not number % shape.folder_files:
            yield _header(folder, DIRECTORY, 0)
        yield _header(f"{folder}/file{number:07}", REGULAR, shape.file_bytes)
        for start in range(0, shape.file_bytes, WRITE_BYTES):
            yield _content(noise, min(WRITE_BYTES, shape.file_bytes - start))
        yield padding(shape.file_bytes)
    yield END_MARK


def _header(path: str, kind: int, size_bytes: int) -> bytes:
    mode = 0o755 if kind == DIRECTORY else 0o644
    stamp = 1_700_000_000
    return encode_entry(
        Entry(path.encode(), kind, mode, 0, 0, stamp, 0, size_bytes, b"", 0, 0, {}, 0)
    )


def _content(noise: random.Random, size_bytes: int) -> bytes:
    half = BLOCK_BYTES // 2
    random_bytes = noise.randbytes(half * -(-size_bytes // BLOCK_BYTES))
    place = random_bytes[0] * half // 64
    text = TEXT[place : place + half]
    blocks = [random_bytes[at : at + half] + text for at in range(0, len(random_bytes), half)]
    return b"".join(blocks)[:size_bytes]


def _write_layer(blobs: Path, tar: Iterator[bytes]) -> tuple[dict[str, Any], str]:
    deflate = zlib.compressobj(1, wbits=31)
    plain_digest, digest, size = hashlib.sha256(), hashlib.sha256(), 0
    temporary = blobs / "layer.new"
    with temporary.open("wb") as file:
        for part in tar:
            plain_digest.update(part)
            data = deflate.compress(part)
            digest.update(data)
            size += file.write(data)
        data = deflate.flush()
        digest.update(data)
        size += file.write(data)
    temporary.rename(blobs / digest.hexdigest())
    descriptor = {
        "mediaType": f"{OCI}.layer.v1.tar+gzip",
        "digest": f"sha256:{digest.hexdigest()}",
        "size": size,
    }
    return descriptor, f"sha256:{plain_digest.hexdigest()}"


def _write_json(blobs: Path, media_type: str, document: dict[str, Any]) -> dict[str, Any]:
    data = json.dumps(document).encode()
    digest = hashlib.sha256(data).hexdigest()
    (blobs / digest).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}
