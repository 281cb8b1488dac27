"""A service of the version before messages had a number is upgraded while its mounts are read: the
code comes out of the history of this repository.
"""

from __future__ import annotations

import compileall
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.serve.mounts import MountState, list_mounts, unmount
from lamina.serve.service.client import OtherVersionError, service_status, upgrade_service
from tests.integration.test_takeover import device
from tests.support.fake_registry import FakeRegistry, fake_registry
from tests.support.native_images import build_image, push_image, some_bytes
from tests.support.serving import ROOT, is_mounted
from tests.support.waiting import wait_for_no_mounts

pytestmark = pytest.mark.kernel
__all__ = ["device"]

OLD = "76f8115"
FILES = {b"files/%03d" % number: some_bytes(40_000 + number, number) for number in range(240)}
READERS = 3
BLOBS = 3
FAR_S = 0.01
ANSWERED = 2
"""Requests of blobs before readers have to wait."""
WAIT_S = 120.0


@pytest.fixture(scope="module")
def old_code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder ``src`` of the old version."""
    command = ["git", "-C", str(ROOT), "archive", OLD, "src"]
    try:
        archive = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("git is not there")
    if archive.returncode:
        pytest.skip(f"{OLD} is not in the history: {archive.stderr.decode().strip()}")
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")
    # As pip does it.
    compileall.compile_dir(folder, quiet=2)
    return folder / "src"


class FarRegistry:
    """A registry that is far away, and can stop answering after some more requests."""

    def __init__(self, fake: FakeRegistry) -> None:
        self.fake = fake
        self.gate = threading.Event()
        self.gate.set()
        self._left = 0
        self.waiting = 0
        fake.rule("GET", "/blobs/", self._late, times=1 << 30)

    def _late(self, _exchange: object) -> bool:
        time.sleep(FAR_S)
        if self._left > 0:
            self._left -= 1
        elif not self.gate.is_set():
            self.waiting += 1
            self.gate.wait(WAIT_S)
        return False

    def answer_only(self, requests: int) -> None:
        """Answer so many, and let others wait for the gate."""
        self._left = requests
        self.gate.clear()


@pytest.fixture
def far_registry() -> Iterator[FarRegistry]:
    with fake_registry() as fake:
        far = FarRegistry(fake)
        yield far
        far.gate.set()


class Installed:
    """The code that is installed, which an upgrade replaces, and a mount that is read."""

    def __init__(self, folder: Path, old_code: Path, far: FarRegistry) -> None:
        registry = far.fake
        self.far = far
        self.code = folder / "code"
        self.code.symlink_to(old_code)
        self.old = old_code
        self.mountpoint = folder / "mnt"
        self.mountpoint.mkdir()
        layout = folder / "layout"
        image = build_image(FILES, chunk_size=16384, blob_count=BLOBS)
        manifest = push_image(image, layout)
        for path in (layout / "blobs" / "sha256").iterdir():
            registry.add_blob(path.read_bytes())
        data = registry.blobs[manifest.digest]
        for name in ("latest", manifest.digest):
            registry.manifests[name] = (json.loads(data)["mediaType"], data)
        self.reference = f"docker://{registry.host}/old/image:latest"
        self.read_bytes = 0
        self.failures: list[str] = []

    def lamina(self, *arguments: str, code: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run the command line of the code that is installed, or of another one."""
        return subprocess.run(
            [sys.executable, "-m", "lamina", *arguments],
            env={**os.environ, "PYTHONPATH": str(code or self.code)},
            cwd=self.mountpoint.parent,
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            check=False,
        )

    def install_new(self) -> None:
        """Replace the code, as a package manager does."""
        new = self.code.with_name("new")
        new.symlink_to(ROOT / "src")
        new.replace(self.code)

    def read(self, number: int) -> None:
        """Be a program that reads all files, from another one on than the others."""
        names = sorted(FILES)
        first = number * len(names) // READERS
        names = names[first:] + names[:first]
        command = ["cat", *map(os.fsdecode, names)]
        data = bytearray()
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=self.mountpoint
        ) as reader:
            assert reader.stdout is not None and reader.stderr is not None
            while part := os.read(reader.stdout.fileno(), 1 << 14):
                data += part
                self.read_bytes += len(part)
            said = reader.stderr.read()
        if reader.returncode or said:
            self.failures.append(said.decode())
        if data != b"".join(FILES[name] for name in names):
            self.failures.append("other bytes")


@pytest.fixture
def installed(tmp_path: Path, old_code: Path, far_registry: FarRegistry) -> Iterator[Installed]:
    installed = Installed(tmp_path, old_code, far_registry)
    yield installed
    if is_mounted(installed.mountpoint):
        subprocess.run(["umount", "--lazy", installed.mountpoint], check=True)


def test_no_read_fails(installed: Installed, device: str) -> None:
    mounted = installed.lamina(
        "mount", "--device", device, installed.reference, str(installed.mountpoint)
    )
    assert mounted.returncode == 0, mounted.stderr
    # The new client is told of the old service in words.
    with pytest.raises(OtherVersionError, match="older lamina") as told:
        service_status()
    assert "lamina service upgrade" in str(told.value.hint)
    installed.far.answer_only(ANSWERED)
    readers = [threading.Thread(target=installed.read, args=(n,)) for n in range(READERS)]
    for reader in readers:
        reader.start()
    deadline = time.monotonic() + WAIT_S
    # Then readers wait for what the old worker has asked for.
    while not installed.far.waiting:
        assert time.monotonic() < deadline and not installed.failures, installed.failures
        time.sleep(0.005)
    installed.install_new()
    assert upgrade_service()
    after = service_status()
    assert after is not None
    # The old client is told of the new service in its words.
    told_old = installed.lamina("mounts", code=installed.old)
    assert told_old.returncode != 0
    assert "this lamina is older than the mount service" in told_old.stderr
    installed.far.gate.set()
    for reader in readers:
        reader.join()
    assert installed.failures == []
    if device == "fanotify":
        # All is here by now, so nobody may be needed any more.
        assert all(each.state in (MountState.SERVED, MountState.RESIDENT) for each in list_mounts())
    else:
        # And by the new wire it goes on as ever.
        assert upgrade_service()
        assert [each.state for each in list_mounts()] == [MountState.SERVED]
    unmount(installed.mountpoint)
    wait_for_no_mounts()
