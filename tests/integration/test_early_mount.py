"""A mount whose metadata layer has not come: a kernel gets right bytes, or waits, or an error."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lamina.linux.process import start_time_ticks
from lamina.serve.service.client import service_status
from tests.support.early_images import EarlyImageFolder, make_early_image
from tests.support.serving import ROOT, is_mounted
from tests.support.tools import require_erofs, require_kernel, require_root
from tests.support.waiting import wait_for_no_mounts, wait_until
from tests.unit.opening.test_early_image import (
    FAR,
    FILES,
    PAGE,
    PROFILE,
    cyclic,
    page_with,
)

pytestmark = pytest.mark.kernel

WAIT_S = 300.0


class Mounted:
    """A mount of one device."""

    def __init__(self, folder: Path, device: str) -> None:
        self.path = folder / "mnt"
        self.path.mkdir()
        self._store = folder / "store"
        self._device = device
        self._server: subprocess.Popen[bytes] | None = None
        self._environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}

    def lamina(self, *words: str) -> None:
        command = [sys.executable, "-m", "lamina", *words]
        subprocess.run(command, check=True, env=self._environment, timeout=WAIT_S)

    def _words(self, reference: str) -> list[str]:
        words = ["mount", "--device", self._device, "--store", str(self._store)]
        return [*words, reference, str(self.path)]

    def mount(self, reference: str) -> None:
        self.lamina(*self._words(reference))

    def serve(self, reference: str) -> subprocess.Popen[bytes]:
        """Mount in the foreground."""
        command = [sys.executable, "-m", "lamina", *self._words(reference), "--foreground"]
        self._server = subprocess.Popen(
            [*command, "--json"], stdout=subprocess.PIPE, env=self._environment
        )
        assert self._server.stdout is not None
        with self._server.stdout:
            assert self._server.stdout.readline()
        return self._server

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

    def read_all(self) -> None:
        for name, data in FILES.items():
            self.read(name, 0, len(data))

    def end(self) -> None:
        if is_mounted(self.path):
            subprocess.run(["umount", "--lazy", self.path], check=True)
        if self._server is not None:
            self._server.wait(WAIT_S)
        wait_for_no_mounts()


@pytest.fixture(params=["fuse-blob", "fuse"])
def mounted(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Mounted]:
    require_root()
    if request.param == "fuse-blob":
        require_erofs()
        require_kernel(6, 12, "file-backed EROFS")
    # However slow this machine is, what was asked for comes, and nothing else is asked for.
    monkeypatch.setenv("LAMINA_START_WAIT_S", "1000")
    mounted = Mounted(tmp_path, request.param)
    yield mounted
    mounted.end()


def until_read(read: Callable[[], None]) -> None:
    """Read again while there are errors; wrong bytes are none."""

    def is_read() -> bool:
        with contextlib.suppress(OSError):
            read()
            return True
        return False

    wait_until(is_read, "an answer")


def whole_service() -> dict[str, int]:
    """Wait until each role has a living process."""
    found: dict[str, int] = {}

    def is_whole() -> bool:
        status = service_status()
        found.update({} if status is None else status.pids)
        return status is not None and all(map(start_time_ticks, status.pids.values()))

    wait_until(is_whole, "a whole service")
    return found


def kill(role: str) -> None:
    os.kill(whole_service()[role], signal.SIGKILL)


def test_the_next_service_shows_right_bytes(tmp_path: Path, mounted: Mounted) -> None:
    image = make_early_image(tmp_path / "made", FILES)
    image.attach_profile(PROFILE, tmp_path / "other")
    layer = image.metadata_layer()
    away = layer.rename(layer.with_suffix(".away"))
    mounted.mount(image.reference)
    mounted.read("bin/program", 0, 3 * PAGE)
    kill("worker")
    until_read(lambda: mounted.read("bin/program", 32 * PAGE, 20 * PAGE))
    kill("supervisor")
    until_read(lambda: mounted.read("bin/program", 52 * PAGE, 20 * PAGE))
    whole_service()
    mounted.lamina("service", "reload")
    until_read(lambda: mounted.read("bin/program", 72 * PAGE, 18 * PAGE))
    until_read(lambda: mounted.read("etc/passwd", 0, 700))
    with pytest.raises(OSError, match=r"."):
        (mounted.path / FAR[1:]).read_bytes()
    mounted.read("bin/program", 219 * PAGE, 900_000 - 219 * PAGE)
    away.rename(layer)
    until_read(mounted.read_all)


def test_a_server_in_the_foreground_that_ends_leaves_errors(
    tmp_path: Path, mounted: Mounted
) -> None:
    image = make_early_image(tmp_path / "made", FILES)
    image.attach_profile(PROFILE, tmp_path / "other")
    layer = image.metadata_layer()
    layer.rename(layer.with_suffix(".away"))
    server = mounted.serve(image.reference)
    mounted.read("bin/program", 0, 3 * PAGE)
    server.kill()
    server.wait(WAIT_S)
    for name in ("bin/program", "many/+sub/file"):
        with pytest.raises(OSError, match=r"."):
            mounted.read(name, 32 * PAGE if name == "bin/program" else 0, PAGE)


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
