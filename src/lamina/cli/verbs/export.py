"""``lamina export``."""

from __future__ import annotations

import contextlib
import os
from argparse import Namespace
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lamina.cli import console
from lamina.cli.disk_export import COMPRESSIONS, ENCRYPTIONS, check_options, image_disk, plan_disk
from lamina.cli.help_text import HelpPage
from lamina.cli.options import (
    REGISTRY_ENVIRONMENT,
    STORE_ENVIRONMENT,
    add_output_options,
    add_registry_options,
    client_options,
)
from lamina.cli.output import human_size, print_json, print_line
from lamina.cli.parser import Parser
from lamina.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lamina.block.export import Exported
    from lamina.cli.disk_export import PlannedDisk
    from lamina.content.lazy_image import LazyImage
    from lamina.registry.repository import Repository

HELP: Final = HelpPage(
    """
    Writes an image out as one disk: a raw EROFS file system that Linux mounts, as a loop device or
    as the disk of a virtual machine, without Lamina. What is fetched for it is verified; the file
    is sparse, the same whenever it is written, and read again before it gets its name.

    --verity adds a hash tree, by which the kernel checks each block that it reads: `veritysetup` as
    that program makes it, with its superblock; `nydus` as Nydus does, without superblock and with
    padding that veritysetup refuses. The tree is behind the file system on the same disk, or in
    --hash-file. The root hash is printed: whoever opens the disk must get it from somebody he
    trusts.

    --compress unpacks the image beside DISK and has mkfs.erofs make a compressed file system of it,
    which the kernel that mounts it decompresses.

    --gpt makes partitions of the image and its tree, of the types by which systemd and others find
    a root file system and what verifies it; their identifiers are the halves of the root hash.

    --encrypt makes the disk unreadable without a key: `dm-crypt`, which has nothing in front of the
    ciphertext, `luks2`, with a header made by cryptsetup, or `qcow2`, with that of QEMU. The hash
    tree is inside. Encryption alone does not notice what is changed in a disk.

    --layer writes one layer by itself: what it brings, and what it hides as overlayfs knows that.
    The disks of all layers, mounted each and stacked, show the image. An ordinary image needs an
    index for that which was made with `lamina index --layers`.

    --layout tarfs, with --layer of an ordinary image, makes metadata over the uncompressed archive
    of the layer, which is the device of the file system: in --tar-file, or behind it in one file.

    A disk of a sealed image has its content in clear unless it is encrypted; its file is private to
    its owner, as all that this verb writes.
    """,
    examples=(
        ("lamina export localhost:5000/node node.img", "Then mount -o loop node.img /mnt."),
        (
            "lamina export --verity veritysetup IMAGE disk.img",
            "Print the root hash for veritysetup open.",
        ),
        (
            "lamina export --verity veritysetup --attach IMAGE disk.img",
            "Put the tree beside the image too, so that a served disk has it.",
        ),
        ("lamina export --format qcow2 IMAGE disk.qcow2", "A disk for QEMU."),
        ("lamina export --layer 1 IMAGE base.erofs", "The lowest layer as a disk of its own."),
        (
            "lamina export --layout tarfs --layer 1 --tar-file base.tar IMAGE base.erofs",
            "The lowest layer as metadata over its archive.",
        ),
        (
            "lamina export --gpt --verity veritysetup IMAGE disk.img",
            "A disk that systemd finds its root on, by roothash=.",
        ),
        (
            "lamina export --encrypt luks2 --key-file passphrase IMAGE disk.img",
            "A disk for cryptsetup open.",
        ),
    ),
    json_keys=(
        ("disk", "path of the file"),
        (
            "size, written",
            "bytes of the raw disk, and those of them that are not left out as zeros",
        ),
        ("sha256", "digest of the raw disk"),
        ("root_hash", "with --verity: the root of the hash tree"),
        ("data_blocks, hash_offset, salt", "with --verity: as veritysetup wants them"),
        ("hash_file", "with --verity: the file that has the tree"),
        ("table", "with --verity: for dmsetup, with DATA and HASH for the two devices"),
        (
            "crypt_table",
            "with --encrypt dm-crypt: for dmsetup, with KEY in hexadecimal and DISK for the device",
        ),
        ("disk, tar_file, size, tar_size, diff_id", "all there is with --layout tarfs"),
    ),
    environment=(STORE_ENVIRONMENT, *REGISTRY_ENVIRONMENT),
    see_also=("serve", "unpack", "mount"),
)
_FORMATS: Final = ("raw", "qcow2", "vmdk")
_LAYOUTS: Final = ("plain", "nydus", "tarfs")
_VERITY: Final = ("veritysetup", "nydus")


def add_arguments(parser: Parser) -> None:
    """Declare the options and arguments."""
    parser.add_argument("image", metavar="IMAGE", help="reference of a native or indexed image")
    parser.add_argument("disk", metavar="DISK", help="the file to write, which must not be there")
    parser.add_argument("--force", action="store_true", help="replace a file that is there")
    parser.add_argument(
        "--format",
        choices=_FORMATS,
        default="raw",
        metavar="FORMAT",
        help="raw, qcow2 (by qemu-img), or vmdk: a descriptor of DISK-flat beside it (%(default)s)",
    )
    parser.add_argument(
        "--layout",
        choices=_LAYOUTS,
        default="plain",
        metavar="LAYOUT",
        help="plain, for any Linux with EROFS from 5.15 on; nydus, with its metadata as they are, "
        "or tarfs, a layer over its archive, both for Linux 6.4 and newer (%(default)s)",
    )
    parser.add_argument(
        "--tar-file", metavar="FILE", help="with tarfs: write the archive there, not behind"
    )
    parser.add_argument(
        "--layer",
        metavar="LAYER",
        help="write one layer only, as a lower folder of overlayfs: 1 is the lowest, or a diff_id",
    )
    group = parser.add_argument_group("Options of the hash tree")
    group.add_argument(
        "--verity", choices=_VERITY, metavar="FORM", help="veritysetup or nydus: add a hash tree"
    )
    group.add_argument("--hash-file", metavar="FILE", help="write the tree into a file of its own")
    group.add_argument(
        "--attach",
        action="store_true",
        help="attach the tree to the image in its registry, for `lamina serve nbd --verity`",
    )
    group.add_argument("--salt", metavar="HEX", default="", help="salt of the digests (none)")
    parser.add_argument(
        "--compress",
        choices=COMPRESSIONS,
        metavar="ALGORITHM",
        help="have mkfs.erofs make the file system, as root: lz4, lz4hc, or what else it has",
    )
    parser.add_argument(
        "--gpt", action="store_true", help="make partitions of the image and its hash tree"
    )
    group = parser.add_argument_group("Options of encryption")
    group.add_argument(
        "--encrypt",
        choices=ENCRYPTIONS,
        metavar="HOW",
        help="dm-crypt (aes-xts-plain64), luks2, or qcow2 with --format qcow2",
    )
    group.add_argument(
        "--key-file",
        metavar="FILE",
        help="the key: 64 bytes for dm-crypt, else the passphrase, to its last byte",
    )
    add_registry_options(parser)
    add_output_options(parser)


def run(args: Namespace) -> int:
    """Write the disk, and tell how it is opened."""
    from lamina.block.export import export_disk
    from lamina.block.formats import write_qcow2, write_vmdk_descriptor
    from lamina.cli.progress import open_meter
    from lamina.opening.hash_tree import attach_hash_tree
    from lamina.store.files import write_atomically

    path, raw = _paths(args)
    _check(args, path, raw)
    if args.layout == "tarfs":
        from lamina.cli.tarfs_export import export_tarfs

        export_tarfs(args, path)
        return 0
    with contextlib.ExitStack() as tidy:
        image = tidy.enter_context(_opened(args))
        found = tidy.enter_context(image_disk(args, image))
        with open_meter() as meter:
            hashing = None if args.verity is None else meter.add("hash tree", found[0].size_bytes)
            planned = plan_disk(args, image, found, hashing or (lambda _: None))
            made = export_disk(planned.disk, raw, meter.add("disk", planned.disk.size_bytes))
        if args.format == "qcow2":
            # It is in clear, whatever the rest comes to.
            tidy.callback(raw.unlink)
        if args.attach and planned.area is not None:
            with _repository(args) as repository:
                attach_hash_tree(repository, image, planned.area)
        if args.hash_file is not None and planned.area is not None:
            write_atomically(Path(args.hash_file), planned.area.data)
        if args.format == "qcow2":
            write_qcow2(raw, path, Path(args.key_file) if args.encrypt == "qcow2" else None)
        elif args.format == "vmdk":
            write_vmdk_descriptor(path, raw, made.size_bytes)
    _tell(args, made, planned)
    return 0


@contextlib.contextmanager
def _opened(args: Namespace) -> Iterator[LazyImage]:
    """Open the image, or the layer that is wanted of it."""
    from lamina.build.native_layers import native_layer_trees
    from lamina.cli.opening import begin_opening, open_request
    from lamina.opening.layer_images import layer_images, wanted_layer

    with (
        begin_opening(open_request(args, args.image)) as opening,
        closing(opening.open(opening.version())) as image,
    ):
        if args.layer is None:
            yield image
        else:
            layers = layer_images(opening.place, image, native_layer_trees)
            yield wanted_layer(layers, args.layer).image


def _repository(args: Namespace) -> Repository:
    from lamina.oci.reference import parse_reference
    from lamina.registry.open_repository import open_repository

    where = parse_reference(args.image)
    return open_repository(where, write=True, options=client_options(args))


def _paths(args: Namespace) -> tuple[Path, Path]:
    """DISK, and where the raw disk goes."""
    path = Path(args.disk)
    if args.format == "vmdk":
        return path, path.with_name(f"{path.stem}-flat{path.suffix}")
    if args.format == "qcow2":
        return path, path.with_name(f".{path.name}.{os.urandom(8).hex()}.raw")
    return path, path


def _check(args: Namespace, path: Path, raw: Path) -> None:
    files = dict.fromkeys((path, raw))
    for option, name in (("--hash-file", args.hash_file), ("--tar-file", args.tar_file)):
        if name is None:
            continue
        if Path(name).resolve() in {each.resolve() for each in files}:
            raise UsageError(f"{option} and DISK are the same file")
        files[Path(name)] = None
    for each in files:
        if each.exists() and not (args.force and each.is_file()):
            raise UsageError(f"there is a {each} already", hint="--force replaces a file")
    check_options(args)


def _tell(args: Namespace, made: Exported, planned: PlannedDisk) -> None:
    verity = planned.verity
    if args.json:
        result: dict[str, object] = {
            "disk": args.disk,
            "size": made.size_bytes,
            "written": made.written_bytes,
            "sha256": made.sha256.hex(),
        }
        if verity is not None:
            result |= verity.facts("DATA", "HASH")
            result["hash_file"] = args.hash_file or args.disk
        if planned.crypt_table:
            result["crypt_table"] = planned.crypt_table
        print_json(result)
        return
    if verity is not None:
        print_line(verity.root.hex())
        console.info(f"dmsetup table: {verity.table('DATA', 'HASH')}")
    if planned.crypt_table:
        console.info(f"dmsetup table: {planned.crypt_table}")
    written, size = human_size(made.written_bytes), human_size(made.size_bytes)
    console.info(f"{args.disk}: {written} of {size} written, the rest is zeros")
