"""A reader over a mount of a sealed image whose processes are killed: it waits, and sees right
bytes; and the keys are nowhere but in memory.
"""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from lamina.blob.sealed_description import SealedBlob, decode_description
from lamina.kbs.rules import Rule
from lamina.oci.reference import parse_reference
from lamina.opening.request import KeyBroker, OpenRequest
from lamina.registry.open_repository import open_repository
from lamina.serve.mounts import MountState, list_mounts, unmount
from lamina.serve.service.client import service_status
from lamina.serve.service.spec import MountSpec, open_reference
from lamina.trust.encryption.recipients import parse_recipients
from tests.integration.test_sealed_releases import write_policy
from tests.integration.test_takeover import Meanwhile, all_there, device, kill
from tests.support.key_broker import RunningBroker, running_broker
from tests.support.registry_server import RegistryServer
from tests.support.sealed import make_source, seal_for
from tests.support.sealed_serving import start_sealed
from tests.support.serving import is_mounted
from tests.unit.registry.images import noise
from tests.unit.trust.keys_in_code import make_key, pem

pytestmark = pytest.mark.kernel
__all__ = ["device"]

PASSPHRASE = "a passphrase that shows wherever it is"
KEK = hashlib.sha256(b"a key of the broker").digest()
URI = "kbs:///team/kek/7"
FILES = {f"files/{number:03}": noise(20_000 + number, number) for number in range(150)}
RELEASE = 7


class Sealed:
    """A sealed and signed image in a registry, its mount, and the keys of its blobs."""

    def __init__(self, folder: Path, registry: RegistryServer, broker: RunningBroker) -> None:
        self.folder = folder
        self.reference = registry.reference(f"takeover/{folder.name}:1".lower())
        self.mountpoint = folder / "mnt"
        self.mountpoint.mkdir()
        self.key_file = folder / "key.pem"
        self.key_file.touch(mode=0o600)
        key = make_key("P-256", 11)
        self.key_file.write_bytes(pem(key.key, passphrase=PASSPHRASE.encode()))
        (folder / "key.pub").write_bytes(key.public().pem())
        self.running = broker
        self.broker = {"url": broker.url, "ca_file": str(broker.ca_file)}
        self.policy = write_policy(folder / "policy.json", 7)

    def push(self, *recipients: str) -> None:
        from lamina.trust.broker.provider import PROVIDER_NAME, make_provider
        from lamina.trust.signatures.image_signature import sign_image

        self.running.put(URI, KEK)
        known = {PROVIDER_NAME: make_provider(**self.broker)}
        wrapped = parse_recipients(recipients, known)
        seal_for(make_source(self.folder / "plain", (FILES,)), self.reference, wrapped)
        with open_repository(parse_reference(self.reference), write=True) as repository:
            optional = {"release": RELEASE}
            sign_image(repository, make_key("P-256", 7), optional=optional)
        self.running.put(URI, KEK, Rule(minimum_release=RELEASE))

    def spec(self, device: str, *, by_broker: bool) -> MountSpec:
        return MountSpec(
            image=OpenRequest(
                reference=self.reference,
                store=str(self.folder / "store"),
                decryption_keys=() if by_broker else (f"{self.key_file}:pass={PASSPHRASE}",),
                key_broker=KeyBroker(**self.broker) if by_broker else None,
                policy=self.policy,
            ),
            mountpoint=str(self.mountpoint),
            device=device,
        )

    def read_all(self) -> None:
        names = sorted(FILES)
        done = subprocess.run(
            ["cat", *names], cwd=self.mountpoint, capture_output=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == b"".join(FILES[name] for name in names)


@pytest.fixture
def sealed(tmp_path: Path, registry: RegistryServer) -> Iterator[Sealed]:
    with ExitStack() as stack:
        broker = stack.enter_context(running_broker(tmp_path / "broker"))
        made = Sealed(tmp_path, registry, broker)
        yield made
        if is_mounted(made.mountpoint):
            unmount(made.mountpoint, lazy=True)


@pytest.mark.parametrize("roles", [("worker",), ("supervisor", "worker")], ids="+".join)
def test_killed(sealed: Sealed, device: str, roles: tuple[str, ...]) -> None:
    sealed.push(f"jwe:{sealed.folder}/key.pub")
    start_sealed(sealed.spec(device, by_broker=False))
    with Meanwhile(lambda: kill(roles)) as killing:
        sealed.read_all()
        # However late the first one comes.
        while not killing.times:
            sealed.read_all()
    assert all(each.state in (MountState.SERVED, MountState.RESIDENT) for each in list_mounts())
    unmount(sealed.mountpoint)


def test_a_broker_gives_the_key_again(sealed: Sealed, device: str) -> None:
    """To a new worker too it tells the release that was proven, which the broker demands."""
    sealed.push(f"provider:attestation-agent:keyid={URI}")
    start_sealed(sealed.spec(device, by_broker=True))
    with Meanwhile(lambda: kill(("worker",))) as killing:
        sealed.read_all()
        # However late the first one comes.
        while not killing.times:
            sealed.read_all()
    assert all(each.state in (MountState.SERVED, MountState.RESIDENT) for each in list_mounts())
    unmount(sealed.mountpoint)


def test_a_policy_that_was_changed_ends_a_mount_with_its_worker(
    sealed: Sealed, device: str
) -> None:
    """What it refuses by then is not opened again: readers get errors, and never old bytes."""
    sealed.push(f"jwe:{sealed.folder}/key.pub")
    start_sealed(sealed.spec(device, by_broker=False))
    write_policy(Path(sealed.policy), 8)
    kill(("worker",))
    all_there()
    expected = "Permission denied" if device == "fuse" else "Input/output error"
    with pytest.raises(OSError, match=expected):
        (sealed.mountpoint / max(FILES)).read_bytes()
    write_policy(Path(sealed.policy), 7)
    unmount(sealed.mountpoint, lazy=True)


def test_keys_are_in_memory_only(
    sealed: Sealed, device: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Not on disk, not in environments, not in command lines; also after a takeover."""
    sealed.push(f"jwe:{sealed.folder}/key.pub")
    start_sealed(sealed.spec(device, by_broker=False))
    pids = all_there()
    before = _processes(pids.values())
    sealed.read_all()
    kill(("supervisor", "worker"))
    after = _processes_of_service()
    keys = _blob_keys(sealed, device, monkeypatch)
    assert len(keys) == 1
    secrets = [PASSPHRASE.encode(), pem(make_key("P-256", 11).key)[60:120]]
    for key in keys:
        secrets += [key, base64.b64encode(key), key.hex().encode()]
    places = [tmp_path / "store", Path(os.environ["LAMINA_RUNTIME"]), sealed.mountpoint]
    files = [path for place in places for path in place.rglob("*") if path.is_file()]
    assert len(files) > 5
    for secret in secrets:
        assert secret not in before + after
        for path in files:
            # What was written beside another one may have its name by now.
            with suppress(FileNotFoundError):
                assert secret not in path.read_bytes(), path
    unmount(sealed.mountpoint)


def _processes_of_service() -> bytes:
    """What its processes show; nothing if there is none, as all of the image may be here by now."""
    while (status := service_status()) is not None:
        with suppress(FileNotFoundError, ProcessLookupError):
            return _processes(status.pids.values())
    return b""


def _processes(pids: object) -> bytes:
    """Environments and command lines."""
    found = b""
    for pid in list(pids):  # type: ignore[call-overload]
        for name in ("environ", "cmdline"):
            found += Path(f"/proc/{pid}/{name}").read_bytes()
    assert b"LAMINA_RUNTIME=" in found
    return found


def _blob_keys(sealed: Sealed, device: str, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The keys of the data blobs, which only who has the passphrase can know."""
    seen: list[bytes] = []

    def decode(data: bytes) -> tuple[SealedBlob, ...]:
        blobs = decode_description(data)
        seen.extend(blob.key.reveal() for blob in blobs)
        return blobs

    monkeypatch.setattr("lamina.opening.sealed.decode_description", decode)
    monkeypatch.setattr("lamina.serve.service.spec.forbid_core_dumps", lambda: None)
    open_reference(sealed.spec(device, by_broker=False)).close()
    return seen
