"""What a guest's kernel makes of disks, checked by root of a machine of its own.

``python tests/support/in_guest_disks.py JSON...``: a check each, ``{"name": ..., "layers": [table,
...], "device": ..., "wrong": FILE or null}``: the tables of device-mapper to put on each other,
with ``BELOW`` for what is below; the device that is lowest; the file that cannot be read.  Prints
a line a check; the exit code is the number of those that failed.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

from lamina.image.compare import compare
from lamina.image.folder import FolderImage
from lamina.linux.mount import attach_mount, create_mount
from lamina.linux.mount import unmount as syscall_unmount
from tests.support.native_images import MemorySource, open_bootstrap
from tests.support.serving import sample_image

BASE = Path("/disk/disks")


def map_device(name: str, number: int, table: str, below: str) -> str:
    """Put a device on another one by dmsetup; the kernel makes its node, since there is no udev."""
    device = f"{name}{number}"
    command = ["dmsetup", "create", "--readonly", "--noudevsync", device]
    table = table.replace("BELOW", below)
    subprocess.run(command, input=table, text=True, check=True, stdout=subprocess.DEVNULL)
    command = ["dmsetup", "info", "--columns", "--noheadings", "-o", "minor", device]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return f"/dev/dm-{int(done.stdout)}"


def mount(device: str, folder: Path) -> None:
    folder.mkdir(parents=True)
    opened = create_mount("erofs", device, [("ro", None)])
    attach_mount(opened, str(folder))
    os.close(opened)


def check_tree(folder: Path, wrong: str | None, *, is_share: bool = False) -> None:
    """The tree is that of the sample image, but for a file that cannot be read, and for attributes
    that virtiofsd shows to nobody.
    """
    built = sample_image()
    if wrong is None:
        boot = BASE / "reference.boot"
        boot.write_bytes(built.bootstrap)
        with open_bootstrap(boot, MemorySource(built), store=BASE / "store") as image:
            differences = [str(each) for each in compare(image, FolderImage(folder))]
            hidden = [each for each in differences if is_share and "attribute trusted." in each]
            assert differences == hidden, differences[:10]
        return
    for name, content in built.contents.items():
        path = folder / os.fsdecode(name)
        if os.fsdecode(name) != wrong:
            assert path.read_bytes() == content, path
            continue
        try:
            got = path.read_bytes()
        except OSError as error:
            assert error.errno == errno.EIO, error
        else:
            raise AssertionError(f"{path} was read: {got[:64]!r}")


def check(wanted: dict[str, Any]) -> None:
    """Put devices on each other, mount the last, and look."""
    below = wanted["device"]
    for number, table in enumerate(wanted["layers"]):
        below = map_device(wanted["name"], number, table, below)
    folder = BASE / wanted["name"]
    if wanted.get("kind") == "virtiofs":
        folder.mkdir(parents=True)
        opened = create_mount("virtiofs", below, [("ro", None)])
        attach_mount(opened, str(folder))
        os.close(opened)
    else:
        mount(below, folder)
    for name in wanted.get("below", [""]):
        check_tree(folder / name, wanted.get("wrong"), is_share=wanted.get("kind") == "virtiofs")
    syscall_unmount(str(folder))


def main() -> int:
    """Make the checks."""
    BASE.mkdir(parents=True)
    failed = 0
    for text in sys.argv[1:]:
        wanted = json.loads(text)
        try:
            check(wanted)
        except Exception:
            failed += 1
            print(f"FAILED {wanted['name']}\n{traceback.format_exc()}", flush=True)
        else:
            print(f"ok {wanted['name']}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
