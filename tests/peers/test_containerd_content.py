"""What containerd 2 has of a lazily pulled image, as the integration test of Debian's 1.6."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.test_containerd_content import check_content, check_space, start_snapshotter
from tests.support.node import PODS_2, Node, Programs, node
from tests.support.node_images import LAZY, NodeImages, pushed_images
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
