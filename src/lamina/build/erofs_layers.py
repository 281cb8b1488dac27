"""An ordinary image with the same layers as EROFS file systems: ``lamina convert --layers erofs``.

containerd's EROFS snapshotter takes such layers as they are, and mounts them without unpacking.
Each is for overlayfs: whiteouts are character devices, and what is hidden is not in the layer.

Sources: containerd 2.4, ``core/images/converter/erofs`` (media types, ``os.features``, diff_ids)
and ``plugins/diff/erofs``.
"""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from array import array
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from lamina.archive.erofs_layer import MEDIA_TYPE, ZSTD_MEDIA_TYPE
from lamina.build.budget import Budget
from lamina.build.layer_stream import layer_stream
from lamina.build.layer_tree import apply_layer
from lamina.build.merge import MergedTree
from lamina.build.options import work_folder
from lamina.build.overlay_tree import overlay_tree
from lamina.build.scan import scan_layer
from lamina.build.toc_annotations import rounds_times
from lamina.codec.digest import Digester
from lamina.erofs.plain_writer import PlainLayout, lay_out_plain
from lamina.errors import FormatError, UsageError
from lamina.oci.manifest import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    ImageConfig,
    ImageIndex,
    Manifest,
    Platform,
    describe,
    encode,
    parse_document,
)
from lamina.oci.platform import parse_platform
from lamina.posix.write import write_all
from lamina.registry.resolve import check_layers, read_config, read_ordinary

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lamina.registry.repository import Repository
    from lamina.registry.resolve import Found

OS_FEATURE: Final = "erofs"
_CHUNK_SIZE: Final = 16 << 20
_LAYER_SHIFT: Final = 48
_OFFSET_MASK: Final = (1 << _LAYER_SHIFT) - 1
_COPY_BYTES: Final = 1 << 20
_ZSTD_LEVEL: Final = 3


class ErofsOptions(NamedTuple):
    """``is_compressed``: the layers as pushed are in zstd; ``work_dir`` takes layers meanwhile."""

    is_compressed: bool = False
    platforms: tuple[str, ...] = ()
    work_dir: str | None = None
    max_layer_bytes: int = 1 << 40


class ErofsLayer(NamedTuple):
    """What became of a layer; ``diff_id`` is the digest of the file system."""

    source_digest: str
    descriptor: Descriptor
    diff_id: str


class ErofsImage(NamedTuple):
    """An image that was made."""

    platform: str
    source_digest: str
    manifest: Descriptor
    layers: list[ErofsLayer]


def convert_layers(
    source: Repository, destination: Repository, options: ErofsOptions
) -> tuple[Descriptor, list[ErofsImage]]:
    """Push the image that *source* names, of the wanted platforms, to *destination*.

    Raises UsageError for an image that is native or has such layers already, and what reading the
    layers and pushing raises.
    """
    index, chosen = read_ordinary(source, [parse_platform(text) for text in options.platforms])
    tag = destination.reference.tag
    single = index is None or len(chosen) == 1
    images = [_convert(source, destination, options, found, tag if single else None)
              for found in chosen]  # fmt: skip
    if index is None or single:
        return images[0].manifest, images
    document = ImageIndex(
        schema_version=2,
        media_type=OCI_INDEX,
        manifests=tuple(image.manifest for image in images),
        annotations=index.annotations,
    )
    return destination.push_manifest(tag, OCI_INDEX, encode(document)), images


def _convert(
    source: Repository,
    destination: Repository,
    options: ErofsOptions,
    found: Found,
    tag: str | None,
) -> ErofsImage:
    manifest = found.manifest
    if manifest.is_nydus or manifest.is_sealed or manifest.is_encrypted:
        raise UsageError(
            f"{source.reference} is not an ordinary image",
            hint="layers of their own are made of the image that it was converted from",
        )
    config = read_config(source, manifest)
    check_layers(manifest, config, str(source.reference))
    with _LayerWriter(source, destination, options) as writer:
        layers = [
            writer.convert(layer, diff_id)
            for layer, diff_id in zip(manifest.layers, config.rootfs.diff_ids, strict=True)
        ]
    platform = found.descriptor.platform or config.platform
    featured = _with_feature(platform)
    new_config = _config(config.raw, [layer.diff_id for layer in layers], featured.os_features)
    described = describe(OCI_CONFIG, new_config)
    _push(destination, described, new_config)
    document = Manifest(
        schema_version=2,
        media_type=OCI_MANIFEST,
        config=described,
        layers=tuple(layer.descriptor for layer in layers),
        annotations=manifest.annotations,
    )
    pushed = destination.push_manifest(tag, OCI_MANIFEST, encode(document))
    named = Descriptor(
        media_type=pushed.media_type, digest=pushed.digest, size=pushed.size, platform=featured
    )
    return ErofsImage(str(platform), found.descriptor.digest, named, layers)


def _with_feature(platform: Platform) -> Platform:
    features = dict.fromkeys((*platform.os_features, OS_FEATURE))
    return Platform(
        os=platform.os,
        architecture=platform.architecture,
        variant=platform.variant,
        os_version=platform.os_version,
        os_features=tuple(features),
    )


def _config(source: bytes, diff_ids: Sequence[str], features: Sequence[str]) -> bytes:
    document = parse_document(source, "image configuration", ImageConfig)
    rootfs = document.get("rootfs")
    if not isinstance(rootfs, dict | None):
        raise FormatError("the image configuration is malformed: its rootfs is")
    changes: dict[str, Any] = {
        "rootfs": {"type": "layers", **(rootfs or {}), "diff_ids": list(diff_ids)},
        "os.features": list(features),
    }
    return encode({**document, **changes})


def _push(destination: Repository, descriptor: Descriptor, data: bytes) -> None:
    if not destination.has_blob(descriptor.digest, descriptor.size):
        destination.push_blob(descriptor, io.BytesIO(data))


class _LayerWriter:
    """Converts the layers of an image in their order."""

    def __init__(self, source: Repository, destination: Repository, options: ErofsOptions) -> None:
        self._source = source
        self._destination = destination
        self._options = options
        self._stack = ExitStack()
        budget = Budget()
        self._stack.callback(budget.close)
        self._tree = MergedTree(budget.share())
        self._spools: list[int] = []

    def __enter__(self) -> _LayerWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def convert(self, layer: Descriptor, diff_id: str) -> ErofsLayer:
        """Make a file system of a layer, and push it."""
        # Kept to the end: a layer above may give a file another name.
        spool = self._stack.enter_context(self._file())
        number = len(self._spools)
        self._spools.append(spool.fileno())
        with (
            self._source.open_blob(layer) as raw,
            layer_stream(
                raw, layer, diff_id, self._options.max_layer_bytes, self._options.work_dir
            ) as tar,
        ):
            scan = scan_layer(tar, spool, _CHUNK_SIZE, Digester.SHA256, self._tree.budget)
            while raw.read(_COPY_BYTES):
                pass
        if rounds_times(layer):
            scan.round_times()
        # In place of chunk indexes files get the layer and the place in its archive.
        places = array("Q", [number << _LAYER_SHIFT | offset for offset in scan.chunk_offsets])
        applied = apply_layer(self._tree, scan, places.tobytes(), lambda node: node)
        layout = lay_out_plain(overlay_tree(applied.own.root), _CHUNK_SIZE, diff_id.encode())
        self._tree.pack(applied.take_own_root())
        with self._file() as file:
            made = self._write(layout, file)
            return self._pushed(layer, made, layout.size_bytes, file)

    def _file(self) -> io.FileIO:
        folder = work_folder(self._options.work_dir)
        return tempfile.TemporaryFile(buffering=0, dir=folder)

    def _write(self, layout: PlainLayout, file: io.FileIO) -> str:
        """Write a file system; return its digest."""
        fd = file.fileno()
        os.truncate(fd, layout.size_bytes)
        write_all(fd, layout.metadata, 0)
        for place, size, offset in layout.extents:
            spool = self._spools[place >> _LAYER_SHIFT]
            start = place & _OFFSET_MASK
            for done in range(0, size, _COPY_BYTES):
                data = os.pread(spool, min(_COPY_BYTES, size - done), start + done)
                write_all(fd, data, offset + done)
        return f"sha256:{hashlib.file_digest(_begin(file), 'sha256').hexdigest()}"

    def _pushed(self, layer: Descriptor, digest: str, size: int, file: io.FileIO) -> ErofsLayer:
        if not self._options.is_compressed:
            described = Descriptor(media_type=MEDIA_TYPE, digest=digest, size=size)
            self._push_file(described, file)
            return ErofsLayer(layer.digest, described, digest)
        import zstandard

        with self._file() as packed:
            compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_checksum=True)
            compressor.copy_stream(_begin(file), packed, size=size)
            stored = hashlib.file_digest(_begin(packed), "sha256").hexdigest()
            length = os.fstat(packed.fileno()).st_size
            described = Descriptor(
                media_type=ZSTD_MEDIA_TYPE, digest=f"sha256:{stored}", size=length
            )
            self._push_file(described, packed)
        return ErofsLayer(layer.digest, described, digest)

    def _push_file(self, described: Descriptor, file: io.FileIO) -> None:
        if not self._destination.has_blob(described.digest, described.size):
            self._destination.push_blob(described, _begin(file))


def _begin(file: io.FileIO) -> io.FileIO:
    file.seek(0)
    return file
