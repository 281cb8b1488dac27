"""Trees of lazy images when the mount service is gone."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.containerd.trees import Trees
from lamina.serve.mounts import MountState, list_mounts
from lamina.serve.service.client import service_status
from tests.support.serving import kill_together, sample_spec, write_sample
from tests.support.tools import require_root

pytestmark = pytest.mark.kernel


@pytest.fixture
def trees(tmp_path: Path) -> Iterator[Trees]:
    require_root()
    (tmp_path / "root").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "root")
    trees = Trees(tmp_path / "link", "fuse")
    yield trees
    with contextlib.suppress(OSError):
        trees.unmount(1)
    subprocess.run(["umount", "-l", trees.path(1)], check=False, capture_output=True)


def test_a_tree_that_nobody_answers_for_is_mounted_anew(
    trees: Trees, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The sample is a folder, which only the service of the tests opens.
    monkeypatch.setattr("lamina.containerd.trees.for_another_process", lambda request: request)
    write_sample(tmp_path / "image")
    request = sample_spec(tmp_path / "image", tmp_path, tmp_path / "store", "fuse").image
    trees.mount(1, lambda: request)
    file = Path(trees.path(1)) / "sizes" / "1"
    content = file.read_bytes()
    assert trees.is_served(1)
    trees.mount(1, lambda: pytest.fail("it is mounted"))
    status = service_status()
    assert status is not None
    kill_together(status.pids.values())
    while [each.state for each in list_mounts()] != [MountState.BROKEN]:
        time.sleep(0.01)
    assert trees.is_mounted(1) and not trees.is_served(1)
    assert trees.broken() == [1]
    trees.mount(1, lambda: request)
    assert file.read_bytes() == content
    assert trees.is_served(1)
