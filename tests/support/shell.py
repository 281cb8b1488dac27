"""``lamina`` as a person calls it, in a folder and with a node store of one's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


class Shell:
    """Runs ``lamina`` in a folder with a node store of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT / "src"),
            "LAMINA_STORE": str(folder / "store"),
        }

    def words(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "lamina", *arguments]

    def __call__(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.words(*arguments),
            capture_output=True,
            text=True,
            cwd=self.folder,
            env=self.environment,
            timeout=120,
        )
        assert done.returncode == code, done.stderr
        return done

    def mine(self) -> list[dict[str, Any]]:
        """The mounts below the folder, as ``mounts --json`` tells them."""
        lines = [json.loads(line) for line in self("mounts", "--json").stdout.splitlines()]
        return [line for line in lines if line["mountpoint"].startswith(f"{self.folder}/")]

    def unmount_all(self) -> None:
        """Unmount what is mounted below the folder, whatever its state."""
        for record in self.mine():
            words = self.words("umount", "--lazy", record["mountpoint"])
            subprocess.run(words, env=self.environment)


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """A folder with ``mnt`` in it, whose mounts have a service of their own."""
    shell = Shell(tmp_path)
    shell.environment["LAMINA_RUNTIME"] = str(tmp_path / "run")
    (tmp_path / "run").mkdir(mode=0o700)
    (tmp_path / "mnt").mkdir()
    yield shell
    shell.unmount_all()
