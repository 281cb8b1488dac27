"""Disks of ciphertext for confidential guests: made, planned, served without a key, and opened by
the kernel of a virtual machine in which nothing of Lamina runs afterwards.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import XTS

from lamina.block.base import BytesDisk
from lamina.guest.agent import sample_measurement
from lamina.kbs.rules import Rule
from lamina.oci.reference import parse_reference
from lamina.registry.open_repository import open_repository
from lamina.serve.nbd.connection import Served
from lamina.serve.nbd.listening import listen_unix
from lamina.serve.nbd.negotiation import Export
from lamina.serve.nbd.server import NbdServer
from lamina.trust.broker.init_data import read_init_data
from lamina.trust.signatures.image_signature import sign_image
from tests.support.guest import nbd_disk, require_guest, run_in_guest
from tests.support.guest_files import add_confidential
from tests.support.guest_kernel import require_kernel_package
from tests.support.guest_world import (
    SECRET,
    SECRET_NAME,
    SIGNER,
    STRANGER,
    GuestWorld,
    guest_world,
    make_runnable,
)
from tests.support.sealed import pushed
from tests.support.tools import require_tool
from tests.unit.trust.keys_in_code import make_key

SCRIPT = Path(__file__).parents[1] / "support" / "in_guest_disk_open.py"
HOST = "10.0.2.2"
"""The host's loopback in QEMU's user network."""
KEY = "kbs:///team/disk/app"
SECTOR_BYTES = 4096


def lamina(*words: str | Path, code: int = 0) -> str:
    """What a command printed; with a code, the one sentence that it ended with."""
    command = [sys.executable, "-m", "lamina", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == code, done
    return done.stderr if code else done.stdout


class DiskWorld:
    """A registry, a broker, and disk images in the one, whose keys the other has."""

    def __init__(self, world: GuestWorld) -> None:
        self.world = world
        self.folder = world.folder
        self.key = os.urandom(64)
        self.key_file = self.folder / "disk.key"
        self.key_file.write_bytes(self.key)
        self.store = self.folder / "store"
        self.plain = f"oci:{self.folder}/native:app"
        lamina("convert", make_runnable(self.folder / "source", "runnable"), self.plain)

    def make(self, name: str, *, source: str = "", signer: int = SIGNER, release: int = 2) -> Any:
        """Push the disk of an image, sign it, and return what is told of it."""
        told = lamina(
            *("guest-disk", "make", "--json", "--store", self.store),
            *("--key-file", self.key_file, "--key", KEY),
            *(source or self.plain, self.world.named(name)),
        )
        where = parse_reference(f"docker://{self.world.named(name)}")
        with open_repository(where, write=True) as repository:
            sign_image(repository, make_key("P-256", signer), optional={"release": release})
        return json.loads(told)

    def plan(self, name: str, *, code: int = 0) -> str:
        """The line for the init-data."""
        key = self.folder / "signer.pub"
        key.write_bytes(make_key("P-256", SIGNER).public().pem())
        demand = {"type": "sigstoreSigned", "keyPath": str(key), "minimumRelease": 2}
        scopes = {self.world.registry.host: [demand]}
        policy = self.folder / "policy.json"
        default = [{"type": "reject"}]
        policy.write_text(json.dumps({"default": default, "transports": {"docker": scopes}}))
        words = ("guest-disk", "plan", "--policy", policy, "--pull", "always")
        return lamina(*words, "--store", self.store, self.world.named(name), code=code)

    def init_data(self, name: str, line: str, *, url: str = "") -> Path:
        path = self.world.init_data(name, url=url)
        path.write_text(path.read_text() + line)
        return path

    def allow(self, init_data: Path) -> None:
        """Give the key to a guest that was started with this init-data."""
        rule = Rule((), (sample_measurement(read_init_data(str(init_data))),), (), 0)
        self.world.broker.put(KEY, self.key, rule)

    @contextmanager
    def served(self, name: str) -> Iterator[Path]:
        """The socket at which the host has the disk, without any key."""
        path = self.folder / f"{name}.sock"
        command = [sys.executable, "-m", "lamina", "serve", "nbd", "--json", "--file", "disk"]
        command += ["--store", self.folder / "host", "--socket", path, self.world.named(name)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                assert json.loads(process.stdout.readline())["size"]
                yield path
            finally:
                process.terminate()
        assert process.returncode == 0


@pytest.fixture
def world(tmp_path: Path) -> Iterator[DiskWorld]:
    require_tool("docker-registry", "busybox", "nbdcopy", "veritysetup")
    with guest_world(tmp_path, names=("127.0.0.1", HOST)) as found:
        yield DiskWorld(found)


def decrypted(data: bytes, key: bytes) -> bytes:
    """As dm-crypt reads it: a sector's tweak is its number in units of 512 bytes."""
    plain = bytearray()
    for at in range(0, len(data), SECTOR_BYTES):
        tweak = (at // 512).to_bytes(16, "little")
        plain += Cipher(AES(key), XTS(tweak)).decryptor().update(data[at : at + SECTOR_BYTES])
    return bytes(plain)


def copied(socket: Path, folder: Path) -> bytes:
    path = folder / f"{socket.stem}.copy"
    subprocess.run(["nbdcopy", f"nbd+unix:///?socket={socket}", path], check=True)
    return path.read_bytes()


def test_a_host_without_a_key_serves_a_disk_that_its_plan_opens(
    world: DiskWorld, tmp_path: Path
) -> None:
    told = world.make("disk")
    with world.served("disk") as socket:
        data = copied(socket, tmp_path)
    for part in (data, *pushed(tmp_path / "host"), *pushed(world.world.registry.root)):
        for secret in (SECRET, SECRET_NAME.encode(), b"BusyBox", world.key):
            assert secret not in part
    line = world.plan("disk")
    assert line.startswith('"lamina-disk.json" = ') and told["root_hash"] in line
    # veritysetup knows nothing of the plan but the root hash and where the tree begins.
    plain = tmp_path / "plain"
    plain.write_bytes(decrypted(data, world.key))
    assert SECRET in plain.read_bytes()
    offset = f"--hash-offset={told['hash_offset']}"
    verify = ["veritysetup", "verify", plain, plain, told["root_hash"], offset]
    subprocess.run(verify, check=True)
    # The root hash is not that of the image as anybody can export it.
    export = ("export", "--json", "--verity", "veritysetup", "--store", world.store)
    known = json.loads(lamina(*export, world.plain, tmp_path / "known.img"))
    assert known["root_hash"] != told["root_hash"]
    assert known["data_blocks"] == told["data_blocks"]


def test_a_plan_is_taken_from_a_signed_image_only(world: DiskWorld) -> None:
    """Another signer, an older release, an image that is no disk, and no policy at all."""
    world.make("foreign", signer=STRANGER)
    assert "sign" in world.plan("foreign", code=12)
    world.make("older", release=1)
    assert "release" in world.plan("older", code=12)
    told = lamina("guest-disk", "plan", world.world.named("older"), code=2)
    assert "signed image" in told


@contextmanager
def served_bytes(data: bytes, path: Path) -> Iterator[Path]:
    """Serve a disk of a host that lies."""
    served = Served(BytesDisk(data), Export(b"", len(data)))
    with NbdServer(listen_unix(str(path)), served) as server:
        server.start()
        yield path


LOOK = f"ps | grep -v ' [[]'; wc -c < /vault/{SECRET_NAME}"
"""The processes but for the kernel's own, and a file."""


@pytest.mark.kernel
@pytest.mark.guest
# A guest is emulated, and on a busy machine by a part of a processor.
@pytest.mark.timeout(1200)
def test_a_guest_without_a_daemon_runs_what_was_signed_and_nothing_else(
    world: DiskWorld, tmp_path: Path
) -> None:
    """The right disk; a flipped sector; another disk of the same owner, under the same key; init-
    data with another root hash; a broker of the host's own.
    """
    require_guest()
    told = world.make("disk")
    line = world.plan("disk")
    good = world.init_data("good.toml", line, url=guest_url(world.world))
    world.allow(good)
    other = world.make("other", source=another_image(world))
    changed_line = line.replace(told["root_hash"], other["root_hash"])
    assert changed_line != line
    changed = world.init_data("changed.toml", changed_line, url=guest_url(world.world))
    with ExitStack() as stack:
        enter = stack.enter_context
        fake = enter(guest_world(tmp_path / "fake", names=(HOST,)))
        foreign = world.init_data("fake.toml", line, url=guest_url(fake))
        right, swapped = enter(world.served("disk")), enter(world.served("other"))
        data = bytearray(copied(right, tmp_path))
        data[decrypted(bytes(data), world.key).index(SECRET)] ^= 1
        flipped = enter(served_bytes(bytes(data), tmp_path / "flipped.sock"))
        devices = ["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net"]
        for path in (right, flipped, swapped):
            devices += nbd_disk(path, f"nbd-{path.stem}")

        def case(name: str, device: str, init_data: Path) -> dict[str, str]:
            text = init_data.read_text()
            return {"name": name, "device": device, "init_data": text, "script": LOOK}

        cases = [
            case("right", "/dev/vdb", good),
            case("flipped sector", "/dev/vdc", good),
            case("other disk", "/dev/vdd", good),
            case("changed root hash", "/dev/vdd", changed),
            case("fake broker", "/dev/vdb", foreign),
        ]
        kernel = require_kernel_package("6.12")
        done = run_in_guest(
            kernel,
            SCRIPT,
            json.dumps(cases),
            devices=devices,
            modules=("virtio_net",),
            more=add_confidential,
        )
    assert done.exit_code == 0, done.output + done.console[-2000:]
    parts = re.split(r"^== (.*)\n", done.output, flags=re.MULTILINE)
    found = dict(zip(parts[1::2], parts[2::2], strict=True))
    print("\n".join(f"{name}: {text}" for name, text in found.items()))
    length = str(len(SECRET) * 50)
    assert length in found["right"].split() and "right: exit code 0" in found["right"]
    # Of the guest's processes none is Lamina's.
    assert "/init" in found["right"] and "-m lamina" not in found["right"], found["right"]
    assert "Input/output error" in found["flipped sector"]
    assert length not in found["flipped sector"].split()
    for name, words in (
        ("other disk", "is not the one with the root hash"),
        ("changed root hash", "measurement"),
        ("fake broker", "certificate"),
    ):
        assert words in found[name] and f"{name}: exit code 12" in found[name], found[name]
        assert length not in found[name].split()


def guest_url(world: GuestWorld) -> str:
    return f"https://{HOST}:{world.broker.url.rpartition(':')[2]}"


def another_image(world: DiskWorld) -> str:
    """An image of the same owner, of other bytes."""
    reference = f"oci:{world.folder}/native:other"
    source = make_runnable(world.folder / "source", "other", secret=SECRET[::-1])
    lamina("convert", source, reference)
    return reference
