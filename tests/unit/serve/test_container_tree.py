"""Where the paths of a container lead, whatever its image has there: never out of its tree."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.descriptors import open_descriptors

from lamina.errors import FormatError
from lamina.serve.container_tree import MAX_LINKS, ContainerTree


class Case:
    """A tree ``root`` beside a folder ``host`` that must stay as it is."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        self.host = folder / "host"
        for each in (self.root, self.host):
            each.mkdir()
        self.tree = ContainerTree(str(self.root))

    def resolve(self, path: str) -> str:
        return self.tree.resolve(path).path

    def folder(self, path: str) -> int:
        return self.tree.folder(self.tree.resolve(path))[0]

    def link(self, path: str, target: str) -> None:
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(target)


@pytest.fixture
def case(tmp_path: Path) -> Iterator[Case]:
    made = Case(tmp_path)
    with made.tree:
        yield made
    assert os.listdir(made.host) == []


def test_links_that_images_have(case: Case) -> None:
    case.link("var/run", "/run")
    case.link("lib", "usr/lib")
    case.link("etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf")
    case.link("opt/app", "current/")
    case.link("opt/current", "./v2")
    assert case.resolve("/var/run/docker.sock") == "/run/docker.sock"
    assert case.resolve("/lib/x86_64") == "/usr/lib/x86_64"
    assert case.resolve("/etc/resolv.conf") == "/run/systemd/resolve/stub-resolv.conf"
    assert case.resolve("/opt/app/conf") == "/opt/v2/conf"
    assert case.resolve("/not/there/yet") == "/not/there/yet"
    assert case.resolve("/") == "/"


def test_links_cannot_leave_the_tree(case: Case) -> None:
    host = str(case.host)
    case.link("absolute", host)
    case.link("relative", "../../../../../../../.." + host)
    case.link("a/b/up", "../../../host")
    case.link("twice", "absolute/../host")
    for path in ("/absolute/x", "/relative/x", "/a/b/up/x", "/twice/x"):
        os.close(case.folder(path))
        assert os.path.isdir(str(case.root) + case.resolve(path))
    assert case.resolve("/absolute/x") == f"{host}/x"
    assert case.resolve("/a/b/up/x") == "/host/x"


def test_a_link_that_comes_between_is_not_followed(case: Case) -> None:
    """Who shares a volume may exchange a folder after it was looked at."""
    (case.root / "data/sub").mkdir(parents=True)
    place = case.tree.resolve("/data/sub/x")
    (case.root / "data/sub").rmdir()
    case.link("data/sub", str(case.host))
    with pytest.raises(FormatError, match="/data/sub/x"):
        case.tree.folder(place)
    with pytest.raises(FormatError, match="/data/sub/x"):
        case.tree.file(place)


@pytest.mark.parametrize("target", ["loop", "/loop", "./loop/x", "a/../loop"])
def test_endless_links(case: Case, target: str) -> None:
    case.link("loop", target)
    with pytest.raises(FormatError, match="no end"):
        case.resolve("/loop/file")


def test_long_chains(case: Case) -> None:
    for number in range(MAX_LINKS):
        case.link(f"link{number}", f"link{number + 1}")
    assert case.resolve("/link0/x") == f"/link{MAX_LINKS}/x"
    case.link(f"link{MAX_LINKS}", "end")
    with pytest.raises(FormatError, match="no end"):
        case.resolve("/link0/x")


def test_paths_that_grow(case: Case) -> None:
    case.link("grow", "/".join(["d"] * 900) + "/more")
    deep = case.root
    for _ in range(900):
        deep = deep / "d"
    os.makedirs(deep)
    (deep / "more").symlink_to("/".join(["e"] * 1900))
    with pytest.raises(FormatError, match="too long"):
        case.resolve("/grow/x")
    with pytest.raises(FormatError, match="too long"):
        case.resolve("/" + "x/" * 4000)


@pytest.mark.parametrize(
    "target",
    [
        "/proc/self/fd/7",
        "/proc",
        "/dev",
        "/dev/fd",
        "../../../proc/1/root",
        "/sys/fs/cgroup",
        "dev",
    ],
)
def test_links_into_the_kernels_folders(case: Case, target: str) -> None:
    case.link("place", target)
    with pytest.raises(FormatError, match="leads to /"):
        case.resolve("/place")
    with pytest.raises(FormatError, match="leads to /"):
        case.resolve("/place/x")


@pytest.mark.parametrize(
    "path",
    ["/proc/self", "/proc/self/fd/7", "/proc/1/root/x", "/proc/thread-self/cwd", "/dev/fd/7",
     "/dev/stdin", "/proc/sys/../self/root", "/usr/../proc/8/cwd"],
)  # fmt: skip
def test_paths_that_lead_on_in_the_kernels_folders(case: Case, path: str) -> None:
    with pytest.raises(FormatError, match="leads out"):
        case.resolve(path)


def test_the_kernels_folders_themselves(case: Case) -> None:
    case.link("run/shm", "/dev/shm")
    for path in ("/proc", "/sys/fs/cgroup", "/dev", "/dev/fuse", "/dev/shm/x", "/proc/sys/net"):
        assert case.resolve(path) == path
    assert case.resolve("/run/shm/x") == "/dev/shm/x"
    assert case.resolve("/dev/../etc/x") == "/etc/x"


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(str(path))


def make_whiteout(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR)
    except PermissionError:
        pytest.skip("needs CAP_MKNOD")


def make_link(path: Path) -> None:
    path.symlink_to("/nothing")


def make_file(path: Path) -> None:
    path.write_text("text")


SPECIAL = {"FIFO": make_fifo, "socket": make_socket, "device": make_whiteout, "link": make_link}


@pytest.mark.parametrize("kind", [*SPECIAL, "file"])
def test_what_is_no_folder_is_refused(case: Case, kind: str) -> None:
    place = case.tree.resolve("/etc/place/x")
    (case.root / "etc").mkdir()
    {**SPECIAL, "file": make_file}[kind](case.root / "etc/place")
    for opened in (case.tree.folder, case.tree.file):
        with pytest.raises(FormatError, match=kind):
            opened(place)


@pytest.mark.parametrize("kind", SPECIAL)
def test_what_is_no_file_is_refused(case: Case, kind: str) -> None:
    place = case.tree.resolve("/hosts")
    SPECIAL[kind](case.root / "hosts")
    with pytest.raises(FormatError, match=kind):
        case.tree.file(place)


def test_a_folder_for_a_file_and_the_other_way_round(case: Case) -> None:
    (case.root / "folder").mkdir()
    (case.root / "file").write_text("text")
    with pytest.raises(FormatError, match="a folder is there"):
        case.tree.file(case.tree.resolve("/folder"))
    with pytest.raises(FormatError, match="a file is there"):
        case.folder("/file")
    assert (case.root / "file").read_text() == "text"


def test_what_is_made(case: Case) -> None:
    before = os.umask(0o077)
    try:
        fd, made = case.tree.folder(case.tree.resolve("/a/b"))
        os.close(fd)
        os.close(case.tree.file(case.tree.resolve("/c/file")))
    finally:
        os.umask(before)
    assert made
    assert stat.S_IMODE((case.root / "a/b").stat().st_mode) == 0o755
    assert stat.S_IMODE((case.root / "c").stat().st_mode) == 0o755
    assert (case.root / "c/file").read_bytes() == b""
    assert stat.S_IMODE((case.root / "c/file").stat().st_mode) == 0o644
    fd, made = case.tree.folder(case.tree.resolve("/a"))
    os.close(fd)
    assert not made


def test_a_file_that_is_there_is_kept(case: Case) -> None:
    """It may be a hard link to something that matters."""
    (case.root / "shadow").write_text("secret")
    os.link(case.root / "shadow", case.root / "hosts")
    os.close(case.tree.file(case.tree.resolve("/hosts")))
    assert (case.root / "shadow").read_text() == "secret"


def test_nothing_is_made_in_a_volume_by_a_link(case: Case) -> None:
    (case.root / "data/there").mkdir(parents=True)
    case.link("place", "/data/chosen")
    case.link("good", "/data/there")
    case.tree.note_volume(case.tree.resolve("/data"))
    for wanted in ("/place", "/place/x", "/good/x"):
        place = case.tree.resolve(wanted)
        with pytest.raises(FormatError, match="into a volume"):
            case.tree.folder(place)
        with pytest.raises(FormatError, match="into a volume"):
            case.tree.file(place)
    os.close(case.folder("/good"))
    os.close(case.folder("/data/named"))
    assert sorted(os.listdir(case.root / "data")) == ["named", "there"]


def test_a_nul_byte(case: Case) -> None:
    with pytest.raises(FormatError, match="NUL"):
        case.resolve("/a\0b")


def test_no_descriptor_is_left(case: Case) -> None:
    before = open_descriptors()
    test_links_that_images_have(case)
    case.link("endless", "endless")
    with pytest.raises(FormatError):
        case.resolve("/lib/../../endless")
    (case.root / "file").write_text("")
    with pytest.raises(FormatError):
        case.folder("/file/x")
    assert open_descriptors() <= before


def test_no_descriptor_is_left_of_a_file_that_is_there(case: Case) -> None:
    """It would keep the container's root mounted, and its image in use, to the end of the run."""
    (case.root / "etc").mkdir()
    (case.root / "etc/hosts").touch()
    before = open_descriptors()
    os.close(case.tree.file(case.tree.resolve("/etc/hosts")))
    assert open_descriptors() <= before
