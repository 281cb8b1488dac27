"""An image with one of everything, blobs in a folder that can fail, and a server of it.

``python -m tests.support.serving FOLDER MOUNTPOINT STORE DEVICE`` leaves a mount to the service, as
``lamina mount`` does, and prints its record.  With ``foreground`` behind that it serves by itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from lamina.content.lazy_image import LazyImage
from lamina.erofs.tree import Node
from lamina.errors import Error, FetchError
from lamina.http.transient import TransientError
from lamina.linux.mount_table import read_mount_table
from lamina.opening.request import OpenRequest
from lamina.posix import own_program
from lamina.serve import devices
from lamina.serve.foreground import serve_foreground
from lamina.serve.mount_records import MountRecord
from lamina.serve.service import program
from lamina.serve.service import spec as specs
from lamina.serve.service.mounting import mount_by_service
from lamina.serve.service.spec import MountSpec, open_reference
from lamina.source.blob_source import BlobSource
from lamina.source.fetcher import Fetcher
from lamina.source.retry import VARIABLE, RetryPolicy
from tests.support.native_images import (
    BuiltImage,
    build_image,
    image_files,
    open_bootstrap,
    some_bytes,
)
from tests.support.range_source import RangeSource

ROOT = Path(__file__).parents[2]

# What is started from here opens images in folders, as below.
program.MODULE = "tests.support.service"
own_program.OPTIONS = ()

CHUNK_SIZE = 16384


class FolderSource(RangeSource):
    """Blobs in ``FOLDER/blobs``.  While ``FOLDER/down`` exists, nothing is delivered; while
    ``FOLDER/held`` does, nothing until it is gone, and ``FOLDER/asked`` tells that something was
    asked for; with ``FOLDER/far``, everything after 10 ms; with ``FOLDER/silent`` nothing comes,
    and nobody says so, for as long as one waits.
    """

    name = "folder"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.requests: list[tuple[int, int]] = []

    def read_range_within(
        self, blob_id: str, offset: int, size_bytes: int, timeout_s: float
    ) -> bytes:
        end = time.monotonic() + timeout_s
        while (self._folder / "silent").exists():
            if time.monotonic() > end:
                raise TransientError("the source is silent")
            time.sleep(0.01)
        return self.read_range(blob_id, offset, size_bytes)

    def read_range(self, blob_id: str, offset: int, size_bytes: int) -> bytes:
        if (self._folder / "down").exists():
            raise FetchError("the source is down")
        while (self._folder / "held").exists():
            (self._folder / "asked").touch()
            time.sleep(0.01)
        if (self._folder / "far").exists():
            time.sleep(0.01)
        self.requests.append((offset, size_bytes))
        with (self._folder / "blobs" / blob_id).open("rb") as file:
            file.seek(offset)
            return file.read(size_bytes)


def sample_image() -> BuiltImage:
    """Files of all sizes, packed and not, and an inode of every other kind."""
    sizes = (0, 1, 4095, 4096, 4097, CHUNK_SIZE, CHUNK_SIZE + 1, 3 * CHUNK_SIZE - 5, 700_000)
    files = {b"sizes/%d" % size: some_bytes(size, size + 1) for size in sizes}
    files |= {b"many/file-%03d" % i: some_bytes(50 + i * 13, i) for i in range(300)}
    files[b"deep/er/and/deeper/name with space \xff"] = b"odd name"
    times = {"mtime": 1_600_000_000, "mtime_ns": 123_456_789}
    nodes = {
        b"link": Node(stat.S_IFLNK | 0o777, size=9, target=b"sizes/1/x"[:9], **times),
        b"fifo": Node(stat.S_IFIFO | 0o640, uid=12, gid=34, **times),
        b"socket": Node(stat.S_IFSOCK | 0o755, **times),
        b"null": Node(stat.S_IFCHR | 0o666, rdev=os.makedev(1, 3), **times),
        b"disk": Node(stat.S_IFBLK | 0o660, rdev=259 << 8 | 5, **times),
        b"empty": Node(stat.S_IFDIR | 0o1777, children={}, **times),
        b"marked": Node(
            stat.S_IFDIR | 0o750,
            uid=70000,
            children={},
            xattrs={b"user.note": b"v\0v", b"trusted.t": b"1"},
            **times,
        ),
    }
    return build_image(files, nodes=nodes, chunk_size=CHUNK_SIZE, pack_size=CHUNK_SIZE)


def write_sample(folder: Path) -> BuiltImage:
    """Put a sample image into a folder, as :class:`FolderSource` reads it."""
    image = sample_image()
    image_files(folder, image)
    return image


def start(
    folder: Path, mountpoint: Path, store: Path, device: str, *, foreground: bool = False
) -> dict[str, object]:
    """Leave a mount behind, from a process of its own; raises RuntimeError with what it said."""
    command = [sys.executable, "-m", "tests.support.serving", folder, mountpoint, store, device]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    if foreground:
        server = subprocess.Popen(
            [*command, "foreground"], stdout=subprocess.PIPE, env=environment, cwd=ROOT
        )
        assert server.stdout is not None
        with server.stdout:
            line = server.stdout.readline()
        # Whoever kills it looks whether it is gone, and a zombie is.
        server.returncode = 0
        return dict(json.loads(line))
    done = subprocess.run(
        command, capture_output=True, env=environment, cwd=ROOT, timeout=60, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr.decode())
    record: dict[str, object] = json.loads(done.stdout)
    return record


def is_mounted(mountpoint: Path) -> bool:
    """Whether anything is mounted there."""
    return any(entry.mountpoint == str(mountpoint) for entry in read_mount_table())


def forget_pages(folder: Path) -> None:
    """Have the kernel read the files below a folder anew.

    Not by dropping the caches of the machine: that waits for every file system that is being
    mounted, also by others.
    """
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def open_sample(spec: MountSpec) -> LazyImage:
    """Open the image in the folder that the request names, as the service does; while
    ``FOLDER/wait`` exists, that takes time, as ``FOLDER/waiting`` tells.  Asks once, or as
    ``$LAMINA_RETRY`` says.
    """
    folder = Path(spec.image.reference)
    while (folder / "wait").exists():
        (folder / "waiting").touch()
        time.sleep(0.01)
    source: BlobSource = FolderSource(folder)
    if VARIABLE in os.environ:
        source = Fetcher([source], policy=RetryPolicy.from_environment())
    return open_bootstrap(folder / "image.boot", source, store=spec.image.store)


def open_image(spec: MountSpec) -> LazyImage:
    """Open an image in a folder, or as the service does."""
    if (Path(spec.image.reference) / "image.boot").exists():
        return open_sample(spec)
    return open_reference(spec)


def sample_spec(folder: Path, mountpoint: Path, store: Path, device: str) -> MountSpec:
    """A request to mount the image in a folder."""
    return MountSpec(
        image=OpenRequest(reference=str(folder), store=str(store)),
        mountpoint=str(mountpoint),
        device=device,
    )


def add_devices() -> None:
    """Have the devices whose modules are in the folder ``$LAMINA_TEST_DEVICES``."""
    if folder := os.environ.get("LAMINA_TEST_DEVICES"):
        devices.__path__.append(folder)


def main() -> int:
    """Mount; the arguments are in the module's text."""
    folder, mountpoint, store, device, *foreground = sys.argv[1:]
    spec = sample_spec(Path(folder), Path(mountpoint), Path(store), device)

    def tell(record: MountRecord) -> None:
        fields = {name: getattr(record, name) for name in record.__struct_fields__}
        print(json.dumps(fields), flush=True)

    specs.open_reference = open_image
    add_devices()
    try:
        if foreground:
            serve_foreground(spec, tell)
        else:
            tell(mount_by_service(spec))
    except Error as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())


def kill_together(pids: Iterable[int]) -> None:
    """Kill processes in one stroke: stopped first, none of them can replace another."""
    found = list(pids)
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
