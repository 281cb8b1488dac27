"""Lamina installed as a user installs it: ``pip install .`` into an empty virtual environment."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cache import exclusive

ROOT = Path(__file__).resolve().parents[2]
LEFT_OUT = (".git", ".venv", "results", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis")


def copy_of_repository(folder: Path) -> Path:
    """A copy of the source tree without what tools leave in it; pip builds inside of it."""
    copied = shutil.copytree(ROOT, folder / "lamina", ignore=shutil.ignore_patterns(*LEFT_OUT))
    for made in ("build", "dist"):
        shutil.rmtree(Path(copied) / made, ignore_errors=True)
    return Path(copied)


def empty_environment(folder: Path) -> Path:
    """A virtual environment with nothing but pip; return its ``bin``."""
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
    return folder / "venv" / "bin"


@pytest.fixture(scope="session")
def installed_lamina(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``bin`` of an environment into which only ``pip install .`` went; workers share it."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    folder = folder / "installed"
    folder.mkdir(exist_ok=True)
    with exclusive(folder / "lock"):
        programs = folder / "venv" / "bin"
        if not (programs / "lamina").exists():
            _install(copy_of_repository(folder), empty_environment(folder))
    return programs


def _install(source: Path, programs: Path) -> None:
    done = subprocess.run(
        [programs / "python", "-m", "pip", "install", "-q", "."],
        cwd=source,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"pip install . failed:\n{done.stdout}{done.stderr}"
