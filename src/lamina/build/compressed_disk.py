"""An image as a compressed EROFS file system, which mkfs.erofs makes of the unpacked tree.

Lamina writes file data as they are, so that they can come when they are read.  A disk that is
written out whole can be smaller: what is compressed is not laid out by us.
"""

from __future__ import annotations

import shutil
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

from lamina.block.base import FileDisk
from lamina.build.unpack import unpack_to_folder
from lamina.errors import Error, UnsupportedError

if TYPE_CHECKING:
    from lamina.image.base import Image

_HINT: Final = "install erofs-utils, or write the disk without --compress"


@contextmanager
def compressed_disk(
    image: Image, algorithm: str, identifier: bytes, folder: Path
) -> Iterator[FileDisk]:
    """Make the file system in *folder* and give it as a disk until the block ends.

    The same image and the same mkfs.erofs make the same bytes: its UUID is *identifier*, of 16
    bytes, and no time of day is in it.  Raises UnsupportedError without mkfs.erofs or for who is
    not root, whose tree would have other owners; Error with what mkfs.erofs says.
    """
    mkfs, fsck = _program("mkfs.erofs"), _program("fsck.erofs")
    with TemporaryDirectory(dir=folder, prefix=".lamina-compress-") as name:
        tree, disk = Path(name) / "tree", Path(name) / "disk"
        report = unpack_to_folder(image, tree)
        if report.notes:
            raise UnsupportedError(
                f"the tree cannot be unpacked as it is: {report.notes[0]}",
                hint="compressed disks are made by root",
            )
        options = [
            f"-z{algorithm}",
            "-T0",
            "--preserve-mtime",
            "-U",
            str(uuid.UUID(bytes=identifier)),
        ]
        _run(mkfs, "--quiet", *options, str(disk), str(tree))
        # Decompresses everything.
        _run(fsck, "--extract", str(disk))
        shutil.rmtree(tree)
        with disk.open("rb") as file:
            yield FileDisk(file.fileno())


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise UnsupportedError(
            f"a compressed disk needs {name}, which is not installed", hint=_HINT
        )
    return found


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        name = Path(command[0]).name
        raise Error(f"{name} failed: {said[-1] if said else done.returncode}")
