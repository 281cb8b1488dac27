"""What an image says to overlayfs, in ``lamina run``: nothing.  The right answers are those of
containerd 1.6.20 (snapshotter overlayfs) and podman 4.3.1 (vfs).
"""

from __future__ import annotations

import io
import os
import platform
import stat
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from lamina.cli.self_tests import write_layout
from lamina.erofs.tree import Node
from lamina.opening.request import OpenRequest
from lamina.serve.mounts import unmount
from lamina.serve.service.mounting import mount_by_service
from lamina.serve.service.spec import MountSpec
from tests.support.containers import small_root
from tests.support.native_images import build_image, push_image
from tests.support.static_program import euid_program
from tests.support.tools import require_kernel, require_root, require_tool

pytestmark = [pytest.mark.kernel, pytest.mark.tools]

ROOT = Path(__file__).parents[2]
MARKS = "SCHILY.xattr.trusted.overlay."
BIG = 20_000


def entry(archive: tarfile.TarFile, name: str, data: bytes | None = b"", **marks: str) -> None:
    """Add a file, or with None a folder, with overlay's attributes."""
    info = tarfile.TarInfo(name)
    info.type, info.mode = (tarfile.DIRTYPE, 0o755) if data is None else (tarfile.REGTYPE, 0o644)
    info.size = len(data or b"")
    info.pax_headers = {MARKS + key.replace("__", "."): value for key, value in marks.items()}
    archive.addfile(info, io.BytesIO(data or b""))


def whiteout(archive: tarfile.TarFile, name: str) -> None:
    info = tarfile.TarInfo(name)
    info.type, info.mode = tarfile.CHRTYPE, 0
    archive.addfile(info)


def program(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.mode, info.size = 0o4755, len(data)
    archive.addfile(info, io.BytesIO(data))


def lamina(*words: str, store: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    if store is not None:
        environment["LAMINA_STORE"] = str(store)
    return subprocess.run(
        [sys.executable, "-m", "lamina", *words],
        capture_output=True,
        env=environment,
        timeout=120,
        stdin=subprocess.DEVNULL,
        text=True,
    )


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Every mark that a kernel up to Linux 6.18 knows, on files and folders of a busybox."""
    require_root()
    require_tool("runc")
    folder = tmp_path_factory.mktemp("image")
    root = small_root(folder / "root")
    with tarfile.open(folder / "layer.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        archive.add(root, ".")
        entry(archive, "opaque", None, opaque="y")
        entry(archive, "opaque/in", b"in\n", uuid="u", upper="u", impure="y")
        entry(archive, "marked", None, opaque="x")
        entry(archive, "marked/gone", b"", whiteout="y")
        entry(archive, "marked/there", b"there\n", nlink="U+3")
        entry(archive, "elsewhere", None)
        entry(archive, "elsewhere/inner", b"inner\n")
        entry(archive, "moved", None, redirect="/elsewhere")
        entry(archive, "moved/own", b"own\n")
        entry(archive, "meta", b"content of meta\n", metacopy="x", redirect="/elsewhere/inner")
        entry(archive, "origin", b"origin\n", origin="zz", overlay__metacopy="x", protattr="i")
        whiteout(archive, "opaque/whiteout")
        if platform.machine() == "x86_64":
            program(archive, "bin/whoami-effectively", euid_program())
    write_layout(folder / "layout", "marks", (folder / "layer.tar").read_bytes(), {})
    done = lamina("convert", f"oci:{folder}/layout:marks", f"oci:{folder}/native:marks")
    assert done.returncode == 0, done.stderr
    return f"oci:{folder}/native:marks"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "store"
    assert not (tmp_path / "store/containers").exists()


@pytest.fixture(params=["fanotify", "fuse-blob", "fuse"])
def device(request: pytest.FixtureRequest) -> str:
    name = str(request.param)
    if name == "fanotify":
        require_kernel(6, 14, "fanotify pre-content events")
    if name == "fuse-blob":
        require_kernel(6, 12, "file-backed EROFS")
    return name


def shell(image: str, store: Path, device: str, text: str, *options: str) -> str:
    words = ("run", "--rm", "--device", device, *options, image, "sh", "-c", text)
    done = lamina(*words, store=store)
    assert done.returncode == 0, done.stderr
    return done.stdout


READ = """
cat /opaque/in /marked/there /moved/own /meta /origin; wc -c < /marked/gone; ls /marked /moved
cat /moved/inner /opaque/whiteout 2>&1; true
"""
WRITE = """
echo more >> /meta; cat /meta; touch /moved/new /opaque/new /marked/new; rm -f /opaque/whiteout
mkdir /opaque/whiteout; ls /moved /opaque /opaque/whiteout /marked
rm /marked/gone; mv /marked/there /marked/then; cat /marked/then; ls /marked
"""


def test_marks_of_an_image_are_nothing_to_overlayfs(image: str, store: Path, device: str) -> None:
    said = shell(image, store, device, READ).splitlines()
    assert said == [
        *("in", "there", "own", "content of meta", "origin", "0"),
        *("/marked:", "gone", "there", "", "/moved:", "own"),
        "cat: can't open '/moved/inner': No such file or directory",
        "cat: can't open '/opaque/whiteout': No such file or directory",
    ]


def test_marks_are_not_copied_up(image: str, store: Path, device: str) -> None:
    said = shell(image, store, device, WRITE).splitlines()
    assert said == [
        *("content of meta", "more", "/marked:", "gone", "new", "there", "", "/moved:", "new"),
        *(
            "own",
            "",
            "/opaque:",
            "in",
            "new",
            "whiteout",
            "",
            "/opaque/whiteout:",
            "there",
            "new",
            "then",
        ),
    ]


def test_a_mount_shows_the_image_as_it_is(
    image: str, store: Path, device: str, tmp_path: Path
) -> None:
    (tmp_path / "mnt").mkdir()
    words = ("mount", "--device", device, image, str(tmp_path / "mnt"))
    assert lamina(*words, store=store).returncode == 0
    try:
        assert os.getxattr(tmp_path / "mnt/opaque", "trusted.overlay.opaque") == b"y"
    finally:
        assert lamina("umount", str(tmp_path / "mnt"), store=store).returncode == 0


def test_a_mount_of_the_service_that_is_for_an_overlay(
    image: str, store: Path, device: str, tmp_path: Path
) -> None:
    """As the snapshotter mounts; beside it a plain mount of the same image stays as it is."""
    spec = MountSpec(
        image=OpenRequest(reference=image, store=str(store)),
        mountpoint=str(tmp_path / "plain"),
        device=device,
    )
    lower = msgspec.structs.replace(spec, mountpoint=str(tmp_path / "lower"), as_lower=True)
    for each in (spec, lower):
        Path(each.mountpoint).mkdir()
        mount_by_service(each)
    try:
        marks = "trusted.overlay.opaque"
        assert marks in os.listxattr(tmp_path / "plain/opaque")
        assert marks not in os.listxattr(tmp_path / "lower/opaque")
        with pytest.raises(OSError, match="No data available"):
            os.getxattr(tmp_path / "lower/opaque", marks)
    finally:
        for each in (spec, lower):
            unmount(each.mountpoint)


def test_set_uid_programs_work_in_a_container(image: str, store: Path, device: str) -> None:
    euid_program()
    words = ("run", "--rm", "--device", device, "-u", "77", image, "/bin/whoami-effectively")
    done = lamina(*words, store=store)
    assert (done.returncode, done.stderr) == (0, "")
    text = "cp /bin/whoami-effectively /x; /x"
    words = ("run", "--rm", "--device", device, "-u", "77", "--tmpfs", "/t:exec", image, "sh", "-c")
    assert lamina(*words, text.replace("/x", "/t/x"), store=store).returncode == 77


def test_an_attribute_of_the_root_that_is_refused(tmp_path: Path) -> None:
    """EROFS has room for values of 64 KiB, ext4 for one block.  Images of ours have none there,
    but others may.
    """
    require_root()
    require_tool("runc")
    note = {b"user.note": b"v" * BIG}
    root = Node(stat.S_IFDIR | 0o755, xattrs=note, children={})
    push_image(build_image({b"file": b"content"}, root=root), tmp_path / "native", tag="big")
    try:
        os.setxattr(tmp_path, "user.note", b"v" * BIG)
    except OSError:
        pass
    else:
        pytest.skip("the file system of this folder takes large attributes")
    done = lamina("run", "--rm", f"oci:{tmp_path}/native:big", "true", store=tmp_path / "store")
    assert done.returncode == 125
    assert "'user.note'" in done.stderr
    assert "setxattr failed with ENOSPC" in done.stderr
    assert "hint: " in done.stderr
    assert "Traceback" not in done.stderr
