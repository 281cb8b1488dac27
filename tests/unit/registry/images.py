"""Small images in layout folders for the tests of this package."""

from __future__ import annotations

import gzip
import io
import random
import tarfile
from pathlib import Path

from lamina.oci import manifest as m
from lamina.oci.reference import parse_reference
from lamina.registry.layout import LayoutRepository


def tar_layer(files: dict[str, bytes]) -> bytes:
    """A layer with some files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def noise(size_bytes: int, seed: int = 1) -> bytes:
    """Bytes that do not compress."""
    return random.Random(seed).randbytes(size_bytes)


def make_image(
    path: Path, tag: str | None = "latest", *, seed: int = 1, platform: str = "linux/amd64"
) -> m.Descriptor:
    """An image of two gzip layers in the layout folder ``path``; its manifest's descriptor."""
    plain = [tar_layer({"a": noise(5000, seed)}), tar_layer({"b": noise(300, seed + 1)})]
    with LayoutRepository(parse_reference(f"oci:{path}"), write=True) as repository:
        layers = []
        for data in plain:
            packed = gzip.compress(data, mtime=0)
            layers.append(m.describe(m.OCI_LAYER_GZIP, packed))
            repository.push_blob(layers[-1], io.BytesIO(packed))
        system, architecture = platform.split("/")
        diff_ids = tuple(m.describe("", data).digest for data in plain)
        config = m.encode(
            m.ImageConfig(os=system, architecture=architecture, rootfs=m.RootFS(diff_ids=diff_ids))
        )
        config_descriptor = m.describe(m.OCI_CONFIG, config)
        repository.push_blob(config_descriptor, io.BytesIO(config))
        manifest = m.Manifest(
            schema_version=2,
            media_type=m.OCI_MANIFEST,
            config=config_descriptor,
            layers=tuple(layers),
        )
        return repository.push_manifest(tag, m.OCI_MANIFEST, m.encode(manifest))


def make_index(path: Path, tag: str = "multi") -> m.Descriptor:
    """An index of linux/amd64 and linux/arm64 in the layout folder ``path``."""
    entries = []
    for seed, platform in ((10, "linux/amd64"), (20, "linux/arm64")):
        descriptor = make_image(path, None, seed=seed, platform=platform)
        system, architecture = platform.split("/")
        entries.append(
            m.Descriptor(
                media_type=descriptor.media_type,
                digest=descriptor.digest,
                size=descriptor.size,
                platform=m.Platform(os=system, architecture=architecture),
            )
        )
    index = m.ImageIndex(schema_version=2, media_type=m.OCI_INDEX, manifests=tuple(entries))
    with LayoutRepository(parse_reference(f"oci:{path}"), write=True) as repository:
        return repository.push_manifest(tag, m.OCI_INDEX, m.encode(index))
