"""containerd's own tests of snapshotters, which its proxy for plugins asks Lamina's."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from lamina.serve.service.client import connect_or_start
from tests.support.leaks import mounts_below
from tests.support.tools import require_peer, require_root

pytestmark = [pytest.mark.kernel, pytest.mark.peers]

pytest.importorskip("grpc")

ENDED = re.compile(r"^    --- (\w+): TestSnapshotter/(\w+)", re.MULTILINE)
TESTS = {
    "128LayersMount",
    "Basic",
    "Chown",
    "CloseTwice",
    "DeletedFilesInChildSnapshot",
    "DirectoryPermissionOnCommit",
    "LayerFileupdate",
    "MoveFileFromLowerLayer",
    "PreareViewFailingtest",
    "Remove",
    "RemoveDirectoryInLowerLayer",
    "RemoveIntermediateSnapshot",
    "Rename",
    "RootPermission",
    "StatActive",
    "StatComitted",
    "StatInWalk",
    "TransitivityTest",
    "Update",
    "ViewReadonly",
    "Walk",
}
"""Those of containerd 2.4.2."""


def test_the_suite_of_containerd() -> None:
    """Each of its tests passes, with a root folder and a process of its own."""
    require_root()
    suite = require_peer("snapshots")
    # The path of a socket has little room.
    folder = Path(tempfile.mkdtemp(prefix="ls-", dir="/tmp"))
    words = ["-test.v", "-test.parallel", "2", "-test.timeout", "10m", "--"]
    program = [sys.executable, "-m", "lamina", "snapshotter"]
    # One mount service for all of them, which ends with this connection.
    with contextlib.closing(connect_or_start()):
        try:
            done = subprocess.run(
                [suite, *words, *program],
                env={**os.environ, "TMPDIR": str(folder)},
                capture_output=True,
                text=True,
                timeout=660,
                check=False,
            )
            left = mounts_below(folder)
        finally:
            for point in mounts_below(folder):
                subprocess.run(["umount", "-l", point], check=False)
            shutil.rmtree(folder)
    found = {name: how for how, name in ENDED.findall(done.stdout)}
    assert found == dict.fromkeys(TESTS, "PASS"), done.stdout[-20_000:]
    assert done.returncode == 0 and not left
