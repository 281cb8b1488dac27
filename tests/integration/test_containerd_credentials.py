"""A private registry, whose login a program of the kubelet gives to the snapshotter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.integration.test_containerd_cri import images, programs
from tests.support.credential_provider import Provider
from tests.support.fake_registry import fake_registry
from tests.support.leaks import mounts_below
from tests.support.node import Node, Programs, node
from tests.support.node_images import FOREVER, SUM, NodeImages, lamina

__all__ = ("images", "programs")

pytestmark = [pytest.mark.kernel, pytest.mark.tools]

OLD, NEW = "dd7f2a-the-first-login", "c04e19-the-next-login"


def test_a_login_that_expires_under_a_mount(
    programs: Programs, images: NodeImages, tmp_path: Path
) -> None:
    """A container reads on with the next login, and neither is in a log or in what is kept."""
    with fake_registry() as private, node(programs, images.reference("pause")) as made:
        image = f"{private.host}/team/app:latest"
        lamina("convert", f"oci:{images.layout}:latest", f"docker://{image}")
        private.token, private.login = "token-1", f"ada:{OLD}"
        provider = Provider(tmp_path, private.host)
        provider.answers("Registry", "12h", **{private.host: ("ada", OLD)})
        config = ("--image-credential-provider-config", str(provider.config))
        made.start_snapshotter(*config, "--image-credential-provider-bin-dir", str(tmp_path))
        made.start_containerd()
        made.crictl("pull", "--creds", f"ada:{OLD}", image)
        assert len(mounts_below(made.folder / "snapshots")) == 1
        pod = made.run_pod("pod")
        container = made.start(pod, "main", image, *FOREVER)
        made.wait_for_log("main", "ready")
        private.token, private.login = "token-2", f"ada:{NEW}"
        provider.answers("Registry", "12h", **{private.host: ("ada", NEW)})
        before = len(provider.calls())
        assert made.crictl("exec", container, "md5sum", "big").split()[0] == SUM
        assert len(provider.calls()) == before + 1
        assert {call[0]["image"] for call in provider.calls()} == {f"{private.host}/team/app"}
        _require_no_login(made)
        made.remove_pods()
        made.remove_images()
        made.wait_until_clean()


def _require_no_login(made: Node) -> None:
    places = [path for path in made.folder.rglob("*") if path.is_file() and not path.is_symlink()]
    status = json.loads(made.lamina("service", "status", "--json"))
    for path in (*places, *([Path(status["log"])] if status["log"] else [])):
        data = path.read_bytes()
        assert OLD.encode() not in data and NEW.encode() not in data, path
