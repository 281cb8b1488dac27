"""A guest starts node from a disk that is not there: how much of the image it takes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lamina.block.disk import DiskView
from lamina.oci.start_manifest import StartRule, start_entries
from lamina.opening.open_image import open_image
from lamina.opening.request import OpenRequest
from lamina.registry.open_repository import open_repository
from lamina.registry.referrers import list_referrers
from lamina.serve.nbd.connection import Served
from lamina.serve.nbd.listening import listen_unix
from lamina.serve.nbd.negotiation import Export
from lamina.serve.nbd.server import NbdServer
from tests.support.guest import nbd_disk, require_guest, run_in_guest
from tests.support.guest_kernel import require_kernel_package
from tests.support.tools import require_root, require_tool

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.slow,
    pytest.mark.guest,
    pytest.mark.timeout(1800),
]

SCRIPT = Path(__file__).parents[1] / "support" / "in_guest_node.py"
WITHOUT, WITH = 0.12, 0.05
"""The most of the layers' compressed bytes that may be fetched, without and with an artifact."""


def lamina(store: Path, *arguments: str) -> None:
    environment = {**os.environ, "LAMINA_STORE": str(store), "LAMINA_START_WAIT_S": "600"}
    command = [sys.executable, "-m", "lamina", *arguments]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr


def share(reference: str, start: StartRule | None, folder: Path) -> float:
    """Boot a guest with the disk, and return the part of the layers that was fetched."""
    folder.mkdir()
    request = OpenRequest(reference=reference, store=str(folder / "store"), start=start)
    with open_image(request) as image:
        assert image.manifest is not None and image.origin is not None
        assert image.origin.reference is not None
        layers = sum(layer.size for layer in image.manifest.layers[:-1])
        artifact = 0
        if start is not None:
            digest = image.origin.reference.digest or ""
            with open_repository(image.origin.reference) as repository:
                (entry,) = start_entries(list_referrers(repository, digest), digest)
            artifact = entry.layer.size
        disk = DiskView(image)
        disk.open_blobs()
        socket = folder / "socket"
        served = Served(disk, Export(b"", disk.size_bytes))
        with NbdServer(listen_unix(str(socket)), served) as server:
            server.start()
            # With an artifact a kernel that reads ahead asks for pages that no start touches.
            ahead = "128" if start is None else "0"
            kernel = require_kernel_package("6.12")
            run = run_in_guest(kernel, SCRIPT, ahead, devices=nbd_disk(socket))
        assert run.exit_code == 0, run.output + run.console[-2000:]
        assert run.output.startswith("v"), run.output
        fetched = image.statistics.fetched_bytes + artifact
        print(f"{fetched} of {layers} bytes, {artifact} of them in the artifact")
    return fetched / layers


def test_a_guest_takes_a_small_part_of_the_image(
    oci_image: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_guest()
    require_root()
    require_tool("runc")
    # However slow this machine is, what was asked for comes.
    monkeypatch.setenv("LAMINA_START_WAIT_S", "600")
    reference = f"oci:{tmp_path}/native:node"
    lamina(tmp_path / "store", "convert", f"oci:{oci_image('node')}:latest", reference)
    without = share(reference, None, tmp_path / "without")
    lamina(tmp_path / "store", "profile", reference, "/usr/bin/node", "-v")
    with_artifact = share(reference, StartRule(), tmp_path / "with")
    assert without <= WITHOUT, (without, with_artifact)
    assert with_artifact <= WITH, (without, with_artifact)
