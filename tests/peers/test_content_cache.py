"""A stock containerd 2.4 mounts what ``lamina serve content-cache`` offers, and pulls no layer."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.support.leaks import mounts_below
from tests.support.node import PODS_2, Node, Programs, node
from tests.support.node_images import FOREVER, SUM, NodeImages, lamina, pushed_images
from tests.support.tools import require_kernel, require_peer, require_root

MOST_PULLED_BYTES = 5000
PAGE_BLOCK = 2
"""Which configuration of the how-to it is."""
SHOW = "/bin/md5sum < /big; cat /third; cat /etc/text || echo hidden"
SHOWN = f"{SUM}  -\nthird\nhidden\n"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeImages]:
    with pushed_images(tmp_path_factory.mktemp("images")) as found:
        lamina("index", "--layers", f"docker://{found.reference('based')}")
        yield found


@pytest.fixture(scope="module")
def programs() -> Programs:
    require_root()
    require_kernel(6, 12, "an EROFS mount of files")
    containerd, ctr, shim = (
        require_peer(f"containerd-2/{name}")
        for name in ("containerd", "ctr", "containerd-shim-runc-v2")
    )
    crictl = require_peer("crictl")
    return Programs(str(containerd), str(ctr), str(crictl), str(shim.parent), PAGE_BLOCK, PODS_2)


class CacheNode(Node):
    """A node whose containerd has no plugin of ours."""

    def start_cache(self, *images: str) -> None:
        """Serve the layers of some images."""
        words = [sys.executable, "-m", "lamina", "serve", "content-cache", self.cache, *images]
        said = "serving 3 layers"
        before = self.log("cache").count(said) if (self.folder / "cache.log").exists() else 0
        self._start("cache", words)
        self._wait_for("cache", lambda: self.log("cache").count(said) > before)

    @property
    def cache(self) -> str:
        """The folder."""
        return f"{self.folder}/layers"

    def pulled_bytes(self) -> int:
        """How much containerd has fetched and kept."""
        blobs = self.folder / "root/io.containerd.content.v1.content/blobs"
        return sum(each.stat().st_size for each in blobs.rglob("*") if each.is_file())


@pytest.fixture
def cache_node(programs: Programs, images: NodeImages) -> Iterator[CacheNode]:
    with node(programs, images.reference("based"), CacheNode) as made:
        made.start_cache(f"docker://{images.reference('based')}")
        made.start_containerd()
        yield made


def run(made: CacheNode, image: str, name: str, command: str) -> str:
    words = ("--rm", "--snapshotter", "erofs", "--net-host", "--runc-root", f"{made.folder}/runc")
    return made.ctr("run", *words, image, name, "/bin/sh", "-c", command)


def test_ctr_pulls_no_layer_and_runs_all_of_them(cache_node: CacheNode, images: NodeImages) -> None:
    image = images.reference("based")
    cache_node.ctr("images", "pull", "--plain-http", "--snapshotter", "erofs", image)
    assert cache_node.pulled_bytes() < MOST_PULLED_BYTES
    assert run(cache_node, image, "one", f"{SHOW} 2>/dev/null") == SHOWN
    assert cache_node.pulled_bytes() < MOST_PULLED_BYTES
    cache_node.ctr("images", "rm", "--sync", image)


def test_a_pod(cache_node: CacheNode, images: NodeImages) -> None:
    image = images.reference("based")
    cache_node.crictl("pull", image)
    assert cache_node.pulled_bytes() < MOST_PULLED_BYTES
    pod = cache_node.run_pod("pod")
    cache_node.start(pod, "shown", image, "sh", "-c", f"{SHOW} 2>/dev/null; echo done")
    assert SUM in cache_node.wait_for_log("shown", "done")
    assert cache_node.pulled_bytes() < MOST_PULLED_BYTES


def test_a_pod_goes_on_with_the_next_server(cache_node: CacheNode, images: NodeImages) -> None:
    image = images.reference("based")
    cache_node.crictl("pull", image)
    pod = cache_node.run_pod("pod")
    cache_node.start(pod, "ready", image, *FOREVER)
    cache_node.wait_for_log("ready", "ready")
    cache_node.stop("cache", 9)
    cache_node.start_cache(f"docker://{images.reference('based')}")
    container = cache_node.crictl("ps", "-q", "--name", "ready").strip()
    said = cache_node.crictl("exec", container, "/bin/sh", "-c", "/bin/md5sum < /big")
    assert said == f"{SUM}  -\n"
    cache_node.start(pod, "again", image, "sh", "-c", f"{SHOW} 2>/dev/null; echo done")
    assert SUM in cache_node.wait_for_log("again", "done")
    cache_node.remove_pods()
    assert not [each for each in mounts_below(cache_node.folder) if "runc" in each]
