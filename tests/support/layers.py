"""Small layers and OCI layouts made in code: tar archives entry by entry, compressed as wished."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zstandard

FILE, LINK, SYMLINK = tarfile.REGTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE
CHARACTER, BLOCK, DIRECTORY, FIFO = (
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.DIRTYPE,
    tarfile.FIFOTYPE,
)
LAYER_TYPES = {
    "gzip": "application/vnd.oci.image.layer.v1.tar+gzip",
    "zstd": "application/vnd.oci.image.layer.v1.tar+zstd",
    "none": "application/vnd.oci.image.layer.v1.tar",
}


@dataclass
class Item:
    """One entry of a layer."""

    path: str
    data: bytes = b""
    kind: bytes = FILE
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: float = 1_700_000_000
    link: str = ""
    device: tuple[int, int] = (0, 0)
    xattrs: dict[str, str] = field(default_factory=dict)

    def info(self) -> tarfile.TarInfo:
        """The entry as tarfile has it."""
        info = tarfile.TarInfo(self.path)
        info.size = len(self.data)
        info.type = self.kind
        info.mode, info.uid, info.gid, info.mtime = self.mode, self.uid, self.gid, self.mtime
        info.linkname = self.link
        info.devmajor, info.devminor = self.device
        info.pax_headers = {f"SCHILY.xattr.{name}": value for name, value in self.xattrs.items()}
        return info


def folder(path: str, mode: int = 0o755, **more: Any) -> Item:
    """A directory."""
    return Item(path, kind=DIRECTORY, mode=mode, **more)


def symlink(path: str, target: str, **more: Any) -> Item:
    """A symbolic link."""
    return Item(path, kind=SYMLINK, link=target, mode=0o777, **more)


def hard_link(path: str, target: str) -> Item:
    """A hard link."""
    return Item(path, kind=LINK, link=target)


def whiteout(path: str) -> Item:
    """What hides ``path`` in the layers below."""
    head, _, name = path.rpartition("/")
    return Item(f"{head}/.wh.{name}" if head else f".wh.{name}", mode=0)


def opaque(path: str) -> Item:
    """What hides everything in ``path`` in the layers below."""
    return Item(f"{path}/.wh..wh..opq" if path else ".wh..wh..opq", mode=0)


def tar_bytes(items: Sequence[Item], tar_format: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar archive of the items."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as tar:
        for item in items:
            tar.addfile(item.info(), io.BytesIO(item.data))
    return buffer.getvalue()


def compressed(data: bytes, compression: str) -> bytes:
    """A layer's bytes as pushed."""
    if compression == "gzip":
        return gzip.compress(data, 1, mtime=0)
    if compression == "zstd":
        return zstandard.ZstdCompressor(level=1).compress(data)
    return data


def add_blob(layout: Path, media_type: str, data: bytes) -> dict[str, Any]:
    """Store a blob in a layout and return its descriptor."""
    digest = hashlib.sha256(data).hexdigest()
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    (blobs / digest).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}


def add_image(
    layout: Path,
    layers: Sequence[bytes],
    compression: str = "gzip",
    architecture: str = "amd64",
    config: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Store an image of tar layers and return its manifest's descriptor."""
    diff_ids = [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers]
    document = {
        "architecture": architecture,
        "os": "linux",
        "config": config or {"Cmd": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": [{"created_by": "test"} for _ in layers],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": add_blob(
            layout, "application/vnd.oci.image.config.v1+json", json.dumps(document).encode()
        ),
        "layers": [
            add_blob(layout, LAYER_TYPES[compression], compressed(layer, compression))
            for layer in layers
        ],
    }
    return add_blob(layout, manifest["mediaType"], json.dumps(manifest).encode())


def write_index(layout: Path, tag: str, descriptor: dict[str, Any]) -> None:
    """Make the layout valid, with one tag."""
    named = {**descriptor, "annotations": {"org.opencontainers.image.ref.name": tag}}
    (layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [named]}))


def oci_layout(
    layout: Path,
    layers: Sequence[Sequence[Item] | bytes],
    compression: str = "gzip",
    tag: str = "latest",
) -> str:
    """Make a layout with one image and return its reference."""
    tars = [layer if isinstance(layer, bytes) else tar_bytes(layer) for layer in layers]
    write_index(layout, tag, add_image(layout, tars, compression))
    return f"oci:{layout}:{tag}"
