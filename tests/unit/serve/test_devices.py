"""A device is one module: its name stands nowhere else, and a new one needs no other change."""

from __future__ import annotations

import ast
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.native_images import open_bootstrap
from tests.support.serving import FolderSource, start, write_sample
from tests.support.tools import require_root

import lamina
from lamina.errors import UnsupportedError, UsageError
from lamina.serve import devices
from lamina.serve.devices import device_names, eligible_devices, find_device
from lamina.serve.mount import mount_image
from lamina.serve.mounts import unmount

SOURCE = Path(lamina.__file__).parent
TOY = '''
"""A device that shows the length of each blob as the modification time of the root."""
import stat
from lamina.serve.fuse_mount import FuseMount, LazilyOpenedFilesystem
from lamina.serve.fuse_server import refuse
from lamina.wire import fuse, fuse_reply

class Filesystem:
    flags = fuse.InitFlag(0)
    def __init__(self, image):
        self._sum = sum(blob.size_bytes for blob in image.blobs)
    def handle(self, request, scratch):
        if request.opcode != fuse.Opcode.GETATTR:
            raise refuse(request)
        root = fuse.Attributes(1, 0, 0, (self._sum, 0), stat.S_IFDIR | 0o511, 2, 0, 0, 0)
        return fuse_reply.encode_attr(root, 0)
    def forget(self, nodeid, lookups): ...

class Toy:
    name, rank, needs_root, shares_images = "toy-sum", None, True, True
    needs_metadata_file = True
    def require(self): ...
    def hold(self, image, owner): ...
    def mount(self, job):
        job.place_fuse([("allow_other", None)])
    def serve(self, mount, image, answering):
        filesystem = LazilyOpenedFilesystem(image, "toy", Filesystem.flags, Filesystem)
        return FuseMount(mount, image, filesystem, answering.threads)

DEVICE = Toy()
'''


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """One more module, and nothing else."""
    folder = tmp_path / "devices"
    folder.mkdir()
    (folder / "toy_sum.py").write_text(TOY)
    monkeypatch.setattr(devices, "__path__", [*devices.__path__, str(folder)])
    monkeypatch.setenv("LAMINA_TEST_DEVICES", str(folder))
    yield "toy-sum"


def test_each_module_has_its_name() -> None:
    assert {"fanotify", "fuse-blob", "fuse"} <= set(device_names())
    for name in device_names():
        assert find_device(name).name == name


def test_a_name_stands_in_one_module() -> None:
    # Some ask for one by name, and "fuse" is a word of Linux too.
    allowed = {
        "fuse": {"linux/fuse_device.py", "containerd/server.py", "serve/run.py"},
        "fuse-blob": {"cli/recording.py", "containerd/server.py"},
    }
    for name in device_names():
        own = f"serve/devices/{name.replace('-', '_')}.py"
        found = {
            str(path.relative_to(SOURCE))
            for path in SOURCE.rglob("*.py")
            if any(
                isinstance(node, ast.Constant) and node.value == name
                for node in ast.walk(ast.parse(path.read_text()))
            )
        }
        assert found - allowed.get(name, set()) == {own}


def test_auto_tries_what_fails_closed_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert [each.name for each in eligible_devices("auto")] == ["fuse-blob", "fuse"]
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert [each.name for each in eligible_devices("auto")] == ["fuse"]
    with pytest.raises(UnsupportedError, match="fanotify needs root"):
        eligible_devices("fanotify")


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(UsageError, match="no device 'floppy'") as caught:
        find_device("floppy")
    assert "fuse-blob" in str(caught.value.hint)


def shown(mountpoint: Path) -> tuple[str, int]:
    status = mountpoint.stat()
    return stat.filemode(status.st_mode), int(status.st_mtime)


@pytest.mark.kernel
def test_a_new_device_serves_in_this_process(tmp_path: Path, toy: str) -> None:
    require_root()
    write_sample(tmp_path / "image")
    (tmp_path / "mnt").mkdir()
    boot = tmp_path / "image" / "image.boot"
    with open_bootstrap(boot, FolderSource(tmp_path / "image"), store=tmp_path / "s") as image:
        size = sum(blob.size_bytes for blob in image.blobs)
        with mount_image(image, tmp_path / "mnt", toy) as mounted:
            assert mounted.device == toy
            assert shown(tmp_path / "mnt") == ("dr-x--x--x", size)


@pytest.mark.kernel
@pytest.mark.parametrize("foreground", [False, True], ids=["service", "foreground"])
def test_a_new_device_serves_wherever_the_others_do(
    tmp_path: Path, toy: str, foreground: bool
) -> None:
    require_root()
    write_sample(tmp_path / "image")
    (tmp_path / "mnt").mkdir()
    store = tmp_path / "store"
    record = start(tmp_path / "image", tmp_path / "mnt", store, toy, foreground=foreground)
    try:
        assert record["device"] == toy
        assert shown(tmp_path / "mnt")[0] == "dr-x--x--x"
    finally:
        unmount(tmp_path / "mnt")
