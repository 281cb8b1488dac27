"""Too few descriptors, too little address space: one sentence, and nothing is left behind."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from lamina.linux.process import FEWEST_FILES, LEAST_ADDRESS_SPACE_BYTES
from tests.support.leaks import RUN_VARIABLE, processes_of_run
from tests.support.native_images import build_image, push_image

LIMITS = [
    *((resource.RLIMIT_NOFILE, count) for count in (*range(10, 15), 32, FEWEST_FILES - 1)),
    (resource.RLIMIT_AS, 600 << 20),
    (resource.RLIMIT_AS, LEAST_ADDRESS_SPACE_BYTES - 4096),
]


@pytest.mark.parametrize("foreground", [False, True], ids=["service", "foreground"])
@pytest.mark.parametrize(("kind", "limit"), LIMITS)
def test_a_mount_that_cannot_be_served_is_refused(
    tmp_path: Path, kind: int, limit: int, foreground: bool
) -> None:
    push_image(build_image({b"a": b"content"}), tmp_path / "image")
    (tmp_path / "mnt").mkdir()
    # A registry that other tests share is one of this run.
    before = processes_of_run(os.environ[RUN_VARIABLE])
    words = ["--foreground"] if foreground else []
    command = [sys.executable, "-m", "lamina", "mount", *words]
    command += [f"oci:{tmp_path}/image:latest", str(tmp_path / "mnt")]
    done = subprocess.run(
        command,
        preexec_fn=lambda: resource.setrlimit(kind, (limit, limit)),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 8, done.stderr
    sentence, hint = done.stderr.splitlines()
    assert "needs" in sentence
    assert "ulimit" in hint
    assert processes_of_run(os.environ[RUN_VARIABLE]) == before


def test_the_service_itself_says_so(tmp_path: Path) -> None:
    """One that a service manager starts has limits of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "lamina", "service", "run"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (14, 14)),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 8, done.stderr
    assert "may have 14 files open" in done.stderr
    assert "Traceback" not in done.stderr
