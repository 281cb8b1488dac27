"""What a confidential guest meets: a registry with a sealed and signed image, a broker, a cache.

Everything outside of the guest but the broker may lie.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lamina.build.convert import convert
from lamina.build.options import ConvertOptions
from lamina.build.sealing import SealOptions
from lamina.guest.agent import sample_measurement
from lamina.kbs.rules import Rule
from lamina.oci import manifest as m
from lamina.oci.reference import parse_reference
from lamina.registry.layout import LayoutRepository
from lamina.registry.open_repository import open_repository
from lamina.trust.broker.init_data import read_init_data
from lamina.trust.broker.provider import KeyFileProvider
from lamina.trust.encryption.recipients import parse_recipients
from lamina.trust.signatures.image_signature import sign_image
from tests.support.key_broker import RunningBroker, running_broker
from tests.support.registry_server import RegistryServer, start_registry
from tests.support.tools import find_program, missing
from tests.unit.trust.keys_in_code import make_key

SIGNER, STRANGER = 7, 8
KEK = "kbs:///team/kek/1"
POLICY = "kbs:///team/policy/images"
SIGNER_KEY = "kbs:///team/key/signer"
SECRET = b"the launch is on the ninth of May, and nobody outside may know"
SECRET_NAME = "secret-plans.txt"
NAME = "registry.test/team/app"


def runnable_layer(secret: bytes = SECRET) -> bytes:
    """A tar of a static busybox and a secret; skips where there is none."""
    busybox = find_program("busybox")
    if busybox is None:
        missing("not installed: busybox (busybox-static on Debian)")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        folder = tarfile.TarInfo("proc")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(folder)
        for name, data, mode in (
            ("bin/sh", Path(busybox).read_bytes(), 0o755),
            ("etc/passwd", b"root:x:0:0::/:/bin/sh\n", 0o644),
            (f"vault/{SECRET_NAME}", secret * 50, 0o600),
        ):
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), mode
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def make_runnable(folder: Path, tag: str, *, secret: bytes = SECRET) -> str:
    """An ordinary image in a layout folder, that prints its secret's checksum and length."""
    reference = f"oci:{folder}:{tag}"
    plain = runnable_layer(secret)
    packed = gzip.compress(plain, 1, mtime=0)
    with LayoutRepository(parse_reference(reference), write=True) as repository:
        layer = m.describe(m.OCI_LAYER_GZIP, packed)
        repository.push_blob(layer, io.BytesIO(packed))
        script = f"echo the guest runs $(cat /vault/{SECRET_NAME} | wc -c) bytes"
        document = {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Cmd": ["/bin/sh", "-c", script]},
            "rootfs": {"type": "layers", "diff_ids": [m.describe("", plain).digest]},
        }
        config = m.encode(document)
        described = m.describe(m.OCI_CONFIG, config)
        repository.push_blob(described, io.BytesIO(config))
        manifest = m.Manifest(
            schema_version=2, media_type=m.OCI_MANIFEST, config=described, layers=(layer,)
        )
        repository.push_manifest(tag, m.OCI_MANIFEST, m.encode(manifest))
    return reference


OUTPUT = f"the guest runs {len(SECRET) * 50} bytes"


@dataclass
class GuestWorld:
    """A registry with the image ``team/app:1``, and a broker that has its key."""

    folder: Path
    registry: RegistryServer
    broker: RunningBroker

    @property
    def reference(self) -> str:
        return self.named("app")

    def named(self, name: str) -> str:
        """The reference of an image."""
        return f"{self.registry.host}/team/{name}:1"

    def push(self, *, name: str = "app", release: int = 2, signer: int = SIGNER) -> str:
        """Seal, push and sign an image; its digest."""
        source = make_runnable(self.folder / "source", "runnable")
        kek = self.folder / "kek"
        kek.write_bytes(b"k" * 32)
        kek.chmod(0o600)
        recipients = parse_recipients(
            [f"provider:attestation-agent:keyid={KEK}::keypath={kek}"],
            {"attestation-agent": KeyFileProvider()},
        )
        options = ConvertOptions(jobs=1, seal=SealOptions(recipients))
        reference = parse_reference(f"docker://{self.named(name)}")
        convert(parse_reference(source), reference, options)
        with open_repository(reference, write=True) as repository:
            optional = {"release": release}
            return sign_image(repository, make_key("P-256", signer), optional=optional)[0].digest

    def init_data(self, name: str = "initdata.toml", *, url: str = "", more: str = "") -> Path:
        """Init-data that names the broker and its policy."""
        url = url or self.broker.url
        hub = (
            f'[kbc]\nname = "cc_kbc"\nurl = "{url}"\nkbs_cert = """\n'
            f'{self.broker.ca_file.read_text()}"""\n'
            f'[image]\nimage_security_policy_uri = "{POLICY}"\n{more}'
        )
        path = self.folder / name
        path.write_text(
            f"version = \"0.1.0\"\nalgorithm = \"sha384\"\n[data]\n\"cdh.toml\" = '''\n{hub}'''\n"
        )
        return path

    def allow(self, init_data: Path) -> None:
        """Give policy and keys to a guest that was started with this init-data."""
        rule = Rule((), (sample_measurement(read_init_data(str(init_data))),), (), 0)
        demand = {"type": "sigstoreSigned", "keyPath": SIGNER_KEY, "minimumRelease": 2}
        scopes = {self.registry.host: [demand]}
        policy = {"default": [{"type": "reject"}], "transports": {"docker": scopes}}
        self.broker.put(POLICY, json.dumps(policy).encode(), rule)
        self.broker.put(SIGNER_KEY, make_key("P-256", SIGNER).public().pem(), rule)
        self.broker.put(KEK, b"k" * 32, rule)


@contextmanager
def guest_world(folder: Path, *, names: tuple[str, ...] = ("127.0.0.1",)) -> Iterator[GuestWorld]:
    """Run registry and broker until the block ends."""
    with (
        start_registry(folder / "registry", access_log=True) as registry,
        running_broker(folder / "broker", names=names) as broker,
    ):
        yield GuestWorld(folder, registry, broker)


def memory_folder() -> Path:
    """A folder on tmpfs; skips where there is none."""
    shm = Path("/dev/shm")
    if not os.path.ismount(shm):
        missing("/dev/shm is no file system of its own")
    return shm
