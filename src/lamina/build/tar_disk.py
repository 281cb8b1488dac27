"""A layer as an EROFS file system over its own uncompressed archive: ``--layout tarfs``.

containerd's EROFS differ makes the same of a layer in its tar index mode: nothing is unpacked, and
the archive stays what the diff_id of the layer is the digest of.
"""

from __future__ import annotations

import os
import tempfile
from array import array
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Final, NamedTuple

from lamina.archive.erofs_layer import is_erofs_layer
from lamina.build.budget import Budget
from lamina.build.layer_stream import layer_stream
from lamina.build.layer_tar import COPY_BYTES
from lamina.build.layer_tree import apply_layer
from lamina.build.merge import MergedTree
from lamina.build.overlay_tree import overlay_tree
from lamina.build.scan import TarStream, scan_layer
from lamina.build.toc_annotations import rounds_times
from lamina.codec.digest import Digester
from lamina.erofs.tar_index import TAR_BLOCK_BYTES, lay_out_tar_index
from lamina.errors import UnsupportedError, UsageError
from lamina.posix.write import write_all
from lamina.registry.resolve import check_layers, read_config, read_image
from lamina.store.files import replacing, store_errors

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lamina.archive.blocks import Block
    from lamina.oci.manifest import Descriptor, Platform
    from lamina.registry.repository import Repository

_CHUNK_SIZE: Final = 16 << 20
_MOST_BYTES: Final = 1 << 40


class TarDisk(NamedTuple):
    """What was made, in bytes; ``diff_id`` is the digest of the archive."""

    index_bytes: int
    tar_bytes: int
    diff_id: str


def write_tar_disk(
    repository: Repository,
    platform: str | Platform | None,
    layer: str,
    path: Path,
    tar: Path | None,
) -> TarDisk:
    """Write the file system of a layer to *path*, and its archive to *tar*, or behind it.

    *layer* is a number, 1 being the lowest, or a diff_id.  Raises UsageError, UnsupportedError for
    a layer that is no tar archive, or has sparse files in it, and what reading the layer raises.
    """
    manifest = read_image(repository, platform).manifest
    if manifest.is_nydus or manifest.is_sealed or manifest.is_encrypted:
        raise UsageError(f"{repository.reference} is no ordinary image, and has no archives")
    config = read_config(repository, manifest)
    check_layers(manifest, config, str(repository.reference))
    number = _number(layer, config.rootfs.diff_ids)
    named = repository, manifest.layers[number], config.rootfs.diff_ids[number]
    if is_erofs_layer(named[1].media_type):
        raise UnsupportedError(f"the layer {layer} is a file system already, and no archive")
    with ExitStack() as stack:
        stack.enter_context(store_errors(f"the disk {path}"))
        if tar is not None:
            spool = stack.enter_context(replacing(tar))
        else:
            file = tempfile.TemporaryFile(buffering=0, dir=path.absolute().parent)
            spool = stack.enter_context(file).fileno()
        index, size = _index(named, spool)
        fd = stack.enter_context(replacing(path))
        write_all(fd, index, 0)
        if tar is None:
            _copy(spool, fd, size, len(index))
    return TarDisk(len(index), size, named[2])


def _number(layer: str, diff_ids: Sequence[str]) -> int:
    number = int(layer) if layer.isascii() and layer.isdigit() else 0
    if 0 < number <= len(diff_ids):
        return number - 1
    if layer in diff_ids:
        return list(diff_ids).index(layer)
    raise UsageError(f"the image has {len(diff_ids)} layers, and none of them is {layer}")


def _index(named: tuple[Repository, Descriptor, str], spool: int) -> tuple[bytes, int]:
    """Copy the archive of a layer to *spool*; return the file system, and the archive's length."""
    repository, descriptor, diff_id = named
    with (
        closing(Budget()) as budget,
        repository.open_blob(descriptor) as raw,
        layer_stream(raw, descriptor, diff_id, _MOST_BYTES) as stream,
    ):
        tree = MergedTree(budget.share())
        copying = _Copying(stream, spool)
        scan = scan_layer(copying, None, _CHUNK_SIZE, Digester.SHA256, tree.budget)
        while raw.read(COPY_BYTES):
            pass
        if rounds_times(descriptor):
            scan.round_times()
        places = array("Q", scan.chunk_offsets).tobytes()
        applied = apply_layer(tree, scan, places, lambda node: node)
        root = overlay_tree(applied.own.root)
    made = lay_out_tar_index(root, _CHUNK_SIZE, copying.size_bytes, diff_id.encode())
    return made, copying.size_bytes


class _Copying:
    """An archive that is written down as it is read."""

    def __init__(self, stream: TarStream, fd: int) -> None:
        self._stream = stream
        self._fd = fd
        self.compression = stream.compression
        self.size_bytes = 0

    def read(self, size: int = -1, /) -> Block:
        data = self._stream.read(size)
        write_all(self._fd, data, self.size_bytes)
        self.size_bytes += len(data)
        return data


def _copy(source: int, target: int, size: int, offset: int) -> None:
    """Put an archive behind its file system, to the end of its last block."""
    for done in range(0, size, COPY_BYTES):
        write_all(target, os.pread(source, min(COPY_BYTES, size - done), done), offset + done)
    os.ftruncate(target, offset + -(-size // TAR_BLOCK_BYTES) * TAR_BLOCK_BYTES)
