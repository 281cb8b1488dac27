"""A node is upgraded under running pods: the mount service and the snapshotter are replaced while
twenty containers read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.integration.test_containerd_cri import images, programs, start_snapshotter
from tests.support.node import Node, Programs, node
from tests.support.node_images import LAZY, SUM, NodeImages

__all__ = ("images", "programs")

pytestmark = [pytest.mark.kernel, pytest.mark.tools]

CONTAINERS = 20
READER = (
    "echo ready; while [ ! -e /go ]; do sleep 0.1; done; "
    "while [ ! -e /end ]; do md5sum < big || echo failed; sleep 0.5; done; echo ended; "
    "exec sleep 100000"
)


@pytest.fixture
def pods(programs: Programs, images: NodeImages) -> Iterator[Node]:
    with node(programs, images.reference("pause")) as made:
        start_snapshotter(made, images)
        made.start_containerd()
        yield made


@pytest.mark.timeout(900)
def test_an_upgrade_under_twenty_containers(pods: Node, images: NodeImages) -> None:
    """Half of them read before, and the other half begin in the middle of it."""
    pod = pods.run_pod("pod")
    for kind in LAZY:
        pods.crictl("pull", images.reference(kind))
    names = [f"reader-{number}" for number in range(CONTAINERS)]
    started = {
        name: pods.start(pod, name, images.reference(LAZY[number % len(LAZY)]), "sh", "-c", READER)
        for number, name in enumerate(names)
    }
    processes = {name: _pid(pods, container) for name, container in started.items()}
    early, late = names[::2], names[1::2]
    for name in early:
        pods.crictl("exec", started[name], "touch", "/go")
    for name in early:
        pods.wait_for_log(name, SUM)
    pods.stop("snapshotter")
    for name in late[::2]:
        pods.crictl("exec", started[name], "touch", "/go")
    pods.lamina("service", "upgrade")
    for name in late[1::2]:
        pods.crictl("exec", started[name], "touch", "/go")
    start_snapshotter(pods, images)
    for name in late:
        pods.wait_for_log(name, SUM)
    pods.wait_until_connected()
    # What is new works with the new ones.
    pods.start(pod, "after", images.reference("native"), "sh", "-c", "md5sum < big")
    pods.wait_for_log("after", SUM)
    for name, container in started.items():
        pods.crictl("exec", container, "touch", "/end")
        lines = [each.split(" ", 3) for each in pods.wait_for_log(name, "ended").splitlines()]
        said = {line[3] for line in lines}
        assert said == {"ready", f"{SUM}  -", "ended"}
        assert _pid(pods, container) == processes[name]
    pods.remove_pods()
    pods.remove_images()
    pods.wait_until_clean()


def _pid(pods: Node, container: str) -> int:
    found = json.loads(pods.crictl("inspect", container))
    assert found["status"]["state"] == "CONTAINER_RUNNING"
    return int(found["info"]["pid"])
