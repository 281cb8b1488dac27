"""Whether the kernel fails the whole of a read of a blob when a part of it failed.

EROFS asks the file behind a blob for all that it reads ahead at once, which is up to 4 MiB where a
program maps a file with large pages.  FUSE splits that into requests, and when a later one fails it
returns what came before.  Some kernels (6.12.8 to 6.12.84 among them) then take the rest for zeros,
and **readers see zeros without an error**.  Nothing that serves blobs can prevent that: it may be
killed between two requests.

Versions do not tell, since distributions mend kernels without changing them.  So the kernel is
tried: it mounts, for no one to see, a file of two pages that FUSE delivers as two requests, of
which the second fails.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import stat
from pathlib import Path
from typing import Final, NoReturn

from lamina.erofs.layout import CHUNK_ENTRY, BlobEntry, ChunkIndex
from lamina.erofs.tree import Node
from lamina.erofs.writer import BootstrapOptions, write_bootstrap
from lamina.errors import Error, UnsupportedError
from lamina.linux import fuse_device, mount
from lamina.linux.syscalls import from_os_error
from lamina.posix.unnamed_file import open_unnamed_file
from lamina.posix.write import write_all
from lamina.serve.device import fd_path
from lamina.serve.devices.fuse_blob import BlobFilesystem
from lamina.serve.error_wire import decode_error, encode_error
from lamina.serve.fuse_server import FuseServer
from lamina.serve.runtime_folder import state_directory
from lamina.store.files import replacing
from lamina.store.readiness import current_boot_id

PAGE_BYTES: Final = mmap.PAGESIZE
_NAME: Final = "pages"
_PROOF: Final = "whole-reads-2"
_FAILED: Final = b"the read failed"
_ZEROS: Final = b"more came than there is"


class NoKernelMountError(UnsupportedError):
    """The kernel cannot mount blobs of FUSE, or may show zeros where reading them fails."""


def require_no_short_reads(folder: str | os.PathLike[str]) -> None:
    """Raise NoKernelMountError unless this kernel was seen to fail the whole read since it started.

    ``folder`` is one to write to, on a file system that the kernel mounts EROFS from.  Needs
    CAP_SYS_ADMIN, and forks.
    """
    proof, boot = state_directory() / _PROOF, current_boot_id().hex()
    with contextlib.suppress(OSError, ValueError):
        if proof.read_text() == boot:
            return
    if not fails_whole(os.fspath(folder)):
        raise NoKernelMountError(
            f"Linux {os.uname().release} shows zeros where a part of a read fails, so it is not let"
            " read blobs that are incomplete",
            hint="--device fuse serves the whole tree; newer kernels (6.12.85 in the 6.12 series)"
            " have this mended",
        )
    # Without it the next one tries again, which is no error.
    with contextlib.suppress(OSError), replacing(proof) as fd:
        write_all(fd, boot.encode(), 0)


def fails_whole(folder: str) -> bool:
    """Try it.  Raises NoKernelMountError where the kernel has no file-backed mounts."""
    report, first_page_reads = _try(folder, is_cached=False)
    # Asked for once, the first page was not part of a read that failed: nothing is proven.
    if report != _FAILED or first_page_reads < 2:
        return False
    # A cache of pages between the two keeps the first one, so that it is asked for once.
    return _try(folder, is_cached=True)[0] == _FAILED


def _try(folder: str, *, is_cached: bool) -> tuple[bytes, int]:
    """Return what a reader has seen, and how often the first page was asked for."""
    device = fuse_device.open_device()
    pages = TwoPages()
    filesystem = BlobFilesystem([pages], (0,) if is_cached else ())
    server = FuseServer(device, filesystem, max_read_bytes=PAGE_BYTES)
    try:
        mount_fd = fuse_device.create_fuse_mount(device, [], mount.MOUNT_ATTR_RDONLY)
    except BaseException:
        server.close()
        raise
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        _read_and_exit(folder, device, mount_fd, write_end)
    os.close(write_end)
    os.close(mount_fd)
    server.start()
    with open(read_end, "rb") as pipe:
        report = pipe.read()
    os.waitpid(pid, 0)
    # Its mounts went with the child, and so did the connection.
    server.close()
    if report not in (_FAILED, _ZEROS):
        error = decode_error(report)
        raise NoKernelMountError(str(error), hint=error.hint)
    return report, pages.first_page_reads


def _read_and_exit(folder: str, device: int, mount_fd: int, write_end: int) -> NoReturn:
    """Mount and read in a fork of the server, as every reader has to be: see
    :class:`lamina.serve.device.Device`.
    """
    report = b""
    try:
        # A copy of the device would keep the connection after the server's death.
        os.close(device)
        report = _FAILED if len(_read(folder, mount_fd)) <= PAGE_BYTES else _ZEROS
    except Error as error:
        report = encode_error(error)
    except OSError as error:
        report = encode_error(from_os_error(error, "open", f"cannot try a mount in {folder}"))
    finally:
        os.write(write_end, report)
        os._exit(0)


def _read(folder: str, mount_fd: int) -> bytes:
    with open_unnamed_file(folder) as file:
        # Whole: the kernel takes what is missing for zeros.
        write_all(file.fileno(), _bootstrap(), 0)
        options: list[tuple[str, str | None]] = [("device", f"{fd_path(mount_fd)}/0")]
        root = mount.create_mount("erofs", fd_path(file.fileno()), options, mount.MOUNT_ATTR_RDONLY)
    fd = os.open(_NAME, os.O_RDONLY, dir_fd=root)
    try:
        return os.pread(fd, 2 * PAGE_BYTES, 0)
    except OSError:
        return b""


def _bootstrap() -> bytes:
    """Return a tree with one file, which is one chunk of two pages."""
    size = 2 * PAGE_BYTES
    chunk = ChunkIndex(0, 0, 0).pack()
    file = Node(stat.S_IFREG | 0o400, size=size, chunks=chunk)
    root = Node(stat.S_IFDIR | 0o500, children={_NAME.encode(): file})
    blob = BlobEntry("0" * 64, 0, size, 1, 0, 0, 0, size, size, 0, 0, 0, 0, 0)
    return bytes(write_bootstrap(root, [blob], bytes(CHUNK_ENTRY.size), BootstrapOptions(size)))


class TwoPages:
    """A blob of two pages, of which the second cannot be read."""

    size_bytes = 2 * PAGE_BYTES
    path = Path(_NAME)

    def __init__(self) -> None:
        self.first_page_reads = 0

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> int:
        """Fill *buffer* from the first page, and count that.  Raises OSError (EIO)."""
        if offset + len(buffer) > PAGE_BYTES:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self.first_page_reads += 1
        buffer[:] = b"\1" * len(buffer)
        return len(buffer)

    def read_cached(self, _offset: int, _view: memoryview) -> bool:
        """Leave it to :meth:`read_into`."""
        return False
