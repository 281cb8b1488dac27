"""Pods and ``ctr`` of containerd 2 with Lamina as its snapshotter, as the integration test of
Debian's 1.6.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.test_containerd_cri import (
    check_both_restart,
    check_kills,
    check_life,
    start_snapshotter,
)
from tests.support.leaks import mounts_below
from tests.support.node import PODS_2, Node, Programs, node
from tests.support.node_images import FOREVER, KINDS, LAZY, SUM, NodeImages, pushed_images
from tests.support.node_stress import Stress, check_many
from tests.support.tools import require_peer, require_root

pytest.importorskip("grpc")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeImages]:
    with pushed_images(tmp_path_factory.mktemp("images")) as found:
        yield found


@pytest.fixture(scope="module")
def programs() -> Programs:
    require_root()
    containerd, ctr, shim = (
        require_peer(f"containerd-2/{name}")
        for name in ("containerd", "ctr", "containerd-shim-runc-v2")
    )
    crictl = require_peer("crictl")
    return Programs(str(containerd), str(ctr), str(crictl), str(shim.parent), 1, PODS_2)


@pytest.fixture
def cluster_node(programs: Programs, images: NodeImages) -> Iterator[Node]:
    with node(programs, images.reference("pause")) as made:
        start_snapshotter(made, images)
        made.start_containerd()
        yield made


@pytest.mark.parametrize("kind", KINDS)
def test_life_of_a_pod(cluster_node: Node, images: NodeImages, kind: str) -> None:
    check_life(cluster_node, images, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_ctr(cluster_node: Node, images: NodeImages, kind: str) -> None:
    """By the transfer service, which passes on which image a layer is of."""
    made, image = cluster_node, images.reference(kind)
    made.ctr("images", "pull", "--plain-http", "--snapshotter", "lamina", image)
    assert len(mounts_below(made.folder / "snapshots")) == (1 if kind in LAZY else 0)
    words = ("--rm", "--snapshotter", "lamina", "--net-host", "--runc-root")
    root = str(made.folder / "runc")
    said = made.ctr("run", *words, root, image, "one", "/bin/sh", "-c", "/bin/md5sum < /big")
    assert said == f"{SUM}  -\n"
    made.ctr("images", "rm", "--sync", image)
    made.wait_until_clean()


@pytest.mark.parametrize("kind", ["plain", "native"])
def test_a_container_in_a_user_namespace(cluster_node: Node, images: NodeImages, kind: str) -> None:
    """Its files belong to those inside whom the image names; what it writes to those outside."""
    made, image = cluster_node, images.reference(kind)
    # Who is inside has to reach the root of the container.
    made.folder.chmod(0o711)
    made.ctr("images", "pull", "--plain-http", "--snapshotter", "lamina", image)
    words = ("--rm", "--snapshotter", "lamina", "--runc-root", str(made.folder / "runc"))
    users = ("--remap-labels", "--uidmap", "0:100000:65536", "--gidmap", "0:200000:65536")
    script = "stat -c %u:%g /etc/text; echo x > /new; cat /proc/self/uid_map; md5sum < /big"
    said = made.ctr("run", *words, *users, image, "one", "/bin/sh", "-c", script).splitlines()
    assert said[0] == "0:0"
    assert said[1].split() == ["0", "100000", "65536"]
    assert said[2] == f"{SUM}  -"
    assert not any("-remap" in line for line in made.ctr("snapshots", "ls").splitlines())
    made.ctr("images", "rm", "--sync", image)
    made.wait_until_clean()


@pytest.mark.parametrize("kind", KINDS)
def test_a_pod_in_a_user_namespace(programs: Programs, images: NodeImages, kind: str) -> None:
    """``hostUsers: false``: as above, for the pod's own container as well; the runc of Debian 12
    cannot map the mounts that a pod has besides.
    """
    image, runc = images.reference(kind), require_peer("runc-1.3/runc")
    with node(
        programs._replace(path=f"{runc.parent}:{programs.path}"), images.reference("pause")
    ) as made:
        made.folder.chmod(0o711)
        users = {
            "mode": 0,
            "uids": [{"host_id": 100000, "container_id": 0, "length": 65536}],
            "gids": [{"host_id": 200000, "container_id": 0, "length": 65536}],
        }
        made.namespaces["userns_options"] = users
        start_snapshotter(made, images)
        made.start_containerd()
        made.crictl("pull", image)
        container = made.start(made.run_pod("pod"), "main", image, *FOREVER)
        made.wait_for_log("main", "ready")
        script = "stat -c %u:%g etc/text; echo x > new; cat /proc/self/uid_map; md5sum < big"
        said = made.crictl("exec", container, "sh", "-c", script).splitlines()
        assert said[0] == "0:0"
        assert said[1].split() == ["0", "100000", "65536"]
        assert said[2] == f"{SUM}  -"
        [new] = (made.folder / "snapshots/s").glob("*/fs/new")
        assert (new.stat().st_uid, new.stat().st_gid) == (100000, 200000)
        assert "-remap" not in made.ctr("snapshots", "ls", namespace="k8s.io")
        made.remove_pods()
        made.remove_images()
        made.wait_until_clean()


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
    memory_kib = check_many(
        made, images, lambda: start_snapshotter(made, images), Stress(50, 20, 6)
    )
    print(f"KiB of memory with 50 containers: {memory_kib}")
    assert sum(memory_kib.values()) <= 200 << 10
