"""Pods of an image whose registry is away, by the mirrors that containerd's ``certs.d`` names:
distribution's cache, and one that is asked with ``?ns=`` and keeps what others have pulled.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.test_containerd_cri import programs  # noqa: F401 - a fixture
from tests.support.fake_registry import fake_registry
from tests.support.leaks import mounts_below
from tests.support.node import Node, Programs, node
from tests.support.node_images import FOREVER, SUM, NodeImages, lamina, pushed_images
from tests.support.registry_server import start_registry

pytestmark = [pytest.mark.kernel, pytest.mark.tools]

pytest.importorskip("grpc")

AWAY = "registry.test.invalid"
CERTS = """
[plugins."io.containerd.grpc.v1.cri".registry]
  config_path = "{folder}/certs.d"
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeImages]:
    with pushed_images(tmp_path_factory.mktemp("images")) as found:
        yield found


def check_pod(programs: Programs, images: NodeImages, mirror: str) -> None:  # noqa: F811
    """A pod runs an image of a registry that nobody can reach."""
    with node(programs._replace(pods=programs.pods + CERTS), images.reference("pause")) as made:
        name_mirror(made.folder / "certs.d", mirror)
        made.start_snapshotter("--hosts-dir", str(made.folder / "certs.d"))
        made.start_containerd()
        run(made, f"{AWAY}/native:latest")


def name_mirror(folder: Path, mirror: str) -> None:
    (folder / AWAY).mkdir(parents=True)
    capabilities = '["pull", "resolve"]'
    (folder / AWAY / "hosts.toml").write_text(
        f'server = "https://{AWAY}"\n[host."http://{mirror}"]\ncapabilities = {capabilities}\n'
    )


def run(made: Node, image: str) -> None:
    made.crictl("pull", image)
    assert len(mounts_below(made.folder / "snapshots")) == 1
    pod = made.run_pod("pod")
    container = made.start(pod, "main", image, *FOREVER)
    made.wait_for_log("main", "ready")
    assert made.crictl("exec", container, "md5sum", "big").split()[0] == SUM
    made.remove_pods()
    made.remove_images()
    made.wait_until_clean()


def test_the_cache_of_distribution(
    programs: Programs,  # noqa: F811
    images: NodeImages,
    tmp_path: Path,
) -> None:
    extra = f"proxy: {{remoteurl: 'http://{images.registry.host}'}}\n"
    with start_registry(tmp_path / "cache", extra=extra) as cache:
        check_pod(programs, images, cache.host)


def test_a_mirror_for_many_registries(programs: Programs, images: NodeImages) -> None:  # noqa: F811
    """As Spegel is one: it is told which registry is meant."""
    with fake_registry() as mirror:
        source = f"docker://{images.reference('native')}"
        lamina("copy", source, f"docker://{mirror.host}/native:latest")
        begin = len(mirror.seen)
        check_pod(programs, images, mirror.host)
        asked = [each.path for each in mirror.seen[begin:] if each.method == "GET"]
    blobs = [path for path in asked if "/blobs/" in path]
    assert blobs and all(f"ns={AWAY}" in path for path in blobs)
