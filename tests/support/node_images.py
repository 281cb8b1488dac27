"""The images of a node's tests, each of two layers, in a registry: ``pause``, ``plain``
(ordinary), ``indexed``, ``native``, ``sealed``, all with the same tree; and two more ordinary ones,
``based`` with a third layer on those, and ``forked`` with that on the first alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lamina.cli.dispatch import run_command
from tests.support.containers import small_root
from tests.support.layers import Item, add_image, tar_bytes, whiteout, write_index
from tests.support.registry_server import RegistryServer, start_registry
from tests.support.sealed import Keys
from tests.support.tools import require_erofs, require_root, require_tool

BIG = b"".join(hashlib.sha256(b"%d" % number).digest() for number in range(100_000))
"""Content that no pack takes, and that a start does not touch."""
KINDS = ("plain", "indexed", "native", "sealed")
LAZY = ("indexed", "native", "sealed")
FOREVER = ("sh", "-c", "echo ready; exec sleep 100000")
SUM = hashlib.md5(BIG, usedforsecurity=False).hexdigest()


class NodeImages(NamedTuple):
    """Where the images are; ``keys`` open the sealed one."""

    registry: RegistryServer
    layout: Path
    keys: Keys

    def reference(self, name: str) -> str:
        """Return the reference as the clients of containerd write it."""
        return f"{self.registry.host}/{name}:latest"


def lamina(*words: str) -> None:
    """Run a verb in this process."""
    assert run_command([*words, "--quiet"]) == 0


@contextlib.contextmanager
def pushed_images(folder: Path) -> Iterator[NodeImages]:
    """Make them all, and push them to a registry of their own; skips what this machine cannot."""
    require_root()
    require_erofs()
    require_tool("docker-registry")
    with start_registry(folder / "registry") as registry:
        yield _push_images(registry, folder)


def _push_images(registry: RegistryServer, folder: Path) -> NodeImages:
    root = small_root(folder / "root")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.add(root, ".")
        for item in (Item("gone", b"kept\n"), Item("etc/text", b"lower\n")):
            archive.addfile(item.info(), io.BytesIO(item.data))
    lower = buffer.getvalue()
    upper = tar_bytes([whiteout("gone"), Item("etc/text", b"upper\n"), Item("big", BIG)])
    layout = folder / "layout"
    config = {"Cmd": ["sleep", "100000"], "Env": ["PATH=/bin"], "User": "", "WorkingDir": "/"}
    write_index(layout, "latest", add_image(layout, [lower, upper], config=config))
    source, keys = f"oci:{layout}:latest", Keys.make(folder)
    images = NodeImages(registry, layout, keys)
    for name in ("pause", "plain", "indexed"):
        lamina("copy", source, f"docker://{images.reference(name)}")
    third = tar_bytes([Item("third", b"third\n"), whiteout("etc/text"), Item("bin/own", b"own\n")])
    for name, below in (("based", [lower, upper]), ("forked", [lower])):
        write_index(
            folder / name, "latest", add_image(folder / name, [*below, third], config=config)
        )
        lamina("copy", f"oci:{folder / name}:latest", f"docker://{images.reference(name)}")
    lamina("index", f"docker://{images.reference('indexed')}")
    lamina("convert", source, f"docker://{images.reference('native')}")
    seal = ("convert", "--seal", "--encryption-key", f"jwe:{keys.public}")
    lamina(*seal, source, f"docker://{images.reference('sealed')}")
    return images
