"""Kernels of Debian, fetched as packages and unpacked into the cache; nothing is installed.

apt works in folders of its own, so it needs no root, and the sources of the machine do not matter.
"""

from __future__ import annotations

import lzma
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

from tests.support.cache import cache_folder, exclusive
from tests.support.tools import find_program, missing

SOURCES: Final = (
    "http://deb.debian.org/debian-security bookworm-security main",
    "http://deb.debian.org/debian bookworm-backports main",
)
KEYRING: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_PACKAGE: Final = r"linux-image-([0-9.]+[-+~a-z0-9.]*)-cloud-amd64"


class Kernel(NamedTuple):
    """An unpacked package; ``release`` is what ``uname -r`` says in it."""

    release: str
    folder: Path

    @property
    def version(self) -> tuple[int, ...]:
        """(6, 12, 43) of ``6.12.43+deb12-cloud-amd64``."""
        return _version(self.release)

    @property
    def image(self) -> Path:
        """What a boot loader loads."""
        return self.folder / "boot" / f"vmlinuz-{self.release}"

    def modules(self, names: Iterable[str]) -> list[Path]:
        """Files of the modules with these names that are not built in, behind those they need."""
        base = self.folder / "lib" / "modules" / self.release / "kernel"
        paths = {_module_name(path): path for path in base.rglob("*.ko*")}
        found: list[Path] = []

        def visit(name: str) -> None:
            path = paths.get(name)
            if path is None or path in found:
                return
            for other in _needed(read_module(path)):
                visit(other)
            found.append(path)

        for name in names:
            visit(name)
        return found


def read_module(path: Path) -> bytes:
    """A module as the kernel takes it."""
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else data


def _needed(module: bytes) -> list[str]:
    """The modules that one needs first, which is in its section ``.modinfo``."""
    match = re.search(rb"\0depends=([^\0]*)\0", module)
    return [_module_name(name) for name in match[1].decode().split(",")] if match else []


def _module_name(path: str | Path) -> str:
    return Path(path).name.partition(".")[0].replace("-", "_")


def require_kernel_package(series: str, *, oldest: bool = False) -> Kernel:
    """The newest, or the oldest, kernel of a series (``6.12``) that Debian 12 has had; from the
    cache where one was fetched before.  Skips where it cannot be got.
    """
    folder = folder_of(series, oldest=oldest)
    with exclusive(folder.parent / ".lock"):
        if not folder.exists():
            _fetch(series, folder, oldest=oldest)
    release = next(folder.glob("boot/vmlinuz-*")).name.removeprefix("vmlinuz-")
    return Kernel(release, folder)


def folder_of(series: str, *, oldest: bool) -> Path:
    """Where a kernel is kept in the cache, be it there or not."""
    return cache_folder("kernels") / f"{series}-{'oldest' if oldest else 'newest'}"


def _fetch(series: str, folder: Path, *, oldest: bool) -> None:
    if find_program("apt-get") is None or not KEYRING.exists():
        missing("kernels are fetched with apt, and this is no Debian system")
    apt = folder.parent / "apt"
    shutil.rmtree(apt, ignore_errors=True)
    (apt / "lists" / "partial").mkdir(parents=True)
    (apt / "cache" / "archives" / "partial").mkdir(parents=True)
    lines = (f"deb [arch=amd64 signed-by={KEYRING}] {source}\n" for source in SOURCES)
    (apt / "sources.list").write_text("".join(lines))
    # One source that does not answer need not matter.
    _apt(apt, "get", "update", may_fail=True)
    package = _choose(_apt(apt, "cache", "search", "--names-only", _PACKAGE), series, oldest)
    _apt(apt, "get", "download", package)
    archive = next(apt.glob("*.deb"))
    staging = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(staging, ignore_errors=True)
    subprocess.run(["dpkg-deb", "-x", archive, staging], check=True)
    staging.rename(folder)
    shutil.rmtree(apt)


def _choose(listing: str, series: str, oldest: bool) -> str:
    packages = [line.split()[0] for line in listing.splitlines()]
    found = [
        (_version(match[1]), package)
        for package in packages
        if (match := re.fullmatch(_PACKAGE, package)) and match[1].startswith(f"{series}.")
    ]
    if not found:
        missing(f"Debian 12 has no kernel {series} for clouds")
    return (min if oldest else max)(found)[1]


def _version(release: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"[0-9]+", release)[:4])


def _apt(folder: Path, program: str, *arguments: str, may_fail: bool = False) -> str:
    settings = {
        "Dir::Etc::SourceList": folder / "sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State::Lists": folder / "lists",
        "Dir::Cache": folder / "cache",
        "Acquire::Languages": "none",
        "APT::Architecture": "amd64",
        "APT::Sandbox::User": "root",
    }
    options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
    done = subprocess.run(
        [f"apt-{program}", "-q", *options, *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        check=False,
    )
    if done.returncode and not may_fail:
        missing(f"apt-{program} {arguments[0]} failed: {done.stderr.strip()[-300:]}")
    return done.stdout
