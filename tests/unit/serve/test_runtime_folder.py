"""The folder of what is about mounts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lamina.errors import StoreError, UsageError
from lamina.serve.runtime_folder import state_directory


def test_state_folder_must_be_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: os.stat(tmp_path).st_uid or 1)
    monkeypatch.delenv("LAMINA_RUNTIME", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    if os.stat(tmp_path).st_uid == 0:
        os.chown(tmp_path, 1, 1)
        with pytest.raises(StoreError, match="only you"):
            state_directory()
        os.chown(tmp_path / "lamina", 1, 1)
    assert state_directory() == tmp_path / "lamina"
    (tmp_path / "lamina").chmod(0o777)
    with pytest.raises(StoreError, match="only you"):
        state_directory()


def test_a_state_folder_that_cannot_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAMINA_RUNTIME", str(tmp_path / "absent" / "below"))
    with pytest.raises(StoreError, match=r"below: No such file or directory$"):
        state_directory()


def test_a_relative_path_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service works in another folder, and so does who looks after a container."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LAMINA_RUNTIME", "run")
    with pytest.raises(UsageError, match="LAMINA_RUNTIME is not absolute: run"):
        state_directory()
    assert not list(tmp_path.iterdir())
