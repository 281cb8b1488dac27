"""The images of a node as a user has them: the registry goes down, images are listed, removed."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from lamina.cli.self_tests import tiny_layout
from tests.support import tools
from tests.support.registry_server import RegistryServer, start_registry
from tests.support.shell import Shell

pytestmark = pytest.mark.tools


class Node:
    """A shell, and a registry that can be taken down."""

    def __init__(self, shell: Shell, registry: RegistryServer, running: ExitStack) -> None:
        self.shell = shell
        self.registry = registry
        self._running = running
        self.name = f"{registry.host}/team/app:1"
        self.files = tiny_layout(shell.folder / "source")
        shell("-q", "convert", "oci:source:tiny", f"docker://{self.name}")

    def take_down(self) -> None:
        """End the registry."""
        self._running.close()

    def images(self) -> list[dict[str, Any]]:
        lines = self.shell("images", "--json").stdout.splitlines()
        return [json.loads(line) for line in lines]


@pytest.fixture
def node(shell: Shell) -> Iterator[Node]:
    tools.require_tool("docker-registry")
    with ExitStack() as running:
        registry = running.enter_context(start_registry(shell.folder / "registry"))
        yield Node(shell, registry, running)


def content(shell: Shell, *words: str, code: int = 0) -> str:
    return shell("cat", *words, "/etc/hello", code=code).stdout


def test_what_was_pulled_starts_without_its_registry(node: Node) -> None:
    shell = node.shell
    shell("-q", "pull", node.name)
    node.take_down()
    path = next(iter(node.files))
    done = shell("cat", node.name, path)
    assert done.stdout.encode() == node.files[path]
    (line,) = done.stderr.splitlines()
    assert f"docker://{node.name} is opened as it was last known here" in line
    assert "Connection refused" in line
    for words in (["--pull", "missing"], ["--pull", "never"]):
        done = shell("cat", *words, node.name, path)
        assert done.stdout.encode() == node.files[path]
        assert done.stderr == ""
    shell("ls", node.name)
    shell("inspect", node.name)
    assert "Connection refused" in shell("cat", "--pull", "always", node.name, path, code=5).stderr
    # Pulling is asking.
    shell("pull", node.name, code=5)


def test_a_mount_says_it_too(node: Node) -> None:
    shell = node.shell
    shell("-q", "pull", node.name)
    node.take_down()
    done = shell("mount", "--device", "fuse", node.name, "mnt")
    assert "is opened as it was last known here" in done.stderr
    path, data = next(iter(node.files.items()))
    assert (shell.folder / "mnt" / path.lstrip("/")).read_bytes() == data
    (image,) = node.images()
    assert image["mountpoints"] == [str(shell.folder / "mnt")]
    refused = shell("rm", node.name, code=2)
    assert f"lamina umount {shell.folder}/mnt" in refused.stderr
    shell("umount", "mnt")
    shell("rm", node.name)
    assert node.images() == []


def test_a_tag_that_moved_is_asked_for(node: Node) -> None:
    shell = node.shell
    shell("-q", "pull", node.name)
    (shell.folder / "source" / "more").mkdir()
    (before,) = node.images()
    newer = ("--chunk-size", "64K", "--replace")
    shell("-q", "convert", *newer[:2], "oci:source:tiny", f"docker://{node.name}")
    shell("ls", "--pull", "missing", node.name)
    assert [image["digest"] for image in node.images() if image["names"]] == [before["digest"]]
    shell("ls", node.name)
    named = [image["digest"] for image in node.images() if image["names"]]
    assert len(named) == 1
    assert named != [before["digest"]]


def test_nothing_is_known_of_what_was_never_here(node: Node) -> None:
    shell = node.shell
    done = shell("ls", "--pull", "never", node.name, code=7)
    assert "is not on this node" in done.stderr
    assert "--pull missing" in done.stderr
    node.take_down()
    shell("ls", node.name, code=5)


def test_images_are_listed_and_removed(node: Node) -> None:
    shell = node.shell
    shell("ls", node.name)
    (image,) = node.images()
    assert image["kind"] == "native"
    assert image["ready_bytes"] < image["total_bytes"]
    assert image["names"] == [f"docker://{node.name}"]
    shell("-q", "pull", "--resident", node.name)
    (image,) = node.images()
    assert image["ready_bytes"] == image["total_bytes"]
    assert image["pinned"]
    assert time.time() - 600 < image["last_used"] <= time.time() + 1
    head, row = shell("images").stdout.splitlines()
    assert head.split()[:3] == ["NAME", "DIGEST", "KIND"]
    assert row.split()[0] == node.name
    assert "pinned" in row
    assert shell("images", "--names").stdout == f"docker://{node.name}\n"
    refused = shell("rm", node.name, code=2)
    assert f"lamina unpin docker://{node.name}" in refused.stderr
    shell("unpin", node.name)
    removed = json.loads(shell("rm", "--json", image["digest"][7:19]).stdout)
    assert removed["disk_bytes"] > 0
    assert node.images() == []
    store = shell.folder / "store"
    assert not list((store / "blobs").iterdir())
    assert not list((store / "metadata" / "sha256").iterdir())
    assert "is no image or container" in shell("rm", node.name, code=7).stderr


def test_two_images_that_share_blobs_do_not_take_them_from_each_other(node: Node) -> None:
    shell = node.shell
    other = f"{node.registry.host}/team/other:1"
    shell("-q", "copy", f"docker://{node.name}", f"docker://{other}")
    (shell.folder / "again").mkdir()
    shell("-q", "convert", "--chunk-size", "64K", "oci:source:tiny", "oci:again:1")
    shell("-q", "pull", node.name)
    shell("-q", "pull", other)
    shell("-q", "pull", "oci:again:1")
    one = next(i for i in node.images() if f"docker://{other}" in i["names"])
    assert sorted(one["names"]) == [f"docker://{node.name}", f"docker://{other}"]
    shell("rm", "oci:again:1")
    node.take_down()
    shell("-q", "cat", node.name, next(iter(node.files)))


def test_gc_keeps_what_was_used_lately_and_tells_before_it_does(node: Node) -> None:
    shell = node.shell
    shell("-q", "pull", node.name)

    def collect(*words: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(shell("gc", "--json", *words).stdout)
        return found

    assert collect("--older-than", "1h")["blobs"] == 0
    would = collect("--dry-run")
    assert would["blobs"] == 1
    assert would["dry_run"]
    for path in (shell.folder / "store").rglob("*"):
        os.utime(path, (0, 0))
    did = collect("--older-than", "1h")
    assert did["blobs"] == 1
    assert did["files"] >= 4
    assert node.images() == []
    shell("gc", "--older-than", "soon", code=2)


def test_what_containers_wrote_is_listed_counted_and_removed(shell: Shell) -> None:
    upper = shell.folder / "store" / "containers" / "web" / "upper"
    upper.mkdir(parents=True, mode=0o700)
    (upper / "log").write_bytes(bytes(300_000))
    shell.folder.joinpath("store").chmod(0o700)
    (line,) = map(json.loads, shell("images", "--json").stdout.splitlines())
    assert line["container"] == "web"
    assert line["disk_bytes"] >= 300_000
    assert "CONTAINER" in shell("images").stdout
    report = json.loads(shell("gc", "--json").stdout)
    assert report["containers"] == 1
    assert report["container_bytes"] >= 300_000
    assert "1 kept container" in shell("gc").stderr
    shell("rm", "web")
    assert not upper.parent.exists()
    assert shell("images").stdout == ""


@pytest.mark.usefixtures("as_root")
def test_a_container_that_runs_is_not_removed(shell: Shell) -> None:
    bundle = Path(shell.environment["LAMINA_RUNTIME"]) / "containers" / "lamina-test-runs"
    kept = shell.folder / "store" / "containers" / bundle.name
    kept.mkdir(parents=True)
    shell.folder.joinpath("store").chmod(0o700)
    bundle.mkdir(parents=True, mode=0o700)
    try:
        assert "runs" in shell("rm", bundle.name, code=2).stderr
    finally:
        bundle.rmdir()
    assert kept.exists()
