"""A small image, sealed for a key that the test has, and ways to damage it."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lamina.blob.seal import Padding
from lamina.build.convert import convert
from lamina.build.options import ConvertOptions
from lamina.build.sealing import SealOptions
from lamina.content.lazy_image import LazyImage
from lamina.oci import manifest as m
from lamina.oci.reference import Reference, parse_reference
from lamina.registry.open_repository import open_repository
from lamina.trust.encryption.recipients import Recipients
from tests.support.opening import open_image
from tests.unit.registry.images import noise, tar_layer
from tests.unit.trust.keys_in_code import make_key, pem

NAMES = (b"secret-plans.txt", b"launch-codes.bin", b"payroll-2026.csv", b"customer-list.db")
WORDS = b"the quick brown fox jumps over the lazy dog "
LAYERS: tuple[dict[str, bytes], ...] = (
    {
        f"vault/{NAMES[0].decode()}": WORDS * 4000,
        f"vault/{NAMES[1].decode()}": noise(40_000, 3),
        **{f"vault/many/entry-{n:03}.conf": b"%d " % n * (n + 1) for n in range(80)},
    },
    {f"srv/{NAMES[2].decode()}": WORDS * 900, f"srv/{NAMES[3].decode()}": noise(20_000, 4)},
)
FILE = f"/vault/{NAMES[1].decode()}"
OTHER_FILE = f"/srv/{NAMES[3].decode()}"


def make_source(path: Path, layers: tuple[dict[str, bytes], ...] = LAYERS) -> str:
    """An ordinary image with a configuration that has secrets in it; its reference."""
    reference = f"oci:{path}:source"
    with open_repository(parse_reference(reference), write=True) as repository:
        described, diff_ids = [], []
        for files in layers:
            plain = tar_layer(files)
            packed = gzip.compress(plain, mtime=0)
            described.append(m.describe(m.OCI_LAYER_GZIP, packed))
            diff_ids.append(m.describe("", plain).digest)
            repository.push_blob(described[-1], io.BytesIO(packed))
        document = {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Cmd": ["/vault/start"], "Env": ["TOKEN=hunter2"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": [{"created_by": "COPY payroll-2026.csv /srv"}],
        }
        config = m.encode(document)
        named = m.describe(m.OCI_CONFIG, config)
        repository.push_blob(named, io.BytesIO(config))
        manifest = m.Manifest(
            schema_version=2, media_type=m.OCI_MANIFEST, config=named, layers=tuple(described)
        )
        repository.push_manifest("source", m.OCI_MANIFEST, m.encode(manifest))
    return reference


@dataclass
class Keys:
    """A key pair in files."""

    private: str
    public: str

    @classmethod
    def make(cls, folder: Path, number: int = 0) -> Keys:
        key = make_key("P-256", number)
        private, public = folder / f"key-{number}.pem", folder / f"key-{number}.pub"
        private.touch(mode=0o600)
        private.write_bytes(pem(key.key))
        public.write_bytes(key.public().pem())
        return cls(str(private), str(public))


def seal(
    source: str, destination: str, number: int = 0, padding: Padding = Padding.NONE
) -> Reference:
    """Convert and seal for the key of this number."""
    recipients = Recipients(public_keys=(make_key("P-256", number).public(),))
    return seal_for(source, destination, recipients, padding)


def seal_for(
    source: str,
    destination: str,
    recipients: Recipients,
    padding: Padding = Padding.NONE,
    **more: Any,
) -> Reference:
    """Convert and seal for these recipients; ``more`` are other fields of the options."""
    options = ConvertOptions(
        chunk_size=4096, pack_size=4096, jobs=1, seal=SealOptions(recipients, padding, **more)
    )
    found = parse_reference(destination)
    convert(parse_reference(source), found, options)
    return found


@dataclass
class SealedImage:
    """A sealed image in a layout folder."""

    folder: Path
    keys: Keys
    tag: str = "sealed"

    @property
    def reference(self) -> str:
        return f"oci:{self.folder}:{self.tag}"

    def open(self, store: Path, **more: Any) -> LazyImage:
        return open_image(self.reference, store=store, decryption_keys=[self.keys.private], **more)

    @property
    def manifest(self) -> m.Manifest:
        with open_repository(parse_reference(self.reference)) as repository:
            return m.parse_image_manifest(repository.manifest()[1])

    def blob(self, layer: m.Descriptor) -> Path:
        return self.folder / "blobs/sha256" / layer.hex

    def rewrite(self, edit: Callable[[dict[str, Any]], None]) -> None:
        """Change the manifest, as a registry can if nobody signed it."""
        document = json.loads(self.manifest.raw)
        edit(document)
        with open_repository(parse_reference(self.reference), write=True) as repository:
            repository.push_manifest(self.tag, m.OCI_MANIFEST, m.encode(document))

    def put(self, data: bytes) -> str:
        """Add a blob; its digest."""
        described = m.describe("", data)
        with open_repository(parse_reference(self.reference), write=True) as repository:
            repository.push_blob(described, io.BytesIO(data))
        return described.digest

    def extents(self, number: int) -> list[tuple[int, int]]:
        """(offset, size) of the stored pieces of a data blob, from the leaf tables."""
        return extents(self.manifest, number, self.blob)


def extents(
    manifest: m.Manifest, number: int, blob: Callable[[m.Descriptor], Path]
) -> list[tuple[int, int]]:
    """(offset, size) of the stored pieces of a data blob; ``blob`` tells where a layer is."""
    from lamina.opening.sealed import leaf_tables

    table = leaf_tables(manifest, lambda layer: blob(layer).read_bytes())[number]
    return [table.extent(index) for index in range(table.piece_count)]


def pushed(folder: Path) -> Iterator[bytes]:
    """Everything that lies below a folder."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path.read_bytes()


def flip(path: Path, offset: int) -> None:
    """Change one byte of a file."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def read_everything(image: LazyImage) -> None:
    """Read every file of an image; raises what reading raises."""
    for _, stat in image.walk():
        if stat.is_file:
            image.pread(stat, 0, stat.size)
