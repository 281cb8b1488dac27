"""Images that the real ``nydus-image`` made are opened, read and compared with their source."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lamina.blob.framing import read_bootstrap
from lamina.content.lazy_image import LazyImage
from lamina.erofs.layout import BlobFeature
from lamina.errors import IntegrityError
from lamina.image.compare import compare
from lamina.image.folder import FolderImage
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
from lamina.oci.reference import parse_reference
from lamina.registry.open_repository import open_repository
from tests.support.native_images import open_bootstrap
from tests.support.opening import open_image
from tests.support.serving import FolderSource

pytestmark = pytest.mark.tools

CHUNK = 0x10000


@pytest.fixture(scope="module")
def nydus_image(peer: Callable[[str], Path]) -> Path:
    return peer("nydus-image")


def content(size: int, seed: int) -> bytes:
    """Half of it compresses."""
    noise = hashlib.shake_256(str(seed).encode()).digest(max(size // 2, 1))
    return (noise + b"lamina " * (size // 7 + 1))[:size]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("source") / "tree"
    (base / "etc" / "deep" / "er").mkdir(parents=True)
    (base / "many").mkdir()
    for number in range(300):
        (base / "many" / f"file-{number:04}").write_bytes(content(17 + 31 * number % 3000, number))
    for name, size in (("big", 700_001), ("exact", 2 * CHUNK), ("tail", CHUNK + 1), ("empty", 0)):
        (base / "etc" / name).write_bytes(content(size, size))
    (base / "etc" / "twice").write_bytes(content(700_001, 700_001))
    os.link(base / "etc" / "tail", base / "etc" / "deep" / "hard")
    (base / "etc" / "link").symlink_to("deep/../big")
    (base / "etc" / "long-link").symlink_to("x" * 4000)
    (base / "etc" / "tail").chmod(0o4751)
    os.utime(base / "etc" / "tail", ns=(0, 1_600_000_000_123_456_789))
    for path in (base / "etc" / "tail", base / "etc"):
        try:
            os.setxattr(path, "user.lamina", b"value of " + os.fsencode(path.name))
        except OSError:
            break
    os.utime(base, (0, 0))  # nydus-image sets the time of the root to zero
    return base


def create(program: Path, source: Path, output: Path, *options: str) -> Path:
    """Run ``nydus-image create -B -D``; returns the bootstrap."""
    (output / "blobs").mkdir(parents=True)
    boot = output / "image.boot"
    subprocess.run(
        [program, "create", "-B", boot, "-D", output / "blobs", *options, source],
        check=True,
        capture_output=True,
        timeout=60,
    )
    return boot


@contextmanager
def opened(boot: Path, store: Path) -> Iterator[LazyImage]:
    with open_bootstrap(boot, FolderSource(boot.parent), store=store) as image:
        yield image


@pytest.mark.parametrize("features", [(), ("--features", "blob-toc")], ids=["plain", "toc"])
@pytest.mark.parametrize("batch", ["0", "0x8000"], ids=["single", "batch"])
@pytest.mark.parametrize(
    ("compressor", "digester"),
    [("none", "blake3"), ("lz4_block", "blake3"), ("zstd", "blake3"), ("zstd", "sha256")],
)
def test_a_folder(
    nydus_image: Path,
    folder: Path,
    tmp_path: Path,
    compressor: str,
    digester: str,
    batch: str,
    features: tuple[str, ...],
) -> None:
    boot = create(
        nydus_image,
        folder,
        tmp_path / "image",
        *("--chunk-size", hex(CHUNK), "--batch-size", batch),
        *("--compressor", compressor, "--digester", digester, *features),
    )
    with opened(boot, tmp_path / "store") as image:
        assert [str(one) for one in compare(image, FolderImage(folder))] == []
        is_batch = image.bootstrap.blobs[0].features & BlobFeature.BATCH
        assert bool(is_batch) == (batch != "0")
        assert image.statistics.fetched_bytes > 0
    with opened(boot, tmp_path / "store") as image:
        assert list(compare(image, FolderImage(folder))) == []
        assert image.statistics.requests == 0, "all of it is in the store"


def test_a_flipped_byte_is_an_error(nydus_image: Path, folder: Path, tmp_path: Path) -> None:
    boot = create(nydus_image, folder, tmp_path / "image", "--chunk-size", hex(CHUNK))
    (blob,) = (boot.parent / "blobs").iterdir()
    pristine = blob.read_bytes()
    wanted = {path: (folder / path).read_bytes() for path in ("etc/big", "etc/tail", "etc/exact")}
    for number, position in enumerate(range(100, 900_000, 77_777)):
        damaged = bytearray(pristine)
        damaged[position % len(pristine)] ^= 0x10
        blob.write_bytes(damaged)
        with opened(boot, tmp_path / f"store{number}") as image:
            for path, data in wanted.items():
                try:
                    with image.open(path) as file:
                        assert file.read() == data
                except IntegrityError as error:
                    assert blob.name in str(error)


def layer_tar(*members: tuple[str, bytes | None]) -> bytes:
    """A layer of files, and of directories where there is no content."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.mtime = 1_700_000_000
            if data is None:
                info.type, info.mode = tarfile.DIRTYPE, 0o755
            else:
                info.size = len(data)
            archive.addfile(info, io.BytesIO(data) if data is not None else None)
    return buffer.getvalue()


def convert_as_nydusify(program: Path, layers: list[bytes], work: Path, *options: str) -> str:
    """Do what nydusify does (RAFS v6 §6): blobs with everything inside, merge, push."""
    work.mkdir()
    blobs: list[bytes] = []
    boots: list[Path] = []
    for number, layer in enumerate(layers):
        tar = work / f"{number}.tar"
        tar.write_bytes(layer)
        blob = work / f"{number}.blob"
        subprocess.run(
            [
                *(program, "create", "-t", "tar-rafs", "--blob-inline-meta"),
                *("--features", "blob-toc", "--whiteout-spec", "none"),
                *("--chunk-size", hex(CHUNK), *options, "--blob", blob, tar),
            ],
            check=True,
            capture_output=True,
            timeout=60,
        )
        data = blob.read_bytes()
        bootstrap = read_bootstrap(lambda at, size, data=data: data[at : at + size], len(data))
        assert bootstrap is not None
        boots.append(work / hashlib.sha256(data).hexdigest())
        boots[-1].write_bytes(bootstrap)
        blobs.append(data)
    merged = work / "merged.boot"
    subprocess.run(
        [program, "merge", "-B", merged, *boots], check=True, capture_output=True, timeout=60
    )
    return push(merged.read_bytes(), blobs, work / "layout")


def push(bootstrap: bytes, blobs: list[bytes], layout: Path) -> str:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        folder = tarfile.TarInfo("image")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o755
        archive.addfile(folder)
        info = tarfile.TarInfo("image/image.boot")
        info.size = len(bootstrap)
        archive.addfile(info, io.BytesIO(bootstrap))
    metadata = gzip.compress(buffer.getvalue(), mtime=0)
    config = b'{"architecture":"amd64","os":"linux"}'
    parts = [(describe(OCI_CONFIG, config), config)]
    parts += [(describe(NYDUS_BLOB, blob, {NYDUS_BLOB_MARK: "true"}), blob) for blob in blobs]
    parts.append((describe(OCI_LAYER_GZIP, metadata, {NYDUS_BOOTSTRAP_MARK: "true"}), metadata))
    manifest = Manifest(
        schema_version=2,
        media_type=OCI_MANIFEST,
        config=parts[0][0],
        layers=tuple(descriptor for descriptor, _ in parts[1:]),
    )
    with open_repository(parse_reference(f"oci:{layout}:latest"), write=True) as repository:
        for descriptor, data in parts:
            repository.push_blob(descriptor, io.BytesIO(data))
        repository.push_manifest("latest", OCI_MANIFEST, encode(manifest))
    return f"oci:{layout}:latest"


@pytest.mark.parametrize(
    "options",
    [("--compressor", "lz4_block"), ("--compressor", "zstd", "--batch-size", "0x8000")],
    ids=["lz4", "batch"],
)
def test_two_layers_as_nydusify_pushes_them(
    nydus_image: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    small = {f"d/small-{number}": content(50 + number, number) for number in range(200)}
    gone = {f"d/gone-{number}": content(60 + number, number + 1000) for number in range(50)}
    lower = layer_tar(
        ("d", None),
        *small.items(),
        *gone.items(),
        ("kept", content(300_000, 1)),
        ("replaced", content(90_000, 2)),
    )
    upper = layer_tar(
        ("d", None),
        ("replaced", b"new"),
        ("added", content(70_000, 3)),
        *((f"d/.wh.{n[2:]}", b"") for n in gone),
    )
    reference = convert_as_nydusify(nydus_image, [lower, upper], tmp_path / "work", *options)
    expected = small | {
        "kept": content(300_000, 1),
        "replaced": b"new",
        "added": content(70_000, 3),
    }
    for attempt in range(2):
        with open_image(reference, store=tmp_path / "store") as image:
            found = {
                os.fsdecode(path[1:]): image.pread(stat, 0, stat.size)
                for path, stat in image.walk()
                if stat.is_file
            }
            assert found == expected
            assert len(image.blobs) == 2
            for blob in image.blobs:
                # Chunks of files that are gone have no digest and are left out, but do no harm.
                blob.ensure(0, blob.size_bytes)
                assert blob.complete
            if attempt:
                assert image.statistics.requests == 0
