"""A tree that is none is not mounted, on any device, whoever serves it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lamina.errors import FormatError
from tests.support.cyclic import push_cyclic
from tests.support.shell import Shell
from tests.support.tools import require_root

pytestmark = pytest.mark.kernel


@pytest.mark.parametrize("device", ["fanotify", "fuse-blob", "fuse", "auto"])
@pytest.mark.parametrize("how", [(), ("--foreground",)], ids=["service", "foreground"])
def test_a_cyclic_tree_is_not_mounted(tmp_path: Path, device: str, how: tuple[str, ...]) -> None:
    require_root()
    reference = push_cyclic(tmp_path)
    (tmp_path / "mnt").mkdir()
    shell = Shell(tmp_path)
    done = shell("mount", "--device", device, *how, reference, "mnt", code=FormatError.exit_code)
    assert "it has directory" in done.stderr
    assert not os.path.ismount(tmp_path / "mnt")
    assert not shell.mine()


def test_nothing_runs_from_a_cyclic_tree(tmp_path: Path) -> None:
    require_root()
    reference = push_cyclic(tmp_path)
    done = Shell(tmp_path)("run", reference, "/bin/true", code=125)
    assert "it has directory" in done.stderr
