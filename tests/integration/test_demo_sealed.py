"""``make demo-sealed`` tells what is so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import tools

ROOT = Path(__file__).parents[2]


@pytest.mark.tools
@pytest.mark.kernel
def test_the_demo_of_a_sealed_image(tmp_path: Path) -> None:
    tools.require_root()
    tools.require_tool("busybox", "docker-registry", "runc")
    program = tmp_path / "lamina"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m lamina "$@"\n')
    program.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT / 'src'}",
        "TMPDIR": str(tmp_path),
    }
    command = [sys.executable, str(ROOT / "demo" / "demo_sealed.py")]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("it was refused, and nothing was read") == 2
    assert "nothing of the file at the registry: True" in done.stdout
    assert "MeasurementNotAllowed" in done.stdout
    assert "Everything held." in done.stdout
    # Passphrases go by the environment, and show nowhere.
    assert "PASSWORD" not in done.stdout + done.stderr
