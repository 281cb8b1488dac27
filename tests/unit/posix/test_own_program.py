"""Programs of ours are ours, wherever they are started."""

from __future__ import annotations

import runpy
import subprocess
from pathlib import Path

import pytest

import lamina
from lamina.posix import own_program


@pytest.mark.parametrize("name", ["lamina/__init__.py", "signal.py"])
def test_modules_in_the_working_folder_are_not_taken_for_ours(tmp_path: Path, name: str) -> None:
    """It may be anybody's: ``/tmp``, or what somebody sent."""
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("raise SystemExit('not ours')\n")
    # Fresh: tests of the service do without the options.
    make = runpy.run_path(own_program.__file__)["own_program"]
    command = make("lamina.serve.start_touch", "0", "/dev/null")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=60, check=False)
    assert b"not ours" not in done.stderr
    assert b"NotADirectoryError" in done.stderr


def test_there_is_one_way_to_start_them() -> None:
    source = Path(lamina.__file__).parent
    texts = {str(path.relative_to(source)): path.read_text() for path in source.rglob("*.py")}
    # -I leaves the folder out too, and whoever starts itself again does so as it was started.
    others = ('"-I"', "sys.orig_argv")
    found = {
        name
        for name, text in texts.items()
        if "sys.executable" in text and not any(other in text for other in others)
    }
    assert found == {"posix/own_program.py"}
