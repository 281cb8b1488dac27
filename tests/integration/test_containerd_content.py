"""What of a lazily pulled image containerd itself does not have, and how it gets it; and that the
node store gives its space back.
"""

from __future__ import annotations

import functools
import json
import re
import tarfile
from collections.abc import Iterator

import pytest

from tests.support.node import CommandError, Node, Programs, node
from tests.support.node_images import FOREVER, LAZY, SUM, NodeImages, pushed_images
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


def status_of(made: Node, image: str) -> tuple[int, int]:
    """Return how many of the blobs that a manifest names are here, and how many it names."""
    (row,) = made.ctr("images", "check", f"name=={image}", namespace="k8s.io").splitlines()[1:]
    found = re.search(r"complete \((\d+)/(\d+)\)", row)
    assert found is not None, row
    return int(found[1]), int(found[2])


def check_content(made: Node, images: NodeImages, kind: str) -> None:
    """What needs the layers tells that they are missing; one command brings them."""
    image = images.reference(kind)
    ctr = functools.partial(made.ctr, namespace="k8s.io")
    archive = made.folder / "image.tar"
    made.crictl("pull", image)
    assert status_of(made, image)[0] == 1
    with pytest.raises(CommandError, match="not found"):
        ctr("images", "export", str(archive), image)
    ctr("content", "fetch", "--plain-http", image)
    here, count = status_of(made, image)
    assert here == count > 2
    ctr("images", "export", str(archive), image)
    with tarfile.open(archive) as exported:
        blobs = [each for each in exported if each.isfile() and each.name.startswith("blobs/")]
    # The manifest, and all that it names.
    assert len(blobs) == 1 + count
    made.remove_images()
    made.wait_until_clean()


def kept_blobs(made: Node) -> set[str]:
    """Return the cache files of the node store."""
    return {path.name for path in (made.folder / "store/blobs").iterdir()}


def check_space(made: Node, images: NodeImages, kind: str) -> None:
    """An image that is removed under a container keeps its blobs, and loses them after that."""
    image = images.reference(kind)
    made.crictl("pull", image)
    pod = made.run_pod("pod")
    container = made.start(pod, "main", image, *FOREVER)
    made.wait_for_log("main", "ready")
    assert made.crictl("exec", container, "md5sum", "big").split()[0] == SUM
    made.ctr("images", "rm", "--sync", image, namespace="k8s.io")
    before = kept_blobs(made)
    assert before
    assert json.loads(made.lamina("gc", "--json"))["blob_bytes"] == 0
    assert kept_blobs(made) == before
    assert made.crictl("exec", container, "md5sum", "big").split()[0] == SUM
    made.remove_pods()
    made.remove_images()
    made.wait_until_clean()
    assert json.loads(made.lamina("gc", "--json"))["blob_bytes"] > 0
    assert not kept_blobs(made)


@pytest.mark.parametrize("kind", LAZY)
def test_what_was_left_in_the_registry_is_fetched_by_ctr(
    cluster_node: Node, images: NodeImages, kind: str
) -> None:
    check_content(cluster_node, images, kind)


@pytest.mark.parametrize("kind", ["indexed", "native"])
def test_space_is_freed_after_an_image_and_never_under_a_container(
    cluster_node: Node, images: NodeImages, kind: str
) -> None:
    check_space(cluster_node, images, kind)
