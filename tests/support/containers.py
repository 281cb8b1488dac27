"""Containers without an image service: ``lamina run`` with a folder in the image's place.

``small_root`` makes a root file system of one static program; as a program (``python -m
tests.support.containers ROOT STORE OPTIONS… IMAGE COMMAND…``) this module is ``lamina run`` with
the folder ROOT mounted instead of an image.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.tools import find_program, missing

PASSWD = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n"
GROUP = "root:x:0:\napp:x:1001:\nvideo:x:44:app\n"


def bundles() -> Path:
    """Where the bundles of live containers are."""
    return Path(os.environ["LAMINA_RUNTIME"]) / "containers"


def runtime_state() -> Path:
    """Where the runtime keeps what it knows of them."""
    return Path(os.environ["LAMINA_RUNTIME"]) / "runtime"


def small_root(folder: Path) -> Path:
    """A root file system with a static busybox and users; skips where there is none."""
    busybox = find_program("busybox")
    if busybox is None:
        missing("not installed: busybox (busybox-static on Debian)")
    if b"not a dynamic executable" not in _ldd(busybox):
        missing("busybox is not static (install busybox-static)")
    folder.mkdir(exist_ok=True)
    folder.chmod(0o755)
    for name in ("bin", "etc", "root", "proc", "dev", "sys", "tmp", "home/app"):
        (folder / name).mkdir(parents=True)
    shutil.copy(busybox, folder / "bin/busybox")
    applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout
    for applet in applets.split():
        if applet != "busybox":
            (folder / "bin" / applet).symlink_to("busybox")
    (folder / "etc/passwd").write_text(PASSWD)
    (folder / "etc/group").write_text(GROUP)
    (folder / "etc/not-executable").write_text("text\n")
    (folder / "tmp").chmod(0o1777)
    os.chown(folder / "home/app", 1000, 1001)
    return folder


def _ldd(program: str) -> bytes:
    done = subprocess.run(["ldd", program], capture_output=True)
    return done.stdout + done.stderr


class BindMount:
    """A read-only view of a folder."""

    def __init__(self, source: str, mountpoint: str) -> None:
        self._mountpoint = mountpoint
        subprocess.run(["mount", "--bind", source, mountpoint], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", mountpoint], check=True)

    def close(self) -> None:
        """Take it away."""
        from lamina.linux.mount import unmount

        unmount(self._mountpoint)


def main(root: str, store: str, arguments: list[str]) -> int:
    """Run a container of the folder ``root``."""
    from unittest import mock

    from lamina.cli import main as lamina
    from lamina.errors import KernelError
    from lamina.image.folder import FolderImage
    from lamina.oci.manifest import ImageConfig, RuntimeConfig

    class Image(FolderImage):
        config = ImageConfig(config=RuntimeConfig(cmd=("/bin/sh",), env=("FROM=image",)))
        start_pages = None

    def mount(_image: object, mountpoint: str, **_options: object) -> BindMount:
        return BindMount(root, mountpoint)

    with (
        mock.patch("lamina.serve.run.connect_or_start", side_effect=KernelError("none here")),
        mock.patch("lamina.opening.open_image.open_image", lambda *_, **__: Image(root)),
        mock.patch("lamina.serve.mount.mount_image", mount),
    ):
        return lamina(["run", "--store", store, *arguments])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
