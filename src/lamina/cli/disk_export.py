"""What the options of ``lamina export`` say of the disk: layout, hash tree, partitions, keys."""

from __future__ import annotations

from argparse import Namespace
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from lamina.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lamina.block.base import Disk
    from lamina.block.hash_area import HashArea, VerityDisk
    from lamina.content.lazy_image import LazyImage

COMPRESSIONS: Final = ("lz4", "lz4hc", "lzma", "deflate", "zstd")
"""What some mkfs.erofs has; that of Debian 12 has the first two."""
ENCRYPTIONS: Final = ("dm-crypt", "luks2", "qcow2")


class PlannedDisk(NamedTuple):
    """What is written, and how a kernel checks and opens it."""

    disk: Disk
    area: HashArea | None = None
    """The tree, to be written beside the disk if ``verity`` says that it is there."""
    verity: VerityDisk | None = None
    crypt_table: str = ""


def check_options(args: Namespace) -> None:
    """Refuse options that mean nothing together.  Raises UsageError."""
    _check_layer(args)
    _check_tarfs(args)
    if args.verity is None and (args.hash_file is not None or args.salt):
        raise UsageError("--hash-file and --salt are of the hash tree that --verity makes")
    if args.compress is not None and args.layout != "plain":
        raise UsageError("a compressed disk has no layout of Nydus's")
    if args.compress is not None and args.attach:
        raise UsageError("--attach is for the disk that `lamina serve nbd` serves, which is plain")
    if args.attach and (args.verity != "veritysetup" or args.layout != "plain"):
        raise UsageError("--attach is of --verity veritysetup and the plain layout")
    if args.verity == "nydus" and args.salt:
        raise UsageError("the hash trees of Nydus have no salt")
    if (args.encrypt is None) != (args.key_file is None):
        raise UsageError("--encrypt and --key-file go together")
    if args.encrypt is not None and args.hash_file is not None:
        raise UsageError("the hash tree of an encrypted disk is inside: a --hash-file is in clear")
    if args.encrypt == "qcow2" and args.format != "qcow2":
        raise UsageError("--encrypt qcow2 is of --format qcow2")
    if args.gpt and (args.hash_file is not None or args.verity == "nydus"):
        raise UsageError("the hash tree of a disk with --gpt is a partition, as veritysetup has it")
    if args.gpt and args.encrypt in ("dm-crypt", "luks2"):
        raise UsageError(f"--gpt and --encrypt {args.encrypt} exclude each other")
    if args.layout == "nydus" and args.gpt:
        raise UsageError("a disk of Nydus's layout has no partitions")


def _check_layer(args: Namespace) -> None:
    if args.layer is not None and (args.attach or args.compress is not None):
        raise UsageError("--attach and --compress are for the disk of the whole image")


def _check_tarfs(args: Namespace) -> None:
    if args.layout != "tarfs":
        if args.tar_file is not None:
            raise UsageError("--tar-file is of --layout tarfs")
        return
    if args.layer is None:
        raise UsageError("--layout tarfs is of a single layer", hint="say which: --layer N")
    others = (args.verity, args.compress, args.encrypt, args.hash_file, args.attach, args.gpt)
    if any(others) or args.format != "raw":
        raise UsageError("--layout tarfs goes with --layer and --tar-file alone")


@contextmanager
def image_disk(args: Namespace, image: LazyImage) -> Iterator[tuple[Disk, bytes]]:
    """Give the file system alone, and its UUID."""
    from lamina.block.disk import DiskView
    from lamina.erofs.flatten import Layout

    view = DiskView(image, Layout(args.layout))
    if args.compress is None:
        yield view, view.uuid
        return
    from lamina.build.compressed_disk import compressed_disk

    with compressed_disk(image, args.compress, view.uuid, Path(args.disk).parent) as disk:
        yield disk, view.uuid


def plan_disk(
    args: Namespace,
    image: LazyImage,
    file_system: tuple[Disk, bytes],
    progress: Callable[[int], None],
) -> PlannedDisk:
    """Return the disk that the options describe.  Reads all of *file_system* for a hash tree.

    Raises UsageError, UnsupportedError, and what reading the image raises.
    """
    area = _hash_area(args, file_system, progress)
    planned = PlannedDisk(file_system[0], area, None if area is None else area.verity)
    if args.gpt:
        return _partitioned(image, file_system, planned)
    if area is not None and args.hash_file is None:
        disk, verity = area.behind(file_system[0])
        planned = PlannedDisk(disk, area, verity)
    return _encrypted(args, planned)


def _hash_area(
    args: Namespace, file_system: tuple[Disk, bytes], progress: Callable[[int], None]
) -> HashArea | None:
    from lamina.block.hash_area import make_hash_area
    from lamina.block.verity import VerityOptions, spare_of_nydus

    if args.verity is None:
        return None
    try:
        salt = bytes.fromhex(args.salt)
    except ValueError:
        raise UsageError("--salt is written in hexadecimal digits") from None
    disk, identifier = file_system
    if args.verity == "nydus":
        return make_hash_area(disk, VerityOptions(spare_digest=spare_of_nydus()), None, progress)
    return make_hash_area(disk, VerityOptions(salt=salt), identifier, progress)


def _partitioned(
    image: LazyImage, file_system: tuple[Disk, bytes], planned: PlannedDisk
) -> PlannedDisk:
    from lamina.block.partitions import image_partitions, partitioned_disk

    area = planned.area
    tree = None if area is None else (area.verity.root, area.data)
    partitions = image_partitions(image.config.architecture, file_system, tree)
    return planned._replace(disk=partitioned_disk(partitions))


def _encrypted(args: Namespace, planned: PlannedDisk) -> PlannedDisk:
    if args.encrypt not in ("dm-crypt", "luks2"):
        return planned
    from lamina.block.encryption import EncryptedDisk, crypt_table, luks_disk

    key_file = Path(args.key_file)
    try:
        key = key_file.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {key_file}: {error.strerror}") from error
    if args.encrypt == "luks2":
        return planned._replace(disk=luks_disk(planned.disk, key_file))
    disk = EncryptedDisk(planned.disk, key)
    return planned._replace(disk=disk, crypt_table=crypt_table(disk.size_bytes, "DISK"))
