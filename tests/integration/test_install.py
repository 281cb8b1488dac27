"""``make install`` and ``make uninstall``, into a folder and into the folder of a package."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lamina.version import VERSION
from tests.support.installed import copy_of_repository

pytestmark = pytest.mark.tools


def make(target: str, tree: Path, *, status: int = 0, **variables: object) -> None:
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}
    words = [f"{name}={value}" for name, value in variables.items()]
    done = subprocess.run(
        ["make", target, *words], cwd=tree, env=environment, capture_output=True, text=True
    )
    assert done.returncode == status, done.stdout + done.stderr


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert shutil.which("make")
    return copy_of_repository(tmp_path_factory.mktemp("tree"))


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def test_what_is_installed_runs_and_is_removed_without_a_trace(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "other").touch()
    make("install", tree, PREFIX=tmp_path, PYTHON=sys.executable, EXTRAS="")
    program = tmp_path / "bin" / "lamina"
    # Neither the environment nor the folder that it is called in has a say.
    (tmp_path / "lamina.py").write_text("raise SystemExit('the wrong module')")
    done = subprocess.run(
        [program, "version"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and VERSION in done.stdout, done.stderr
    unit = (tmp_path / "lib/systemd/system/lamina.service").read_text()
    assert f"ExecStart={program} service run\n" in unit
    assert (tmp_path / "etc/logrotate.d/lamina").exists()
    assert (tmp_path / "share/man/man1/lamina-run.1").exists()
    # Again, over what is there: one that fails leaves it as it was, the next takes its place.
    offline = f"--no-index --find-links={tmp_path}"
    make("install", tree, status=2, PREFIX=tmp_path, PYTHON=sys.executable, PIP_OPTIONS=offline)
    assert VERSION in subprocess.check_output([program, "version"], text=True)
    earlier = tmp_path / "share/only-in-the-version-before"
    earlier.touch()
    with open(tmp_path / "lib/lamina/installed-files", "a") as listed:
        listed.write(f"{earlier}\n")
    make("install", tree, PREFIX=tmp_path, PYTHON=sys.executable, PIP_OPTIONS="--no-deps")
    assert not earlier.exists()
    make("uninstall", tree, PREFIX=tmp_path)
    assert files_of(tmp_path) == {"bin/other", "lamina.py"}


def test_a_package_has_no_trace_of_where_it_was_built(tree: Path, tmp_path: Path) -> None:
    staged = tmp_path / "staged-package"
    places = {"PREFIX": "/usr", "DESTDIR": staged}
    make("install", tree, **places, PYTHON=sys.executable, PIP_OPTIONS="--no-deps")
    files = files_of(staged)
    assert {"usr/bin/lamina", "etc/logrotate.d/lamina", "usr/share/man/man1/lamina.1"} <= files
    assert os.readlink(staged / "usr/bin/lamina") == "../lib/lamina/bin/lamina"
    assert {name.split("/")[0] for name in files} == {"usr", "etc"}
    assert not [name for name in files if name.endswith(".pyc")]
    for name in files:
        path = staged / name
        if path.exists() and not path.is_symlink():
            assert b"staged-package" not in path.read_bytes(), name
