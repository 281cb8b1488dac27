"""What a user sees of each attack on a sealed image: an error of its own, and no byte, no mount."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lamina.blob.seal import TAG_BYTES
from lamina.errors import FetchError, IntegrityError, TrustError
from lamina.kbs.rules import Rule
from lamina.oci import manifest as m
from lamina.oci.reference import parse_reference
from lamina.registry.open_repository import open_repository
from lamina.trust.broker.provider import PROVIDER_NAME, make_provider
from lamina.trust.encryption.recipients import Recipients, parse_recipients
from tests.integration.test_sealed_releases import put_back, sign, write_policy
from tests.support.key_broker import RunningBroker, running_broker
from tests.support.registry_server import RegistryServer
from tests.support.sealed import FILE, LAYERS, OTHER_FILE, Keys, extents, make_source, seal_for
from tests.support.serving import is_mounted
from tests.support.tools import require_root
from tests.unit.trust.keys_in_code import make_key

CONTENT = LAYERS[0][FILE[1:]]
URI = "kbs:///team/kek/7"
KEK = bytes(range(32))


@dataclass
class Stage:
    """A sealed and signed image in a registry, and a user who reads it by the command line."""

    folder: Path
    registry: RegistryServer
    reference: str
    keys: Keys
    policy: str

    def release(self, number: int) -> str:
        """Seal, push and sign; the digest."""
        recipients = Recipients(public_keys=(make_key("P-256").public(),))
        seal_for(f"oci:{self.folder}/plain:source", self.reference, recipients)
        return sign(self.reference, number)

    @property
    def manifest(self) -> m.Manifest:
        with open_repository(parse_reference(self.reference)) as repository:
            return m.parse_image_manifest(repository.manifest()[1])

    def stored(self, number: int) -> Path:
        """The file of a layer at the registry."""
        return self.registry.blob_path(self.manifest.layers[number].digest)

    def extents(self) -> list[tuple[int, int]]:
        """Offset and size of each piece of the first blob."""
        return extents(self.manifest, 0, lambda layer: self.registry.blob_path(layer.digest))

    def options(self, store: str = "store") -> list[str]:
        options = ["--store", str(self.folder / store), "--policy", self.policy]
        return [*options, "--decryption-key", self.keys.private]

    def refuses_to_open(self, said: str, options: list[str]) -> None:
        """Neither ``cat`` nor ``mount`` begin, and both say why in a line of their own."""
        mountpoint = self.folder / "mnt"
        mountpoint.mkdir(exist_ok=True)
        for verb, last in (("cat", FILE), ("mount", str(mountpoint))):
            done = lamina(verb, *options, self.reference, last)
            self.told(done, TrustError.exit_code, said)
            assert not is_mounted(mountpoint)

    def refuses_to_read(self, code: int, said: str) -> None:
        """``cat`` says why; a mount is made, for nobody has seen the pieces yet, and reading from
        it fails.
        """
        self.told(lamina("cat", *self.options(), self.reference, FILE), code, said)
        assert CONTENT[:64] not in everything(self.folder / "store")

    def told(self, done: subprocess.CompletedProcess[bytes], code: int, said: str) -> None:
        text = done.stderr.decode()
        print(text)
        assert (done.returncode, done.stdout) == (code, b""), text
        assert said in text.splitlines()[-2]
        assert text.splitlines()[-1].startswith("hint: ")
        assert "Traceback" not in text


def everything(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def lamina(*words: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "lamina", *words], capture_output=True, timeout=120, check=False
    )


@pytest.fixture
def stage(registry: RegistryServer, tmp_path: Path) -> Stage:
    make_source(tmp_path / "plain")
    reference = registry.reference(f"refused/{tmp_path.name}:1".lower())
    policy = write_policy(tmp_path / "policy.json", 7)
    made = Stage(tmp_path, registry, reference, Keys.make(tmp_path), policy)
    made.release(2)
    done = lamina("cat", *made.options("good"), reference, FILE)
    assert (done.returncode, done.stdout) == (0, CONTENT), done.stderr
    return made


def test_rolling_back_to_an_older_signed_image(stage: Stage) -> None:
    newer = stage.manifest
    older = stage.release(1)
    assert newer.layers[0].digest != stage.manifest.layers[0].digest
    put_back(stage.reference, older)
    stage.refuses_to_open("is signed for release 1, but release 2 was used", stage.options("good"))
    document = json.loads(Path(stage.policy).read_bytes())
    document["transports"]["docker"][""][0]["minimumRelease"] = 2
    Path(stage.policy).write_text(json.dumps(document))
    stage.refuses_to_open("it is for release 1, older than 2", stage.options())


def test_substituting_an_image_of_somebody_else(stage: Stage) -> None:
    """Sealed for the same key, which is public."""
    recipients = Recipients(public_keys=(make_key("P-256").public(),))
    seal_for(f"oci:{stage.folder}/plain:source", stage.reference, recipients)
    stage.refuses_to_open("has no signature", stage.options())
    sign(stage.reference, 9, 8)
    stage.refuses_to_open("it is not by a key that is trusted", stage.options())


@pytest.mark.parametrize("kind", ["inside an image", "across images"])
def test_swapping_chunks(stage: Stage, kind: str) -> None:
    path, places = stage.stored(0), stage.extents()
    data = path.read_bytes()
    (first, size), (second, _) = [place for place in places if place[1] == 4096 + TAG_BYTES][:2]
    if kind == "inside an image":
        one, other = data[first : first + size], data[second : second + size]
        pieces = [(first, other), (second, one)]
    else:
        digest = sign(stage.reference, 2)
        stage.release(2)
        pieces = [(first, stage.stored(0).read_bytes()[first : first + size])]
        put_back(stage.reference, digest)
    changed = bytearray(data)
    for start, piece in pieces:
        changed[start : start + size] = piece
    path.write_bytes(changed)
    stage.refuses_to_read(IntegrityError.exit_code, "is not the one that was signed")


@pytest.mark.parametrize("left", ["half", "all but a byte", "nothing"])
def test_truncating(stage: Stage, left: str) -> None:
    path = stage.stored(0)
    size = path.stat().st_size
    os.truncate(path, {"half": size // 2, "all but a byte": size - 1, "nothing": 0}[left])
    said = "there is less of it" if left == "nothing" else "bytes of a blob of which the bytes"
    stage.refuses_to_read(FetchError.exit_code, said)


def test_replaying_an_old_cache(stage: Stage) -> None:
    """Whatever carries the bytes has those of an older image under the name of the newer."""
    older = stage.stored(0).read_bytes()
    stage.release(3)
    stage.stored(0).write_bytes(older)
    stage.refuses_to_read(IntegrityError.exit_code, "is not the one that was signed")


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[RunningBroker]:
    with running_broker(tmp_path / "broker") as running:
        running.put(URI, KEK)
        yield running


def by_broker(stage: Stage, broker: RunningBroker, ca_file: Path | None = None) -> list[str]:
    """Seal for a key of the broker, and the options to open it."""
    known = {PROVIDER_NAME: make_provider(broker.url, str(broker.ca_file))}
    wrapped = parse_recipients([f"provider:{PROVIDER_NAME}:keyid={URI}"], known)
    seal_for(f"oci:{stage.folder}/plain:source", stage.reference, wrapped)
    sign(stage.reference, 3)
    options = ["--store", str(stage.folder / "store"), "--policy", stage.policy]
    return [*options, "--kbs", broker.url, "--kbs-ca", str(ca_file or broker.ca_file)]


def test_a_fake_broker(stage: Stage, broker: RunningBroker, tmp_path: Path) -> None:
    with running_broker(tmp_path / "fake") as fake:
        fake.put(URI, KEK)
        options = by_broker(stage, fake, broker.ca_file)
        before = fake.audit()
        stage.refuses_to_open("is not the key broker that is trusted", options)
        assert fake.audit() == before, "it was told something"


def test_a_wrong_measurement(stage: Stage, broker: RunningBroker) -> None:
    options = by_broker(stage, broker)
    broker.put(URI, KEK, Rule(measurements=("what was measured",)))
    good = ["--kbs-measurement", "what was measured"]
    assert lamina("cat", *options, *good, stage.reference, FILE).stdout == CONTENT
    shutil.rmtree(stage.folder / "store")
    bad = ["--kbs-measurement", "something else"]
    stage.refuses_to_open("runs something else than the broker's rule allows", [*options, *bad])
    refusals = [line for line in broker.audit() if line["result"] == "refused"]
    assert {line["reason"] for line in refusals} == {"MeasurementNotAllowed"}


@pytest.mark.kernel
@pytest.mark.parametrize("attack", ["swap", "truncation", "replay"])
def test_a_mount_gives_errors_for_what_was_changed_and_the_rest_as_it_is(
    stage: Stage, attack: str
) -> None:
    require_root()
    mountpoint = stage.folder / "mnt"
    mountpoint.mkdir()
    done = lamina("mount", *stage.options(), stage.reference, str(mountpoint))
    assert done.returncode == 0, done.stderr
    path, places = stage.stored(0), stage.extents()
    data = path.read_bytes()
    full = [start for start, size in places if size == 4096 + TAG_BYTES]
    if attack == "swap":
        size = 4096 + TAG_BYTES
        path.write_bytes(data[: full[1]] + data[full[0] : full[0] + size] + data[full[1] + size :])
    elif attack == "truncation":
        os.truncate(path, full[1])
    else:
        path.write_bytes(hashlib.shake_128(data).digest(len(data)))
    try:
        with pytest.raises(OSError, match="Input/output error"):
            (mountpoint / FILE[1:]).read_bytes()
        other = OTHER_FILE[1:]
        assert (mountpoint / other).read_bytes() == LAYERS[1][other]
    finally:
        lamina("umount", str(mountpoint))
