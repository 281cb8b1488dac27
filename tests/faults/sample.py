"""Two versions of an image of many small pieces, and the folders that they are made of.  The start
artifact of the second has a forged page.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from lamina.codec.digest import Digester, digest
from lamina.oci.bootstrap_root import BootstrapRoot
from lamina.oci.manifest import (
    NYDUS_BLOB,
    NYDUS_BLOB_MARK,
    NYDUS_BOOTSTRAP_MARK,
    OCI_CONFIG,
    OCI_LAYER_GZIP,
    OCI_MANIFEST,
    Manifest,
    describe,
    encode,
)
from tests.faults.start import add_start
from tests.support.fake_registry import FakeRegistry
from tests.support.native_images import build_image, metadata_layer, some_bytes

CHUNK_SIZE = 4096
BLOBS = 3
"""A server that took one blob for another would show."""
SHARED = 20
"""Files that both versions have."""


@dataclass(frozen=True)
class Sample:
    """A version in the registry."""

    tree: Path
    """The same files, plain."""
    digest: str
    """Of its manifest."""
    start_digest: str
    """Of the pages of its start artifact, which is attached to it."""


def make_samples(
    registry: FakeRegistry,
    folder: Path,
    seed: int,
    small_files: int = 300,
    big_files: int = 10,
    *,
    early: bool = False,
) -> list[Sample]:
    """Put two versions into *registry* and their files below *folder*; mounts of *early* ones do
    not wait for the metadata layer.
    """
    return [
        _make(
            registry,
            folder / f"v{n}",
            contents_of(seed, n, small_files, big_files),
            early=early,
            is_forged=n == 2,
        )
        for n in (1, 2)
    ]


def _make(
    registry: FakeRegistry, tree: Path, files: dict[bytes, bytes], *, early: bool, is_forged: bool
) -> Sample:
    for name, data in files.items():
        path = tree / name.decode()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    image = build_image(files, chunk_size=CHUNK_SIZE, pack_size=CHUNK_SIZE, blob_count=BLOBS)
    config = encode({"architecture": "amd64", "os": "linux", "config": {"Cmd": ["/bin/true"]}})
    layer = metadata_layer(image)
    root = BootstrapRoot(digest(Digester.BLAKE3, image.bootstrap).hex(), len(image.bootstrap))
    known = root.annotation if early else {}
    for part in (config, layer, *(blob.data for blob in image.blobs)):
        registry.add_blob(part)
    manifest = encode(
        Manifest(
            schema_version=2,
            media_type=OCI_MANIFEST,
            config=describe(OCI_CONFIG, config),
            layers=(
                *(
                    describe(NYDUS_BLOB, blob.data, {NYDUS_BLOB_MARK: "true"})
                    for blob in image.blobs
                ),
                describe(OCI_LAYER_GZIP, layer, {NYDUS_BOOTSTRAP_MARK: "true", **known}),
            ),
        )
    )
    described = describe(OCI_MANIFEST, manifest)
    registry.manifests[described.digest] = (OCI_MANIFEST, manifest)
    start = add_start(registry, image, described, root if early else None, is_forged=is_forged)
    return Sample(tree, described.digest, start)


def contents_of(seed: int, version: int, small_files: int, big_files: int) -> dict[bytes, bytes]:
    """Small files that are packed, ones of some chunks, and big ones; half of it compressible."""
    files: dict[bytes, bytes] = {}
    for number in range(small_files):
        own = random.Random(f"{seed} {number} {version if number >= SHARED else 0}")
        size = own.randrange(1, 6000) if number % 3 else own.randrange(6000, 90_000)
        files[b"small/%d/file-%03d" % (number % 7, number)] = _some(own, size)
    for number in range(big_files):
        own = random.Random(f"{seed} big {number} {version}")
        files[b"big/file-%02d" % number] = _some(own, own.randrange(500_000, 1_500_000))
    files[b"empty"] = b""
    return files


def _some(own: random.Random, size: int) -> bytes:
    if own.random() < 0.5:
        return own.randbytes(size)
    return some_bytes(size, own.randrange(1 << 32))
