"""A mount whose metadata layer has not come: a kernel gets right bytes, or waits, or an error."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lamina.serve.service.client import service_status
from lamina.serve.service.spec import Lease
from tests.support.early_images import EarlyImageFolder, make_early_image
from tests.support.serving import ROOT, is_mounted
from tests.support.tools import require_erofs, require_kernel, require_root
from tests.unit.opening.test_early_image import (
    FAR,
    FILES,
    PAGE,
    PROFILE,
    cyclic,
    page_with,
)

pytestmark = pytest.mark.kernel

WAIT_S = 60.0

MOUNT = """\
import sys
from lamina.oci.start_manifest import StartRule
from lamina.opening.request import OpenRequest
from lamina.serve.service.mounting import mount_by_service
from lamina.serve.service.spec import Lease, MountSpec

reference, mountpoint, store, pid, ticks = sys.argv[1:]
start = StartRule(command=("/bin/program",))
mount_by_service(
    MountSpec(
        image=OpenRequest(reference=reference, store=store, start=start),
        mountpoint=mountpoint,
        device="fuse-blob",
        lease=Lease(int(pid), int(ticks)),
    )
)
"""


class Mounted:
    """Mounts as for a container of this process."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "mnt"
        self.path.mkdir()
        self._store = folder / "store"

    def mount(self, reference: str) -> None:
        lease = Lease.of_this_process()
        command = [sys.executable, "-c", MOUNT, reference, self.path, self._store]
        numbers = [str(lease.pid), str(lease.start_ticks)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
        subprocess.run([*command, *numbers], check=True, env=environment, timeout=WAIT_S)

    def read(self, name: str, start: int, size: int) -> None:
        """Compare a part of a file."""
        with (self.path / name).open("rb", 0) as file:
            # Nothing beside it is wanted.
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            while size:
                data = os.pread(file.fileno(), min(size, PAGE), start)
                # What comes before an error is short.
                assert data
                assert data == FILES[name][start : start + len(data)]
                start, size = start + len(data), size - len(data)


@pytest.fixture
def mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mounted]:
    require_root()
    require_erofs()
    require_kernel(6, 12, "file-backed EROFS")
    # However slow this machine is, what was asked for comes, and nothing else is asked for.
    monkeypatch.setenv("LAMINA_START_WAIT_S", "1000")
    mounted = Mounted(tmp_path)
    yield mounted
    if is_mounted(mounted.path):
        subprocess.run(["umount", "--lazy", mounted.path], check=True)


def until_read(read: Callable[[], None]) -> None:
    """Read again while there are errors; wrong bytes are none."""
    limit = time.monotonic() + WAIT_S
    while True:
        try:
            return read()
        except OSError:
            if time.monotonic() > limit:
                raise
            time.sleep(0.1)


def test_the_next_worker_shows_right_bytes(tmp_path: Path, mounted: Mounted) -> None:
    image = make_early_image(tmp_path / "made", FILES)
    image.attach_profile(PROFILE, tmp_path / "other")
    layer = image.metadata_layer()
    away = layer.rename(layer.with_suffix(".away"))
    mounted.mount(image.reference)
    mounted.read("bin/program", 0, 3 * PAGE)
    status = service_status()
    assert status is not None
    os.kill(status.pids["worker"], signal.SIGKILL)
    until_read(lambda: mounted.read("bin/program", 32 * PAGE, 32 * PAGE))
    mounted.read("etc/passwd", 0, 700)
    with pytest.raises(OSError, match=r"."):
        (mounted.path / FAR[1:]).read_bytes()
    mounted.read("bin/program", 219 * PAGE, 900_000 - 219 * PAGE)
    away.rename(layer)

    def read_all() -> None:
        for name, data in FILES.items():
            mounted.read(name, 0, len(data))

    until_read(read_all)


def test_a_cycle_is_an_error(tmp_path: Path, mounted: Mounted) -> None:
    image = make_early_image(tmp_path / "made", FILES, cyclic)
    every = set(range(len(image.bootstrap) // PAGE))
    EarlyImageFolder(image.reference, image.bootstrap).attach_pages(
        every - {page_with(image.bootstrap, b"many")}
    )
    mounted.mount(image.reference)
    assert (mounted.path / "etc/passwd").stat().st_size == 700
    for _ in range(2):
        with pytest.raises(OSError, match=r"."):
            os.listdir(mounted.path / "many")
    # Nor is anything read of what the kernel has not.
    with pytest.raises(OSError, match=r"."):
        (mounted.path / "etc/passwd").read_bytes()
