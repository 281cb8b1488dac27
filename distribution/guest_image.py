"""Make the image of a guest: a kernel of Debian, and an initial RAM disk with Python and Lamina.

usage: python distribution/guest_image.py FOLDER      as `make guest-image`, with the project's venv

The same packages and sources give the same bytes.  ``image.json`` in FOLDER has what it was made
of, and the SHA-384 of both files.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import zstandard
from guest_archive import write_archive

ROOT = Path(__file__).resolve().parent.parent
PYTHON = os.environ.get("PYTHON", "/usr/bin/python3")
KERNEL_SERIES = "6.12"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
SOURCES = (
    "http://deb.debian.org/debian bookworm main",
    "http://deb.debian.org/debian-security bookworm-security main",
    "http://deb.debian.org/debian bookworm-backports main",
)
PACKAGES = (
    *("libc6", "libgcc-s1", "zlib1g", "libexpat1", "libssl3", "libffi8", "liblzma5", "libbz2-1.0"),
    *("python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib", "libuuid1"),
    *("busybox-static", "dmsetup", "libdevmapper1.02.1", "libselinux1", "libpcre2-8-0", "libudev1"),
    *("runc", "libseccomp2", "fuse3", "libfuse3-3"),
)
MODULES = (
    *("virtio_pci", "virtio_blk", "virtio_net", "virtio_console", "fuse", "virtiofs", "overlay"),
    *("erofs", "loop", "dm_verity", "dm_crypt", "xts", "ecb", "sha256_generic", "aes_generic"),
    *("tsm", "sev-guest", "tdx-guest"),
)
"""With all they depend on, where the kernel does not have them built in."""
LEFT_OUT = (
    *("usr/share", "usr/include", "var", "lib/udev", "lib/systemd", "usr/lib/lamina/share"),
    *("usr/lib/python3.11/test", "usr/lib/python3.11/idlelib", "usr/lib/python3.11/lib2to3"),
    *("usr/lib/python3.11/ensurepip", "usr/lib/python3.11/tkinter", "usr/lib/python3.11/distutils"),
    *("usr/lib/python3.11/pydoc_data", "usr/lib/python3.11/turtledemo", "etc"),
)
PROGRAM_FOLDERS = ("bin", "sbin", "usr/bin", "usr/sbin")
FOLDERS = ("dev", "etc", "mnt", "proc", "root", "run", "sys", "tmp")
COMPRESSION_LEVEL = 10


class Apt:
    """apt with folders of its own, so that the machine's sources and packages do not matter."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "lists/partial").mkdir(parents=True)
        (folder / "cache/archives/partial").mkdir(parents=True)
        lines = (f"deb [arch=amd64 signed-by={KEYRING}] {source}\n" for source in SOURCES)
        (folder / "sources.list").write_text("".join(lines))
        (folder / "status").touch()
        self.run("get", "update")

    def run(self, program: str, *words: str) -> str:
        """Run apt-get or apt-cache; what it printed."""
        settings = {
            "Dir::Etc::SourceList": self.folder / "sources.list",
            "Dir::Etc::SourceParts": "/dev/null",
            "Dir::State::Lists": self.folder / "lists",
            "Dir::State::status": self.folder / "status",
            "Dir::Cache": self.folder / "cache",
            "Acquire::Languages": "none",
            "APT::Architecture": "amd64",
            "APT::Sandbox::User": "root",
        }
        options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
        command = [f"apt-{program}", "-q", *options, *words]
        return subprocess.run(
            command, cwd=self.folder, stdout=subprocess.PIPE, text=True, check=True
        ).stdout

    def newest_kernel(self) -> str:
        """Name of the package of the newest kernel for clouds."""
        pattern = rf"linux-image-{re.escape(KERNEL_SERIES)}\.([0-9.]+)[-+~a-z0-9.]*-cloud-amd64"
        listed = self.run("cache", "search", "--names-only", f"^{pattern}$").splitlines()
        names = [line.split()[0] for line in listed]
        return max(names, key=lambda name: [int(part) for part in re.findall(r"[0-9]+", name)])

    def download(self, *packages: str) -> list[Path]:
        """Fetch packages; where they are."""
        self.run("get", "download", *packages)
        return sorted(self.folder.glob("*.deb"))


def install_lamina(tree: Path) -> None:
    """Put Lamina and what it needs from PyPI below ``/usr/lib/lamina``, as for a package."""
    environment = {**os.environ, "DESTDIR": str(tree), "PREFIX": "/usr", "PYTHON": PYTHON}
    subprocess.run([ROOT / "distribution/install"], env=environment, check=True)
    python = tree / "usr/lib/lamina/bin/python3"
    python.unlink()
    python.symlink_to("/usr/bin/python3.11")


def compile_modules(tree: Path) -> None:
    """Write byte code that is not compared with its source: an emulated processor compiles long."""
    command = [PYTHON, "-m", "compileall", "-q", "-j", "1", "--invalidation-mode", "unchecked-hash"]
    for folder in ("usr/lib/python3.11", "usr/lib/lamina"):
        words = [*command, "-s", str(tree), "-p", "/", str(tree / folder)]
        subprocess.run(words, env={**os.environ, "PYTHONHASHSEED": "0"}, check=False)


def add_modules(kernel: Path, tree: Path) -> None:
    """Put the modules into ``/modules``, named in the order in which they are to be loaded."""
    files = {_module_name(path): path for path in sorted(kernel.rglob("*.ko*"))}
    folder = tree / "modules"
    folder.mkdir()
    for number, name in enumerate(_in_order(files, MODULES)):
        (folder / f"{number:02}-{name}.ko").write_bytes(_read_module(files[name]))


def _in_order(files: dict[str, Path], names: Iterable[str]) -> Iterator[str]:
    done: set[str] = set()

    def visit(name: str) -> Iterator[str]:
        name = name.replace("-", "_")
        if name in done or name not in files:
            return
        done.add(name)
        match = re.search(rb"\0depends=([^\0]*)\0", _read_module(files[name]))
        for other in match[1].decode().split(",") if match else ():
            yield from visit(other)
        yield name

    for name in names:
        yield from visit(name)


def _module_name(path: Path) -> str:
    return path.name.partition(".")[0].replace("-", "_")


def _read_module(path: Path) -> bytes:
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else data


def finish_tree(tree: Path) -> None:
    """Leave out what nothing here needs, and add the first program."""
    for name in LEFT_OUT:
        shutil.rmtree(tree / name, ignore_errors=True)
    for name in FOLDERS:
        (tree / name).mkdir(exist_ok=True)
    compile_modules(tree)
    add_applets(tree)
    (tree / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\n")
    (tree / "etc/group").write_text("root:x:0:\n")
    (tree / "etc/mtab").symlink_to("/proc/self/mounts")
    shutil.copy(ROOT / "distribution/guest_init", tree / "init")
    (tree / "init").chmod(0o755)


def add_applets(tree: Path) -> None:
    """Link the programs of busybox that nothing else brings."""
    busybox = tree / "bin/busybox"
    listed = subprocess.run([busybox, "--list"], stdout=subprocess.PIPE, text=True, check=True)
    there = {path.name for name in PROGRAM_FOLDERS for path in (tree / name).glob("*")}
    for name in listed.stdout.split():
        if name not in there:
            (tree / "bin" / name).symlink_to("busybox")


def digest(path: Path, algorithm: str = "sha384") -> str:
    """The digest of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def make(folder: Path, work: Path) -> dict[str, object]:
    """Write ``vmlinuz``, ``initrd`` and ``image.json``; what that says."""
    apt = Apt(work / "apt")
    kernel_name = apt.newest_kernel()
    packages = apt.download(kernel_name, *PACKAGES)
    kernel, tree = work / "kernel", work / "tree"
    for package in packages:
        into = kernel if package.name.startswith("linux-image-") else tree
        subprocess.run(["dpkg-deb", "-x", package, into], check=True)
    add_modules(kernel, tree)
    install_lamina(tree)
    finish_tree(tree)
    folder.mkdir(parents=True, exist_ok=True)
    (vmlinuz,) = kernel.glob("boot/vmlinuz-*")
    shutil.copyfile(vmlinuz, folder / "vmlinuz")
    compressor = zstandard.ZstdCompressor(level=COMPRESSION_LEVEL, threads=0)
    with (folder / "initrd").open("wb") as file, compressor.stream_writer(file) as archive:
        write_archive(tree, archive)
    told: dict[str, object] = {name: digest(folder / name) for name in ("vmlinuz", "initrd")}
    told["packages"] = {package.name: digest(package, "sha256") for package in packages}
    (folder / "image.json").write_text(json.dumps(told, indent=1) + "\n")
    return told


def main() -> int:
    """Make the image and print its measurement."""
    if len(sys.argv) != 2:
        print("usage: guest_image.py FOLDER", file=sys.stderr)
        return 2
    told = subprocess.run([PYTHON, "--version"], stdout=subprocess.PIPE, text=True, check=False)
    if not told.stdout.startswith("Python 3.11."):
        # Its byte code and its compiled modules are those of the guest.
        print(f"guest_image: {PYTHON} is not Python 3.11, as in Debian 12", file=sys.stderr)
        return 1
    folder = Path(sys.argv[1])
    with tempfile.TemporaryDirectory(prefix="lamina-guest-image-") as name:
        made = make(folder, Path(name))
    for part in ("vmlinuz", "initrd"):
        size = (folder / part).stat().st_size
        print(f"{part:8} {size / 1e6:6.1f} MB  sha384:{made[part]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
