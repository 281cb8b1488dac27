"""Images as a virtio-fs share of a guest: the same trees, without a disk."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.guest import require_guest, run_in_guest
from tests.support.guest_kernel import require_kernel_package
from tests.support.native_images import push_image
from tests.support.serving import sample_image
from tests.support.shell import Shell
from tests.support.tools import missing, require_kernel, require_root

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.slow,
    pytest.mark.guest,
    pytest.mark.timeout(1200),
]

CHECKS = Path(__file__).parents[1] / "support" / "in_guest_disks.py"
VIRTIOFSD = Path("/usr/lib/qemu/virtiofsd")


@contextmanager
def shared(shell: Shell, *images: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """The server of a share, and the options of QEMU for it."""
    socket = shell.folder / "share.sock"
    words = shell.words("serve", "--json", "virtiofs", "--socket", str(socket), *images)
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, text=True, cwd=shell.folder, env=shell.environment
    ) as process:
        try:
            assert process.stdout is not None
            told = json.loads(process.stdout.readline())
            assert told["socket"] == str(socket)
            memory = "memory-backend-memfd,id=memory,size=1536M,share=on"
            yield (
                process,
                [
                    *("-object", memory, "-numa", "node,memdev=memory"),
                    *("-chardev", f"socket,id=share,path={socket}"),
                    *("-device", f"vhost-user-fs-pci,chardev=share,tag={told['tag']}"),
                ],
            )
        finally:
            process.terminate()
            process.wait(60)


@pytest.mark.parametrize("names", [[""], ["one", "two"]])
def test_a_guest_sees_images_by_virtio_fs(shell: Shell, names: Sequence[str]) -> None:
    require_guest()
    require_root()
    require_kernel(6, 12, "file-backed EROFS")
    if not VIRTIOFSD.exists():
        missing("not installed: virtiofsd, of Debian 12's qemu-system-common")
    push_image(sample_image(), shell.folder / "layout")
    images = [f"{name}=oci:layout:latest".removeprefix("=") for name in names]
    check = {"name": "share", "device": "image", "layers": [], "kind": "virtiofs", "below": names}
    with shared(shell, *images) as (server, devices):
        run = run_in_guest(
            require_kernel_package("6.12"), CHECKS, json.dumps(check), devices=devices
        )
        assert run.exit_code == 0, f"{run.output}\n{run.console[-3000:]}"
        assert run.output.split() == ["ok", "share"]
        # It ends with the guest, and takes its mounts along.
        assert server.wait(60) == 0
    assert shell.mine() == []
    assert list((shell.folder / "run").glob("share-*")) == []
