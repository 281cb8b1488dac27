"""The layers of a native image, from the bootstraps that its blobs bring along (RAFS v6 §6.1)."""

from __future__ import annotations

import hashlib
import stat
from typing import TYPE_CHECKING, Final

from lamina.blob.framing import MAX_BOOTSTRAP_SIZE, read_bootstrap
from lamina.blob.layout import SECTION_BOOTSTRAP
from lamina.blob.toc import read_entry, read_toc
from lamina.build.budget import MAX_ENTRIES
from lamina.build.overlay_tree import overlay_tree
from lamina.build.own_tree import IMPLIED_DIRECTORY_MODE
from lamina.build.scan import NO_XATTRS
from lamina.codec.compress import Compressor
from lamina.erofs.check import check_bootstrap
from lamina.erofs.layout import BLOCK_SIZE, PLACEHOLDER_BLOB_ID, round_up
from lamina.erofs.reader import Bootstrap
from lamina.erofs.tree import Node
from lamina.erofs.writer import BootstrapOptions, lay_out_bootstrap
from lamina.errors import FormatError, IntegrityError, UnsupportedError

if TYPE_CHECKING:
    from lamina.content.lazy_image import LazyImage
    from lamina.erofs.layout import BlobEntry, Inode
    from lamina.oci.manifest import Descriptor

MAX_WHOLE_BYTES: Final = 256 << 20
"""Of a blob that is read whole."""


def native_layer_trees(image: LazyImage) -> dict[str, bytes | bytearray]:
    """Return the trees of the layers of a native image by their diff_ids, which are proven, markers
    turned into what overlayfs knows; the last layer, which is metadata, is empty.

    Raises UnsupportedError for blobs without a bootstrap, and what reading the blobs raises.
    """
    assert image.manifest is not None
    *blobs, _ = image.manifest.layers
    last = image.config.rootfs.diff_ids[-1]
    found = {blob.digest: _tree(image, blob) for blob in blobs}
    empty = Node(IMPLIED_DIRECTORY_MODE, xattrs=NO_XATTRS, children={})
    options = BootstrapOptions(image.bootstrap.chunk_size, Compressor.NONE)
    return {**found, last: lay_out_bootstrap(empty, [], 0, options)}


def _tree(image: LazyImage, blob: Descriptor) -> bytearray:
    data = _own_bootstrap(image, blob)
    check_bootstrap(data)
    with Bootstrap(data) as own:
        if own.inode_count > MAX_ENTRIES:
            raise UnsupportedError(f"the layer {blob.digest} has {own.inode_count} inodes")
        options = BootstrapOptions(own.chunk_size, own.compressor, own.digester)
        extended = own.header.extended
        start, size = extended.chunk_table_offset, extended.chunk_table_size
        entries = [_entry(image, entry, blob) for entry in own.blobs]
        made = lay_out_bootstrap(overlay_tree(read_tree(own)), entries, size, options)
        made += own.view[start : start + size]
        return made + bytes(round_up(len(made), BLOCK_SIZE) - len(made))


def _own_bootstrap(image: LazyImage, blob: Descriptor) -> bytes:
    """Return the bootstrap in a blob, by the table of contents whose digest the image has; nothing
    else proves a part of a blob, so one that the image says nothing of is read whole.
    """

    def read_at(offset: int, size: int) -> bytes:
        return image.read_stored(blob.hex, offset, size)

    entry = next((each for each in image.bootstrap.blobs if each.blob_id == blob.hex), None)
    if entry is None or not entry.toc_size or not any(entry.toc_digest):
        whole = _whole(image, blob)
        data = read_bootstrap(lambda offset, size: whole[offset : offset + size], blob.size)
        if data is not None:
            return data
    else:
        for section in read_toc(read_at, blob.size, entry) or ():
            if section.name == SECTION_BOOTSTRAP:
                return read_entry(read_at, blob.size, section, MAX_BOOTSTRAP_SIZE)
    raise UnsupportedError(f"the blob {blob.digest} does not say what its layer is")


def _whole(image: LazyImage, blob: Descriptor) -> bytes:
    if blob.size > MAX_WHOLE_BYTES:
        raise UnsupportedError(f"the image does not prove what {blob.digest} says of its layer")
    data = image.read_stored(blob.hex, 0, blob.size)
    if hashlib.sha256(data).hexdigest() != blob.hex:
        raise IntegrityError(f"the blob {blob.digest} has other bytes")
    return data


def _entry(image: LazyImage, own: BlobEntry, blob: Descriptor) -> BlobEntry:
    """Return what the image says of a blob that a layer has its data in; of itself a blob cannot
    say which it is.
    """
    name = blob.hex if own.blob_id == PLACEHOLDER_BLOB_ID else own.blob_id
    found = _named(image, name, blob)
    if own.uncompressed_size != found.uncompressed_size:
        raise FormatError(f"the layer {blob.digest} is not what the image says of it")
    return found


def _named(image: LazyImage, name: str, layer: Descriptor) -> BlobEntry:
    found = next((each for each in image.bootstrap.blobs if each.blob_id == name), None)
    if found is None:
        raise UnsupportedError(
            f"the image shows nothing of the layer {layer.digest}, so it cannot be read by itself",
            hint="index the image that it was made of: lamina index --layers",
        )
    return found


def read_tree(bootstrap: Bootstrap) -> Node:
    """Return the tree of a bootstrap as objects.  Raises FormatError."""
    root = _node(bootstrap, bootstrap.inode(bootstrap.root_nid))
    nodes = {bootstrap.root_nid: root}
    todo = [bootstrap.root_nid]
    while todo:
        nid = todo.pop()
        children = nodes[nid].children
        assert children is not None
        for name, number in bootstrap.names(bootstrap.inode(nid)):
            if number not in nodes:
                nodes[number] = _node(bootstrap, bootstrap.inode(number))
                if nodes[number].children is not None:
                    todo.append(number)
            children[name] = nodes[number]
    return root


def _node(bootstrap: Bootstrap, inode: Inode) -> Node:
    kind = stat.S_IFMT(inode.mode)
    is_directory = kind == stat.S_IFDIR
    # fmt: off
    return Node(
        inode.mode, inode.uid, inode.gid, inode.mtime, inode.mtime_ns,
        0 if is_directory else inode.size, inode.rdev,
        bootstrap.readlink(inode) if kind == stat.S_IFLNK else b"",
        bytes(bootstrap.chunk_array(inode)) if kind == stat.S_IFREG and inode.size else b"",
        bootstrap.xattrs(inode), {} if is_directory else None,
    )
    # fmt: on
