"""``lamina pull``, ``prefetch``, ``coverage``, ``unpin`` and ``gc`` as a user types them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lamina.cli.self_tests import tiny_layout
from tests.integration.test_cli_chain import Shell
from tests.support.tools import require_root, require_tool

ROOT = Path(__file__).parents[2]


@pytest.fixture
def lamina(tmp_path: Path) -> Shell:
    tiny_layout(tmp_path / "source")
    shell = Shell(tmp_path)
    shell("-q", "convert", "oci:source:tiny", "oci:native:tiny")
    return shell


def test_a_pulled_image_needs_its_registry_no_more(lamina: Shell) -> None:
    (before,) = lamina.json("coverage", "oci:native:tiny")
    assert before["ready_bytes"] == 0
    (pulled,) = lamina.json("pull", "--resident", "oci:native:tiny")
    assert pulled["resident"]
    assert pulled["fetched_bytes"] > 0
    (again,) = lamina.json("pull", "--resident", "oci:native:tiny")
    assert again["fetched_bytes"] == 0
    assert again["digest"] == pulled["digest"]
    (after,) = lamina.json("coverage", "oci:native:tiny")
    assert after["ready_bytes"] == after["size"] > 0
    (kept,) = lamina.json("unpin")
    assert kept["digest"] == pulled["digest"]

    shutil.rmtree(lamina.folder / "native" / "blobs")
    (lamina.folder / "native" / "blobs").mkdir()
    assert lamina("ls", "-R", "oci:native:tiny").stdout
    for file in lamina.json("coverage", "--files", "oci:native:tiny")[1:]:
        assert file["ready_bytes"] == file["size"]
        lamina("cat", "oci:native:tiny", file["path"])

    lamina("unpin", "oci:native:tiny")
    assert lamina.json("unpin") == []
    lamina("unpin", "oci:native:tiny", code=7)
    (gone,) = lamina.json("gc")
    assert gone["blobs"] == 1
    lamina("pull", "--resident", "oci:native:tiny", code=7)


def test_prefetching_files(lamina: Shell) -> None:
    _, *files = lamina.json("coverage", "--files", "oci:native:tiny")
    path = next(file["path"] for file in files if file["size"])
    (found,) = lamina.json("prefetch", "--limit-rate", "10M", "oci:native:tiny", path)
    assert found["files"] == 1
    assert found["requests"] >= 1
    (_, *files) = lamina.json("coverage", "--files", "oci:native:tiny")
    assert next(file for file in files if file["path"] == path)["ready_bytes"] > 0
    lamina("prefetch", "oci:native:tiny", "/absent", code=7)
    assert b"no list of what to fetch early" in lamina("prefetch", "oci:native:tiny", code=2).stderr


def test_a_budget_on_the_command_line(lamina: Shell) -> None:
    done = lamina("pull", "--store-budget", "100K", "oci:native:tiny", code=10)
    assert b"budget" in done.stderr
    lamina("pull", "--store-budget", "nonsense", "oci:native:tiny", code=2)
    lamina("pull", "--store-budget", "50M", "oci:native:tiny")


def test_pages_are_for_people_too(lamina: Shell) -> None:
    assert lamina("pull", "oci:native:tiny").stdout.startswith(b"sha256:")
    assert b"100 %" in lamina("coverage", "--files", "oci:native:tiny").stdout
    assert b"removed 1 blobs" in lamina("gc").stderr


@pytest.mark.kernel
def test_collecting_in_a_store_that_is_read_only(tmp_path: Path) -> None:
    require_root()
    require_tool("unshare")
    store, lamina = tmp_path / "store", f"{sys.executable} -m lamina gc --store {tmp_path}/store"
    store.mkdir()
    script = f"mount -t tmpfs none {store} && chmod 700 {store} && {lamina} && "
    script += f"mount -o remount,ro {store} && exec {lamina}"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script],
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )
    assert done.returncode == 10, done.stderr
    assert b"Read-only file system" in done.stderr
    assert b"hint: the file system is mounted read-only" in done.stderr
