"""Ending and removing containers that nobody looks after."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest
from tests.support.tools import require_root
from tests.unit.containers.test_record import kept, record

from lamina.containers.claim import Claim
from lamina.containers.control import remove, remove_abandoned, tidy
from lamina.containers.places import Container, find_container
from lamina.containers.record import read_record, write_record
from lamina.errors import StoreError
from lamina.serve.container_folders import create_folders


@pytest.fixture
def lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Container:
    """A container whose supervisors have gone, and a runtime that knows nothing of it."""
    monkeypatch.setenv("LAMINA_RUNTIME", str(tmp_path / "run"))
    return seen_lost(tmp_path, 1.0)


def seen_lost(tmp_path: Path, created_s: float) -> Container:
    make(tmp_path, created_s).close()
    found = find_container("box", tmp_path / "store")
    assert found.is_lost
    return found


def make(tmp_path: Path, created_s: float) -> Claim:
    bundle = tmp_path / "run/containers/box"
    bundle.mkdir(parents=True, mode=0o700)
    program = shutil.which("true")
    assert program is not None
    made = msgspec.structs.replace(record("box", str(bundle)), program=program, created_s=created_s)
    return Claim(str(bundle), str(kept(tmp_path / "store", made)))


def test_a_lost_one_is_ended(lost: Container) -> None:
    tidy(lost)
    assert not os.path.exists(lost.bundle)
    found = read_record(lost.folder)
    assert found is not None
    assert found.exit_code == 137


@pytest.mark.kernel
def test_the_image_of_a_lost_one_is_unmounted(lost: Container) -> None:
    """One that the kernel reads by itself stays mounted, whoever has ended."""
    require_root()
    image = os.path.join(lost.bundle, "image")
    os.mkdir(image)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", image], check=True)
    tidy(lost)
    assert not os.path.exists(lost.bundle)


def test_another_that_has_got_its_name_is_left_alone(lost: Container, tmp_path: Path) -> None:
    """Somebody waited for one that was ended and removed meanwhile."""
    shutil.rmtree(lost.bundle)
    shutil.rmtree(lost.folder)
    claim = make(tmp_path, 2.0)
    try:
        before = read_record(lost.folder)
        tidy(lost)
        assert os.path.exists(lost.bundle)
        assert read_record(lost.folder) == before
    finally:
        claim.close()


def test_one_whose_makers_were_killed_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAMINA_RUNTIME", str(tmp_path / "run"))
    (tmp_path / "run").mkdir(mode=0o700)
    folders = create_folders(str(tmp_path / "store"), "box", str(tmp_path / "run"))
    claim = Claim(folders.bundle, folders.changes)
    assert remove_abandoned("box") is None
    claim.close()
    assert remove_abandoned("../containers/box") is None
    assert remove_abandoned("box") is not None
    assert not os.path.exists(folders.bundle)
    assert not os.path.exists(folders.changes)


def test_what_cannot_be_removed_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: Container
) -> None:
    tidy(lost)

    def refuse(path: Path) -> None:
        raise PermissionError(1, "not permitted", str(path))

    with monkeypatch.context() as patched:
        patched.setattr("lamina.store.containers.shutil.rmtree", refuse)
        with pytest.raises(StoreError, match="cannot remove"):
            remove("box", tmp_path / "store")
    fd = os.open(lost.folder, os.O_RDONLY)
    write_record(fd, lost.record)
    os.close(fd)
    assert remove("box", tmp_path / "store") > 0
    assert not (tmp_path / "store/containers").exists()
