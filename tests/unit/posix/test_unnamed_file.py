"""Temporary files without a name."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from lamina.posix.unnamed_file import open_unnamed_file


def check_file(folder: Path) -> None:
    with open_unnamed_file(str(folder)) as file:
        assert os.listdir(folder) == []
        assert file.write(b"content") == 7
        assert os.pread(file.fileno(), 10, 0) == b"content"


def test_no_name_appears(tmp_path: Path) -> None:
    check_file(tmp_path)


def test_a_file_system_that_makes_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def without_tmpfile(path: str, flags: int, mode: int = 0o777, **rest: int) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return real(path, flags, mode, **rest)

    monkeypatch.setattr(os, "open", without_tmpfile)
    check_file(tmp_path)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        open_unnamed_file(str(tmp_path / "missing"))
