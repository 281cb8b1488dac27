"""A stock containerd 2.4 takes layers that are EROFS file systems as they are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.node import OWN_PLACES, SOCKETS, Node, Programs, node
from tests.support.node_images import SUM, NodeImages, lamina, pushed_images
from tests.support.tools import require_kernel, require_peer, require_root

PLATFORM = "linux(+erofs)/amd64"
CONFIG = """\
version = 3
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = "linux(+erofs)/amd64"
  snapshotter = "erofs"
  differ = "erofs"
"""
SHOW = "/bin/md5sum < /big; cat /third; cat /etc/text || echo hidden"
SHOWN = f"{SUM}  -\nthird\nhidden\n"
FORMATS = ("erofs", "erofs+zstd")
MKFS = "#!/bin/sh\necho ' --tar=X'\n"
"""The differ asks it for its options, and for nothing else where layers are made already; that of
Debian 12 has no such option.
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeImages]:
    with pushed_images(tmp_path_factory.mktemp("images")) as found:
        source = f"docker://{found.reference('based')}"
        for form in FORMATS:
            target = found.reference(form.replace("+", "-"))
            lamina("convert", "--layers", form, source, f"docker://{target}")
        yield found


class ErofsNode(Node):
    """A node whose containerd has no plugin of ours, and no CRI."""

    def start_containerd(self) -> None:
        """Start it."""
        programs = self.folder / "bin"
        programs.mkdir()
        (programs / "mkfs.erofs").write_text(MKFS)
        (programs / "mkfs.erofs").chmod(0o755)
        self.environment["PATH"] = f"{programs}:{self.environment['PATH']}"
        first, *others = (part.format(folder=self.folder) for part in (OWN_PLACES, SOCKETS))
        config = self.folder / "config.toml"
        config.write_text("\n".join((first, CONFIG, *others)))
        self._start("containerd", [self.programs.containerd, "-c", str(config)])
        self._wait_for("containerd", self._answers)


@pytest.fixture
def erofs_node(images: NodeImages) -> Iterator[ErofsNode]:
    require_root()
    require_kernel(6, 12, "an EROFS mount of files")
    containerd, ctr, shim = (
        require_peer(f"containerd-2/{name}")
        for name in ("containerd", "ctr", "containerd-shim-runc-v2")
    )
    programs = Programs(str(containerd), str(ctr), "", str(Path(shim).parent))
    with node(programs, images.reference("based"), ErofsNode) as made:
        made.start_containerd()
        yield made


@pytest.mark.parametrize("form", FORMATS)
def test_ctr_runs_what_was_converted(erofs_node: ErofsNode, images: NodeImages, form: str) -> None:
    image = images.reference(form.replace("+", "-"))
    snapshotter = ("--snapshotter", "erofs", "--platform", PLATFORM)
    erofs_node.ctr("images", "pull", "--plain-http", *snapshotter, image)
    words = ("--rm", *snapshotter, "--net-host", "--runc-root", f"{erofs_node.folder}/runc")
    said = erofs_node.ctr("run", *words, image, "one", "/bin/sh", "-c", f"{SHOW} 2>/dev/null")
    assert said == SHOWN
    erofs_node.ctr("images", "rm", "--sync", image)
