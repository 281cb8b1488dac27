"""``lamina guest run`` on this machine: what the guest believes, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.support.guest_cache import running_cache
from tests.support.guest_world import (
    NAME,
    OUTPUT,
    SECRET,
    SECRET_NAME,
    STRANGER,
    GuestWorld,
    guest_world,
    memory_folder,
)
from tests.support.sealed import extents, flip, pushed
from tests.support.tools import require_root, require_tool
from tests.support.ttrpc_client import TtrpcClient, field

pytestmark = [pytest.mark.kernel, pytest.mark.tools]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[GuestWorld]:
    require_root()
    require_tool("docker-registry", "runc")
    with guest_world(tmp_path) as found:
        yield found


@pytest.fixture
def work() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=memory_folder()) as name:
        yield Path(name) / "work"


def guest_run(
    world: GuestWorld, init_data: Path, work: Path, *options: str, image: str = ""
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lamina", "guest", "run", "--evidence", "sample"]
    command += ["--init-data", str(init_data), "--work", str(work), "--network", "none"]
    command += [*options, image or world.reference]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """The one sentence that a refused start has left."""
    assert (done.returncode, done.stdout) == (125, ""), done
    lines = [line for line in done.stderr.splitlines() if line.startswith("lamina: ")]
    lines = [line for line in lines if not line.startswith("lamina: warning")]
    assert len(lines) == 1, done.stderr
    return lines[0]


def test_a_sealed_image_runs_through_the_cache_of_a_host_that_learns_nothing(
    world: GuestWorld, work: Path, tmp_path: Path
) -> None:
    world.push()
    init_data = world.init_data()
    world.allow(init_data)
    with running_cache(tmp_path / "cache", world.registry.host) as cache:
        done = guest_run(world, init_data, work, "--cache", f"http://{cache}", "--cache-only")
    assert (done.returncode, done.stdout.strip()) == (0, OUTPUT), done.stderr
    kept = b"".join([*pushed(tmp_path / "cache"), *pushed(world.registry.root)])
    for secret in (SECRET, SECRET_NAME.encode(), b"BusyBox", b"the guest runs"):
        assert secret not in kept


def test_what_the_host_can_change_ends_in_one_sentence(world: GuestWorld, work: Path) -> None:
    world.push()
    init_data = world.init_data()
    world.allow(init_data)
    assert guest_run(world, init_data, work).returncode == 0
    # Init-data of the host's own: the broker's rule is for the other one.
    changed = world.init_data("changed.toml", more="# another\n")
    assert "measurement" in refusal(guest_run(world, changed, work))
    # An older release, and an image that somebody else has signed.
    world.push(release=1)
    assert "release" in refusal(guest_run(world, init_data, work))
    world.push(release=3, signer=STRANGER)
    assert "sign" in refusal(guest_run(world, init_data, work))
    # The right image, signed as it is, under the name of another.
    world.push(release=2)
    copied = ["copy", "--referrers", world.reference, world.named("other")]
    subprocess.run([sys.executable, "-m", "lamina", "-q", *copied], check=True)
    assert "team/app" in refusal(guest_run(world, init_data, work, image=world.named("other")))
    # A name that no rule of the policy has.
    assert "polic" in refusal(guest_run(world, init_data, work, image=f"{NAME}:1"))


def test_wrong_bytes_are_an_error_of_the_reader(
    world: GuestWorld, work: Path, tmp_path: Path
) -> None:
    from lamina.oci import manifest as m
    from lamina.oci.reference import parse_reference
    from lamina.registry.open_repository import open_repository

    world.push()
    init_data = world.init_data()
    world.allow(init_data)
    with open_repository(parse_reference(f"docker://{world.reference}")) as repository:
        manifest = m.parse_image_manifest(repository.manifest()[1])
    path = world.registry.blob_path(manifest.layers[0].digest)
    for offset, _ in extents(manifest, 0, lambda each: world.registry.blob_path(each.digest)):
        flip(path, offset + 3)
    done = guest_run(world, init_data, work)
    assert done.returncode not in (0, 70), done
    assert OUTPUT not in done.stdout


def test_a_work_folder_that_the_host_reads_is_refused(world: GuestWorld, tmp_path: Path) -> None:
    init_data = world.init_data()
    told = refusal(guest_run(world, init_data, tmp_path / "work"))
    assert "which the host reads too" in told


def test_a_broker_without_its_certificate_is_not_believed(
    world: GuestWorld, work: Path, tmp_path: Path
) -> None:
    init_data = world.init_data()
    world.allow(init_data)
    with guest_world(tmp_path / "other") as other:
        fake = world.init_data("fake.toml", url=other.broker.url)
        assert "certificate" in refusal(guest_run(world, fake, work))


def image_request(image: str, bundle: Path) -> bytes:
    return field(1, image.encode()) + field(2, str(bundle).encode())


def test_an_agent_gets_images_and_resources_by_ttrpc(
    world: GuestWorld, work: Path, tmp_path: Path
) -> None:
    digest = world.push()
    world.push(name="foreign", signer=STRANGER)
    init_data = world.init_data()
    world.allow(init_data)
    bundle, other, path = work.parent / "bundle", work.parent / "other", work.parent / "hub.sock"
    for folder in (bundle, other):
        folder.mkdir()
    environment = {**os.environ, "LAMINA_RUNTIME": str(work.parent / "runtime")}
    with (
        served(hub_command(init_data, work, path), environment, path),
        closing(TtrpcClient(path)) as client,
    ):
        try:
            pull = image_request(world.reference, bundle)
            answer = client.call("api.ImagePullService", "PullImage", pull)
            assert answer == field(2, field(1, digest.encode()))
            assert SECRET in (bundle / "rootfs/vault" / SECRET_NAME).read_bytes()
            (bundle / "rootfs/written").write_text("by the container")
            config = json.loads((bundle / "config.json").read_bytes())
            assert config["process"]["args"][:2] == ["/bin/sh", "-c"]
            assert config["root"]["path"] == "rootfs"
            # Not twice into the same bundle, and nothing that a stranger has signed.
            assert b"no empty folder" in client.call("api.ImagePullService", "PullImage", pull)
            foreign = image_request(world.named("foreign"), other)
            refused = client.call("api.ImagePullService", "PullImage", foreign)
            assert refused[2:4] == bytes([8, 7]) and b"sign" in refused
            assert list(other.iterdir()) == []
            for resource in ("kbs:///team/kek/1", "team/kek/1"):
                asked = field(1, resource.encode())
                found = client.call("api.GetResourceService", "GetResource", asked)
                assert found == field(2, field(1, b"k" * 32))
        finally:
            stop_hub(work, bundle, environment)


def hub_command(init_data: Path, work: Path, path: Path) -> list[str]:
    command = [sys.executable, "-m", "lamina", "guest", "serve", "--evidence", "sample"]
    return [*command, "--init-data", str(init_data), "--work", str(work), "--socket", str(path)]


def stop_hub(work: Path, bundle: Path, environment: dict[str, str]) -> None:
    """Unmount what a runtime would, and end the service of the mounts."""
    for mountpoint in (bundle / "rootfs", *work.glob("bundles/*/image")):
        subprocess.run(["umount", mountpoint], check=False, capture_output=True)
    stop = [sys.executable, "-m", "lamina", "service", "stop"]
    subprocess.run(stop, env=environment, check=False, capture_output=True)


@contextmanager
def served(command: list[str], environment: dict[str, str], path: Path) -> Iterator[None]:
    """Run a server until the block ends, which begins when there is its socket."""
    process = subprocess.Popen(command, env=environment)
    try:
        while not path.exists():
            assert process.poll() is None
            time.sleep(0.05)
        yield
        process.terminate()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
