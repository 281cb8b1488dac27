"""An unconverted OCI or Docker image as an :class:`~lamina.image.base.Image`: what unpacking it
would give.

Opening reads every layer once, into temporary files without a name; the tree is merged exactly as a
conversion merges it, and file contents are read from the tar streams.  So it takes as long as
unpacking does, and as much space.
"""

from __future__ import annotations

import os
import tempfile
from array import array
from collections.abc import Iterator
from contextlib import ExitStack
from typing import BinaryIO

from lamina.build.budget import Budget
from lamina.build.layer_stream import layer_stream
from lamina.build.layer_tree import apply_layer
from lamina.build.merge import MergedTree
from lamina.build.options import MAX_LAYER_BYTES, work_folder
from lamina.build.scan import scan_layer
from lamina.build.toc_annotations import rounds_times
from lamina.codec.digest import Digester
from lamina.erofs.tree import Child, Node
from lamina.errors import UsageError
from lamina.http.client_options import ClientOptions
from lamina.image.base import ImageBase, Stat, Where, below, shown
from lamina.image.errors import FileKindError, NotDirectoryError
from lamina.image.file import require_file
from lamina.oci.manifest import Descriptor, Platform
from lamina.oci.reference import Reference, parse_reference
from lamina.registry.open_repository import open_repository
from lamina.registry.repository import Repository
from lamina.registry.resolve import check_layers, read_config, read_image

CHUNK_SIZE = 16 << 20
LAYER_SHIFT = 48
OFFSET_MASK = (1 << LAYER_SHIFT) - 1


def open_source_image(
    reference: str | Reference,
    *,
    options: ClientOptions | None = None,
    platform: str | Platform | None = None,
    work_dir: str | None = None,
    max_layer_bytes: int = MAX_LAYER_BYTES,
    layers: int | None = None,
) -> SourceImage:
    """Open an OCI or Docker image that was not converted; all of its layers are read, or the
    lowest ``layers`` alone.

    ``platform`` chooses from an index, this machine's by default.  Raises what reading the image
    and its layers raises, and UsageError for a native image.
    """
    where = parse_reference(reference) if isinstance(reference, str) else reference
    with open_repository(where, options=options) as repository:
        manifest = read_image(repository, platform).manifest
        if manifest.is_nydus:
            raise UsageError(f"{where} is a native image, not an ordinary one")
        config = read_config(repository, manifest)
        check_layers(manifest, config, str(where))
        with ExitStack() as stack:
            budget = Budget()
            stack.callback(budget.close)
            tree = MergedTree(budget.share())
            spools = []
            for number, layer in enumerate(manifest.layers[:layers]):
                spool = stack.enter_context(
                    tempfile.TemporaryFile(buffering=0, dir=work_folder(work_dir))
                )
                layer_tar = repository, layer, config.rootfs.diff_ids[number]
                _apply(tree, number, layer_tar, spool, max_layer_bytes, work_dir)
                spools.append(spool.fileno())
            return SourceImage(tree.root, spools, stack.pop_all())


def _apply(
    tree: MergedTree,
    number: int,
    layer_tar: tuple[Repository, Descriptor, str],
    spool: BinaryIO,
    max_layer_bytes: int,
    work_dir: str | None,
) -> None:
    repository, layer, diff_id = layer_tar
    with (
        repository.open_blob(layer) as raw,
        layer_stream(raw, layer, diff_id, max_layer_bytes, work_dir) as stream,
    ):
        scan = scan_layer(stream, spool, CHUNK_SIZE, Digester.BLAKE3, tree.budget)
        while raw.read(1 << 20):
            pass
    if rounds_times(layer):
        scan.round_times()
    # In place of chunk indexes the nodes get the layer and the place in its tar stream.
    places = array("Q", [number << LAYER_SHIFT | offset for offset in scan.chunk_offsets])
    apply_layer(tree, scan, places.tobytes(), lambda node: node)


class SourceImage(ImageBase):
    """The merged tree of an ordinary image; the tar streams of its layers are temporary files."""

    def __init__(self, root: Node, spools: list[int], resources: ExitStack) -> None:
        """``spools`` are file descriptors of the tar streams; ``resources`` are closed with the
        image.
        """
        self._spools = spools
        self._resources = resources
        self._nodes: list[Node] = []
        self._numbers: dict[int, int] = {}
        self._names: list[int] = []
        for _, parent, child in root.walk_children():
            key = _key(child)
            if key not in self._numbers:
                self._numbers[key] = len(self._nodes)
                self._nodes.append(parent.node(child))
                self._names.append(0)
            self._names[self._numbers[key]] += 1

    @property
    def root(self) -> Stat:
        """Return the root directory."""
        return self._stat(b"/", 0)

    def child(self, directory: Stat, name: bytes) -> Stat | None:
        """Return the entry ``name`` of a directory, or None."""
        child = (self._nodes[directory.ino].children or {}).get(name)
        if child is None:
            return None
        return self._stat(below(directory, name), self._numbers[_key(child)])

    def scandir(self, where: Where) -> Iterator[tuple[bytes, Stat]]:
        """Yield (name, Stat) of a directory in byte order."""
        here = self.find(where)
        children = self._nodes[here.ino].children
        if children is None:
            raise NotDirectoryError(f"{shown(here.path)} is not a directory")
        for name in sorted(children):
            yield name, self._stat(below(here, name), self._numbers[_key(children[name])])

    def readlink(self, where: Where) -> bytes:
        """Return the target of a symbolic link; raises FileKindError if it is none."""
        here = self.find(where, follow_symlinks=False)
        if not here.is_symlink:
            raise FileKindError(f"{shown(here.path)} is not a symbolic link")
        return self._nodes[here.ino].target

    def xattrs(self, where: Where) -> dict[bytes, bytes]:
        """Return the extended attributes, by full name."""
        return dict(self._nodes[self.find(where, follow_symlinks=False).ino].xattrs)

    def pread(self, stat: Stat, offset: int, size: int) -> bytes:
        """Read ``size`` bytes of a regular file at ``offset``; fewer only at its end."""
        require_file(stat)
        wanted = min(size, stat.size - offset)
        if offset < 0 or wanted <= 0:
            return b""
        places = array("Q", self._nodes[stat.ino].chunks)
        parts = []
        while wanted > 0:
            number, start = divmod(offset, CHUNK_SIZE)
            length = min(wanted, CHUNK_SIZE - start)
            place = places[number]
            begin = (place & OFFSET_MASK) + start
            parts.append(os.pread(self._spools[place >> LAYER_SHIFT], length, begin))
            offset, wanted = offset + length, wanted - length
        return b"".join(parts)

    def close(self) -> None:
        """Free the temporary files; may be called again."""
        self._resources.close()

    def _stat(self, path: bytes, number: int) -> Stat:
        node, nlink = self._nodes[number], self._names[number]
        if node.children is not None:
            nlink = 2 + sum(isinstance(child, Node) for child in node.children.values())
        # fmt: off
        return Stat(path, number, node.mode, nlink, node.uid, node.gid, node.size, node.mtime,
                    node.mtime_ns, node.rdev)
        # fmt: on


def _key(child: Child) -> int:
    """Return what an inode has alone: rows are negative, addresses are not."""
    return -1 - child if isinstance(child, int) else id(child)
