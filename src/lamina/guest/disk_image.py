"""Make the disk image of an image (:mod:`lamina.guest.disk_plan`), and read the plan in one."""

from __future__ import annotations

import hashlib
import tarfile
import tempfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, BinaryIO, Final, cast

import msgspec

from lamina.block.base import DiskReader
from lamina.block.disk import DiskView
from lamina.block.encryption import EncryptedDisk
from lamina.block.hash_area import make_hash_area
from lamina.block.verity import VerityOptions
from lamina.build.convert import convert
from lamina.build.options import ConvertOptions
from lamina.codec.compress import Compressor
from lamina.errors import FormatError
from lamina.guest.disk_plan import DISK, MAX_PLAN_BYTES, PLAN, DiskPlan, disk_salt, parse_plan
from lamina.oci import manifest as m
from lamina.oci.reference import Reference, parse_reference
from lamina.registry.layout import LayoutRepository
from lamina.trust.broker.kbs_packet import ResourcePath

if TYPE_CHECKING:
    from lamina.block.base import Disk
    from lamina.content.lazy_image import LazyImage
    from lamina.http.client_options import ClientOptions

_TAG: Final = "disk"

Progress = Callable[[int], None]


def write_layout(
    image: LazyImage,
    key: bytes,
    resource: ResourcePath,
    folder: Path,
    progress: Progress = lambda _: None,
) -> tuple[DiskPlan, Reference]:
    """Write the disk image of *image* as an ordinary image into *folder*, which is to be pushed by
    :func:`push_layout`; its plan and where it is.

    *key* is 64 bytes, which the broker has as *resource*.  Reads all of the image twice.  Raises
    UsageError for another key, and what reading the image raises.
    """
    view = DiskView(image)
    area = make_hash_area(view, VerityOptions(salt=disk_salt(key)), view.uuid, progress)
    disk, verity = area.behind(view)
    plan = DiskPlan(key=str(resource), root_hash=verity.root.hex(), data_blocks=verity.data_blocks)
    encrypted = EncryptedDisk(disk, key)
    return plan, _write_image(folder, encrypted, plan, image.config.architecture, progress)


def push_layout(
    source: Reference, destination: Reference, client: ClientOptions | None = None
) -> str:
    """Push what was written and return its digest.  Call it while no image is open: it forks."""
    # Ciphertext has nothing that is equal or that compresses.
    options = ConvertOptions(compressor=Compressor.NONE, pack_size=0)
    return convert(source, destination, options, destination_client=client).digest


def read_plan(image: LazyImage) -> DiskPlan:
    """Return the plan in a disk image, which is as trustworthy as the image.

    Raises FormatError, and what reading files of an image raises.
    """
    found = image.find(PLAN)
    if found.size > MAX_PLAN_BYTES:
        raise FormatError(f"the {PLAN} of the image is no plan of a disk")
    plan = parse_plan(image.pread(found, 0, found.size))
    if image.find(DISK).size != plan.size_bytes:
        raise FormatError(f"the {DISK} of the image is not of the size of its plan")
    return plan


def _write_image(
    folder: Path, disk: Disk, plan: DiskPlan, architecture: str, progress: Progress
) -> Reference:
    """Write an ordinary image of one layer with the two files."""
    reference = parse_reference(f"oci:{folder / 'layout'}:{_TAG}")
    with tempfile.TemporaryFile(dir=folder) as file:
        _write_tar(file, disk, plan, progress)
        size = file.tell()
        file.seek(0)
        digest = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        file.seek(0)
        with LayoutRepository(reference, write=True) as layout:
            layer = m.Descriptor(media_type=m.OCI_LAYER, digest=digest, size=size)
            layout.push_blob(layer, file)
            document = {
                "architecture": architecture,
                "os": "linux",
                "rootfs": {"type": "layers", "diff_ids": [digest]},
            }
            config = m.encode(document)
            described = m.describe(m.OCI_CONFIG, config)
            layout.push_blob(described, BytesIO(config))
            manifest = m.Manifest(
                schema_version=2, media_type=m.OCI_MANIFEST, config=described, layers=(layer,)
            )
            layout.push_manifest(_TAG, m.OCI_MANIFEST, m.encode(manifest))
    return reference


def _write_tar(file: IO[bytes], disk: Disk, plan: DiskPlan, progress: Progress) -> None:
    text = msgspec.json.encode(plan)
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, size, content in (
            (PLAN, len(text), BytesIO(text)),
            (DISK, disk.size_bytes, cast("BinaryIO", DiskReader(disk, progress))),
        ):
            info = tarfile.TarInfo(name)
            info.size, info.mode = size, 0o444
            tar.addfile(info, content)
