"""The archive of the guest image: the same bytes of the same files, as other programs read it."""

from __future__ import annotations

import importlib.util
import io
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def archive(tree: Path) -> bytes:
    spec = importlib.util.spec_from_file_location(
        "guest_archive", ROOT / "distribution/guest_archive.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    file = io.BytesIO()
    module.write_archive(tree, file)
    return file.getvalue()


def make_tree(folder: Path, names: list[str]) -> None:
    folder.mkdir()
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode() * 1000)
        path.chmod(0o700 if name.startswith("bin") else 0o600)
    (folder / "bin/sh").symlink_to("busybox")


def test_the_same_files_are_the_same_archive_whenever_they_were_written(tmp_path: Path) -> None:
    names = ["bin/busybox", "init", "usr/lib/x.so", "usr/lib-2", "usr/lib/a/b"]
    make_tree(tmp_path / "one", names)
    make_tree(tmp_path / "two", names[::-1])
    os.utime(tmp_path / "two/init", (1, 1))
    (tmp_path / "two/init").chmod(0o644)
    assert archive(tmp_path / "one") == archive(tmp_path / "two")
    (tmp_path / "two/init").chmod(0o755)
    assert archive(tmp_path / "one") != archive(tmp_path / "two")


def test_cpio_reads_it(tmp_path: Path) -> None:
    make_tree(tmp_path / "tree", ["bin/busybox", "init"])
    command = ["busybox", "cpio", "-tv"]
    try:
        done = subprocess.run(
            command, input=archive(tmp_path / "tree"), capture_output=True, check=True
        )
    except FileNotFoundError:
        pytest.skip("not installed: busybox")
    lines = done.stdout.decode().splitlines()
    assert [line.split()[0] for line in lines] == [
        "drwxr-xr-x",
        "-rwxr-xr-x",
        "lrwxrwxrwx",
        "-rw-r--r--",
    ]
    assert "bin/sh -> busybox" in lines[2]


def test_what_cannot_be_in_it_is_refused(tmp_path: Path) -> None:
    make_tree(tmp_path / "tree", ["bin/busybox"])
    os.mkfifo(tmp_path / "tree/pipe")
    with pytest.raises(ValueError, match="no file, folder or link"):
        archive(tmp_path / "tree")
