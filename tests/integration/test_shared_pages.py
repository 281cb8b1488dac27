"""Mounts of one image share a superblock: pages are there once, options and life are each one's."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.linux.mount_table import read_mount_table
from lamina.serve import sharing
from lamina.serve.mounts import MountState, list_mounts, unmount, unmount_all
from lamina.serve.runtime_folder import state_directory
from lamina.serve.service.client import service_status, upgrade_service
from lamina.serve.service.mounting import mount_by_service
from lamina.serve.service.spec import MountSpec
from tests.support.native_images import build_image, image_files, some_bytes
from tests.support.serving import ROOT, is_mounted, kill_together, sample_spec
from tests.support.tools import require_erofs, require_kernel, require_root
from tests.support.waiting import wait_for_no_mounts, wait_until

pytestmark = pytest.mark.kernel

CONTENT = some_bytes(1_000_000, 7)
WAIT_S = 30.0
_LIBC = ctypes.CDLL(None, use_errno=True)


@pytest.fixture(params=("fuse-blob", "fanotify", "fuse"))
def device(request: pytest.FixtureRequest) -> str:
    require_root()
    require_kernel(6, 12, "EROFS over files")
    if request.param != "fuse":
        require_erofs()
    if request.param == "fanotify":
        require_kernel(6, 14, request.param)
    return str(request.param)


class Image:
    """One image, and folders to mount it on."""

    def __init__(self, folder: Path, device: str) -> None:
        self.folder, self.device = folder, device
        # The rest keeps it incomplete, or a mount would need nobody after the first read.
        files = {b"file": CONTENT, b"rest": some_bytes(500_000, 8), b"folder/file": b"other"}
        image_files(folder / "image", build_image(files, chunk_size=65536, blob_count=3))

    def spec(self, name: str, *options: str, **fields: object) -> MountSpec:
        (self.folder / name).mkdir(exist_ok=True)
        plain = sample_spec(
            self.folder / "image", self.folder / name, self.folder / "store", self.device
        )
        return MountSpec(
            image=plain.image,
            mountpoint=plain.mountpoint,
            device=self.device,
            options=options,
            **fields,  # type: ignore[arg-type]
        )

    def mount(self, name: str, *options: str, **fields: object) -> Path:
        mount_by_service(self.spec(name, *options, **fields))
        return self.folder / name


@pytest.fixture
def image(tmp_path: Path, device: str) -> Iterator[Image]:
    image = Image(tmp_path, device)
    yield image
    list(unmount_all())
    wait_for_no_mounts()


def resident_pages(path: Path) -> int:
    """How many pages of a file the kernel has, without reading any."""
    size = path.stat().st_size
    pages = -(-size // mmap.PAGESIZE)
    with path.open("rb") as file:
        # Private and never touched: mincore tells of the pages of the file.
        mapped = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY)
    vector = (ctypes.c_ubyte * pages)()
    address = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
    assert _LIBC.mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), vector) == 0
    return sum(each & 1 for each in vector)


@contextlib.contextmanager
def locked_pages(path: Path) -> Iterator[None]:
    """Have all pages of a file, which the kernel gives to nobody else during the block."""
    size = path.stat().st_size
    with path.open("rb") as file:
        _LIBC.mmap.restype = ctypes.c_void_p
        address = ctypes.c_void_p(
            _LIBC.mmap(
                None,
                ctypes.c_size_t(size),
                mmap.PROT_READ,
                mmap.MAP_SHARED,
                file.fileno(),
                ctypes.c_long(0),
            )
        )
    assert _LIBC.mlock(address, ctypes.c_size_t(size)) == 0
    try:
        yield
    finally:
        assert _LIBC.munmap(address, ctypes.c_size_t(size)) == 0


def devices(*folders: Path) -> set[int]:
    return {folder.stat().st_dev for folder in folders}


def test_what_one_has_read_is_there_for_the_other(image: Image) -> None:
    first, second = image.mount("a"), image.mount("b")
    assert len(devices(first, second)) == 1
    assert (first / "file").read_bytes() == CONTENT
    pages = -(-len(CONTENT) // mmap.PAGESIZE)
    # The second adds nothing to what the first has: all of its pages are there already.
    with locked_pages(first / "file"):
        assert resident_pages(second / "file") == pages
    assert (second / "file").read_bytes() == CONTENT
    assert [each.state for each in list_mounts()] == [MountState.SERVED] * 2
    assert len({each.ready_bytes for each in list_mounts()}) == 1


def test_each_has_its_options(image: Image) -> None:
    first = image.mount("a", "suid,dev")
    second = image.mount("b", "noexec,noatime")
    table = {entry.mountpoint: set(entry.options.split(",")) for entry in read_mount_table()}
    assert table[str(first)] - {"relatime"} == {"ro"}
    assert table[str(second)] == {"ro", "nosuid", "nodev", "noexec", "noatime"}


@pytest.mark.parametrize("order", ["first", "last"])
def test_each_has_its_life(image: Image, order: str) -> None:
    folders = [image.mount(name) for name in "abc"]
    if order == "last":
        folders.reverse()
    for number, folder in enumerate(folders):
        unmount(folder)
        left = folders[number + 1 :]
        # The last one has a server for as long as a program of another test has a copy of it.
        wait_until(
            lambda left=left: (
                {each.record.mountpoint for each in list_mounts()} == set(map(str, left))
            )
        )
        for other in left:
            assert (other / "file").read_bytes() == CONTENT
    wait_for_no_mounts()


def test_one_that_is_unmounted_by_hand_is_noticed(image: Image) -> None:
    first, second = image.mount("a"), image.mount("b")
    subprocess.run(["umount", first], check=True)
    wait_until(lambda: {each.record.mountpoint for each in list_mounts()} == {str(second)})
    assert (second / "file").read_bytes() == CONTENT
    third = image.mount("c")
    assert len(devices(second, third)) == 1


def test_who_opens_it_otherwise_has_a_superblock_of_his_own(image: Image) -> None:
    first = image.mount("a")
    other = image.mount("b", limit_rate=1e9)
    lower = image.mount("c", as_lower=True)
    assert len(devices(first, other, lower)) == 3


def test_all_go_on_when_processes_are_killed(image: Image) -> None:
    folders = [image.mount(name) for name in "abc"]
    unmount(folders.pop(0))
    for roles in (("worker",), ("supervisor",), ("supervisor", "holder"), ("holder",)):
        status = service_status()
        assert status is not None
        kill_together(status.pids[role] for role in roles)
        wait_until(lambda: len(list_mounts()) == 2)
        for folder in folders:
            assert (folder / "file").read_bytes() == CONTENT
    assert {each.record.mountpoint for each in list_mounts()} == set(map(str, folders))


def test_all_go_on_when_the_service_is_upgraded(image: Image) -> None:
    folders = [image.mount(name) for name in "abc"]
    assert upgrade_service()
    wait_until(lambda: len(list_mounts()) == 3)
    unmount(folders.pop(0))
    for folder in folders:
        assert (folder / "file").read_bytes() == CONTENT
    assert len(devices(*folders, image.mount("d"))) == 1


def test_what_the_service_cannot_see_has_a_superblock_of_its_own(image: Image) -> None:
    """It would not learn of the end of such a mount."""
    first = image.mount("a")
    image.spec("b")
    words = [image.folder / "image", image.folder / "b", image.folder / "store", image.device]
    mount = f"{sys.executable} -m tests.support.serving {' '.join(map(str, words))}"
    apart = ("unshare", "-m", "--propagation", "private", "sh", "-c")
    done = subprocess.run(
        [*apart, f"{mount} && stat -c %d {words[1]}"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"},
        check=True,
    )
    assert int(done.stdout.splitlines()[-1]) != first.stat().st_dev
    assert (first / "file").read_bytes() == CONTENT


def test_what_is_mounted_over_one_is_not_taken_for_it(image: Image) -> None:
    """A folder of the same image has the same ``st_dev``."""
    first = image.mount("a")
    subprocess.run(["mount", "--bind", first / "folder", first], check=True)
    try:
        second = image.mount("b")
        assert (second / "file").read_bytes() == CONTENT
    finally:
        subprocess.run(["umount", first], check=True)


def test_another_file_system_in_the_place_of_one_is_not_taken_for_it(image: Image) -> None:
    """``st_dev`` of what is gone comes again."""
    if image.device == "fuse":
        pytest.skip("always has a server, which notices")
    first = image.mount("a")
    for path in (first / "file", first / "rest", first / "folder" / "file"):
        path.read_bytes()
    unmount(first)
    # Complete: nobody notices that it ends.
    number = image.mount("b").stat().st_dev
    others = []
    subprocess.run(["umount", image.folder / "b"], check=True)
    try:
        for attempt in range(64):
            others.append(image.folder / (f"t{attempt}" if attempt else "b"))
            others[-1].mkdir(exist_ok=True)
            subprocess.run(["mount", "-t", "tmpfs", "other", others[-1]], check=True)
            if others[-1].stat().st_dev == number:
                break
        else:
            pytest.skip("the number does not come again")
        if others[-1] != image.folder / "b":
            subprocess.run(["mount", "--bind", others[-1], image.folder / "b"], check=True)
            others.append(image.folder / "b")
        second = image.mount("c")
        assert (second / "file").read_bytes() == CONTENT
    finally:
        for other in reversed(others):
            subprocess.run(["umount", other], check=True)


def test_one_whose_maker_is_killed_at_that_moment_is_listed(
    image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = image.mount("a")
    image.spec("b")
    attach = sharing.mount.attach_mount

    def attach_and_die(mount_fd: int, mountpoint: str | int) -> None:
        attach(mount_fd, mountpoint)
        os._exit(9)

    pid = os.fork()
    if pid == 0:
        try:
            monkeypatch.setattr(sharing.mount, "attach_mount", attach_and_die)
            image.mount("b")
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    second = image.folder / "b"
    assert {each.record.mountpoint: each.state for each in list_mounts()} == {
        str(first): MountState.SERVED,
        str(second): MountState.BROKEN,
    }
    unmount(second)
    assert not is_mounted(second)
    assert (image.mount("b") / "file").read_bytes() == CONTENT


def test_what_is_written_of_mounts_is_for_their_owner_alone(image: Image) -> None:
    before = os.umask(0)
    try:
        image.mount("a")
        image.mount("b")
    finally:
        os.umask(before)
    files = [path for path in state_directory().rglob("*") if path.is_file()]
    assert {path.parent.name for path in files} >= {"shared", "mounts"}
    assert {
        path.name: path.stat().st_mode & 0o077 for path in files if path.stat().st_mode & 0o077
    } == {}


def test_one_that_is_complete_shares_as_well(image: Image) -> None:
    if image.device == "fuse":
        pytest.skip("always has a server")
    first = image.mount("a")
    for path in (first / "file", first / "rest", first / "folder" / "file"):
        path.read_bytes()
    unmount(first)
    # All is here: these need no server.
    first, second = image.mount("b"), image.mount("c")
    assert len(devices(first, second)) == 1
    assert [each.state for each in list_mounts()] == [MountState.RESIDENT] * 2
    unmount(first)
    assert (second / "file").read_bytes() == CONTENT
    assert is_mounted(second)
