"""What is true of mounts on any kernel, checked by root of a machine of its own.

``python tests/support/in_guest.py LAZY RESIDENT NAME...``: the devices that ``auto`` is to choose
for an image that is not here and for one that is complete, and the checks to make in this order.
Prints a line a check; the exit code is the number of those that failed.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Final

from lamina.content.lazy_image import LazyImage
from lamina.errors import UnsupportedError
from lamina.image.compare import compare
from lamina.image.folder import FolderImage
from lamina.linux.mount import attach_mount, create_mount
from lamina.linux.mount import unmount as syscall_unmount
from lamina.serve.mount_records import MountRecord
from lamina.serve.mounts import list_mounts, unmount
from lamina.serve.service.mounting import mount_by_service
from tests.support.native_images import BuiltImage, build_image, image_files, open_bootstrap
from tests.support.serving import (
    FolderSource,
    forget_pages,
    kill_together,
    sample_image,
    sample_spec,
)

LAZY, RESIDENT, *NAMES = sys.argv[1:]
BASE: Final = Path("/disk/mounts")
CHUNK_BYTES: Final = 128 * 1024
BIG_BYTES: Final = 8 << 20
PAGE_BYTES: Final = 4096
USER: Final = 1000
CONNECTION_GONE: Final = (errno.EIO, errno.ENOTCONN, errno.ECONNABORTED)
MESSAGES = io.StringIO()
READERS: Final = {
    # A kernel with large pages asks for 2 MiB at once, which FUSE splits into 16 requests.
    "large pages": "m = mmap.mmap(fd, 0, prot=mmap.PROT_READ, flags=mmap.MAP_SHARED)\n"
    "m.madvise(mmap.MADV_HUGEPAGE)\n"
    "for at in range(0, 2 << 20, 4096): os.write(1, m[at:at + 4096])",
    "far ahead": "os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)\n"
    "for at in range(0, 1 << 19, 4096): os.write(1, os.pread(fd, 4096, at))",
}
"""Programs that write to standard output what they read of ``fd``, until they cannot."""


class Image:
    """An image in a folder that can go down, and where it is mounted."""

    def __init__(self, name: str, built: BuiltImage) -> None:
        self.base = BASE / name
        self.folder = self.base / "image"
        self.built = built
        self.mountpoint = self.base / "mnt"
        self.mountpoint.mkdir(parents=True)
        image_files(self.folder, built)

    def mount(self, device: str = "auto") -> MountRecord:
        spec = sample_spec(self.folder, self.mountpoint, self.base / "store", device)
        return mount_by_service(spec)

    def open(self, store: str) -> LazyImage:
        source = FolderSource(self.folder)
        return open_bootstrap(self.folder / "image.boot", source, store=self.base / store)

    def differences(self) -> list[str]:
        with self.open("reference") as image:
            return [str(each) for each in compare(image, FolderImage(self.mountpoint))]

    def errors(self, *, every: int = 1) -> list[int]:
        """Read files; what is read is right, or an error that is returned."""
        found = []
        for name, content in list(self.built.contents.items())[::every]:
            try:
                got = (self.mountpoint / os.fsdecode(name)).read_bytes()
            except OSError as error:
                assert error.errno is not None
                found.append(error.errno)
            else:
                assert got == content, f"{name!r} has other bytes"
        return found

    def go(self, *, down: bool) -> None:
        (self.folder / "down").touch() if down else (self.folder / "down").unlink()


SAMPLE = Image("sample", sample_image())
BIG = Image("big", build_image({b"big": os.urandom(BIG_BYTES)}, chunk_size=CHUNK_BYTES))


def check_auto_chooses_the_device() -> None:
    record = SAMPLE.mount()
    assert record.device == LAZY, record
    assert not record.resident
    told = MESSAGES.getvalue()
    assert ("so the whole tree is served by FUSE" in told) == (LAZY == "fuse"), told


def check_a_dead_source_is_an_error_and_then_recovers() -> None:
    SAMPLE.go(down=True)
    errors = SAMPLE.errors(every=20)
    assert errors and set(errors) == {errno.EIO}, errors
    SAMPLE.go(down=False)


def check_the_tree_is_the_image() -> None:
    assert SAMPLE.differences() == []


def check_a_read_that_fails_in_part_shows_no_zeros() -> None:
    """Of what the kernel asks for at once, the first chunk is here and the others cannot come."""
    record = BIG.mount()
    assert record.device == LAZY
    content = BIG.built.contents[b"big"]
    # As after a program asked for it, or where sysfs cannot be written to.
    for path in Path("/sys/class/bdi").glob("*-*/read_ahead_kb"):
        path.write_text("128")
    fd = os.open(BIG.mountpoint / "big", os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    assert os.pread(fd, PAGE_BYTES, 0) == content[:PAGE_BYTES]
    os.close(fd)
    BIG.go(down=True)
    for name, program in READERS.items():
        forget_pages(BIG.mountpoint)
        lines = f"import mmap, os, sys\nfd = os.open(sys.argv[1], os.O_RDONLY)\n{program}"
        command = [sys.executable, "-S", "-c", lines, BIG.mountpoint / "big"]
        done = subprocess.run(command, capture_output=True, check=False)
        assert content.startswith(done.stdout), f"{name}: other bytes, {summary(done.stdout)}"
        assert done.returncode != 0, f"{name}: all {len(done.stdout)} bytes were read"
    BIG.go(down=False)
    assert BIG.errors() == []


def summary(data: bytes) -> str:
    pages = [data[at : at + PAGE_BYTES] for at in range(0, len(data), PAGE_BYTES)]
    return f"{pages.count(bytes(PAGE_BYTES))} of {len(pages)} pages are zeros"


def check_the_kernel_mount_is_refused_where_auto_avoids_it() -> None:
    image = Image("refused", build_image({b"file": b"content"}))
    try:
        image.mount("fuse-blob")
    except UnsupportedError as error:
        assert error.hint is not None and "6.12" in error.hint, error
    else:
        raise AssertionError("the image was mounted")


def check_a_complete_image_is_mounted_directly() -> None:
    image = Image("complete", sample_image())
    with image.open("store") as opened:
        for blob in opened.blobs:
            blob.ensure(0, blob.size_bytes)
    record = image.mount()
    # Device fuse asks for the table of chunks when it first reads.
    assert image.errors(every=300) == []
    image.go(down=True)
    assert (record.device, record.resident) == (RESIDENT, RESIDENT == "fuse-blob"), record
    assert image.errors(every=3) == []
    unmount(image.mountpoint)


def check_users_mount_the_tree() -> None:
    image = Image("user", sample_image())
    for path in (image.base, *image.base.rglob("*")):
        os.chown(path, USER, USER)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setgid(USER)
            os.setuid(USER)
            os.environ["LAMINA_RUNTIME"] = f"/tmp/lamina-{USER}"
            assert image.mount().device == "fuse"
            assert image.errors(every=5) == []
            unmount(image.mountpoint)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def check_a_disk_over_nbd_is_the_image() -> None:
    """The host serves the sample image; no Lamina is needed to mount it."""
    folder = BASE / "nbd"
    folder.mkdir()
    mount = create_mount("erofs", "/dev/vdb", [("ro", None)])
    attach_mount(mount, str(folder))
    os.close(mount)
    with SAMPLE.open("reference") as image:
        assert [str(each) for each in compare(image, FolderImage(folder))] == []
    syscall_unmount(str(folder))


def check_a_killed_service_is_an_error() -> None:
    for image in (BIG, SAMPLE):
        forget_pages(image.mountpoint)
    pids = [pid for status in list_mounts() for pid in status.pids.values()]
    assert pids
    kill_together(set(pids))
    errors = BIG.errors() + SAMPLE.errors(every=20)
    assert errors and set(errors) <= set(CONNECTION_GONE), errors
    for image in (BIG, SAMPLE):
        unmount(image.mountpoint, lazy=True)


def main() -> int:
    """Run the checks."""
    logging.basicConfig(level=logging.INFO, stream=MESSAGES)
    failed = 0
    for name in NAMES:
        check = globals()[name]
        begun = time.monotonic()
        try:
            check()
        except Exception:
            failed += 1
            print(f"FAILED {name}\n{traceback.format_exc()}", flush=True)
        else:
            print(f"ok {name} ({time.monotonic() - begun:.1f} s)", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
