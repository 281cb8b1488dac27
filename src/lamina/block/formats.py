"""Disks in the formats of virtual machines: qcow2 by qemu-img, VMDK by a descriptor."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

from lamina.errors import Error, UnsupportedError
from lamina.posix.write import write_all
from lamina.store.files import replacing

_SECTOR_BYTES: Final = 512
_HEADS, _SECTORS = 16, 63
_CLOCK: Final = "Unable to get accurate CPU usage"
"""What qemu-img says on a busy machine, where it cannot measure how long deriving a key takes."""
_ATTEMPTS: Final = 10
_VMDK: Final = """\
# Disk DescriptorFile
version=1
CID={cid:08x}
parentCID=ffffffff
createType="monolithicFlat"

# Extent description
RW {sectors} FLAT "{name}" 0

# The Disk Data Base
#DDB

ddb.virtualHWVersion = "4"
ddb.geometry.cylinders = "{cylinders}"
ddb.geometry.heads = "{heads}"
ddb.geometry.sectors = "{per_track}"
ddb.adapterType = "ide"
"""


def write_qcow2(raw: Path, path: Path, passphrase_file: Path | None = None) -> None:
    """Make *path* the qcow2 of the disk in *raw*, and compare the two.

    With *passphrase_file* its content is encrypted by LUKS, as QEMU has it.  Raises
    UnsupportedError without qemu-img, Error with what it says.
    """
    program = shutil.which("qemu-img")
    if program is None:
        raise UnsupportedError(
            "qcow2 is made by qemu-img, which is not installed",
            hint="install qemu-utils, or write --format raw",
        )
    staged = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
    secret: list[str] = []
    options: list[str] = []
    opened = f"driver=qcow2,file.filename={_escaped(staged)}"
    if passphrase_file is not None:
        secret = ["--object", f"secret,id=key,file={_escaped(passphrase_file)}"]
        options = ["-o", "encrypt.format=luks,encrypt.key-secret=key"]
        opened += ",encrypt.key-secret=key"
    source = f"driver=raw,file.filename={_escaped(raw)}"
    try:
        convert: list[str | Path] = [
            "convert",
            *secret,
            "-f",
            "raw",
            "-O",
            "qcow2",
            *options,
            raw,
            staged,
        ]
        _run(program, *convert, attempts=_ATTEMPTS)
        _run(program, "compare", *secret, "--image-opts", source, opened)
        os.rename(staged, path)
    finally:
        staged.unlink(missing_ok=True)


def _escaped(path: Path) -> str:
    """Return a path as a value of an option of QEMU's."""
    return str(path).replace(",", ",,")


def write_vmdk_descriptor(path: Path, raw: Path, size_bytes: int) -> None:
    """Make *path* the descriptor of the disk in *raw*, a file of the same folder."""
    if '"' in raw.name or not raw.name.isprintable():
        raise Error(f"{raw.name!r} cannot be named in a VMDK descriptor")
    sectors = size_bytes // _SECTOR_BYTES
    text = _VMDK.format(
        # What tells a disk from another one; the size does no harm, and is always the same.
        cid=sectors & 0xFFFFFFFE | 1 << 31,
        sectors=sectors,
        name=raw.name,
        cylinders=max(sectors // (_HEADS * _SECTORS), 1),
        heads=_HEADS,
        per_track=_SECTORS,
    )
    with replacing(path) as fd:
        write_all(fd, text.encode(), 0)


def _run(*command: str | Path, attempts: int = 1) -> None:
    # qemu-img removes the file of an attempt that failed, so the next makes it anew.
    done = subprocess.run(command, capture_output=True, text=True, check=False, umask=0o077)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        if attempts > 1 and said and _CLOCK in said[-1]:
            _run(*command, attempts=attempts - 1)
            return
        raise Error(f"qemu-img {command[1]} failed: {said[-1] if said else done.returncode}")
