"""The hub of a guest, called by containerd's own client of ttrpc."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.integration.test_guest_run import hub_command, served, stop_hub
from tests.support.guest_world import (
    SECRET,
    SECRET_NAME,
    STRANGER,
    guest_world,
    memory_folder,
)
from tests.support.tools import require_peer, require_root, require_tool

pytestmark = [pytest.mark.kernel, pytest.mark.tools, pytest.mark.peers]


def test_an_image_is_pulled_by_the_client_of_containerd(tmp_path: Path) -> None:
    require_root()
    require_tool("docker-registry", "runc")
    client = require_peer("ttrpc-client")
    with (
        tempfile.TemporaryDirectory(dir=memory_folder()) as name,
        guest_world(tmp_path) as world,
    ):
        base = Path(name)
        digest = world.push()
        world.push(name="foreign", signer=STRANGER)
        init_data = world.init_data()
        world.allow(init_data)
        environment = {**os.environ, "LAMINA_RUNTIME": str(base / "runtime")}
        path, bundle, other = base / "hub.sock", base / "bundle", base / "other"
        bundle.mkdir()
        other.mkdir()

        def pull(image: str, folder: Path) -> subprocess.CompletedProcess[str]:
            command = [client, path, image, folder]
            return subprocess.run(command, capture_output=True, text=True, check=False)

        with served(hub_command(init_data, base / "work", path), environment, path):
            try:
                done = pull(world.reference, bundle)
                assert (done.returncode, done.stdout.strip()) == (0, digest), done.stderr
                assert SECRET in (bundle / "rootfs/vault" / SECRET_NAME).read_bytes()
                refused = pull(world.named("foreign"), other)
                assert refused.returncode == 1
                assert "PermissionDenied" in refused.stderr and "sign" in refused.stderr
            finally:
                stop_hub(base / "work", bundle, environment)
