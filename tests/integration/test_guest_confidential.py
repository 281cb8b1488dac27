"""A sealed image in a virtual machine, through the host's cache: what the console shows, and what
everything outside of the guest has seen.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lamina.oci import manifest as m
from lamina.oci.reference import parse_reference
from lamina.registry.open_repository import open_repository
from lamina.serve.virtiofs import PROGRAMS, command_line, find_program
from tests.support.guest import require_guest, run_in_guest
from tests.support.guest_cache import running_cache
from tests.support.guest_files import add_confidential
from tests.support.guest_kernel import require_kernel_package
from tests.support.guest_world import (
    OUTPUT,
    SECRET,
    SECRET_NAME,
    STRANGER,
    GuestWorld,
    guest_world,
)
from tests.support.sealed import extents, flip, pushed
from tests.support.tools import missing, require_tool

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.guest,
    # A guest is emulated, and on a busy machine by a part of a processor.
    pytest.mark.timeout(1200),
]

SCRIPT = Path(__file__).parents[1] / "support" / "in_guest_confidential.py"
HOST = "10.0.2.2"
"""The host's loopback in QEMU's user network."""


@pytest.fixture
def world(tmp_path: Path) -> Iterator[GuestWorld]:
    require_guest()
    require_tool("docker-registry", "runc", "busybox")
    if not any(map(shutil.which, PROGRAMS)):
        missing("not installed: virtiofsd, of Debian 12's qemu-system-common")
    with guest_world(tmp_path, names=("127.0.0.1", HOST)) as found:
        yield found


def in_guest(
    world: GuestWorld, kernel: str, cases: list[dict[str, str]], more: list[str]
) -> dict[str, str]:
    """What each case printed, with its exit code; the wire is in ``wire.pcap``."""
    wire = world.folder / "wire.pcap"
    devices = ["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net"]
    devices += ["-object", f"filter-dump,id=wire,netdev=net,file={wire}"]
    devices += more
    done = run_in_guest(
        require_kernel_package(kernel),
        SCRIPT,
        json.dumps(cases),
        devices=devices,
        modules=("virtio_net", "virtio_console"),
        more=add_confidential,
    )
    assert done.exit_code == 0, done.output + done.console[-2000:]
    parts = re.split(r"^== (.*)\n", done.output, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def anchors(world: GuestWorld, name: str, *, port: int | None = None, more: str = "") -> Path:
    own = int(world.broker.url.rpartition(":")[2])
    return world.init_data(name, url=f"https://{HOST}:{port or own}", more=more)


def blob_of(world: GuestWorld, name: str) -> str:
    """Digest of the blob with data of an image."""
    with open_repository(parse_reference(f"docker://{world.named(name)}")) as repository:
        return m.parse_image_manifest(repository.manifest()[1]).layers[0].digest


def copied_blobs(world: GuestWorld, name: str) -> Path:
    """A folder of the host with the blobs with data of an image, and nothing else."""
    digest = blob_of(world, name)
    folder = world.folder / "copied"
    folder.mkdir()
    data = world.registry.blob_path(digest).read_bytes()
    (folder / digest.removeprefix("sha256:")).write_bytes(data)
    return folder


@contextmanager
def shared_folder(folder: Path, socket: Path) -> Iterator[list[str]]:
    """The folder by Debian's virtiofsd: the options of QEMU."""
    command = command_line(find_program(), str(socket), str(folder))
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            # It says when it listens.
            assert process.stderr is not None
            for line in process.stderr:
                if "Waiting for vhost-user socket connection" in line:
                    break
            assert socket.exists(), process.poll()
            memory = "memory-backend-memfd,id=memory,size=1536M,share=on"
            yield [
                *("-object", memory, "-numa", "node,memdev=memory"),
                *("-chardev", f"socket,id=share,path={socket}"),
                *("-device", "vhost-user-fs-pci,chardev=share,tag=blobs"),
            ]
        finally:
            process.kill()


def serial_port(socket: Path) -> list[str]:
    """A port of the guest that is connected to the host's cache: the options of QEMU."""
    return [
        *("-device", "virtio-serial-pci", "-chardev", f"socket,id=cache,path={socket}"),
        *("-device", "virtserialport,chardev=cache,name=lamina.cache"),
    ]


def flip_every_piece(world: GuestWorld, reference: str) -> None:
    with open_repository(parse_reference(f"docker://{reference}")) as repository:
        manifest = m.parse_image_manifest(repository.manifest()[1])
    path = world.registry.blob_path(manifest.layers[0].digest)
    for offset, _ in extents(manifest, 0, lambda each: world.registry.blob_path(each.digest)):
        flip(path, offset + 3)


@pytest.mark.parametrize("kernel", ["6.12"])
def test_a_guest_runs_a_sealed_image_and_nothing_that_the_host_made_of_it(
    world: GuestWorld, tmp_path: Path, kernel: str
) -> None:
    images = {name: world.push(name=name) for name in ("app", "flipped", "shared", "serial")}
    assert len(set(images.values())) == len(images)
    world.push(name="older", release=1)
    world.push(name="foreign", signer=STRANGER)
    flip_every_piece(world, world.named("flipped"))
    good = anchors(world, "good.toml")
    world.allow(good)
    changed = anchors(world, "changed.toml", more="# the host's\n")
    with (
        running_cache(tmp_path / "cache", world.registry.host, channel=tmp_path / "port") as cache,
        guest_world(tmp_path / "fake", names=(HOST,)) as other,
        shared_folder(copied_blobs(world, "shared"), tmp_path / "share.sock") as share,
    ):
        fake = anchors(world, "fake.toml", port=int(other.broker.url.rpartition(":")[2]))
        url = f"http://{HOST}:{cache.rpartition(':')[2]}"

        def case(name: str, init_data: Path, image: str, **more: str) -> dict[str, str]:
            text = init_data.read_text()
            found = {"name": name, "init_data": text, "cache": url, "image": world.named(image)}
            return {**found, **more}

        found = in_guest(
            world,
            kernel,
            [
                case("right", good, "app"),
                case("flipped", good, "flipped"),
                case("older", good, "older"),
                case("foreign", good, "foreign"),
                case("fake broker", fake, "app"),
                case("changed init-data", changed, "app"),
                case("serial port", good, "serial", cache="lamina.cache"),
                case("virtio-fs", good, "shared", share="blobs"),
            ],
            [*serial_port(tmp_path / "port"), *share],
        )
    print("\n".join(f"{name}: {text}" for name, text in found.items()))
    for name in ("right", "serial port", "virtio-fs"):
        assert OUTPUT in found[name] and "exit code 0" in found[name], found[name]
    # Of the image that is shared, the registry was asked for no data.
    assert world.registry.log is not None
    assert f"GET /v2/team/shared/blobs/{blob_of(world, 'shared')}" not in (
        world.registry.log.read_text()
    )
    for name, words in (
        ("older", "release"),
        ("foreign", "sign"),
        ("fake broker", "certificate"),
        ("changed init-data", "measurement"),
    ):
        lines = [line for line in found[name].splitlines() if line.startswith("lamina: ")]
        told = [line for line in lines if "warning" not in line]
        assert len(told) == 1 and words in told[0], found[name]
        assert f"{name}: exit code 125" in found[name], found[name]
    assert OUTPUT not in found["flipped"] and "exit code 0" not in found["flipped"]
    outside = [*pushed(tmp_path / "cache"), *pushed(world.registry.root)]
    outside += pushed(world.folder / "copied")
    outside.append((world.folder / "wire.pcap").read_bytes())
    for part in outside:
        for secret in (SECRET, SECRET_NAME.encode(), b"BusyBox", b"the guest runs", b"k" * 32):
            assert secret not in part
    assert len(outside[-1]) > 500_000
