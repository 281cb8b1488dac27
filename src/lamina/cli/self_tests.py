"""Known answers: does this installation compute what it must, from a digest to a whole image?"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from lamina.errors import Error, IntegrityError

if TYPE_CHECKING:
    from lamina.content.lazy_image import LazyImage
    from lamina.image.base import Image

_TEXT: Final = b"lamina lamina lamina lamina lamina lamina lamina lamina\n"
_PACKED: Final = {
    "NONE": _TEXT.hex(),
    "LZ4_BLOCK": "7f6c616d696e6120070019506d696e610a",
    "GZIP": "1f8b0800000000000003cb49cccdcc4b54c82191e202005bd6b40738000000",
    "ZSTD": "28b52ffd2038750000406c616d696e61200a0100292a46",
}
_DIGESTS: Final = {
    "BLAKE3": "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85",
    "SHA256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
}


class SelfTestResult(NamedTuple):
    """One question, whether the answer was right, and what was wrong with it."""

    name: str
    ok: bool
    detail: str = ""


def run_self_tests() -> Iterator[SelfTestResult]:
    """Ask every question, one after the other; none raises."""
    questions: list[tuple[str, Callable[[], None]]] = [
        ("digests", _digests),
        ("checksum", _checksum),
        ("codecs", _codecs),
        ("image round trip", _round_trip),
        ("damaged image is refused", _refusal),
    ]
    for name, question in questions:
        yield _asked(name, question)


def _asked(name: str, question: Callable[[], None]) -> SelfTestResult:
    try:
        question()
    except Exception as error:  # noqa: BLE001 - a broken installation raises anything
        return SelfTestResult(name, False, f"{type(error).__name__}: {error}")
    return SelfTestResult(name, True)


def _same(what: str, found: object, expected: object) -> None:
    if found != expected:
        raise IntegrityError(f"{what} is {found!r}, not {expected!r}")


def _digests() -> None:
    from lamina.codec.digest import Digester, digest

    for name, expected in _DIGESTS.items():
        _same(name, digest(Digester[name], b"abc").hex(), expected)


def _checksum() -> None:
    from lamina.codec.crc32c import crc32c

    _same("CRC-32C", crc32c(b"123456789"), 0xE3069283)


def _codecs() -> None:
    from lamina.codec.compress import Compressor, compress, decompress

    sample = bytes(range(256)) * 64 + _TEXT * 100
    for name, packed in _PACKED.items():
        kind = Compressor[name]
        _same(name, decompress(kind, bytes.fromhex(packed), len(_TEXT)), _TEXT)
        _same(name, decompress(kind, compress(kind, sample), len(sample)), sample)


def tiny_layout(folder: Path) -> dict[str, bytes]:
    """Write an OCI layout of one image with one layer; return the regular files in it."""
    noise = b"".join(hashlib.sha256(b"%d" % number).digest() for number in range(20000))
    files = {"etc/hello": _TEXT, "big": noise, "empty": b""}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        directory = tarfile.TarInfo("etc")
        directory.type, directory.mode = tarfile.DIRTYPE, 0o755
        archive.addfile(directory)
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o644
            archive.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("link")
        link.type, link.linkname, link.mode = tarfile.SYMTYPE, "etc/hello", 0o777
        archive.addfile(link)
    write_layout(folder, "tiny", buffer.getvalue(), {"Cmd": ["/hello"]})
    return files


def write_layout(folder: Path, tag: str, layer: bytes, config: dict[str, object]) -> None:
    """Write an OCI layout of one image with one layer, given as tar, for this machine."""
    from lamina.oci.platform import host_platform

    platform = host_platform()
    document = {
        "architecture": platform.architecture,
        "os": platform.os,
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    media = "application/vnd.oci.image"
    packed = gzip.compress(layer, 1, mtime=0)
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{media}.manifest.v1+json",
        "config": _blob(folder, f"{media}.config.v1+json", json.dumps(document).encode()),
        "layers": [_blob(folder, f"{media}.layer.v1.tar+gzip", packed)],
    }
    entry = _blob(folder, f"{media}.manifest.v1+json", json.dumps(manifest).encode())
    entry["annotations"] = {"org.opencontainers.image.ref.name": tag}
    (folder / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))


def _blob(folder: Path, media_type: str, data: bytes) -> dict[str, object]:
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(data).hexdigest()
    (blobs / name).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{name}", "size": len(data)}


@contextlib.contextmanager
def _converted() -> Iterator[tuple[Path, dict[str, bytes]]]:
    """Yield a folder with a tiny image, converted to ``native:tiny``, and its files."""
    from lamina.build.convert import convert
    from lamina.build.options import ConvertOptions
    from lamina.oci.reference import parse_reference

    with tempfile.TemporaryDirectory(prefix="lamina-self-test-") as name:
        folder = Path(name)
        files = tiny_layout(folder / "source")
        source = parse_reference(f"oci:{folder}/source:tiny")
        target = parse_reference(f"oci:{folder}/native:tiny")
        convert(source, target, ConvertOptions(jobs=1))
        yield folder, files


def _opened(folder: Path) -> LazyImage:
    from lamina.opening.open_image import open_image
    from lamina.opening.request import OpenRequest

    reference = f"oci:{folder}/native:tiny"
    return open_image(OpenRequest(reference=reference, store=str(folder / "store")))


def _round_trip() -> None:
    from lamina.erofs.check import check_bootstrap

    with (
        _converted() as (folder, files),
        _opened(folder) as image,
    ):
        check_bootstrap(image.bootstrap.view)
        _same("the link", image.readlink("/link"), b"etc/hello")
        found = _contents(image)
        _same("the tree", {name: len(data) for name, data in found.items()},
              {name: len(data) for name, data in files.items()})  # fmt: skip
        _same("the content", found == files, True)


def _refusal() -> None:
    """Check that a flipped byte in a data blob must end in an error, never in other bytes."""

    with _converted() as (folder, _):
        _flip_byte(folder / "native" / "blobs" / "sha256")
        with (
            suppressed_log(),
            contextlib.suppress(Error),
            _opened(folder) as image,
        ):
            _contents(image)
            raise AssertionError("an image with a flipped byte was read without an error")


def _flip_byte(blobs: Path) -> None:
    """Damage the largest blob, which has the data."""
    path = max(blobs.iterdir(), key=lambda blob: blob.stat().st_size)
    data = bytearray(path.read_bytes())
    data[16] ^= 0x01
    path.chmod(0o644)
    path.write_bytes(data)


def _contents(image: Image) -> dict[str, bytes]:
    files = (stat for _, stat in image.walk() if stat.is_file)
    return {stat.path[1:].decode(): image.pread(stat, 0, stat.size) for stat in files}


@contextlib.contextmanager
def suppressed_log() -> Iterator[None]:
    """Keep log lines about damage that was done on purpose from being shown."""
    import logging

    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
