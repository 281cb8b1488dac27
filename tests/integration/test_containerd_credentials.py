"""A private registry, whose login a program of the kubelet, or a pull, gives to the snapshotter."""

from __future__ import annotations

import base64
import contextlib
import json
import time
from pathlib import Path

import pytest

from tests.integration.test_containerd_cri import images, programs
from tests.support.credential_provider import Provider
from tests.support.fake_registry import fake_registry
from tests.support.leaks import mounts_below
from tests.support.node import DEADLINE_S, CommandError, Node, Programs, node
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


def test_the_login_of_a_pull(programs: Programs, images: NodeImages, tmp_path: Path) -> None:
    """It comes by the image service; a later pull's takes its place under the mount, and nothing is
    left of either when the image is removed.
    """
    with fake_registry() as private, node(programs, images.reference("pause")) as made:
        image = f"{private.host}/team/app:latest"
        lamina("convert", f"oci:{images.layout}:latest", f"docker://{image}")
        private.token, private.login = "token-1", f"ada:{OLD}"
        made.start_snapshotter("--image-service", str(made.folder / "c.sock"))
        made.start_containerd()

        def by_lamina(*words: str) -> str:
            sockets = ("-r", f"unix://{made.folder}/c.sock", "-i", f"unix://{made.folder}/l.sock")
            return made.run(programs.crictl, "-t", "60s", *sockets, *words)

        with pytest.raises(CommandError):
            by_lamina("pull", "--creds", "ada:wrong", image)
        by_lamina("pull", "--creds", f"ada:{OLD}", image)
        assert len(mounts_below(made.folder / "snapshots")) == 1
        assert _passwords_in(made.pid("snapshotter")) == {OLD}
        container = made.start(made.run_pod("pod"), "main", image, *FOREVER)
        made.wait_for_log("main", "ready")
        private.token, private.login = "token-2", f"ada:{NEW}"
        by_lamina("pull", "--creds", f"ada:{NEW}", image)
        assert made.crictl("exec", container, "md5sum", "big").split()[0] == SUM
        _require_no_login(made)
        made.remove_pods()
        for each in by_lamina("images", "-q").split():
            by_lamina("rmi", each)
        made.wait_until_clean()
        # What the threads of gRPC have they let go of with their next calls.
        deadline_s = time.monotonic() + DEADLINE_S
        while left := _passwords_in(made.pid("snapshotter")):
            assert time.monotonic() < deadline_s, left
            by_lamina("images")
        _require_no_login(made)


def _passwords_in(pid: int) -> set[str]:
    """Return the passwords that are in the memory of a process, also as HTTP has them."""
    found = set()
    forms = {word: (word.encode(), base64.b64encode(f"ada:{word}".encode())) for word in (OLD, NEW)}
    maps = [line.split() for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for area in maps:
            start, end = (int(each, 16) for each in area[0].split("-"))
            data = bytearray()
            # Some of the kernel's own pages cannot be read, and others go meanwhile.
            with contextlib.suppress(OSError, OverflowError, ValueError):
                memory.seek(start)
                while len(data) < end - start and (some := memory.read(end - start - len(data))):
                    data += some
            found |= {word for word in forms if any(form in data for form in forms[word])}
    return found


def _require_no_login(made: Node) -> None:
    places = [path for path in made.folder.rglob("*") if path.is_file() and not path.is_symlink()]
    status = json.loads(made.lamina("service", "status", "--json"))
    for path in (*places, *([Path(status["log"])] if status["log"] else [])):
        data = path.read_bytes()
        assert OLD.encode() not in data and NEW.encode() not in data, path
