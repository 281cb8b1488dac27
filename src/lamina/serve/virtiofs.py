"""A virtio-fs share: images that are mounted here, shown to a virtual machine by virtiofsd.

virtiofsd is somebody else's: that of Debian 12 is in C and comes with QEMU, later ones are in Rust.
Both end when the virtual machine does, and so does the share.  The share can be written to only
where what is below it can, so all of it is read-only here.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import stat
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from lamina.errors import KernelError, UnsupportedError, UsageError
from lamina.linux import mount
from lamina.linux.syscalls import SyscallError
from lamina.serve.runtime_folder import state_directory

PROGRAMS: Final = ("virtiofsd", "/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd")
"""Where distributions have it."""
_IN_RUST: Final = "--shared-dir"
_FOLDER: Final = "share-"
_START_S: Final = 30.0
_END_S: Final = 30.0
"""How long it may take to end, of which the virtual machine has no say."""
_POLL_S: Final = 0.02


def find_program() -> str:
    """Return where virtiofsd is.  Raises UnsupportedError."""
    for name in PROGRAMS:
        found = shutil.which(name)
        if found is not None:
            return found
    raise UnsupportedError(
        "a share is served by virtiofsd, which is not installed",
        hint="it is in the package virtiofsd, or on Debian 12 in qemu-system-common",
    )


def command_line(program: str, socket: str, folder: str) -> list[str]:
    """Return how virtiofsd shares a folder on a socket."""
    said = subprocess.run([program, "--help"], capture_output=True, text=True, check=False)
    words = [program, f"--socket-path={socket}"]
    if _IN_RUST in said.stdout + said.stderr:
        words += [f"--shared-dir={folder}", "--xattr", "--announce-submounts", "--sandbox=chroot"]
        return [*words, "--cache=auto"]
    if "," in folder:
        raise UsageError(f"virtiofsd takes no folder with a comma: {folder}")
    # A guest that has broken into it finds nothing but the share, and no processes of the host.
    # Its files keep what the lower ones have: attributes above all, which are off otherwise.
    options = f"source={folder},xattr,cache=auto,sandbox=namespace,announce_submounts"
    return [*words, "-o", options]


@contextlib.contextmanager
def share_folder(names: Sequence[str]) -> Iterator[dict[str, Path]]:
    """Yield the folder to share, which is "", and those in it that images are mounted on.

    One image without a name is the folder itself.  Nobody can write to it, not even root.
    """
    remove_left_behind()
    root = state_directory() / f"{_FOLDER}{os.getpid()}"
    root.mkdir(0o700)
    folders = {name: root / name for name in names}
    try:
        for path in folders.values():
            path.mkdir(exist_ok=True)
        root.chmod(0o755)
        if names != [""]:
            clone = mount.clone_tree(str(root), mount.MOUNT_ATTR_RDONLY)
            try:
                mount.attach_mount(clone, str(root))
            finally:
                os.close(clone)
        yield {"": root, **folders}
    finally:
        _remove(root)


def remove_left_behind() -> None:
    """Remove the folders of processes that were killed; one of them may have had our number."""
    for root in state_directory().glob(f"{_FOLDER}*"):
        number = root.name.removeprefix(_FOLDER)
        is_gone = number == str(os.getpid()) or not os.path.exists(f"/proc/{number}")
        if number.isdigit() and is_gone:
            _remove(root)


def _remove(root: Path) -> None:
    """Take away what is mounted there, and the folders; what is mounted is not looked into."""
    with contextlib.suppress(SyscallError):
        while True:
            mount.unmount(str(root), mount.UMOUNT_NOFOLLOW | mount.MNT_DETACH)
    with contextlib.suppress(OSError):
        for each in root.iterdir():
            with contextlib.suppress(SyscallError):
                mount.unmount(str(each), mount.UMOUNT_NOFOLLOW | mount.MNT_DETACH)
            each.rmdir()
        root.rmdir()


class VirtiofsServer:
    """virtiofsd at work."""

    def __init__(self, words: Sequence[str], socket: str) -> None:
        """Start it, and return when it listens.  Raises KernelError, and UsageError if something
        else than a socket is in its place.
        """
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(os.lstat(socket).st_mode):
                raise UsageError(f"{socket} is there, and is no socket")
            os.unlink(socket)
        self._socket = socket
        self._process = subprocess.Popen(words, stdin=subprocess.DEVNULL, umask=0o077)
        deadline_s = time.monotonic() + _START_S
        while not os.path.exists(socket):
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                self.close()
                raise KernelError(f"{words[0]} does not start: {self._process.returncode}")
            time.sleep(_POLL_S)

    def wait(self, stop_fd: int) -> bool:
        """Wait until the virtual machine is gone; False if *stop_fd* is readable before."""
        end = os.pidfd_open(self._process.pid)
        try:
            with select.epoll() as poll:
                for fd in (end, stop_fd):
                    poll.register(fd, select.EPOLLIN)
                return stop_fd not in [fd for fd, _ in poll.poll()]
        finally:
            os.close(end)

    def close(self) -> None:
        """End it; may be called again."""
        if self._process.poll() is None:
            self._process.terminate()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        with contextlib.suppress(OSError):
            os.unlink(self._socket)


def machine_command(machine: str, socket: str, tag: str) -> str:
    """Return how a virtual machine takes the share."""
    lines: Mapping[str, str] = {
        "qemu": "qemu-system-x86_64 -m 1G -object memory-backend-memfd,id=memory,size=1G,share=on "
        f"-numa node,memdev=memory -chardev socket,id=share,path={socket} "
        f"-device vhost-user-fs-pci,chardev=share,tag={tag}",
        "cloud-hypervisor": "cloud-hypervisor --memory size=1G,shared=on "
        f"--fs tag={tag},socket={socket}",
    }
    if machine not in lines:
        raise UsageError(f"{machine} has no virtio-fs", hint=f"one of {', '.join(lines)} has")
    return lines[machine]
