"""Every device against this kernel: the tree, concurrent readers, damage, a dead source."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lamina.content.lazy_image import LazyImage
from lamina.errors import NotFoundError, UsageError
from lamina.image.compare import compare
from lamina.image.folder import FolderImage
from lamina.linux.superblock import SuperblockWatch
from lamina.linux.syscalls import SyscallError
from lamina.serve import short_read_probe
from lamina.serve.mount import Mount, mount_image
from lamina.serve.short_read_probe import NoKernelMountError, fails_whole
from tests.support.native_images import BuiltImage, open_bootstrap
from tests.support.serving import FolderSource, forget_pages, is_mounted, write_sample
from tests.support.tools import require_erofs, require_kernel, require_root

pytestmark = pytest.mark.kernel

DEVICES = ("fanotify", "fuse-blob", "fuse")


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    require_device(request.param)
    return str(request.param)


def require_device(device: str) -> None:
    require_root()
    if device != "fuse":
        require_erofs()
        require_kernel(6, 12, "a file-backed EROFS mount")
    if device == "fanotify":
        require_kernel(6, 14, "a fanotify pre-content event")


class Sample:
    """A built image, its source, and the image opened over it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "image"
        self.built: BuiltImage = write_sample(self.folder)
        self.source = FolderSource(self.folder)
        self.mountpoint = folder / "mnt"
        self.mountpoint.mkdir()
        self.store = folder / "store"
        self.image = self.open()
        # The chunk table is not beside the bootstrap, so it is fetched.
        assert len(list(self.image.blobs)) == 1
        self.source.requests.clear()

    def open(self, store: str = "store") -> LazyImage:
        path = self.folder / "image.boot"
        return open_bootstrap(path, self.source, store=self.folder.parent / store)

    def file(self, name: bytes) -> Path:
        return self.mountpoint / os.fsdecode(name)


@pytest.fixture
def sample(tmp_path: Path) -> Iterator[Sample]:
    sample = Sample(tmp_path)
    with sample.image:
        yield sample
    assert not is_mounted(sample.mountpoint)


def differences(left: LazyImage, mountpoint: Path) -> list[str]:
    return [str(difference) for difference in compare(left, FolderImage(mountpoint))]


def test_tree_is_the_image(sample: Sample, device: str) -> None:
    with mount_image(sample.image, sample.mountpoint, device) as mounted:
        assert mounted.device == device
        assert sample.source.requests == [], "mounting fetched file content"
        with sample.open("other store") as reference:
            assert differences(reference, sample.mountpoint) == []
        for name, content in sample.built.contents.items():
            assert sample.file(name).read_bytes() == content


def test_complete_blobs_need_nobody(sample: Sample, device: str) -> None:
    for blob in sample.image.blobs:
        blob.ensure(0, blob.size_bytes)
    (sample.folder / "down").touch()
    with mount_image(sample.image, sample.mountpoint, device):
        assert differences(sample.image, sample.mountpoint) == []


def test_mount_becomes_complete_while_it_is_read(sample: Sample, device: str) -> None:
    with mount_image(sample.image, sample.mountpoint, device):
        for name in sample.built.contents:
            sample.file(name).read_bytes()
        assert all(blob.complete for blob in sample.image.blobs)
        (sample.folder / "down").touch()
        forget_pages(sample.mountpoint)
        for name, content in sample.built.contents.items():
            assert sample.file(name).read_bytes() == content


def test_concurrent_readers_fetch_once(sample: Sample, device: str) -> None:
    names = list(sample.built.contents)
    with mount_image(sample.image, sample.mountpoint, device):

        def read_all(shift: int) -> bool:
            turned = names[shift:] + names[:shift]
            return all(
                sample.file(name).read_bytes() == sample.built.contents[name] for name in turned
            )

        with ThreadPoolExecutor(12) as pool:
            assert all(pool.map(read_all, range(0, 300, 25)))
    fetched = sum(size for _, size in sample.source.requests)
    assert len(set(sample.source.requests)) == len(sample.source.requests)
    # Chunks of one content are fetched once, where the kernel does not fill the file.
    assert fetched <= sum(size for _, size in sample.built.pieces)


def test_this_process_may_read_beside_its_mount(sample: Sample, device: str) -> None:
    """Writing to the cache raises an event for fanotify, which must not wait for its own writer."""
    with mount_image(sample.image, sample.mountpoint, device):
        stat = sample.image.stat("sizes/700000")
        assert sample.image.pread(stat, 0, 700_000) == sample.built.contents[b"sizes/700000"]


def test_damaged_chunk_is_an_error_and_never_bytes(
    sample: Sample, device: str, caplog: pytest.LogCaptureFixture
) -> None:
    offset, size = max(sample.built.pieces, key=lambda piece: piece[1])
    blob = sample.folder / "blobs" / sample.built.blob_id
    data = bytearray(blob.read_bytes())
    data[offset + size // 2] ^= 0x40
    blob.write_bytes(data)
    failed = []
    with mount_image(sample.image, sample.mountpoint, device):
        for name, content in sample.built.contents.items():
            try:
                assert sample.file(name).read_bytes() == content
            except OSError as error:
                assert error.errno == errno.EIO
                failed.append(name)
    assert failed, "a flipped byte went unnoticed"
    messages = [record.getMessage() for record in caplog.records]
    assert any(sample.built.blob_id in text and "chunk" in text for text in messages), messages


def test_source_down_is_an_error_and_then_recovers(sample: Sample, device: str) -> None:
    name = b"sizes/700000"
    (sample.folder / "down").touch()
    with mount_image(sample.image, sample.mountpoint, device):
        with pytest.raises(OSError) as caught:
            sample.file(name).read_bytes()
        assert caught.value.errno == errno.EIO
        (sample.folder / "down").unlink()
        assert sample.file(name).read_bytes() == sample.built.contents[name]


def test_cut_off_cache_file_is_an_error(sample: Sample, device: str) -> None:
    """The kernel would take a short answer for zeros."""
    if device == "fanotify":
        pytest.skip("the kernel reads the cache file itself; nobody but root can cut it off")
    name = b"sizes/700000"
    with mount_image(sample.image, sample.mountpoint, device):
        sample.file(b"sizes/4096").read_bytes()
        blob = sample.image.blobs[0]
        blob.ensure(0, blob.size_bytes)
        os.truncate(blob.path, 4096)
        with pytest.raises(OSError) as caught:
            sample.file(name).read_bytes()
        assert caught.value.errno == errno.EIO


def test_busy_mount_says_so(sample: Sample, device: str) -> None:
    with mount_image(sample.image, sample.mountpoint, device) as mounted:
        with sample.file(b"sizes/1").open("rb"), pytest.raises(SyscallError) as caught:
            mounted.unmount()
        assert caught.value.code == errno.EBUSY
        assert mounted.attached
        assert caught.value.hint is not None


def test_closing_a_busy_mount_gives_its_users_errors(sample: Sample, device: str) -> None:
    name = b"sizes/700000"
    with sample_file_of(mount_image(sample.image, sample.mountpoint, device), sample, name) as fd:
        with pytest.raises(OSError) as caught:
            os.pread(fd, 4096, 650_000)
        assert caught.value.errno in (errno.EIO, errno.ENOTCONN, errno.ECONNABORTED)
    assert not is_mounted(sample.mountpoint)


class sample_file_of:
    """Opens a file of a mount and closes the mount under it."""

    def __init__(self, mounted: Mount, sample: Sample, name: bytes) -> None:
        with mounted:
            self.fd = os.open(sample.file(name), os.O_RDONLY)
            os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_RANDOM)
            assert os.pread(self.fd, 10, 0) == sample.built.contents[name][:10]

    def __enter__(self) -> int:
        return self.fd

    def __exit__(self, *_: object) -> None:
        # FUSE tells of the end of the connection here too.
        with contextlib.suppress(ConnectionError, OSError):
            os.close(self.fd)


def test_wait_returns_when_someone_else_unmounts(sample: Sample, device: str) -> None:
    with mount_image(sample.image, sample.mountpoint, device) as mounted:
        answers: list[bool] = []
        waiting = threading.Thread(target=lambda: answers.append(mounted.wait()))
        waiting.start()
        subprocess.run(["umount", sample.mountpoint], check=True)
        waiting.join(60)
        assert answers == [True]


def test_overlay_on_top(sample: Sample, device: str, tmp_path: Path) -> None:
    upper, work, merged = (tmp_path / name for name in ("upper", "work", "merged"))
    for folder in (upper, work, merged):
        folder.mkdir()
    options = f"lowerdir={sample.mountpoint},upperdir={upper},workdir={work}"
    with mount_image(sample.image, sample.mountpoint, device):
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, merged], check=True)
        try:
            name = os.fsdecode(b"sizes/700000")
            assert (merged / name).read_bytes() == sample.built.contents[b"sizes/700000"]
            (merged / "sizes/1").write_bytes(b"changed")
            assert (upper / "sizes/1").read_bytes() == b"changed"
        finally:
            subprocess.run(["umount", merged], check=True)


def test_mapped_files(sample: Sample, device: str) -> None:
    """A page fault fetches; one that cannot be served is SIGBUS, in another process."""
    program = (
        "import mmap, os, sys; fd = os.open(sys.argv[1], 0);"
        "print(mmap.mmap(fd, 0, prot=mmap.PROT_READ)[-1])"
    )
    name = b"sizes/700000"
    command = [sys.executable, "-c", program, sample.file(name)]
    with mount_image(sample.image, sample.mountpoint, device):
        (sample.folder / "down").touch()
        failed = subprocess.run(command, capture_output=True, check=False)
        assert failed.returncode == -signal.SIGBUS
        (sample.folder / "down").unlink()
        done = subprocess.run(command, capture_output=True, check=True)
        assert int(done.stdout) == sample.built.contents[name][-1]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], {"ro", "nosuid", "nodev"}),
        (["noexec"], {"ro", "nosuid", "nodev", "noexec"}),
        (["suid,dev"], {"ro"}),
        (["suid", "dev", "noexec,noatime"], {"ro", "noexec", "noatime"}),
        (["suid,dev,nosuid"], {"ro", "nosuid"}),
    ],
)
def test_options(sample: Sample, device: str, options: list[str], expected: set[str]) -> None:
    with mount_image(sample.image, sample.mountpoint, device, options=options):
        line = next(
            line
            for line in Path("/proc/self/mountinfo").read_text().splitlines()
            if str(sample.mountpoint) in line
        )
        assert set(line.split()[5].split(",")) - {"relatime"} == expected


def test_device_nodes_work_only_if_asked_for(sample: Sample, device: str) -> None:
    with mount_image(sample.image, sample.mountpoint, device, options=["dev"]):
        assert sample.file(b"null").read_bytes() == b""
        assert os.stat(sample.file(b"null")).st_rdev == os.makedev(1, 3)
    with mount_image(sample.image, sample.mountpoint, device):
        assert os.stat(sample.file(b"null")).st_rdev == os.makedev(1, 3)
        with pytest.raises(PermissionError):
            sample.file(b"null").read_bytes()


def test_bad_requests_are_refused(sample: Sample) -> None:
    require_root()
    with pytest.raises(NotFoundError, match="not a folder"):
        mount_image(sample.image, sample.mountpoint / "absent")
    with pytest.raises(UsageError, match="no device"):
        mount_image(sample.image, sample.mountpoint, "floppy")
    with pytest.raises(UsageError, match="not known"):
        mount_image(sample.image, sample.mountpoint, options=["nodev,sync"])
    with pytest.raises(UsageError, match="'rw'"):
        mount_image(sample.image, sample.mountpoint, options=["rw"])


def test_auto_is_the_device_that_fails_closed(sample: Sample) -> None:
    require_device("fuse-blob")
    with mount_image(sample.image, sample.mountpoint) as mounted:
        assert mounted.device == "fuse-blob"
        assert sample.file(b"sizes/1").read_bytes() == sample.built.contents[b"sizes/1"]


def test_auto_avoids_blobs_by_fuse_where_the_kernel_hides_failed_reads(
    sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_device("fuse-blob")
    refusal = NoKernelMountError("zeros")

    def refuse(folder: Path) -> None:
        raise refusal

    monkeypatch.setattr(short_read_probe, "require_no_short_reads", refuse)
    with mount_image(sample.image, sample.mountpoint) as mounted:
        assert mounted.device == "fuse"
        assert sample.file(b"sizes/1").read_bytes() == sample.built.contents[b"sizes/1"]
    with pytest.raises(NoKernelMountError):
        mount_image(sample.image, sample.mountpoint, "fuse-blob")
    for blob in sample.image.blobs:
        blob.ensure(0, blob.size_bytes)
    with mount_image(sample.image, sample.mountpoint) as mounted:
        assert mounted.device == "fuse-blob"


def test_this_kernel_fails_the_whole_of_a_read(tmp_path: Path) -> None:
    require_device("fuse-blob")
    before = SuperblockWatch("erofs").before
    assert fails_whole(str(tmp_path))
    assert SuperblockWatch("erofs").before <= before, "the trial left a mount behind"


def test_where_the_kernel_cannot_be_tried_there_is_no_kernel_mount() -> None:
    require_device("fuse-blob")
    with pytest.raises(NoKernelMountError, match="/proc"):
        fails_whole("/proc")


def test_a_shortage_of_descriptors_is_an_error_and_passes(sample: Sample) -> None:
    """The kernel makes one for each event: where it cannot, one reader hears of it."""
    require_device("fanotify")
    name = max(sample.built.contents, key=lambda name: len(sample.built.contents[name]))
    code = "import sys; sys.stdin.read(1); open(sys.argv[1], 'rb').read()"
    command = [sys.executable, "-c", code, os.fspath(sample.file(name))]
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with (
        mount_image(sample.image, sample.mountpoint, "fanotify"),
        subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as reader,
        contextlib.ExitStack() as taken,
    ):
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
        taken.callback(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
        with contextlib.suppress(OSError):
            while True:
                taken.callback(os.close, os.dup(0))
        assert reader.stdin is not None
        os.write(reader.stdin.fileno(), b".")
        assert reader.wait(60) != 0
        taken.close()
        assert sample.file(name).read_bytes() == sample.built.contents[name]
