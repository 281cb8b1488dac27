"""What a guest finds in its initial RAM disk: an interpreter, the project, an init."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import marshal
import os
import re
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Final

from tests.support.tools import find_program

PROGRAMS: Final = ("fusermount3", "dmsetup")
FOLDERS: Final = ("dev", "disk", "etc", "proc", "run", "sys", "tmp")
LEFT_OUT: Final = {
    *("__pycache__", "site-packages", "dist-packages", "test", "tests", "unittest", "idlelib"),
    *("tkinter", "ensurepip", "lib2to3", "turtledemo", "pydoc_data", "sqlite3", "distutils"),
}
"""Folders of the standard library that nothing here needs."""

_UNCHECKED_HASH: Final = b"\x01\0\0\0" + bytes(8)


class Cpio:
    """Writes an archive in the form that the kernel unpacks (``newc``, cpio(5))."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._inode = 0
        self._folders: set[str] = set()

    def add(self, name: str, data: bytes, mode: int = stat.S_IFREG | 0o644) -> None:
        """Add a file, or with another mode something else, and the folders above it."""
        name = name.strip("/")
        parent = os.path.dirname(name)
        if parent:
            self.add_folder(parent)
        self._entry(name, data, mode)

    def add_folder(self, name: str) -> None:
        """Add a folder and those above it, once each."""
        name = name.strip("/")
        if not name or name in self._folders:
            return
        self.add_folder(os.path.dirname(name))
        self._folders.add(name)
        self._entry(name, b"", stat.S_IFDIR | 0o755)

    def add_file(self, path: Path, name: str | None = None) -> None:
        """Add a file of this machine, by default in the same place; links are followed."""
        mode = path.stat().st_mode
        self.add(name or str(path), path.read_bytes(), mode)

    def finish(self) -> None:
        """Write the end of the archive."""
        self._entry("TRAILER!!!", b"", 0)

    def _entry(self, name: str, data: bytes, mode: int) -> None:
        self._inode += 1
        encoded = os.fsencode(name) + b"\0"
        fields = (self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(encoded), 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields)
        self._file.write(_padded(header + encoded))
        self._file.write(_padded(data))


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def add_interpreter(archive: Cpio) -> None:
    """The running Python at its own place, its standard library, and the project's dependencies."""
    executable = Path(sys.executable)
    binary = executable.resolve()
    archive.add_file(binary)
    needed = {binary}
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(_library_files(library)):
        _add_code(archive, path, str(path))
        if ".so" in path.suffixes:
            needed.add(path)
    needed |= _add_distributions(archive, _dependencies())
    for program in PROGRAMS:
        found = find_program(program)
        if found is not None:
            archive.add_file(Path(found), f"/usr/bin/{program}")
            needed.add(Path(found))
    for path in sorted(_shared_libraries(needed)):
        archive.add_file(path)
    for folder in FOLDERS:
        archive.add_folder(folder)
    archive.add("etc/mtab", b"/proc/self/mounts", stat.S_IFLNK | 0o777)
    archive.add("etc/passwd", b"root:x:0:0::/:/bin/sh\nuser:x:1000:1000::/tmp:/bin/sh\n")
    archive.add("etc/group", b"root:x:0:\nuser:x:1000:\n")
    start = f"#!{binary} -S\n".encode()
    init = Path(__file__).with_name("guest_init.py").read_bytes()
    archive.add("init", start + init, stat.S_IFREG | 0o755)


def add_confidential(archive: Cpio) -> None:
    """What opening sealed images and running containers takes besides."""
    needed = _add_distributions(archive, ("cryptography", "cffi"))
    runtime = find_program("runc")
    if runtime is not None:
        archive.add_file(Path(runtime), "/usr/bin/runc")
        needed.add(Path(runtime))
    for path in sorted(_shared_libraries(needed)):
        archive.add_file(path)


def _add_distributions(archive: Cpio, names: Iterable[str]) -> set[Path]:
    """Add installed distributions, beside the standard library; what is to be linked with."""
    library = sysconfig.get_path("stdlib")
    needed = set()
    for name in names:
        for file in importlib.metadata.files(name) or ():
            if file.suffix in (".py", ".so"):
                path = Path(str(file.locate()))
                _add_code(archive, path, f"{library}/{file}")
                if file.suffix == ".so":
                    needed.add(path)
    return needed


def _library_files(library: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(library):
        folders[:] = [name for name in folders if name not in LEFT_OUT and "config-" not in name]
        for name in files:
            if name.endswith((".py", ".so")) and not name.startswith(("_tkinter", "_sqlite3")):
                yield Path(folder) / name


def _dependencies() -> Iterator[str]:
    """The distributions that the project needs without extras."""
    for requirement in importlib.metadata.requires("lamina") or ():
        match = re.match(r"[A-Za-z0-9_.-]+", requirement)
        if match is not None and "extra ==" not in requirement:
            yield match[0]


def _shared_libraries(files: set[Path]) -> set[Path]:
    done = subprocess.run(["ldd", *files], capture_output=True, text=True, check=False)
    found = re.findall(r"(?:=>\s|^\s)\s*(/\S+) \(0x", done.stdout, re.MULTILINE)
    return set(map(Path, found))


def add_project(archive: Cpio, root: Path) -> None:
    """The sources, and of the tests what has no need of pytest."""
    for part in ("src", "tests"):
        for path in sorted((root / part).rglob("*.py")):
            if path.name != "conftest.py":
                _add_code(archive, path, f"/project/{path.relative_to(root)}")


def _add_code(archive: Cpio, path: Path, name: str) -> None:
    """A module with its byte code, since compiling takes an emulated processor long."""
    data = path.read_bytes()
    archive.add(name, data)
    if path.suffix != ".py":
        return
    try:
        code = compile(data, name, "exec", dont_inherit=True, optimize=0)
    except (SyntaxError, ValueError):
        return
    compiled = importlib.util.MAGIC_NUMBER + _UNCHECKED_HASH + marshal.dumps(code)
    archive.add(importlib.util.cache_from_source(name), compiled)
