"""Pods of Debian's containerd 1.6 by CRI, with Lamina as its snapshotter: every kind of image from
pull to removal, and the snapshotter killed at every step.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

import pytest

from tests.support.leaks import mounts_below
from tests.support.node import CommandError, Node, Programs, is_away, node
from tests.support.node_images import FOREVER, KINDS, LAZY, SUM, NodeImages, pushed_images
from tests.support.node_stress import Stress, check_many
from tests.support.peers import find_peer
from tests.support.tools import find_program, require_root, require_tool

pytestmark = [pytest.mark.kernel, pytest.mark.tools]

pytest.importorskip("grpc")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeImages]:
    with pushed_images(tmp_path_factory.mktemp("images")) as found:
        yield found


@pytest.fixture(scope="module")
def programs() -> Programs:
    require_root()
    containerd, ctr, _ = require_tool("containerd", "ctr", "runc")
    crictl = find_program("crictl") or find_peer("crictl")
    if crictl is None:
        pytest.skip("crictl is not installed, and scripts/peers did not build it")
    return Programs(containerd, ctr, str(crictl))


@pytest.fixture
def cluster_node(programs: Programs, images: NodeImages) -> Iterator[Node]:
    """A node that nothing was pulled to, with its snapshotter and containerd."""
    with node(programs, images.reference("pause")) as made:
        start_snapshotter(made, images)
        made.start_containerd()
        yield made


def start_snapshotter(made: Node, images: NodeImages) -> None:
    believed = ("--index-from", images.registry.host)
    made.start_snapshotter("--decryption-key", images.keys.private, *believed)


def check_life(made: Node, images: NodeImages, kind: str) -> None:
    """From pull to removal."""
    image = images.reference(kind)
    made.crictl("pull", image)
    trees = mounts_below(made.folder / "snapshots")
    assert len(trees) == (1 if kind in LAZY else 0)
    pod = made.run_pod("pod")
    container = made.start(pod, "main", image, *FOREVER)
    made.wait_for_log("main", "ready")
    script = "md5sum < big; cat etc/text; ls gone; echo written > big && cat big; pwd"
    said = made.crictl("exec", container, "sh", "-c", f"({script}) 2>&1").split("\n")
    assert said[:5] == [f"{SUM}  -", "upper", "ls: gone: No such file or directory", "written", "/"]
    made.start(pod, "second", image, "sh", "-c", "cat big | md5sum; cat etc/text")
    assert SUM in made.wait_for_log("second", "upper")
    made.remove_pods()
    made.remove_images()
    made.wait_until_clean()


def check_kills(made: Node, images: NodeImages, kind: str) -> None:
    """Killed in each call, when its work is done and nobody has heard of it: the step fails, the
    same again succeeds, containers that run notice nothing, and all is clean afterwards.
    """
    image = images.reference(kind)

    def restart() -> None:
        start_snapshotter(made, images)
        made.wait_until_connected()

    def fails(moment: str, *words: str) -> None:
        made.kill_in(moment)
        with pytest.raises(CommandError) as caught:
            made.crictl(*words)
        assert is_away(caught.value)
        made.wait_until_killed()
        restart()

    fails("prepare", "pull", image)
    if kind not in LAZY:
        fails("commit", "pull", image)
    for each in (image, images.reference("pause")):
        made.crictl("pull", each)
    for moment in ("prepare", "mounts"):
        fails(moment, "runp", made.pod_file("pod"))
    pod = made.run_pod("pod")
    for moment in ("prepare", "mounts"):
        fails(moment, *made.creation(pod, "main", image, *FOREVER))
    container = made.create(pod, "main", image, *FOREVER)
    # A container whose start fails is made anew, which no client does by itself.
    fails("mounts", "start", container)
    other = made.start(pod, "other", image, *FOREVER)
    made.wait_for_log("other", "ready")
    made.stop("snapshotter", signal.SIGKILL)
    assert made.crictl("exec", other, "md5sum", "big").split()[0] == SUM
    assert "ready" in made.crictl("logs", other)
    made.crictl("stop", "-t", "1", other)
    restart()
    for moment, gone in (("remove", container), ("cleanup", other)):
        made.kill_in(moment)
        made.crictl("rm", gone)
        made.wait_until_killed()
        restart()
    made.remove_pods()
    made.remove_images()
    made.wait_until_clean()


def check_both_restart(made: Node, images: NodeImages) -> None:
    """Containers read on, and the images are there."""
    image = images.reference("native")
    made.crictl("pull", image)
    pod = made.run_pod("pod")
    container = made.start(pod, "main", image, *FOREVER)
    made.wait_for_log("main", "ready")
    for order in (("snapshotter", "containerd"), ("containerd", "snapshotter")):
        for name in order:
            made.stop(name, 9)
        start_snapshotter(made, images)
        made.start_containerd()
        assert image.rpartition(":")[0] in made.crictl("images")
    assert made.crictl("exec", container, "md5sum", "big").split()[0] == SUM
    made.start(pod, "second", image, *FOREVER)
    made.wait_for_log("second", "ready")
    made.remove_pods()
    made.remove_images()
    made.wait_until_clean()


@pytest.mark.parametrize("kind", KINDS)
def test_life_of_a_pod(cluster_node: Node, images: NodeImages, kind: str) -> None:
    check_life(cluster_node, images, kind)


@pytest.mark.parametrize("kind", LAZY)
def test_layers_stay_in_the_registry(cluster_node: Node, images: NodeImages, kind: str) -> None:
    """containerd has no layer of it, and no more came than is needed to look at the tree."""
    cluster_node.crictl("pull", images.reference(kind))
    here = 0
    for each in (cluster_node.folder / "root").rglob("blobs/sha256/*"):
        # What containerd has collected meanwhile is not there either.
        with contextlib.suppress(FileNotFoundError):
            here += each.stat().st_size
    assert here < 20_000
    cluster_node.remove_images()
    cluster_node.wait_until_clean()


@pytest.mark.parametrize("name", ["based", "forked"])
def test_an_ordinary_image_on_layers_of_a_lazy_one(
    cluster_node: Node, images: NodeImages, name: str
) -> None:
    """Its lower layers are snapshots of the lazy image: what stands on the last has the tree below
    it, and what stands in the middle has the layers so far, which are unpacked for it.
    """
    made, image = cluster_node, images.reference(name)
    made.crictl("pull", images.reference("indexed"))
    made.crictl("pull", image)
    pod = made.run_pod("pod")
    script = "cat third bin/own gone; md5sum < big; ls etc/text; echo ready"
    made.start(pod, "main", image, "sh", "-c", f"({script}) 2>&1")
    said = [line.split(" F ")[1] for line in made.wait_for_log("main", "ready").splitlines()]
    wanted = {
        "based": ["cat: can't open 'gone': No such file or directory", f"{SUM}  -"],
        "forked": ["kept", "sh: can't open big: no such file"],
    }
    missing = "ls: etc/text: No such file or directory"
    assert said == ["third", "own", *wanted[name], missing, "ready"]
    made.start(pod, "indexed", images.reference("indexed"), "sh", "-c", "cat etc/text")
    made.wait_for_log("indexed", "upper")
    made.remove_pods()
    made.remove_images()
    made.wait_until_clean()


def test_clients_without_labels_unpack(cluster_node: Node, images: NodeImages) -> None:
    """``ctr`` of 1.6 does not say which image a layer is of."""
    image = images.reference("indexed")
    cluster_node.ctr("images", "pull", "--plain-http", "--snapshotter", "lamina", image)
    assert not mounts_below(cluster_node.folder / "snapshots")
    words = ("--rm", "--snapshotter", "lamina", "--net-host", "--runc-root")
    root = str(cluster_node.folder / "runc")
    said = cluster_node.ctr("run", *words, root, image, "one", "sh", "-c", "md5sum < big")
    assert said == f"{SUM}  -\n"
    cluster_node.ctr("images", "rm", "--sync", image)
    cluster_node.wait_until_clean()


@pytest.mark.parametrize("kind", LAZY)
def test_ctr_pull(cluster_node: Node, images: NodeImages, kind: str) -> None:
    """Pulls with the labels; what it has pulled outlives a garbage collection, and goes with its
    image.
    """
    made, image = cluster_node, images.reference(kind)
    for _ in range(2):
        made.lamina("ctr-pull", "--address", f"{made.folder}/c.sock", image)
    made.ctr("content", "prune", "references")
    assert len(mounts_below(made.folder / "snapshots")) == 1
    words = ("--rm", "--snapshotter", "lamina", "--net-host", "--runc-root")
    root = str(made.folder / "runc")
    said = made.ctr("run", *words, root, image, "one", "/bin/sh", "-c", "/bin/md5sum < /big")
    assert said == f"{SUM}  -\n"
    made.ctr("images", "rm", "--sync", image)
    made.wait_until_clean()


def test_ctr_pull_unpacks_nothing(cluster_node: Node, images: NodeImages) -> None:
    address = f"{cluster_node.folder}/c.sock"
    with pytest.raises(CommandError, match="has to be unpacked, which ctr-pull does not do"):
        cluster_node.lamina("ctr-pull", "--address", address, images.reference("plain"))
    cluster_node.ctr("content", "prune", "references")
    cluster_node.wait_until_clean()


@pytest.mark.parametrize("kind", ["native", "sealed"])
def test_ctr_is_told_what_to_do_instead(cluster_node: Node, images: NodeImages, kind: str) -> None:
    image = images.reference(kind)
    with pytest.raises(CommandError) as caught:
        cluster_node.ctr("images", "pull", "--plain-http", "--snapshotter", "lamina", image)
    assert "lamina ctr-pull" in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_the_snapshotter_is_killed_at_every_step(
    cluster_node: Node, images: NodeImages, kind: str
) -> None:
    check_kills(cluster_node, images, kind)


def test_both_restart_in_any_order(cluster_node: Node, images: NodeImages) -> None:
    check_both_restart(cluster_node, images)


def test_many_containers_while_the_snapshotter_is_killed(
    cluster_node: Node, images: NodeImages
) -> None:
    made = cluster_node
    check_many(made, images, lambda: start_snapshotter(made, images), Stress(6, 3, 2))
