"""What a killed process left in the store goes; what somebody uses stays."""

from __future__ import annotations

import os
import time
from pathlib import Path

from lamina.store.node import NodeStore
from lamina.store.scratch import PULLED, scratch_folder

LONG_AGO = time.time() - 1_000_000


def test_folders_that_nobody_uses_are_collected(tmp_path: Path) -> None:
    store = NodeStore(tmp_path / "store")
    left, young = (store.root / f"{PULLED}{name}" for name in ("left", "young"))
    for folder in (left, young):
        (folder / "layout").mkdir(parents=True)
        (folder / "layout/blob").write_bytes(bytes(10_000))
    os.utime(left, (LONG_AGO, LONG_AGO))
    with scratch_folder(store.root) as used:
        os.utime(used, (LONG_AGO, LONG_AGO))
        assert store.remove_metadata((), dry_run=True)[0] == 1
        assert left.exists()
        count, freed = store.remove_metadata(())
        assert count == 1
        assert freed >= 10_000
        assert not left.exists()
        assert young.exists()
        assert os.path.isdir(used)
    assert not os.path.exists(used)
