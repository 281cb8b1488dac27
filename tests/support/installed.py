"""Lamina made into distributions, and installed as a user installs it: from the source distribution
into an empty virtual environment.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cache import exclusive

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("build>=1.2", "check-wheel-contents>=0.6", "twine>=6", "validate-pyproject>=0.24")
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


def run_quietly(*command: str | Path, cwd: Path | str = "/") -> None:
    """Run a program; fail with what it said."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the workers of one run have in common."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    (folder / "installed").mkdir(exist_ok=True)
    return folder / "installed"


@pytest.fixture(scope="session")
def packaging_tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``bin`` of an environment with the tools that make and judge distributions."""
    folder = shared_folder(tmp_path_factory) / "tools"
    folder.mkdir(exist_ok=True)
    with exclusive(folder / "lock"):
        programs = folder / "venv" / "bin"
        if not (programs / "twine").exists():
            made = empty_environment(folder)
            run_quietly(made / "python", "-m", "pip", "install", "-q", *TOOLS)
    return programs


@pytest.fixture(scope="session")
def source_distribution(tmp_path_factory: pytest.TempPathFactory, packaging_tools: Path) -> Path:
    """``lamina-VERSION.tar.gz``, made of this tree."""
    folder = shared_folder(tmp_path_factory) / "sdist"
    folder.mkdir(exist_ok=True)
    with exclusive(folder / "lock"):
        if not list(folder.glob("*.tar.gz")):
            tree = copy_of_repository(folder)
            run_quietly(packaging_tools / "python", "-m", "build", "-s", "-o", folder, cwd=tree)
            shutil.rmtree(tree)
    (archive,) = folder.glob("*.tar.gz")
    return archive


@pytest.fixture(scope="session")
def installed_lamina(tmp_path_factory: pytest.TempPathFactory, source_distribution: Path) -> Path:
    """``bin`` of an environment into which only the source distribution went."""
    folder = shared_folder(tmp_path_factory)
    with exclusive(folder / "lock"):
        programs = folder / "venv" / "bin"
        if not (programs / "lamina").exists():
            made = empty_environment(folder)
            # No compiler: what is not pure Python has to come as a wheel.
            command = ("env", "CC=false", "CXX=false", made / "python", "-m", "pip", "install")
            run_quietly(*command, "-q", source_distribution)
    return programs
