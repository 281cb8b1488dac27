"""``pip install .`` into an empty environment gives a working ``lamina``."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lamina.version import VERSION

ENVIRONMENT = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "LC_ALL": "C.UTF-8"}


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, cwd="/")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_program_runs(installed_lamina: Path) -> None:
    assert VERSION in run(installed_lamina / "lamina", "version")
    assert "convert" in run(installed_lamina / "lamina", "--help")
    assert VERSION in run(installed_lamina / "python", "-m", "lamina", "version")


def test_every_module_imports_without_extras(installed_lamina: Path) -> None:
    program = (
        "import importlib, pkgutil, lamina\n"
        "names = [m.name for m in pkgutil.walk_packages(lamina.__path__, 'lamina.', onerror=str)\n"
        "         if not m.name.startswith('lamina.fsspec') and not m.name.endswith('__main__')]\n"
        "for name in names:\n"
        "    importlib.import_module(name)\n"
        "print(len(names))\n"
    )
    assert int(run(installed_lamina / "python", "-W", "error", "-c", program)) > 60


def test_the_wheel_holds_types_and_licence(installed_lamina: Path) -> None:
    program = (
        "import importlib.metadata as m\n"
        "d = m.distribution('lamina')\n"
        "print(d.version)\n"
        "print(*(str(f) for f in d.files), sep='\\n')\n"
    )
    version, *files = run(installed_lamina / "python", "-c", program).splitlines()
    assert version == VERSION
    assert "lamina/py.typed" in files
    assert any(name.endswith("LICENSE") for name in files)
    assert not [name for name in files if name.startswith(("tests", "bench", "demo"))]


def test_dependencies_are_the_declared_ones(installed_lamina: Path) -> None:
    listed = run(
        installed_lamina / "python", "-m", "pip", "list", "--format", "freeze"
    ).splitlines()
    names = {line.split("==")[0].split(" @ ")[0].lower() for line in listed}
    declared = {
        requirement.split(";")[0].split(">")[0].strip()
        for requirement in importlib.metadata.requires("lamina") or []
        if "extra ==" not in requirement
    }
    assert declared <= names
    assert not names & {"fsspec", "rich", "hypothesis", "pytest", "atheris", "cryptography"}


@pytest.mark.skipif(sys.flags.optimize > 0, reason="asserts are off")
def test_help_starts_quickly(installed_lamina: Path) -> None:
    """``lamina --help`` takes at most 60 ms over bare Python: the least of several CPU times."""
    python = installed_lamina / "python"
    bare = min(cpu_seconds(python, "-c", "pass") for _ in range(7))
    helped = min(cpu_seconds(python, "-m", "lamina", "--help") for _ in range(7))
    assert helped - bare <= 0.060, f"{helped:.3f} s over {bare:.3f} s"


def cpu_seconds(*command: str | Path) -> float:
    before = os.times()
    run(*command)
    after = os.times()
    return (after.children_user + after.children_system) - (
        before.children_user + before.children_system
    )
