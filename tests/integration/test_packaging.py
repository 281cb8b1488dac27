"""The source distribution is whole, and installed into an empty environment it works."""

from __future__ import annotations

import email
import importlib.metadata
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from lamina.cli.verbs import VERBS
from lamina.version import VERSION

ROOT = Path(__file__).parents[2]
COMPLETIONS = {
    "bash": "share/bash-completion/completions/lamina",
    "zsh": "share/zsh/site-functions/_lamina",
    "fish": "share/fish/vendor_completions.d/lamina.fish",
}
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
    # Each of these is imported only by what has asked for its extra.
    program = (
        "import importlib, pkgutil, lamina\n"
        "EXTRAS = 'lamina.fsspec', 'lamina.codec.blake3_tree', 'lamina.containerd'\n"
        "names = [m.name for m in pkgutil.walk_packages(lamina.__path__, 'lamina.', onerror=str)\n"
        "         if not m.name.startswith(EXTRAS)\n"
        "         and not m.name.endswith('__main__')]\n"
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


def test_the_manual_completion_and_units_come_along(installed_lamina: Path) -> None:
    prefix = installed_lamina.parent
    manual = {path.name for path in (prefix / "share/man/man1").glob("lamina*")}
    assert manual == {"lamina.1", *(f"lamina-{verb.name}.1" for verb in VERBS)}
    for shell, path in COMPLETIONS.items():
        assert (prefix / path).read_text() == run(installed_lamina / "lamina", "completion", shell)
    units = ("lamina.service", "lamina-snapshotter.service")
    for path in (*(f"lib/systemd/system/{unit}" for unit in units), "lib/tmpfiles.d/lamina.conf"):
        assert "lamina" in (prefix / path).read_text()


def test_the_source_distribution_is_the_repository(source_distribution: Path) -> None:
    """All that is kept is in it, and what is not, only if it tells of the distribution."""
    if not (ROOT / ".git").exists():
        pytest.skip("no repository to compare with")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    ).stdout.split("\0")
    kept = {name for name in listed if name and "/." not in f"/{name}"}
    with tarfile.open(source_distribution) as archive:
        files = {each.name.partition("/")[2] for each in archive if each.isfile()}
    extra = {name for name in files if "egg-info/" not in name} - {"PKG-INFO", "setup.cfg"}
    assert extra == {name for name in kept if (ROOT / name).exists()}


def test_the_metadata_is_complete(source_distribution: Path, packaging_tools: Path) -> None:
    run(packaging_tools / "twine", "check", "--strict", source_distribution)
    run(packaging_tools / "validate-pyproject", ROOT / "pyproject.toml")
    with tarfile.open(source_distribution) as archive:
        name = source_distribution.name.removesuffix(".tar.gz")
        file = archive.extractfile(f"{name}/PKG-INFO")
        assert file is not None
        told = email.message_from_binary_file(file)
    for field in ("Summary", "License-Expression", "Author", "Keywords", "Requires-Python"):
        assert told[field]
    assert told["Version"] == VERSION
    supported = {each.rpartition(" ")[2] for each in told.get_all("Classifier") or []}
    assert {"3.11", "3.12", "3.13", "3.14"} <= supported


def test_the_wheel_has_nothing_odd(
    source_distribution: Path, packaging_tools: Path, tmp_path: Path
) -> None:
    wheel = (packaging_tools / "python", "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path)
    run(*wheel, source_distribution)
    (made,) = tmp_path.glob("*.whl")
    run(packaging_tools / "check-wheel-contents", made)
    run(packaging_tools / "twine", "check", "--strict", made)


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
