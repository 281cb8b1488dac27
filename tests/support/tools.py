"""What tests ask of the machine, and the reasons they give when it is not there."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path
from typing import NoReturn

import pytest

from tests.support.cache import cache_folder
from tests.support.peers import find_peer

SHARED = Path(__file__).resolve().parents[3] / "shared"
"""Specification and fixtures beside the repository; optional."""


def missing(reason: str) -> NoReturn:
    """Skip with a reason; fail where LAMINA_TEST_STRICT says that every tool must be there
    (continuous integration).
    """
    if os.environ.get("LAMINA_TEST_STRICT"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def require_tool(*names: str) -> list[str]:
    """Paths of programs; a missing one skips the test and is named."""
    paths = [find_program(name) for name in names]
    absent = [name for name, path in zip(names, paths, strict=True) if path is None]
    if absent:
        missing(f"not installed: {', '.join(absent)} (make test installs them on Debian as root)")
    return [path for path in paths if path is not None]


def find_program(name: str) -> str | None:
    """Path of a program on PATH or in the folders for administrators, which PATH may lack."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin:/usr/local/sbin")


def require_root() -> None:
    """Skip unless the effective user is root."""
    if os.geteuid() != 0:
        missing("needs root")


def require_kernel(major: int, minor: int, feature: str) -> None:
    """Skip on a kernel older than the one that has the feature."""
    release = platform.release().split(".")
    if (int(release[0]), int("".join(c for c in release[1] if c.isdigit()))) < (major, minor):
        pytest.skip(f"{feature} needs Linux {major}.{minor}, this is {platform.release()}")


def require_erofs() -> None:
    """Skip where the kernel cannot mount EROFS."""
    if "\terofs\n" not in Path("/proc/filesystems").read_text():
        pytest.skip("the kernel has no EROFS (modprobe erofs?)")


def require_shared(*parts: str) -> Path:
    """A path under ``../shared``; skips where that folder is not beside the repository."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"../shared/{'/'.join(parts)} is not beside the repository")
    return path


def require_peer(name: str) -> Path:
    """A peer tool that ``make peers`` left in the cache; skips by name otherwise."""
    path = find_peer(name)
    if path is None:
        pytest.skip(f"peer {name} is not in {cache_folder('peers')} (make peers)")
    return path
